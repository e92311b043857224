"""Which imports a model file may name: exact (module, name) pairs, read from `allow/*.txt`.

A line is `module name` or `module name use`; `#` starts a comment. `use` says what a file may do with the name:

- `new` (the default): make an instance without running its `__init__` (what pickle does for a plain class);
- `call`: also call it with arguments (Cython classes, containers, the short list of named constructors);
- `value`: only mention it, for example a ufunc or a score function that a model holds as an attribute.

How the lists are made, and why some classes are missing from them, stands in `tools/allowlist/README.md`.
"""

from __future__ import annotations

import functools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources

Pair = tuple[str, str]

# scikit-learn 1.5 to 1.8 built this module without the name of its package, and pickles say so.
MISNAMED = {"_loss": "sklearn._loss._loss"}

CALL, NEW, VALUE = "call", "new", "value"

# What builds functions and classes from bytecode. Whoever accepts code (`trust_code`) accepts these and what such code
# is made of; without it they are refused, and reported as code.
CODE_MODULES = frozenset(
    {
        "cloudpickle.cloudpickle",
        "cloudpickle.cloudpickle_fast",
        "joblib.externals.cloudpickle.cloudpickle",
        "joblib.externals.cloudpickle.cloudpickle_fast",
        "dill._dill",
        "dill.dill",
    }
)
CODE_NAMES = frozenset(
    {
        ("types", "CodeType"),
        ("types", "FunctionType"),
        ("types", "LambdaType"),
        ("types", "ModuleType"),
        ("marshal", "loads"),
        ("builtins", "compile"),
    }
)
CODE_INGREDIENTS = frozenset(
    ("builtins", name)
    for name in (
        "type",
        "property",
        "staticmethod",
        "classmethod",
        "getattr",
        "super",
        "print",
        "len",
        "sum",
        "map",
    )
) | {
    ("abc", "ABCMeta"),
    ("types", "SimpleNamespace"),
    ("types", "MappingProxyType"),
    ("functools", "partial"),
}


@functools.cache
def listed_names() -> Mapping[Pair, str]:
    """All lists that ship with the audit, as one mapping from pair to use."""
    names: dict[Pair, str] = {}
    folder = resources.files(__package__) / "allow"
    for entry in sorted(folder.iterdir(), key=lambda path: path.name):
        if entry.name.endswith(".txt"):
            names.update(parse(entry.read_text(encoding="utf-8")))
    return names


def parse(text: str) -> Iterator[tuple[Pair, str]]:
    """The pairs of one list. Raises ValueError for a line of another shape: a list is code and is tested as such."""
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        if not words:
            continue
        module, name, use = (*words, NEW) if len(words) == 2 else words
        if use not in (CALL, NEW, VALUE) or "." in name:
            raise ValueError(f"not a line of an allow-list: {line!r}")
        yield (module, name), use


@dataclass(frozen=True)
class Policy:
    """What is accepted on this occasion: the lists, and what the user adds.

    `trusted`: exact `module.name` strings. `code_modules`: modules whose source the user gives, so that a class or
    function defined in them is accepted. `trust_code`: functions and classes by value are accepted.
    """

    trusted: frozenset[str] = frozenset()
    code_modules: frozenset[str] = frozenset()
    trust_code: bool = False
    listed: Mapping[Pair, str] = field(repr=False, default_factory=listed_names)

    @classmethod
    def of(cls, trusted: Collection[str], code_modules: Collection[str], trust_code: bool) -> Policy:
        return cls(frozenset(trusted), frozenset(code_modules), trust_code)

    def use(self, module: str, name: str) -> str | None:
        """`call`, `new` or `value`; None when the name is not accepted. A dotted name never is: it reaches through
        whatever the module happens to import (`sklearn.datasets._base` + `os.system`)."""
        if "." in name or not name or not module:
            return None
        if f"{module}.{name}" in self.trusted or module in self.code_modules:
            return CALL
        if self.trust_code and (is_code(module, name) or (module, name) in CODE_INGREDIENTS):
            return CALL
        return self.listed.get((module, name))

    def trusts(self, module: str, name: str) -> bool:
        """Whether the user accepted this very name, or code: then how it is called is the user's risk too."""
        return f"{module}.{name}" in self.trusted or (self.trust_code and (module, name) in CODE_INGREDIENTS)

    def canonical(self, module: str, name: str) -> Pair:
        """The name meant here: files of protocol 2 and below write some standard names as Python 2 had them."""
        if module == "__mp_main__":  # what multiprocessing calls the training script
            module = "__main__"
        if self.use(module, name) is not None:
            return module, name
        if module in MISNAMED:
            return MISNAMED[module], name
        if (module, name) in NAME_MAPPING:
            return NAME_MAPPING[module, name]
        return IMPORT_MAPPING.get(module, module), name


def is_code(module: str, name: str) -> bool:
    """Whether the name builds code from bytes."""
    return module in CODE_MODULES or (module, name) in CODE_NAMES
