"""Entry of a replica process: `python -m penstock.cli.run_replica JSON`, where JSON is a `ReplicaLaunch`.

Loads the model, warms it up, measures what its batches cost, listens, says Hello, serves until drained. Exit status:
0 drained, 1 could not load (the head has been told why), 2 bad usage. Imports little, because a replica's start is
somebody's waiting time.
"""

import gc
import os
import signal
import sys
import traceback

# Before numpy is imported: one thread per replica, or replicas would fight over the cores their number already fills.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

import msgspec  # noqa: E402

from penstock.adapters.clock import now_us  # noqa: E402
from penstock.core.errors import ConfigError  # noqa: E402
from penstock.core.launch import ReplicaLaunch  # noqa: E402
from penstock.core.profiles import CostProfile  # noqa: E402
from penstock.replica.canary import warm_up  # noqa: E402
from penstock.replica.control import ControlLink, report_once  # noqa: E402
from penstock.replica.executor import Executor  # noqa: E402
from penstock.replica.loop import ReplicaLoop  # noqa: E402
from penstock.replica.profiling import measure_profile  # noqa: E402
from penstock.replica.runtimes import Runtime, load_runtime  # noqa: E402
from penstock.wire.control import Drained, LoadFailed, ReplicaHello  # noqa: E402

# What SIGTERM and a lost head allow for finishing: the default request timeout, after which nobody waits any more.
DRAIN_US = 30_000_000


def main(arguments: list[str]) -> int:
    """Run one replica; return the exit status."""
    # Ctrl-C reaches the whole process group; the head decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The head's stdout is a contract; what a model prints belongs in the log.
    os.dup2(2, 1)
    try:
        (encoded,) = arguments
        launch = msgspec.json.decode(encoded, type=ReplicaLaunch)
    except (ValueError, msgspec.DecodeError) as error:
        print(f"run_replica: expected one argument, a ReplicaLaunch in JSON: {error}", file=sys.stderr)
        return 2

    def log(text: str) -> None:
        print(f"{launch.replica}: {text.rstrip()}", file=sys.stderr, flush=True)

    begin_us = now_us()
    try:
        runtime = load_runtime(launch.source)
        executor = Executor(runtime, now_us=now_us, log=log)
        warm_up(executor, runtime.spec, now_us=now_us)
        profile = measure_profile(executor, runtime.spec, now_us=now_us)
        if profile is not None:
            executor.use_profile(profile)
        loop = ReplicaLoop(executor, now_us=now_us, log=log, profile=profile)
        address = loop.listen(launch.address)
    except ConfigError as error:
        reason = error.message
    except BaseException as error:  # noqa: BLE001 - a model's module may raise anything, and the head must hear of it
        log(traceback.format_exc())
        reason = "".join(traceback.format_exception_only(error)).strip()
    else:
        # What is loaded stays: no collection need look at it again.
        gc.collect()
        gc.freeze()
        _serve(launch, loop, runtime, profile, address, now_us() - begin_us)
        return 0
    log(f"cannot load: {reason}")
    report_once(launch.control, LoadFailed(os.getpid(), launch.replica, reason.encode(errors="replace").decode()))
    return 1


def _serve(
    launch: ReplicaLaunch,
    loop: ReplicaLoop,
    runtime: Runtime,
    profile: CostProfile | None,
    address: str,
    load_us: int,
) -> None:
    loop.drain_on_sigterm(DRAIN_US)
    control = ControlLink(
        launch.control,
        ReplicaHello(os.getpid(), launch.replica, address, runtime.spec, load_us, profile),
        selector=loop.selector,
        on_drain=loop.start_drain,
        drain_us=DRAIN_US,
        orphan_us=launch.orphan_us,
        now_us=now_us,
    )
    loop.attach(control)
    loop.run()
    control.close(Drained(os.getpid()))
    loop.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
