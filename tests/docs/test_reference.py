"""The reference pages list exactly what the code has: configuration keys, metrics, routes, statuses, commands, options.

Whatever is added to the code must be added to its page, and what is gone must go.
"""

import asyncio
import inspect
import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from starlette.routing import Route
from typer.testing import CliRunner

from penstock.cli.config_sections import ConfigFile, ModelFile
from penstock.cli.doctor import Finding
from penstock.cli.main import build_app
from penstock.cli.models import register as register_models
from penstock.cli.scenario_sections import ScenarioFile
from penstock.core.authority import Peeked
from penstock.core.limits import Level, LimitSettings, RateLimit
from penstock.core.models import ModelSpec, model
from penstock.core.tensors import DATATYPES, TensorSpec
from penstock.fleet.admin import admin_app
from penstock.fleet.limit_explaining import Circumstances, explain_limits
from penstock.fleet.metrics import render_metrics
from penstock.fleet.status import to_status
from penstock.gateway.batcher import STEPS
from penstock.gateway.routes import Routes
from penstock.policy.admission import RefusalReason
from penstock.policy.batching import CloseReason
from penstock.wire.decisions import Decision, encode_line
from penstock.wire.oip_documents import EXTENSIONS
from tests.docs.fleet import full_view
from tests.docs.pages import PAGES, ROOT, code_spans, prose, snippets, table_rows

# -- configuration --------------------------------------------------------------------------------------------------

_WORDS: dict[Any, str] = {bool: "boolean", int: "integer", float: "number", str: "string", dict: "table", list: "array"}


def bare(annotation: Any) -> Any:
    """Return an annotation without `Annotated` and without None."""
    if get_origin(annotation) is Annotated:
        return bare(get_args(annotation)[0])
    if type(None) in get_args(annotation):
        return bare(next(option for option in get_args(annotation) if option is not type(None)))
    return annotation


def keys_of(kind: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield each key of a file with its type and its default, in the words of the page."""
    for name, field in kind.model_fields.items():
        key = prefix + (field.alias or name)
        annotation = bare(field.annotation)
        origin = get_origin(annotation)
        item = bare(get_args(annotation)[-1]) if origin in (dict, list) else annotation
        if isinstance(item, type) and issubclass(item, BaseModel):
            yield from keys_of(item, key + {dict: ".NAME.", list: "[]."}.get(origin, "."))
        else:
            yield key, _WORDS[str if origin is Literal else origin or annotation], default_of(field)


def default_of(field: FieldInfo) -> str:
    """Return a field's default as TOML has it."""
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    if default is None:
        return "none"
    return f"`{json.dumps(float(default) if field.annotation is float else default)}`"


@pytest.mark.parametrize(
    ("page", "heading", "kind"),
    [
        ("docs/configuration.md", "## penstock.toml", ConfigFile),
        ("docs/configuration.md", "## model.toml", ModelFile),
        ("docs/simulation.md", "## Keys of a scenario", ScenarioFile),
    ],
)
def test_every_key_is_documented_with_its_type_and_default(page: str, heading: str, kind: type[BaseModel]) -> None:
    """The page has exactly the keys of the file, each with the type and the default it has."""
    rows = table_rows(page, heading)
    documented = {code_spans(cells[0])[0]: (cells[1], cells[2]) for cells in rows}
    expected = {key: (word, default) for key, word, default in keys_of(kind)}
    assert documented.keys() == expected.keys()
    for key, (word, default) in expected.items():
        assert documented[key][0].startswith(word), f"{key}: expected a type that begins with {word}"
        assert documented[key][1] == default, f"{key}: expected the default {default}"


@pytest.mark.parametrize("snippet", [s for page in PAGES for s in snippets(page) if s.language == "toml"], ids=str)
def test_toml_in_the_documents_is_valid(snippet: Any) -> None:
    """Every example of a configuration passes the checks that a user's file has to pass."""
    document = tomllib.loads(snippet.text)
    kind: type[BaseModel] = ConfigFile if document.keys() <= ConfigFile.model_fields.keys() else ModelFile
    (ScenarioFile if "scenario" in document else kind).model_validate(document)


def test_arguments_of_the_decorator_are_documented() -> None:
    """docs/publishing.md names every argument of `penstock.model`."""
    (paragraph,) = re.findall(r"The arguments of `penstock.model`:.*?\n\n", prose("docs/publishing.md"), re.DOTALL)
    assert set(inspect.signature(model).parameters) <= set(code_spans(paragraph))


# -- metrics --------------------------------------------------------------------------------------------------------


def families() -> dict[str, tuple[str, list[str]]]:
    """Return the type and the labels of every family that the page of metrics has."""
    text = render_metrics(full_view())
    found: dict[str, tuple[str, list[str]]] = {}
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE):
        sample = re.search(rf"^{name}(?:_bucket)?(?:\{{(.*)\}})? \S+$", text, re.MULTILINE)
        assert sample is not None, f"{name} has no sample: give it one in full_view"
        found[name] = kind, [label for label in re.findall(r'(\w+)="', sample[1] or "") if label != "le"]
    return found


def test_every_metric_is_documented_with_its_type_and_labels() -> None:
    """The page has exactly the families that are exposed."""
    rows = [*table_rows("docs/metrics.md", "## Triton's names"), *table_rows("docs/metrics.md", "## Our own")]
    rows = [cells for cells in rows if re.match(r"`(nv|penstock)_", cells[0])]
    documented = {code_spans(cells[0])[0]: (cells[1], code_spans(cells[2])) for cells in rows}
    assert documented == families()
    assert all(cells[3] for cells in rows), "each needs a meaning"


@pytest.mark.parametrize(
    "labels",
    [[reason.value for reason in CloseReason], [reason.value for reason in RefusalReason], list(STEPS)],
    ids=["closes", "refusals", "steps"],
)
def test_every_label_value_is_documented(labels: list[str]) -> None:
    """Each reason and each step has a row that says what it means."""
    documented = {code_spans(cells[0])[0] for cells in table_rows("docs/metrics.md") if code_spans(cells[0])}
    assert set(labels) <= documented


# -- routes and statuses --------------------------------------------------------------------------------------------


class _UnloadedRoutes(Routes):
    """Routes that can be listed without a catalogue."""

    def _infer_route(self, name: str, version: str | None) -> Any:
        return self._live

    def listed(self) -> set[str]:
        """Return every route as `METHOD /path`."""
        found = {f"{method} {path.decode()}" for path, methods in self._fixed.items() for method in methods}
        verbs = re.findall(r'verb == b"(\w*)"', inspect.getsource(Routes._model_routes))
        for path in ("/v1/models/NAME", *(f"/v2/models/NAME/{verb}".rstrip("/") for verb in verbs)):
            methods = self._resolve_model(path.encode())
            assert methods is not None
            found |= {f"{method} {path}" for method in methods}
        return found


def code_routes() -> set[str]:
    """Return the routes of the inference port."""
    nothing: Any = None
    return _UnloadedRoutes(
        nothing,
        nothing,
        nothing,
        requires_key=False,
        now_us=lambda: 0,
        version="",
        started_s=0,
        query_statistics=nothing,
        on_bug=nothing,
    ).listed()


def documented_routes(heading: str) -> set[str]:
    """Return the routes in the table below a heading."""
    return {code_spans(cells[0])[0] for cells in table_rows("docs/protocols.md", heading)}


def test_every_route_is_documented() -> None:
    """The page has exactly the routes of the inference port."""
    assert documented_routes("## Routes of the inference port") == code_routes()


def test_every_admin_route_is_documented() -> None:
    """The page has exactly the routes of the admin port."""
    nothing: Any = None
    routes = {f"GET {route.path}" for route in admin_app(full_view, nothing).routes if isinstance(route, Route)}
    assert documented_routes("## Routes of the admin port") == routes


def test_every_status_is_documented() -> None:
    """The page has exactly the statuses that the gateway, its limits and the executor answer with."""
    source = "".join(path.read_text() for path in (ROOT / "src/penstock/gateway").glob("*.py"))
    source += (ROOT / "src/penstock/replica/executor.py").read_text()
    source += (ROOT / "src/penstock/wire/ratelimit.py").read_text()
    calls = re.findall(r"(?:refuse|refuse_all|_error|Refusal|Rejection|respond|_fail)\((?:exchange, )?(\d{3})", source)
    others = re.findall(r"(?:status=|return |else |\()(\d{3})[,)]", source)
    found = {int(text) for text in [*calls, *others]} | {400}
    rows = table_rows("docs/protocols.md", "### Status codes")
    assert {int(cells[0]) for cells in rows} == found


def test_datatypes_and_extensions_are_documented() -> None:
    """Each datatype and each extension that is claimed is named."""
    assert {*DATATYPES, *EXTENSIONS} <= set(code_spans(prose("docs/protocols.md")))


# -- the command line -----------------------------------------------------------------------------------------------


def commands() -> dict[str, Any]:
    """Return the commands by name."""
    group: Any = typer.main.get_command(build_app())
    return dict(group.commands)


@pytest.mark.parametrize("name", sorted(commands()))
def test_every_option_is_documented(name: str) -> None:
    """A command's section has exactly its options, those of its parts included."""
    command = commands()[name]
    parameters = [p for part in (command, *getattr(command, "commands", {}).values()) for p in part.params]
    expected = {opt for p in parameters for opt in (*p.opts, *p.secondary_opts) if opt.startswith("--")} - {"--help"}
    rows = table_rows("docs/command-line.md", f"## penstock {name}")
    assert {opt for cells in rows for opt in code_spans(cells[0]) if opt.startswith("--")} == expected


def test_every_command_is_documented() -> None:
    """The page has a section for each command and for no other."""
    assert set(re.findall(r"^## penstock (\w+)$", prose("docs/command-line.md"), re.MULTILINE)) == set(commands())


def test_keys_of_doctor_are_documented() -> None:
    """The objects of `penstock doctor --json` have the keys that the page names."""
    (row,) = [r for r in table_rows("docs/command-line.md", "## penstock doctor") if "--json" in r[0]]
    assert code_spans(row[1]) == list(Finding.__dataclass_fields__)


def test_keys_of_the_list_of_models_are_documented() -> None:
    """The objects of `penstock models list --json` have the keys that the page names, in its order."""
    app = typer.Typer()
    app.callback()(lambda: None)
    register_models(app, fetch=lambda _: to_status(full_view()))
    (found,) = json.loads(CliRunner().invoke(app, ["models", "list", "--json"]).stdout)
    rows = table_rows("docs/command-line.md", "## penstock models")
    assert [key for row in rows if not row[0].startswith("`--") for key in code_spans(row[0])] == list(found)


def documented_keys(heading: str, *, table: int = 0) -> list[str]:
    """Return the keys that a table below a heading of the page about limits lists; of several tables the one asked."""
    section = prose("docs/limits-commands.md").partition(f"\n{heading}\n")[2].partition("\n## ")[0]
    tables = re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE)
    rows = tables[table].splitlines()[2:]
    return [key for row in rows for key in code_spans(row.split("|")[1])]


def test_keys_of_an_explanation_are_documented() -> None:
    """`GET /api/limits` answers exactly the keys that the page names, in its order."""

    async def ask(operations: Any) -> Any:
        return [Peeked(1, 0, 0, 0, 0) for _ in operations]

    settings = LimitSettings(limits=(RateLimit("per-user", Level.USER, 1, 1_000_000, 1),))
    circumstances = Circumstances(settings, (), ("m",), requires_key=False)
    document = asyncio.run(explain_limits(circumstances, ask, user="anonymous", tenant="", model=""))
    assert documented_keys("## penstock limits explain") == list(document)
    assert documented_keys("## penstock limits explain", table=1) == list(document["limits"][0])


def test_keys_of_a_decision_are_documented() -> None:
    """A line of the decision log has exactly the keys that the page names, besides its kind."""
    (kind, *fields) = json.loads(encode_line(Decision(0, 0, 0, "local", {}, {})))
    assert kind == "kind"
    assert sorted(documented_keys("## The decision log")) == sorted(fields)


def test_keys_of_a_replay_are_documented(tmp_path: Path) -> None:
    """`penstock limits replay --json` prints exactly the keys that the page names, in its order."""
    (tmp_path / "log").touch()
    result = CliRunner().invoke(build_app("limits"), ["limits", "replay", str(tmp_path / "log"), "--json"])
    assert documented_keys("## penstock limits replay") == list(json.loads(result.stdout))


def leaves(document: Any, prefix: str = "") -> Iterator[str]:
    """Yield the fields of a status document as the page writes them; objects by name have their name as NAME."""
    if isinstance(document, list) and document and isinstance(document[0], dict):
        yield from leaves(document[0], f"{prefix}[].")
    elif isinstance(document, dict) and document and not prefix.endswith(("_by_reason", "_by_class", "_closes")):
        for key, value in document.items():
            name = {"models[].profile": "BUCKET", "models[].tenants": "NAME"}.get(prefix, key)
            yield from leaves(value, f"{prefix}{'' if prefix.endswith('.') or not prefix else '.'}{name}")
    else:
        yield prefix


def test_every_field_of_the_status_is_documented() -> None:
    """The page has exactly the fields of `GET /api/status`."""
    tensor = TensorSpec("x", "FP32", (-1,))
    view = full_view()
    loaded = replace(view.models[0], spec=ModelSpec("m", (tensor,), (tensor,)))
    rows = table_rows("docs/metrics.md", "## The status document")
    documented = {field for row in rows for field in code_spans(row[0])}
    assert documented == set(leaves(to_status(replace(view, models=(loaded,)))))
