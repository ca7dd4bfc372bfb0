"""The `penstock` command: finds the subcommand and imports only what that one needs.

Not here: what the commands do (`serve.py`, `bench.py`, `doctor.py`). Exit status of every command: 0 success, 1 a
failed check, 2 bad usage.
"""

import importlib
import json
import platform
import sys
from typing import Annotated

import typer

from penstock import __version__

__all__ = ["build_app", "main"]

# Each module has `register(app)`. They are imported by name and late because a generator imports numpy and a head
# uvicorn and pydantic: a tenth of a second each, on every start and every --help of the others.
_COMMANDS = {
    "serve": "penstock.cli.serve",
    "models": "penstock.cli.models",
    "keys": "penstock.cli.keys",
    "limits": "penstock.cli.limits",
    "bench": "penstock.cli.bench",
    "drill": "penstock.cli.drill",
    "simulate": "penstock.cli.simulate",
    "plan": "penstock.cli.plan",
    "doctor": "penstock.cli.doctor",
}


def build_app(command: str | None = None) -> typer.Typer:
    """Return the command line with all subcommands, or with only the one named `command` (and `version`)."""
    app = typer.Typer(name="penstock", no_args_is_help=True, add_completion=False, rich_markup_mode="rich")
    app.callback()(penstock)
    for module in [_COMMANDS[command]] if command in _COMMANDS else _COMMANDS.values():
        importlib.import_module(module).register(app)
    app.command(name="version")(version)
    return app


def penstock() -> None:
    """Serve models, load them, check the machine.

    First steps: penstock doctor; penstock serve examples/quickstart.toml; penstock bench http://127.0.0.1:8000
    --model digits --rate 1000 --duration 10.
    """


def version(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object: version, python, platform.")] = False,
) -> None:
    """Print the version.

    Example: penstock version --json
    """
    if as_json:
        print(
            json.dumps({"version": __version__, "python": platform.python_version(), "platform": platform.platform()})
        )
    else:
        print(__version__)


def main() -> None:
    """Run the command line of this process."""
    build_app(next((word for word in sys.argv[1:] if not word.startswith("-")), None))()


if __name__ == "__main__":
    main()
