"""What a stream says over HTTP: its numbers, whether it lives, and where it stands. No way in for rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from ..rest import JSON, Request, Response
from ..telemetry.numbers import CONTENT_TYPE


class Door:
    """Answers requests as `rest.connection` wants it."""

    def __init__(
        self, text: Callable[[], str], state: Callable[[], Mapping[str, object]], ready: Callable[[], bool]
    ) -> None:
        self.text = text
        self.state = state
        self.ready = ready

    def handle(self, request: Request, respond: Callable[[Response], None]) -> None:
        respond(self._answer(request))

    def _answer(self, request: Request) -> Response:
        if request.method not in ("GET", "HEAD"):
            return _error(405, f"{request.path} takes GET, not {request.method}.")
        if request.path == "/metrics":
            return Response(200, self.text().encode(), CONTENT_TYPE)
        if request.path in ("/v2/health/live", "/ping", "/health"):
            return Response(200, b'{"live":true}', JSON)
        if request.path == "/v2/health/ready":
            ready = self.ready()
            return Response(200 if ready else 503, json.dumps({"ready": ready, "live": True}).encode(), JSON)
        if request.path in ("/", "/status"):
            return Response(200, json.dumps(self.state()).encode(), JSON)
        return _error(
            404,
            f"There is no {request.path}: a stream has /metrics, /status, /v2/health/live and /v2/health/ready.",
        )


def _error(status: int, sentence: str) -> Response:
    return Response(status, json.dumps({"error": sentence}).encode(), JSON)
