"""`penstock simulate`: what it prints, what is bad usage, and the page it draws."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from penstock.cli.main import build_app
from tests.docs.pages import code_spans, table_rows

SCENARIO = """
[scenario]
name = "a <small> one"
duration_s = 2
warmup_s = 0.5
[model]
slo_ms = 100
replicas = 2
[device]
beta_ms = 10
alpha_ms = 0.5
noise_ratio = 0.1
[[sources]]
name = "a"
tenant = "a"
rate = 300
[[sources]]
name = "b"
tenant = "b"
rate = 100
[[faults]]
kind = "replica_death"
at_s = 1
duration_s = 0.5
"""
CLIENTS = '[scenario]\nduration_s = 1\n[device]\nbeta_ms = 1\nalpha_ms = 0\n[[sources]]\nname = "a"\nclients = 2\n'


@pytest.fixture
def scenario(tmp_path: Path) -> str:
    """A small scenario with two tenants and a fault."""
    (tmp_path / "small.toml").write_text(SCENARIO)
    return str(tmp_path / "small.toml")


def invoke(*words: str) -> tuple[int, str, str]:
    """Run the command in this process; return exit status, stdout, stderr."""
    done = CliRunner().invoke(build_app("simulate"), ["simulate", *words], env={"COLUMNS": "160"})
    return done.exit_code, done.stdout, done.stderr


def run_json(*words: str) -> dict[str, Any]:
    """Run with --json; return the document."""
    status, out, err = invoke(*words, "--json")
    assert (status, err) == (0, "")
    document: dict[str, Any] = json.loads(out)
    return document


def test_the_document_has_the_documented_keys(scenario: str) -> None:
    """docs/command-line.md lists exactly the keys of --json, of its runs, and of what is in them."""
    document = run_json(scenario)
    rows = table_rows("docs/command-line.md", "## penstock simulate")
    documented = [span for cells in rows if not cells[0].startswith("`--") for span in code_spans(cells[0])]
    assert documented == [*document, *documented[len(document) :]]
    assert sorted(documented[len(document) :]) == sorted(document["runs"][0])
    (latency,) = [cells for cells in rows if "`latency_ms`" in cells[0]]
    assert code_spans(latency[1]) == list(document["runs"][0]["latency_ms"])
    (tenants,) = [cells for cells in rows if cells[0] == "`tenants`"]
    assert code_spans(tenants[1]) == list(document["runs"][0]["tenants"][0])


def test_the_table_shows_every_policy(scenario: str) -> None:
    """Policies stand side by side, in the order asked for, and tenants below."""
    status, out, _ = invoke(scenario, "--compare", "size_or_timeout,deadline")
    assert status == 0
    assert re.search(r"size_or_timeout +deadline", out)
    for row in ("goodput /s", "p95 ms", "fairness (Jain)", "a: goodput", "b: goodput"):
        assert row in out


def test_a_seed_decides_the_answer(scenario: str) -> None:
    """The same seed prints the same bytes; the scenario's own is the default."""
    assert invoke(scenario, "--json") == invoke(scenario, "--json", "--seed", "1")
    assert run_json(scenario, "--seed", "2")["runs"] != run_json(scenario)["runs"]


def test_policies_meet_the_same_load(scenario: str) -> None:
    """What is compared is the policy, not chance."""
    runs = run_json(scenario, "--compare", "size_or_timeout,adaptive,deadline")["runs"]
    assert [run["policy"] for run in runs] == ["size_or_timeout", "adaptive", "deadline"]
    assert len({run["requests"] for run in runs}) == 1


def test_the_rate_can_be_scaled(scenario: str) -> None:
    """`--rate` is the total of all open loops, in their old proportions."""
    (run,) = run_json(scenario, "--rate", "1200")["runs"]
    assert run["offered"] == pytest.approx(1_200, rel=0.1)
    a, b = run["tenants"]
    assert a["requests"] / b["requests"] == pytest.approx(3, rel=0.3)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--compare", "fifo"), "--compare: expected some of deadline, size_or_timeout, adaptive, each once"),
        (("--compare", "deadline,deadline"), "--compare: expected some of"),
        (("--rate", "0"), "--rate: expected requests per second above 0, at most 10,000,000, got 0"),
        (("--rate", "nan"), "--rate: expected requests per second above 0"),
        (("--seed", "-1"), "--seed: expected an integer >= 0, got -1"),
        (("--report", "/nowhere/at/all.html"), "--report: expected a file that can be written, got /nowhere"),
    ],
)
def test_bad_usage_names_the_option(scenario: str, words: tuple[str, ...], expected: str) -> None:
    """Status 2 and one line that says what was expected and got."""
    status, out, err = invoke(scenario, *words)
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {expected}")


def test_a_bad_scenario_is_bad_usage(tmp_path: Path) -> None:
    """Every mistake is listed, and so is a file that is not there."""
    (tmp_path / "bad.toml").write_text("[scenario]\nduration_s = -1\nsede = 2\n")
    status, _, err = invoke(str(tmp_path / "bad.toml"))
    assert status == 2
    assert "scenario.duration_s: expected more than 0, got -1" in err
    assert "scenario.sede: unknown key; did you mean seed?" in err
    assert invoke(str(tmp_path / "none.toml"))[0] == 2


def test_clients_cannot_be_scaled(tmp_path: Path) -> None:
    """A closed loop has no rate of its own."""
    (tmp_path / "clients.toml").write_text(CLIENTS)
    status, _, err = invoke(str(tmp_path / "clients.toml"), "--rate", "5")
    assert status == 2
    assert err.startswith("error: --rate: expected a scenario with an open loop, 'clients' has only clients")


class Page(HTMLParser):
    """Counts tags and notes whatever would have to be fetched."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag."""
        self.tags.append(tag)
        self.fetched += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href") and value and value[0] != "#"
        ]


def test_the_report_is_one_page_that_needs_nothing(scenario: str, tmp_path: Path) -> None:
    """Plots are inside it, nothing is fetched, names are escaped, and the same run draws the same page."""
    texts = []
    for name in ("one.html", "two.html"):
        status, _, err = invoke(
            scenario, "--compare", "size_or_timeout,deadline", "--report", str(tmp_path / name), "--json"
        )
        assert (status, err) == (0, "")
        texts.append((tmp_path / name).read_text())
    page = Page(texts[0])
    assert page.tags.count("svg") == page.tags.count("figure") == 9  # 3 for the run, 3 for each policy
    assert page.fetched == []
    assert "a &lt;small&gt; one" in texts[0]
    assert "<small>" not in texts[0]
    assert texts[0] == texts[1]


def test_a_report_of_clients_has_no_sweep(tmp_path: Path) -> None:
    """Without an open loop there is no load to vary."""
    (tmp_path / "clients.toml").write_text(CLIENTS)
    assert invoke(str(tmp_path / "clients.toml"), "--report", str(tmp_path / "r.html"))[0] == 0
    assert Page((tmp_path / "r.html").read_text()).tags.count("figure") == 4
