"""Dead modules and public names: what the rules must know of several files at once.

A module lives if a command or the public package reaches it through imports, or starts it as a process
(`python -m`). Not here: rules about one file (`rules.py`).
"""

import ast

__all__ = ["find_dead_modules", "imported_modules", "public_names"]


def imported_modules(source: str, importer: str, *, is_package: bool = False) -> set[str]:
    """Return the dotted names a module may import: both readings of `from a import b`, and modules named in strings.

    Args:
        source: The module's text.
        importer: Its dotted name, to resolve relative imports.
        is_package: Whether it is a package's `__init__`.
    """
    package = importer if is_package else importer.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("penstock."):
            found.add(node.value)  # `python -m penstock.replica.process`
    return found


def find_dead_modules(
    sources: dict[str, str], packages: set[str], entry_points: set[str], users: dict[str, str]
) -> list[str]:
    """Return the modules that nothing alive reaches, sorted. Packages as such are never dead.

    Args:
        sources: Module name to text, of everything in src.
        packages: Which of them are a package's `__init__`.
        entry_points: Modules that are commands; with the root package, where life starts.
        users: Name to text of tests, examples and benchmarks. They keep `penstock.testing` alive, nothing else.
    """
    kit = {found for name, text in users.items() for found in imported_modules(text, name)}
    waiting = {"penstock", *entry_points, *(name for name in kit if name.startswith("penstock.testing"))}
    live: set[str] = set()
    while waiting:
        name = waiting.pop()
        parents = {name.rpartition(".")[0]} - {""}
        if name in sources:
            live.add(name)
            parents |= imported_modules(sources[name], name, is_package=name in packages)
        waiting |= {found for found in parents if found in sources} - live
    return sorted(set(sources) - live - packages)


def public_names(source: str) -> list[str]:
    """Return a module's `__all__`, sorted; empty if it has none."""
    for node in ast.parse(source).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in targets):
            return sorted(ast.literal_eval(node.value))
    return []
