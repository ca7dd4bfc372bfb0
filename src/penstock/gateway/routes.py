"""From a parsed exchange to the thing that answers it: the Open Inference Protocol v2 and OpenAI routes.

A URL that was answered once is found in one dictionary look-up; the dictionary is made anew with each snapshot.
Not here: HTTP (`http.py`), documents (`wire/oip_documents.py`, `wire/openai.py`).
"""

from collections.abc import Callable
from urllib.parse import unquote_to_bytes

from penstock.core.errors import CallerError, InvalidInput, PenstockError
from penstock.core.ports import Clock
from penstock.core.statistics import GatewayStatistics, ModelStatistics
from penstock.gateway.callers import Callers
from penstock.gateway.catalogue import Catalogue, Model
from penstock.gateway.embeddings import Embedding
from penstock.gateway.http import Exchange
from penstock.gateway.identity import Identifier, check_model
from penstock.gateway.inference import Bound, Target
from penstock.gateway.limiter import Limiter
from penstock.wire import oip_documents, openai
from penstock.wire.oip import encode_error

__all__ = ["Routes"]

_Route = Callable[[Exchange], None]
# Loading takes seconds; a client that asks again sooner only adds load.
LOADING_RETRY_S = 1
# URLs remembered between snapshots. Clients choose URLs, so it must be bounded; models times routes fit easily.
ROUTES_MAX = 4_096
# A longer URL is resolved each time: 4,096 of the longest that HTTP lets in would be 64 MiB twice over.
ROUTE_URL_BYTES_MAX = 512
# What answers without a key where keys are required: a balancer that asks has none, and learns only that we are there.
_HEALTH = b"/v2/health/"


class _Memory:
    """What an infer request's head led to, good until anything changes."""

    __slots__ = ("bound", "generation", "target")

    def __init__(self, generation: object, target: Target, bound: Bound) -> None:
        self.generation = generation
        self.target = target
        self.bound = bound


class Routes:
    """Implements `Handler`.

    Args:
        catalogue: Where models are found.
        identifier: Knows who asks.
        limiter: Knows what they may take.
        requires_key: Answer nobody without a key, but for health.
        now_us: Clock.
        version: Of this program, for `GET /v2`.
        started_s: Wall-clock start, for OpenAI's `created`.
        query_statistics: Calls back with the sum over all gateways, or with this one's own if the head is gone.
        on_bug: Called with an exception that should not have happened.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        identifier: Identifier,
        limiter: Limiter,
        *,
        requires_key: bool,
        now_us: Clock,
        version: str,
        started_s: int,
        query_statistics: Callable[[Callable[[GatewayStatistics], None]], None],
        on_bug: Callable[[Exception], None],
    ) -> None:
        self.is_draining = False
        self._catalogue = catalogue
        self._now_us = now_us
        self._version = version
        self._started_s = started_s
        self._query_statistics = query_statistics
        self._on_bug = on_bug
        self._callers = Callers(identifier)
        self._requires_key = requires_key
        self._limiter = limiter
        self._generation = object()  # a new one whenever what heads led to may be wrong now
        self._routes: dict[tuple[str, bytes], _Route] = {}
        self._fixed: dict[bytes, dict[str, _Route]] = {
            b"/v2": {"GET": self._server_metadata},
            b"/v2/health/live": {"GET": self._live},
            b"/v2/health/ready": {"GET": self._ready},
            b"/v2/models/stats": {"GET": lambda exchange: self._statistics(exchange, None, None)},
            b"/v2/repository/index": {"POST": self._repository_index},
            b"/v1/models": {"GET": self._openai_models},
            b"/v1/embeddings": {"POST": self._embeddings},
        }

    def forget(self) -> None:
        """The catalogue or the keys have changed: resolve every URL and every caller anew."""
        self._routes.clear()
        self._generation = object()

    def handle(self, exchange: Exchange) -> None:
        """Answer one exchange, now or later."""
        try:
            head = exchange.head
            if head is not None:
                memory = head.memory
                if memory is not None and memory.generation is self._generation:
                    memory.target.start(exchange, memory.bound)
                    return
            if self._requires_key and not exchange.url.startswith(_HEALTH):
                self._callers.read(exchange.headers)  # before anything that would tell what there is
            route = self._routes.get((exchange.method, exchange.url))
            if route is None:
                route = self._resolve(exchange)
            route(exchange)
        except PenstockError as error:
            self._answer_error(exchange, error)
        except Exception as error:  # noqa: BLE001 - one request's bug must not take its neighbours' connection down
            self._on_bug(error)
            if exchange.work is not None:
                exchange.work.abandon()  # it must not answer a second time
            if not exchange.is_answered:
                exchange.respond(500, self.encode_refusal(exchange.url, 500, "internal error; please report it"))

    def encode_refusal(self, url: bytes, status: int, message: str) -> bytes:
        """Write an error in the form of the protocol `url` belongs to."""
        if url.startswith(b"/v1/"):
            return openai.encode_openai_error(message, status)
        return encode_error(message)

    def _answer_error(self, exchange: Exchange, error: PenstockError) -> None:
        if exchange.url.startswith(b"/v1/"):
            param, code = getattr(error, "param", None), getattr(error, "code", None)
            body = openai.encode_openai_error(error.message, error.status, param=param, code=code)
        else:
            body = encode_error(error.message)
        exchange.respond(error.status, body, headers=getattr(error, "headers", b""))

    # -- resolving -----------------------------------------------------------------------------------------------

    def _resolve(self, exchange: Exchange) -> _Route:
        path = exchange.url.partition(b"?")[0]
        if path.startswith((b"http://", b"https://")):  # absolute form, which proxies use (RFC 9112 section 3.2.2)
            path = b"/" + path.partition(b"://")[2].partition(b"/")[2]
        if len(path) > 1:
            path = path.rstrip(b"/")
        methods = self._fixed.get(path) or self._resolve_model(path)
        if methods is None:
            raise _error(404, f"no such route: {_shown(path)}; GET /v2 tells what is served")
        route = methods.get("GET" if exchange.method == "HEAD" else exchange.method)
        if route is None:
            allowed = ", ".join(sorted({*methods, "HEAD"} if "GET" in methods else methods))
            error = _error(405, f"expected {allowed}, got {exchange.method}")
            error.headers = b"allow: %b\r\n" % allowed.encode()
            raise error
        if len(exchange.url) <= ROUTE_URL_BYTES_MAX:
            if len(self._routes) >= ROUTES_MAX:
                self._routes.clear()
            self._routes[exchange.method, exchange.url] = route
        return route

    def _resolve_model(self, path: bytes) -> dict[str, _Route] | None:
        """Resolve `/v2/models/NAME[/versions/VERSION][/VERB]` and `/v1/models/NAME`."""
        if path.startswith(b"/v1/models/"):
            name = _unquote(path.removeprefix(b"/v1/models/"))
            return {"GET": lambda exchange: self._openai_model(exchange, name)}
        if not path.startswith(b"/v2/models/"):
            return None
        parts = path.removeprefix(b"/v2/models/").split(b"/")
        name = _unquote(parts[0])
        rest = parts[1:]
        version: str | None = None
        if rest and rest[0] == b"versions":
            if len(rest) < 2 or not rest[1].isdigit():
                raise InvalidInput(f"model version: expected digits, got {_shown(b'/'.join(rest[1:2]))!r}")
            version = rest[1].decode()
            rest = rest[2:]
        verb = rest[0] if rest else b""
        if len(rest) > 1:
            return None
        return self._model_routes(verb, name, version)

    def _model_routes(self, verb: bytes, name: str, version: str | None) -> dict[str, _Route] | None:
        if verb == b"infer":
            return {"POST": self._infer_route(name, version)}
        if verb == b"":
            return {"GET": lambda exchange: self._model_metadata(exchange, name, version)}
        if verb == b"ready":
            return {"GET": lambda exchange: self._model_ready(exchange, name, version)}
        if verb == b"config":
            return {"GET": lambda exchange: self._model_config(exchange, name, version)}
        if verb == b"stats":
            return {"GET": lambda exchange: self._statistics(exchange, name, version)}
        return None

    def _find(self, name: str, version: str | None) -> Model:
        model = self._catalogue.find(name, version)
        if model is not None:
            return model
        if not self._catalogue.is_known:
            raise _error(503, "the catalogue has not arrived yet; retry", retry_after_s=LOADING_RETRY_S)
        known = ", ".join(sorted(f"{n} (version {v})" for n, v in self._catalogue.models)) or "none"
        wanted = f"{name!r}" if version is None else f"{name!r} version {version}"
        error = _error(404, f"no such model: {wanted}; served: {known}")
        error.code = "model_not_found"
        raise error

    def _loaded(self, name: str, version: str | None) -> Model:
        model = self._find(name, version)
        if model.spec is None:
            why = f": {model.entry.reason}" if model.entry.reason else ""
            raise _error(503, f"model {name!r} is {model.entry.state}{why}", retry_after_s=LOADING_RETRY_S)
        return model

    # -- inference -----------------------------------------------------------------------------------------------

    def _infer_route(self, name: str, version: str | None) -> _Route:
        model = self._loaded(name, version)
        assert model.codec is not None
        assert model.batcher is not None
        target = Target(model.codec, model.batcher, self._limiter, self._now_us)
        model_name = model.entry.name

        def infer(exchange: Exchange) -> None:
            try:
                caller = self._callers.read(exchange.headers)
                check_model(caller.principal, model_name)
            except CallerError as error:
                target.refuse(exchange, error, getattr(error, "headers", b""))
                return
            bound = target.bind(caller, self._limiter.plan(caller.principal, model_name))
            if exchange.head is not None:
                exchange.head.memory = _Memory(self._generation, target, bound)
            target.start(exchange, bound)

        return infer

    def _embeddings(self, exchange: Exchange) -> None:
        request = openai.decode_embeddings_request(exchange.body)
        model = self._loaded(request.model, None)
        assert model.spec is not None
        assert model.batcher is not None
        if model.spec.task != "embedding":
            raise InvalidInput(f"model {request.model!r} does not embed; use /v2/models/{request.model}/infer")
        openai.check_dimensions(model.spec, request.dimensions)
        if request.tokens and "token_ids" not in {t.name for t in model.spec.inputs}:
            raise InvalidInput(f"input: expected text, model {request.model!r} takes no token ids")
        caller = self._callers.read(exchange.headers)
        check_model(caller.principal, request.model)
        plan = self._limiter.plan(caller.principal, request.model)
        Embedding(exchange, request, model.batcher, caller, plan, self._now_us).start(self._limiter)

    # -- documents -----------------------------------------------------------------------------------------------

    def _server_metadata(self, exchange: Exchange) -> None:
        exchange.respond(200, oip_documents.encode_server_metadata(self._version))

    def _live(self, exchange: Exchange) -> None:
        exchange.respond(200, oip_documents.encode_health_live(live=True))

    def _ready(self, exchange: Exchange) -> None:
        ready = self._catalogue.is_ready and not self.is_draining
        exchange.respond(200 if ready else 503, oip_documents.encode_health_ready(ready=ready))

    def _model_ready(self, exchange: Exchange, name: str, version: str | None) -> None:
        ready = self._catalogue.is_model_ready(self._find(name, version)) and not self.is_draining
        exchange.respond(200 if ready else 503, oip_documents.encode_model_ready(name, ready=ready))

    def _model_metadata(self, exchange: Exchange, name: str, version: str | None) -> None:
        model = self._loaded(name, version)
        assert model.spec is not None
        exchange.respond(200, oip_documents.encode_model_metadata(model.spec, self._catalogue.versions(name)))

    def _model_config(self, exchange: Exchange, name: str, version: str | None) -> None:
        model = self._loaded(name, version)
        assert model.spec is not None
        exchange.respond(200, oip_documents.encode_model_config(model.spec, replica_count=len(model.links)))

    def _statistics(self, exchange: Exchange, name: str | None, version: str | None) -> None:
        if name is not None:
            self._find(name, version)
        keys = sorted((n, v) for n, v in self._catalogue.models if name in (None, n) and version in (None, v))

        def answer(statistics: GatewayStatistics) -> None:
            # The client may have gone while the head was asked.
            if not exchange.is_answered:
                entries = [(n, v, statistics.models.get(f"{n}:{v}") or ModelStatistics()) for n, v in keys]
                exchange.respond(200, oip_documents.encode_model_statistics(entries))

        self._query_statistics(answer)

    def _repository_index(self, exchange: Exchange) -> None:
        ready_only = oip_documents.decode_repository_index_request(exchange.body)
        entries = [model.entry for _, model in sorted(self._catalogue.models.items())]
        exchange.respond(200, oip_documents.encode_repository_index(entries, ready_only=ready_only))

    def _openai_models(self, exchange: Exchange) -> None:
        exchange.respond(200, openai.encode_models(sorted(self._catalogue.latest), self._started_s))

    def _openai_model(self, exchange: Exchange, name: str) -> None:
        self._find(name, None)
        exchange.respond(200, openai.encode_model(name, self._started_s))


class _RouteError(CallerError):
    """An error with further headers and OpenAI's code."""

    headers: bytes = b""
    code: str | None = None


def _error(status: int, message: str, *, retry_after_s: int = 0) -> _RouteError:
    error = _RouteError(message, status=status)
    if retry_after_s:
        error.headers = b"retry-after: %d\r\nretry-after-ms: %d\r\n" % (retry_after_s, retry_after_s * 1_000)
    return error


def _shown(text: bytes) -> str:
    return text[:256].decode("ascii", "backslashreplace")


def _unquote(segment: bytes) -> str:
    return unquote_to_bytes(segment).decode("utf-8", "replace")
