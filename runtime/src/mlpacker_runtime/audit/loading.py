"""Build what was audited: unpicklers that import nothing outside the same list, over the very bytes that were read.

Arrays that joblib put between the pickle's instructions are read by us, at the positions the audit found, so that this works
beside any joblib or none, and so that no nested unpickler is left without the guard.
"""

from __future__ import annotations

import importlib
import io
import math
import pickle
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, ClassVar

from mlpacker_runtime.audit.allowlist import Policy
from mlpacker_runtime.audit.machine import ARRAY_ON_DISK, Span
from mlpacker_runtime.audit.report import refusal
from mlpacker_runtime.errors import BadInput, EnvironmentFailed, MlpackerError

_MAPPED = ("numpy", "memmap")


class Imports:
    """Resolves the names of a file: the policy again, then the import. `main` stands in for the script that trained."""

    def __init__(self, policy: Policy, main: ModuleType | None) -> None:
        self.policy = policy
        self.main = main

    def find(self, module: str, name: str) -> object:
        """Raises Refused for a name off the list, EnvironmentFailed for one this environment does not have."""
        module, name = self.policy.canonical(module, name)
        if self.policy.use(module, name) is None:
            raise refusal((f"{module}.{name}",))
        if (module, name) == ARRAY_ON_DISK:
            return _Placeholder
        if (module, name) == _MAPPED:
            name = "ndarray"  # a map of a file is of no use here, and its class opens what it is told
        if module == "__main__" and self.main is not None:
            return self.defined(self.main, name)
        found = _attribute(_module(module), name)
        if module in self.policy.code_modules:
            self.own(found, module, name)
        return found

    def defined(self, module: ModuleType, name: str) -> object:
        found = _attribute(module, name)
        self.own(found, module.__name__, name)
        return found

    def own(self, found: object, module: str, name: str) -> None:
        """User code is accepted for what it defines, and for what it imports under a listed name; ufuncs have no module."""
        origin = getattr(found, "__module__", None)
        listed = isinstance(origin, str) and self.policy.listed.get((origin, name)) is not None
        if origin != module and not listed and type(found).__name__ != "ufunc":
            raise refusal((f"{module}.{name}",))


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise EnvironmentFailed(
            f"The model needs the module {name}, which can't be imported here: {error}.",
            "Use the environment the model was saved in, or name the packages it needs.",
            module=name,
        ) from error


def _attribute(module: ModuleType, name: str) -> object:
    try:
        return getattr(module, name)
    except AttributeError as error:
        version = getattr(
            sys.modules.get(module.__name__.partition(".")[0]), "__version__", "of this environment"
        )
        raise EnvironmentFailed(
            f"The model needs {module.__name__}.{name}, which the installed version ({version}) does not have.",
            "Use the versions the model was saved with.",
            module=module.__name__,
        ) from error


class _Placeholder:
    """Our own stand-in for joblib's NumpyArrayWrapper: it only holds what the file says of the array."""


class _Plain(pickle.Unpickler):
    """The C unpickler with our imports. For whole pickles and for the nested ones of object arrays."""

    def __init__(self, data: bytes, imports: Imports) -> None:
        super().__init__(io.BytesIO(data), fix_imports=False)
        self._imports = imports

    def find_class(self, module: str, name: str, /) -> object:
        return self._imports.find(module, name)


_PythonUnpickler: Any = pickle._Unpickler  # type: ignore[attr-defined]


class _WithArrays(_PythonUnpickler):  # type: ignore[misc]
    """The Python unpickler (joblib's own choice too, for its one seam after BUILD) with our imports and our arrays."""

    dispatch: ClassVar[dict[int, Any]] = dict(_PythonUnpickler.dispatch)

    def __init__(self, data: bytes, imports: Imports, spans: Sequence[Span]) -> None:
        self._data = data
        self._file = io.BytesIO(data)
        self._imports = imports
        self._spans = iter(spans)
        super().__init__(self._file, fix_imports=False)

    def find_class(self, module: str, name: str) -> object:
        return self._imports.find(module, name)

    def load_build(self) -> None:
        _PythonUnpickler.load_build(self)
        if isinstance(self.stack[-1], _Placeholder):
            self.stack[-1] = self._array(vars(self.stack[-1]))

    dispatch[pickle.BUILD[0]] = load_build

    def _array(self, told: dict[str, Any]) -> object:
        span = next(self._spans, None)
        if span is None or span.start != self._file.tell():
            raise BadInput(
                "An array in this file does not lie where the audit found it.", "Send the file again."
            )
        self._file.seek(span.end)
        if span.nested:
            return _Plain(self._data[span.start : span.end], self._imports).load()
        return _read_array(memoryview(self._data)[span.data : span.end], told)


def _read_array(raw: memoryview, told: dict[str, Any]) -> object:
    """The array of shape and dtype `told`, in the machine's byte order, writable and with memory of its own."""
    import numpy as np

    dtype, shape, subclass = told["dtype"], tuple(told["shape"]), told["subclass"]
    if not isinstance(dtype, np.dtype) or dtype.hasobject or math.prod(shape) * dtype.itemsize != len(raw):
        raise BadInput("An array in this file is not what the audit found.", "Send the file again.")
    flat = np.empty(math.prod(shape), dtype=dtype)
    if flat.nbytes:
        flat.view(np.uint8)[:] = np.frombuffer(raw, dtype=np.uint8)
    array = flat.reshape(shape[::-1]).transpose() if told["order"] == "F" else flat.reshape(shape)
    if not dtype.isnative:
        array = array.astype(dtype.newbyteorder("="))
    return array if subclass is np.ndarray else array.view(subclass)


def build(data: bytes, spans: Sequence[Span], policy: Policy, main: ModuleType | None) -> object:
    """The object in an audited pickle. Raises what `Imports.find` raises, and BadInput when the file can't be rebuilt."""
    imports = Imports(policy, main)
    unpickler = _WithArrays(data, imports, spans) if spans else _Plain(data, imports)
    try:
        return unpickler.load()
    except MlpackerError:
        raise
    except Exception as error:
        raise BadInput(
            f"The model in this file can't be rebuilt here: {type(error).__name__}: {error}.",
            "Use the versions it was saved with.",
        ) from error
