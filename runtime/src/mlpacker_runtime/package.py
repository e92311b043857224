"""A package on disk, on the machine that scores: its OCI manifest and its files, every byte verified before it is used.

A materialised package is a folder that holds `manifest.json` (the OCI image manifest, byte for byte) and each file at its
path. The package's digest is the sha256 of `manifest.json`; each of its layers is one file, named by the annotation
`org.cncf.model.filepath` (CNCF ModelPack). So one digest covers every byte, and nothing else in the folder counts.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import BadInput, NotFound, StoreFailed

MANIFEST = "manifest.json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
MODEL_MANIFEST = "application/vnd.cncf.model.manifest.v1+json"
FILEPATH = "org.cncf.model.filepath"

MAX_MANIFEST_BYTES = 4 << 20
"""What registries accept at most."""
MAX_FILES = 10_000
MAX_FILE_BYTES = 64 << 30
MAX_TOTAL_BYTES = 256 << 30
MAX_PATH_BYTES = 1024
MAX_NAME_BYTES = 255
CHUNK = 1 << 20

DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)
DEVICE_NAMES = frozenset(
    ["con", "prn", "aux", "nul", *(f"com{i}" for i in range(10)), *(f"lpt{i}" for i in range(10))]
)
"""Names Windows gives to devices, whatever the ending: a package must be readable everywhere."""
CACHE = "__pycache__"
"""Folders Python writes beside the code it imports; the only unlisted thing a package folder may hold."""


@dataclass(frozen=True)
class Descriptor:
    """Bytes named by their digest, as OCI writes it. size: bytes."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)
    artifact_type: str | None = None


@dataclass(frozen=True)
class ImageManifest:
    """An OCI image manifest: a package's, or that of an artifact that refers to one (its `subject`)."""

    artifact_type: str | None
    config: Descriptor
    layers: tuple[Descriptor, ...]
    subject: Descriptor | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def is_digest(text: object) -> bool:
    return isinstance(text, str) and DIGEST.fullmatch(text) is not None


def folder_name(digest: str) -> str:
    """What the folder of a materialised package is called: `sha256-<hex>`."""
    return digest.replace(":", "-")


# --- paths


def check_path(path: str) -> str:
    """The path itself, where it is safe to write under any folder on any system. Raises BadInput with the reason.

    Relative, "/" between names, no name that is empty, `.`, `..` or a device, no backslash, control character or link
    out of Unicode, at most 1024 bytes, each name at most 255.
    """
    reason = _unsafe(path)
    if reason:
        raise BadInput(f"{_shown(path)} can't be a path in a package: {reason}.")
    return path


def _unsafe(path: str) -> str | None:
    if not path or path.startswith("/"):
        return "it must be relative and not empty"
    if any(ord(c) < 32 or ord(c) == 127 or c == "\\" for c in path):
        return "it holds a backslash or a control character"
    try:
        encoded = path.encode()
    except UnicodeEncodeError:
        return "it is not Unicode"
    if len(encoded) > MAX_PATH_BYTES:
        return f"it is longer than {MAX_PATH_BYTES} bytes"
    return next((r for r in map(_unsafe_name, path.split("/")) if r), None)


def _unsafe_name(name: str) -> str | None:
    if name in ("", ".", ".."):
        return "an empty name, . and .. lead elsewhere"
    if len(name.encode()) > MAX_NAME_BYTES:
        return f"one of its names is longer than {MAX_NAME_BYTES} bytes"
    if name.split(".")[0].rstrip(" ").lower() in DEVICE_NAMES:
        return f"{name} is a device on Windows"
    return None


def _shown(path: str) -> str:
    return ascii(path if len(path) <= 80 else path[:77] + "...")


def check_paths(paths: Iterable[str]) -> tuple[str, ...]:
    """All of a package's paths, where they can stand together in one folder, also where case or Unicode form don't count.

    Raises BadInput for an unsafe one, one that comes twice, two that differ in case only, a file that is also a folder, and
    the package manifest's own name.
    """
    known: dict[str, str] = {MANIFEST: MANIFEST}
    files: list[str] = [MANIFEST]
    for path in paths:
        names = check_path(path).split("/")
        for depth in range(1, len(names) + 1):
            part = "/".join(names[:depth])
            same = known.setdefault(_folded(part), part)
            if same != part:
                raise BadInput(f"{_shown(part)} and {_shown(same)} are one file on some systems.")
        files.append(path)
    folders = {"/".join(p.split("/")[:depth]) for p in files for depth in range(1, p.count("/") + 1)}
    twice = _first_repeated(files) or next((p for p in files if p in folders), None)
    if twice is not None:
        raise BadInput(f"{_shown(twice)} stands twice in the package.")
    return tuple(files[1:])


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def _first_repeated(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


# --- the OCI manifest


def parse_image_manifest(data: bytes) -> ImageManifest:
    """Read an OCI image manifest. Raises BadInput for anything that is none, or that passes the bounds above."""
    value = parse_json(data, "The manifest", MAX_MANIFEST_BYTES)
    if not isinstance(value, dict) or value.get("schemaVersion") != 2:
        raise BadInput("The manifest is not an OCI image manifest (schemaVersion 2).")
    if value.get("mediaType", OCI_MANIFEST) != OCI_MANIFEST:
        raise BadInput(f"The manifest is a {_shown(str(value['mediaType']))}, not an OCI image manifest.")
    layers = value.get("layers")
    if not isinstance(layers, list) or len(layers) > MAX_FILES:
        raise BadInput(f"layers: a list of at most {MAX_FILES} descriptors belongs here.")
    manifest = ImageManifest(
        artifact_type=_text(value.get("artifactType"), "artifactType") if "artifactType" in value else None,
        config=parse_descriptor(value.get("config"), "config"),
        layers=tuple(parse_descriptor(v, f"layers[{i}]") for i, v in enumerate(layers)),
        subject=parse_descriptor(value["subject"], "subject") if value.get("subject") is not None else None,
        annotations=_annotations(value.get("annotations", {}), "annotations"),
    )
    if sum(d.size for d in manifest.layers) > MAX_TOTAL_BYTES:
        raise BadInput(f"The package is larger than {MAX_TOTAL_BYTES} bytes.")
    return manifest


def parse_json(data: bytes, what: str, limit: int) -> Any:
    """JSON of at most `limit` bytes, in which no key comes twice (readers would differ). Raises BadInput."""
    if len(data) > limit:
        raise BadInput(f"{what} is {len(data)} bytes long; at most {limit} are read.")
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as cause:
        raise BadInput(f"{what} is not JSON: {cause}.") from cause


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twice = _first_repeated(k for k, _ in pairs)
    if twice is not None:
        raise ValueError(f"the key {_shown(twice)} stands twice")
    return dict(pairs)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def parse_descriptor(value: Any, path: str) -> Descriptor:
    """A descriptor's JSON value. Raises BadInput, naming `path`, where type, digest, size or annotations are wrong."""
    if not isinstance(value, dict):
        raise BadInput(f"{path}: a descriptor belongs here.")
    digest, size = value.get("digest"), value.get("size")
    if not is_digest(digest):
        raise BadInput(f"{path}.digest: sha256: and 64 hexadecimal digits belong here.")
    if type(size) is not int or not 0 <= size <= MAX_FILE_BYTES:
        raise BadInput(f"{path}.size: a whole number of bytes from 0 to {MAX_FILE_BYTES} belongs here.")
    return Descriptor(
        media_type=_text(value.get("mediaType"), f"{path}.mediaType"),
        digest=str(digest),
        size=size,
        annotations=_annotations(value.get("annotations", {}), f"{path}.annotations"),
        artifact_type=_text(value["artifactType"], f"{path}.artifactType")
        if "artifactType" in value
        else None,
    )


def _text(value: Any, path: str) -> str:
    if not isinstance(value, str) or not value or len(value) > 255 or not value.isprintable():
        raise BadInput(f"{path}: a short text belongs here.")
    return value


def _annotations(value: Any, path: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise BadInput(f"{path}: an object of texts belongs here.")
    return value


def package_files(manifest: ImageManifest) -> dict[str, Descriptor]:
    """A package's files by path, in the manifest's order. Raises BadInput where it is no package of plain files."""
    if manifest.artifact_type != MODEL_MANIFEST:
        raise BadInput(f"The manifest is no model package: its artifact type is {manifest.artifact_type!r}.")
    for i, layer in enumerate(manifest.layers):
        if not layer.media_type.endswith(".raw"):
            raise BadInput(
                f"layers[{i}] is a {layer.media_type}; only plain files (.raw) are read.",
                "Pack it with mlpacker.",
            )
        if FILEPATH not in layer.annotations:
            raise BadInput(f"layers[{i}] has no annotation {FILEPATH}, so the file has no name.")
    check_paths(d.annotations[FILEPATH] for d in manifest.layers)
    return {d.annotations[FILEPATH]: d for d in manifest.layers}


# --- the folder


class Package:
    """A materialised package, read only. Use `Package.open`. Is `formats.Files` for the formats."""

    def __init__(self, folder: Path, digest: str, files: Mapping[str, Descriptor]) -> None:
        self.folder = folder
        self.digest = digest
        self.files = files
        self._verified: set[str] = set()

    @classmethod
    def open(cls, folder: Path, digest: str) -> Package:
        """The package of that digest in that folder.

        Raises NotFound where there is none, StoreFailed where the manifest's bytes are not the digest's, BadInput where
        they are but describe no safe package.
        """
        if not is_digest(digest):
            raise BadInput(f"{_shown(digest)} is no digest.", "Give sha256: and 64 hexadecimal digits.")
        data = _read(folder, MANIFEST, MAX_MANIFEST_BYTES)
        if digest_of(data) != digest:
            raise _damaged(folder, MANIFEST)
        return cls(folder, digest, package_files(parse_image_manifest(data)))

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(sorted(self.files))

    def read(self, path: str) -> bytes:
        """The file's bytes, read once and verified. Raises NotFound, or StoreFailed where they are not the package's."""
        wanted = self._descriptor(path)
        data = _read(self.folder, path, wanted.size)
        if len(data) != wanted.size or digest_of(data) != wanted.digest:
            raise _damaged(self.folder, path)
        return data

    def file(self, path: str) -> Path:
        """A file or folder of the package on disk, verified when first asked for.

        For libraries that want a path. A folder must hold the package's files and no other: what imports from it would
        find a stray one. Raises NotFound or StoreFailed.
        """
        inside = [path] if path in self.files else [p for p in self.files if p.startswith(f"{path}/")]
        if not inside:
            raise NotFound(f"The package holds no {_shown(path)}.")
        for each in inside:
            if each not in self._verified:
                self._verify(each)
                self._verified.add(each)
        place = self.folder / path
        if path not in self.files:
            self._check_nothing_else(place)
        return place

    def verify(self) -> None:
        """Read every byte again. Raises StoreFailed naming the first file that is missing, changed or too much."""
        for path in self.paths:
            self._verify(path)
        self._check_nothing_else(self.folder)

    def _descriptor(self, path: str) -> Descriptor:
        if path not in self.files:
            raise NotFound(f"The package holds no file {_shown(path)}.")
        return self.files[path]

    def _verify(self, path: str) -> None:
        wanted = self.files[path]
        with _opened(self.folder, path) as fd:
            hashed = hashlib.sha256()
            size = 0
            for chunk in _chunks(fd, wanted.size):
                hashed.update(chunk)
                size += len(chunk)
        if size != wanted.size or f"sha256:{hashed.hexdigest()}" != wanted.digest:
            raise _damaged(self.folder, path)

    def _check_nothing_else(self, folder: Path) -> None:
        for parent, folders, names in os.walk(folder):
            linked = [n for n in folders if Path(parent, n).is_symlink()]
            folders[:] = [n for n in folders if n != CACHE and n not in linked]
            for name in (*names, *linked):
                path = Path(parent, name).relative_to(self.folder).as_posix()
                if path not in self.files and path != MANIFEST:
                    raise StoreFailed(
                        f"{Path(parent, name)} is not of the package {self.digest}.",
                        f"Remove it, or remove {self.folder}: it is made again from the store.",
                    )


def _damaged(folder: Path, path: str) -> StoreFailed:
    return StoreFailed(
        f"{folder / path} is not what the package's digest says.",
        f"Remove {folder}: it is made again from the store.",
        path=path,
    )


def _read(folder: Path, path: str, limit: int) -> bytes:
    """At most limit + 1 bytes of a file: one more than there should be shows that there are too many."""
    with _opened(folder, path) as fd:
        return b"".join(_chunks(fd, limit))


def _chunks(fd: int, limit: int) -> Iterator[bytes]:
    left = limit + 1
    while left > 0 and (chunk := os.read(fd, min(CHUNK, left))):
        left -= len(chunk)
        yield chunk


@contextmanager
def _opened(folder: Path, path: str) -> Iterator[int]:
    """A regular file of the folder, reached without following any link below the folder itself."""
    fds: list[int] = []
    try:
        fds.append(os.open(folder, os.O_RDONLY | os.O_DIRECTORY))
        *parents, name = path.split("/")
        for parent in parents:
            fds.append(os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fds[-1]))
        # O_NONBLOCK: opening a pipe somebody put in the file's place must not wait for a writer.
        fds.append(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=fds[-1]))
        if not stat.S_ISREG(os.fstat(fds[-1]).st_mode):
            raise _damaged(folder, path)
        yield fds[-1]
    except FileNotFoundError as cause:
        if path == MANIFEST:
            raise NotFound(f"There is no package in {folder}.") from cause
        raise _damaged(folder, path) from cause
    except OSError as cause:
        raise StoreFailed(
            f"{folder / path} can't be read: {cause.strerror}.",
            f"Remove {folder}: it is made again from the store.",
        ) from cause
    finally:
        for fd in fds:
            os.close(fd)
