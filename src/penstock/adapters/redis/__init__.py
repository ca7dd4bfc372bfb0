"""Redis and Valkey as the authority over limits: the Lua script that counts, and the client that asks it."""

from penstock.adapters.redis.authority import AuthorityStatistics, RedisAuthority
from penstock.adapters.redis.scripts import Script, load_script

__all__ = ["AuthorityStatistics", "RedisAuthority", "Script", "load_script"]
