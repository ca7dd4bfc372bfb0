"""`penstock serve` with fake children: `python -m tests.live.fake_fleet CONFIG`. Not a test."""

import sys
from pathlib import Path

import msgspec

from penstock.adapters.clock import now_us
from penstock.cli.config import load_config
from penstock.cli.serve import run_fleet
from penstock.core.errors import ConfigError
from penstock.core.launch import GatewayLaunch
from penstock.fleet.supervisor import Launch


def fake_command(launch: Launch) -> list[str]:
    """Return the argv of a fake child."""
    role = "gateway" if isinstance(launch, GatewayLaunch) else "replica"
    return [sys.executable, "-m", "tests.live.fake_child", role, msgspec.json.encode(launch).decode()]


if __name__ == "__main__":
    try:
        sys.exit(run_fleet(load_config(Path(sys.argv[1])), command=fake_command, clock=now_us, as_json=True))
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
