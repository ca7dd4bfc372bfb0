"""Laws of a request's terms: which of several holds, what is refused and how, what is remembered."""

import pytest

from penstock.core.errors import InvalidInput
from penstock.core.models import ModelSpec
from penstock.core.tensors import TensorSpec
from penstock.gateway.terms import TERMS_MAX, Terms, TermsReader
from penstock.policy.queueing import BATCH, INTERACTIVE, RequestClass

X = TensorSpec("x", "FP32", (-1, 2))
STATED = ModelSpec("m", (X,), (X,), slo_us=50_000, timeout_us=900_000)
UNSTATED = ModelSpec("m", (X,), (X,), timeout_us=900_000)
DAY_US = 86_400_000_000


def test_who_names_nothing_gets_the_defaults() -> None:
    """Without headers a request is interactive, of no tenant, and waits as long as the model says."""
    terms = TermsReader().read({b"host": b"a"})
    assert terms == Terms(None, "", 0)
    assert terms.settle(UNSTATED) == (INTERACTIVE, 900_000)


@pytest.mark.parametrize(
    ("header", "value", "expected"),
    [
        (b"penstock-class", b"interactive", Terms(INTERACTIVE)),
        (b"penstock-class", b"batch", Terms(BATCH)),
        (b"penstock-tenant", b"a", Terms(tenant="a")),
        (b"penstock-tenant", b"A-b_c.9" + b"x" * 57, Terms(tenant="A-b_c.9" + "x" * 57)),
        (b"penstock-timeout-ms", b"50", Terms(timeout_us=50_000)),
        (b"penstock-timeout-ms", b"007", Terms(timeout_us=7_000)),
        (b"penstock-timeout-ms", b"0.25", Terms(timeout_us=250)),
        (b"penstock-timeout-ms", b"0.0001", Terms(timeout_us=1)),
        (b"penstock-timeout-ms", b"86400000", Terms(timeout_us=DAY_US)),
        (b"penstock-timeout-ms", b"86400000.0", Terms(timeout_us=DAY_US)),
    ],
)
def test_a_header_is_read(header: bytes, value: bytes, expected: Terms) -> None:
    """Each header sets what it names and nothing else, ms becoming whole µs and never none."""
    assert TermsReader().read({header: value}) == expected


@pytest.mark.parametrize("value", [b"", b"Batch", b"batch ", b"0", b"interactive,batch", b"\xff", b"x" * 10_000])
def test_an_unknown_class_is_refused(value: bytes) -> None:
    """A class other than the two gets an error with the header's name, the two, and what came, cut short."""
    with pytest.raises(InvalidInput, match=r"^penstock-class: expected interactive or batch, got '") as caught:
        TermsReader().read({b"penstock-class": value})
    assert caught.value.status == 400
    assert len(caught.value.message) < 200


@pytest.mark.parametrize("value", [b"", b"x" * 65, b"a b", b"a/b", b"a\n", "é".encode(), b'"a"', b"a,b", b"\xff"])
def test_a_bad_tenant_is_refused(value: bytes) -> None:
    """A tenant's name of other characters, none or too many gets an error that says which are allowed."""
    with pytest.raises(InvalidInput, match=r"^penstock-tenant: expected 1 to 64 letters, digits, .* got '"):
        TermsReader().read({b"penstock-tenant": value})


@pytest.mark.parametrize(
    "value",
    [
        *("", "0", "0.0", "-1", "+1", "1e3", "nan", "inf", "0x10", "1_0", "1,5", ".5", "5.", "5 ms", "٣", "1" * 400),
        *("86400000.001", "86400001", "0" * 31 + "50"),
    ],
)
def test_a_senseless_timeout_is_refused(value: str) -> None:
    """A timeout that is no decimal number more than 0 and at most a day gets an error that says so."""
    with pytest.raises(InvalidInput, match=r"^penstock-timeout-ms: expected a number more than 0 and at most 86400000"):
        TermsReader().read({b"penstock-timeout-ms": value.encode()})


@pytest.mark.parametrize(
    ("named", "priority", "expected"),
    [
        (None, 0, INTERACTIVE),
        (None, 1, INTERACTIVE),
        (None, 2, INTERACTIVE),
        (None, 3, BATCH),
        (None, 255, BATCH),
        (INTERACTIVE, 255, INTERACTIVE),
        (BATCH, 1, BATCH),
    ],
)
def test_the_class_is_the_headers_or_follows_from_the_priority(
    named: RequestClass | None, priority: int, expected: RequestClass
) -> None:
    """Priorities from 3 on are batch, unless the header says otherwise, which it may either way."""
    assert Terms(named).settle(STATED, priority=priority)[0] is expected


@pytest.mark.parametrize(
    ("header_us", "parameter_us", "expected_us"),
    [(0, 7, 7), (7, 0, 7), (7, 8, 7), (8, 7, 7), (DAY_US, DAY_US, DAY_US)],
)
def test_the_tighter_timeout_holds(header_us: int, parameter_us: int, expected_us: int) -> None:
    """Of header and parameter the tighter holds, whatever the model and the class, longer than its SLO included."""
    for spec in (STATED, UNSTATED):
        for request_class in (INTERACTIVE, BATCH):
            terms = Terms(request_class, timeout_us=header_us)
            assert terms.settle(spec, timeout_us=parameter_us) == (request_class, expected_us)


def test_without_a_timeout_the_models_holds() -> None:
    """An interactive request is due within the SLO, if one is stated; a batch request within the model's timeout."""
    assert Terms().settle(STATED) == (INTERACTIVE, 50_000)
    assert Terms(BATCH).settle(STATED) == (BATCH, 900_000)
    assert Terms().settle(STATED, priority=3) == (BATCH, 900_000)
    assert Terms().settle(UNSTATED) == (INTERACTIVE, 900_000)


def test_equal_headers_are_read_once() -> None:
    """The same bytes give the same object again; other bytes never do, in whichever header they stand."""
    reader = TermsReader()
    first = reader.read({b"penstock-tenant": b"batch", b"penstock-class": b"batch"})
    assert reader.read({b"penstock-tenant": b"batch", b"penstock-class": b"batch", b"host": b"b"}) is first
    assert reader.read({b"penstock-tenant": b"batch"}) == Terms(None, "batch")
    assert reader.read({b"penstock-class": b"batch"}) == Terms(BATCH)


def test_what_is_remembered_is_bounded() -> None:
    """However many tenants callers think up, no more than the bound are remembered, and all are read right."""
    reader = TermsReader()
    for k in range(2 * TERMS_MAX + 1):
        assert reader.read({b"penstock-tenant": b"%d" % k}).tenant == str(k)
        assert len(reader._known) <= TERMS_MAX


def test_what_is_refused_is_not_remembered() -> None:
    """A header that is refused takes no place, and is refused again."""
    reader = TermsReader()
    for _ in range(2):
        with pytest.raises(InvalidInput):
            reader.read({b"penstock-tenant": b"x" * 9_999})
    assert not reader._known
