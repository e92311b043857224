"""skops files: a zip with a `schema.json` that says which class each part is, and arrays as `.npy` beside it.

skops brings an audit of its own, by type names. Ours comes first, over the same names as for pickles and over how each
part would be built (the schema's `__loader__`), because what a loader does differs between skops releases. Only then
does skops construct, with exactly the names in the file as trusted.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import zipfile
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from types import ModuleType

from mlpacker_runtime.audit.allowlist import CALL, NEW, Policy
from mlpacker_runtime.audit.limits import LIMITS, Limits
from mlpacker_runtime.audit.report import Report
from mlpacker_runtime.audit.rules import MAKES_INSTANCES, RULES, never
from mlpacker_runtime.errors import BadInput, EnvironmentFailed

SCHEMA = "schema.json"
SCHEMA_BYTES = 256 * 1024 * 1024

# numpy.random.Generator is rebuilt by calling numpy.random.NAME, with a name that stands in the file as a mere text.
_GENERATOR = "RandomGeneratorNode"
_BIT_GENERATORS = frozenset({"MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64"})

# What each loader of skops does with the class it is given.
_MENTIONS = frozenset({"TypeNode", "FunctionNode"})
_BUILDS = frozenset({"ObjectNode", "TupleNode", "DictNode", "_DictWithDeprecatedKeysNode", "LossNode"})
_CALLS = frozenset({"ConstructorFromReduceNode", "TreeNode", "ReduceNode"})
_BUILDS_ONLY: dict[str, frozenset[str]] = {
    "ListNode": frozenset({"builtins.list"}),
    "SetNode": frozenset({"builtins.set", "builtins.frozenset"}),
    "DefaultDictNode": frozenset({"collections.defaultdict"}),
    "SliceNode": frozenset({"builtins.slice"}),
    "JsonNode": frozenset({"builtins.str"}),
    "BytesNode": frozenset({"builtins.bytes"}),
    "BytearrayNode": frozenset({"builtins.bytearray"}),
    _GENERATOR: frozenset({"numpy.random._generator.Generator"}),
    "RandomStateNode": frozenset({"numpy.random.mtrand.RandomState"}),
    "DTypeNode": frozenset({"numpy.dtype"}),
    "DtypeNode": frozenset({"numpy.dtype"}),
}
# Array loaders: any listed class of these modules, but none that opens files.
_ARRAYS = frozenset({"NdArrayNode", "MaskedArrayNode", "SparseMatrixNode"})
_ARRAY_MODULES = ("numpy", "scipy.sparse")
_OPENS_FILES = frozenset({"numpy.memmap"})


@dataclass
class _Found:
    names: set[tuple[str, str]] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    hopeless: set[str] = field(default_factory=set)
    sklearn: Counter[str] = field(default_factory=Counter)


def scan_skops(
    data: bytes,
    *,
    trusted: Collection[str] = (),
    code_modules: Collection[str] = (),
    limits: Limits = LIMITS,
) -> Report:
    """What a skops file names, and which of it is not accepted. Arguments and errors as for `scan`."""
    policy = Policy.of(trusted, code_modules, trust_code=False)
    return _scan(data, policy, limits)[0]


def load_skops(
    data: bytes,
    *,
    trusted: Collection[str] = (),
    code_modules: Collection[str] = (),
    main_module: ModuleType | None = None,
    limits: Limits = LIMITS,
) -> object:
    """Scan these bytes, then let skops build the object in them. Arguments and errors as for `load`."""
    if main_module is not None:
        code_modules = {*code_modules, "__main__"}
    report, found = _scan(data, Policy.of(trusted, code_modules, trust_code=False), limits)
    report.check()
    try:
        import skops.io
    except ImportError as error:
        raise EnvironmentFailed(
            "This is a skops file, and the package skops is not installed here.",
            "Install skops.",
            module="skops",
        ) from error
    names = sorted(f"{module}.{name}" for module, name in found.names)
    with _as_main(main_module):
        return _construct(skops.io.loads, data, names)


def _construct(loads, data: bytes, names: list[str]) -> object:  # type: ignore[no-untyped-def]
    try:
        return loads(data, trusted=names)
    except ImportError as error:
        raise EnvironmentFailed(
            f"The model needs what can't be imported here: {error}.", "Use the versions it was saved with."
        ) from error
    except Exception as error:  # whatever skops or a class in the file raises
        raise BadInput(
            f"The model in this skops file can't be rebuilt here: {type(error).__name__}: {error}.",
            "Use the versions it was saved with.",
        ) from error


@contextlib.contextmanager
def _as_main(module: ModuleType | None) -> Iterator[None]:
    """skops imports `__main__` by its name, so it is another module for as long as it builds."""
    if module is None:
        yield
        return
    before = sys.modules["__main__"]
    sys.modules["__main__"] = module
    try:
        yield
    finally:
        sys.modules["__main__"] = before


def _scan(data: bytes, policy: Policy, limits: Limits) -> tuple[Report, _Found]:
    schema, size = _schema(data, limits)
    found = _Found()
    nodes = list(_nodes(schema))
    if any(type(node.get("__id__", 0)) is not int for node in nodes):
        raise never("A part of this skops file has an id that is no number.")
    _check_generators(nodes)
    for node in nodes:
        _judge(node, policy, found)
        _version(node, found)
    return _report(schema, size, found), found


def _schema(data: bytes, limits: Limits) -> tuple[dict[str, object], int]:
    """The parsed `schema.json` and the unpacked size of the file, once its members are within bounds."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            size = _check_members(archive, len(data), limits)
            _check_nested(archive, size, limits)
            schema = json.loads(archive.read(SCHEMA))
    except (zipfile.BadZipFile, KeyError, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise BadInput(
            f"This is not a whole skops file: {error}.", "Send the file again as it was saved."
        ) from error
    except (ValueError, RecursionError) as error:
        raise BadInput(
            "The schema in this skops file is not readable.", "Save the model again with skops."
        ) from error
    if not isinstance(schema, dict):
        raise BadInput("The schema in this skops file is not an object.", "Save the model again with skops.")
    return schema, size


def _check_members(archive: zipfile.ZipFile, compressed: int, limits: Limits) -> int:
    members = archive.infolist()
    if len(members) > limits.members:
        raise BadInput(f"This skops file has more than {limits.members} members.", "No model does.")
    names = [member.filename for member in members]
    if len(set(names)) != len(names):
        raise never("This skops file holds two members of one name.")
    for member in members:
        if not _inside(member.filename):
            raise never(f"This skops file has a member outside of itself: {member.filename[:80]!r}.")
    size = sum(member.file_size for member in members)
    bound = min(limits.bytes, max(limits.ratio_from, compressed * limits.ratio))
    if size > bound or archive.getinfo(SCHEMA).file_size > SCHEMA_BYTES:
        raise BadInput(f"This skops file of {compressed} bytes unpacks to {size} bytes.", "No model does.")
    return size


def _inside(name: str) -> bool:
    return (
        bool(name)
        and not name.startswith(("/", "\\"))
        and ":" not in name
        and ".." not in name.split("/")
        and "\\" not in name
    )


def _check_nested(archive: zipfile.ZipFile, size: int, limits: Limits) -> None:
    """Sparse matrices are `.npz` members, which are zips again."""
    for member in archive.infolist():
        if not member.filename.endswith(".npz"):
            continue
        with zipfile.ZipFile(io.BytesIO(archive.read(member))) as nested:
            inner = sum(part.file_size for part in nested.infolist())
        if inner > min(limits.bytes, max(limits.ratio_from, member.file_size * limits.ratio)):
            raise BadInput(f"A member of this skops file unpacks to {inner} bytes.", "No model does.")


def _nodes(schema: object) -> Iterator[dict[str, object]]:
    """Every object anywhere in the schema that says how it is built."""
    waiting = [schema]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if "__loader__" in value or "__class__" in value or "__module__" in value:
                yield value
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


def _check_generators(nodes: list[dict[str, object]]) -> None:
    """skops hands out a part it has seen before for another of the same id, so every part of that id is looked at."""
    states = [
        _inside_of(node, "content", "bit_generator") for node in nodes if node.get("__loader__") == _GENERATOR
    ]
    ids = {state.get("__id__") for state in states}
    named = [_inside_of(state, "content", "bit_generator") for state in states]
    names = {name.get("__id__") for name in named}
    for node in [*nodes, *states] if states else ():
        if node.get("__id__") in ids and (node.get("__class__"), node.get("__loader__")) == (
            "dict",
            "DictNode",
        ):
            names.add(_inside_of(node, "content", "bit_generator").get("__id__"))
            named.append(_inside_of(node, "content", "bit_generator"))
    named += [node for node in nodes if names and node.get("__id__") in names]
    if any(str(node.get("content")).strip('"') not in _BIT_GENERATORS for node in named):
        raise never("This skops file holds a random generator of an unknown kind.")


def _inside_of(node: dict[str, object], *keys: str) -> dict[str, object]:
    value: object = node
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    if not isinstance(value, dict):
        raise never("This skops file holds a random generator of an unknown kind.")
    return value


def _judge(node: dict[str, object], policy: Policy, found: _Found) -> None:
    module, name, loader = node.get("__module__"), node.get("__class__"), node.get("__loader__")
    if loader == "CachedNode":
        return
    if isinstance(module, dict) or isinstance(name, dict) or isinstance(loader, dict):
        return  # keys of a dict in the model that happen to be called so; its values are looked at themselves
    if not (isinstance(module, str) and isinstance(name, str) and isinstance(loader, str)):
        raise never("A part of this skops file does not say what it is.")
    found.names.add((module, name))
    use = policy.use(module, name)
    if not _may(loader, module, name, use):
        found.refused.add(f"{module}.{name}")
        if "." in name or use is not None:
            found.hopeless.add(f"{module}.{name}")


def _may(loader: str, module: str, name: str, use: str | None) -> bool:
    """Whether this loader may have this class."""
    if use is None:
        return False
    dotted = f"{module}.{name}"
    if loader in _BUILDS_ONLY:
        return dotted in _BUILDS_ONLY[loader]
    if loader in _ARRAYS:
        return module.startswith(_ARRAY_MODULES) and dotted not in _OPENS_FILES
    if loader in _BUILDS:
        return use in (CALL, NEW)
    if loader in _CALLS:
        return use == CALL and (module, name) not in RULES and (module, name) not in MAKES_INSTANCES
    if loader in _MENTIONS:
        return True
    raise never(
        f"This skops file holds a part of the kind {loader[:40]!r}, which can run code of the file's choice."
    )


def _version(node: dict[str, object], found: _Found) -> None:
    content = node.get("content")
    stated = content.get("_sklearn_version") if isinstance(content, dict) else None
    text = stated.get("content") if isinstance(stated, dict) else None
    if isinstance(text, str) and len(text) < 64:
        found.sklearn[text.strip('"')] += 1


def _report(schema: dict[str, object], size: int, found: _Found) -> Report:
    versions: dict[str, tuple[str, ...]] = {}
    if found.sklearn:
        versions["scikit-learn"] = tuple(version for version, _ in found.sklearn.most_common())
    skops = schema.get("_skops_version")
    if isinstance(skops, str):
        versions["skops"] = (skops,)
    modules = {module.partition(".")[0] for module, _ in found.names} | {"skops"}
    return Report(
        container="skops",
        protocol=schema["protocol"] if isinstance(schema.get("protocol"), int) else None,  # type: ignore[arg-type]
        names=tuple(sorted(f"{module}.{name}" for module, name in found.names)),
        refused=tuple(sorted(found.refused)),
        hopeless=frozenset(found.hopeless),
        modules=tuple(sorted(modules - sys.stdlib_module_names - {"__main__"})),
        versions=versions,
        main_classes=tuple(sorted(name for module, name in found.names if module == "__main__")),
        size=size,
    )
