"""Whether a server will do as the authority over limits: its version, its role, and that it evicts nothing.

A limiter's key that is evicted is a bucket that is full of tokens again, so `maxmemory-policy` must be `noeviction`.
Not here: connecting (`target.py`).
"""

from dataclasses import dataclass

__all__ = ["VERSION_MIN", "Server", "complain_about_eviction", "complain_about_server", "read_info"]

# The first with `SET ... PXAT` in its replication stream: expiry is an instant everywhere, not a span that starts anew.
VERSION_MIN = (6, 2)


@dataclass(frozen=True, slots=True)
class Server:
    """What INFO says of one.

    Attributes:
        version: As it calls itself, e.g. `7.0.15`; of Valkey, the Redis version it is compatible with.
        run_id: Another after each start.
        is_primary: False for a replica, which refuses writes.
        is_cluster: It holds a part of the slots.
        eviction: Its `maxmemory-policy`.
    """

    version: str
    run_id: str
    is_primary: bool
    is_cluster: bool
    eviction: str


def read_info(text: bytes) -> Server:
    """Return what the reply to INFO says."""
    lines = text.decode(errors="replace").splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return Server(
        version=fields.get("redis_version", "0"),
        run_id=fields.get("run_id", ""),
        is_primary=fields.get("role", "master") == "master",
        is_cluster=fields.get("cluster_enabled", "0") == "1",
        eviction=fields.get("maxmemory_policy", "noeviction"),
    )


def complain_about_server(server: Server) -> str:
    """Return why this server cannot count limits and what to do; '' if it can."""
    numbers = tuple(int(part) for part in server.version.split(".")[:2] if part.isdecimal())
    if numbers < VERSION_MIN:
        return f"expected Redis 6.2 or later, or Valkey, got version {server.version}; upgrade it"
    if not server.is_primary:
        return "expected a primary, got a replica, which refuses writes; name the primary, or use redis+sentinel://"
    return ""


def complain_about_eviction(server: Server) -> str:
    """Return why limits may be lost to eviction and what to do; '' if they cannot."""
    if server.eviction == "noeviction":
        return ""
    return (
        f"expected maxmemory-policy noeviction, got {server.eviction}: a limit that is evicted is forgotten, and lets"
        " its burst in again; run CONFIG SET maxmemory-policy noeviction, give limits a Redis of their own, or set"
        ' redis.eviction = "warn"'
    )
