"""What stands on the stack while a pickle is followed without building anything.

Literal `str` (up to a length), `int`, `float`, `None`, `True`, `False` and tuples stand for themselves. Everything
else is one of the values below. Containers are shared by reference, exactly as the unpickler would share them.
"""

from __future__ import annotations

from collections.abc import Iterable

KEPT_ENTRIES = 4096


class Unknown:
    """Something whose content does not matter to the audit."""

    __slots__ = ("label",)

    def __init__(self, label: str) -> None:
        self.label = label

    def __repr__(self) -> str:
        return f"<{self.label}>"


OBJECT = Unknown("an object")
LIST = Unknown("a list")
SET = Unknown("a set")
PARTIAL = Unknown("a partial call")
TEXT = Unknown("a long text")
NUMBER = Unknown("a long number")


class Global:
    """An import. `use` is what the policy lets the file do with it; None where it is refused."""

    __slots__ = ("module", "name", "use")

    def __init__(self, module: str, name: str, use: str | None) -> None:
        self.module = module
        self.name = name
        self.use = use

    def __repr__(self) -> str:
        return f"{self.module}.{self.name}"


class Blob:
    """Bytes in the file, from `start` to `end`."""

    __slots__ = ("end", "start")

    def __init__(self, start: int, end: int) -> None:
        self.start = start
        self.end = end


class Dict:
    """A dict of which the entries under literal strings are kept, up to a number.

    `whole` is False once an entry was not kept. `frozen` once another object relies on its entries.
    """

    __slots__ = ("entries", "frozen", "whole")

    def __init__(self) -> None:
        self.entries: dict[str, object] = {}
        self.whole = True
        self.frozen = False

    def put(self, pairs: Iterable[tuple[object, object]]) -> None:
        for key, value in pairs:
            if type(key) is str and len(self.entries) < KEPT_ENTRIES:
                self.entries[key] = value
            else:
                self.whole = False


class Dtype:
    """A NumPy dtype: its item size in bytes, whether it holds Python objects, and whether it may still be set up."""

    __slots__ = ("code", "hasobject", "itemsize", "settled")

    def __init__(self, code: str, itemsize: int, settled: bool) -> None:
        self.code = code
        self.itemsize = itemsize
        self.hasobject = code == "O"
        self.settled = settled


class ArrayOnDisk:
    """joblib's placeholder: an array's shape and dtype, with the array's bytes right behind it in the file."""

    __slots__ = ()
