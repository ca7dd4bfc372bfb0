"""Reading a TOML file as one of the sections' types, and saying what is wrong with it: key, value, what was expected.

Every mistake of a file is reported at once. Not here: which keys there are (`config_sections.py`).
"""

import difflib
import json
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from penstock.cli.section import NAME_PATTERN
from penstock.core.errors import ConfigError
from penstock.core.models import TENANT_PATTERN

__all__ = ["Problems", "read_file"]

_S = TypeVar("_S", bound=BaseModel)


@dataclass(slots=True)
class Problems:
    """The mistakes found so far, each with the file it is in."""

    found: list[tuple[Path, str]] = field(default_factory=list)

    def add(self, file: Path, key: str, text: str) -> None:
        """Note one mistake at `key` ('' for the file as a whole)."""
        self.found.append((file, f"{key}: {text}" if key else text))

    def check(self) -> None:
        """Raise if anything was found.

        Raises:
            ConfigError: All mistakes, grouped by file.
        """
        if not self.found:
            return
        lines = []
        for file in dict.fromkeys(f for f, _ in self.found):
            texts = [text for f, text in self.found if f == file]
            lines.append(f"{file}: {len(texts)} {'setting is' if len(texts) == 1 else 'settings are'} wrong")
            lines += [f"  {text}" for text in texts]
        raise ConfigError("\n".join(lines))


def read_file(file: Path, kind: type[_S], problems: Problems) -> _S | None:
    """Parse a TOML file as `kind`; None if that added problems."""
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        problems.add(file, "", f"expected a readable file, got: {error.strerror}")
        return None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        problems.add(file, "", f"expected TOML, got: {error}")
        return None
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        for details in error.errors():
            problems.add(file, *_explain(kind, details))
        return None


_EXPECTED = {
    "missing": "a value, the key is required",
    "string_type": "a string",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "an array",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "greater_than": "more than {gt:.12g}",
    "greater_than_equal": "at least {ge:.12g}",
    "less_than_equal": "at most {le:.12g}",
    "finite_number": "a finite number",
    "literal_error": "{expected}",
    "too_short": "at least {min_length} of them",
    "string_too_short": "a non-empty string",
}
_PATTERNS = {
    NAME_PATTERN: "a name of letters, digits, '.', '_' and '-'",
    TENANT_PATTERN: "a name of 1 to 64 letters, digits, '.', '_' and '-'",
    r"^[0-9]+$": 'a string of digits, e.g. "1"',
}


def _explain(kind: type[BaseModel], details: ErrorDetails) -> tuple[str, str]:
    """Turn one of pydantic's errors into a key and a sentence: the value, and what was expected instead."""
    location = [step for step in details["loc"] if step != "[key]"]
    key = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in location).lstrip(".")
    error, context, value = details["type"], details.get("ctx", {}), details["input"]
    if error == "extra_forbidden":
        known = _known_keys(kind, location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"
        return key, f"unknown key; {hint}"
    if error == "value_error":
        said = str(context["error"])
        return key, said if isinstance(value, dict) else f"{said}, got {_show(value)}"
    if error == "string_pattern_mismatch":
        expected = _PATTERNS[context["pattern"]]
    elif error in _EXPECTED:
        expected = _EXPECTED[error].format(**context)
    else:
        expected = details["msg"]
    return key, f"expected {expected}" if error == "missing" else f"expected {expected}, got {_show(value)}"


def _show(value: Any) -> str:
    """Write a value as TOML has it, cut to a readable length."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def _known_keys(kind: type[BaseModel], location: list[Any]) -> list[str]:
    """Return the keys allowed in the table at `location` of a document of `kind`."""
    annotation: Any = kind
    for step in location:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            fields = {(f.alias or name): f for name, f in annotation.model_fields.items()}
            annotation = fields[step].annotation
        elif get_origin(annotation) in (dict, list):
            annotation = get_args(annotation)[-1]
    assert isinstance(annotation, type)
    assert issubclass(annotation, BaseModel)
    return [f.alias or name for name, f in annotation.model_fields.items()]
