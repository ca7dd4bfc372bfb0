"""From the sections about limits to `LimitSettings`: what spans several keys is checked here, all of it at once.

Not here: the keys and their own bounds (`limit_sections.py`), the form of rates (`core/limit_text.py`).
"""

import os
from collections.abc import Collection, Mapping
from pathlib import Path

from penstock.cli.config_reading import Problems
from penstock.cli.config_sections import ConfigFile, to_us
from penstock.cli.limit_sections import LimitSection
from penstock.cli.redis_url import resolve_redis_url
from penstock.core.limit_text import parse_limit
from penstock.core.limits import ConcurrencyLimit, Cost, Failover, Level, Limit, LimitSettings, RateLimit, Unreachable

__all__ = ["read_limits"]

_RATE_KEYS = ("rate", "tokens", "per", "burst", "cost", "failover", "split")


def read_limits(
    file: Path, parsed: ConfigFile, problems: Problems, *, environ: Mapping[str, str] | None = None
) -> LimitSettings:
    """Return every limit of a file and how to ask for it; what is wrong is added to `problems` and left out.

    Args:
        file: Where it stands; paths are relative to it.
        parsed: Its sections.
        problems: Mistakes found so far.
        environ: Variables that `redis.url` may name; those of this process if None.
    """
    limits = []
    for name, section in parsed.limits.items():
        for index, model in enumerate(section.models):
            _check_known(file, f"limits.{name}.models[{index}]", model, "models", parsed.models, problems)
        limit = _to_limit(file, name, section, problems)
        if limit is not None:
            limits.append(limit)
    for name, tier in parsed.tiers.items():
        for index, limit_name in enumerate(tier.limits):
            _check_known(file, f"tiers.{name}.limits[{index}]", limit_name, "limits", parsed.limits, problems)
    redis, limiting = parsed.redis, parsed.limiting
    if redis.url is not None:
        try:
            resolve_redis_url(redis.url, os.environ if environ is None else environ)
        except ValueError as error:
            problems.add(file, "redis.url", str(error))
    log = None if limiting.decision_log is None else (file.parent / Path(limiting.decision_log).expanduser()).resolve()
    if log is not None and (log.is_dir() or not log.parent.is_dir()):
        problems.add(
            file, "limiting.decision_log", f"expected a file in a directory that exists, got {limiting.decision_log!r}"
        )
    return LimitSettings(
        limits=tuple(limits),
        tiers=tuple((name, tuple(tier.limits)) for name, tier in parsed.tiers.items()),
        deadline_us=to_us(limiting.deadline_ms),
        lease_us=to_us(limiting.lease_ms),
        redis=redis.url or "",
        prefix=redis.prefix,
        eviction=redis.eviction,
        lag_us_max=round(redis.lag_s_max * 1_000_000),
        decision_log="" if log is None else str(log),
    )


def _check_known(file: Path, key: str, name: str, kind: str, known: Collection[str], problems: Problems) -> None:
    if name not in known:
        names = ", ".join(known) or "none"
        problems.add(file, key, f"expected the name of a [{kind}.NAME] section (there is {names}), got {name!r}")


def _to_limit(file: Path, name: str, section: LimitSection, problems: Problems) -> Limit | None:
    """Turn one [limits.NAME] section into a limit; None if that added problems."""
    before = len(problems.found)
    limit = _to_slots(file, name, section, problems) if section.concurrent else _to_rate(file, name, section, problems)
    return limit if len(problems.found) == before else None


def _to_slots(file: Path, name: str, section: LimitSection, problems: Problems) -> ConcurrencyLimit:
    for key in _RATE_KEYS:
        if key in section.model_fields_set:
            problems.add(file, f"limits.{name}.{key}", "expected only without concurrent, which limits no rate")
    assert section.concurrent is not None
    return ConcurrencyLimit(
        name,
        Level(section.level),
        section.concurrent,
        tuple(section.models),
        Unreachable(section.unreachable),
        round(section.slot_ttl_s * 1_000_000),
    )


def _to_rate(file: Path, name: str, section: LimitSection, problems: Problems) -> RateLimit | None:
    if "slot_ttl_s" in section.model_fields_set:
        problems.add(file, f"limits.{name}.slot_ttl_s", "expected only with concurrent")
    numbers = _read_numbers(file, f"limits.{name}", section, problems)
    if numbers is None:
        return None
    tokens, per_us, burst, cost = numbers
    try:
        return RateLimit(
            name,
            Level(section.level),
            tokens,
            per_us,
            burst,
            cost,
            tuple(section.models),
            Unreachable(section.unreachable),
            Failover(section.failover),
            section.split,
        )
    except ValueError as error:
        key, _, said = str(error).partition(": ")
        is_key = key in LimitSection.model_fields
        problems.add(file, f"limits.{name}.{key}" if is_key else f"limits.{name}", said if is_key else str(error))
        return None


def _read_numbers(file: Path, key: str, section: LimitSection, problems: Problems) -> tuple[int, int, int, Cost] | None:
    """Return tokens, µs, burst and cost, from either form; None if that added problems."""
    before = len(problems.found)
    tokens, per_us, burst, cost = section.tokens or 1, 1, section.burst, Cost(section.cost)
    if section.rate is not None:
        _check_rate_stands_alone(file, key, section, section.rate, problems)
        try:
            told = parse_limit(section.rate)
        except ValueError as error:
            problems.add(file, f"{key}.rate", str(error).removeprefix("rate: "))
            return None
        tokens, per_us = told.tokens, told.per_us
        burst = burst or told.burst
        cost = cost if "cost" in section.model_fields_set else told.cost
    elif section.tokens is None and section.per is None:
        problems.add(file, key, 'expected rate, e.g. "100/s", or tokens and per, or concurrent; got none of them')
    elif section.tokens is None or section.per is None:
        missing, given = ("tokens", "per") if section.tokens is None else ("per", "tokens")
        problems.add(file, f"{key}.{missing}", f"expected a value, because there is {given}; the two go together")
    else:
        try:
            # Without its spaces nothing but a period is left of it.
            per_us = parse_limit(f"1/{''.join(section.per.split())}").per_us
        except ValueError as error:
            problems.add(file, f"{key}.per", _explain_period(str(error), section.per))
    return (tokens, per_us, burst or tokens, cost) if len(problems.found) == before else None


def _check_rate_stands_alone(file: Path, key: str, section: LimitSection, rate: str, problems: Problems) -> None:
    """Complain of keys that say again what the text of a rate says."""
    doubled = ["tokens", "per"]
    if "burst" in rate:
        doubled.append("burst")
    if any(c.isalpha() for c in rate.partition("/")[0]):
        doubled.append("cost")
    for name in doubled:
        if name in section.model_fields_set:
            problems.add(file, f"{key}.{name}", f"expected only where rate does not say it, got both; rate is {rate!r}")


def _explain_period(said: str, per: str) -> str:
    what, _, why = said.partition(": ")
    return why if what == "period" else f"expected a period such as 1s, 500ms or 1d, got {per[:40]!r}"
