"""Laws of the book of costs: the newest word of each gateway counts, and a measurement stands in until there is one."""

from penstock.core.profiles import CostProfile
from penstock.fleet.costs import Costs

MEASURED = CostProfile((1, 8), (100, 200))
LIVE = CostProfile((1, 8), (110, 230))
NEWER = CostProfile((1, 8), (120, 240))
LONG = CostProfile((1,), (900,))


def test_the_measurement_stands_in_for_the_main_bucket() -> None:
    """Until a gateway knows better a model has the profile its replica measured; without either it has none."""
    costs = Costs()
    assert costs.profiles("m:1", MEASURED) == {"": MEASURED}
    assert costs.profiles("m:1", None) == {}
    costs.note("gateway-0", {"m:1": {"512": LONG}})
    assert list(costs.profiles("m:1", MEASURED).items()) == [("", MEASURED), ("512", LONG)]


def test_the_newest_word_of_a_gateway_counts() -> None:
    """A later report replaces the earlier one whole, and one without profiles is about something else."""
    costs = Costs()
    costs.note("gateway-0", {"m:1": {"": LIVE, "512": LONG}})
    costs.note("gateway-0", {"m:1": {"": NEWER}})
    costs.note("gateway-0", {})
    assert costs.profiles("m:1", MEASURED) == {"": NEWER}
    assert costs.profiles("other:1", MEASURED) == {"": MEASURED}


def test_one_gateway_speaks_for_all() -> None:
    """Of gateways that know a bucket the first by name counts, so the page does not flicker; the dead know nothing."""
    costs = Costs()
    costs.note("gateway-1", {"m:1": {"": NEWER, "512": LONG}})
    costs.note("gateway-0", {"m:1": {"": LIVE}})
    assert costs.profiles("m:1", None) == {"": LIVE, "512": LONG}
    costs.forget("gateway-0")
    assert costs.profiles("m:1", None) == {"": NEWER, "512": LONG}
    costs.forget("gateway-1")
    assert costs.profiles("m:1", None) == {}
