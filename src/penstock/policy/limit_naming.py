"""Which limits a request is under, and under which key each counts it: the same for gateways, the head and the audit.

    PREFIX:{TAG}:NAME:SUBJECT    penstock:{acme}:per-user:alice    penstock:{model:digits}:per-model:digits

What stands in braces decides the slot in a Redis Cluster: all of one tenant's keys share one, so that they are checked
in one atomic step. Not here: what limits are (`core/limits.py`).
"""

from penstock.core.limits import Level, Limit, LimitSettings, Principal

__all__ = ["bucket_key", "limits_of"]


def bucket_key(prefix: str, limit: Limit, principal: Principal, model: str, part: int | None = None) -> str:
    """Return the key under which a limit counts this caller's requests for a model.

    Args:
        prefix, limit, principal, model: As they are.
        part: Which sub-bucket, of a limit that is split: each is in a slot of its own.
    """
    if limit.level is Level.MODEL:
        tag, subject = f"model:{model}", model
    elif limit.level is Level.GLOBAL:
        tag, subject = "global", "all"
    else:
        tag = principal.tenant or "-"
        subject = principal.user if limit.level is Level.USER else tag
        if limit in principal.limits:
            subject = principal.key_id
    if part is not None:
        tag = f"{tag}#{part}"
    return f"{prefix}:{{{tag}}}:{limit.name}:{subject}"


def limits_of(settings: LimitSettings, principal: Principal, model: str) -> tuple[Limit, ...]:
    """Return every limit that this caller's requests for a model are under, its own included."""
    own = tuple(limit for limit in principal.limits if not limit.models or model in limit.models)
    return settings.of(principal.tier, model) + own
