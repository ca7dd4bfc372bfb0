"""Scenario files: what is right becomes the plain scenario, and every mistake is named with key and expectation."""

from pathlib import Path

import pytest

from penstock.cli.scenario import read_scenario
from penstock.core.arrivals import Arrivals
from penstock.core.errors import ConfigError
from penstock.core.models import Batching
from penstock.policy.queueing import BATCH
from penstock.sim import Fault, Overheads, Scenario

ROOT = Path(__file__).parents[3]
RUN = "[scenario]\nduration_s = 2\n"
DEVICE = "[device]\nbeta_ms = 10\nalpha_ms = 0.5\n"
SOURCE = '[[sources]]\nname = "a"\nrate = 10\n'
WHOLE = """
[scenario]
name = "whole"
duration_s = 2.5
warmup_s = 0.5
seed = 9
[model]
slo_ms = 50
timeout_ms = 900
size_max = 8
policy = "size_or_timeout"
mode = "fair"
wait_ms_max = 3
eager = false
requests_max = 77
replicas = 3
gateways = 2
weights = { acme = 2, b = 0.5 }
[device]
rows = [1, 4, 8]
times_us = [1000, 1000, 1800]
noise_ratio = 0.1
outlier_ratio = 0.01
outlier_factor = 4
speeds = [1, 0.5]
[overheads]
request_us = 1
gateway_us = 2
reply_us = 3
batch_us = 4
replica_us = 5
jitter_us = 6
[[sources]]
name = "people"
tenant = "acme"
arrivals = "trace:t.csv"
rate = 12.5
rows = [1, 2]
deadline_ms = 40
hit_ratio = 0.25
retries = 2
retry_after_ms = 7
patience_ms = 80
[[sources]]
name = "desk"
class = "batch"
clients = 4
think_ms = 1.5
rows = 3
[[faults]]
kind = "slow_device"
at_s = 1
duration_s = 0.5
replica = 2
factor = 3
[[faults]]
kind = "gateway_stall"
at_s = 2
duration_s = 0.1
gateway = 1
"""


def read(folder: Path, text: str) -> Scenario:
    """Read `text` as a scenario file."""
    (folder / "s.toml").write_text(text)
    return read_scenario(folder / "s.toml")


def complain(folder: Path, text: str) -> list[str]:
    """Return the complaints about `text`, one a line."""
    with pytest.raises(ConfigError) as caught:
        read(folder, text)
    head, *lines = caught.value.message.splitlines()
    assert head.startswith(f"{folder / 's.toml'}: {len(lines)} setting")
    return [line.strip() for line in lines]


def test_a_whole_scenario_is_read(tmp_path: Path) -> None:
    """Every key finds its place, in µs, and a trace is read from beside the file."""
    (tmp_path / "t.csv").write_text("t\n0\n1\n3\n")
    scenario = read(tmp_path, WHOLE)
    assert (scenario.name, scenario.duration_us, scenario.warmup_us, scenario.seed) == ("whole", 2_500_000, 500_000, 9)
    assert scenario.batching == Batching("size_or_timeout", "fair", 8, 3_000, eager=False)
    assert (scenario.slo_us, scenario.timeout_us, scenario.bounds.requests_max) == (50_000, 900_000, 77)
    assert (scenario.replicas, scenario.gateways) == (3, 2)
    assert scenario.weights == (("acme", 2.0), ("b", 0.5))
    assert scenario.device.profile.times_us == (1_000, 1_000, 1_800)
    assert (scenario.device.noise_ratio, scenario.device.speeds) == (0.1, (1.0, 0.5))
    assert (scenario.device.outlier_ratio, scenario.device.outlier_factor) == (0.01, 4.0)
    assert scenario.overheads == Overheads(
        request_us=1, gateway_us=2, reply_us=3, batch_us=4, replica_us=5, jitter_us=6
    )
    people, desk = scenario.sources
    assert people.arrivals == Arrivals("trace", path="t.csv")
    assert people.trace_us is not None
    assert people.trace_us.tolist() == [0, 1_000_000, 3_000_000]
    assert (people.tenant, people.rate, people.rows, people.deadline_us) == ("acme", 12.5, (1, 2), 40_000)
    assert (people.hit_ratio, people.retries, people.retry_after_us, people.patience_us) == (0.25, 2, 7_000, 80_000)
    assert (desk.request_class, desk.clients, desk.think_us, desk.rows) == (BATCH, 4, 1_500, (3,))
    assert (
        scenario.faults
        == (
            Fault("slow_device", 1_000_000, 500_000, index=2, factor=3.0),
            Fault("gateway_stall", 2_000_000, 100_000, index=1),
        )
        or scenario.faults[1].factor == 2.0
    )


def test_little_is_required(tmp_path: Path) -> None:
    """How long, which device, who sends; the name is the file's, a line gives the profile."""
    scenario = read(tmp_path, RUN + DEVICE + SOURCE)
    assert scenario.name == "s"
    assert scenario.device.profile.time_us(32) == 26_000
    assert scenario.batching.policy == "deadline"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("x = ", "expected TOML, got: Invalid value (at end of document)"),
        (DEVICE + SOURCE, "scenario: expected a value, the key is required"),
        (RUN + DEVICE, "sources: expected a value, the key is required"),
        ("sources = []\n" + RUN + DEVICE, "sources: expected at least 1 of them, got []"),
        (RUN + "sede = 3\n" + DEVICE + SOURCE, "scenario.sede: unknown key; did you mean seed?"),
        (RUN + DEVICE + SOURCE + "rat = 3", "sources[0].rat: unknown key; did you mean rate?"),
        (
            RUN + DEVICE + SOURCE + 'class = "urgent"',
            "sources[0].class: expected 'interactive' or 'batch', got \"urgent\"",
        ),
        (RUN + DEVICE + SOURCE + 'rows = "many"', 'sources[0].rows: expected an array, got "many"'),
        (RUN + DEVICE + SOURCE + "rows = [1, 0]", "sources[0].rows[1]: expected at least 1, got 0"),
        (RUN + DEVICE + SOURCE + "rows = []", "sources[0].rows: expected at least 1 of them, got []"),
        (RUN + DEVICE + SOURCE + "hit_ratio = 1.5", "sources[0].hit_ratio: expected at most 1, got 1.5"),
        (
            RUN + DEVICE + SOURCE + 'tenant = "a b"',
            "sources[0].tenant: expected a name of 1 to 64 letters, digits, '.', '_' and '-', got \"a b\"",
        ),
        (
            RUN + DEVICE + '[[sources]]\nname = "a"',
            "sources[0]: expected rate (an open loop) or clients (a closed one), got neither",
        ),
        (
            RUN + DEVICE + SOURCE + "clients = 3",
            "sources[0]: expected rate (an open loop) or clients (a closed one), got both",
        ),
        (RUN + DEVICE + SOURCE + "think_ms = 3", "sources[0].think_ms: expected only with clients"),
        (
            RUN + DEVICE + '[[sources]]\nname = "a"\nclients = 1\narrivals = "mmpp"',
            "sources[0].arrivals: expected only with rate",
        ),
        (RUN + DEVICE + SOURCE + SOURCE, 'sources[1].name: expected a name that no other source has, got "a"'),
        (RUN + DEVICE + '[[sources]]\nname = "a"\nrate = -1', "sources[0].rate: expected more than 0, got -1"),
        (
            "[scenario]\nduration_s = 80000\n" + DEVICE + '[[sources]]\nname = "a"\nrate = 1000',
            "scenario.duration_s: expected at most 20,000,000 requests in a run, got about 80,000,000",
        ),
        (RUN + "[device]\n" + SOURCE, "device: expected beta_ms and alpha_ms, or rows and times_us, got neither pair"),
        (RUN + "[device]\nbeta_ms = 1\n" + SOURCE, "device: expected beta_ms and alpha_ms, or rows and times_us, got"),
        (
            RUN + "[device]\nbeta_ms = 0\nalpha_ms = 0\n" + SOURCE,
            "device: expected beta_ms or alpha_ms above 0, got 0 for both",
        ),
        (RUN + DEVICE + "rows = [1]\ntimes_us = [5]\n" + SOURCE, "device: expected rows and times_us, or beta_ms and"),
        (
            RUN + "[device]\nrows = [1, 2]\ntimes_us = [7, 6]\n" + SOURCE,
            "device.times_us: expected times that never fall",
        ),
        (RUN + "[device]\nrows = [2, 1]\ntimes_us = [7, 8]\n" + SOURCE, "device.rows: expected ascending batch sizes"),
        (RUN + "[device]\nrows = [1]\n" + SOURCE, "device: expected as many times as batch sizes and at least one"),
        (RUN + DEVICE + "speeds = [1, 2]\n" + SOURCE, "device.speeds: expected at most one for each of 1 replicas"),
        (
            RUN + "[model]\nslo_ms = 90\ntimeout_ms = 50\n" + DEVICE + SOURCE,
            "model.slo_ms: expected at most timeout_ms, which is 50, got 90",
        ),
        (
            RUN + '[model]\npolicy = "random"\n' + DEVICE + SOURCE,
            "model.policy: expected 'deadline', 'size_or_timeout' or 'adaptive', got \"random\"",
        ),
        (RUN + DEVICE + SOURCE + 'arrivals = "step:5"', "sources[0].arrivals: expected step:FACTOR,FROM_S,TO_S"),
        (RUN + DEVICE + SOURCE + 'arrivals = "trace:no.csv"', "sources[0].arrivals: expected a readable CSV file"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    """The key, what was expected, and what was got."""
    assert any(line.startswith(complaint) for line in complain(tmp_path, text)), complain(tmp_path, text)


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        ('kind = "fire"', "faults[0].kind: expected 'replica_death', 'slow_device' or 'gateway_stall'"),
        ('kind = "slow_device"\nreplica = 1', "faults[0].replica: expected one of 1, counted from 0, got 1"),
        ('kind = "gateway_stall"\ngateway = 4', "faults[0].gateway: expected one of 1, counted from 0, got 4"),
        ('kind = "gateway_stall"\nreplica = 0', "faults[0].replica: has no meaning for a gateway_stall; remove it"),
        ('kind = "replica_death"\nfactor = 2', "faults[0].factor: has no meaning for a replica_death; remove it"),
    ],
)
def test_a_fault_that_cannot_be_is_named(tmp_path: Path, fault: str, complaint: str) -> None:
    """A fault must be of a known kind, hit something that exists, and say nothing that has no meaning."""
    text = f"{RUN}{DEVICE}{SOURCE}[[faults]]\nat_s = 1\nduration_s = 1\n{fault}\n"
    assert any(line.startswith(complaint) for line in complain(tmp_path, text))


def test_the_dead_do_not_die(tmp_path: Path) -> None:
    """Deaths of one replica must not overlap."""
    death = '[[faults]]\nkind = "replica_death"\nduration_s = 1\nat_s = '
    assert read(tmp_path, f"{RUN}{DEVICE}{SOURCE}{death}0.1\n{death}1.1\n").faults
    complaints = complain(tmp_path, f"{RUN}{DEVICE}{SOURCE}{death}0.5\n{death}0.1\n")
    assert complaints == ["faults[0].at_s: expected replica 0 to be back by then"]


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    """Nobody has to find them one by one."""
    assert len(complain(tmp_path, RUN + "[device]\n" + SOURCE + SOURCE + "clients = 1\n" + 'arrivals = "no"')) == 4


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """It is the operator's error."""
    with pytest.raises(ConfigError, match=r"none\.toml"):
        read_scenario(tmp_path / "none.toml")


@pytest.mark.parametrize("path", sorted((ROOT / "examples/scenarios").glob("*.toml")), ids=lambda path: path.stem)
def test_the_examples_are_valid(path: Path) -> None:
    """Each reads without complaint."""
    assert read_scenario(path).sources
