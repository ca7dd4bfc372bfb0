"""What stands between a user and their next request: every limit they are under, and what is left of each now.

    GET /api/limits?user=alice --> which keys, which limits --Peek, Occupy--> the authority --> one JSON document

The authority is only looked at: nothing is taken. Not here: HTTP (`admin.py`), tables for people (`cli/limits.py`),
which limits there are (`policy/limit_naming.py`).
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from penstock.core.authority import Occupied, Occupy, Operation, Peek, Peeked, Reply
from penstock.core.errors import CallerError, NotFound
from penstock.core.keys import KeyRecord
from penstock.core.limits import ANONYMOUS, ConcurrencyLimit, Level, Limit, LimitSettings, Principal
from penstock.fleet.view import rule_of
from penstock.policy.limit_naming import bucket_key, limits_of

__all__ = ["AskLimits", "Circumstances", "explain_limits"]

# Asks the authority; a reply is None if it did not come.
AskLimits = Callable[[Sequence[Operation]], Awaitable[Sequence[Reply | None]]]

# Whose slots are looked at by saying that this one, who never had any, has none.
_NOBODY = "(explain)"
# Names in a message: enough to see what is meant, and no list of all users.
_SHOWN_MAX = 5


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What there is.

    Args:
        settings: Every limit.
        keys: Those that are good.
        models: Names.
        requires_key: Callers without a key are refused.
    """

    settings: LimitSettings
    keys: tuple[KeyRecord, ...]
    models: tuple[str, ...]
    requires_key: bool


@dataclass(slots=True)
class _Row:
    """One bucket, or the slots under one key, that some request of the user would be counted in."""

    limit: Limit
    parts: list[str]
    subject: str
    models: dict[str, None] = field(default_factory=dict)
    key_ids: dict[str, None] = field(default_factory=dict)


async def explain_limits(
    circumstances: Circumstances, ask: AskLimits, *, user: str, tenant: str, model: str
) -> dict[str, Any]:
    """Return the document: callers, limits with what is left of each, and which would refuse first.

    Args:
        circumstances: What there is.
        ask: Asks the authority.
        user: Whose requests; `anonymous` for those without a key.
        tenant: Of which tenant; '' for any.
        model: For which model; '' for all.

    Raises:
        CallerError: No user was named. NotFound: There is no such user, or model.
    """
    if not user:
        raise CallerError("user: expected a name, got none")
    principals = _find_callers(circumstances, user, tenant)
    rows = _find_rows(circumstances.settings, principals, _find_models(circumstances, model))
    operations = [operation for row in rows for operation in _questions(row)]
    replies = iter(await ask(operations) if operations else ())
    told = [_tell(row, [next(replies) for _ in row.parts]) for row in rows]
    return {
        "user": user,
        "tenant": tenant,
        "model": model,
        "callers": [{"key": p.key_id, "tenant": p.tenant, "user": p.user, "tier": p.tier} for p in principals],
        "limits": told,
        "refuses_first": _first(told),
    }


def _find_callers(circumstances: Circumstances, user: str, tenant: str) -> list[Principal]:
    found = [key for key in circumstances.keys if key.user == user and tenant in ("", key.tenant)]
    if found:
        return [key.to_principal() for key in found]
    if user == ANONYMOUS.user and not tenant and not circumstances.requires_key:
        return [ANONYMOUS]
    users = dict.fromkeys(key.user for key in circumstances.keys if tenant in ("", key.tenant))
    known = ", ".join(list(users)[:_SHOWN_MAX]) + (", ..." if len(users) > _SHOWN_MAX else "")
    of_tenant = f" of tenant {tenant!r}" if tenant else ""
    raise NotFound(f"user: expected one who has a key{of_tenant} ({known or 'there is none'}), got {user!r}")


def _find_models(circumstances: Circumstances, model: str) -> tuple[str, ...]:
    if not model:
        return circumstances.models
    if model not in circumstances.models:
        known = ", ".join(circumstances.models)
        raise NotFound(f"model: expected one that the server has ({known}), got {model!r}")
    return (model,)


def _find_rows(settings: LimitSettings, principals: Iterable[Principal], models: Iterable[str]) -> list[_Row]:
    """Return the buckets and slots of all these requests, each once, by level and name."""
    rows: dict[str, _Row] = {}
    for principal in principals:
        for model in models:
            if principal.models is not None and model not in principal.models:
                continue
            for limit in limits_of(settings, principal, model):
                name = bucket_key(settings.prefix, limit, principal, model)
                row = rows.get(name)
                if row is None:
                    parts = [name]
                    if not isinstance(limit, ConcurrencyLimit) and limit.split > 1:
                        numbers = range(limit.split)
                        parts = [bucket_key(settings.prefix, limit, principal, model, part) for part in numbers]
                    row = rows[name] = _Row(limit, parts, name.rpartition(":")[2])
                row.models[model] = None
                row.key_ids[principal.key_id] = None
    order = list(Level)
    return sorted(rows.values(), key=lambda row: (order.index(row.limit.level), row.limit.name, row.subject))


def _questions(row: _Row) -> list[Operation]:
    limit = row.limit
    if isinstance(limit, ConcurrencyLimit):
        return [Occupy(key, _NOBODY, 0, limit.ttl_us) for key in row.parts]
    quota = limit.quota()
    return [Peek(key, quota) for key in row.parts]


def _tell(row: _Row, replies: Sequence[Reply | None]) -> dict[str, Any]:
    limit = row.limit
    told: dict[str, Any] = {
        "name": limit.name,
        "level": limit.level.value,
        "rule": rule_of(limit),
        "subject": row.subject,
        "models": list(row.models),
        "keys": [key_id for key_id in row.key_ids if key_id],
        "size": limit.slots if isinstance(limit, ConcurrencyLimit) else limit.burst,
        "left": None,
        "lent": 0,
        "leases": 0,
        "full_after_s": None,
    }
    peeked = [reply for reply in replies if isinstance(reply, Peeked)]
    occupied = [reply for reply in replies if isinstance(reply, Occupied)]
    if isinstance(limit, ConcurrencyLimit) and occupied:
        told["left"] = max(limit.slots - occupied[0].taken, 0)
    elif peeked and len(peeked) == len(replies):
        told["left"] = sum(reply.remaining for reply in peeked)
        told["lent"] = sum(reply.leased for reply in peeked)
        told["leases"] = sum(reply.leases for reply in peeked)
        told["full_after_s"] = max(reply.full_after_us for reply in peeked) / 1e6
    return told


def _first(told: Iterable[dict[str, Any]]) -> dict[str, str] | None:
    """Return which limit has least left, lent tokens included; of several the one that takes longest to fill."""
    known = [limit for limit in told if limit["left"] is not None]
    if not known:
        return None
    first = min(known, key=lambda limit: (limit["left"] + limit["lent"], -(limit["full_after_s"] or 0.0)))
    return {"name": first["name"], "level": first["level"], "subject": first["subject"]}
