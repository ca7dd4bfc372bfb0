"""`penstock limits simulate`: it says whether the bound held, and what is wrong with its options."""

import json

import pytest
import typer
from typer.testing import CliRunner, Result

from penstock.cli.limits import register


def run(*words: str) -> Result:
    """Run the command."""
    app = typer.Typer()
    app.callback()(lambda: None)
    register(app)
    return CliRunner().invoke(app, ["limits", "simulate", *words])


def test_the_bound_holds_and_little_is_lost() -> None:
    """Without faults nothing is over the bound, and at most a fiftieth less is admitted than could be."""
    done = run("--duration", "2", "--json")
    assert done.exit_code == 0
    report = json.loads(done.stdout)
    assert report["excess_tokens"] == 0
    assert report["under_delivery_ratio"] <= 0.02
    assert report["admitted"] > 1_900


def test_the_same_seed_is_the_same_run() -> None:
    """Chance comes from the seed alone, faults included."""
    words = ("--duration", "2", "--fault", "pause", "--fault", "failover", "--loss", "0.05", "--json")
    first, again, other = run(*words), run(*words), run(*words, "--seed", "1")
    assert first.stdout == again.stdout != other.stdout
    assert json.loads(first.stdout)["excess_tokens"] == 0


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--limit", "0/s"), "--limit"),
        (("--limit", "5/fortnight"), "--limit"),
        (("--fault", "rain"), "--fault"),
        (("--arrivals", "never"), "--arrivals"),
        (("--offered", "1e6", "--duration", "1e3"), "--offered"),
    ],
)
def test_wrong_options_are_named(words: tuple[str, ...], named: str) -> None:
    """Exit status 2, and the option at fault."""
    done = run(*words)
    assert done.exit_code == 2
    assert named in done.output
