"""Follow a pickle's instructions on symbols: the stack, the marks, the memo and the frames, but no import and no call.

This is the unpickler of the standard library (`Lib/pickle.py`, `Modules/_pickle.c`; protocols 0 to 5) with every value
replaced by what the audit needs to know of it (`symbols.py`). It is strict where the two unpicklers differ, so that what it
accepts means the same to both. Where joblib put an array's bytes behind its placeholder, the machine works out their
length and steps over them, and it follows the nested pickle of an object array.
"""

from __future__ import annotations

import codecs
import re
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from mlpacker_runtime.audit.allowlist import CALL, NEW, VALUE, Policy, is_code
from mlpacker_runtime.audit.limits import Limits
from mlpacker_runtime.audit.rules import (
    MAKES_INSTANCES,
    RULES,
    TAKES_ANY_CLASS,
    check_partial,
    make_dtype,
    never,
    number_of_items,
    set_up_dtype,
)
from mlpacker_runtime.audit.symbols import (
    LIST,
    NUMBER,
    OBJECT,
    PARTIAL,
    SET,
    TEXT,
    ArrayOnDisk,
    Blob,
    Dict,
    Dtype,
    Global,
)
from mlpacker_runtime.errors import BadInput, Refused

NEWEST_PROTOCOL = 5
ARRAY_ON_DISK = ("joblib.numpy_pickle", "NumpyArrayWrapper")
ARRAY_IN_FILES = frozenset(
    {("joblib.numpy_pickle_compat", "NDArrayWrapper"), ("joblib.numpy_pickle_compat", "ZNDArrayWrapper")}
    | {("joblib.numpy_pickle", "NDArrayWrapper"), ("joblib.numpy_pickle", "ZNDArrayWrapper")}
)
_WHOLE_NUMBER = re.compile(rb"[0-9]{1,19}\Z")
_LONG_INTEGER = 1024


@dataclass(frozen=True)
class Span:
    """An array's bytes in the file. `start` is where the loader must stand; `data` to `end` are the bytes themselves;
    `nested` says that they are a pickle of their own."""

    start: int
    data: int
    end: int
    nested: bool


@dataclass
class Findings:
    """What has been seen so far, over nested pickles too."""

    protocol: int = 0
    globals: dict[tuple[str, str], Global] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    hopeless: set[str] = field(default_factory=set)
    code: bool = False
    imported_by_code: set[str] = field(default_factory=set)
    versions: dict[str, Counter[str]] = field(default_factory=dict)
    spans: list[Span] = field(default_factory=list)
    opcodes: int = 0

    def state(self, distribution: str, version: str) -> None:
        self.versions.setdefault(distribution, Counter())[version] += 1


class Machine:
    """Runs one pickle of `data` from `start`. `run` gives the position behind its STOP.

    Raises BadInput for what no unpickler could read and Refused for what no flag makes acceptable. Names that are not on
    the list are gathered in `findings`, so that one error can tell them all.
    """

    def __init__(
        self,
        data: bytes,
        start: int,
        policy: Policy,
        findings: Findings,
        limits: Limits,
        nested: bool = False,
    ) -> None:
        self.data = data
        self.position = start
        self.policy = policy
        self.findings = findings
        self.limits = limits
        self.nested = nested
        self.stack: list[object] = []
        self.marked: list[list[object]] = []
        self.memo: dict[int, object] = {}
        self.frame_end = 0
        self.opcodes = 0

    def run(self) -> int:
        data, table, size = self.data, _TABLE, len(self.data)
        budget = self.limits.opcodes - self.findings.opcodes
        try:
            while self.position < size:
                opcode = data[self.position]
                if self.position >= self.frame_end > 0:
                    self.frame_end = 0
                self.position += 1
                self.opcodes += 1
                if self.opcodes > budget:
                    raise BadInput(
                        f"This pickle has more than {self.limits.opcodes} instructions, the most we follow.",
                        "Save the large tables in it as arrays.",
                    )
                if opcode == _STOP:
                    self.pop()
                    self.findings.opcodes += self.opcodes
                    return self.position
                step = table[opcode]
                if step is None:
                    raise self.damaged(f"byte {opcode:#04x} is no pickle instruction")
                step(self)
        except _OUT_OF_STACK as error:
            raise self.damaged("an instruction finds nothing to work on") from error
        raise self.cut()

    # What can be wrong with the bytes.

    def damaged(self, what: str) -> BadInput:
        return BadInput(
            f"This is not a pickle, or a damaged one: {what} (at byte {self.position - 1} of {len(self.data)}).",
            "Give a model file as joblib, pickle, cloudpickle or skops saved it.",
        )

    def cut(self) -> BadInput:
        return BadInput(
            f"This pickle ends at byte {len(self.data)} in the middle: half a file.",
            "Send the whole file again.",
        )

    # Reading the bytes.

    def take(self, size: int) -> int:
        """Move over `size` bytes and give where they start."""
        start = self.position
        end = start + size
        if end > len(self.data):
            raise self.cut()
        if self.frame_end and end > self.frame_end:
            raise self.damaged("an instruction runs over the end of its frame")
        self.position = end
        return start

    def number(self, form: struct.Struct) -> int:
        start = self.take(form.size)
        value: int = form.unpack_from(self.data, start)[0]
        if value < 0:
            raise self.damaged("a negative length")
        return value

    def line(self) -> bytes:
        end = self.data.find(b"\n", self.position)
        if end < 0:
            raise self.cut()
        start = self.take(end + 1 - self.position)
        return self.data[start:end]

    def text(self, size: int) -> object:
        start = self.take(size)
        if size > self.limits.text:
            return TEXT
        try:
            return self.data[start : start + size].decode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            raise self.damaged("a text that is not UTF-8") from error

    # The stack.

    def push(self, value: object) -> None:
        self.stack.append(value)

    def pop(self) -> object:
        return self.stack.pop()

    def open_mark(self) -> None:
        if len(self.marked) >= self.limits.marks:
            raise BadInput(f"This pickle nests deeper than {self.limits.marks} levels.", "No model does.")
        self.marked.append(self.stack)
        self.stack = []

    def close_mark(self) -> list[object]:
        items = self.stack
        self.stack = self.marked.pop()
        return items

    def remember(self, index: int) -> None:
        """The C unpickler allocates up to the highest index, so an index beyond anything counted so far is a bomb."""
        if index > self.opcodes + 1024:
            raise self.damaged("a memo index far beyond the number of values")
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise self.damaged(f"memo entry {index} was never made")
        value = self.memo[index]
        if type(value) is Dtype:
            value.settled = True
        self.push(value)

    # Imports.

    def named(self, module: object, name: object) -> Global:
        if not (type(module) is str and type(name) is str):
            raise never("The file computes the name of an import instead of writing it.")
        pair = self.policy.canonical(module, name)
        found = self.findings.globals.get(pair)
        if found is None:
            found = self.findings.globals[pair] = self.judge(*pair)
        return found

    def judge(self, module: str, name: str) -> Global:
        """Look a name up once. Raises Refused for joblib's placeholders of arrays kept in other files."""
        use = self.policy.use(module, name)
        if (module, name) in ARRAY_IN_FILES:
            raise never("This joblib file keeps its arrays in other files (joblib before 0.10).")
        if (module, name) == ARRAY_ON_DISK and self.nested:
            raise never("The file hides an array inside the pickle of an object array.")
        if is_code(module, name):
            self.findings.code = True
        if use is None:
            self.refuse(module, name)
        return Global(module, name, use)

    def refuse(self, module: str, name: str) -> None:
        self.findings.refused.add(f"{module}.{name}")
        if "." in name:
            self.findings.hopeless.add(f"{module}.{name}")

    # Calls.

    def call(self, function: object, arguments: object) -> object:
        """What REDUCE, INST and OBJ do: call something with arguments."""
        callee = self.callee(function)
        if callee is None:
            return OBJECT
        if not isinstance(arguments, tuple):
            raise never("The file computes the arguments of a call instead of writing them.")
        pair = (callee.module, callee.name)
        if pair in MAKES_INSTANCES:
            return self.instance(arguments[0] if arguments else None, arguments[1:])
        if callee.use != CALL:
            self.refuse(*pair)
            return OBJECT
        if is_code(*pair):
            return self.by_value(callee, arguments)
        if pair not in TAKES_ANY_CLASS:
            self.no_bystanders(arguments)
        rule = RULES.get(pair)
        return rule(arguments) if rule and not self.policy.trusts(*pair) else OBJECT

    def callee(self, function: object) -> Global | None:
        """The import that is called; None where it was refused already, or is code that the user trusts."""
        if isinstance(function, Global):
            return function if function.use is not None else None
        if self.findings.code:
            return None
        raise never("The file calls something it built, rather than something it imports.")

    def no_bystanders(self, arguments: tuple[object, ...]) -> None:
        """A constructor may make an instance of a class it is handed: not of one that may only be mentioned."""
        first = arguments[0] if arguments else None
        if isinstance(first, Global) and first.use == VALUE:
            self.refuse(first.module, first.name)

    def by_value(self, callee: Global, arguments: tuple[object, ...]) -> object:
        if callee.name == "subimport" and arguments and isinstance(arguments[0], str):
            self.findings.imported_by_code.add(arguments[0])
        return OBJECT

    def instance(self, cls: object, arguments: tuple[object, ...] = ()) -> object:
        """What NEWOBJ does: make an instance without its `__init__`."""
        made = self.callee(cls)
        if made is None:
            return OBJECT
        pair = (made.module, made.name)
        if made.use not in (CALL, NEW):
            self.refuse(*pair)
            return OBJECT
        if pair == ARRAY_ON_DISK:
            return ArrayOnDisk()
        if pair == ("numpy", "dtype"):
            return make_dtype(arguments)
        return OBJECT

    def build(self) -> None:
        """BUILD: give the object below the state on top."""
        state = self.pop()
        target = self.stack[-1]
        if type(target) is Dtype:
            set_up_dtype(target, state)
        elif type(target) is ArrayOnDisk:
            self.stack[-1] = self.step_over(state)
        elif target is PARTIAL:
            check_partial(state)
        else:
            self.may_change(target)
            self.plain_state(state)

    def plain_state(self, state: object) -> None:
        """Slots given beside the state are set by name, so `__class__` among them would turn one class into another."""
        if type(state) is tuple and len(state) == 2 and type(state[1]) is Dict and not self.findings.code:
            if any(key.startswith("__") and key.endswith("__") for key in state[1].entries):
                raise never("The file replaces a special attribute of an object.")

    def may_change(self, target: object) -> None:
        """An import is shared with the whole process: a file that changes one changes everybody's."""
        if isinstance(target, Global) and target.use is not None and not self.findings.code:
            raise never(f"The file changes {target} itself instead of an instance of it.")
        if type(target) is Dict and target.frozen:
            raise never("The file changes the fields of an array type after it was used.")

    # joblib.

    def step_over(self, state: object) -> object:
        """The array behind a placeholder: note where its bytes lie and go on behind them."""
        if not (type(state) is Dict and state.whole):
            raise never("The file describes an array in an unusual way.")
        if self.frame_end and self.position < self.frame_end:
            raise self.damaged("an array inside a frame")
        self.frame_end = 0
        entries = state.entries
        shape, dtype, subclass = entries.get("shape"), entries.get("dtype"), entries.get("subclass")
        if not (isinstance(shape, tuple) and isinstance(dtype, Dtype) and isinstance(subclass, Global)):
            raise never("The file describes an array in an unusual way.")
        dtype.settled = True
        start = self.position
        if dtype.hasobject:
            inner = Machine(self.data, start, self.policy, self.findings, self.limits, nested=True)
            self.findings.opcodes += self.opcodes
            self.opcodes = 0
            self.position = inner.run()
            self.findings.spans.append(Span(start, start, self.position, nested=True))
            return OBJECT
        if entries.get("numpy_array_alignment_bytes") is not None:
            self.take(self.data[self.take(1)])
        data = self.take(number_of_items(shape) * dtype.itemsize)
        self.findings.spans.append(Span(start, data, self.position, nested=False))
        return OBJECT

    # Dicts.

    def put_items(self, target: object, items: list[object]) -> None:
        self.may_change(target)
        if len(items) % 2:
            raise self.damaged("a key without a value")
        pairs = list(zip(items[::2], items[1::2], strict=True))
        if type(target) is Dict:
            target.put(pairs)
        for key, value in pairs:
            if key == "_sklearn_version" and type(value) is str:
                self.findings.state("scikit-learn", value)
            elif type(value) is Blob and key == "handle":
                self.booster(value)

    def booster(self, blob: Blob) -> None:
        version = xgboost_version(self.data, blob.start, blob.end)
        if version:
            self.findings.state("xgboost", version)


_XGBOOST_JSON = re.compile(rb'"version"\s*:\s*\[\s*(\d{1,3})\s*,\s*(\d{1,3})\s*,\s*(\d{1,3})\s*\]')
# UBJSON: key "version" (int64 length 7), then an array of three integers, typed ("$" "i" "#" …) or each with its type.
_XGBOOST_UBJ = re.compile(rb"\x00{7}\x07version\[((?:\$.)?#[iUlLI])", re.DOTALL)


def xgboost_version(data: bytes, start: int, end: int) -> str | None:
    """The version an XGBoost buffer (JSON or UBJSON) states, or None. The last one wins: it is the outer object's."""
    found = None
    for found in _XGBOOST_JSON.finditer(data, start, end):  # noqa: B007 - the last match is wanted
        pass
    if found:
        return ".".join(part.decode() for part in found.groups())
    return _ubj_version(data, start, end)


def _ubj_version(data: bytes, start: int, end: int) -> str | None:
    found = None
    for found in _XGBOOST_UBJ.finditer(data, start, end):  # noqa: B007
        pass
    if not found:
        return None
    reader = _Ubj(data, found.start(1), min(end, found.start(1) + 64))
    numbers = reader.integers()
    return ".".join(map(str, numbers)) if len(numbers) == 3 else None


class _Ubj:
    """Just enough UBJSON to read an array of integers behind its `[`."""

    SIZES = {ord("i"): 1, ord("U"): 1, ord("I"): 2, ord("l"): 4, ord("L"): 8}

    def __init__(self, data: bytes, position: int, end: int) -> None:
        self.data, self.position, self.end = data, position, end

    def byte(self) -> int:
        self.position += 1
        return self.data[self.position - 1] if self.position <= self.end else 0

    def integer(self, kind: int) -> int:
        size = self.SIZES.get(kind, 0)
        self.position += size
        return int.from_bytes(self.data[self.position - size : self.position], "big") if size else -1

    def integers(self) -> list[int]:
        kind = 0
        marker = self.byte()
        if marker == ord("$"):
            kind = self.byte()
            marker = self.byte()
        if marker != ord("#"):
            return []
        count = self.integer(self.byte())
        return [self.integer(kind or self.byte()) for _ in range(count)] if 0 <= count <= 8 else []


_OUT_OF_STACK = (IndexError,)
_STOP = ord(".")
_U1, _U2, _U4, _U8 = struct.Struct("<B"), struct.Struct("<H"), struct.Struct("<I"), struct.Struct("<Q")
_I4 = struct.Struct("<i")
_F8 = struct.Struct(">d")

Step = Callable[[Machine], None]
_TABLE: list[Step | None] = [None] * 256


def _on(opcode: int | str) -> Callable[[Step], Step]:
    def register(step: Step) -> Step:
        _TABLE[ord(opcode) if isinstance(opcode, str) else opcode] = step
        return step

    return register


# Structure.


@_on(0x80)
def _proto(m: Machine) -> None:
    version = m.data[m.take(1)]
    if version > NEWEST_PROTOCOL:
        raise BadInput(
            f"This pickle says it is of protocol {version}; the newest known is {NEWEST_PROTOCOL}.",
            "Save the model with protocol 5 or below.",
        )
    m.findings.protocol = max(m.findings.protocol, version)


@_on(0x95)
def _frame(m: Machine) -> None:
    size = m.number(_U8)
    if m.frame_end and m.position < m.frame_end:
        raise m.damaged("a frame inside a frame")
    if size > len(m.data) - m.position:
        raise m.cut()
    m.frame_end = m.position + size


@_on("(")
def _mark(m: Machine) -> None:
    m.open_mark()


@_on("0")
def _pop(m: Machine) -> None:
    if m.stack:
        m.stack.pop()
    else:
        m.close_mark()


@_on("1")
def _pop_mark(m: Machine) -> None:
    m.close_mark()


@_on("2")
def _dup(m: Machine) -> None:
    value = m.stack[-1]
    if type(value) is Dtype:
        value.settled = True
    m.push(value)


@_on("p")
def _put(m: Machine) -> None:
    m.remember(_index(m, m.line()))


@_on("q")
def _binput(m: Machine) -> None:
    m.remember(m.data[m.take(1)])


@_on("r")
def _long_binput(m: Machine) -> None:
    m.remember(m.number(_U4))


@_on(0x94)
def _memoize(m: Machine) -> None:
    m.memo[len(m.memo)] = m.stack[-1]


@_on("g")
def _get(m: Machine) -> None:
    m.recall(_index(m, m.line()))


@_on("h")
def _binget(m: Machine) -> None:
    m.recall(m.data[m.take(1)])


@_on("j")
def _long_binget(m: Machine) -> None:
    m.recall(m.number(_U4))


def _index(m: Machine, line: bytes) -> int:
    if not _WHOLE_NUMBER.match(line):
        raise m.damaged("an unreadable memo index")
    return int(line)


# Numbers and constants.


def _constant(value: object) -> Step:
    return lambda m: m.push(value)


for _opcode, _value in (("N", None), (0x88, True), (0x89, False), (")", ()), ("]", LIST), (0x8F, SET)):
    _on(_opcode)(_constant(_value))


@_on("}")
def _empty_dict(m: Machine) -> None:
    m.push(Dict())


@_on("J")
def _binint(m: Machine) -> None:
    m.push(_I4.unpack_from(m.data, m.take(4))[0])


@_on("K")
def _binint1(m: Machine) -> None:
    m.push(m.data[m.take(1)])


@_on("M")
def _binint2(m: Machine) -> None:
    m.push(m.number(_U2))


@_on("I")
def _int(m: Machine) -> None:
    line = m.line()
    if line in (b"00", b"01"):
        m.push(line == b"01")
    else:
        m.push(_decimal(m, line))


@_on("L")
def _long(m: Machine) -> None:
    m.push(_decimal(m, m.line().removesuffix(b"L")))


def _decimal(m: Machine, line: bytes) -> object:
    if len(line) > _LONG_INTEGER:
        return NUMBER
    try:
        return int(line, 0)
    except ValueError as error:
        raise m.damaged("an unreadable number") from error


@_on(0x8A)
def _long1(m: Machine) -> None:
    _binary_long(m, m.data[m.take(1)])


@_on(0x8B)
def _long4(m: Machine) -> None:
    _binary_long(m, m.number(_I4))


def _binary_long(m: Machine, size: int) -> None:
    start = m.take(size)
    m.push(
        int.from_bytes(m.data[start : start + size], "little", signed=True)
        if size <= _LONG_INTEGER
        else NUMBER
    )


@_on("F")
def _float(m: Machine) -> None:
    try:
        m.push(float(m.line()))
    except ValueError as error:
        raise m.damaged("an unreadable number") from error


@_on("G")
def _binfloat(m: Machine) -> None:
    m.push(_F8.unpack_from(m.data, m.take(8))[0])


# Text and bytes.


def _sized_text(form: struct.Struct) -> Step:
    return lambda m: m.push(m.text(m.number(form)))


def _sized_bytes(form: struct.Struct) -> Step:
    def step(m: Machine) -> None:
        size = m.number(form)
        start = m.take(size)
        m.push(Blob(start, start + size))

    return step


for _opcode, _form in ((0x8C, _U1), ("X", _U4), (0x8D, _U8)):
    _on(_opcode)(_sized_text(_form))
for _opcode, _form in (("C", _U1), ("B", _U4), (0x8E, _U8), (0x96, _U8)):
    _on(_opcode)(_sized_bytes(_form))


@_on("V")
def _unicode(m: Machine) -> None:
    line = m.line()
    try:
        m.push(line.decode("raw-unicode-escape") if len(line) <= m.limits.text else TEXT)
    except UnicodeDecodeError as error:
        raise m.damaged("an unreadable text") from error


@_on("S")
def _string(m: Machine) -> None:
    line = m.line()
    if len(line) < 2 or line[0] != line[-1] or line[:1] not in (b"'", b'"'):
        raise m.damaged("a text without its quotes")
    if len(line) > m.limits.text:
        return m.push(TEXT)
    try:
        _python2_text(m, codecs.escape_decode(line[1:-1])[0])
    except ValueError as error:
        raise m.damaged("an unreadable text") from error


def _sized_string(form: struct.Struct) -> Step:
    def step(m: Machine) -> None:
        size = m.number(form)
        start = m.take(size)
        _python2_text(m, m.data[start : start + size] if size <= m.limits.text else b"\xff")

    return step


def _python2_text(m: Machine, raw: bytes) -> None:
    """Python 2's `str`: text when it is ASCII. The loader stops at any other."""
    m.push(raw.decode("ascii") if len(raw) <= m.limits.text and raw.isascii() else TEXT)


for _opcode, _form in (("U", _U1), ("T", _I4)):
    _on(_opcode)(_sized_string(_form))


# Containers.


@_on("t")
def _tuple(m: Machine) -> None:
    items = m.close_mark()
    m.push(tuple(items))


@_on(0x85)
def _tuple1(m: Machine) -> None:
    m.stack[-1:] = [(m.stack[-1],)]


@_on(0x86)
def _tuple2(m: Machine) -> None:
    _gather(m, 2)


@_on(0x87)
def _tuple3(m: Machine) -> None:
    _gather(m, 3)


def _gather(m: Machine, size: int) -> None:
    if len(m.stack) < size:
        raise IndexError
    m.stack[-size:] = [tuple(m.stack[-size:])]


@_on("l")
def _list(m: Machine) -> None:
    m.close_mark()
    m.push(LIST)


@_on("d")
def _dict(m: Machine) -> None:
    items = m.close_mark()
    made = Dict()
    m.put_items(made, items)
    m.push(made)


@_on(0x91)
def _frozenset(m: Machine) -> None:
    m.close_mark()
    m.push(SET)


@_on("a")
def _append(m: Machine) -> None:
    m.pop()
    m.may_change(m.stack[-1])


def _extend(m: Machine) -> None:
    m.close_mark()
    m.may_change(m.stack[-1])


_on("e")(_extend)
_on(0x90)(_extend)


@_on("s")
def _setitem(m: Machine) -> None:
    value, key = m.pop(), m.pop()
    m.put_items(m.stack[-1], [key, value])


@_on("u")
def _setitems(m: Machine) -> None:
    items = m.close_mark()
    m.put_items(m.stack[-1], items)


# Imports and calls.


@_on("c")
def _global(m: Machine) -> None:
    m.push(m.named(*_two_lines(m)))


def _two_lines(m: Machine) -> tuple[str, str]:
    try:
        return m.line().decode("utf-8"), m.line().decode("utf-8")
    except UnicodeDecodeError as error:
        raise m.damaged("an import that is not UTF-8") from error


@_on(0x93)
def _stack_global(m: Machine) -> None:
    name, module = m.pop(), m.pop()
    m.push(m.named(module, name))


@_on("R")
def _reduce(m: Machine) -> None:
    arguments = m.pop()
    function = m.pop()
    m.push(m.call(function, arguments))


@_on("i")
def _inst(m: Machine) -> None:
    cls = m.named(*_two_lines(m))
    m.push(m.call(cls, tuple(m.close_mark())))


@_on("o")
def _obj(m: Machine) -> None:
    items = m.close_mark()
    m.push(m.call(items[0], tuple(items[1:])))


@_on(0x81)
def _newobj(m: Machine) -> None:
    arguments, cls = m.pop(), m.pop()
    m.push(m.instance(cls, _written(arguments)))


@_on(0x92)
def _newobj_ex(m: Machine) -> None:
    m.pop()
    arguments, cls = m.pop(), m.pop()
    m.push(m.instance(cls, _written(arguments)))


def _written(arguments: object) -> tuple[object, ...]:
    if not isinstance(arguments, tuple):
        raise never("The file computes the arguments of a call instead of writing them.")
    return arguments


@_on("b")
def _build(m: Machine) -> None:
    m.build()


# What reaches outside the file.


def _outside(what: str) -> Step:
    def step(m: Machine) -> None:
        raise Refused(
            f"The file refers to {what}, which lies outside of it.",
            "Save the model whole, with joblib.dump or pickle.dump and nothing more.",
            names=(),
        )

    return step


for _opcode in (0x82, 0x83, 0x84):
    _on(_opcode)(_outside("the copyreg extension registry"))
for _opcode in ("P", "Q"):
    _on(_opcode)(_outside("a persistent object"))
for _opcode in (0x97, 0x98):
    _on(_opcode)(_outside("an out-of-band buffer"))
