"""An OCI registry, spoken to by the OCI distribution specification 1.1: blobs, manifests, tags and referrers of one repository.

Written on httpx, which mlpacker has anyway: the client libraries there are (oras, docker's) bring requests, jsonschema or a
daemon, read auth files of one tool only, and verify nothing until a blob is in memory.
Works with registries before 1.1 too (docker-registry 2.8): where the referrers API is missing, the referrers tag schema
of the specification stands in.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import certifi
import httpx

from mlpacker_runtime.package import (
    MAX_MANIFEST_BYTES,
    OCI_MANIFEST,
    Descriptor,
    digest_of,
    parse_descriptor,
    parse_json,
)

from ..errors import BadInput, MlpackerError, NotFound, StoreFailed
from .credentials import Login, find_login
from .packages import OCI_INDEX, canonical, encode_descriptor
from .refs import short
from .registry_login import Authorisation
from .remotes import Remote, is_loopback

AGAIN = frozenset([429, 500, 502, 503, 504])
LOST = frozenset([404, 416])
"""What a registry answers for an upload it has lost track of, or has finished though its answer never came."""
TRIES = 5
FIRST_WAIT = 0.5
LONGEST_WAIT = 20.0
TIMEOUT = httpx.Timeout(60, connect=15, read=300)
"""Seconds. A registry may read a large blob once more before it answers."""
PIECE = 16 << 20
"""Larger blobs go up in pieces of this many bytes, so that a broken connection costs one piece."""
BYTES = {"Content-Type": "application/octet-stream"}
MAX_ERROR_BYTES = 64 << 10
MAX_PAGES = 50
DOCKER_HUB_API = "registry-1.docker.io"

Body = Callable[[], Iterable[bytes]]
"""The bytes to send, from the start each time it is called: a request may have to be sent again."""


class Registry:
    """One repository of a registry. Use as a context manager.

    Every method raises StoreFailed with the next step where the registry can't be reached, refuses, or fails in spite of
    trying again; NotFound where it has no such thing.
    """

    def __init__(
        self,
        remote: Remote,
        login: Login | None = None,
        *,
        push: bool = False,
        plain_http: bool = False,
        certificates: Path | None = None,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """push: ask for leave to write. plain_http: no TLS; to this machine itself that is always so.

        certificates: a file of authorities to trust beside the system's (SSL_CERT_FILE).
        """
        self.remote = remote
        plain = plain_http or is_loopback(remote.host)
        host = DOCKER_HUB_API if remote.host == "docker.io" else remote.host
        self._base = httpx.URL(f"{'http' if plain else 'https'}://{host}/v2/{remote.repository}/")
        self._sleep = sleep
        self._client = httpx.Client(
            transport=transport,
            verify=_trust(certificates) if not plain and transport is None else False,
            timeout=TIMEOUT,
            headers={"User-Agent": "mlpacker", "Accept-Encoding": "identity"},
            trust_env=not is_loopback(remote.host),  # a proxy is never on the way to this machine itself
        )
        scope = f"repository:{remote.repository}:{'pull,push' if push else 'pull'}"
        self._authorisation = Authorisation(remote.host, scope, login, self._base, self._client)
        self._doing = "push to" if push else "pull from"

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    # --- blobs

    def has_blob(self, digest: str) -> bool:
        with self._send("HEAD", self._url(f"blobs/{digest}")) as response:
            if response.status_code == 404:
                return False
            self._check(response, 200)
            return True

    def get_blob(self, digest: str, size: int) -> Iterator[bytes]:
        """The blob's bytes, at most `size`, not yet verified. A broken connection is taken up where it broke."""
        done = 0
        for attempt in range(TRIES):
            try:
                for chunk in self._blob_from(digest, done):
                    done += len(chunk)
                    if done > size:
                        raise StoreFailed(
                            f"{self.remote.host} sends more for {short(digest)} than its {size} bytes."
                        )
                    yield chunk
                return
            except httpx.TransportError as cause:
                if attempt + 1 == TRIES:
                    raise self._unreachable(cause) from cause
                self._wait(attempt)

    def _blob_from(self, digest: str, start: int) -> Iterator[bytes]:
        headers = {"Range": f"bytes={start}-"} if start else {}
        with self._send("GET", self._url(f"blobs/{digest}"), headers=headers) as response:
            if response.status_code == 416:  # nothing is left: it broke after the last byte
                return
            self._check(response, 200, 206)
            skip = start if response.status_code == 200 else 0  # a registry without ranges begins anew
            for chunk in response.iter_raw():
                yield chunk[skip:]
                skip = max(0, skip - len(chunk))

    def put_blob(
        self, digest: str, size: int, body: Body, sent: Callable[[int], None] = lambda _: None
    ) -> None:
        """Upload a blob. sent: called with the number of bytes of it that have gone up.

        What broke on the way goes on where it broke, where the registry can tell, else from the start.
        """
        for attempt in range(TRIES):
            try:
                self._upload(digest, size, body, sent)
                return
            except _Broken as broken:
                error = broken.error
            self._wait(attempt)
            if self.has_blob(digest):  # all had arrived, only the answer had not
                sent(size)
                return
        raise error

    def _upload(self, digest: str, size: int, body: Body, sent: Callable[[int], None]) -> None:
        with self._send("POST", self._url("blobs/uploads/"), headers={"Content-Length": "0"}) as response:
            self._check(response, 202)
            place = self._location(response)
        left = size
        if size > PIECE:
            place = self._put_pieces(place, body, sent)
            body, left = tuple, 0
        headers = {"Content-Length": str(left), **BYTES}
        whole = place.copy_merge_params({"digest": digest})
        with self._send("PUT", whole, headers=headers, body=body) as response:
            if response.status_code in LOST:
                raise _Broken(self._failure(response))
            self._check(response, 201)
        sent(size)

    def _put_pieces(self, place: httpx.URL, body: Body, sent: Callable[[int], None]) -> httpx.URL:
        start = 0
        for piece in _pieces(body()):
            place = self._put_piece(place, start, piece)
            start += len(piece)
            sent(start)
        return place

    def _put_piece(self, place: httpx.URL, start: int, piece: bytes) -> httpx.URL:
        end = start + len(piece) - 1
        headers = {"Content-Length": str(len(piece)), "Content-Range": f"{start}-{end}", **BYTES}
        for attempt in range(TRIES):
            try:
                return self._patch(place, headers, piece)
            except _Broken as broken:
                self._wait(attempt)
                arrived, place = self._arrived(place, broken)
                if arrived == end:
                    return place
                if arrived != start - 1 or attempt + 1 == TRIES:
                    raise
        raise AssertionError("unreachable")

    def _patch(self, place: httpx.URL, headers: Mapping[str, str], piece: bytes) -> httpx.URL:
        """Send a piece, once. Returns where the next goes. Raises _Broken where the upload may be saved yet."""
        try:
            with closing(self._open("PATCH", place, headers, lambda: (piece,))) as response:
                if response.status_code in AGAIN | LOST:
                    raise _Broken(self._failure(response))
                self._check(response, 202)
                return self._location(response)
        except httpx.TransportError as cause:
            raise _Broken(self._unreachable(cause)) from cause
        except (httpx.HTTPError, httpx.InvalidURL) as cause:
            raise self._unreachable(cause) from cause

    def _arrived(self, place: httpx.URL, broken: _Broken) -> tuple[int, httpx.URL]:
        """The last byte of an upload the registry has (-1: none), and where to go on. Raises `broken` where it can't tell."""
        with self._send("GET", place) as response:
            if response.status_code != 204:  # docker-registry forgets an upload whose answer was lost
                raise broken
            last = response.headers.get("Range", "").rpartition("-")[2]
            # docker-registry writes "0-0" for none and for one byte; our pieces are longer than one.
            return (int(last) or -1) if last.isdigit() else -1, self._location(response)

    def _location(self, response: httpx.Response) -> httpx.URL:
        """Where an upload goes on. A registry behind a proxy may name itself by http; our connection stays as it is."""
        if "Location" not in response.headers:
            raise StoreFailed(f"{self.remote.host} does not say where the upload goes.")
        place = self._join(response, response.headers["Location"])
        same = place.host == self._base.host and place.port in (self._base.port, None)
        return place.copy_with(scheme=self._base.scheme, port=self._base.port) if same else place

    # --- manifests

    def get_manifest(self, reference: str, accept: str = OCI_MANIFEST) -> bytes:
        """A manifest's bytes by tag or digest; by digest, verified."""
        found = self._get(self._url(f"manifests/{reference}"), accept, absent=(404,))
        if found is None:
            raise NotFound(f"{self.remote.host}/{self.remote.repository} has no {reference}.")
        data = found[1]
        if ":" in reference and digest_of(data) != reference:
            raise StoreFailed(f"{self.remote.host} answers other bytes than {short(reference)}.")
        return data

    def put_manifest(self, reference: str, data: bytes, media_type: str = OCI_MANIFEST) -> bool:
        """Upload a manifest. Returns whether the registry keeps referrers itself (it says so where there is a subject)."""
        headers = {"Content-Type": media_type, "Content-Length": str(len(data))}
        url = self._url(f"manifests/{reference}")
        with self._send("PUT", url, headers=headers, body=lambda: (data,)) as response:
            self._check(response, 201)
            stored = response.headers.get("Docker-Content-Digest", digest_of(data))
            if stored != digest_of(data):
                raise StoreFailed(
                    f"{self.remote.host} keeps the manifest as {stored}, not as {digest_of(data)}."
                )
            return "OCI-Subject" in response.headers

    # --- referrers

    def referrers(self, digest: str) -> tuple[Descriptor, ...]:
        """What refers to a manifest, as the registry tells it."""
        found: list[Descriptor] = []
        url: httpx.URL | None = self._url(f"referrers/{digest}")
        for _ in range(MAX_PAGES):
            if url is None:
                break
            answer = self._get(url, OCI_INDEX, absent=(400, 404, 405))
            if answer is None:
                return self._tagged_referrers(digest)
            response, data = answer
            found.extend(_descriptors(data))
            following = response.links.get("next", {}).get("url")
            url = self._join(response, following) if following else None
        return tuple(found)

    def add_referrer(self, digest: str, subject: Descriptor, data: bytes, described: Descriptor) -> None:
        """Upload a referrer's manifest, and list it under the subject's tag where the registry does not do that itself."""
        if self.put_manifest(digest, data):
            return
        listed = self._tagged_referrers(subject.digest)
        if all(d.digest != digest for d in listed):
            manifests = [_with_type(d) for d in (*listed, described)]
            index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}
            self.put_manifest(referrers_tag(subject.digest), canonical(index), OCI_INDEX)

    def _tagged_referrers(self, digest: str) -> tuple[Descriptor, ...]:
        try:
            return _descriptors(self.get_manifest(referrers_tag(digest), OCI_INDEX))
        except NotFound:
            return ()

    # --- requests

    def _get(
        self, url: httpx.URL, accept: str, absent: tuple[int, ...]
    ) -> tuple[httpx.Response, bytes] | None:
        """A small answer, read whole; None where the status is one that means there is none."""
        for attempt in range(TRIES):
            with self._send("GET", url, headers={"Accept": accept}) as response:
                try:
                    if response.status_code in absent:
                        return None
                    self._check(response, 200)
                    return response, _read(response, MAX_MANIFEST_BYTES)
                except httpx.TransportError as cause:
                    broken = cause
                except httpx.DecodingError as cause:
                    raise StoreFailed(
                        f"{self.remote.host} answers what can't be decoded: {cause}."
                    ) from cause
            self._wait(attempt)
        raise self._unreachable(broken) from broken

    def _join(self, response: httpx.Response, where: str) -> httpx.URL:
        try:
            return response.url.join(where)
        except (httpx.InvalidURL, ValueError) as cause:
            raise StoreFailed(f"{self.remote.host} names a place that is no URL.") from cause

    def _url(self, path: str) -> httpx.URL:
        return self._base.join(path)

    @contextmanager
    def _send(
        self, method: str, url: httpx.URL, *, headers: Mapping[str, str] | None = None, body: Body = tuple
    ) -> Iterator[httpx.Response]:
        """The response, its body unread. Tries again, each time waiting longer, what may pass."""
        for attempt in range(TRIES):
            last = attempt + 1 == TRIES
            try:
                response = self._open(method, url, headers or {}, body)
            except httpx.TransportError as cause:
                if last or _for_ever(cause):
                    raise self._unreachable(cause) from cause
                self._wait(attempt)
                continue
            except (httpx.HTTPError, httpx.InvalidURL) as cause:
                raise self._unreachable(cause) from cause
            with closing(response):
                if response.status_code not in AGAIN or last:
                    yield response
                    return
                self._wait(attempt, response.headers.get("Retry-After"))

    def _open(self, method: str, url: httpx.URL, headers: Mapping[str, str], body: Body) -> httpx.Response:
        response = self._open_once(method, url, headers, body)
        if response.status_code == 401 and self._authorisation.answer(response):
            response.close()
            response = self._open_once(method, url, headers, body)
        return response

    def _open_once(
        self, method: str, url: httpx.URL, headers: Mapping[str, str], body: Body
    ) -> httpx.Response:
        content = None if body is tuple else iter(body())
        own = self._authorisation.headers(url)
        request = self._client.build_request(method, url, headers={**headers, **own}, content=content)
        return self._client.send(request, stream=True, follow_redirects=method in ("GET", "HEAD"))

    def _wait(self, attempt: int, asked: str | None = None) -> None:
        seconds = float(asked) if asked is not None and asked.isdigit() else FIRST_WAIT * 2**attempt
        self._sleep(min(seconds, LONGEST_WAIT))

    def _check(self, response: httpx.Response, *expected: int) -> None:
        if response.status_code not in expected:
            raise self._failure(response)

    def _failure(self, response: httpx.Response) -> MlpackerError:
        status, host = response.status_code, self.remote.host
        said = _said(response)
        facts: dict[str, Any] = {"status": status, "host": host}
        if status in (401, 403):
            who = self._authorisation.who
            return StoreFailed(
                f"{host} does not let {who} {self._doing} {self.remote.repository}{said}.",
                f"Log in: podman login {host}, or docker login {host}.",
                **facts,
            )
        if status == 404:
            return NotFound(f"{host} has no {self.remote.repository}, or not this part of it{said}.", **facts)
        return StoreFailed(
            f"{host} answered {status}{said}.", "Try again later, or ask who runs the registry.", **facts
        )

    def _unreachable(self, cause: Exception | None) -> MlpackerError:
        reason = str(cause) or type(cause).__name__
        hint = "Look at the host's name, the network and the proxy."
        if "CERTIFICATE_VERIFY_FAILED" in reason:
            hint = "Name the file of its authority's certificate in SSL_CERT_FILE."
        elif "WRONG_VERSION_NUMBER" in reason or "RECORD_LAYER" in reason:
            hint = "It may speak plain HTTP: --plain-http."
        return StoreFailed(f"{self.remote.host} can't be reached: {reason}.", hint, host=self.remote.host)


class _Broken(Exception):
    """An upload broke off. error: what to say where it can't be saved."""

    def __init__(self, error: MlpackerError) -> None:
        super().__init__(str(error))
        self.error = error


def open_registry(
    remote: Remote, environ: Mapping[str, str], home: Path, *, push: bool = False, plain_http: bool = False
) -> Registry:
    """A registry with the login the user's auth files have for it. Raises StoreFailed where such a file is broken."""
    login = find_login(remote.host, remote.repository, environ, home)
    certificates = Path(environ["SSL_CERT_FILE"]) if environ.get("SSL_CERT_FILE") else None
    return Registry(remote, login, push=push, plain_http=plain_http, certificates=certificates)


def referrers_tag(digest: str) -> str:
    """The tag under which a registry without the referrers API lists what refers to a digest (specification 1.1)."""
    return digest.replace(":", "-")


def _trust(certificates: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    if certificates is not None:
        try:
            context.load_verify_locations(certificates)
        except OSError as cause:  # an SSLError is one
            raise StoreFailed(f"SSL_CERT_FILE names {certificates}, which holds no certificates.") from cause
    return context


def _for_ever(cause: httpx.TransportError) -> bool:
    """Whether trying again can't help: TLS does not fit, or the URL can't be spoken to."""
    return isinstance(cause, httpx.UnsupportedProtocol) or "SSL" in str(cause) or "ssl" in str(cause)


def _pieces(chunks: Iterable[bytes]) -> Iterator[bytes]:
    held = bytearray()
    for chunk in chunks:
        held += chunk
        while len(held) >= PIECE:
            yield bytes(held[:PIECE])
            del held[:PIECE]
    if held:
        yield bytes(held)


def _read(response: httpx.Response, limit: int) -> bytes:
    data = bytearray()
    for chunk in response.iter_bytes():
        data += chunk
        if len(data) > limit:
            raise StoreFailed(f"{response.url.host} answers with more than {limit} bytes where less belongs.")
    return bytes(data)


def _said(response: httpx.Response) -> str:
    """The registry's own words on an error, as `: …`, where it has some fit to be shown."""
    try:
        value: Any = parse_json(_read(response, MAX_ERROR_BYTES), "The answer", MAX_ERROR_BYTES)
        message = str(value["errors"][0]["message"])
    except (MlpackerError, httpx.HTTPError, LookupError, TypeError):
        return ""
    return f": {message[:200]}" if message.isprintable() and message else ""


def _descriptors(data: bytes) -> tuple[Descriptor, ...]:
    value = parse_json(data, "The list of referrers", MAX_MANIFEST_BYTES)
    if not isinstance(value, dict) or not isinstance(value.get("manifests"), list):
        raise BadInput("The registry's list of referrers is no OCI image index.")
    return tuple(parse_descriptor(v, f"manifests[{i}]") for i, v in enumerate(value["manifests"]))


def _with_type(descriptor: Descriptor) -> dict[str, Any]:
    value = encode_descriptor(descriptor)
    if descriptor.artifact_type:
        value["artifactType"] = descriptor.artifact_type
    return value
