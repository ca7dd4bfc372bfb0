"""What limits cost where requests are served: `digits` at 10,000 requests per second, with the head or Redis counting.

commands  Redis commands for each decision on one key of four gateways, all admitted and saturated; bar: at most 0.02
users     10,000 users with an API key each, one request per second each, through one gateway, beside the same callers
          without a limit; bars: p95 at most 10 ms, p99 at most 25 ms, none failed
limited   limits far above the load on user, tenant and everybody, beside none, in turns on fresh servers; bar: p95 at
          most 1.15 times

Not here: single decisions (`limits.py`), the bound (`penstock drill rate-limit`).
"""

import json
import re
import statistics
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import Progress

from bench.history import ROOT
from bench.limits import redis_cpu_s
from bench.serving import PENSTOCK, Server, cpu_s, penstock
from penstock.adapters.clock import now_us, wall_us
from penstock.adapters.secrecy import draw_key
from penstock.adapters.sql.keys import KeyStore
from penstock.cli.state import keys_file
from penstock.core.limits import Principal
from penstock.load.drills.redis_servers import RedisServer
from penstock.policy.identifying import format_key, hash_secret

RATE, SLO_MS = 10_000, 50
COMMANDS_S, COMMANDS_GATEWAYS, COMMANDS_MAX = 20, 4, 0.02
USERS, USERS_S, USERS_P95_MS_MAX, USERS_P99_MS_MAX = 10_000, 30, 10.0, 25.0
MEETING_S = 4
LIMITED_ROUNDS, LIMITED_S, LIMITED_P95_RATIO_MAX = 3, 10, 1.15
# What gateways send; whatever else `INFO commandstats` counts is run by the script.
SENT = ("evalsha", "eval", "ping", "script|load")
# Gateways report twice a second, and return what they were lent when a key cools down.
SETTLE_S = 2.0
PER_USER = '[limits.per-user]\nlevel = "user"\nrate = "10/s burst 20"\n'
FAR_ABOVE = "".join(
    f'[limits.per-{level}]\nlevel = "{level}"\nrate = "1000000/s burst 200000"\n'
    for level in ("user", "tenant", "global")
)
_DECISIONS = re.compile(r'^penstock_limit_decisions_total\{limit="[^"]+",outcome="(\w+)"\} (\d+)$', re.MULTILINE)


class Site(NamedTuple):
    """A running Penstock, and the Redis that counts for it, if one does."""

    server: Server
    redis: RedisServer | None

    def cpu_s(self) -> dict[str, float]:
        """Return the CPU time that each kind of process has used, s."""
        used = {"gateways": 0.0, "replica": 0.0, "head": cpu_s(self.server.head_pid)}
        for name, pid in self.server.pids.items():
            used["gateways" if name.startswith("gateway") else "replica"] += cpu_s(pid)
        return used if self.redis is None else used | {"redis": redis_cpu_s(self.redis)}

    def decisions(self) -> dict[str, int]:
        """Return how many decisions there were by outcome, as the metrics say it."""
        with urllib.request.urlopen(f"{self.server.admin}/metrics", timeout=5) as answer:  # noqa: S310 - http, our own
            text = answer.read().decode()
        return {outcome: int(count) for outcome, count in _DECISIONS.findall(text)}


@contextmanager
def serving(sections: str, *, has_redis: bool, gateways: int = 1, keys: KeyStore | None = None) -> Iterator[Site]:
    """Serve `digits` with these sections about limits, a Redis of its own and these keys."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="penstock-bench-")))
        (folder / "state").mkdir(mode=0o700)
        if keys is not None:
            keys_file(folder / "state").write_bytes(keys.path.read_bytes())
        config = folder / "penstock.toml"
        model = f'[models.digits]\npath = "{ROOT / "examples" / "digits"}"\nslo_ms = {SLO_MS}\n'
        config.write_text(sections + model, encoding="utf-8")
        redis = stack.enter_context(RedisServer(now_us)) if has_redis else None
        options = ["--gateways", str(gateways), "--state", str(folder / "state")]
        options += ["--redis", redis.url] if redis is not None else []
        yield Site(stack.enter_context(penstock(config, *options)), redis)


def apply_load(site: Site, seconds: int, *, keys: Path | None = None, rate: int = RATE) -> dict[str, Any]:
    """Apply the load once; return latency, outcomes, and the CPU time of every process for each request."""
    command = [str(PENSTOCK), "bench", site.server.http, "--model", "digits", "--rate", str(rate), "--json"]
    command += ["--duration", str(seconds), "--slo-ms", str(SLO_MS)]
    command += ["--keys", str(keys)] if keys is not None else []
    before = site.cpu_s()
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    used = {name: s - before[name] for name, s in site.cpu_s().items()}
    report: dict[str, Any] = json.loads(run.stdout)
    # The warm-up's requests cost CPU time, too, and are not among those reported.
    requests = rate * (seconds + report["warmup_s"])
    latency = {f"{name}_ms": report["latency_ms"][name] for name in ("p50", "p95", "p99", "max")}
    outcomes = {name: report[name] for name in ("planned", "completed", "shed", "limited", "failed", "status_counts")}
    lateness = {"lateness_p99_ms": report["generator_lateness_ms"]["p99"], "valid": report["valid"]}
    costs = {name: round(s * 1e6 / requests, 2) for name, s in used.items()}
    return {**latency, **outcomes, **lateness, "cpu_us_per_request": costs}


def bench_commands() -> dict[str, Any]:
    """Count what four gateways send to Redis about one key."""
    found = {
        "admitted": _count_commands("20000/s burst 2000"),
        "saturated": _count_commands("5000/s burst 1000"),
    }
    return {
        "rate": RATE,
        "gateways": COMMANDS_GATEWAYS,
        **found,
        "per_decision_max": COMMANDS_MAX,
        "passed": all(case["per_decision"] <= COMMANDS_MAX and not case["failed"] for case in found.values()),
    }


def _count_commands(rate: str) -> dict[str, Any]:
    limit = f'[limits.everybody]\nlevel = "global"\nrate = "{rate}"\n'
    with serving(limit, has_redis=True, gateways=COMMANDS_GATEWAYS) as site:
        assert site.redis is not None
        time.sleep(SETTLE_S)
        before, decided = _command_counts(site.redis), sum(site.decisions().values())
        pids = [pid for name, pid in site.server.pids.items() if name.startswith("gateway")]
        used = [cpu_s(pid) for pid in pids]
        report = apply_load(site, COMMANDS_S)
        used = [cpu_s(pid) - s for pid, s in zip(pids, used, strict=True)]
        time.sleep(SETTLE_S)
        commands = {name: count - before.get(name, 0) for name, count in _command_counts(site.redis).items()}
        decisions = site.decisions()
    decided = sum(decisions.values()) - decided
    sent = sum(commands.get(name, 0) for name in SENT)
    run = sum(count for name, count in commands.items() if name not in (*SENT, "info"))
    return {
        "limit": rate,
        "per_decision": round(sent / decided, 5),
        "run_by_scripts_per_decision": round(run / decided, 5),
        "rejected_ratio": round(decisions.get("rejected", 0) / decided, 4),
        "decisions_counted": decided,
        "load_by_gateway": [round(s / sum(used), 3) for s in used],
        "decisions": decisions,
        "commands": commands,
        **report,
    }


def _command_counts(redis: RedisServer) -> dict[str, int]:
    told = redis.client.info("commandstats")
    return {name.removeprefix("cmdstat_"): int(told[name]["calls"]) for name in told}


def bench_users() -> dict[str, Any]:
    """Serve many users who are all under a limit of their own, and whom nobody leases anything for."""
    # In memory: ten thousand keys are as many waits for a disk, and their texts are secrets.
    with tempfile.TemporaryDirectory(prefix="penstock-bench-", dir="/dev/shm") as directory:
        store, texts = KeyStore(Path(directory) / "keys.db"), Path(directory) / "keys"
        _make_keys(store, texts)
        cases = {"without": ("", False), "head": (PER_USER, False), "redis": (PER_USER, True)}
        found: dict[str, dict[str, Any]] = {}
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("users", total=len(cases))
            for name, (limits, has_redis) in cases.items():
                sections = "[identity]\nrequired = true\n" + limits
                with serving(sections, has_redis=has_redis, keys=store) as site:
                    # A server meets so many new callers in one second once: that is not what is measured.
                    apply_load(site, MEETING_S, keys=texts, rate=USERS // MEETING_S)
                    found[name] = apply_load(site, USERS_S, keys=texts)
                    time.sleep(SETTLE_S)
                    found[name]["decisions"] = site.decisions()
                progress.advance(task)
    kept = [
        report["valid"]
        and report["p95_ms"] <= USERS_P95_MS_MAX
        and report["p99_ms"] <= USERS_P99_MS_MAX
        and report["completed"] == report["planned"]
        for report in (found["head"], found["redis"])
    ]
    bars = {"p95_ms_max": USERS_P95_MS_MAX, "p99_ms_max": USERS_P99_MS_MAX}
    return {"rate": RATE, "users": USERS, **found, **bars, "passed": all(kept)}


def _make_keys(store: KeyStore, texts: Path) -> None:
    """Make a key for each user; their texts go to a file of the bench's own that is gone with it."""
    with texts.open("w", encoding="ascii") as file:
        for index in range(USERS):
            key_id, secret = draw_key()
            store.add(Principal(key_id, "acme", f"user-{index}"), hash_secret(secret.encode()), wall_us())
            file.write(format_key(key_id, secret) + "\n")


def bench_limited() -> dict[str, Any]:
    """Serve with limits and without in turns; return what limits add."""
    cases = {"off": ("", False), "head": (FAR_ABOVE, False), "redis": (FAR_ABOVE, True)}
    rounds: list[dict[str, dict[str, Any]]] = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("limited", total=LIMITED_ROUNDS * len(cases))
        for _ in range(LIMITED_ROUNDS):
            found = {}
            for name, (limits, has_redis) in cases.items():
                with serving(limits, has_redis=has_redis) as site:
                    found[name] = apply_load(site, LIMITED_S)
                progress.advance(task)
            rounds.append(found)
    return summarise_limited(rounds)


def summarise_limited(rounds: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Return the report: medians over rounds, and the medians of the rounds' ratios."""
    report: dict[str, Any] = {"rate": RATE}
    is_clean = all(r["valid"] and r["completed"] == r["planned"] for found in rounds for r in found.values())
    passed = is_clean
    for name in rounds[0]:
        mine = [found[name] for found in rounds]
        costs = mine[0]["cpu_us_per_request"]
        report[name] = {
            **{f"{p}_ms": statistics.median(r[f"{p}_ms"] for r in mine) for p in ("p50", "p95", "p99")},
            "cpu_us_per_request": {k: statistics.median(r["cpu_us_per_request"][k] for r in mine) for k in costs},
        }
        if name == "off":
            continue
        p95 = statistics.median(found[name]["p95_ms"] / found["off"]["p95_ms"] for found in rounds)
        cpu = statistics.median(_total(found[name]) / _total(found["off"]) for found in rounds)
        report[name] |= {"p95_ratio": round(p95, 3), "cpu_ratio": round(cpu, 3)}
        passed &= p95 <= LIMITED_P95_RATIO_MAX
    return {
        **report,
        "p95_ratio_max": LIMITED_P95_RATIO_MAX,
        "all_answered": is_clean,
        "rounds": rounds,
        "passed": passed,
    }


def _total(report: dict[str, Any]) -> float:
    return sum(float(us) for us in report["cpu_us_per_request"].values())
