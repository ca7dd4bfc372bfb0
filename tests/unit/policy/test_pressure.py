"""Laws of pressure: what part is late or shed, when lateness is allowed, the margin learned under overload."""

from penstock.policy.pressure import MARGIN_RATIO_MAX, OVERLOAD_RATIO, RATIO_MEMORY, Pressure

BATCH_US = 10_000
SLO_US = 100_000


def test_a_ratio_is_the_part_that_was_shed() -> None:
    """One request in five refused for long enough is a ratio near 0.2, and overload; one in a hundred is not."""
    for every, is_overload in ((5, True), (100, False)):
        pressure = Pressure(SLO_US)
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
    pressure = Pressure(SLO_US)
    late = 0
    for _ in range(20_000):
        is_late = pressure.is_lateness_allowed
        pressure.count_served(1, late=int(is_late))
        late += is_late
    # From none to what is allowed, and then no more: the average starts at none, too.
    assert 0.03 * 20_000 < late < 0.05 * (20_000 + RATIO_MEMORY)


def test_no_lateness_is_allowed_while_others_are_refused() -> None:
    """With one request in ten refused nobody is served late, and again somebody may be when that is over."""
    pressure = Pressure(SLO_US)
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
    """However much is dropped or judged, the margin stays between nothing and its part of what a request is allowed."""
    pressure = Pressure(SLO_US)
    for _ in range(1_000):
        pressure.widen(50, SLO_US, BATCH_US)
        assert 0 <= pressure.judge_us(SLO_US, BATCH_US) <= MARGIN_RATIO_MAX * SLO_US
    assert pressure.judge_us(SLO_US // 2, BATCH_US) == MARGIN_RATIO_MAX * SLO_US // 2
    margins = [pressure.judge_us(SLO_US, BATCH_US) for _ in range(100_000)]
    assert margins == sorted(margins, reverse=True)
    assert margins[-1] == 0


def test_one_drop_takes_many_requests_to_undo() -> None:
    """The margin rests only where few of the requests judged under overload are dropped after all."""
    pressure = Pressure(0)
    pressure.widen(1, SLO_US, BATCH_US)
    requests = 0
    while pressure.judge_us(SLO_US, BATCH_US):
        requests += 1
    assert requests >= 100
