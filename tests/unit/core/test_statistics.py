"""Laws of counting: histograms bound what they hold, and processes add up, dead ones included."""

from math import ceil
from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.core.statistics import (
    BUCKET_COUNT,
    BatchStatistics,
    GatewayStatistics,
    Histogram,
    ModelStatistics,
    TenantStatistics,
    jain_index,
    merge_statistics,
)
from penstock.testing.strategies import statistics

VALUES = st.integers(0, 2**30)


def histogram_of(values: list[int]) -> Histogram:
    """Return a histogram of values observed one by one."""
    histogram = Histogram()
    for value in values:
        histogram.observe(value)
    return histogram


@pytest.mark.parametrize(
    ("value", "bucket"), [(0, 0), (1, 1), (2, 2), (3, 2), (4, 3), (2**27, 28), (2**28, 28), (2**40, 28)]
)
def test_buckets_are_powers_of_two(value: int, bucket: int) -> None:
    """Bucket k holds the values of k bits; the last one holds all that are longer."""
    assert histogram_of([value]).counts[bucket] == 1
    assert BUCKET_COUNT == 29


@given(st.lists(VALUES))
def test_histograms_lose_nothing(values: list[int]) -> None:
    """The count and the sum are exact."""
    histogram = histogram_of(values)
    assert (histogram.count, histogram.total) == (len(values), sum(values))


@given(VALUES, st.integers(0, 100))
def test_observing_many_is_observing_often(value: int, times: int) -> None:
    """Observing a value n times at once is observing it n times."""
    histogram = Histogram()
    histogram.observe(value, times)
    assert histogram == histogram_of([value] * times)


@given(st.lists(st.integers(0, 2**27), min_size=1), st.floats(0, 1))
def test_quantiles_are_at_most_twice_too_high(values: list[int], q: float) -> None:
    """A quantile is never below the exact one (lower order statistic) and less than twice above it."""
    exact = sorted(values)[max(ceil(q * len(values)), 1) - 1]
    found = histogram_of(values).quantile(q)
    assert exact <= found <= max(2 * exact - 1, 0)


def test_the_quantile_of_nothing_is_zero() -> None:
    """An empty histogram has quantile 0."""
    assert Histogram().quantile(0.99) == 0


@given(st.lists(VALUES), st.lists(VALUES))
def test_merging_histograms_is_observing_both(left: list[int], right: list[int]) -> None:
    """The sum of two histograms is the histogram of both."""
    merged = histogram_of(left)
    merged.merge(histogram_of(right))
    assert merged == histogram_of(left + right)


@given(st.lists(statistics(), max_size=3), st.lists(statistics(), max_size=3))
def test_counters_of_the_dead_count_and_their_gauges_do_not(
    alive: list[GatewayStatistics], dead: list[GatewayStatistics]
) -> None:
    """Counters add up over all processes, gauges over the living, and the inputs are left as they were."""
    before = msgspec.msgpack.encode((alive, dead))
    total = merge_statistics(alive, dead)
    assert msgspec.msgpack.encode((alive, dead)) == before
    everyone = alive + dead
    assert total.connections == sum(s.connections for s in alive)
    assert total.parse.count == sum(s.parse.count for s in everyone)
    for status in {status for s in everyone for status in s.responses}:
        assert total.responses[status] == sum(s.responses.get(status, 0) for s in everyone)
    for name in {name for s in everyone for name in s.models}:
        models = [s.models[name] for s in everyone if name in s.models]
        assert total.models[name].success == sum(m.success for m in models)
        assert total.models[name].in_time == sum(m.in_time for m in models)
        for gauge in ("pending", "limit"):
            living = [getattr(s.models[name], gauge) for s in alive if name in s.models]
            assert getattr(total.models[name], gauge) == sum(living)
        tenants = {tenant for m in models for tenant in m.tenants}
        assert {k: v.device_us for k, v in total.models[name].tenants.items()} == {
            t: sum(m.tenants[t].device_us for m in models if t in m.tenants) for t in tenants
        }
        rows = {rows for m in models for rows in m.batches}
        assert {k: v.count for k, v in total.models[name].batches.items()} == {
            r: sum(m.batches[r].count for m in models if r in m.batches) for r in rows
        }


@given(st.lists(statistics(), min_size=2, max_size=3))
def test_the_order_of_merging_does_not_matter(processes: list[GatewayStatistics]) -> None:
    """Adding up is commutative and associative."""
    forwards = merge_statistics(processes, [])
    assert merge_statistics(processes[::-1], []) == forwards
    stepwise = processes[0]
    for process in processes[1:]:
        stepwise = merge_statistics([stepwise, process], [])
    assert merge_statistics([stepwise], []) == forwards


def test_the_last_inference_is_the_latest() -> None:
    """Of the times of the last inference the latest is kept, a dead process's too."""
    alive, dead = (GatewayStatistics(models={"m:1": ModelStatistics(last_inference_ms=ms)}) for ms in (5, 9))
    assert merge_statistics([alive], [dead]).models["m:1"].last_inference_ms == 9


def test_batches_of_one_size_add_up() -> None:
    """Executions of one batch size add up field by field."""
    one = GatewayStatistics(models={"m:1": ModelStatistics(batches={4: BatchStatistics(1, 2, 3, 4)})})
    assert merge_statistics([one, one], [one]).models["m:1"].batches == {4: BatchStatistics(3, 6, 9, 12)}


SHARES = st.lists(st.integers(0, 2**40), min_size=2, max_size=8)


@pytest.mark.parametrize(
    ("shares", "index"),
    [([], 1), ([7], 1), ([0, 0], 1), ([5, 5, 5], 1), ([1, 0, 0, 0], 0.25), ([1, 3], 0.8), ([0.5, 1.5], 0.8)],
)
def test_jains_index_by_hand(shares: list[float], index: float) -> None:
    """Equal shares are 1, one owner of all among n is 1/n, and fewer than two owners cannot be unfair."""
    assert jain_index(shares) == pytest.approx(index)


@given(SHARES, st.integers(1, 1_000), st.randoms())
def test_jains_index_is_bounded_and_knows_no_unit_or_order(shares: list[int], factor: int, order: Random) -> None:
    """It lies between 1/n and 1, and neither the unit nor the order of the shares changes it."""
    index = jain_index(shares)
    assert 1 / len(shares) * (1 - 1e-12) <= index <= 1
    shuffled = [share * factor for share in shares]
    order.shuffle(shuffled)
    assert jain_index(shuffled) == pytest.approx(index)


@given(SHARES, st.integers(1, 2**40))
def test_giving_the_poorest_from_the_richest_is_fairer(shares: list[int], amount: int) -> None:
    """A transfer from the richest to the poorest that does not overshoot never lowers the index."""
    shares.sort()
    moved = min(amount, (shares[-1] - shares[0]) // 2)
    assert jain_index([shares[0] + moved, *shares[1:-1], shares[-1] - moved]) >= jain_index(shares) * (1 - 1e-12)


def test_fairness_goes_by_weight() -> None:
    """Device time in the proportion of the weights is fair; without weights the same is not."""
    model = ModelStatistics(tenants={"a": TenantStatistics(device_us=100), "b": TenantStatistics(device_us=300)})
    assert model.fairness({"b": 3.0}) == 1
    assert model.fairness({}) == pytest.approx(0.8)


def test_the_heaviest_tenants_are_those_with_the_most_device_time() -> None:
    """Tenants come by device time, then by requests, then by name, and no more than asked for."""
    model = ModelStatistics(
        tenants={
            "d": TenantStatistics(1, device_us=5),
            "c": TenantStatistics(9),
            "b": TenantStatistics(9),
            "a": TenantStatistics(1, device_us=7),
            "e": TenantStatistics(8),
        }
    )
    assert [name for name, _ in model.heaviest_tenants(4)] == ["a", "d", "b", "c"]
