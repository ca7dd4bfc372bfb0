"""Entry of a gateway process, run by the head: `python -m penstock.cli.run_gateway JSON`, a `GatewayLaunch`."""

import asyncio
import os
import sys

import msgspec
import uvloop

from penstock import __version__
from penstock.adapters.clock import boot_us, now_us, wall_us
from penstock.adapters.dice import uniform_stream
from penstock.core.errors import ConfigError
from penstock.core.launch import GatewayLaunch
from penstock.core.ports import Clock, LimitAuthority
from penstock.gateway.server import Gateway

__all__ = ["main"]

# By how many seconds the clocks of gateways are wrong, by index, with commas between: for drills.
_SKEW_VARIABLE = "PENSTOCK_DRILL_CLOCK_SKEW_S"


async def _run(launch: GatewayLaunch) -> None:
    skew_us = _read_skew_us(launch.index)
    gateway = Gateway(
        launch,
        now_us=now_us,
        wall_us=_shift(wall_us, skew_us),
        version=__version__,
        pid=os.getpid(),
        chance=uniform_stream(launch.index, "scheduling"),
        authority=await _start_authority(launch),
        limits_us=_shift(boot_us, skew_us),
    )
    await gateway.run()


def _read_skew_us(index: int) -> int:
    """Return by how much a gateway's clocks are to be wrong: not at all, unless a drill wants it."""
    skews_s = os.environ.get(_SKEW_VARIABLE, "").split(",")
    return round(float(skews_s[index % len(skews_s)] or "0") * 1_000_000)


def _shift(clock: Clock, skew_us: int) -> Clock:
    return (lambda: clock() + skew_us) if skew_us else clock


async def _start_authority(launch: GatewayLaunch) -> LimitAuthority | None:
    """Return the Redis that counts limits, None if the head does. It may be away: limits say what then."""
    if not launch.limits.redis:
        return None
    # Imported here: a tenth of a second and some MB that a gateway without Redis does without.
    from penstock.cli.limit_authority import make_authority  # noqa: PLC0415

    authority = make_authority(
        launch.limits, on_warning=lambda text: print(f"gateway {launch.index}: {text}", file=sys.stderr, flush=True)
    )
    await authority.start(is_required=False)
    return authority


def main() -> None:
    """Decode the launch document and serve until drained."""
    launch = msgspec.json.decode(sys.argv[1], type=GatewayLaunch)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(launch))
    except ConfigError as error:
        sys.exit(f"gateway {launch.index}: {error}")
    except OSError as error:
        sys.exit(f"gateway {launch.index}: cannot listen on {launch.http}: {error}")


if __name__ == "__main__":
    main()
