"""Logins are found where docker and podman put them, and a secret never stands in a message."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest

from mlpacker.errors import StoreFailed
from mlpacker.stores.credentials import Login, auth_files, find_login, keys, login_in

SECRET = "s3cret:with:colons"


def encoded(user: str, password: str = SECRET) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()


def put(place: Path, value: Any) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(value if isinstance(value, str) else json.dumps(value))


def auths(**entries: str) -> dict[str, Any]:
    return {"auths": {host.replace("_", "."): {"auth": encoded(user)} for host, user in entries.items()}}


def found(home: Path, environ: dict[str, str] | None = None, repository: str = "team/iris") -> Login | None:
    return find_login("h.x", repository, environ or {}, home)


def test_without_any_file_there_is_no_login(tmp_path: Path) -> None:
    assert found(tmp_path) is None


def test_the_files_are_looked_through_in_podmans_order_then_dockers(tmp_path: Path) -> None:
    environ = {"REGISTRY_AUTH_FILE": "/a/auth.json", "XDG_RUNTIME_DIR": "/run/user/1", "DOCKER_CONFIG": "/d"}
    assert list(auth_files(environ, tmp_path)) == [
        Path("/a/auth.json"),
        Path("/run/user/1/containers/auth.json"),
        tmp_path / ".config/containers/auth.json",
        Path("/d/config.json"),
    ]
    assert list(auth_files({}, tmp_path)) == [
        Path(f"/run/containers/{os.getuid()}/auth.json"),
        tmp_path / ".config/containers/auth.json",
        tmp_path / ".docker/config.json",
    ]


def test_the_first_file_that_has_the_host_wins(tmp_path: Path) -> None:
    put(tmp_path / ".config/containers/auth.json", auths(other_x="nobody"))
    put(tmp_path / ".docker/config.json", auths(h_x="docker"))
    assert found(tmp_path) == Login("docker", SECRET)
    put(tmp_path / ".config/containers/auth.json", auths(h_x="podman"))
    assert found(tmp_path) == Login("podman", SECRET)


def test_the_most_particular_entry_wins(tmp_path: Path) -> None:
    entries = {k: {"auth": encoded(k)} for k in ("h.x", "h.x/team", "h.x/team/iris", "h.x/te")}
    put(tmp_path / ".docker/config.json", {"auths": entries})
    for repository, key in (("team/iris", "h.x/team/iris"), ("team/wine", "h.x/team"), ("t/a", "h.x")):
        assert found(tmp_path, repository=repository) == Login(key, SECRET)


def test_every_way_docker_has_written_a_host_is_known() -> None:
    assert list(keys("h.x", "a/b"))[:3] == ["h.x/a/b", "h.x/a", "h.x"]
    assert "https://h.x/v1/" in keys("h.x", "a")
    assert "https://index.docker.io/v1/" in keys("docker.io", "a")
    assert "https://index.docker.io/v1/" not in keys("h.x", "a")


@pytest.mark.parametrize(
    ("entry", "login"),
    [
        ({"auth": encoded("me")}, Login("me", SECRET)),
        ({"auth": encoded("me", "") }, Login("me", "")),
        ({"username": "me", "password": SECRET}, Login("me", SECRET)),
        ({"auth": encoded("me"), "identitytoken": "long"}, Login("me", identity_token="long")),
        ({"identitytoken": "long"}, Login("", identity_token="long")),
        ({}, None),
        ({"auth": ""}, None),
        ("what", None),
    ],
)  # fmt: skip
def test_an_entry_gives_its_login(entry: Any, login: Login | None) -> None:
    assert login_in({"auths": {"h.x": entry}}, "h.x", "a", {}, "file") == login


def test_a_secret_is_not_shown_with_its_login() -> None:
    assert SECRET not in repr(Login("me", SECRET, SECRET))


@pytest.mark.parametrize(
    "content",
    [f"{{'{SECRET}'", f'["{SECRET}"]', json.dumps({"auths": {"h.x": {"auth": f"{SECRET}!"}}}), '{"auths": {"h.x": {"auth": "czNjcmV0"}}}', "[" * 100_000],
)  # fmt: skip
def test_a_broken_file_is_named_and_not_quoted(tmp_path: Path, content: str) -> None:
    put(tmp_path / ".docker/config.json", content)
    with pytest.raises(StoreFailed, match=r"\.docker/config\.json") as error:
        found(tmp_path)
    shown = f"{error.value} {error.value.__cause__!r} {'' if error.value.__suppress_context__ else error.value.__context__!r}"
    assert "s3cret" not in shown


def test_an_empty_file_is_no_login(tmp_path: Path) -> None:
    put(tmp_path / ".docker/config.json", "")
    assert found(tmp_path) is None


# --- helpers


def helper(folder: Path, script: str) -> dict[str, str]:
    put(folder / "docker-credential-keys", f"#!/bin/sh\n{script}\n")
    (folder / "docker-credential-keys").chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def test_a_helper_is_asked_on_stdin_for_the_host(tmp_path: Path) -> None:
    environ = helper(
        tmp_path / "bin", 'read -r host; echo "{\\"Username\\": \\"$1-$#-$host\\", \\"Secret\\": \\"x\\"}"'
    )
    put(
        tmp_path / ".docker/config.json",
        {"credHelpers": {"h.x": "keys"}, "auths": {"h.x": {"auth": encoded("no")}}},
    )
    assert found(tmp_path, environ) == Login("get-1-h.x", "x")


def test_a_helper_may_answer_with_an_identity_token(tmp_path: Path) -> None:
    environ = helper(tmp_path / "bin", 'echo \'{"Username": "<token>", "Secret": "long"}\'')
    put(tmp_path / ".docker/config.json", {"credsStore": "keys"})
    assert found(tmp_path, environ) == Login("", identity_token="long")


def test_a_helper_that_knows_no_login_is_no_error(tmp_path: Path) -> None:
    environ = helper(tmp_path / "bin", "echo 'credentials not found in native keychain'; exit 1")
    put(tmp_path / ".docker/config.json", {"credsStore": "keys"})
    assert found(tmp_path, environ) is None


@pytest.mark.parametrize(
    "script",
    [
        f"echo {SECRET}; exit 3",
        f"echo {SECRET}",
        f"echo '[\"{SECRET}\"]'",
        f'echo \'{{"Secret": "{SECRET}"}}\'',
    ],
)
def test_a_helper_that_fails_is_named_and_not_quoted(tmp_path: Path, script: str) -> None:
    environ = helper(tmp_path / "bin", script)
    put(tmp_path / ".docker/config.json", {"credsStore": "keys"})
    with pytest.raises(StoreFailed, match="docker-credential-keys") as error:
        found(tmp_path, environ)
    assert SECRET not in str(error.value)


@pytest.mark.parametrize("name", ["../evil", "/bin/sh", "a b", "-x", "a;b"])
def test_a_helpers_name_is_a_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreFailed, match="no name of a credential helper"):
        login_in({"credsStore": name}, "h.x", "a", {}, "file")


def test_a_helper_that_is_not_installed_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(StoreFailed, match="not on PATH"):
        login_in({"credsStore": "nowhere"}, "h.x", "a", {"PATH": str(tmp_path)}, "file")
