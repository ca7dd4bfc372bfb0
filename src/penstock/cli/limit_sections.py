"""Identity and limits in penstock.toml: the sections, their keys and bounds.

Not here: what spans several keys, and turning the sections into the nouns of `core` (`limit_reading.py`).
"""

from typing import Annotated, Literal

from pydantic import Field

from penstock.cli.section import NAME_PATTERN, Section
from penstock.core.limit_text import NUMBER_MAX
from penstock.core.models import TENANT_PATTERN

__all__ = ["IdentitySection", "LimitSection", "LimitingSection", "RedisSection", "TierSection"]

_Number = Annotated[int, Field(ge=1, le=NUMBER_MAX)]
_Name = Annotated[str, Field(pattern=NAME_PATTERN)]


class IdentitySection(Section):
    """Whether callers must say who they are."""

    required: bool = Field(default=False, description="Refuse requests without an API key.")


class LimitSection(Section):
    """One limit: on requests, rows or tokens in time, or on requests in progress."""

    level: Literal["user", "tenant", "model", "global"] = Field(description="Whose consumption is counted together.")
    rate: str | None = Field(default=None, description='As text, e.g. "100/s" or "500 rows/min burst 1000".')
    tokens: _Number | None = Field(default=None, description="In place of rate: so many in each period.")
    per: str | None = Field(default=None, description='In place of rate: the period, e.g. "1s", "500ms", "1d".')
    burst: _Number | None = Field(default=None, description="So many at once; as many as in one period if left out.")
    cost: Literal["requests", "rows", "tokens"] = Field(default="requests", description="What is counted.")
    models: list[_Name] = Field(default_factory=list, description="Count requests for these alone; all if empty.")
    unreachable: Literal["closed", "open", "local_share"] = Field(
        default="local_share", description="What to do while nobody can be asked."
    )
    failover: Literal["soft", "hard"] = Field(
        default="soft", description="Where buckets start after counts may have been lost."
    )
    split: int = Field(default=1, ge=1, le=1_024, description="Sub-buckets, for what one Redis shard cannot carry.")
    concurrent: _Number | None = Field(default=None, description="In place of a rate: requests in progress at once.")
    slot_ttl_s: float = Field(
        default=10, ge=1, le=3_600, description="With concurrent: how long a dead gateway's requests count, s."
    )


class TierSection(Section):
    """A set of limits that keys can be put under."""

    limits: list[_Name] = Field(description="Limits that hold for keys of this tier, and not for keys of no tier.")


class RedisSection(Section):
    """The Redis that counts for all machines of a fleet."""

    url: str | None = Field(default=None, description='URL, or "env:NAME" of a variable that holds it.')
    prefix: str = Field(default="penstock", pattern=TENANT_PATTERN, description="Of all keys in it.")
    eviction: Literal["refuse", "warn"] = Field(
        default="refuse", description="What to do if its eviction policy could drop counts."
    )
    lag_s_max: float = Field(default=1, ge=0, le=3_600, description="Longest replication lag to reckon with, s.")


class LimitingSection(Section):
    """How gateways deal with whoever counts: the head, or Redis."""

    deadline_ms: float = Field(default=20, ge=1, le=1_000, description="How long a gateway waits for an answer, ms.")
    lease_ms: float = Field(default=1_000, ge=50, le=2_000, description="How long lent tokens are good for, ms.")
    decision_log: str | None = Field(
        default=None, description="File that gateways add one JSON line per decision to; relative to this file."
    )
