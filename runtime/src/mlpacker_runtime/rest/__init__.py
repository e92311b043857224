"""REST: a pipeline's answers over HTTP, in three protocols, on one port.

The way of a request: `connection` (bytes to a Request, with every limit) → `service` (which route) → a protocol
(`v2`, `invocations`, `plain`: their body to a batch through `rows`) → `batching` → the protocol again (the outcome to a
body through `answers`) → `connection`. A protocol knows nothing of sockets, and a connection nothing of models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..batch import Batch
from ..errors import MlpackerError
from ..manifest import Manifest
from ..signature import Field

JSON = "application/json"


@dataclass(frozen=True)
class Served:
    """What is being served: the package as requests see it.

    digest: `sha256:…`, or None for a draft. sample: columns of plain JSON values, as the package holds them.
    methods: the outputs that can be asked for by name and are then the only ones computed.
    plain: what MLflow's protocol asks for: each last stage's plain answer; None where stages name no methods.
    """

    manifest: Manifest
    digest: str | None = None
    sample: Mapping[str, list] | None = None
    methods: frozenset[str] = frozenset()
    plain: frozenset[str] | None = None

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def version(self) -> str:
        return self.manifest.version or "1"

    @property
    def inputs(self) -> tuple[Field, ...]:
        return self.manifest.inputs

    @property
    def outputs(self) -> tuple[Field, ...]:
        return self.manifest.outputs

    @property
    def reference(self) -> str:
        return f"{self.name}@{self.digest or 'draft'}"


def served(manifest: Manifest, digest: str | None = None, sample: Mapping[str, list] | None = None) -> Served:
    last = [manifest.stage(n) for n in manifest.last]
    methods = frozenset(m for s in last for m in s.methods)
    plain = frozenset(s.methods[0] for s in last if s.methods) if all(s.methods for s in last) else None
    return Served(manifest, digest, sample, methods, plain)


@dataclass(slots=True)
class Request:
    """One request, its body whole and unpacked. headers: names in lower case."""

    method: str
    path: str
    query: str
    headers: dict[bytes, bytes]
    body: bytes

    def header(self, name: bytes) -> str:
        return self.headers.get(name, b"").decode("latin-1")


@dataclass(slots=True)
class Response:
    status: int
    body: bytes
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()


class Rejected(MlpackerError):
    """A request that is answered with this status and sentence."""

    def __init__(self, status: int, sentence: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(sentence)
        self.status = status
        self.headers = headers


@dataclass(slots=True)
class Asked:
    """What a protocol made of a body: rows to answer, and what it must remember to word the answer.

    count: rows in the request. errors: rows that could not be read, by number; they are not in the batch.
    want: the outputs to compute, None for all.
    """

    batch: Batch
    count: int
    errors: dict[int, str]
    want: frozenset[str] | None = None
    partial: bool = False
    form: object = None


def in_order(batch: Batch) -> Batch:
    """The rows as they were asked: a stage may have sorted them."""
    rows = batch.rows
    if len(rows) < 2 or bool((rows[1:] >= rows[:-1]).all()):
        return batch
    return batch.take(np.argsort(rows, kind="stable"))
