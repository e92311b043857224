"""What changed between two packages: models, code, pins, signature. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mlpacker_runtime.manifest import PATH, Manifest, to_plain

from ..environments.lock import Lock


@dataclass(frozen=True)
class Side:
    """One package as far as a comparison looks. layers: path → digest. locks: by environment."""

    manifest: Manifest
    layers: Mapping[str, str]
    locks: Mapping[str, Lock]


@dataclass(frozen=True)
class Change:
    """kind: model, code, sample, pin, python, signature, stage or name. before, after: None where it is new or gone."""

    kind: str
    what: str
    before: str | None
    after: str | None

    def __str__(self) -> str:
        if self.before is None:
            return f"+ {self.kind} {self.what}: {self.after}"
        if self.after is None:
            return f"- {self.kind} {self.what}: {self.before}"
        return f"~ {self.kind} {self.what}: {self.before} → {self.after}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def changes(a: Side, b: Side) -> list[Change]:
    """In the order a reader asks: name, signature, stages, models and code, pins."""
    return [*_names(a, b), *_signature(a, b), *_stages(a, b), *_files(a, b), *_pins(a, b)]


def _compared(kind: str, a: Mapping[str, str], b: Mapping[str, str]) -> Iterator[Change]:
    for key in sorted(a.keys() | b.keys()):
        if a.get(key) != b.get(key):
            yield Change(kind, key, a.get(key), b.get(key))


def _names(a: Side, b: Side) -> Iterator[Change]:
    def said(m: Manifest) -> dict[str, str]:
        return {"name": m.name, **({"version": m.version} if m.version else {})}

    return _compared("name", said(a.manifest), said(b.manifest))


def _signature(a: Side, b: Side) -> Iterator[Change]:
    def said(m: Manifest) -> dict[str, str]:
        sides = (("input", m.inputs), ("output", m.outputs))
        return {f"{side} {f.name}": _field(f) for side, fields in sides for f in fields}

    return _compared("signature", said(a.manifest), said(b.manifest))


def _field(field: Any) -> str:
    shape = f" {list(field.shape[1:])}" if len(field.shape) > 1 else ""
    return f"{field.dtype}{shape}{' nullable' if field.nullable else ''}"


def _stages(a: Side, b: Side) -> Iterator[Change]:
    def said(m: Manifest) -> dict[str, str]:
        hidden = ("name", "inputs", "outputs")
        return {
            s.name: ", ".join(f"{k}={v}" for k, v in sorted(to_plain(s).items()) if k not in hidden)
            for s in m.stages
        }

    return _compared("stage", said(a.manifest), said(b.manifest))


def _files(a: Side, b: Side) -> Iterator[Change]:
    kinds = {"models": "model", "code": "code", "sample.json": "sample"}
    for change in _compared("file", a.layers, b.layers):
        top = change.what.partition("/")[0]
        if change.what != PATH and top != "env":
            yield Change(kinds.get(top, "file"), change.what, _short(change.before), _short(change.after))


def _short(digest: str | None) -> str | None:
    return None if digest is None else digest[:19]


def _pins(a: Side, b: Side) -> Iterator[Change]:
    for name in sorted(a.locks.keys() | b.locks.keys()):
        before, after = a.locks.get(name), b.locks.get(name)
        pythons = ({"": before.python} if before else {}), ({"": after.python} if after else {})
        for change in _compared("python", *pythons):
            yield Change("python", name, change.before, change.after)
        for platform in sorted({*(before.platforms if before else ()), *(after.platforms if after else ())}):
            yield from _compared("pin", _pins_of(before, name, platform), _pins_of(after, name, platform))


def _pins_of(lock: Lock | None, name: str, platform: str) -> dict[str, str]:
    locked = lock.platforms.get(platform) if lock is not None else None
    return {f"{name}/{platform}/{pin.name}": pin.version for pin in locked.pins} if locked is not None else {}
