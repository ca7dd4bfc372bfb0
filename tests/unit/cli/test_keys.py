"""`penstock keys`: a key is printed once and is nowhere else, mistakes are named, a revocation is not overstated."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from penstock.adapters.secrecy import draw_key
from penstock.adapters.sql.keys import KeyStore
from penstock.cli.keys import Hands, register
from penstock.fleet.fence import Fence
from penstock.policy.identifying import SECRET_CHARS, KeyRing, format_key, parse_key

SECRET = "x" * SECRET_CHARS
NOON_US = 1_790_000_000_000_000
CONFIRMED = Fence(is_confirmed=True)
PENDING = Fence(is_confirmed=False, reason="got nothing from gateway-0 (pid 1)", pending=("gateway-0 (pid 1)",))


class Desk:
    """The commands over a directory of its own."""

    def __init__(self, directory: Path, fence: Fence = CONFIRMED) -> None:
        self.directory = directory
        self.fence = fence
        self.fenced: list[tuple[Path, int, int]] = []
        self._drawn = 0

    def _draw(self) -> tuple[str, str]:
        self._drawn += 1
        return f"{self._drawn:012d}", SECRET

    def _raise(self, directory: Path, revision: int, timeout_us: int) -> Fence:
        self.fenced.append((directory, revision, timeout_us))
        return self.fence

    def run(self, *arguments: str, state: bool = True) -> tuple[int, str, str]:
        """Run a command: exit status, stdout and stderr."""
        app = typer.Typer()
        app.callback()(lambda: None)
        register(app, hands=Hands(self._draw, lambda: NOON_US, self._raise))
        place = ["--state", str(self.directory)] if state else []
        environment = {"COLUMNS": "160", "XDG_STATE_HOME": str(self.directory)}
        result = CliRunner().invoke(app, ["keys", *arguments, *place], env=environment)
        return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path / "state")


CREATE = ("create", "--tenant", "acme", "--user", "alice@x.org")
ALL_OPTIONS = (
    *CREATE,
    *("--class", "batch", "--model", "digits", "--model", "sum", "--tier", "pro", "--weight", "2.5"),
    *("--limit", "100/s burst 200", "--limit", "1000 tokens/min"),
)


def test_a_key_is_printed_once(desk: Desk) -> None:
    """`create` prints the key alone on stdout; neither stderr, nor the list, nor any file has it."""
    status, out, said = desk.run(*CREATE)
    key = format_key("000000000001", SECRET)
    assert (status, out) == (0, f"{key}\n")
    assert SECRET not in said
    assert SECRET not in "".join(map(str, desk.run("list", "--json")))
    for path in desk.directory.iterdir():
        assert SECRET.encode() not in path.read_bytes()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    snapshot = KeyStore(desk.directory / "keys.db").read()
    assert snapshot is not None
    principal = KeyRing(snapshot).find(key.encode())
    assert principal is not None
    assert (principal.tenant, principal.user) == ("acme", "alice@x.org")


def test_everything_a_key_says_is_kept(desk: Desk) -> None:
    """Each option comes back from `create --json` and `list --json`, under the documented names."""
    status, out, _ = desk.run(*ALL_OPTIONS, "--json")
    said = {
        "id": "000000000001",
        "tenant": "acme",
        "user": "alice@x.org",
        "class": "batch",
        "models": ["digits", "sum"],
        "tier": "pro",
        "weight": 2.5,
        "limits": ["100/s burst 200", "1000 tokens/min"],
        "created_at": "2026-09-21T14:13:20+00:00",
    }
    key, state = format_key("000000000001", SECRET), str(desk.directory)
    assert status == 0
    assert json.loads(out) == {"key": key, **said, "revision": 1, "in_force": True, "state": state}
    assert json.loads(desk.run("list", "--json")[1]) == [said | {"revoked_at": None}]
    (stored,) = KeyStore(desk.directory / "keys.db").list_keys()
    assert [limit.name for limit in stored.principal.limits] == ["key-000000000001", "key-000000000001-2"]


def test_the_table_has_what_there_is_to_say(desk: Desk) -> None:
    """Without --json the list is a table; columns of which no key says anything are left out."""
    assert "no keys in" in desk.run("list")[2]
    desk.run(*CREATE)
    plain = desk.run("list")[1]
    assert "acme/alice@x.org" in plain
    assert "tier" not in plain
    desk.run(*ALL_OPTIONS)
    full = desk.run("list")[1]
    assert all(text in full for text in ("tier", "pro", "digits, sum", "1000 tokens/min", "2026-09-21"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tenant", "a b"), "--tenant: expected 1 to 64 letters, digits, '.', '_' and '-'"),
        (("--tenant", "-"), "--tenant: expected 1 to 64 letters"),
        (("--tenant", "x" * 65), "--tenant: expected 1 to 64 letters"),
        (("--user", ""), "--user: expected 1 to 128 letters"),
        (("--user", "{a}"), "--user: expected 1 to 128 letters"),
        (("--user", "a:b"), "got 'a:b'"),
        (("--model", "a/b"), "--model: expected a model's name, got 'a/b'"),
        (("--tier", "a b"), "--tier: expected a name of letters, digits, '.', '_' and '-', got 'a b'"),
        (("--weight", "-1"), "--weight: expected 0.001 to 1000, or 0, got -1"),
        (("--weight", "1001"), "--weight: expected 0.001 to 1000, or 0, got 1001"),
        (("--weight", "nan"), "--weight: expected 0.001 to 1000, or 0, got nan"),
        (("--limit", "0/s"), "--limit '0/s': rate: expected a whole number"),
        (("--limit", "5/week"), "--limit '5/week': period: expected a time"),
        (("--limit", "7/31d burst 999999999999"), "--limit '7/31d burst 999999999999': "),
        (("--http", "nowhere"), "--http: expected host:port"),
    ],
)
def test_a_mistake_is_named_and_makes_no_key(desk: Desk, arguments: tuple[str, ...], message: str) -> None:
    """Bad usage is status 2, says which option, what was expected and got, and stores nothing."""
    is_placed = "--http" not in arguments
    status, out, said = desk.run(*CREATE, *arguments, state=is_placed)
    assert (status, out) == (2, "")
    assert message in said
    assert not desk.directory.exists()
    assert desk.fenced == []


def test_a_revocation_waits_for_the_fence(desk: Desk) -> None:
    """`revoke --wait` gives the fence the revision and the time it has; confirmed is status 0."""
    desk.run(*CREATE)
    status, out, said = desk.run("revoke", "000000000001", "--wait", "--timeout", "2.5")
    assert (status, out) == (0, "")
    assert "is revoked: no gateway accepts it" in said
    assert desk.fenced[-1] == (desk.directory, 2, 2_500_000)
    assert KeyStore(desk.directory / "keys.db").read(2) is None
    assert json.loads(desk.run("list", "--json")[1]) == []
    (row,) = json.loads(desk.run("list", "--all", "--json")[1])
    assert row["revoked_at"] == "2026-09-21T14:13:20+00:00"
    assert "revoked" in desk.run("list", "--all")[1]


@pytest.mark.parametrize(("options", "expected"), [((), 0), (("--wait",), 1)])
def test_a_revocation_that_is_not_confirmed_says_so(desk: Desk, options: tuple[str, ...], expected: int) -> None:
    """Who waits gets status 1, who does not 0; both hear who is missing, and may ask again."""
    desk.run(*CREATE)
    desk.fence = PENDING
    status, out, said = desk.run("revoke", "000000000001", "--json", *options)
    report: dict[str, Any] = json.loads(out)
    assert status == expected
    assert "not yet everywhere: got nothing from gateway-0 (pid 1)" in said
    assert report == {
        "id": "000000000001",
        "revision": 2,
        "confirmed": False,
        "waiting_for": ["gateway-0 (pid 1)"],
        "reason": PENDING.reason,
    }
    desk.fence = CONFIRMED
    assert desk.run("revoke", "000000000001", "--wait")[0] == 0
    assert desk.fenced[-1][1] == 2


def test_a_key_that_is_not_yet_good_is_made_all_the_same(desk: Desk) -> None:
    """`create` does not fail for a gateway that lags, nor where no server runs; it says which it is."""
    desk.fence = PENDING
    status, out, said = desk.run(*CREATE, "--json")
    assert (status, json.loads(out)["in_force"]) == (0, False)
    assert "not yet good everywhere" in said
    desk.fence = Fence(is_confirmed=True, has_server=False)
    status, out, said = desk.run(*CREATE, "--json")
    assert (status, json.loads(out)["in_force"]) == (0, False)
    assert "no server runs on" in said


def test_an_id_that_is_none_is_refused(desk: Desk) -> None:
    """Of an unknown id, and of a whole key, status 2; the text of a key is not shown again."""
    key = desk.run(*CREATE)[1].strip()
    status, _, said = desk.run("revoke", "abcabcabcabc")
    assert (status, "got 'abcabcabcabc'" in said) == (2, True)
    status, _, said = desk.run("revoke", key)
    assert status == 2
    assert "expected the 12 characters between pk_ and the next _" in said
    assert SECRET not in said


def test_a_store_that_cannot_be_read_is_bad_configuration(desk: Desk) -> None:
    """Each command says which file is broken, with status 2."""
    desk.directory.mkdir()
    (desk.directory / "keys.db").write_bytes(b"x" * 999)
    for arguments in (CREATE, ("list",), ("revoke", "abcabcabcabc")):
        status, out, said = desk.run(*arguments)
        assert (status, out) == (2, "")
        assert "keys.db: expected a store of keys" in said


def test_the_directory_is_that_of_the_port(desk: Desk) -> None:
    """Without --state keys go where a server on that port looks for them, by default the default port."""
    desk.run(*CREATE, state=False)
    desk.run(*CREATE, "--http", "[::1]:9000", state=False)
    found = sorted(str(path.relative_to(desk.directory)) for path in desk.directory.rglob("keys.db"))
    assert found == ["penstock/127.0.0.1-8000/keys.db", "penstock/__1-9000/keys.db"]


def test_keys_that_are_drawn_have_the_form_of_keys() -> None:
    """Each draw is a key that can be read, and no two are alike."""
    drawn = [draw_key() for _ in range(50)]
    assert [parse_key(format_key(*key).encode()) for key in drawn] == [(key_id, s.encode()) for key_id, s in drawn]
    assert len({key_id for key_id, _ in drawn} | {secret for _, secret in drawn}) == 100
