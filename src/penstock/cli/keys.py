"""`penstock keys create`, `list` and `revoke`: who may call, kept in the state directory whether a server runs or not.

A key is printed once, on stdout, by the command that makes it, and is nowhere else: the store has its hash.
Not here: the store (`adapters/sql/keys.py`), what a key's text is (`policy/identifying.py`), how a revocation reaches
every gateway (`fleet/fence.py`). Exit status: 0; 1 a revocation is not confirmed; 2 bad usage or configuration.
"""

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from penstock.adapters.clock import now_us, wall_us
from penstock.adapters.secrecy import draw_key
from penstock.adapters.sql.keys import KeyStore, StoredKey
from penstock.adapters.waiting import wait_us
from penstock.cli.config_sections import WEIGHT_MAX, WEIGHT_MIN, parse_address
from penstock.cli.section import NAME_PATTERN
from penstock.cli.state import default_state, keys_file
from penstock.core.errors import ConfigError
from penstock.core.keys import USER_PATTERN
from penstock.core.limit_text import LimitText, format_limit, parse_limit
from penstock.core.limits import Level, Principal, RateLimit
from penstock.core.models import TENANT_PATTERN
from penstock.fleet.fence import Fence, raise_fence
from penstock.policy.identifying import ID_CHARS, KEY_PREFIX, format_key, hash_secret

__all__ = ["Hands", "register"]

_HTTP = "127.0.0.1:8000"
# A running server takes up a change in a few ms; who does not wait for it still sees whether it did.
_COURTESY_US = 1_000_000

_State = Annotated[
    Path | None, typer.Option(metavar="DIR", help="The server's state directory; by default that of --http.")
]
_Http = Annotated[str, typer.Option(metavar="HOST:PORT", help="The server's inference port, as it is configured.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class _Class(StrEnum):
    INTERACTIVE = "interactive"
    BATCH = "batch"


@dataclass(frozen=True, slots=True)
class Hands:
    """What these commands touch the world with.

    Args:
        draw: Returns the id and the secret of a new key.
        wall_us: Wall clock.
        fence: Tells a running server of a revision of the store in a state directory; waits at most so many µs.
    """

    draw: Callable[[], tuple[str, str]]
    wall_us: Callable[[], int]
    fence: Callable[[Path, int, int], Fence]


def _fence(directory: Path, revision: int, timeout_us: int) -> Fence:
    return raise_fence(directory, revision, timeout_us=timeout_us, now_us=now_us, wait=wait_us)


def register(app: typer.Typer, *, hands: Hands | None = None) -> None:
    """Add `penstock keys` to the command line."""
    commands = _Commands(hands or Hands(draw_key, wall_us, _fence))
    keys = typer.Typer(no_args_is_help=True)
    example = "penstock keys create --tenant acme --user alice; penstock keys list; penstock keys revoke ID --wait"
    keys.callback(epilog=f"Example: {example}")(_describe)
    keys.command(
        epilog="Example: penstock keys create --tenant acme --user alice --model digits --limit '100/s burst 200'"
    )(commands.create)
    keys.command(name="list", epilog="Example: penstock keys list --json | jq '.[] | select(.tenant == \"acme\")'")(
        commands.list_keys
    )
    keys.command(epilog="Example: penstock keys revoke 3fq0w9x2m7ab --wait --timeout 10")(commands.revoke)
    app.add_typer(keys, name="keys")


def _describe() -> None:
    """Make, list and revoke API keys."""


class _Commands:
    """The three commands."""

    def __init__(self, hands: Hands) -> None:
        self._hands = hands

    def create(
        self,
        *,
        tenant: Annotated[str, typer.Option(help="On whose account its requests run.")],
        user: Annotated[str, typer.Option(help="Who holds it.")],
        class_: Annotated[
            _Class, typer.Option("--class", help="batch: its requests wait behind interactive ones.")
        ] = _Class.INTERACTIVE,
        model: Annotated[list[str] | None, typer.Option(help="A model it may use; repeat for several. All.")] = None,
        tier: Annotated[str, typer.Option(help="Name of the set of limits it is under.")] = "",
        weight: Annotated[float, typer.Option(help="The tenant's share of a contended device; 0: as configured.")] = 0,
        limit: Annotated[
            list[str] | None,
            typer.Option(help="A limit of this key alone, such as '100/s burst 200'; may be repeated."),
        ] = None,
        state: _State = None,
        http: _Http = _HTTP,
        as_json: _Json = False,
    ) -> None:
        """Make a key and print it: it is shown this once, only its hash is kept.

        --json prints `key`, `id`, `tenant`, `user`, `class`, `models`, `tier`, `weight`, `limits`, `created_at`,
        `revision`, `in_force`, `state`.
        """
        with _Refusals():
            directory = _find_state(state, http)
            key_id, secret = self._hands.draw()
            principal = _to_principal(key_id, tenant, user, class_, model, tier, weight, limit)
            created_us = self._hands.wall_us()
            revision = KeyStore(keys_file(directory)).add(principal, hash_secret(secret.encode()), created_us)
        fence = self._hands.fence(directory, revision, _COURTESY_US)
        text = format_key(key_id, secret)
        if as_json:
            in_force = fence.is_confirmed and fence.has_server
            said = {"revision": revision, "in_force": in_force, "state": str(directory)}
            print(json.dumps({"key": text} | _to_json(StoredKey(principal, created_us, None)) | said, indent=2))
        else:
            print(text)
            _say(f"key {key_id} of {tenant}/{user} is stored in {keys_file(directory)}; its text is shown this once")
        if not fence.is_confirmed:
            _say(f"not yet good everywhere: {fence.reason}")
        elif not fence.has_server:
            _say(f"no server runs on {directory}; the next one there accepts the key")

    def list_keys(
        self,
        everything: Annotated[bool, typer.Option("--all", help="Revoked ones too.")] = False,
        state: _State = None,
        http: _Http = _HTTP,
        as_json: _Json = False,
    ) -> None:
        """List the keys: whose they are and what they allow, never their text.

        --json prints a list of objects: `id`, `tenant`, `user`, `class`, `models`, `tier`, `weight`, `limits`,
        `created_at`, `revoked_at`.
        """
        with _Refusals():
            file = keys_file(_find_state(state, http))
            stored = KeyStore(file).list_keys()
        rows = [_to_json(key) | {"revoked_at": _to_text(key.revoked_us)} for key in stored]
        rows = [row for row in rows if everything or row["revoked_at"] is None]
        if as_json:
            print(json.dumps(rows, indent=2))
        elif rows:
            Console().print(_to_table(rows))
        else:
            _say(f"no keys in {file}")

    def revoke(
        self,
        key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id, as `penstock keys list` shows it.")],
        wait: Annotated[
            bool, typer.Option("--wait", help="Return only when no gateway accepts the key any more.")
        ] = False,
        timeout: Annotated[float, typer.Option(metavar="S", min=0.1, max=86_400, help="How long to wait, s.")] = 30,
        state: _State = None,
        http: _Http = _HTTP,
        as_json: _Json = False,
    ) -> None:
        """Revoke a key, for good. Of one that is revoked already, --wait still waits.

        --json prints `id`, `revision`, `confirmed`, `waiting_for`, `reason`.
        """
        with _Refusals():
            directory = _find_state(state, http)
            revision = KeyStore(keys_file(directory)).revoke(_check_id(key_id), self._hands.wall_us())
            if revision is None:
                raise ConfigError(f"ID: expected that of a key in {keys_file(directory)}, got {key_id!r}")
        fence = self._hands.fence(directory, revision, round(timeout * 1e6) if wait else _COURTESY_US)
        if as_json:
            said: dict[str, Any] = {"id": key_id, "revision": revision, "confirmed": fence.is_confirmed}
            print(json.dumps(said | {"waiting_for": fence.pending, "reason": fence.reason}, indent=2))
        if fence.is_confirmed:
            _say(f"key {key_id} is revoked: no gateway accepts it")
            return
        _say(f"key {key_id} is revoked in {keys_file(directory)}, but not yet everywhere: {fence.reason}")
        if wait:
            raise typer.Exit(1)


class _Refusals:
    """Says what is wrong with usage or configuration on stderr, and ends the command with status 2."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ConfigError):
            _say(error.message)
            raise typer.Exit(2) from error


def _say(text: str) -> None:
    print(f"penstock keys: {text}", file=sys.stderr)


def _find_state(state: Path | None, http: str) -> Path:
    if state is not None:
        return state
    try:
        address = parse_address(http)
    except ValueError as error:
        raise ConfigError(f"--http: {error}, got {http!r}") from error
    return default_state(address.host, address.port)


def _check_id(key_id: str) -> str:
    if key_id.startswith(KEY_PREFIX):
        # Not shown: it may be a whole key.
        raise ConfigError(f"ID: expected the {ID_CHARS} characters between {KEY_PREFIX} and the next _, got more")
    return key_id


def _to_principal(
    key_id: str,
    tenant: str,
    user: str,
    class_: _Class,
    models: list[str] | None,
    tier: str,
    weight: float,
    limits: list[str] | None,
) -> Principal:
    name = "1 to 64 letters, digits, '.', '_' and '-', at least one of them a letter or digit"
    # A tenant of marks alone could be taken for none: bucket keys write none as `-`.
    if not re.search("[A-Za-z0-9]", tenant):
        raise ConfigError(f"--tenant: expected {name}, got {tenant!r}")
    _check("--tenant", tenant, TENANT_PATTERN, name)
    _check("--user", user, USER_PATTERN, "1 to 128 letters, digits, '.', '_', '@', '+' and '-', the first no mark")
    for model in models or []:
        _check("--model", model, NAME_PATTERN, "a model's name")
    if tier:
        _check("--tier", tier, NAME_PATTERN, "a name of letters, digits, '.', '_' and '-'")
    if weight and not WEIGHT_MIN <= weight <= WEIGHT_MAX:
        raise ConfigError(f"--weight: expected {WEIGHT_MIN} to {WEIGHT_MAX}, or 0, got {weight:g}")
    return Principal(
        key_id=key_id,
        tenant=tenant,
        user=user,
        is_batch=class_ is _Class.BATCH,
        models=tuple(dict.fromkeys(models)) if models else None,
        tier=tier,
        weight=weight,
        limits=tuple(_to_limit(key_id, number, text) for number, text in enumerate(limits or [], start=1)),
    )


def _check(option: str, text: str, pattern: str, expected: str) -> None:
    if not re.fullmatch(pattern, text):
        raise ConfigError(f"{option}: expected {expected}, got {text[:160]!r}")


def _to_limit(key_id: str, number: int, text: str) -> RateLimit:
    name = f"key-{key_id}" if number == 1 else f"key-{key_id}-{number}"
    try:
        return RateLimit(name, Level.USER, *parse_limit(text))
    except ValueError as error:
        raise ConfigError(f"--limit {text[:80]!r}: {error}") from error


def _to_json(key: StoredKey) -> dict[str, Any]:
    who = key.principal
    return {
        "id": who.key_id,
        "tenant": who.tenant,
        "user": who.user,
        "class": "batch" if who.is_batch else "interactive",
        "models": None if who.models is None else list(who.models),
        "tier": who.tier,
        "weight": who.weight,
        "limits": [format_limit(LimitText(x.tokens, x.per_us, x.burst, x.cost)) for x in who.limits],
        "created_at": _to_text(key.created_us),
    }


def _to_text(at_us: int | None) -> str | None:
    return None if at_us is None else datetime.fromtimestamp(at_us // 1_000_000, UTC).isoformat()


def _to_table(rows: list[dict[str, Any]]) -> Table:
    """Return a table of the columns that say something of any key: most servers use few of them."""
    cells = [
        {
            "tenant/user": f"{row['tenant']}/{row['user']}",
            "class": row["class"].replace("interactive", ""),
            "models": ", ".join(row["models"] or ()),
            "tier": row["tier"],
            "weight": f"{row['weight']:g}" if row["weight"] else "",
            "limits": ", ".join(row["limits"]),
            "created": row["created_at"].partition("T")[0],
            "revoked": (row["revoked_at"] or "").partition("T")[0],
        }
        for row in rows
    ]
    columns = [column for column in cells[0] if any(row[column] for row in cells)]
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("id", no_wrap=True)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row, written in zip(rows, cells, strict=True):
        table.add_row(row["id"], *(Text(written[column] or "-") for column in columns))
    return table
