"""Formats: how a model file becomes something that predicts.

One adapter is one module of this folder (or of a package that names it in the entry point group `mlpacker.formats`), and
the only one that imports the foreign library. It has the attributes of `Format`; the core finds it by name.
Adapters also run inside a user's training interpreter: standard library, NumPy and the model's own library only.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..batch import Batch, Outcome
from ..errors import BadInput
from ..manifest import Stage
from ..signature import Field

BUILT_IN = ("onnx", "xgboost", "lightgbm", "catboost", "mlflow", "function", "sklearn")
"""In the order they are asked whether a file is theirs."""
ENTRY_POINTS = "mlpacker.formats"
HEAD = 4096


class Files(Protocol):
    """The files of a package (or of a folder that is to become one), read only."""

    @property
    def paths(self) -> tuple[str, ...]: ...

    def read(self, path: str) -> bytes:
        """The verified bytes. Raises StoreFailed where they are not what the package's digest says."""

    def file(self, path: str) -> Path:
        """A verified file (or folder) on disk, for libraries that want a path."""


@dataclass(frozen=True)
class Trust:
    """What this machine accepts of this package beyond the allow-list: names as `module.name`, and code.

    modules: those whose source the user packs with `--code`, `__main__` among them where it is the training script's.
    """

    names: frozenset[str] = frozenset()
    code: bool = False
    modules: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Facts:
    """What a model file says of itself without being built.

    versions: distribution → version, as written in the file. modules: top-level imports it needs.
    requirements: PEP 508 lines that came with it. python: the minor version it is bound to, as "3.11".
    code: it holds or names code. sample, expected: paths of an example and its stored answers, where it brings them.
    inputs, outputs: the signature, where the file states one.
    beside: paths of further files in its folder that it reads. options: what `load` is to find in the stage's options.
    """

    versions: dict[str, str] = field(default_factory=dict)
    modules: tuple[str, ...] = ()
    requirements: tuple[str, ...] = ()
    python: str | None = None
    code: bool = False
    trusted: tuple[str, ...] = ()
    sample: str | None = None
    expected: str | None = None
    inputs: tuple[Field, ...] | None = None
    outputs: tuple[Field, ...] | None = None
    notes: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Description:
    """What a loaded model says of itself.

    inputs: None where the model does not know. methods: the outputs it offers, the first being its plain answer; `()`
    where it has one answer without a name. inner: the methods an inner stage uses by default.
    takes: how it wants its rows. versions: of the libraries it runs on, as installed here.
    outputs: what it declares to give, as a function's annotations do; None where only a sample shows it.
    untyped: names of inputs whose dtype the model does not tell, and a sample may.
    labels: the classes in the order of the probabilities' columns, where it classifies.
    """

    inputs: tuple[Field, ...] | None
    methods: tuple[str, ...]
    inner: tuple[str, ...]
    takes: str
    versions: dict[str, str] = field(default_factory=dict)
    stateful: bool = False
    notes: tuple[str, ...] = ()
    untyped: tuple[str, ...] = ()
    labels: tuple[Any, ...] = ()
    outputs: tuple[Field, ...] | None = None


class Predictor(Protocol):
    """A loaded stage. Called from one thread at a time."""

    def describe(self) -> Description: ...

    def predict(self, batch: Batch, want: frozenset[str] | None) -> Outcome:
        """Answer a batch, computing only the wanted outputs (None: all of the stage's methods).

        The outcome's rows are identities of the batch's rows. May raise anything: the engine turns it into row errors.
        """


class Format(Protocol):
    """What an adapter module offers."""

    name: str

    def matches(self, files: Files, path: str) -> bool:
        """Whether this file or folder is of the format, by its content. Builds nothing and never raises for other bytes."""

    def inspect(self, files: Files, path: str, trust: Trust) -> Facts:
        """Audit and read the facts without building anything. Raises Refused or BadInput."""

    def load(self, files: Files, stage: Stage, trust: Trust) -> Predictor:
        """Build it, under the same audit. Raises Refused, BadInput or EnvironmentFailed (a library is missing)."""


def get(name: str) -> Any:
    """The adapter of that name. Raises BadInput for one nobody knows."""
    if name in BUILT_IN:
        return importlib.import_module(f"{__name__}.{name}")
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS, name=name):
        return point.load()
    raise BadInput(
        f"There is no format {name!r} here.", f"Known are {', '.join(BUILT_IN)}; a plugin adds more."
    )


def names() -> Iterator[str]:
    yield from BUILT_IN
    yield from sorted(
        p.name for p in importlib.metadata.entry_points(group=ENTRY_POINTS) if p.name not in BUILT_IN
    )


def find(files: Files, path: str) -> str:
    """The name of the format whose content this is. Raises BadInput where it is nobody's."""
    for name in names():
        if get(name).matches(files, path):
            return name
    raise BadInput(
        f"{path} is not a model of any known format ({', '.join(names())}).",
        "Give a model file, a logged MLflow folder, or FILE.py:FUNCTION.",
    )


class FolderFiles:
    """Files of a plain folder: a package in the making, on the machine that makes it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(sorted(p.relative_to(self.root).as_posix() for p in self.root.rglob("*") if p.is_file()))

    def read(self, path: str) -> bytes:
        return self.file(path).read_bytes()

    def file(self, path: str) -> Path:
        return self.root / path


def versions(*distributions: str) -> dict[str, str]:
    """Installed versions of these distributions, those that are installed."""
    found = {}
    for name in distributions:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
