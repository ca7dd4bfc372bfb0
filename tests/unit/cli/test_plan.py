"""`penstock plan`: what is bad usage, where the profile comes from, what it prints, and how it ends."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from penstock.cli.plan import find_answer, register
from penstock.cli.plan_answer import Answer
from penstock.cli.plan_question import Brief, PlanOptions, read_brief
from penstock.core.errors import ConfigError, UpstreamError
from tests.docs.pages import code_spans, table_rows

PROFILE = {"rows": [1, 2, 4], "times_us": [1_100, 1_200, 1_500]}
MODEL: dict[str, Any] = {
    "name": "digits",
    "version": "1",
    "slo_ms": 40.0,
    "batching": {"policy": "size_or_timeout", "mode": "latency", "size_max": 4, "wait_ms_max": 1.5},
    "profile": {"": {**PROFILE, "alpha_us": 133.3, "beta_us": 966.7}},
    "replicas": [{"load_ms": 120.0}, {"load_ms": 250.0}],
}
LOADING = {**MODEL, "name": "big", "profile": {}, "batching": None, "slo_ms": None}
STATUS = {"models": [MODEL, LOADING]}
LINE = ("--slo-ms", "50", "--beta-ms", "20", "--alpha-ms", "2", "--size-max", "4")


def fetch(url: str) -> dict[str, Any]:
    """Stand for a server that answers at one address."""
    if url != "http://127.0.0.1:8002":
        raise UpstreamError(f"expected a Penstock admin port at {url}")
    return STATUS


def answer_shortly(brief: Brief, show: Callable[[str, float], None]) -> Answer:
    """Answer by runs of a fortieth of the usual length: what is tested is the form."""
    return find_answer(replace(brief, question=replace(brief.question, requests=500), requests_max=25_000), show)


def run(*words: str) -> tuple[int, str, str]:
    """Run the command in this process; return exit status, stdout, stderr."""
    app = typer.Typer()
    app.callback()(lambda: None)  # a program of one command would swallow the command's name
    register(app, fetch=fetch, answer_brief=answer_shortly)
    result = CliRunner().invoke(app, ["plan", *words], env={"COLUMNS": "160"})
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--rate", "0", *LINE), "--rate: expected"),
        (("--rate", "nan", *LINE), "--rate: expected"),
        (("--rate", "9", *LINE, "--slo-ms", "-1"), "--slo-ms: expected"),
        (("--rate", "9", "--beta-ms", "1", "--alpha-ms", "1"), "--slo-ms: expected"),
        (("--rate", "9", "--slo-ms", "9", "--beta-ms", "1"), "--beta-ms: expected both"),
        (("--rate", "9", "--slo-ms", "9", "--beta-ms", "0", "--alpha-ms", "0"), "--beta-ms: expected both"),
        (("--rate", "9", *LINE, "--url", "http://h:1"), "--url: expected one source of the profile"),
        (("--rate", "9", *LINE, "--size-max", "0"), "--size-max: expected"),
        (("--rate", "9", *LINE, "--rows", "5"), "--rows: expected requests that fit"),
        (("--rate", "9", *LINE, "--policy", "fast"), "--policy: expected one of"),
        (("--rate", "9", *LINE, "--headroom", "-0.1"), "--headroom: expected"),
        (("--rate", "9", *LINE, "--cold-start", "0"), "--cold-start: expected"),
        (("--rate", "9", *LINE, "--replica-cost", "-1"), "--replica-cost: expected"),
        (("--rate", "9", *LINE, "--replicas-max", "0"), "--replicas-max: expected"),
        (("--rate", "9", *LINE, "--arrivals", "gamma"), "--arrivals: expected"),
        (("--rate", "5000", *LINE, "--arrivals", "diurnal:0.5,3600"), "--arrivals: expected at most"),
        (("--rate", "9", *LINE, "--arrivals", "trace:none.csv"), "--arrivals: "),
        (("--rate", "9", *LINE, "--overhead-ms", "-1"), "--overhead-ms: expected"),
        (("--rate", "9", *LINE, "--noise-ratio", "-1"), "--noise-ratio: expected"),
        (("--rate", "9", *LINE, "--seed", "-1"), "--seed: expected"),
        (("--rate", "1000000", *LINE, "--slo-ms", "9000"), "--rate: expected at most"),
        (("--rate", "9", *LINE, "--report", "/nowhere/plan.html"), "--report: expected"),
        (("--rate", "9"), "--model: expected the model of the server"),
        (("--rate", "9", "--model", "cats"), "--model: expected a model that the server has (digits:1, big:1)"),
        (("--rate", "9", "--model", "big"), "no profile yet"),
        (("--rate", "9", "--model", "digits", "--url", "http://h:1"), "expected a Penstock admin port"),
        (("--rate", "9", "--profile", "/nowhere.json"), "--profile: expected a file of JSON"),
    ],
)
def test_bad_usage_names_the_option(words: tuple[str, ...], complaint: str) -> None:
    """Each mistake is exit status 2, told on stderr with its option, and nothing is printed for scripts."""
    status, out, err = run(*words)
    assert (status, out) == (2, "")
    assert complaint in err


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        ({"rows": [1, 2], "times_us": [20, 10]}, "times that never fall"),
        ({"rows": [2, 4], "times_us": [20, 30]}, "ascending batch sizes from 1"),
        ({"rows": [1, 2], "times_us": [20]}, "as many times as batch sizes"),
        ({"rows": [], "times_us": []}, "at least one"),
        ({"rows": [1], "times_us": [1.5]}, "whole numbers"),
        ({"rows": 1, "times_us": 2}, "whole numbers"),
        ([1, 2], "whole numbers"),
        (LOADING, "no profile yet"),
    ],
)
def test_a_profile_that_is_none_is_refused(document: Any, complaint: str, tmp_path: Path) -> None:
    """Profiles that fall, leave out one row or are none at all are bad usage of `--profile`."""
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=complaint) as caught:
        read_brief(PlanOptions(rate=9, slo_ms=50, profile=path), fetch)
    assert caught.value.message.startswith("--profile")


def test_a_server_says_what_its_model_is() -> None:
    """Profile, batching, SLO and the longest load come from the status document unless options say otherwise."""
    brief = read_brief(PlanOptions(rate=9, model="digits:1"), fetch)
    scenario = brief.question.scenario
    assert scenario.device.profile.times_us == (1_100, 1_200, 1_500)
    assert (scenario.batching.policy, scenario.batching.size_max) == ("size_or_timeout", 4)
    assert (scenario.batching.wait_us_max, scenario.slo_us) == (1_500, 40_000)
    assert (brief.cold_start_us, brief.source) == (250_000, "http://127.0.0.1:8002")
    other = read_brief(
        PlanOptions(rate=9, model="digits", policy="deadline", size_max=2, slo_ms=30, cold_start_ms=7), fetch
    )
    scenario = other.question.scenario
    assert (scenario.batching.policy, scenario.batching.size_max, scenario.slo_us) == ("deadline", 2, 30_000)
    assert other.cold_start_us == 7_000


@pytest.mark.parametrize("document", [PROFILE, MODEL], ids=["profile", "model"])
def test_a_file_may_hold_a_profile_or_a_model(document: dict[str, Any], tmp_path: Path) -> None:
    """Both forms give the same profile; that of a model brings its batching and its SLO."""
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(document))
    brief = read_brief(PlanOptions(rate=9, slo_ms=20, profile=path), fetch)
    assert brief.question.scenario.device.profile.rows == (1, 2, 4)
    assert brief.question.scenario.slo_us == 20_000
    assert brief.question.scenario.batching.policy == ("deadline" if document is PROFILE else "size_or_timeout")
    assert brief.cold_start_us == (1_000_000 if document is PROFILE else 250_000)


def test_overheads_add_up() -> None:
    """What a request takes besides waiting and its batch is split without loss."""
    costs = read_brief(PlanOptions(rate=9, model="digits", overhead_ms=1.001), fetch).question.scenario.overheads
    assert costs.request_us + costs.batch_us + costs.reply_us == 1_001


def test_no_plan_is_exit_status_1_and_says_why() -> None:
    """Where β alone exceeds the SLO there is no plan: status 1, the reason in the table and in the JSON."""
    words = ("--rate", "9", "--slo-ms", "10", "--beta-ms", "20", "--alpha-ms", "1")
    status, out, _ = run(*words)
    assert status == 1
    assert "no plan: a request takes 21.6 ms even alone" in out
    status, out, _ = run(*words, "--json")
    document = json.loads(out)
    assert status == 1
    assert document["reason"].startswith("a request takes 21.6 ms")
    assert [document[key] for key in ("replicas", "expected", "knee", "frontier", "failure")] == [None] * 5


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """Return the JSON and the page of one small plan."""
    page = tmp_path_factory.mktemp("plan") / "plan.html"
    words = ("--rate", "100", *LINE, "--replica-cost", "2", "--report", str(page), "--cold-start", "500", "--json")
    status, out, _ = run(*words)
    assert status == 0
    return json.loads(out), page.read_text()


def test_json_has_the_documented_keys(planned: tuple[dict[str, Any], str]) -> None:
    """docs/planning.md names exactly the keys of the document, of a trial and of a case."""
    document, _ = planned
    documented = [set(code_spans(row[0])) for row in table_rows("docs/planning.md", "## The JSON")]
    everything = set().union(*documented)
    assert everything == {*document, *document["expected"], *document["failure"]["cases"][0]}
    for outer in ("profile", "knee", "frontier", "failure"):
        (row,) = [r for r in table_rows("docs/planning.md", "## The JSON") if r[0] == f"`{outer}`"]
        assert set(document[outer]) <= set(code_spans(row[1]))


def test_a_plan_is_consistent(planned: tuple[dict[str, Any], str]) -> None:
    """The answer holds and was tried, costs what its replicas cost, and both cases of a death are told."""
    document, _ = planned
    replicas = document["replicas"]
    assert document["expected"]["holds"]
    assert document["expected"] in document["tried"]
    assert document["cost_per_hour"] == 2 * replicas
    assert document["cost_per_million"] == pytest.approx(2 * replicas / (100 * 3_600) * 1e6)
    assert [case["replicas"] for case in document["failure"]["cases"]] == [replicas, replicas + 1]
    assert document["knee"]["rate_held"] >= document["rate_planned"]
    assert document["frontier"]["points"][0]["replicas"] <= replicas
    assert document["failure"]["cold_start_ms"] == 500


def test_tables_show_the_same_plan(planned: tuple[dict[str, Any], str]) -> None:
    """For people the same plan is tables: the answer first, the knee, the frontier, the failure."""
    status, out, err = run("--rate", "100", *LINE, "--replica-cost", "2", "--cold-start", "500")
    document, _ = planned
    assert (status, err) == (0, "")
    assert f"{document['replicas']} replicas, {document['cost_per_hour']:.2f} an hour" in out
    for title in ("How many", "Load on", "knee: holds up to", "What more replicas buy", "One replica dies"):
        assert title in out


def test_the_page_stands_alone(planned: tuple[dict[str, Any], str]) -> None:
    """The report has its three plots inside it and fetches nothing."""
    _, page = planned
    assert page.count("<svg") == 3
    assert "src=" not in page
    assert "100 per second within 50 ms" in page
