"""Push and pull against a real registry: Debian's docker-registry, open, with passwords, and with tokens."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from mlpacker.errors import BadDescription, BadInput, NotFound, StoreFailed
from mlpacker.stores import digest_of, registry
from mlpacker.stores.archive import load, save
from mlpacker.stores.layout import LayoutStore
from mlpacker.stores.packages import PackageFile, resolve, verify, write_package
from mlpacker.stores.referrers import WHEELS, attach, attach_files, read_referrer, referrers
from mlpacker.stores.registry import Registry, open_registry
from mlpacker.stores.remotes import parse_remote
from mlpacker.stores.transfer import Pulled, Pushed, pull, push

DOCKER_REGISTRY = shutil.which("docker-registry")
pytestmark = pytest.mark.skipif(
    DOCKER_REGISTRY is None, reason="docker-registry is not installed (apt-get install docker-registry)"
)

needs_skopeo = pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")

USER, PASSWORD = "tester", "Geheim-3:x"
HTPASSWD = "tester:$2y$05$jLLISh.S7xjMQMEPTGgDyuNF9zdg7E1sKuOIssb8S4D0KDNOx5EBu\n"
"""bcrypt of the password above, made once with `htpasswd -nbB`."""
FILES = {
    "mlpacker.json": PackageFile(b"{}", "weight.config"),
    "models/f/model.joblib": PackageFile(b"trees" * 100_000),
}
OTHER = {"mlpacker.json": PackageFile(b"{ }", "weight.config")}
PROOF = "application/vnd.mlpacker.proof.v1+json"


@dataclass(frozen=True)
class Running:
    host: str
    folder: Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(folder: Path, auth: str = "", scheme: str = "http", tls: str = "") -> Iterator[Running]:
    port = free_port()
    config = folder / "config.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: warn, accesslog: {{disabled: true}}}}\n"
        f"storage: {{filesystem: {{rootdirectory: {folder}/data}}, delete: {{enabled: true}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'{tls}}}\n{auth}"
    )
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen([str(DOCKER_REGISTRY), "serve", str(config)], stdout=log, stderr=log)
        try:
            for _ in range(200):
                try:
                    httpx.get(f"{scheme}://127.0.0.1:{port}/v2/", verify=False, trust_env=False)
                    break
                except httpx.TransportError:
                    assert process.poll() is None, (folder / "log").read_text()
                    time.sleep(0.05)
            yield Running(f"localhost:{port}", folder)
        finally:
            process.terminate()
            process.wait(20)


@pytest.fixture(scope="module")
def open_to_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("registry")) as it:
        yield it


@pytest.fixture(scope="module")
def with_password(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("registry")
    (folder / "htpasswd").write_text(HTPASSWD)
    with running(folder, f"auth: {{htpasswd: {{realm: test, path: {folder}/htpasswd}}}}\n") as it:
        yield it


@pytest.fixture
def store(tmp_path: Path) -> LayoutStore:
    return LayoutStore(tmp_path / "store")


@pytest.fixture
def elsewhere(tmp_path: Path) -> LayoutStore:
    return LayoutStore(tmp_path / "elsewhere")


@dataclass
class Machine:
    """A user's home and variables."""

    home: Path
    environ: dict[str, str]

    def push(self, store: LayoutStore, digest: str, place: str) -> Pushed:
        with open_registry(parse_remote(place), self.environ, self.home, push=True) as there:
            return push(store, digest, there)

    def pull(self, store: LayoutStore, place: str, move: bool = False) -> Pulled:
        with open_registry(parse_remote(place), self.environ, self.home) as there:
            return pull(store, there, move=move)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "home", {"PATH": os.environ["PATH"]})


# --- open


def test_what_was_pushed_is_pulled_with_everything_that_refers_to_it(
    open_to_all: Running, machine: Machine, store: LayoutStore, elsewhere: LayoutStore
) -> None:
    digest = write_package(store, "iris", "1.0", FILES)
    proof = attach(store, digest, PROOF, b"{}", {"when": "today"})
    attach(store, proof, "application/signature", b"signed")
    attach_files(store, digest, WHEELS, {"a.whl": b"a", "b.whl": b"b"})
    pushed = machine.push(store, digest, f"{open_to_all.host}/models/iris:1.0")
    assert pushed.place == f"{open_to_all.host}/models/iris:1.0@{digest}"
    assert pushed.referrers == 3
    pulled = machine.pull(elsewhere, f"{open_to_all.host}/models/iris:1.0")
    assert (pulled.digest, pulled.ref, pulled.referrers, pulled.skipped) == (digest, "iris:1.0", 3, ())
    assert resolve(elsewhere, "iris:1.0") == digest
    (found,) = referrers(elsewhere, digest, PROOF)
    assert (read_referrer(elsewhere, found), found.annotations) == (b"{}", {"when": "today"})
    assert read_referrer(elsewhere, referrers(elsewhere, proof)[0]) == b"signed"
    assert list(referrers(elsewhere, digest, WHEELS)[0].files) == ["a.whl", "b.whl"]
    assert verify(elsewhere, digest) == verify(store, digest)


def test_what_is_there_already_does_not_travel_again(
    open_to_all: Running, machine: Machine, store: LayoutStore, elsewhere: LayoutStore
) -> None:
    digest = write_package(store, "iris", "1.0", FILES)
    place = f"{open_to_all.host}/twice:1.0"
    assert machine.push(store, digest, place).sent > 500_000
    assert machine.push(store, digest, place).sent == 0
    assert machine.pull(elsewhere, place).received > 500_000
    assert machine.pull(elsewhere, place).received == 0


def test_referrers_pushed_one_by_one_all_stay_listed(
    open_to_all: Running, machine: Machine, store: LayoutStore, elsewhere: LayoutStore
) -> None:
    digest = write_package(store, "iris", "1.0", FILES)
    for n in range(3):
        attach(store, digest, PROOF, str(n).encode())
        machine.push(store, digest, f"{open_to_all.host}/growing:1.0")
    assert machine.pull(elsewhere, f"{open_to_all.host}/growing:1.0").referrers == 3


def test_without_a_tag_the_version_is_pushed_and_latest_pulled(
    open_to_all: Running, machine: Machine, store: LayoutStore, elsewhere: LayoutStore
) -> None:
    place = f"{open_to_all.host}/untagged"
    versioned = write_package(store, "iris", "1.0", FILES)
    assert machine.push(store, versioned, place).place == f"{place}:1.0@{versioned}"
    with pytest.raises(NotFound, match="has no latest"):
        machine.pull(elsewhere, place)
    without = write_package(store, "iris", None, FILES)
    assert machine.push(store, without, place).place == f"{place}:latest@{without}"
    assert machine.pull(elsewhere, place).digest == without
    assert machine.pull(elsewhere, f"{place}@{versioned}").digest == versioned


def test_a_damaged_blob_here_is_mended_by_pulling_again(
    open_to_all: Running, machine: Machine, store: LayoutStore
) -> None:
    digest = write_package(store, "iris", "1.0", FILES)
    place = f"{open_to_all.host}/mended:1.0"
    machine.push(store, digest, place)
    blob = store.root / "blobs" / "sha256" / digest_of(b"trees" * 100_000)[7:]
    blob.unlink()
    blob.write_bytes(b"weeds" * 100_000)
    with pytest.raises(StoreFailed):
        verify(store, digest)
    machine.pull(store, place)
    verify(store, digest)


def test_a_blob_damaged_in_the_registry_is_refused_and_nothing_has_a_name(
    open_to_all: Running, machine: Machine, store: LayoutStore, elsewhere: LayoutStore
) -> None:
    files = {"x": PackageFile(b"to be damaged" * 1000)}
    digest = write_package(store, "iris", "1.0", files)
    machine.push(store, digest, f"{open_to_all.host}/damaged:1.0")
    hexadecimal = digest_of(b"to be damaged" * 1000)[7:]
    there = (
        open_to_all.folder / "data/docker/registry/v2/blobs/sha256" / hexadecimal[:2] / hexadecimal / "data"
    )
    there.write_bytes(b"was it harmed" * 1000)
    with pytest.raises(StoreFailed, match="The bytes are"):
        machine.pull(elsewhere, f"{open_to_all.host}/damaged:1.0")
    assert elsewhere.index() == ()


def test_a_large_file_goes_up_in_pieces(
    open_to_all: Running,
    machine: Machine,
    store: LayoutStore,
    elsewhere: LayoutStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry, "PIECE", 1 << 20)
    data = os.urandom((5 << 19) + 7)
    digest = write_package(store, "iris", "1.0", {"x": PackageFile(data)})
    seen: list[int] = []
    with open_registry(parse_remote(f"{open_to_all.host}/large:1.0"), {}, machine.home, push=True) as there:
        push(store, digest, there, progress=lambda done, _: seen.append(done))
    assert len(seen) >= 4
    assert seen == sorted(seen)
    machine.pull(elsewhere, f"{open_to_all.host}/large:1.0")
    verify(elsewhere, digest)


class Unsteady(httpx.HTTPTransport):
    """A line on which a piece of an upload is lost on its way, then the answer to one, then the answer to the whole."""

    pieces = 0
    ends = 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.pieces += request.method == "PATCH"
        if request.method == "PATCH" and self.pieces == 2:
            raise httpx.WriteError("lost on its way")
        response = super().handle_request(request)
        self.ends += request.method == "PUT" and "/blobs/" in request.url.path
        if (request.method == "PATCH" and self.pieces == 4) or (request.method == "PUT" and self.ends == 1):
            response.read()
            raise httpx.ReadError("the answer was lost")
        return response


def test_an_upload_goes_on_where_the_line_broke(
    open_to_all: Running,
    machine: Machine,
    store: LayoutStore,
    elsewhere: LayoutStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry, "PIECE", 1 << 20)
    digest = write_package(store, "iris", "1.0", {"x": PackageFile(os.urandom(5 << 20))})
    line = Unsteady()
    place = f"{open_to_all.host}/unsteady:1.0"
    with Registry(parse_remote(place), push=True, transport=line, sleep=lambda _: None) as there:
        push(store, digest, there)
    assert line.pieces == 4 + 5, "one piece again, then, since the registry has lost track, all of them"
    machine.pull(elsewhere, place)
    verify(elsewhere, digest)


def test_an_image_of_another_kind_is_no_package(
    open_to_all: Running, machine: Machine, store: LayoutStore
) -> None:
    with open_registry(parse_remote(f"{open_to_all.host}/image"), {}, machine.home, push=True) as there:
        there.put_blob(digest_of(b"{}"), 2, lambda: [b"{}"])
        image = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": digest_of(b"{}"),
                "size": 2,
            },
            "layers": [],
        }
        there.put_manifest("1", json.dumps(image).encode())
    with pytest.raises(BadInput, match="no model package"):
        machine.pull(store, f"{open_to_all.host}/image:1")


def test_a_name_that_is_another_package_here_is_not_taken_over_unless_moved(
    open_to_all: Running, machine: Machine, store: LayoutStore, elsewhere: LayoutStore
) -> None:
    digest = write_package(store, "iris", "1.0", FILES)
    place = f"{open_to_all.host}/taken:1.0"
    machine.push(store, digest, place)
    other = write_package(elsewhere, "iris", "1.0", OTHER)
    with pytest.raises(BadDescription):
        machine.pull(elsewhere, place)
    assert resolve(elsewhere, "iris:1.0") == other
    machine.pull(elsewhere, place, move=True)
    assert resolve(elsewhere, "iris:1.0") == digest


def test_a_registry_that_is_not_there_is_said_so(
    machine: Machine, store: LayoutStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "FIRST_WAIT", 0.0)
    with pytest.raises(StoreFailed, match="can't be reached"):
        machine.pull(store, f"localhost:{free_port()}/iris:1.0")


@needs_skopeo
def test_skopeo_copies_a_pushed_package_and_its_copy_loads(
    open_to_all: Running, machine: Machine, store: LayoutStore, elsewhere: LayoutStore, tmp_path: Path
) -> None:
    digest = write_package(store, "iris", "1.0", FILES)
    machine.push(store, digest, f"{open_to_all.host}/skopeo:1.0")
    tar = tmp_path / "copy.tar"
    source = f"docker://{open_to_all.host}/skopeo:1.0"
    command = ["skopeo", "copy", "--src-tls-verify=false", source, f"oci-archive:{tar}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert load(elsewhere, tar) == (digest,)
    verify(elsewhere, digest)


@needs_skopeo
def test_skopeo_reads_the_store_and_a_saved_package_as_they_are(store: LayoutStore, tmp_path: Path) -> None:
    digest = write_package(store, "iris", "1.0", FILES)
    attach(store, digest, PROOF, b"{}")
    tar = save(store, digest, tmp_path / "iris.tar")
    for place in (f"oci:{store.root}:iris:1.0", f"oci-archive:{tar}:iris:1.0"):
        done = subprocess.run(["skopeo", "inspect", "--raw", place], capture_output=True, timeout=60)
        assert digest_of(done.stdout) == digest, done.stderr


# --- with a password


def as_docker(machine: Machine, host: str, login: str) -> None:
    machine.environ["DOCKER_CONFIG"] = str(machine.home / "docker")
    write_json(machine.home / "docker" / "config.json", {"auths": {host: {"auth": login}}})


def as_docker_at_home(machine: Machine, host: str, login: str) -> None:
    write_json(machine.home / ".docker" / "config.json", {"auths": {f"https://{host}/v1/": {"auth": login}}})


def as_podman(machine: Machine, host: str, login: str) -> None:
    machine.environ["XDG_RUNTIME_DIR"] = str(machine.home / "run")
    write_json(
        machine.home / "run" / "containers" / "auth.json", {"auths": {f"{host}/team": {"auth": login}}}
    )


def as_podman_elsewhere(machine: Machine, host: str, login: str) -> None:
    machine.environ["REGISTRY_AUTH_FILE"] = str(machine.home / "my-auth.json")
    write_json(machine.home / "my-auth.json", {"auths": {host: {"auth": login}}})


def by_helper(machine: Machine, host: str, login: str) -> None:
    folder = machine.home / "bin"
    user, _, password = base64.b64decode(login).decode().partition(":")
    write_json(folder / "answer.json", {"ServerURL": host, "Username": user, "Secret": password})
    helper = folder / "docker-credential-test"
    helper.write_text(f'#!/bin/sh\nread -r host\n[ "$1 $host" = "get {host}" ] && cat {folder}/answer.json\n')
    helper.chmod(0o755)
    machine.environ["PATH"] = f"{folder}:{machine.environ['PATH']}"
    write_json(machine.home / ".docker" / "config.json", {"auths": {host: {}}, "credsStore": "test"})


def write_json(place: Path, value: object) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(value))


def encoded(user: str, password: str) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.mark.parametrize("log_in", [as_docker, as_docker_at_home, as_podman, as_podman_elsewhere, by_helper])
def test_the_login_docker_or_podman_left_is_used(
    with_password: Running,
    machine: Machine,
    store: LayoutStore,
    elsewhere: LayoutStore,
    log_in: Callable[[Machine, str, str], None],
) -> None:
    log_in(machine, with_password.host, encoded(USER, PASSWORD))
    digest = write_package(store, "iris", "1.0", FILES)
    machine.push(store, digest, f"{with_password.host}/team/{log_in.__name__}:1.0")
    machine.pull(elsewhere, f"{with_password.host}/team/{log_in.__name__}:1.0")
    verify(elsewhere, digest)


def test_without_a_login_the_next_step_is_to_log_in(
    with_password: Running, machine: Machine, store: LayoutStore
) -> None:
    with pytest.raises(StoreFailed, match="somebody without a login") as error:
        machine.pull(store, f"{with_password.host}/iris:1.0")
    assert f"podman login {with_password.host}" in error.value.next_step


def test_a_wrong_password_is_refused_and_shown_nowhere(
    with_password: Running, machine: Machine, store: LayoutStore
) -> None:
    secret = "wrong-but-secret"
    as_docker(machine, with_password.host, encoded(USER, secret))
    digest = write_package(store, "iris", "1.0", FILES)
    with pytest.raises(StoreFailed, match="does not let 'tester'") as error:
        machine.push(store, digest, f"{with_password.host}/iris:1.0")
    shown = f"{error.value} {error.value!r} {error.value.facts} {error.value.__cause__!r} {error.value.__context__!r}"
    assert secret not in shown
    assert encoded(USER, secret) not in shown
    assert "podman login" in str(error.value)


# --- with tokens


@contextmanager
def token_service(key: Path, certificate: Path) -> Iterator[str]:
    """Gives the user above a token for whatever is asked for, others one for nothing, as a registry's login service does."""
    chain = base64.b64encode(
        subprocess.run(
            ["openssl", "x509", "-in", certificate, "-outform", "DER"], capture_output=True, check=True
        ).stdout
    ).decode()

    def part(value: bytes) -> str:
        return base64.urlsafe_b64encode(value).rstrip(b"=").decode()

    class Service(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = parse_qs(urlsplit(self.path).query)
            if self.headers.get("Authorization") not in (None, f"Basic {encoded(USER, PASSWORD)}"):
                self.send_response(401)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            kind, _, rest = asked["scope"][0].partition(":")
            name, _, actions = rest.rpartition(":")
            granted = actions.split(",") if "Authorization" in self.headers else ["pull"]
            now = int(time.time())
            claims = {
                "iss": "test", "sub": "", "aud": asked["service"][0], "exp": now + 300, "nbf": now - 10, "iat": now,
                "jti": "1", "access": [{"type": kind, "name": name, "actions": granted}],
            }  # fmt: skip
            head = {"typ": "JWT", "alg": "RS256", "x5c": [chain]}
            signed = f"{part(json.dumps(head).encode())}.{part(json.dumps(claims).encode())}"
            signature = subprocess.run(
                ["openssl", "dgst", "-sha256", "-sign", key],
                input=signed.encode(),
                capture_output=True,
                check=True,
            ).stdout
            body = json.dumps({"token": f"{signed}.{part(signature)}"}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/token"
        server.shutdown()
        thread.join()


def certificate(folder: Path) -> tuple[Path, Path]:
    key, cert = folder / "key.pem", folder / "cert.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        key,
        "-out",
        cert,
        "-days",
        "2",
    ]
    subject = ["-subj", "/CN=test", "-addext", "subjectAltName=DNS:registry.test,IP:127.0.0.1"]
    subprocess.run([*command, *subject], capture_output=True, check=True)
    return key, cert


needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


@pytest.fixture(scope="module")
def with_tokens(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("registry")
    key, cert = certificate(folder)
    with token_service(key, cert) as realm:
        auth = f"auth: {{token: {{realm: '{realm}', service: test, issuer: test, rootcertbundle: {cert}}}}}\n"
        with running(folder, auth) as it:
            yield it


@needs_openssl
def test_a_token_is_fetched_for_pushing_and_one_for_pulling(
    with_tokens: Running, machine: Machine, store: LayoutStore, elsewhere: LayoutStore
) -> None:
    digest = write_package(store, "iris", "1.0", FILES)
    attach(store, digest, PROOF, b"{}")
    place = f"{with_tokens.host}/team/iris:1.0"
    with pytest.raises(StoreFailed, match="does not let somebody without a login push"):
        machine.push(store, digest, place)
    as_docker(machine, with_tokens.host, encoded(USER, PASSWORD))
    machine.push(store, digest, place)
    anonymous = Machine(machine.home / "nobody", {})
    assert anonymous.pull(elsewhere, place).referrers == 1
    verify(elsewhere, digest)


@needs_openssl
def test_a_password_the_login_service_refuses_is_shown_nowhere(
    with_tokens: Running, machine: Machine, store: LayoutStore
) -> None:
    as_docker(machine, with_tokens.host, encoded(USER, "wrong-but-secret"))
    with pytest.raises(StoreFailed, match="refuses the login of 'tester'") as error:
        machine.pull(store, f"{with_tokens.host}/team/iris:1.0")
    assert "wrong-but-secret" not in f"{error.value} {error.value.facts} {error.value.__context__!r}"


# --- with TLS


@needs_openssl
def test_a_registry_with_its_own_authority_is_trusted_by_its_certificate_only(
    tmp_path: Path, machine: Machine, store: LayoutStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, cert = certificate(tmp_path)
    real = socket.getaddrinfo
    name = "registry.test"  # not this machine by its name, so it must speak TLS
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda h, *a, **k: real("127.0.0.1" if h == name else h, *a, **k)
    )
    with running(tmp_path, scheme="https", tls=f", tls: {{certificate: {cert}, key: {key}}}") as it:
        place = f"{name}:{it.host.rpartition(':')[2]}/iris:1.0"
        digest = write_package(store, "iris", "1.0", FILES)
        with pytest.raises(StoreFailed, match="CERTIFICATE_VERIFY_FAILED") as error:
            machine.push(store, digest, place)
        assert "SSL_CERT_FILE" in error.value.next_step
        machine.environ["SSL_CERT_FILE"] = str(cert)
        machine.push(store, digest, place)
        assert machine.pull(store, place).digest == digest


def test_a_registry_that_speaks_plain_http_is_told_from_one_that_is_not_there(
    open_to_all: Running, machine: Machine, store: LayoutStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.getaddrinfo
    name = "registry.test"
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda h, *a, **k: real("127.0.0.1" if h == name else h, *a, **k)
    )
    remote = parse_remote(f"{name}:{open_to_all.host.rpartition(':')[2]}/iris:1.0")
    with open_registry(remote, {}, machine.home) as there, pytest.raises(StoreFailed) as error:
        pull(store, there)
    assert "--plain-http" in error.value.next_step
    with open_registry(remote, {}, machine.home, plain_http=True) as there, pytest.raises(NotFound):
        pull(store, there)
