"""Plain Python functions and classes: `FILE.py:NAME`. What they take and give is what their annotations say (`calls`).

The source is read without being run: what it imports, which names it has. Running it needs the machine's consent.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib.util
import inspect as inspection
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ..calls import CallablePredictor
from ..errors import BadInput, MlpackerError, Refused
from ..importing import import_file
from ..manifest import Stage
from . import Facts, Files, Trust, versions

name = "function"

CALLED = {
    "sklearn": "scikit-learn",
    "skimage": "scikit-image",
    "PIL": "pillow",
    "cv2": "opencv-python",
    "yaml": "pyyaml",
}
"""Distributions that are not called as their module. Asking the metadata for all of them takes half a second."""
MAX_SOURCE = 4 << 20
HANDED_OVER = ("pandas", "scipy")
OURS = ("mlpacker", "mlpacker_runtime")


@dataclass(frozen=True)
class Source:
    """What a Python file says without being run.

    modules: the top-level modules it imports and can't do without. optional: those it tries, and does without.
    names: what the file binds, and on which line. defined: its own functions and classes among them. open: it imports with
    a star, so it may have more names.
    """

    modules: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()
    names: dict[str, int] = field(default_factory=dict)
    defined: tuple[str, ...] = ()
    open: bool = False


def matches(files: Files, path: str) -> bool:
    if not path.endswith(".py"):
        return False
    try:
        read(files.read(path), path)
    except (OSError, MlpackerError):
        return False
    return True


def inspect(files: Files, path: str, trust: Trust) -> Facts:
    modules, optional = imports(files, path)
    notes = tuple(f"{path} can use {m}, and does without." for m in sorted(optional - modules))
    return Facts(modules=tuple(sorted(modules)), code=True, notes=notes)


def load(files: Files, stage: Stage, trust: Trust) -> CallablePredictor:
    label = f"{PurePosixPath(stage.path).name}:{stage.entry}"
    if stage.entry is None:
        raise BadInput(
            f"{stage.path} is code, and which of its functions to call was not said.", "Say FILE.py:FUNCTION."
        )
    if not trust.code:
        raise Refused(
            f"{label} is Python code, and this machine has not accepted code from this package.",
            "Read it, and if you trust who made it, say --trust-code.",
            names=(label,),
        )
    source = read(files.read(stage.path), stage.path)
    check_entry(source, stage.path, stage.entry)
    place = files.file(stage.path)
    called = _module_name(place)
    if str(place.parent) not in sys.path:
        sys.path.insert(0, str(place.parent))
    module = import_file(place, called)
    target = _made(getattr(module, stage.entry, None), stage, label)
    modules, _ = imports(files, stage.path)
    return CallablePredictor(
        target,
        stage,
        frames="pandas" in source.modules,
        source=place.name,
        versions=versions(*(CALLED.get(m, m) for m in sorted(modules))),
    )


def _module_name(place: Path) -> str:
    """The file's own name, unless something else here goes by it: a library must stay what it is."""
    try:
        spec = importlib.util.find_spec(place.stem)
    except (ImportError, ValueError):
        spec = None
    return place.stem if spec is None or spec.origin == str(place) else f"stage_{place.stem}"


def _made(target: Any, stage: Stage, label: str) -> Any:
    """The thing to call: a class is made with the args, a function is given them as keywords."""
    if target is None:
        raise BadInput(f"{stage.path} has no {stage.entry!r} once it has been imported.")
    if inspection.isclass(target):
        try:
            inspection.signature(target).bind(**stage.args)
            return target(**stage.args)
        except TypeError as cause:
            raise BadInput(
                f"{label} can't be made: {cause}.", "Give what it is made with under args."
            ) from cause
        except Exception as cause:
            raise BadInput(f"{label} can't be made: {type(cause).__name__}: {cause}.") from cause
    if not callable(target) and not any(hasattr(target, m) for m in ("predict", "transform")):
        raise BadInput(f"{label} is a {type(target).__name__}, which is neither a function nor a class.")
    if not stage.args:
        return target
    try:
        inspection.signature(target).bind_partial(**stage.args)
    except TypeError as cause:
        raise BadInput(f"{label} can't be given its args: {cause}.") from cause
    return functools.partial(target, **stage.args)


# ---- reading source


@functools.lru_cache(maxsize=64)
def read(data: bytes, path: str) -> Source:
    """A file's source, parsed and not run. Raises BadInput, naming the line, for what is not Python."""
    if len(data) > MAX_SOURCE:
        raise BadInput(f"{path} is {len(data)} bytes long; a code file has at most {MAX_SOURCE}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what its author was told when it was written
            tree = ast.parse(data)
    except SyntaxError as cause:
        raise BadInput(
            f"{path}:{cause.lineno or 1}: not Python {sys.version_info[0]}.{sys.version_info[1]}: {cause.msg}."
        ) from cause
    except (ValueError, RecursionError, MemoryError) as cause:
        raise BadInput(f"{path} is not Python: {cause}.") from cause
    try:
        return _source(tree)
    except RecursionError as cause:
        raise BadInput(f"{path} is nested too deeply to be read.") from cause


def _source(tree: ast.Module) -> Source:
    needed: set[str] = set()
    optional: set[str] = set()
    for node, tried in _walk(tree, False):
        (optional if tried else needed).update(_imported(node))
        if isinstance(node, ast.If) and _for_type_checkers(
            node.test
        ):  # a DataFrame in an annotation is one at work
            needed.update(m for n in ast.walk(node) for m in _imported(n) if m in HANDED_OVER)
    names = {n: line for statement in tree.body for n, line in _bound(statement)}
    defined = tuple(
        n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
    )
    return Source(frozenset(needed), frozenset(optional - needed), names, defined, "*" in names)


def _walk(node: ast.AST, tried: bool) -> Iterator[tuple[ast.AST, bool]]:
    """Every node, and whether it stands in a `try` that survives a missing module. What is for type checkers is left out."""
    yield node, tried
    if isinstance(node, ast.If) and _for_type_checkers(node.test):
        for child in node.orelse:
            yield from _walk(child, tried)
        return
    safe = isinstance(node, ast.Try) and any(_catches_import(h) for h in node.handlers)
    for name_, value in ast.iter_fields(node):
        children = value if isinstance(value, list) else [value]
        for child in children:
            if isinstance(child, ast.AST):
                yield from _walk(child, tried or (safe and name_ == "body"))


def _for_type_checkers(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def _catches_import(handler: ast.ExceptHandler) -> bool:
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(
        c is None or (isinstance(c, ast.Name) and c.id in ("ImportError", "ModuleNotFoundError", "Exception"))
        for c in caught
    )


def _imported(node: ast.AST) -> set[str]:
    """Top-level modules that this node imports, `importlib.import_module("name")` included."""
    if isinstance(node, ast.Import):
        return {a.name.split(".")[0] for a in node.names}
    if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
        return {node.module.split(".")[0]}
    if (
        isinstance(node, ast.Call)
        and node.args
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
    ):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if called in ("import_module", "__import__") and not node.args[0].value.startswith("."):
            return {node.args[0].value.split(".")[0]}
    return set()


def _bound(statement: ast.stmt) -> Iterator[tuple[str, int]]:
    """The names a top-level statement binds, inside `if`, `try` and `with` too."""
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield statement.name, statement.lineno
        return
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name, node.lineno
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from ((a.asname or a.name.split(".")[0], node.lineno) for a in node.names)


def check_entry(source: Source, path: str, entry: str) -> None:
    """Raises BadInput where the file can't have that name, with the one that was probably meant."""
    if entry in source.names or source.open or "__getattr__" in source.names:
        return
    if "." in entry:
        raise BadInput(
            f"{entry!r} is not the name of a function or class in {path}.",
            "Name one that stands at the file's top level.",
        )
    close = difflib.get_close_matches(entry, source.names, 1, 0.5)
    have = ", ".join(source.defined[:12]) or "none"
    raise BadInput(
        f"{path} has no function or class {entry!r}.",
        f"Did you mean {close[0]!r}?" if close else f"It has {have}.",
    )


def imports(files: Files, path: str) -> tuple[frozenset[str], frozenset[str]]:
    """The foreign top-level modules a code file needs and those it can use, through the packed files it imports."""
    needed: set[str] = set()
    optional: set[str] = set()
    for local in local_files(files, path):
        source = read(files.read(local), local)
        needed |= source.modules
        optional |= source.optional
    beside = set(_siblings(files, path, needed | optional))
    foreign = beside | sys.stdlib_module_names | set(OURS)
    return frozenset(needed - foreign), frozenset(optional - needed - foreign)


def local_files(files: Files, path: str) -> tuple[str, ...]:
    """The code file and those beside it that it imports, and that these import."""
    found = [path]
    for current in found:
        source = read(files.read(current), current)
        for places in _siblings(files, path, source.modules | source.optional).values():
            found += [p for p in places if p not in found]
    return tuple(found)


def _siblings(files: Files, path: str, modules: frozenset[str] | set[str]) -> dict[str, list[str]]:
    """Module → its files beside the code file: `module.py`, or all of a folder's."""
    folder = PurePosixPath(path).parent
    found = {}
    for module in sorted(modules):
        file, package = folder / f"{module}.py", folder / module
        if _is_file(files, str(file)):
            found[module] = [str(file)]
        elif _is_folder(files, str(package)):
            inside = sorted(
                p.relative_to(files.file(str(package))).as_posix()
                for p in files.file(str(package)).rglob("*.py")
            )
            if inside:
                found[module] = [str(package / p) for p in inside]
    return found


def _is_file(files: Files, path: str) -> bool:
    try:
        return files.file(path).is_file()
    except (OSError, KeyError, MlpackerError):
        return False


def _is_folder(files: Files, path: str) -> bool:
    try:
        return files.file(path).is_dir()
    except (OSError, KeyError, MlpackerError):
        return False
