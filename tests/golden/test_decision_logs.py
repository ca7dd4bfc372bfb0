"""Each policy decides over the parity trace what was reviewed: the gate for changes that both sides share."""

import json

import pytest

from tests.golden.decision_logs import REFRESH, decision_log, directory
from tests.parity.trace import CASES


@pytest.mark.parametrize("case", CASES)
def test_a_policy_decides_what_was_reviewed(case: str) -> None:
    """Counts, first decisions and the digest of all equal the golden file; a change is deliberate and reviewed."""
    golden = json.loads((directory() / f"{case}.json").read_text())
    found = decision_log(case)
    cure = f"if the change is meant, run: {REFRESH}"
    assert found["first"] == golden["first"], cure
    assert found["counts"] == golden["counts"], cure
    assert found["sha256"] == golden["sha256"], f"decisions beyond the first differ; {cure}"


def test_no_golden_log_is_left_over() -> None:
    """Every golden file belongs to a case."""
    assert {path.stem for path in directory().glob("*.json")} == set(CASES)
