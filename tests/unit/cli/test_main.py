"""The command line as a whole: every command is there, explains itself, and bad usage is told from failure."""

import json

import pytest
from typer.testing import CliRunner

from penstock import __version__
from penstock.cli.main import build_app

COMMANDS = ("serve", "models", "bench", "drill", "simulate", "doctor", "version")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    """`--help` of a command, built alone as on a real call, exits 0 and shows how it is used."""
    shown = CliRunner().invoke(build_app(command), [command, "--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    assert f"penstock {command}" in shown.output


def test_help_lists_every_command() -> None:
    """Without a command all of them are registered."""
    shown = CliRunner().invoke(build_app(), ["--help"]).output
    assert all(f" {command} " in shown for command in COMMANDS)


def test_version_is_the_packages() -> None:
    """`version` prints the version alone, and with --json the documented keys."""
    assert CliRunner().invoke(build_app("version"), ["version"]).output == f"{__version__}\n"
    document = json.loads(CliRunner().invoke(build_app("version"), ["version", "--json"]).output)
    assert document.keys() == {"version", "python", "platform"}
    assert document["version"] == __version__


@pytest.mark.parametrize(
    "words", [["nonsense"], ["serve"], ["serve", "x", "--gateways", "many"], ["version", "--yaml"]]
)
def test_bad_usage_exits_2(words: list[str]) -> None:
    """Unknown commands, missing arguments and wrong options end with status 2."""
    assert CliRunner().invoke(build_app(words[0]), words).exit_code == 2
