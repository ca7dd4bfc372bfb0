"""Jobs: several sources become one schedule that every process knows, and headers are checked."""

import json
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from penstock.core.errors import ConfigError
from penstock.core.tensors import TensorSpec
from penstock.load.inputs import Target
from penstock.load.job import Job, Phase, Source, build_pools, parse_header, plan_schedule, resolve

TARGET = Target("127.0.0.1", 8000, "", "m")
SPEC = TensorSpec("x", "FP32", (-1, 1))


def stream(name: str) -> np.random.Generator:
    return np.random.default_rng([7, *name.encode()])


def make_source(*phases: tuple[float, int], rows: int = 1, arrivals: str = "constant") -> Source:
    return Source(TARGET, (SPEC,), tuple(Phase(rate, duration) for rate, duration in phases), arrivals, rows=rows)


def make_job(*sources: Source) -> Job:
    return Job(sources=sources, address=("127.0.0.1", 8000), family=2, seed=7, timeout_us=1_000_000)


def test_phases_follow_one_another() -> None:
    """Each phase has its own rate and begins where the one before ends; a rate of 0 is silence."""
    job = make_job(make_source((1_000, 10_000), (0, 50_000), (500, 20_000)))
    times = plan_schedule(job, stream).times_us
    assert times.tolist() == [1_000 * i for i in range(10)] + [60_000 + 2_000 * i for i in range(10)]
    assert job.duration_us == 80_000


def test_sources_are_merged_in_order_of_time() -> None:
    """The merged schedule is sorted, and taken apart again it is each source's own with its ordinals in order."""
    sources = [make_source((3_000, 100_000), arrivals="poisson"), make_source((700, 150_000), arrivals="gamma:2")]
    merged = plan_schedule(make_job(*sources), stream)
    assert np.all(np.diff(merged.times_us) >= 0)
    assert len(merged.times_us) == len(merged.source) == len(merged.ordinal)
    for index in range(2):
        is_own = merged.source == index
        assert merged.ordinal[is_own].tolist() == list(range(int(is_own.sum())))
    alone = plan_schedule(make_job(sources[0]), stream)
    assert merged.times_us[merged.source == 0].tolist() == alone.times_us.tolist()


def test_sources_do_not_share_chance() -> None:
    """Two equal sources send at different times: they are two streams."""
    source = make_source((1_000, 100_000), arrivals="poisson")
    merged = plan_schedule(make_job(source, source), stream)
    assert merged.times_us[merged.source == 0].tolist() != merged.times_us[merged.source == 1].tolist()


def test_a_silent_run_is_empty() -> None:
    """No rate, no requests, no error."""
    assert len(plan_schedule(make_job(make_source((0, 1_000))), stream).times_us) == 0


def test_every_source_has_its_own_requests() -> None:
    """Rows and headers are those of the source."""
    small, large = make_source((1, 1)), make_source((1, 1), rows=8)
    named = replace(large, target=replace(TARGET, headers=("penstock-tenant: large",)))
    pools = build_pools(make_job(small, named), stream)
    assert [len(json.loads(pool.body(0))["inputs"][0]["data"]) for pool in pools] == [1, 8]
    assert [b"penstock-tenant: large" in pool.request(0) for pool in pools] == [False, True]


def test_keys_are_taken_in_turn_by_each_source(tmp_path: Path) -> None:
    """A source with a file of keys sends each of its requests with the next; the file's path is all a job says."""
    path = tmp_path / "keys"
    path.write_text("one\ntwo\n")
    job = make_job(replace(make_source((1, 1)), keys_path=str(path)), make_source((1, 1)))
    keyed, bare = build_pools(job, stream)
    for index, key in enumerate((b"one", b"two", b"one")):
        assert b"\r\nAuthorization: Bearer %b\r\n" % key in keyed.request(index)
    assert b"Authorization" not in bare.request(0)
    assert "one" not in json.dumps(msgspec.to_builtins(job))


def test_a_job_survives_the_pipe() -> None:
    """What the parent writes as JSON the generator process reads as the same job."""
    job = make_job(make_source((10, 20)), make_source((0.5, 30), rows=3))
    assert msgspec.convert(json.loads(json.dumps(msgspec.to_builtins(job))), Job) == job


@pytest.mark.parametrize(
    ("text", "line"),
    [("penstock-tenant: a", "penstock-tenant: a"), ("X-A:b:c", "X-A: b:c"), ("x:", "x: "), ("x:  y ", "x: y")],
)
def test_headers_are_normalised(text: str, line: str) -> None:
    """Name and value are told apart at the first colon; white space around the value does not count."""
    assert parse_header(text) == line


@pytest.mark.parametrize(
    "text",
    ["", "x", ": y", "a b: c", "x: a\r\ny: b", "x: \u00e9", "Host: x", "content-length: 3", "Transfer-Encoding: a"],
)
def test_bad_headers_are_refused(text: str) -> None:
    """What is no header, would smuggle another, or is the generator's own is the operator's error."""
    with pytest.raises(ConfigError, match="--header: expected"):
        parse_header(text)


def test_a_host_that_does_not_resolve_is_bad_usage() -> None:
    """The message names the URL and the host; a literal needs no name service."""
    assert resolve(TARGET) == (2, ("127.0.0.1", 8000))
    with pytest.raises(ConfigError, match="URL: expected a host that resolves, got 'no host'"):
        resolve(replace(TARGET, host="no host"))
