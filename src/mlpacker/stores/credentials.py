"""Logins to registries, as `podman login` and `docker login` leave them: in auth files, or with a credential helper.

Read in podman's order (containers-auth.json(5)), then docker's. Nothing is ever written, and a password stands in no
message, argument list or log.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import StoreFailed

MAX_FILE_BYTES = 4 << 20
HELPER_SECONDS = 60
HELPER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
TOKEN_USER = "<token>"  # noqa: S105 (what a helper answers as user where the secret is an identity token)
DOCKER_HUB = "docker.io"
DOCKER_HUB_KEY = "https://index.docker.io/v1/"


@dataclass(frozen=True)
class Login:
    """Who we are to a registry. identity_token: instead of a password, where the login gave one."""

    username: str
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)


def find_login(host: str, repository: str, environ: Mapping[str, str], home: Path) -> Login | None:
    """The login for a repository, from the first file that has one. Raises StoreFailed where a file or helper is broken."""
    for file in auth_files(environ, home):
        config = _read(file)
        login = login_in(config, host, repository, environ, str(file))
        if login is not None:
            return login
    return None


def auth_files(environ: Mapping[str, str], home: Path) -> Iterator[Path]:
    """Where logins may lie, in order."""
    if environ.get("REGISTRY_AUTH_FILE"):
        yield Path(environ["REGISTRY_AUTH_FILE"])
    if environ.get("XDG_RUNTIME_DIR"):
        yield Path(environ["XDG_RUNTIME_DIR"], "containers", "auth.json")
    else:
        yield Path(
            f"/run/containers/{os.getuid()}/auth.json"
        )  # where podman writes without a session, as root does
    yield Path(environ.get("XDG_CONFIG_HOME") or home / ".config", "containers", "auth.json")
    yield Path(environ.get("DOCKER_CONFIG") or home / ".docker", "config.json")


def _read(file: Path) -> dict[str, Any]:
    try:
        with open(file, "rb") as opened:
            data = opened.read(MAX_FILE_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as cause:
        raise StoreFailed(f"The login file {file} can't be read: {cause.strerror}.") from cause
    try:
        value = json.loads(data) if data.strip() else {}
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or len(data) > MAX_FILE_BYTES:
        # Without the cause: its text would quote the file.
        raise StoreFailed(
            f"The login file {file} is not a JSON object.", "Log in again: podman login, docker login."
        ) from None
    return value


def login_in(
    config: Mapping[str, Any], host: str, repository: str, environ: Mapping[str, str], file: str
) -> Login | None:
    """The login one file has for a repository: its host's helper, else its own entry, else its general helper."""
    helpers = config.get("credHelpers")
    if isinstance(helpers, dict) and isinstance(helpers.get(host), str):
        return ask_helper(helpers[host], _server(host), environ)
    auths = config.get("auths")
    for key in keys(host, repository):
        entry = auths.get(key) if isinstance(auths, dict) else None
        login = _decode(entry, file) if isinstance(entry, dict) else None
        if login is not None:
            return login
    store = config.get("credsStore")
    return ask_helper(store, _server(host), environ) if isinstance(store, str) and store else None


def keys(host: str, repository: str) -> Iterator[str]:
    """What an entry for this repository may be filed under, the most particular first."""
    parts = [host, *repository.split("/")]
    for count in range(len(parts), 0, -1):
        yield "/".join(parts[:count])
    yield from (f"https://{host}", f"http://{host}", f"https://{host}/v1/", f"https://{host}/v2/")
    if host == DOCKER_HUB:
        yield DOCKER_HUB_KEY


def _server(host: str) -> str:
    return DOCKER_HUB_KEY if host == DOCKER_HUB else host


def _decode(entry: Mapping[str, Any], file: str) -> Login | None:
    token = entry.get("identitytoken")
    username, password = entry.get("username"), entry.get("password")
    if isinstance(entry.get("auth"), str) and entry["auth"]:
        try:
            username, colon, password = base64.b64decode(entry["auth"], validate=True).decode().partition(":")
        except (binascii.Error, ValueError):
            colon = ""
        if not colon:
            hint = "Log in again: podman login, docker login."
            raise StoreFailed(f"An entry of the login file {file} is damaged.", hint) from None
        password = str(password).rstrip("\0")
    if isinstance(token, str) and token:
        return Login(username if isinstance(username, str) else "", identity_token=token)
    if isinstance(username, str) and isinstance(password, str) and username:
        return Login(username, password)
    return None


def ask_helper(helper: str, server: str, environ: Mapping[str, str]) -> Login | None:
    """What `docker-credential-<helper> get` answers for a server; None where it knows none. The server goes in by stdin."""
    program = f"docker-credential-{helper}"
    if not HELPER_NAME.fullmatch(helper):
        raise StoreFailed(f"{helper!r} is no name of a credential helper.")
    try:
        done = subprocess.run(
            [program, "get"],
            input=server,
            capture_output=True,
            text=True,
            timeout=HELPER_SECONDS,
            env=dict(environ),
            check=False,
        )
    except FileNotFoundError as cause:
        raise StoreFailed(
            f"The credential helper {program} is not on PATH.", "Install it, or log in without it."
        ) from cause
    except (OSError, ValueError, subprocess.TimeoutExpired) as cause:
        raise StoreFailed(
            f"The credential helper {program} gave no answer: {type(cause).__name__}."
        ) from None
    if done.returncode != 0:
        if "not found" in done.stdout + done.stderr:
            return None
        raise StoreFailed(f"The credential helper {program} failed with exit code {done.returncode}.")
    try:
        value = json.loads(done.stdout)
        username, secret = str(value["Username"]), str(value["Secret"])
    except (ValueError, KeyError, TypeError):
        raise StoreFailed(f"The credential helper {program} gave no login, but something else.") from None
    return Login("", identity_token=secret) if username == TOKEN_USER else Login(username, secret)
