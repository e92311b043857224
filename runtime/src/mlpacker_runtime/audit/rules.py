"""What the arguments of the few callables a model file may call have to look like.

Being on the list is not enough for a callable that does more than build a value: `numpy.dtype` with wrong flags turns
raw bytes into object pointers, `_codecs.encode` looks modules up by the name of a codec, `_reconstruct` allocates what it is
told, and some constructors make an instance of whatever class they are handed. Each rule returns what the call gives.
Raises Refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from mlpacker_runtime.audit.symbols import LIST, OBJECT, PARTIAL, SET, Dict, Dtype, Global, Unknown
from mlpacker_runtime.errors import Refused

Arguments = tuple[object, ...]
Rule = Callable[[Arguments], object]

# Bits of a dtype's flags (numpy/core/include/numpy/ndarraytypes.h): items are references; pickled as a list.
_REFERENCES = 0x01
_AS_LIST = 0x02
_OBJECT_BITS = _REFERENCES | _AS_LIST

_CODE = re.compile(r"[<>=|]?([biufcSUVOMmaT])([0-9]{1,9})\Z")
_RECORDS = frozenset({("numpy", "record"), ("numpy.rec", "record"), ("numpy", "void")})
_FLEXIBLE = frozenset("SUVa")
_LARGEST_ALLOCATION = 1024 * 1024
_RANGE = Unknown("a range")
_PARTIALS_OF = frozenset({("sklearn.utils.validation", "check_array")})


def never(sentence: str) -> Refused:
    """A refusal that no flag lifts."""
    return Refused(
        sentence, "No honest tool writes such a file; get it again from a source you trust.", names=()
    )


def make_dtype(arguments: Arguments) -> Dtype:
    """`numpy.dtype(code, align, copy)` as `dtype.__reduce__` writes it."""
    code = arguments[0] if arguments else None
    settled = not (len(arguments) == 3 and arguments[2] in (True, 1))
    if isinstance(code, Global) and (code.module, code.name) in _RECORDS:
        return Dtype("V", 0, settled)
    found = _CODE.match(code) if isinstance(code, str) else None
    if not found:
        raise never("The file describes an array type in an unusual way.")
    kind, size = found[1], int(found[2])
    return Dtype(kind, size * 4 if kind == "U" else size, settled)


def set_up_dtype(dtype: Dtype, state: object) -> None:
    """`dtype.__setstate__`: (version, byte order, subarray, names, fields, item size, alignment, flags[, metadata]).

    NumPy believes the flags and the offsets it finds here. Honest ones follow from the fields, so they are computed and
    compared. A dtype is set up once, before anything else has seen it.
    """
    if dtype.settled:
        raise never("The file changes an array type after it was used.")
    dtype.settled = True
    if not (isinstance(state, tuple) and len(state) in (8, 9) and state[0] in (3, 4)):
        raise never("The file sets an array type up in an unusual way.")
    _, _, subarray, names, fields, itemsize, _, flags = state[:8]
    if not isinstance(itemsize, int) or not isinstance(flags, int):
        raise never("The file sets an array type up in an unusual way.")
    if dtype.code in _FLEXIBLE and itemsize >= 0:
        dtype.itemsize = itemsize
    parts = _subarray(subarray, dtype) + _fields(names, fields, dtype)
    if parts and dtype.code != "V":
        raise never("The file gives fields to an array type that has none.")
    dtype.hasobject = dtype.code == "O" or any(part.hasobject for part in parts)
    if flags & _OBJECT_BITS != (_OBJECT_BITS if dtype.hasobject else 0):
        raise never("The file has an array type whose flags contradict its fields.")


def _subarray(subarray: object, dtype: Dtype) -> list[Dtype]:
    if subarray is None:
        return []
    if not (isinstance(subarray, tuple) and len(subarray) == 2 and isinstance(subarray[0], Dtype)):
        raise never("The file has an array type with an unreadable subarray.")
    part, shape = subarray
    shape = shape if isinstance(shape, tuple) else (shape,)
    count = number_of_items(shape)
    part.settled = True
    if count * part.itemsize != dtype.itemsize:
        raise never("The file has an array type larger or smaller than its parts.")
    return [part]


def _fields(names: object, fields: object, dtype: Dtype) -> list[Dtype]:
    if names is None and fields is None:
        return []
    if not (isinstance(names, tuple) and isinstance(fields, Dict) and fields.whole):
        raise never("The file has an array type with unreadable fields.")
    fields.frozen = True
    if any(name not in fields.entries for name in names):
        raise never("The file has an array type with a field that it does not describe.")
    return [_field(field, dtype) for field in fields.entries.values()]


def _field(field: object, dtype: Dtype) -> Dtype:
    if not (isinstance(field, tuple) and len(field) in (2, 3) and isinstance(field[0], Dtype)):
        raise never("The file has an array type with unreadable fields.")
    part, offset = field[0], field[1]
    part.settled = True
    if type(offset) is not int or offset < 0 or offset + part.itemsize > dtype.itemsize:
        raise never("The file has an array type with a field outside its items.")
    return part


def number_of_items(shape: tuple[object, ...]) -> int:
    """The product of a shape of whole numbers from 0. Raises Refused for any other shape."""
    count = 1
    for length in shape:
        if type(length) is not int or length < 0:
            raise never("The file has an array with an unreadable shape.")
        count *= length
    return count


def _empty_array(arguments: Arguments) -> object:
    """`_reconstruct(class, (0,), b"b")`: an empty array that its state fills."""
    if len(arguments) != 3 or not isinstance(arguments[0], Global) or arguments[1] != (0,):
        raise never("The file allocates an array in an unusual way.")
    return OBJECT


def _empty_masked_array(arguments: Arguments) -> object:
    if (
        len(arguments) != 4
        or not all(isinstance(cls, Global) for cls in arguments[:2])
        or arguments[2] != (0,)
    ):
        raise never("The file allocates a masked array in an unusual way.")
    return OBJECT


def _from_buffer(arguments: Arguments) -> object:
    """`_frombuffer(bytes, dtype, shape, order[, axes])`: how protocol 5 writes an array."""
    if len(arguments) not in (4, 5) or not isinstance(arguments[1], Dtype) or arguments[1].hasobject:
        raise never("The file makes an array from bytes in an unusual way.")
    arguments[1].settled = True
    return OBJECT


def _scalar(arguments: Arguments) -> object:
    """`scalar(dtype, bytes)`. With an object dtype it would hand back any object, a class too."""
    if not arguments or not isinstance(arguments[0], Dtype) or arguments[0].hasobject:
        raise never("The file makes a NumPy scalar in an unusual way.")
    arguments[0].settled = True
    return OBJECT


def _latin1_bytes(arguments: Arguments) -> object:
    """`_codecs.encode(text, "latin1")`: how protocols 0 to 2 write bytes. Other codecs are modules."""
    if len(arguments) != 2 or arguments[1] != "latin1":
        raise never("The file encodes a text in an unusual way.")
    return OBJECT


def _filled(result: object) -> Rule:
    """A builtin container called with what it holds, never with a size to allocate."""

    def rule(arguments: Arguments) -> object:
        if any(
            value is _RANGE or (type(value) is int and value > _LARGEST_ALLOCATION) for value in arguments
        ):
            raise never("The file asks for a container of a size that stands nowhere in it.")
        return result

    return rule


def _partial(arguments: Arguments) -> object:
    """`partial(function)`, whose state then repeats the function. Only functions that do no more than check an array."""
    if len(arguments) != 1 or not _is_harmless(arguments[0]):
        raise never("The file holds a partial call of something other than a check of arrays.")
    return PARTIAL


def check_partial(state: object) -> None:
    """`partial.__setstate__`: (function, args, keywords, attributes)."""
    if not (isinstance(state, tuple) and len(state) == 4 and _is_harmless(state[0]) and state[1] == ()):
        raise never("The file holds a partial call of something other than a check of arrays.")


def _is_harmless(function: object) -> bool:
    return isinstance(function, Global) and (function.module, function.name) in _PARTIALS_OF


def _range(arguments: Arguments) -> object:
    return _RANGE


RULES: dict[tuple[str, str], Rule] = {
    ("numpy", "dtype"): make_dtype,
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy._core.multiarray", "_reconstruct"): _empty_array,
    ("numpy.ma.core", "_mareconstruct"): _empty_masked_array,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("_codecs", "encode"): _latin1_bytes,
    ("builtins", "bytearray"): _filled(OBJECT),
    ("builtins", "bytes"): _filled(OBJECT),
    ("functools", "partial"): _partial,
    ("builtins", "range"): _range,
    ("builtins", "tuple"): _filled(OBJECT),
    ("builtins", "list"): _filled(LIST),
    ("builtins", "set"): _filled(SET),
    ("builtins", "frozenset"): _filled(SET),
}

# Calls that make an instance of the class in their first argument, as NEWOBJ does.
MAKES_INSTANCES = frozenset(
    {("copyreg", "__newobj__"), ("copyreg", "__newobj_ex__"), ("copyreg", "_reconstructor")}
)
# Calls that may be handed a class which a file may only mention (`numpy.ndarray`, `numpy.memmap`): these don't run it.
TAKES_ANY_CLASS = frozenset(
    {
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy.ma.core", "_mareconstruct"),
        ("numpy", "dtype"),
        ("collections", "defaultdict"),
        ("functools", "partial"),
    }
)
