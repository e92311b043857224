"""The audit of pickles: what it refuses, and that nothing in a refused file runs, neither while scanning nor while loading."""

from __future__ import annotations

import bz2
import collections
import functools
import gzip
import io
import lzma
import pickle
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import joblib
import numpy as np
import pytest

from mlpacker_runtime.audit import Limits, Report, kind, load, scan
from mlpacker_runtime.audit.unpack import library_of
from mlpacker_runtime.errors import BadInput, EnvironmentFailed, MlpackerError, Refused

PROTO4 = b"\x80\x04"


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def imported(module: str, name: str) -> bytes:
    """STACK_GLOBAL with both names written in the file."""
    return text(module) + text(name) + b"\x93"


def called(module: str, name: str, *arguments: str) -> bytes:
    """A protocol 4 pickle that calls module.name with texts."""
    pushed = b"".join(map(text, arguments))
    return PROTO4 + imported(module, name) + b"(" + pushed + b"tR."


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


def touch(canary: Path) -> str:
    return f"touch {canary}"


def write(canary: Path) -> str:
    return f"open({str(canary)!r}, 'w').close()"


# Each makes a file that, loaded by plain pickle, would write the canary (or would where the name exists).
Attack = Callable[[Path], bytes]

CALLS: dict[str, Attack] = {
    "os.system": lambda c: called("os", "system", touch(c)),
    "posix.system": lambda c: called("posix", "system", touch(c)),
    "nt.system": lambda c: called("nt", "system", touch(c)),
    "subprocess.getoutput": lambda c: called("subprocess", "getoutput", touch(c)),
    "builtins.eval": lambda c: called("builtins", "eval", write(c)),
    "builtins.exec": lambda c: called("builtins", "exec", write(c)),
    "builtins.open": lambda c: called("builtins", "open", str(c), "w"),
    "builtins.__import__": lambda c: called("builtins", "__import__", "antigravity"),
    "numpy.testing.runstring": lambda c: called("numpy.testing", "runstring", write(c), "{}"),
    "numpy.testing._private.utils.runstring": lambda c: called(
        "numpy.testing._private.utils", "runstring", write(c), "{}"
    ),
    "pandas.read_pickle": lambda c: called("pandas", "read_pickle", str(c)),
    "pandas.io.pickle.read_pickle": lambda c: called("pandas.io.pickle", "read_pickle", str(c)),
    "numpy.load": lambda c: called("numpy", "load", str(c)),
    "numpy.DataSource": lambda c: called("numpy", "DataSource", str(c)),
    "joblib.memory.Memory": lambda c: called("joblib.memory", "Memory", str(c)),
    "joblib.numpy_pickle.load": lambda c: called("joblib.numpy_pickle", "load", str(c)),
    "sklearn.datasets._base.load_files": lambda c: called("sklearn.datasets._base", "load_files", str(c)),
    "sklearn.utils._testing.raises": lambda c: called("sklearn.utils._testing", "raises", str(c)),
    "builtins.getattr": lambda c: called("builtins", "getattr", "x", "join"),
    "builtins.type": lambda c: called("builtins", "type", "x"),
    "operator.attrgetter": lambda c: called("operator", "attrgetter", "system"),
    "functools.reduce": lambda c: called("functools", "reduce", "x"),
    "scipy.stats._distn_infrastructure.rv_continuous": lambda c: called(
        "scipy.stats._distn_infrastructure", "rv_continuous", "x"
    ),
    # The names of Python 2, which protocols below 3 still write.
    "builtins.eval as __builtin__": lambda c: b"c__builtin__\neval\n(S" + repr(write(c)).encode() + b"\ntR.",
    "os.system by INST": lambda c: b"(S" + repr(touch(c)).encode() + b"\nios\nsystem\n.",
    "os.system by OBJ": lambda c: b"(cos\nsystem\nS" + repr(touch(c)).encode() + b"\no.",
    "os.system by GLOBAL": lambda c: b"cos\nsystem\n(S" + repr(touch(c)).encode() + b"\ntR.",
    "os.system by NEWOBJ": lambda c: PROTO4 + imported("os", "system") + text(touch(c)) + b"\x85\x81.",
    # The module's name comes out of the memo, having been put there as something else.
    "os.system from the memo": lambda c: (
        PROTO4
        + text("os")
        + b"\x94"
        + text("system")
        + b"\x94"
        + b"00h\x00h\x01\x93"
        + text(touch(c))
        + b"\x85R."
    ),
    "os.system from a long memo index": lambda c: (
        PROTO4
        + text("os")
        + b"r\x10\x00\x00\x000"
        + b"j\x10\x00\x00\x00"
        + text("system")
        + b"\x93"
        + text(touch(c))
        + b"\x85R."
    ),
    "os.system from a text memo index": lambda c: (
        PROTO4 + text("os") + b"p7\n0" + b"g7\n" + text("system") + b"\x93" + text(touch(c)) + b"\x85R."
    ),
    "os.system behind DUP and POP": lambda c: (
        PROTO4 + text("os") + b"20" + text("system") + b"\x93" + text(touch(c)) + b"\x85R."
    ),
    "os.system after a popped mark": lambda c: (
        PROTO4 + b"(" + text("math") + b"1" + imported("os", "system") + text(touch(c)) + b"\x85R."
    ),
    "os.system in a state": lambda c: (
        PROTO4
        + imported("sklearn.linear_model._base", "LinearRegression")
        + b")\x81}"
        + text("coef_")
        + called("os", "system", touch(c))[2:-1]
        + b"sb."
    ),
    "os.system beside another": lambda c: (
        PROTO4 + b"(" + imported("os", "system") + imported("nt", "system") + b"t."
    ),
    "a re-export": lambda c: called("joblib.numpy_pickle", "Path", str(c)),
    "a function of a listed module": lambda c: called("sklearn.pipeline", "make_pipeline", "x"),
    "a module": lambda c: PROTO4 + imported("sklearn.datasets._base", "os") + b".",
    "os.system, then half a file": lambda c: called("os", "system", touch(c))[:-6],
    "os.system, then garbage": lambda c: called("os", "system", touch(c))[:-1] + b"\xff\xff\xff.",
}

DOTTED: dict[str, Attack] = {
    "sklearn.datasets._base + os.system": lambda c: called("sklearn.datasets._base", "os.system", touch(c)),
    "a dotted name of a listed class": lambda c: called(
        "sklearn.linear_model._base", "LinearRegression.fit", touch(c)
    ),
    "a dotted name through GLOBAL": lambda c: b"csklearn.datasets._base\nos.system\n(S'x'\ntR.",
}

COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "zlib": zlib.compress,
    "gzip": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
    "joblib's own header": lambda data: b"ZF" + hex(len(data)).ljust(19).encode() + zlib.compress(data),
}


def refuses(data: bytes, canary: Path) -> Refused:
    """Neither scanning nor loading runs anything; loading says why. Gives that error."""
    try:
        report = scan(data)
    except Refused:
        pass
    else:
        with pytest.raises(Refused):
            report.check()
    with pytest.raises(Refused) as refused:
        load(data)
    assert not canary.exists()
    return refused.value


@pytest.mark.parametrize("attack", [*CALLS.values(), *DOTTED.values()], ids=[*CALLS, *DOTTED])
def test_a_malicious_file_is_refused_and_nothing_in_it_runs(attack: Attack, canary: Path):
    error = refuses(attack(canary), canary)
    assert error.facts["names"]


PLAIN = [name for name in CALLS if " " not in name]
ACTS = ("os.", "posix.", "nt.", "subprocess.", "builtins.e", "builtins.o", "builtins.g", "builtins.__")


@pytest.mark.parametrize("name", [name for name in PLAIN if not name.startswith(ACTS)])
def test_the_error_names_the_import_and_the_flag_that_accepts_it(name: str, canary: Path):
    error = refuses(CALLS[name](canary), canary)
    assert error.facts["names"] == (name,)
    assert name in error.sentence
    assert f"--trust {name}" in error.next_step


@pytest.mark.parametrize("name", [name for name in PLAIN if name.startswith(ACTS)])
def test_no_flag_is_offered_for_what_acts_on_the_machine(name: str, canary: Path):
    error = refuses(CALLS[name](canary), canary)
    assert error.facts["names"] == (name,)
    assert name in error.sentence
    assert "--trust" not in str(error)


def test_system_is_called_what_people_call_it(canary: Path):
    assert "os.system (posix.system)" in str(refuses(CALLS["posix.system"](canary), canary))


@pytest.mark.parametrize("attack", DOTTED.values(), ids=DOTTED)
def test_no_flag_is_offered_for_a_dotted_name(attack: Attack, canary: Path):
    error = refuses(attack(canary), canary)
    assert "--trust" not in str(error)
    (name,) = error.facts["names"]
    with pytest.raises(Refused):
        load(attack(canary), trusted=[name])


def test_all_refused_imports_are_named_at_once(canary: Path):
    error = refuses(CALLS["os.system beside another"](canary), canary)
    assert error.facts["names"] == ("nt.system", "os.system")


@pytest.mark.parametrize("compress", COMPRESSED.values(), ids=COMPRESSED)
def test_a_malicious_file_is_refused_in_every_compression(compress: Callable[[bytes], bytes], canary: Path):
    error = refuses(compress(called("os", "system", touch(canary))), canary)
    assert error.facts["names"] == ("os.system",)


STRUCTURE: dict[str, bytes] = {
    # STACK_GLOBAL must take literal text: here its name is what a call gave, an int, or bytes.
    "a computed name": PROTO4 + text("os") + imported("builtins", "str") + text("system") + b"\x85R\x93.",
    "a name that is a number": PROTO4 + text("os") + b"K\x01\x93.",
    "a name that is bytes": PROTO4 + text("os") + b"C\x06system\x93.",
    "a call of a call": PROTO4 + imported("collections", "deque") + b")R)R.",
    "a call of an instance": PROTO4
    + imported("sklearn.compose._column_transformer", "make_column_selector")
    + b")\x81)R.",
    "computed arguments": PROTO4 + imported("collections", "deque") + imported("builtins", "tuple") + b")RR.",
    "a changed class": PROTO4
    + imported("sklearn.linear_model._base", "LinearRegression")
    + b"N}"
    + text("predict")
    + imported("builtins", "list")
    + b"s\x86b.",
    "an item set on a class": PROTO4 + imported("collections", "OrderedDict") + text("a") + text("b") + b"s.",
    "a replaced __class__": PROTO4
    + imported("sklearn.linear_model._base", "LinearRegression")
    + b")\x81N}"
    + text("__class__")
    + imported("builtins", "list")
    + b"s\x86b.",
    "another codec": PROTO4 + imported("_codecs", "encode") + text("x") + text("rot13") + b"\x86R.",
    "a huge buffer": PROTO4 + imported("builtins", "bytearray") + b"J\xff\xff\xff\x7f\x85R.",
    "a list of a huge range": PROTO4
    + imported("builtins", "list")
    + imported("builtins", "range")
    + b"J\xff\xff\xff\x7f\x85R\x85R.",
    "a huge empty array": PROTO4
    + imported("numpy._core.multiarray", "_reconstruct")
    + imported("numpy", "ndarray")
    + b"J\xff\xff\xff\x7f\x85C\x01b\x87R.",
    "a ufunc called": PROTO4 + imported("numpy", "log1p") + b"K\x01\x85R.",
    "a memory map made": PROTO4 + imported("numpy", "memmap") + text("/etc/hostname") + b"\x85\x81.",
    "a memory map made by copyreg": PROTO4
    + imported("copyreg", "__newobj__")
    + imported("numpy", "memmap")
    + text("/etc/hostname")
    + b"\x86R.",
    "a memory map made by an index": PROTO4
    + imported("pandas.core.indexes.base", "_new_Index")
    + imported("numpy", "memmap")
    + b"}\x86R.",
    "a partial of a class": PROTO4
    + imported("functools", "partial")
    + imported("numpy", "ndarray")
    + b"\x85R.",
    "EXT1": b"\x80\x02\x82\x01.",
    "EXT2": b"\x80\x02\x83\x01\x00.",
    "EXT4": b"\x80\x02\x84\x01\x00\x00\x00.",
    "PERSID": b"Pthing\n.",
    "BINPERSID": b"\x80\x02K\x01Q.",
    "NEXT_BUFFER": b"\x80\x05\x97.",
    "READONLY_BUFFER": b"\x80\x05K\x01\x98.",
    "an array in other files": PROTO4 + imported("joblib.numpy_pickle", "NDArrayWrapper") + b")\x81.",
}


@pytest.mark.parametrize("data", STRUCTURE.values(), ids=STRUCTURE)
def test_what_honest_files_never_do_is_refused(data: bytes, canary: Path):
    refuses(data, canary)


def dtype_pickle(code: str, state: bytes, copy: bytes = b"\x88") -> bytes:
    """An array type, set up with a state given as opcodes."""
    return imported("numpy", "dtype") + text(code) + b"\x89" + copy + b"\x87R" + state + b"b"


PLAIN_FLAGS = b"(K\x03" + text("|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t"
OBJECT = b"(K\x03" + text("|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK?t"
FIELD = b"(" + text("a") + b"t}" + text("a")


def struct_state(field: bytes, offset: int, itemsize: int, flags: int) -> bytes:
    described = FIELD + field + b"K" + bytes([offset]) + b"\x86s"
    return (
        b"(K\x03"
        + text("|")
        + b"N"
        + described
        + b"K"
        + bytes([itemsize])
        + b"K\x01K"
        + bytes([flags])
        + b"t"
    )


WRONG_TYPES: dict[str, bytes] = {
    # Raw bytes that NumPy would take for pointers to objects.
    "objects without their flags": dtype_pickle("O8", PLAIN_FLAGS),
    "numbers with the flags of objects": dtype_pickle("f8", OBJECT),
    "a field of objects without its flags": dtype_pickle(
        "V8", struct_state(dtype_pickle("O8", OBJECT), 0, 8, 0)
    ),
    "a field outside the item": dtype_pickle("V8", struct_state(dtype_pickle("f8", PLAIN_FLAGS), 4, 8, 0)),
    "fields given to a number": dtype_pickle("f8", struct_state(dtype_pickle("f8", PLAIN_FLAGS), 0, 8, 0)),
    "set up twice": dtype_pickle("f8", PLAIN_FLAGS) + PLAIN_FLAGS + b"b",
    "set up after it was shared": imported("numpy", "dtype")
    + text("V8")
    + b"\x89\x88\x87R\x940h\x00"
    + PLAIN_FLAGS
    + b"b",
    "set up without a copy of its own": dtype_pickle("f8", PLAIN_FLAGS, copy=b"\x89"),
    "an unusual code": imported("numpy", "dtype") + text("f8,O") + b"\x89\x88\x87R",
}


@pytest.mark.parametrize("data", WRONG_TYPES.values(), ids=WRONG_TYPES)
def test_an_array_type_that_contradicts_itself_is_refused(data: bytes, canary: Path):
    refuses(PROTO4 + data + b".", canary)


# joblib


class Touches:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        import os

        return os.system, (touch(self.canary),)


def dumped(value: object, compress: object = 0, protocol: int | None = None) -> bytes:
    buffer = io.BytesIO()
    joblib.dump(value, buffer, compress=compress, protocol=protocol)
    return buffer.getvalue()


@pytest.mark.parametrize("compress", [0, 3, ("gzip", 3), ("bz2", 3), ("xz", 3), ("lzma", 3)], ids=str)
def test_an_object_array_of_joblib_is_followed_and_guarded(compress: object, canary: Path):
    data = dumped({"x": np.arange(3.0), "y": np.array([Touches(canary), None], dtype=object)}, compress)
    assert refuses(data, canary).facts["names"][0].endswith(".system")


def test_a_nested_pickle_is_guarded_while_it_is_loaded_too(canary: Path, monkeypatch: pytest.MonkeyPatch):
    """The second guard, with the first one blind: the scan is told that everything is listed."""
    from mlpacker_runtime.audit import loading
    from mlpacker_runtime.audit.allowlist import Policy
    from mlpacker_runtime.audit.limits import LIMITS
    from mlpacker_runtime.audit.machine import Findings, Machine

    data = dumped([np.array([Touches(canary)], dtype=object)])
    blind = Policy(trusted=frozenset({"posix.system", "os.system", "nt.system"}))
    findings = Findings()
    Machine(data, 0, blind, findings, LIMITS).run()
    assert findings.spans
    assert not findings.refused
    with pytest.raises(Refused, match="system"):
        loading.build(data, findings.spans, Policy(), None)
    assert not canary.exists()


VALUES: dict[str, object] = {
    "numbers": np.arange(12.0).reshape(3, 4),
    "columns first": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "no rows": np.zeros((0, 3)),
    "no shape": np.array(3.5),
    "texts": np.array(["a", "bcd"]),
    "bytes": np.array([b"a", b"bcd"]),
    "dates": np.array(["2020-01-01"], dtype="M8[ns]"),
    "big endian": np.arange(3, dtype=">f8"),
    "records": np.array([(1, 2.5)], dtype=[("x", "i4"), ("y", "f8")]),
    "aligned records": np.array([(1, 2.5)], dtype=np.dtype([("x", "i1"), ("y", "f8")], align=True)),
    "nested records": np.array(
        [((1, 2), [3, 4])], dtype=[("x", [("a", "u1"), ("b", "i8")]), ("y", "f4", (2,))]
    ),
    "objects": np.array([1, "a", None], dtype=object),
    "records with objects": np.array([(1, "a")], dtype=[("x", "i4"), ("y", object)]),
    "complex": np.array([1 + 2j]),
    "booleans": np.array([True, False]),
    "one array twice": [np.arange(3)] * 2,
    "a masked array": np.ma.array([1, 2], mask=[False, True]),
    "a random state": np.random.RandomState(3),
    "a generator": np.random.default_rng(3),
    "scalars": [np.float64(1.5), np.int8(3), np.bool_(True), np.str_("a"), np.datetime64("2020-01-01")],
    "types": [np.float32, np.dtype("f4"), np.dtype([("x", "i4")]), int, str],
    "ufuncs": [np.log1p, np.exp],
    "containers": [
        {1: {2}},
        frozenset({3}),
        (4, [5]),
        b"six",
        bytearray(b"7"),
        8 + 9j,
        slice(1, 2),
        range(3),
        10**40,
    ],
    "collections": [
        collections.OrderedDict(a=1),
        collections.defaultdict(list, a=[1]),
        collections.deque([1]),
    ],
}


def same(a: object, b: object) -> bool:
    if isinstance(a, np.random.RandomState):
        return isinstance(b, np.random.RandomState) and bool((a.get_state()[1] == b.get_state()[1]).all())
    if isinstance(a, np.random.Generator):
        return isinstance(b, np.random.Generator) and a.bit_generator.state == b.bit_generator.state
    if isinstance(a, np.ndarray):
        return (
            type(a) is type(b)
            and a.dtype.newbyteorder("=") == b.dtype.newbyteorder("=")
            and repr(a.tolist()) == repr(b.tolist())
        )
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_what_pickle_and_joblib_save_loads_equal_in_every_protocol(value: object, protocol: int):
    for data in (pickle.dumps(value, protocol), dumped(value, protocol=protocol), dumped(value, 3, protocol)):
        assert scan(data).refused == ()
        assert same(value, load(data))


def test_arrays_behind_a_placeholder_are_writable_and_keep_their_order():
    value = [np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.arange(4)]
    first, second = load(dumped(value))
    assert first.flags.f_contiguous
    assert first.flags.writeable
    assert second.flags.writeable


def test_an_array_that_was_mapped_from_a_file_loads_as_a_plain_one(tmp_path: Path):
    mapped = np.memmap(tmp_path / "array", dtype="f8", mode="w+", shape=(3,))
    for data in (dumped({"a": mapped}), pickle.dumps({"a": mapped})):
        assert type(load(data)["a"]) is np.ndarray


def test_files_of_joblib_before_1_2_have_no_padding():
    value = np.arange(5.0)
    header = PROTO4 + imported("joblib.numpy_pickle", "NumpyArrayWrapper") + b")\x81"
    state = pickle.dumps(
        {"subclass": np.ndarray, "shape": (5,), "order": "C", "dtype": value.dtype, "allow_mmap": True}, 2
    )[2:-1]
    data = header + state + b"b" + value.tobytes() + b"."
    assert same(value, load(data))


def test_an_array_longer_than_the_file_is_half_a_file():
    data = dumped(np.arange(1000.0))
    with pytest.raises(BadInput, match="half a file"):
        scan(data[:3000])


# Bad input.


@pytest.mark.parametrize(
    "data", [b"", b"\x00", b"hello world", b"PK\x03\x04", b"{'a': 1}", b"\x80", bytes(range(256))], ids=repr
)
def test_what_is_no_pickle_is_bad_input(data: bytes):
    with pytest.raises(BadInput):
        scan(data)


def test_every_truncation_of_a_model_is_an_error_of_ours():
    data = dumped({"a": np.arange(20.0), "b": ["x", {"y": 1.5}], "c": np.array([None, 1], dtype=object)})
    for length in range(len(data)):
        with pytest.raises(MlpackerError):
            scan(data[:length])


@pytest.mark.parametrize("compress", COMPRESSED.values(), ids=COMPRESSED)
def test_half_a_compressed_file_is_bad_input(compress: Callable[[bytes], bytes]):
    data = compress(pickle.dumps(np.random.default_rng(0).random(1000)))
    with pytest.raises(BadInput):
        scan(data[: len(data) // 2])


def test_bytes_behind_the_pickle_are_refused():
    with pytest.raises(BadInput, match="follow"):
        scan(pickle.dumps(1) + pickle.dumps(2))
    with pytest.raises(BadInput, match="follow"):
        scan(zlib.compress(pickle.dumps(1)) + b"more")


def test_an_unknown_protocol_is_said():
    with pytest.raises(BadInput, match="protocol 6"):
        scan(b"\x80\x06N.")


@pytest.mark.parametrize("compress", COMPRESSED.values(), ids=COMPRESSED)
def test_a_decompression_bomb_is_stopped(compress: Callable[[bytes], bytes]):
    data = compress(b"\x80\x04" + b"N0" * 600_000 + b"N.")
    with pytest.raises(BadInput, match="unpacks to more than|instructions"):
        scan(data, limits=Limits(ratio=10, ratio_from=100_000, bytes=1_000_000, opcodes=1000))


def test_a_small_honest_file_that_shrinks_well_is_taken():
    assert load(dumped(np.zeros(1_000_000), 9)).shape == (1_000_000,)


def test_a_memo_index_that_would_allocate_gigabytes_is_refused():
    with pytest.raises(BadInput, match="memo"):
        scan(PROTO4 + b"Nr\xff\xff\xff\x7f.")


def test_more_instructions_than_the_bound_are_refused():
    with pytest.raises(BadInput, match="instructions"):
        scan(PROTO4 + b"N0" * 100 + b"N.", limits=Limits(opcodes=50))


def test_more_open_marks_than_the_bound_are_refused():
    with pytest.raises(BadInput, match="deeper"):
        scan(PROTO4 + b"(" * 20_000)


def test_deeply_nested_tuples_do_not_exhaust_the_stack():
    data = PROTO4 + b"N" + b"\x85" * 200_000 + b"."
    assert scan(data).refused == ()


def test_frames_may_not_overlap_nor_be_crossed():
    inner = b"\x95" + struct.pack("<Q", 2) + b"N."
    with pytest.raises(BadInput, match="frame"):
        scan(PROTO4 + b"\x95" + struct.pack("<Q", 30) + inner + b"N" * 30)
    with pytest.raises(BadInput, match="frame"):
        scan(PROTO4 + b"\x95" + struct.pack("<Q", 2) + b"X\x01\x00\x00\x00a.")


def test_an_array_may_not_lie_inside_a_frame():
    value = np.arange(5.0)
    body = imported("joblib.numpy_pickle", "NumpyArrayWrapper") + b")\x81"
    body += pickle.dumps({"subclass": np.ndarray, "shape": (5,), "order": "C", "dtype": value.dtype}, 2)[2:-1]
    body += b"b" + value.tobytes() + b"."
    with pytest.raises(BadInput, match="frame"):
        scan(PROTO4 + b"\x95" + struct.pack("<Q", len(body)) + body)


def test_lz4_without_its_library_is_a_clear_sentence():
    try:
        import lz4.frame  # noqa: F401
    except ImportError:
        with pytest.raises(BadInput, match="lz4"):
            scan(b"\x04\x22\x4d\x18" + b"\x00" * 20)
    else:
        pytest.skip("lz4 is installed here")


@pytest.mark.parametrize("magic", [b"\x04\x22\x4d\x18", b"\x28\xb5\x2f\xfd"])
def test_a_file_in_a_compression_that_can_not_be_read_here_is_still_taken_for_a_model(monkeypatch, magic):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert kind(magic + b"\x00" * 20) == "joblib"  # so that the scan says which library is missing


@pytest.mark.parametrize(("compression", "library"), [("lz4", "lz4"), ("zstd", "zstandard"), ("gzip", None)])
def test_the_library_that_undoes_the_compression_is_among_what_the_environment_needs(compression, library):
    assert library_of(compression) == library


def test_what_the_library_of_a_compression_reads_is_what_was_saved():
    pytest.importorskip("lz4.frame", reason="lz4 is not installed here")
    file = io.BytesIO()
    joblib.dump({"a": np.arange(5.0)}, file, compress=("lz4", 3))
    data = file.getvalue()
    assert kind(data[:512]) == "joblib"
    assert "lz4" in scan(data).modules
    np.testing.assert_array_equal(load(data)["a"], np.arange(5.0))


# What the user adds.


def test_an_exact_name_may_be_trusted_and_no_other():
    data = (
        PROTO4
        + b"("
        + imported("json.decoder", "JSONDecoder")
        + imported("json.encoder", "JSONEncoder")
        + b"t."
    )
    assert scan(data, trusted=["json.decoder.JSONDecoder"]).refused == ("json.encoder.JSONEncoder",)
    decoder, _ = load(data, trusted=["json.decoder.JSONDecoder", "json.encoder.JSONEncoder"])
    assert decoder.__name__ == "JSONDecoder"


def test_a_module_is_never_trusted_as_a_whole():
    data = called("json.decoder", "scanstring", "x")
    for trusted in (["json"], ["json.decoder"], ["json.decoder.*"], ["*"]):
        with pytest.raises(Refused):
            load(data, trusted=trusted)


def script(source: str, name: str = "train"):
    import types

    module = types.ModuleType(name)
    exec(source, vars(module))
    return module


def test_the_module_scikit_learn_misnamed_is_found_under_its_own_name():
    data = PROTO4 + imported("_loss", "CyHalfBinomialLoss") + b"."
    assert scan(data).names == ("sklearn._loss._loss.CyHalfBinomialLoss",)
    assert scan(data).refused == ()
    assert load(data).__name__ == "CyHalfBinomialLoss"


def test_the_one_partial_that_models_hold_is_accepted():
    """HistGradientBoosting with categories checks its numbers by a partial of check_array."""
    from sklearn.utils.validation import check_array

    loaded = load(pickle.dumps(functools.partial(check_array, dtype=np.float64)))
    assert (loaded.func, loaded.keywords) == (check_array, {"dtype": np.float64})
    with pytest.raises(Refused, match="partial"):
        load(pickle.dumps(functools.partial(np.log1p, dtype=np.float64)))


def test_a_class_of_the_training_script_is_named_with_the_flag():
    data = PROTO4 + imported("__main__", "Scaler") + b")\x81."
    assert scan(data).main_classes == ("Scaler",)
    with pytest.raises(Refused) as refused:
        load(data)
    assert "Scaler" in refused.value.sentence
    assert "--code FILE" in refused.value.next_step
    assert refused.value.facts["names"] == ("__main__.Scaler",)


def test_main_means_the_script_that_is_given():
    data = PROTO4 + imported("__main__", "Scaler") + b")\x81}" + text("by") + b"K\x02sb."
    module = script("class Scaler: pass")
    assert load(data, main_module=module).by == 2
    assert type(load(data, main_module=module)) is module.Scaler


def test_a_script_gives_what_it_defines_not_what_it_imports(canary: Path):
    module = script("import os\nfrom os import system\nclass Scaler: pass")
    with pytest.raises(Refused):
        load(called("__main__", "system", touch(canary)), main_module=module)
    with pytest.raises(Refused):
        load(called("__main__", "os.system", touch(canary)), main_module=module)
    assert not canary.exists()


def test_a_name_that_is_gone_names_its_module_and_the_version_installed():
    with pytest.raises(EnvironmentFailed, match=r"numpy\.gone.*" + np.__version__):
        load(PROTO4 + imported("numpy", "gone") + b")R.", trusted=["numpy.gone"])


def test_a_module_that_is_missing_is_named():
    with pytest.raises(EnvironmentFailed, match=r"scipy\.sparse\.gone"):
        load(
            PROTO4 + imported("scipy.sparse.gone", "csr_matrix") + b".",
            trusted=["scipy.sparse.gone.csr_matrix"],
        )


# Code by value.


def function_by_value() -> bytes:
    cloudpickle = pytest.importorskip("cloudpickle")
    scale = 3
    return cloudpickle.dumps(lambda x: np.abs(x) * scale)


def test_code_by_value_is_reported_and_refused_as_code():
    data = function_by_value()
    assert scan(data).code
    with pytest.raises(Refused, match="code by value") as refused:
        load(data)
    assert "--trust-code" in refused.value.next_step


def test_trusted_code_loads_and_says_what_it_imports():
    data = function_by_value()
    report = scan(data, trust_code=True)
    assert report.refused == ()
    assert report.code
    assert "numpy" in report.modules
    assert load(data, trust_code=True)(-2) == 6


def test_trusting_code_trusts_no_other_import(canary: Path):
    with pytest.raises(Refused):
        load(called("os", "system", touch(canary)), trust_code=True)
    assert not canary.exists()


# What a file says of itself.


def test_the_report_tells_versions_and_modules():
    import sklearn
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression()).fit([[0.0], [1.0]], [0, 1])
    for data in (pickle.dumps(model), dumped(model), dumped(model, 3), pickle.dumps(model, 0)):
        report = scan(data)
        assert report.versions == {"scikit-learn": (sklearn.__version__,)}
        assert report.version("scikit-learn") == sklearn.__version__
        assert report.modules == ("numpy", "sklearn")
        assert not report.code
        assert report.python is None
        assert report.main_classes == ()


def test_the_commonest_version_comes_first():
    said = b"".join(
        b"}" + text("_sklearn_version") + text(version) + b"s0" for version in ("1.1", "1.2.2", "1.2.2")
    )
    assert scan(PROTO4 + said + b"N.").versions == {"scikit-learn": ("1.2.2", "1.1")}


def test_containers_and_compressions_are_told():
    assert scan(pickle.dumps(1)).container == "pickle"
    assert scan(dumped(np.arange(3))).container == "joblib"
    report = scan(dumped(1, ("xz", 3)))
    assert (report.container, report.compression) == ("joblib", "xz")


@pytest.mark.parametrize("protocol", range(6))
def test_kind_is_told_from_the_first_bytes(protocol: int):
    from sklearn.linear_model import LinearRegression

    model = LinearRegression().fit([[0.0], [1.0]], [0, 1])
    assert kind(pickle.dumps(model, protocol)[:512]) == "pickle"
    assert kind(dumped(model, 0, protocol)[:512]) == "joblib"
    assert kind(dumped(model, 3, protocol)[:512]) == "joblib"


@pytest.mark.parametrize(
    "data",
    [b"", b"tree\nversion=v4\n", b'{"learner": 1}', b"\x08\x07\x12", b"CBM1", b"PK\x03\x04", b"import os\n"],
    ids=repr,
)
def test_other_formats_are_no_pickles(data: bytes):
    assert kind(data) is None


# The lists.


def test_listed_names_are_exact_and_harmless_in_kind():
    from mlpacker_runtime.audit.allowlist import CALL, NEW, VALUE, listed_names

    names = listed_names()
    assert len(names) > 1000
    assert set(names.values()) == {CALL, NEW, VALUE}
    for module, name in names:
        assert "." not in name
        assert not any(
            part in module for part in (".tests", ".testing", ".externals", "sklearn.datasets", "pandas.io")
        )
    forbidden = {
        "getattr",
        "type",
        "eval",
        "exec",
        "compile",
        "open",
        "__import__",
        "map",
        "filter",
        "setattr",
        "vars",
    }
    assert not {name for module, name in names if module == "builtins"} & forbidden
    assert not {module for module, _ in names} & {
        "os",
        "posix",
        "nt",
        "subprocess",
        "sys",
        "operator",
        "io",
        "shutil",
    }
    assert not [
        pair for pair in names if pair[0].startswith(("scipy.stats", "joblib.memory", "numpy.testing"))
    ]


def test_an_illegible_line_of_a_list_is_an_error():
    from mlpacker_runtime.audit.allowlist import parse

    for line in ("module", "module name maybe", "module Outer.Inner new", "a b new more"):
        with pytest.raises(ValueError):
            list(parse(line))


def test_the_audit_imports_nothing_but_the_standard_library():
    code = (
        "import sys, mlpacker_runtime.audit; "
        "print(sorted({name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)))"
    )
    source = Path(__file__).resolve().parents[2] / "runtime" / "src"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(source)!r}); {code}"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "['__main__', 'mlpacker_runtime']"


def test_a_report_is_a_value():
    assert scan(pickle.dumps([1])) == scan(pickle.dumps([1]))
    assert isinstance(scan(pickle.dumps([1])), Report)
