"""The audit: what a model file would import and call, found without building any of it; then loading, under the same list.

A pickle is a program. `scan` follows it on symbols and says which names it imports (`Report`); names that are not on the
lists of `allow/` are refused, by name, unless the user trusts exactly them. `load` scans the bytes it is given and
builds from those bytes, with the same lists enforced in every unpickler it uses.

What the audit promises: nothing outside the lists is imported or called while a file is scanned or loaded, and what is
listed is called only in the ways honest files call it. What it does not: that a model answers well, or that
compiled code survives numbers made up by an attacker (a tree whose child indices point outside of it).

Standard library only at import; NumPy and skops are imported when a file that needs them is loaded. Adding a name: write
it into a list of `allow/` by way of `tools/allowlist`, whose README says what to check first.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Collection
from types import ModuleType

from mlpacker_runtime.audit.allowlist import Policy
from mlpacker_runtime.audit.limits import LIMITS, Limits
from mlpacker_runtime.audit.loading import build
from mlpacker_runtime.audit.machine import ARRAY_ON_DISK, Findings, Machine
from mlpacker_runtime.audit.report import Report, refusal
from mlpacker_runtime.audit.skops import load_skops, scan_skops
from mlpacker_runtime.audit.unpack import ZIP, can_read, compression_of, head_of, is_skops, library_of, unpack
from mlpacker_runtime.errors import BadInput, Refused

__all__ = ["LIMITS", "Limits", "Report", "kind", "load", "load_skops", "scan", "scan_skops"]


def kind(data_head: bytes, name: str = "") -> str | None:
    """ "pickle", "joblib" or "skops" by the first bytes of a file (some 512 suffice; all of it is better), else None.

    `name` decides nothing but a skops file of which the head does not yet show it.
    """
    if is_skops(data_head) or (data_head.startswith(ZIP) and name.endswith(".skops")):
        return "skops"
    compression = compression_of(data_head[:16])
    compressed = compression is not None
    if compression is not None and not can_read(compression):
        return "joblib"  # most likely; the scan says what is missing to tell
    if not _starts_a_pickle(head_of(data_head)):
        return None
    return "joblib" if compressed or b"joblib" in data_head[:4096] else "pickle"


def _starts_a_pickle(head: bytes) -> bool:
    """Protocol 2 and above open with PROTO; below that, a model opens with the import of its class."""
    if head[:1] == b"\x80":
        return len(head) > 1 and 2 <= head[1] < 16  # one of the future is told apart by the scan
    return head[:1] in (b"c", b"(", b"]", b"}") and (b"\n" in head[:200] or head[1:2] in (b"q", b"(", b"c"))


def scan(
    data: bytes,
    *,
    trusted: Collection[str] = (),
    code_modules: Collection[str] = (),
    trust_code: bool = False,
    limits: Limits = LIMITS,
) -> Report:
    """What a pickle or joblib file imports, and which of it is not accepted. Builds nothing.

    `trusted`: exact `module.name` strings accepted beside the lists. `code_modules`: modules whose source the user gives
    (`__main__` among them). `trust_code`: functions and classes by value are accepted.
    Raises BadInput for what is not one whole pickle or breaks a bound; Refused for what no flag makes acceptable. A name
    that is not on the list does not raise here: `Report.check()` does, and `load`.
    """
    policy = Policy.of(trusted, code_modules, trust_code)
    return _scan(data, policy, limits)[0]


def load(
    data: bytes,
    *,
    trusted: Collection[str] = (),
    code_modules: Collection[str] = (),
    trust_code: bool = False,
    main_module: ModuleType | None = None,
    limits: Limits = LIMITS,
) -> object:
    """Scan these bytes, then build the object in them. Arguments as for `scan`.

    `main_module`: what `__main__` means in the file: the module made from the training script given by --code.
    Raises what `scan` raises; Refused naming each import that is not accepted; EnvironmentFailed for a module or class
    that this environment lacks; BadInput when the object can't be rebuilt.
    """
    if main_module is not None:
        code_modules = {*code_modules, "__main__"}
    policy = Policy.of(trusted, code_modules, trust_code)
    report, plain, findings = _scan(data, policy, limits)
    report.check()
    return build(plain, findings.spans, policy, main_module)


def _scan(data: bytes, policy: Policy, limits: Limits) -> tuple[Report, bytes, Findings]:
    if is_skops(data):
        raise BadInput("This is a skops file, not a pickle.", "Read it with scan_skops.")
    if data[:4] == ZIP:
        raise BadInput("This is a zip file, not a pickle.", "Give the model file that is in it.")
    plain, compression = unpack(bytes(data), limits)
    findings = Findings()
    try:
        _follow(plain, policy, findings, limits)
    except (BadInput, Refused) as error:
        raise _with_names(error, findings) from error
    return _report(plain, compression, findings), plain, findings


def _follow(plain: bytes, policy: Policy, findings: Findings, limits: Limits) -> None:
    if not plain:
        raise BadInput("This file is empty.", "Give a model file.")
    end = Machine(plain, 0, policy, findings, limits).run()
    if end != len(plain):
        raise BadInput(
            f"{len(plain) - end} bytes follow the pickle in this file.",
            "Save one object to a file: a second one would never be read.",
        )


def _with_names(error: BadInput | Refused, findings: Findings) -> BadInput | Refused:
    """A file that is broken on top of importing what it may not is first of all refused, with the names."""
    if not findings.refused:
        return error
    names = tuple(sorted(findings.refused))
    told = refusal(names, frozenset(findings.hopeless))
    return Refused(f"{told.sentence} {error.sentence}", error.next_step, names=names)


def _report(plain: bytes, compression: str | None, findings: Findings) -> Report:
    names = sorted(f"{module}.{name}" for module, name in findings.globals)
    modules = {
        module.partition(".")[0] for module, name in findings.globals if (module, name) != ARRAY_ON_DISK
    }
    modules |= {module.partition(".")[0] for module in findings.imported_by_code}
    modules |= {library for library in (library_of(compression),) if library}
    return Report(
        container="joblib" if findings.spans or compression else "pickle",
        compression=compression,
        protocol=findings.protocol,
        names=tuple(names),
        refused=tuple(sorted(findings.refused)),
        hopeless=frozenset(findings.hopeless),
        code=findings.code,
        modules=tuple(sorted(modules - sys.stdlib_module_names - {"__main__"})),
        versions={name: _by_count(seen) for name, seen in findings.versions.items()},
        main_classes=tuple(sorted(name for module, name in findings.globals if module == "__main__")),
        size=len(plain),
    )


def _by_count(seen: Counter[str]) -> tuple[str, ...]:
    return tuple(version for version, _ in seen.most_common())
