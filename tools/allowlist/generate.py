"""Make the lists the audit ships: run `collect.py` in one environment per library version and unite what it prints.

    python tools/allowlist/generate.py            # every environment below; needs uv and the Pythons
    python tools/allowlist/generate.py --here     # only this interpreter's libraries, united with what the lists hold

Names are only ever added: a model saved years ago names what its library had then. What is written by hand (`by_hand/`)
is added with its reasons.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).parent
ALLOW = HERE.parents[1] / "runtime/src/mlpacker_runtime/audit/allow"
RANK = {"value": 0, "new": 1, "call": 2}

# library, the Python it had wheels for, requirements, and the day whose index they are resolved against.
ENVIRONMENTS: tuple[tuple[str, str, str], ...] = (
    (
        "3.10",
        "2022-04-15",
        "scikit-learn==1.0.2 pandas==1.4.2 xgboost==1.5.2 lightgbm==3.3.2 catboost==1.0.5 setuptools",
    ),
    ("3.10", "2022-11-15", "scikit-learn==1.1.3 pandas==1.5.1 lightgbm==3.3.3"),
    ("3.10", "2023-05-15", "scikit-learn==1.2.2 pandas==2.0.1 xgboost==1.7.5 lightgbm==3.3.5"),
    ("3.11", "2023-11-15", "scikit-learn==1.3.2 pandas==2.1.3 lightgbm==4.1.0"),
    ("3.11", "2024-05-15", "scikit-learn==1.4.2 pandas==2.2.2 lightgbm==4.3.0 catboost==1.2.5"),
    ("3.12", "2024-11-15", "scikit-learn==1.5.2 pandas==2.2.3 lightgbm==4.5.0"),
    ("3.12", "2025-05-15", "scikit-learn==1.6.1 pandas==2.2.3 xgboost-cpu==3.0.1 lightgbm==4.6.0"),
    ("3.13", "2025-08-30", "scikit-learn==1.7.1 pandas==2.3.2 lightgbm==4.6.0"),
    ("3.13", "2026-03-01", "scikit-learn==1.8.0 pandas lightgbm"),
    ("3.13", "", "scikit-learn pandas xgboost-cpu lightgbm catboost"),
)


def collect(python: str) -> list[str]:
    """What `collect.py` prints under an interpreter."""
    done = subprocess.run([python, str(HERE / "collect.py")], check=True, capture_output=True, text=True)
    return done.stdout.splitlines()


def unite(lines: Iterable[str], lists: dict[str, dict[str, str]]) -> None:
    """Add `list module name use` lines; of two uses of one name the wider one stays."""
    for line in lines:
        library, module, name, use = line.split()
        pairs = lists[library]
        pair = f"{module} {name}"
        if RANK[use] >= RANK[pairs.get(pair, "value")]:
            pairs[pair] = use


def held(lists: dict[str, dict[str, str]]) -> None:
    """Start from what the lists hold."""
    for path in ALLOW.glob("*.txt"):
        lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
        unite((f"{path.stem} {line}" for line in lines), lists)


def write(lists: dict[str, dict[str, str]]) -> None:
    """Each list: what was written by hand, with its reasons, then what was found, sorted."""
    for library in sorted({*lists, *(path.stem for path in (HERE / "by_hand").glob("*.txt"))}):
        by_hand = HERE / "by_hand" / f"{library}.txt"
        reasons = by_hand.read_text().rstrip() if by_hand.exists() else ""
        written = {line.rpartition(" ")[0] for line in reasons.splitlines() if not line.startswith("#")}
        found = [f"{pair} {use}" for pair, use in sorted(lists[library].items()) if pair not in written]
        parts = [
            HEAD.format(library=library),
            reasons,
            "# Found in the releases listed in generate.py.\n" + "\n".join(found),
        ]
        (ALLOW / f"{library}.txt").write_text(
            "\n\n".join(part for part in parts if part and (found or part is not parts[2])) + "\n"
        )


HEAD = """# {library}: exact names a model file may import. Made by tools/allowlist/generate.py; what each use means stands
# in audit/allowlist.py, why a name is or is not here in tools/allowlist/README.md."""


def environment(folder: Path, python: str, day: str, requirements: str) -> str:
    """Make an environment (once) and give its interpreter."""
    interpreter = folder / "bin/python"
    if not interpreter.exists():
        subprocess.run(["uv", "venv", "-q", "--python", python, str(folder)], check=True)
        until = ["--exclude-newer", day] if day else []
        command = [
            "uv",
            "pip",
            "install",
            "-q",
            "--only-binary",
            ":all:",
            "--python",
            str(interpreter),
            *until,
        ]
        subprocess.run([*command, *requirements.split()], check=True)
    return str(interpreter)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--here", action="store_true", help="only this interpreter's libraries")
    parser.add_argument(
        "--envs", type=Path, default=Path(".allowlist-envs"), help="where environments are made and kept"
    )
    chosen = parser.parse_args()
    lists: dict[str, dict[str, str]] = defaultdict(dict)
    held(lists)
    if chosen.here:
        unite(collect(sys.executable), lists)
    else:
        for python, day, requirements in ENVIRONMENTS:
            name = requirements.split()[0].replace("==", "-")
            unite(collect(environment((chosen.envs / name).absolute(), python, day, requirements)), lists)
            print(f"collected {name}", flush=True)
    write(lists)


if __name__ == "__main__":
    main()
