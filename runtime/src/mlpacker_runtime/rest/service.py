"""Which route answers a request, and with what status. Knows no sockets: a Request comes in, a Response is handed back."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple, Protocol
from urllib.parse import unquote

from .. import __version__
from ..batch import Outcome
from ..batching import Batcher, Overloaded, Ticket
from ..errors import BadInput, MlpackerError, ModelFailed
from ..telemetry.metrics import CONTENT_TYPE
from . import Asked, Rejected, Request, Response, Served, invocations, openapi, page, plain, v2
from .answers import dumps
from .keys import Keys
from .rows import Reader

TEXT = "text/plain; charset=utf-8"
Respond = Callable[[Response], None]
EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "statistics")
ROUTES = (
    "infer",
    "predict",
    "invocations",
    "index",
    "server",
    "live",
    "ready",
    "ping",
    "health",
    "version",
    "metrics",
    "docs",
    "openapi",
    "models",
    "model",
    "model_ready",
    "stats",
    "config",
    "repository",
    "unknown",
    "connection",
)
"""As metrics call them; `connection` is what was refused before any route was known."""
OFF = (
    "Loading and unloading models is off here: this server serves one package. Run another with mlpacker run."
)


class Told(Protocol):
    """Who is told of each request and each outcome, to count them."""

    def request(self, route: str, status: int, seconds: float) -> None: ...

    def rows(self, answered: int, dropped: int, failed: int) -> None: ...

    def text(self) -> str: ...

    def statistics(self) -> Mapping[str, Any]: ...


class Route(NamedTuple):
    """name: as metrics call it. answer: for a plain route. protocol: for one that asks the model. open: needs no key."""

    name: str
    methods: tuple[str, ...]
    answer: Callable[[Request], Response] | None = None
    protocol: ModuleType | None = None
    open: bool = False


class Service:
    """All routes of one served package."""

    def __init__(
        self,
        served: Served,
        batcher: Batcher,
        *,
        keys: Keys | None = None,
        told: Told | None = None,
        healthy: Callable[[], bool] = lambda: True,
        log: Callable[..., None] = lambda *a, **k: None,
        limit_rows: int = 0,
        access_log: bool = False,
    ) -> None:
        """limit_rows: in one request, 0 for any number. access_log: a line of log for each request."""
        self.served = served
        self.batcher = batcher
        self.keys = keys
        self.told = told
        self.healthy = healthy
        self.log = log
        self.limit_rows = limit_rows
        self.access_log = access_log
        self.draining = False
        self.reader = Reader(served.inputs)
        self.models = {served.name}
        self.routes = self._routes()
        self._page: bytes | None = None
        self._described: dict[str, Any] | None = None

    # --- the way of a request ---------------------------------------------------------------------------------------

    def handle(self, request: Request, respond: Respond) -> Ticket | None:
        """Answer, now or later, exactly once. What comes back can be cancelled while the answer is not there."""
        began = time.perf_counter()
        route = self.routes.get(request.path) or self._model_route(request.path)
        try:
            self._allow(route, request)
            if route.protocol is not None:
                return self._ask(route, request, respond, began)
            assert route.answer is not None
            response = route.answer(request)
        except Exception as cause:  # noqa: BLE001  whatever it is, the client is answered and the server lives on
            response = self._refusal(route, cause)
        self._hand(route, response, respond, began)
        return None

    def _allow(self, route: Route, request: Request) -> None:
        if self.keys is not None and not route.open and not self.keys.allow(request):
            raise Rejected(
                401,
                "A key is needed: send it as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'.",
                (("WWW-Authenticate", 'Basic realm="key as password", charset="UTF-8"'),),
            )
        if request.method not in route.methods and not (request.method == "HEAD" and "GET" in route.methods):
            allowed = ", ".join(route.methods)
            raise Rejected(
                405, f"{request.path} takes {allowed}, not {request.method}.", (("Allow", allowed),)
            )

    def _ask(self, route: Route, request: Request, respond: Respond, began: float) -> Ticket:
        protocol = route.protocol
        assert protocol is not None
        asked: Asked = protocol.ask(self.served, self.reader, request)
        if self.limit_rows and asked.count > self.limit_rows:
            raise Rejected(
                413, f"The request has {asked.count} rows; this server takes {self.limit_rows} at once."
            )
        if asked.errors and not asked.partial:
            raise BadInput(_first_of(asked.errors))

        def done(outcome: Outcome | Exception) -> None:
            try:
                response = self._outcome(protocol, asked, outcome)
            except Exception as cause:  # noqa: BLE001  as above
                response = self._refusal(route, cause)
            self._hand(route, response, respond, began)

        return self.batcher.submit(asked.batch, asked.want, done)

    def _outcome(self, protocol: ModuleType, asked: Asked, outcome: Outcome | Exception) -> Response:
        if isinstance(outcome, Exception):
            raise outcome
        if self.told is not None:
            self._tell_rows(asked, outcome)
        if outcome.errors and not asked.partial:
            if not self.healthy():
                raise Rejected(
                    503,
                    f"{_first_of(outcome.errors)} A part of the pipeline is being started again.",
                    (("Retry-After", "2"),),
                )
            raise BadInput(_first_of(outcome.errors))
        response: Response = protocol.answer(self.served, asked, outcome)
        return response

    def _tell_rows(self, asked: Asked, outcome: Outcome) -> None:
        assert self.told is not None
        failed = len(outcome.errors) + len(asked.errors)
        rows = outcome.batch.rows
        answered = len(rows) if len(rows) < 2 else len(set(rows.tolist()))
        self.told.rows(answered, asked.count - answered - failed, failed)

    def _hand(self, route: Route, response: Response, respond: Respond, began: float) -> None:
        if self.told is not None:
            self.told.request(route.name, response.status, time.perf_counter() - began)
        if self.access_log:
            milliseconds = round((time.perf_counter() - began) * 1e3, 2)
            self.log("request", route=route.name, status=response.status, ms=milliseconds)
        respond(response)

    def _refusal(self, route: Route, cause: Exception) -> Response:
        status, sentence, headers = status_of(cause)
        if status >= 500 and status != 503:
            self.log("failed", route=route.name, reason=f"{type(cause).__name__}: {cause}", level="error")
        response = (
            invocations.refuse(status, sentence)
            if route.name == "invocations"
            else Response(status, v2.refuse(sentence))
        )
        response.headers = headers
        return response

    # --- routes -----------------------------------------------------------------------------------------------------

    def _routes(self) -> dict[str, Route]:
        get, post = ("GET",), ("POST",)
        routes = {
            "/": Route("index", get, self._index),
            "/v2": Route("server", get, self._server),
            "/v2/health/live": Route("live", get, self._live, open=True),
            "/v2/health/ready": Route("ready", get, self._ready, open=True),
            "/ping": Route("ping", get, self._ping, open=True),
            "/health": Route("health", get, self._ping, open=True),
            "/version": Route("version", get, lambda _: Response(200, __version__.encode(), TEXT)),
            "/v2/models": Route("models", get, lambda _: _json({"models": [self.served.name]})),
            "/metrics": Route("metrics", get, self._metrics),
            "/docs": Route("docs", get, self._docs),
            "/openapi.json": Route("openapi", get, self._openapi),
            "/v2/models/stats": Route("stats", get, self._stats),
            "/v2/repository/index": Route("repository", post, self._repository),
            "/predict": Route("predict", post, protocol=plain),
            "/invocations": Route("invocations", post, protocol=invocations),
        }
        for base in (
            f"/v2/models/{self.served.name}",
            f"/v2/models/{self.served.name}/versions/{self.served.version}",
        ):
            routes[f"{base}/infer"] = Route("infer", post, protocol=v2)
        return routes

    def _model_route(self, path: str) -> Route:
        """Routes that name a model, quoted perhaps, and perhaps unknown."""
        parts = [unquote(p) for p in path.strip("/").split("/")]
        if parts[:2] == ["v2", "models"] and len(parts) >= 3:
            name, rest = parts[2], parts[3:]
            version = None
            if len(rest) >= 2 and rest[0] == "versions":
                version, rest = rest[1], rest[2:]
            return self._of_model(name, version, "/".join(rest))
        if parts[:3] == ["v2", "repository", "models"] and len(parts) == 5 and parts[4] in ("load", "unload"):
            return Route("repository", ("POST",), _refuse_loading)
        clean = path.rstrip("/")
        if clean != path and clean in self.routes:
            return self.routes[clean]
        return Route(
            "unknown", ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "TRACE"), _unknown
        )

    def _of_model(self, name: str, version: str | None, what: str) -> Route:
        get = ("GET",)
        if name not in self.models or version not in (None, self.served.version, self.served.digest):
            said = repr(name) if version is None else f"{name!r} version {version!r}"
            return Route(
                "unknown",
                ("GET", "POST"),
                _rejecting(404, f"Request for unknown model: {said} is not found."),
            )
        routes = {
            "": Route("model", get, self._model),
            "ready": Route("model_ready", get, self._model_ready),
            "infer": Route("infer", ("POST",), protocol=v2),
            "stats": Route("stats", get, self._stats),
            "config": Route("config", get, self._config),
        }
        return routes.get(what) or Route("unknown", ("GET", "POST"), _unknown)

    def _index(self, _: Request) -> Response:
        return _json(
            {
                "name": self.served.name,
                "version": self.served.version,
                "digest": self.served.digest,
                "docs": "/docs",
                "openapi": "/openapi.json",
                "predict": "/predict",
                "infer": f"/v2/models/{self.served.name}/infer",
            }
        )

    def _metrics(self, _: Request) -> Response:
        if self.told is None:
            raise Rejected(404, "Nothing is counted here.")
        return Response(200, self.told.text().encode(), CONTENT_TYPE)

    def _docs(self, _: Request) -> Response:
        if self._page is None:
            self._page = page.write(self.served, self._description())
        return Response(200, self._page, "text/html; charset=utf-8", page.HEADERS)

    def _openapi(self, _: Request) -> Response:
        return _json(self._description())

    def _description(self) -> dict[str, Any]:
        if self._described is None:
            self._described = openapi.describe(self.served, self.reader, guarded=self.keys is not None)
        return self._described

    def _server(self, _: Request) -> Response:
        return _json({"name": "mlpacker", "version": __version__, "extensions": list(EXTENSIONS)})

    def _live(self, _: Request) -> Response:
        return _json({"live": True})

    def _is_ready(self) -> bool:
        return not self.draining and self.healthy()

    def _ready(self, _: Request) -> Response:
        ready = self._is_ready()
        return _json({"ready": ready, "live": True}, 200 if ready else 503)

    def _ping(self, _: Request) -> Response:
        return Response(200, b"\n", TEXT) if self._is_ready() else Response(503, b"not ready\n", TEXT)

    def _model(self, _: Request) -> Response:
        served = self.served
        return _json(
            {
                "name": served.name,
                "versions": [served.version],
                "platform": "mlpacker",
                "inputs": v2.metadata_of(served.inputs),
                "outputs": v2.metadata_of(served.outputs),
                "parameters": {"digest": served.digest} if served.digest else {},
            }
        )

    def _model_ready(self, _: Request) -> Response:
        ready = self._is_ready()
        return _json({"name": self.served.name, "ready": ready}, 200 if ready else 503)

    def _stats(self, _: Request) -> Response:
        counted = dict(self.told.statistics()) if self.told is not None else {}
        return _json({"model_stats": [{"name": self.served.name, "version": self.served.version, **counted}]})

    def _config(self, _: Request) -> Response:
        def tensors(fields: Any) -> list[dict[str, Any]]:
            return [
                {
                    "name": t["name"],
                    "data_type": "TYPE_STRING" if t["datatype"] == "BYTES" else f"TYPE_{t['datatype']}",
                    "dims": t["shape"][1:] or [1],
                }
                for t in v2.metadata_of(fields)
            ]

        limits = self.batcher.limits
        return _json(
            {
                "name": self.served.name,
                "platform": "mlpacker",
                "backend": "mlpacker",
                "max_batch_size": limits.batch_rows if self.batcher.shares else 0,
                "input": tensors(self.served.inputs),
                "output": tensors(self.served.outputs),
                "dynamic_batching": {"max_queue_delay_microseconds": 0},
            }
        )

    def _repository(self, _: Request) -> Response:
        ready = self._is_ready()
        entry = {
            "name": self.served.name,
            "version": self.served.version,
            "state": "READY" if ready else "UNAVAILABLE",
            "reason": "",
        }
        return _json([entry])


def _json(value: Any, status: int = 200) -> Response:
    return Response(status, dumps(value))


def _rejecting(status: int, sentence: str) -> Callable[[Request], Response]:
    def answer(_: Request) -> Response:
        raise Rejected(status, sentence)

    return answer


_refuse_loading = _rejecting(403, OFF)


def _unknown(request: Request) -> Response:
    raise Rejected(404, f"There is nothing at {request.path[:200]}. GET /docs lists what there is.")


def _first_of(errors: Mapping[int, str]) -> str:
    """The first failed row's reason, with the row named."""
    row = min(errors)
    reason = errors[row]
    more = f" ({len(errors) - 1} more rows failed.)" if len(errors) > 1 else ""
    return (reason if reason.startswith("Row ") else f"Row {row}: {reason}") + more


def status_of(cause: Exception) -> tuple[int, str, tuple[tuple[str, str], ...]]:
    """Which status an exception is, its sentence, and headers."""
    if isinstance(cause, Rejected):
        return cause.status, cause.sentence, cause.headers
    if isinstance(cause, BadInput):
        return 400, str(cause), ()
    if isinstance(cause, Overloaded):
        return 503, str(cause), (("Retry-After", str(cause.facts["retry_after"])),)
    if isinstance(cause, ModelFailed):
        return 500, str(cause), ()
    if isinstance(cause, MlpackerError):
        return 500, str(cause), ()
    if isinstance(cause, MemoryError):
        return 413, "The request needs more memory than there is.", ()
    return 500, f"The server failed on this request: {type(cause).__name__}.", ()
