"""Real Redis servers for tests, and the authority's script on a clock that a test moves.

The servers are those of the drills. Not here: fakes; nothing stands in for Redis.
"""

from pathlib import Path

from penstock.adapters.redis import Script, load_script
from penstock.core.ports import Clock
from penstock.load.drills.redis_servers import RedisCluster, RedisReplication, RedisServer, find_redis, wait_for

__all__ = ["RedisCluster", "RedisReplication", "RedisServer", "find_redis", "manual_script", "wait_for"]


def manual_script(now_us: Clock, **replaced: str) -> Script:
    """Return the script with `now_us` for its time and every expiry, and other parts replaced as in `load_script`."""
    store = (Path(__file__).parent / "manual_store.lua").read_text()
    return load_script(now_us, store=store, **replaced)
