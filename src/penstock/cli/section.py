"""What the sections of all our files share: unknown keys are errors, names have one form.

Not here: the sections themselves (`config_sections.py`, `limit_sections.py`, `scenario_sections.py`).
"""

from pydantic import BaseModel, ConfigDict

__all__ = ["NAME_PATTERN", "Section"]

# What may stand in a URL path, a metric label and `name:version` without escaping.
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"


class Section(BaseModel):
    """A table of a file: unknown keys are errors, and a string is never taken for a number."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
