"""From settings to the Redis that counts limits. Light: every gateway imports it at its start.

Not here: the authority (`adapters/redis/`), the form of URLs (`redis_url.py`).
"""

import os
from collections.abc import Callable

from penstock.adapters.redis import RedisAuthority
from penstock.cli.redis_url import resolve_redis_url
from penstock.core.errors import ConfigError
from penstock.core.limits import LimitSettings

__all__ = ["make_authority"]


def make_authority(limits: LimitSettings, *, on_warning: Callable[[str], None]) -> RedisAuthority:
    """Return the authority that settings name, not started yet.

    Args:
        limits: Whose `redis` is not ''.
        on_warning: Called with what an operator should know.

    Raises:
        ConfigError: What names it is wrong, or its environment variable is not set here.
    """
    try:
        url = resolve_redis_url(limits.redis, os.environ)
    except ValueError as error:
        raise ConfigError(f"redis.url: {error}") from None
    return RedisAuthority(url, deadline_us=limits.deadline_us, eviction=limits.eviction, on_warning=on_warning)
