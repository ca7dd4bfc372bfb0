"""Laws of pressure: what part is late or shed, when lateness is allowed, the margin learned under overload."""

from penstock.policy.pressure import MARGIN_RATIO_MAX, OVERLOAD_RATIO, Pressure

BATCH_US = 10_000


def test_a_ratio_is_the_part_that_was_shed() -> None:
    """One request in five refused for long enough is a ratio near 0.2, and overload; one in a hundred is not."""
    for every, is_overload in ((5, True), (100, False)):
        pressure = Pressure(BATCH_US)
        for k in range(10_000):
            if k % every:
                pressure.count_admitted()
            else:
                pressure.count_shed()
        assert abs(pressure.shed_ratio - 1 / every) < 0.01
        assert pressure.is_overload is is_overload
        assert (1 / every > OVERLOAD_RATIO) is is_overload


def test_lateness_is_allowed_only_while_the_slo_is_kept() -> None:
    """If everybody who may be late is, at most one answer in twenty is: what an SLO at p95 leaves room for."""
    pressure = Pressure(BATCH_US)
    late = 0
    for _ in range(20_000):
        is_late = pressure.is_lateness_allowed
        pressure.count_served(is_late=is_late)
        late += is_late
    assert 0.03 * 20_000 < late < 0.05 * 20_000


def test_no_lateness_is_allowed_while_others_are_refused() -> None:
    """With one request in ten refused nobody is served late, and again somebody may be when that is over."""
    pressure = Pressure(BATCH_US)
    assert pressure.is_lateness_allowed
    for k in range(2_000):
        if k % 10:
            pressure.count_admitted()
        else:
            pressure.count_shed()
    assert not pressure.is_lateness_allowed
    for _ in range(2_000):
        pressure.count_admitted()
    assert pressure.is_lateness_allowed


def test_the_margin_is_bounded() -> None:
    """However much is dropped or refused, the margin stays between nothing and its part of the largest batch."""
    pressure = Pressure(BATCH_US)
    margins = [pressure.margin_us]
    for _ in range(1_000):
        pressure.widen(50, BATCH_US, BATCH_US)
        margins.append(pressure.margin_us)
    assert margins == sorted(margins)
    assert margins[-1] == MARGIN_RATIO_MAX * BATCH_US
    for _ in range(100_000):
        pressure.narrow(BATCH_US)
        margins.append(pressure.margin_us)
    assert margins[-1] == 0.0
    assert min(margins) == 0.0


def test_the_margin_settles_where_few_of_those_not_served_have_waited() -> None:
    """One drop takes many refusals to undo, so that the margin rests only where refusals outnumber drops by far."""
    pressure = Pressure(BATCH_US)
    before_us = pressure.margin_us
    pressure.widen(1, BATCH_US, BATCH_US)
    refusals = 0
    while pressure.margin_us > before_us:
        pressure.narrow(BATCH_US)
        refusals += 1
    assert refusals >= 50
