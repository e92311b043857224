"""`mlpacker.json`: what a package says of itself. The run half of the package; the OCI manifest is the store half.

Read and written with the standard library, because it is also read inside a user's training interpreter.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field
from typing import Any

from .errors import BadInput
from .signature import Field, Signature

SCHEMA = 1
PATH = "mlpacker.json"
MAX_BYTES = 16 << 20
INPUT = "input"
"""The name by which a stage asks for the request's own rows."""


@dataclass(frozen=True)
class Stage:
    """One step: batch in, batch out, an outcome per row.

    format: the adapter's name (`formats/`). path: the model's file or folder, or the code file, inside the package.
    after: where the rows come from: names of stages, or `input`.
    entry, args: which function or class of a code file, and what the class is made with.
    methods: what it answers with, each an output (`predict`, `predict_proba`, `transform` …); () where it has one answer.
    takes: `frame`, `matrix`, `columns`, `record` or `records`: how the rows are handed over.
    batch: `rows` (each row's answer is its own) or `request` (depends on its neighbours: whole requests only).
    stateful: what it saw before changes its answers, so a failed batch is not tried again in halves.
    trusted: imports outside the allow-list that the packer accepted, as `module.name`.
    code: paths of packed code files and folders the model refers to.
    """

    name: str
    format: str
    path: str
    after: tuple[str, ...] = (INPUT,)
    entry: str | None = None
    args: dict[str, Any] = field(default_factory=dict)
    methods: tuple[str, ...] = ()
    takes: str | None = None
    environment: str = "default"
    inputs: tuple[Field, ...] = ()
    outputs: tuple[Field, ...] = ()
    batch: str = "rows"
    stateful: bool = False
    trusted: tuple[str, ...] = ()
    code: tuple[str, ...] = ()
    holds_code: bool = False
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Environment:
    """python: the minor version, as "3.11". lock: the path of the lock inside the package."""

    python: str
    lock: str


@dataclass(frozen=True)
class Manifest:
    """schema: of this document. runtime: the range of runtime versions that can run it, as PEP 440 writes it."""

    name: str
    stages: tuple[Stage, ...]
    inputs: tuple[Field, ...]
    outputs: tuple[Field, ...]
    environments: dict[str, Environment] = field(default_factory=dict)
    version: str | None = None
    runtime: str = ">=0.1,<1"
    sample: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def signature(self) -> Signature:
        return Signature(self.inputs, self.outputs)

    @property
    def holds_code(self) -> bool:
        """True where running it runs code or trusted imports somebody else chose."""
        return any(s.holds_code or s.trusted for s in self.stages)

    def stage(self, name: str) -> Stage:
        return next(s for s in self.stages if s.name == name)

    @property
    def last(self) -> tuple[str, ...]:
        """The stages nobody comes after: the pipeline's answer."""
        fed = {a for s in self.stages for a in s.after}
        return tuple(s.name for s in self.stages if s.name not in fed)


def encode(manifest: Manifest) -> bytes:
    """Canonical bytes: defaults left out, keys sorted, so that the same manifest is the same digest."""
    return json.dumps(to_plain(manifest), sort_keys=True, indent=1, ensure_ascii=False).encode() + b"\n"


def decode(data: bytes) -> Manifest:
    """Raises BadInput, naming the path, for anything a manifest of this schema can't be."""
    if len(data) > MAX_BYTES:
        raise BadInput(f"{PATH} is {len(data)} bytes long; a manifest has at most {MAX_BYTES}.")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as cause:
        raise BadInput(f"{PATH} is not JSON: {cause}.") from cause
    if isinstance(value, dict) and value.get("schema", SCHEMA) != SCHEMA:
        raise BadInput(
            f"{PATH} has schema {value['schema']!r}; this runtime reads {SCHEMA}.", "Use a newer mlpacker."
        )
    return from_plain(Manifest, value, PATH)


def to_plain(value: Any) -> Any:
    """Dataclasses as JSON values, fields at their defaults left out."""
    if dataclasses.is_dataclass(value):
        return {
            f.name: to_plain(getattr(value, f.name))
            for f in dataclasses.fields(value)
            if f.name == "schema" or getattr(value, f.name) != _default(f)
        }
    if isinstance(value, dict):
        return {str(k): to_plain(v) for k, v in value.items()}
    return [to_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _default(f: dataclasses.Field[Any]) -> Any:
    return f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default


def from_plain(kind: Any, value: Any, path: str) -> Any:
    """A JSON value as `kind` (a dataclass, a container of them, or a scalar). Strict: raises BadInput with the path."""
    origin = typing.get_origin(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in typing.get_args(kind):
            return None
        return from_plain(next(a for a in typing.get_args(kind) if a is not type(None)), value, path)
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, _expect(dict, value, path), path)
    if origin is tuple:
        inner = typing.get_args(kind)[0]
        return tuple(from_plain(inner, v, f"{path}[{i}]") for i, v in enumerate(_expect(list, value, path)))
    if origin is dict:
        inner = typing.get_args(kind)[1]
        return {k: from_plain(inner, v, f"{path}.{k}") for k, v in _expect(dict, value, path).items()}
    return _expect(kind, value, path)


def _expect(kind: type, value: Any, path: str) -> Any:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise BadInput(f"{path}: {type(value).__name__} where {kind.__name__} belongs.")
    return value


def _dataclass(kind: Any, value: dict[str, Any], path: str) -> Any:
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(value) - set(hints))
    if unknown:
        raise BadInput(f"{path}.{unknown[0]}: unknown key.")
    given = {k: from_plain(hints[k], v, f"{path}.{k}") for k, v in value.items()}
    missing = [
        f.name for f in dataclasses.fields(kind) if f.name not in given and _default(f) is dataclasses.MISSING
    ]
    if missing:
        raise BadInput(f"{path}.{missing[0]}: missing.")
    return kind(**given)
