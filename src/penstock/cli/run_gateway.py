"""Entry of a gateway process, run by the head: `python -m penstock.cli.run_gateway JSON`, a `GatewayLaunch`."""

import asyncio
import os
import sys

import msgspec
import uvloop

from penstock import __version__
from penstock.adapters.clock import now_us, wall_us
from penstock.adapters.dice import uniform_stream
from penstock.core.launch import GatewayLaunch
from penstock.gateway.server import Gateway

__all__ = ["main"]


async def _run(launch: GatewayLaunch) -> None:
    gateway = Gateway(
        launch,
        now_us=now_us,
        wall_us=wall_us,
        version=__version__,
        pid=os.getpid(),
        chance=uniform_stream(launch.index, "scheduling"),
    )
    await gateway.run()


def main() -> None:
    """Decode the launch document and serve until drained."""
    launch = msgspec.json.decode(sys.argv[1], type=GatewayLaunch)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(launch))
    except OSError as error:
        sys.exit(f"gateway {launch.index}: cannot listen on {launch.http}: {error}")


if __name__ == "__main__":
    main()
