"""How a registry is told who we are: by a Bearer token fetched for the purpose, or by name and password (Basic).

Source: the distribution project's "Token Authentication Specification", and RFC 7235 for the challenge.
"""

from __future__ import annotations

import base64
import re
from typing import Any

import httpx

from mlpacker_runtime.package import parse_json

from ..errors import BadInput, StoreFailed
from .credentials import Login

MAX_TOKEN_BYTES = 1 << 20
PARAMETER = re.compile(r'([A-Za-z_]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s",]+))')


class Authorisation:
    """What to send along, once a challenge has told how. A password goes to the registry and to the realm it names, only."""

    def __init__(
        self, host: str, scope: str, login: Login | None, base: httpx.URL, client: httpx.Client
    ) -> None:
        self._host = host
        self._scope = scope
        self._login = login
        self._base = base
        self._client = client
        self._header: str | None = None

    @property
    def who(self) -> str:
        return (
            repr(self._login.username or "the token's owner") if self._login else "somebody without a login"
        )

    def headers(self, url: httpx.URL) -> dict[str, str]:
        """For a request there. An upload may be sent elsewhere; who we are is nobody else's business."""
        ours = (url.scheme, url.host, url.port) == (self._base.scheme, self._base.host, self._base.port)
        return {"Authorization": self._header} if self._header and ours else {}

    def answer(self, response: httpx.Response) -> bool:
        """Get ready to answer a 401. False where there is nothing (new) to say."""
        before = self._header
        scheme, said = parse_challenge(response.headers.get("WWW-Authenticate", ""))
        if scheme == "bearer" and "realm" in said:
            self._header = f"Bearer {self._token(said)}"
            return True  # a token that ran out is replaced; one refused at once ends in the second 401
        if scheme == "basic" and self._login is not None and not self._login.identity_token:
            self._header = _basic(self._login)
        return self._header != before

    def _token(self, said: dict[str, str]) -> str:
        realm = self._realm(said["realm"])
        asked = {"scope": said.get("scope", self._scope)} | (
            {"service": said["service"]} if "service" in said else {}
        )
        if self._login is not None and self._login.identity_token:
            form = {**asked, "grant_type": "refresh_token", "client_id": "mlpacker"}
            form["refresh_token"] = self._login.identity_token
            response = self._client.post(realm, data=form)
        else:
            headers = {"Authorization": _basic(self._login)} if self._login else {}
            response = self._client.get(realm.copy_merge_params(asked), headers=headers)
        if response.status_code in (401, 403):
            raise StoreFailed(
                f"{self._host} refuses the login of {self.who}.",
                f"Log in: podman login {self._host}, or docker login {self._host}.",
                status=response.status_code,
                host=self._host,
            )
        return self._token_in(response)

    def _realm(self, text: str) -> httpx.URL:
        try:
            realm = httpx.URL(text)
        except httpx.InvalidURL as cause:
            raise StoreFailed(f"{self._host} names no place to log in.") from cause
        if self._login is not None and realm.scheme != "https" and self._base.scheme == "https":
            raise StoreFailed(f"{self._host} wants the login sent to {realm.host} without TLS; it is not.")
        return realm

    def _token_in(self, response: httpx.Response) -> str:
        if response.status_code != 200 or len(response.content) > MAX_TOKEN_BYTES:
            raise StoreFailed(
                f"{self._host} gives no token: its login service answered {response.status_code}."
            )
        try:
            value: Any = parse_json(response.content, "The token", MAX_TOKEN_BYTES)
        except BadInput as cause:
            raise StoreFailed(f"{self._host} gives no token, but something else.") from cause
        token = (value.get("token") or value.get("access_token")) if isinstance(value, dict) else None
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise StoreFailed(f"{self._host} gives no token, but something else.")
        return token


def _basic(login: Login) -> str:
    return "Basic " + base64.b64encode(f"{login.username}:{login.password}".encode()).decode()


def parse_challenge(header: str) -> tuple[str, dict[str, str]]:
    """The scheme, in lower case, and the parameters of a WWW-Authenticate header's first challenge."""
    scheme, _, rest = header.strip().partition(" ")
    said: dict[str, str] = {}
    for name, quoted, plain in PARAMETER.findall(rest):
        said.setdefault(name.lower(), re.sub(r"\\(.)", r"\1", quoted) or plain)
    return scheme.lower(), said
