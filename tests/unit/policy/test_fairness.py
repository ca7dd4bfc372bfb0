"""Laws of fairness: device time by weight, nobody held back alone, idle time not banked, debts corrected."""

from itertools import product

import pytest

from penstock.policy.fairness import ACCOUNTS_MAX, Ledger

ROW_US = 100.0


def backlogged(charges_us: dict[str, float], weights: dict[str, float] | None = None) -> Ledger:
    """Return a ledger of tenants that all wait, charged this much since."""
    ledger = Ledger(weights or {})
    for tenant in charges_us:
        ledger.enter(tenant)
    for tenant, device_us in charges_us.items():
        ledger.charge(tenant, device_us)
    return ledger


@pytest.mark.parametrize(
    ("charges_us", "weights", "rows", "expected"),
    [
        ({"a": 0.0}, {}, 8, {"a": 8.0}),
        ({"a": 700.0}, {}, 8, {"a": 8.0}),  # alone nobody is ahead of anybody
        ({"a": 0.0, "b": 0.0}, {}, 8, {"a": 4.0, "b": 4.0}),
        ({"a": 0.0, "b": 0.0}, {"a": 3.0}, 8, {"a": 6.0, "b": 2.0}),
        ({"a": 400.0, "b": 0.0}, {}, 8, {"a": 2.0, "b": 6.0}),  # 4 rows ahead: 2 above the mean, 2 below
        ({"a": 300.0, "b": 100.0}, {"a": 3.0}, 8, {"a": 6.0, "b": 2.0}),  # charged by weight: level
        ({"a": 700.0, "b": 100.0}, {"a": 3.0}, 8, {"a": 5.0, "b": 3.0}),  # 7 rows had of 8, 6 due
        ({"a": 1e9, "b": 0.0}, {}, 8, {"a": -4.0, "b": 12.0}),  # bounded by the batch
        ({"a": 1e9, "b": 0.0, "c": 0.0, "d": 0.0}, {}, 8, {"a": -6.0, "b": 10.0, "c": 10.0, "d": 10.0}),
    ],
)
def test_allowances(
    charges_us: dict[str, float], weights: dict[str, float], rows: int, expected: dict[str, float]
) -> None:
    """An allowance is the share by weight, corrected by the rows a tenant is behind or ahead of the mean."""
    assert backlogged(charges_us, weights).allowances(rows, ROW_US) == pytest.approx(expected)


@pytest.mark.parametrize("rows", [2, 7, 32])
def test_allowances_sum_to_the_batch(rows: int) -> None:
    """As long as nobody is ahead or behind by more than a batch, allowances together are exactly the batch."""
    for charges, weights in product(
        ([0.0, 0.0, 0.0], [50.0, 10.0, 0.0], [99.0, 0.0, 99.0]), ({}, {"0": 2.0}, {"0": 0.5, "1": 7.0, "2": 1.25})
    ):
        ledger = backlogged({str(k): device_us for k, device_us in enumerate(charges)}, weights)
        assert sum(ledger.allowances(rows, ROW_US).values()) == pytest.approx(rows)


def test_a_ledger_divides_by_weight_in_the_long_run() -> None:
    """Tenants that always wait and take what they are allowed get device time by weight, to within one batch."""
    weights = {"a": 1.0, "b": 2.0, "c": 5.0}
    costs = {"a": 9.0, "b": 1.0, "c": 3.0}  # what one row of each really takes, whatever was estimated
    ledger = backlogged(dict.fromkeys(weights, 0.0), weights)
    used = dict.fromkeys(weights, 0.0)
    for _ in range(2_000):
        for tenant, rows in ledger.allowances(32, 3.0).items():
            device_us = max(rows, 0.0) * costs[tenant]
            ledger.charge(tenant, device_us)
            used[tenant] += device_us
    per_weight = [used[tenant] / weight for tenant, weight in weights.items()]
    assert max(per_weight) - min(per_weight) <= 32 * max(costs.values())
    assert min(per_weight) > 10_000


def test_a_correction_undoes_an_estimate() -> None:
    """Charging an estimate and later the difference to what it took is charging what it took."""
    ledger, other = backlogged({"a": 0.0, "b": 0.0}, {"a": 2.0}), backlogged({"a": 30.0, "b": 0.0}, {"a": 2.0})
    ledger.charge("a", 100.0)
    ledger.charge("a", -70.0)
    assert ledger.allowances(8, ROW_US) == pytest.approx(other.allowances(8, ROW_US))


def test_idle_time_is_not_banked() -> None:
    """A tenant that was away while another worked starts level with it when it comes back."""
    ledger = Ledger({})
    ledger.enter("worker")
    ledger.enter("sleeper")
    ledger.leave("sleeper")
    ledger.charge("worker", 1e9)
    ledger.enter("sleeper")
    assert ledger.allowances(8, ROW_US) == {"worker": 4.0, "sleeper": 4.0}


@pytest.mark.parametrize("first", ["worker", "sleeper"])
def test_idle_time_is_not_banked_over_an_empty_queue(first: str) -> None:
    """Nor if nobody waited for a moment before both came back, whoever is first: a short queue forgets nothing."""
    ledger = Ledger({})
    ledger.enter("sleeper")
    ledger.leave("sleeper")
    ledger.enter("worker")
    ledger.charge("worker", 1e9)
    ledger.leave("worker")
    for tenant in (first, "worker", "sleeper"):
        ledger.enter(tenant)
    assert ledger.allowances(8, ROW_US) == pytest.approx({"worker": 4.0, "sleeper": 4.0})


def test_a_debt_survives_a_short_absence() -> None:
    """Going away and coming back while others wait forgives nothing to a tenant that is ahead."""
    ledger = backlogged({"a": 400.0, "b": 0.0})
    ledger.leave("a")
    ledger.enter("a")
    assert ledger.allowances(8, ROW_US) == {"b": 6.0, "a": 2.0}


def test_only_those_that_wait_share() -> None:
    """A share is by weight among those that wait and oneself, from the first request to the last."""
    ledger = Ledger({"a": 3.0})
    assert ledger.share("a") == ledger.share("b") == 1.0
    ledger.enter("a")
    ledger.enter("a")
    assert (ledger.share("a"), ledger.share("b")) == (1.0, 0.25)
    ledger.leave("a")
    assert ledger.share("b") == 0.25
    ledger.leave("a")
    assert ledger.share("b") == 1.0


def test_a_stranger_is_not_charged() -> None:
    """Charging a tenant that has never waited opens no account."""
    ledger = Ledger({})
    ledger.charge("nobody", 100.0)
    assert not ledger.accounts


def test_accounts_are_bounded() -> None:
    """However many tenants come and go, accounts stay within the bound and none that waits is lost."""
    ledger = Ledger({})
    ledger.enter("first")
    ledger.charge("first", 400.0)
    for k in range(3 * ACCOUNTS_MAX):
        ledger.enter(str(k))
        ledger.leave(str(k))
        assert len(ledger.accounts) <= ACCOUNTS_MAX
    assert ledger.accounts["first"].virtual_us == 400.0
    assert list(ledger.backlogged) == ["first"]


def test_a_weight_that_a_request_names_counts_like_a_configured_one() -> None:
    """Who enters with a weight gets the share it stands for, before its first entry and after, until that changes."""
    ledger = Ledger({})
    ledger.enter("b")
    assert ledger.share("a", 3.0) == 0.75
    ledger.enter("a", weight=3.0)
    ledger.enter("a")
    assert ledger.share("a") == 0.75
    assert ledger.allowances(8, ROW_US) == {"b": 2.0, "a": 6.0}
    ledger.enter("a", weight=1.0)
    assert ledger.allowances(8, ROW_US) == {"b": 4.0, "a": 4.0}


def test_a_configured_weight_goes_before_one_that_a_request_names() -> None:
    """A tenant that the model's weights name keeps that weight, whatever its requests say."""
    ledger = Ledger({"a": 3.0})
    ledger.enter("b")
    for _ in range(2):
        ledger.enter("a", weight=1.0)
    assert ledger.share("a", 1.0) == 0.75
    assert ledger.allowances(8, ROW_US) == {"b": 2.0, "a": 6.0}
