"""What an audit found, as a value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from mlpacker_runtime.audit.allowlist import is_code
from mlpacker_runtime.errors import Refused

SHOWN = 6


@dataclass(frozen=True)
class Report:
    """What a model file says of itself, read without building any of it.

    `container` is "pickle", "joblib" (a pickle with raw arrays in between, or any compressed one) or "skops".
    `names` are all imports as `module.name`, sorted; `refused` those not accepted, `hopeless`
    those among them that no flag accepts (dotted names). `code`: functions or classes by
    value. `modules`: top-level modules the file needs, that which undoes its compression included, for capturing its
    environment. `versions`: what the file states, by distribution, the commonest first. `python`: the Python it was saved
    with, where the file tells.
    `main_classes`: names the training script defined itself. `size`: bytes after decompression.
    """

    container: str
    compression: str | None = None
    protocol: int | None = None
    names: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    hopeless: frozenset[str] = frozenset()
    code: bool = False
    modules: tuple[str, ...] = ()
    versions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    python: str | None = None
    main_classes: tuple[str, ...] = ()
    size: int = 0

    def version(self, distribution: str) -> str | None:
        """The version the file states for a distribution; the commonest where it states several."""
        stated = self.versions.get(distribution, ())
        return stated[0] if stated else None

    def check(self) -> None:
        """Raise Refused, naming every import that was not accepted and the flag that accepts it."""
        if self.refused:
            raise refusal(self.refused, self.hopeless)


ACTING = frozenset(
    """
    posix nt os subprocess shutil socket sys ctypes importlib runpy pty webbrowser multiprocessing threading code pdb
    builtins.eval builtins.exec builtins.compile builtins.__import__ builtins.open builtins.getattr builtins.breakpoint
    __builtin__.eval __builtin__.exec __builtin__.execfile __builtin__.open __builtin__.getattr
    """.split()  # noqa: SIM905  words read better without quotes
)
"""What a malicious file is made of. `--trust` would accept these names too, but nobody is told to."""


def refusal(names: tuple[str, ...], hopeless: frozenset[str] = frozenset()) -> Refused:
    """The error for a set of refused imports: which, why, and what to do about each kind."""
    kinds: dict[Callable[[tuple[str, ...]], tuple[str, str]], list[str]] = {}
    for name in names:
        kinds.setdefault(_hopeless if name in hopeless else _kind(name), []).append(name)
    told = [
        tell(tuple(kinds[tell]))
        for tell in (_hopeless, _acting, _unlisted, _by_value, _from_main)
        if tell in kinds
    ]
    return Refused(" ".join(said for said, _ in told), " ".join(step for _, step in told), names=names)


def _kind(name: str) -> Callable[[tuple[str, ...]], tuple[str, str]]:
    if name.startswith("__main__."):
        return _from_main
    if name.partition(".")[0] in ACTING or name in ACTING:
        return _acting
    return _by_value if is_code(*name.rpartition(".")[::2]) else _unlisted


def _hopeless(names: tuple[str, ...]) -> tuple[str, str]:
    return (
        f"The file reaches through a module for {_some(names)}, as no honest model does.",
        "Get the file again from a source you trust.",
    )


def _acting(names: tuple[str, ...]) -> tuple[str, str]:
    called = tuple(f"os.{n.partition('.')[2]} ({n})" if n.startswith(("posix.", "nt.")) else n for n in names)
    return (
        f"The file imports {_some(called)}, which acts on the machine it is loaded on: no model needs that.",
        "Do not use this file; ask whoever gave it to you where it is from.",
    )


def _unlisted(names: tuple[str, ...]) -> tuple[str, str]:
    return (
        f"The file imports {_some(names)}, which a model file may not do unasked.",
        f"If you know who made it and want {'that' if len(names) == 1 else 'those'}, add {_flags(names)}.",
    )


def _by_value(names: tuple[str, ...]) -> tuple[str, str]:
    return (
        f"The file holds Python code by value ({_some(names)}), which runs when it is loaded.",
        "If you know who made it, add --trust-code.",
    )


def _from_main(names: tuple[str, ...]) -> tuple[str, str]:
    classes = _some(tuple(name.removeprefix("__main__.") for name in names))
    return (
        f"The file needs {classes} from the script that trained it.",
        f"Give the file that defines {classes}: --code FILE.",
    )


def _some(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"


def _flags(names: tuple[str, ...]) -> str:
    shown = " ".join(f"--trust {name}" for name in names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} …"
