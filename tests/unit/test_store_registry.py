"""How the client behaves towards registries that are newer, busier or more hostile than the one in the system tests."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from mlpacker.errors import BadDescription, BadInput, MlpackerError, NotFound, StoreFailed
from mlpacker.stores import digest_of, registry
from mlpacker.stores.credentials import Login
from mlpacker.stores.packages import PackageFile, verify, write_package
from mlpacker.stores.referrers import attach, referrers
from mlpacker.stores.registry import Registry, referrers_tag
from mlpacker.stores.registry_login import parse_challenge
from mlpacker.stores.remotes import Remote, is_loopback, parse_remote
from mlpacker.stores.transfer import pull, push
from mlpacker.testing.stores import MemoryStore

FILES = {"mlpacker.json": PackageFile(b"{}", "weight.config"), "model": PackageFile(b"trees" * 1000)}
PROOF = "application/vnd.mlpacker.proof.v1+json"
REMOTE = Remote("registry.test", "team/iris", "1.0")
Trouble = Callable[[httpx.Request], "httpx.Response | None"]


class Registry11:
    """A registry of the OCI distribution specification 1.1, in memory, with the referrers API."""

    def __init__(self, trouble: Trouble = lambda _: None) -> None:
        self.trouble = trouble
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}
        self.uploads: dict[str, bytes] = {}
        self.asked: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        body = request.read()
        answer = self.trouble(request)
        if answer is not None:
            return answer
        match = re.fullmatch(
            r"/v2/team/iris/(blobs/uploads|blobs|manifests|referrers)/(.*)", request.url.path
        )
        assert match is not None, request.url
        kind, name = match.groups()
        if kind == "blobs/uploads":
            return self.upload(request, name, body)
        if kind == "referrers":
            listed = [self.described(d) for d in self.manifests if ":" in d and self.subject(d) == name]
            return httpx.Response(200, json={"schemaVersion": 2, "manifests": listed})
        if request.method == "PUT":
            self.manifests[name] = self.manifests[digest_of(body)] = body
            subject = json.loads(body).get("subject")
            return httpx.Response(201, headers={"OCI-Subject": subject["digest"]} if subject else {})
        kept = self.manifests if kind == "manifests" else self.blobs
        if name not in kept:
            return httpx.Response(404)
        start = int(request.headers.get("Range", "bytes=0-")[6:-1])
        return httpx.Response(206 if start else 200, stream=httpx.ByteStream(kept[name][start:]))

    def upload(self, request: httpx.Request, name: str, body: bytes) -> httpx.Response:
        if request.method == "POST":
            self.uploads["u1"] = b""
            return httpx.Response(202, headers={"Location": "/v2/team/iris/blobs/uploads/u1?state=x"})
        assert request.url.params["state"] == "x"
        headers = {"Location": str(request.url), "Range": f"0-{max(0, len(self.uploads[name]) - 1)}"}
        if request.method == "GET":
            return httpx.Response(204, headers=headers)
        self.uploads[name] += body
        if request.method == "PATCH":
            return httpx.Response(202, headers=headers)
        digest = request.url.params["digest"]
        if digest_of(self.uploads[name]) != digest:
            return httpx.Response(400, json={"errors": [{"message": "digest did not match"}]})
        self.blobs[digest] = self.uploads.pop(name)
        return httpx.Response(201)

    def subject(self, digest: str) -> str | None:
        return (json.loads(self.manifests[digest]).get("subject") or {}).get("digest")

    def described(self, digest: str) -> dict[str, Any]:
        data = self.manifests[digest]
        return {
            "mediaType": registry.OCI_MANIFEST,
            "digest": digest,
            "size": len(data),
            "artifactType": json.loads(data)["artifactType"],
        }


def client(server: Registry11, login: Login | None = None, remote: Remote = REMOTE) -> Registry:
    return Registry(remote, login, push=True, transport=httpx.MockTransport(server), sleep=lambda _: None)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def digest(store: MemoryStore) -> str:
    digest = write_package(store, "iris", "1.0", FILES)
    attach(store, digest, PROOF, b"proof", {"when": "today"})
    return digest


def pushed(store: MemoryStore, digest: str) -> Registry11:
    server = Registry11()
    with client(server) as there:
        push(store, digest, there)
    return server


def test_where_the_registry_lists_referrers_itself_no_tag_is_written_for_them(
    store: MemoryStore, digest: str
) -> None:
    server = pushed(store, digest)
    assert referrers_tag(digest) not in server.manifests
    there = MemoryStore()
    with client(server) as registry_there:
        assert pull(there, registry_there).referrers == 1
    assert referrers(there, digest)[0].annotations == {"when": "today"}


def test_the_tag_is_written_after_everything_it_names(store: MemoryStore, digest: str) -> None:
    asked = [(r.method, r.url.path.rpartition("/")[2][:10]) for r in pushed(store, digest).asked]
    tag = asked.index(("PUT", "1.0"))
    assert all(method != "POST" for method, _ in asked[tag:])


def test_what_may_pass_is_tried_again_and_what_will_not_is_not(store: MemoryStore, digest: str) -> None:
    for status, tries in ((503, 5), (429, 5), (500, 5), (400, 1), (403, 1)):
        server = Registry11(lambda _, status=status: httpx.Response(status))
        with client(server) as there, pytest.raises(StoreFailed):
            push(store, digest, there)
        assert len(server.asked) == tries


def test_a_registry_that_fails_every_other_time_gets_everything_in_the_end(
    store: MemoryStore, digest: str
) -> None:
    count = iter(range(10_000))

    def trouble(request: httpx.Request) -> httpx.Response | None:
        turn = next(count) % 4
        if turn == 0:
            raise httpx.ReadError("the line went dead")
        return httpx.Response(503) if turn == 2 else None

    server = Registry11(trouble)
    there = MemoryStore()
    with client(server) as c:
        push(store, digest, c)
        pull(there, c)
    verify(there, digest)


def test_the_wait_grows_and_follows_what_the_registry_asks_for() -> None:
    waited: list[float] = []
    server = Registry11(lambda _: httpx.Response(503, headers={"Retry-After": "7"}))
    plain = Registry11(lambda _: httpx.Response(503))
    for each in (plain, server):
        it = Registry(REMOTE, transport=httpx.MockTransport(each), sleep=waited.append)
        with pytest.raises(StoreFailed):
            it.has_blob(digest_of(b""))
    assert waited == [0.5, 1.0, 2.0, 4.0, 7.0, 7.0, 7.0, 7.0]


class Broken(httpx.SyncByteStream):
    def __init__(self, data: bytes) -> None:
        self.data = data

    def __iter__(self) -> Iterator[bytes]:
        yield self.data
        raise httpx.ReadError("the line went dead")


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_goes_on_where_it_broke(ranges: bool) -> None:
    data = bytes(range(256)) * 100
    asked: list[str | None] = []

    def server(request: httpx.Request) -> httpx.Response:
        asked.append(request.headers.get("Range"))
        start = int(asked[-1][6:-1]) if asked[-1] and ranges else 0
        end = len(data) if len(asked) > 3 else start + 5000 * (1 if ranges else len(asked))
        part = data[start:end]
        stream = Broken(part) if len(asked) <= 3 else httpx.ByteStream(part)
        return httpx.Response(206 if start else 200, stream=stream)

    there = Registry(REMOTE, transport=httpx.MockTransport(server), sleep=lambda _: None)
    assert b"".join(there.get_blob(digest_of(data), len(data))) == data
    assert asked == [None, "bytes=5000-", "bytes=10000-", "bytes=15000-"]


def test_a_piece_that_was_lost_is_sent_again_and_one_that_arrived_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry, "PIECE", 1000)
    data = bytes(range(250)) * 10
    patches = iter(range(100))
    server = Registry11()

    def trouble(request: httpx.Request) -> httpx.Response | None:
        if request.method != "PATCH":
            return None
        turn = next(patches)
        if turn == 1:
            raise httpx.WriteError("lost on the way there")
        if turn == 3:
            server.upload(request, "u1", request.read())
            raise httpx.ReadError("lost on the way back")
        return None

    server.trouble = trouble
    with client(server) as there:
        there.put_blob(digest_of(data), len(data), lambda: [data])
    assert server.blobs[digest_of(data)] == data


def test_more_bytes_than_the_manifest_says_are_refused_at_once(store: MemoryStore, digest: str) -> None:
    server = pushed(store, digest)
    for name in list(server.blobs):
        server.blobs[name] += b"!" * 10_000
    with client(server) as there, pytest.raises(StoreFailed, match="sends more"):
        pull(MemoryStore(), there)


def test_a_manifest_that_is_not_the_digest_asked_for_is_refused(store: MemoryStore, digest: str) -> None:
    server = pushed(store, digest)
    server.manifests[digest] += b" "
    with (
        client(server, remote=Remote("registry.test", "team/iris", digest=digest)) as there,
        pytest.raises(StoreFailed, match="answers other bytes"),
    ):
        pull(MemoryStore(), there)


def test_what_anybody_may_hang_on_a_package_does_not_stop_pulling_it(store: MemoryStore, digest: str) -> None:
    server = pushed(store, digest)
    evil = json.dumps({"artifactType": "application/evil", "subject": {"digest": digest}}).encode()
    server.manifests[digest_of(evil)] = evil
    there = MemoryStore()
    with client(server) as registry_there:
        pulled = pull(there, registry_there)
    assert (pulled.referrers, len(pulled.skipped)) == (1, 1)
    assert len(referrers(there, digest)) == 1


@pytest.mark.parametrize(
    "answer",
    [b"", b"{}", b"[]", b"\xff", b'{"schemaVersion": 2, "layers": [{}]}', b"[" * 100_000, b"x" * (5 << 20)],
)
def test_whatever_a_registry_answers_for_a_manifest_ends_in_a_sentence(answer: bytes) -> None:
    with (
        client(Registry11(lambda _: httpx.Response(200, content=answer))) as there,
        pytest.raises(MlpackerError),
    ):
        pull(MemoryStore(), there)


@pytest.mark.parametrize("location", [None, "http://[", "http://\0", "ftp://x/y"])
def test_a_registry_that_names_no_place_for_an_upload_ends_in_a_sentence(
    store: MemoryStore, digest: str, location: str | None
) -> None:
    headers = {"Location": location} if location is not None else {}
    server = Registry11(
        lambda r: (
            httpx.Response(202, headers=headers)
            if r.method == "POST"
            else None
            if r.url.host == "registry.test"
            else httpx.Response(400)
        )
    )
    with client(server) as there, pytest.raises(MlpackerError):
        push(store, digest, there)


def test_the_registrys_own_words_are_passed_on_when_they_are_fit_to_be_shown() -> None:
    for message, shown in (("quota exceeded", True), ("a\x1b[31m", False)):
        server = Registry11(lambda _, m=message: httpx.Response(400, json={"errors": [{"message": m}]}))
        with client(server) as there, pytest.raises(StoreFailed) as error:
            there.has_blob(digest_of(b""))
        assert (message in str(error.value)) == shown or "HEAD" in message


# --- who we are is told to nobody else


LOGIN = Login("me", "secret")


def needs_basic(request: httpx.Request) -> httpx.Response | None:
    if request.headers.get("Authorization") == "Basic bWU6c2VjcmV0":
        return None
    return httpx.Response(401, headers={"WWW-Authenticate": 'Basic realm="r"'})


def test_a_password_is_sent_only_when_asked_for(store: MemoryStore, digest: str) -> None:
    server = Registry11()
    with client(server, LOGIN) as there:
        push(store, digest, there)
    assert not any("Authorization" in r.headers for r in server.asked)
    server = Registry11(needs_basic)
    with client(server, LOGIN) as there:
        push(store, digest, there)
    assert sum("Authorization" not in r.headers for r in server.asked) == 1


def test_an_upload_that_goes_elsewhere_goes_there_without_the_password(
    store: MemoryStore, digest: str
) -> None:
    def trouble(request: httpx.Request) -> httpx.Response | None:
        if request.url.host == "storage.test":
            return httpx.Response(201)
        if request.method == "POST":
            return needs_basic(request) or httpx.Response(
                202, headers={"Location": "https://storage.test/up?a=b"}
            )
        return needs_basic(request)

    server = Registry11(trouble)
    with client(server, LOGIN) as there:
        push(store, digest, there)
    elsewhere = [r for r in server.asked if r.url.host == "storage.test"]
    assert elsewhere
    assert not any("Authorization" in r.headers for r in elsewhere)


def test_a_download_that_is_sent_elsewhere_goes_there_without_the_password(
    store: MemoryStore, digest: str
) -> None:
    kept = pushed(store, digest)

    def trouble(request: httpx.Request) -> httpx.Response | None:
        if request.url.host == "storage.test":
            return httpx.Response(200, stream=httpx.ByteStream(kept.blobs["sha256:" + request.url.path[1:]]))
        if "/blobs/" in request.url.path and request.method == "GET":
            where = f"https://storage.test/{request.url.path.rpartition(':')[2]}"
            return needs_basic(request) or httpx.Response(307, headers={"Location": where})
        return needs_basic(request)

    kept.trouble = trouble
    kept.asked.clear()
    there = MemoryStore()
    with client(kept, LOGIN) as c:
        pull(there, c)
    verify(there, digest)
    assert not any("Authorization" in r.headers for r in kept.asked if r.url.host == "storage.test")


def test_an_upload_place_named_by_http_behind_a_proxy_is_used_by_https(
    store: MemoryStore, digest: str
) -> None:
    def trouble(request: httpx.Request) -> httpx.Response | None:
        assert request.url.scheme == "https"
        if request.method == "POST":
            server.uploads["u1"] = b""
            place = "http://registry.test/v2/team/iris/blobs/uploads/u1?state=x"
            return httpx.Response(202, headers={"Location": place})
        return None

    server = Registry11(trouble)
    with client(server) as there:
        push(store, digest, there)
    assert digest in server.manifests


def bearer(realm: str, token: Callable[[httpx.Request], httpx.Response]) -> Trouble:
    def trouble(request: httpx.Request) -> httpx.Response | None:
        if request.url.host == "login.test":
            return token(request)
        if request.headers.get("Authorization") == "Bearer t0ken":
            return None
        said = f'Bearer realm="{realm}",service="s",scope="repository:team/iris:pull,push"'
        return httpx.Response(401, headers={"WWW-Authenticate": said})

    return trouble


def test_a_token_is_asked_for_once_with_the_password_and_then_used(store: MemoryStore, digest: str) -> None:
    server = Registry11(
        bearer("https://login.test/token", lambda _: httpx.Response(200, json={"token": "t0ken"}))
    )
    with client(server, LOGIN) as there:
        push(store, digest, there)
    (asked,) = [r for r in server.asked if r.url.host == "login.test"]
    assert dict(asked.url.params) == {"scope": "repository:team/iris:pull,push", "service": "s"}
    assert asked.headers["Authorization"] == "Basic bWU6c2VjcmV0"


def test_an_identity_token_is_changed_for_one(store: MemoryStore, digest: str) -> None:
    def token(request: httpx.Request) -> httpx.Response:
        assert request.method == "POST"
        assert b"refresh_token=long" in request.read()
        return httpx.Response(200, json={"access_token": "t0ken"})

    server = Registry11(bearer("https://login.test/token", token))
    with client(server, Login("", identity_token="long")) as there:
        push(store, digest, there)
    assert digest in server.manifests


def test_a_token_that_ran_out_is_replaced(store: MemoryStore, digest: str) -> None:
    left = iter([3, 3, 100])
    allowed = 0

    def token(request: httpx.Request) -> httpx.Response:
        nonlocal allowed
        allowed = next(left)
        return httpx.Response(200, json={"token": "t0ken"})

    inner = bearer("https://login.test/token", token)

    def trouble(request: httpx.Request) -> httpx.Response | None:
        nonlocal allowed
        answer = inner(request)
        if answer is None:
            allowed -= 1
            if allowed < 0:
                return httpx.Response(
                    401, headers={"WWW-Authenticate": 'Bearer realm="https://login.test/token"'}
                )
        return answer

    server = Registry11(trouble)
    with client(server) as there:
        push(store, digest, there)
    assert digest in server.manifests


def test_a_password_does_not_go_to_a_login_service_without_tls(store: MemoryStore, digest: str) -> None:
    server = Registry11(
        bearer("http://login.test/token", lambda _: httpx.Response(200, json={"token": "t0ken"}))
    )
    with client(server, LOGIN) as there, pytest.raises(StoreFailed, match="without TLS"):
        push(store, digest, there)
    assert all(r.url.host == "registry.test" for r in server.asked)


@pytest.mark.parametrize(
    "answer", [b"", b"[]", b"{}", b'{"token": 1}', b'{"token": "a\\nb"}', b"x" * (2 << 20)]
)
def test_a_login_service_that_gives_no_token_ends_in_a_sentence(
    store: MemoryStore, digest: str, answer: bytes
) -> None:
    server = Registry11(bearer("https://login.test/token", lambda _: httpx.Response(200, content=answer)))
    with client(server, LOGIN) as there, pytest.raises(StoreFailed, match="gives no token") as error:
        push(store, digest, there)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ('Bearer realm="https://x/t",service="s s",scope="a:b:c,d"', ("bearer", {"realm": "https://x/t", "service": "s s", "scope": "a:b:c,d"})),
        ('BASIC Realm="r \\"q\\""', ("basic", {"realm": 'r "q"'})),
        ("Bearer realm=https://x", ("bearer", {"realm": "https://x"})),
        ("", ("", {})),
        ("Negotiate", ("negotiate", {})),
    ],
)  # fmt: skip
def test_a_challenge_is_taken_apart(header: str, expected: tuple[str, dict[str, str]]) -> None:
    assert parse_challenge(header) == expected


# --- places


@pytest.mark.parametrize(
    ("text", "remote"),
    [
        ("registry.example.org/models/iris:1.0", Remote("registry.example.org", "models/iris", "1.0")),
        ("oci://localhost:5000/iris", Remote("localhost:5000", "iris")),
        ("localhost/a/b-c/d__e.f:x", Remote("localhost", "a/b-c/d__e.f", "x")),
        ("[::1]:5000/iris:1", Remote("[::1]:5000", "iris", "1")),
        (f"h.x/iris@{digest_of(b'')}", Remote("h.x", "iris", None, digest_of(b""))),
        (f"h.x/iris:1@{digest_of(b'')}", Remote("h.x", "iris", "1", digest_of(b""))),
    ],
)  # fmt: skip
def test_a_place_is_taken_apart_and_put_together(text: str, remote: Remote) -> None:
    assert parse_remote(text) == remote
    assert parse_remote(str(remote)) == remote


@pytest.mark.parametrize(
    "text",
    ["", "iris", "iris:1.0", "models/iris:1.0", "h.x/", "h.x/Iris", "h.x/a//b", "h.x/../b", "h.x/a:", "h.x/a: b", "https://h.x/a", "me:pw@h.x/a", "h.x/a@sha256:12", "h.x/a?b", "h.x:5000", "h.x\n/a", "h x/a"],
)  # fmt: skip
def test_what_names_no_place_is_refused(text: str) -> None:
    with pytest.raises(BadDescription):
        parse_remote(text)


def test_only_this_machine_is_spoken_to_without_tls_unasked() -> None:
    for host in ("localhost", "localhost:5000", "127.0.0.1:5000", "127.3.2.1", "[::1]:5000", "a.localhost"):
        assert is_loopback(host)
    for host in ("h.x", "localhost.evil.org", "10.0.0.1:5000", "127.0.0.1.evil.org", "[::2]", "mylocalhost"):
        assert not is_loopback(host)


def test_another_digest_than_the_packages_is_not_pushed_to(store: MemoryStore, digest: str) -> None:
    with (
        client(Registry11(), remote=Remote("registry.test", "team/iris", digest=digest_of(b""))) as there,
        pytest.raises(BadDescription),
    ):
        push(store, digest, there)


def test_a_package_without_a_name_is_called_by_its_repository_and_tag(store: MemoryStore) -> None:
    from mlpacker.stores.packages import canonical, encode_config, read_manifest

    digest = write_package(store, "x", None, FILES)
    server = pushed(store, digest)
    value = json.loads(server.manifests[digest])
    config = json.loads(encode_config("x", None, read_manifest(store, digest).layers))
    del config["descriptor"]["name"]
    data = canonical(config)
    server.blobs[digest_of(data)] = data
    value["config"].update(digest=digest_of(data), size=len(data))
    server.manifests["1.0"] = canonical(value)
    with client(server) as there:
        assert pull(MemoryStore(), there).ref == "iris:1.0"
    value["layers"] = [{**d, "mediaType": d["mediaType"].replace(".raw", ".tar")} for d in value["layers"]]
    server.manifests["1.0"] = canonical(value)
    with client(server) as there, pytest.raises(BadInput, match="only plain files"):
        pull(MemoryStore(), there)


def test_a_tag_that_is_not_there_is_not_found() -> None:
    with client(Registry11()) as there, pytest.raises(NotFound):
        pull(MemoryStore(), there)
