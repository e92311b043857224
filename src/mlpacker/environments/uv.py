"""uv, the only file that calls it: a command line in, its output out, its failure as one sentence.

Index addresses travel in the environment, never on the command line: they may hold credentials, and a command line
can be read by everyone on the machine. https://docs.astral.sh/uv/reference/environment/ lists the variables.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import msgspec

from mlpacker.errors import EnvironmentFailed

RESOLVE_SECONDS = 600
INSTALL_SECONDS = 3600

# These change what uv resolves or where it installs behind our back: the answer must follow from the lock alone.
_UNWANTED = (
    "VIRTUAL_ENV",
    "CONDA_PREFIX",
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONPATH",
    "PYTHONHOME",
    "UV_PYTHON",
    "UV_EXCLUDE_NEWER",
    "UV_CONSTRAINT",
    "UV_OVERRIDE",
    "UV_OVERRIDES",
    "UV_RESOLUTION",
    "UV_PRERELEASE",
    "UV_SYSTEM_PYTHON",
    "UV_REQUIRE_HASHES",
    "UV_PROJECT",
    "UV_WORKING_DIR",
)
_INDEX_SETTINGS = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL")
_NETWORK = ("failed to fetch", "dns error", "client error (connect)", "timed out", "server error", "offline")
_NO_WHEEL = ("no wheels", "no usable wheels", "only-binary", "no-build")
_FRAME = re.compile(r"^[\s×╰├─▶│]+")
_CREDENTIALS = re.compile(r"(\w+://)[^/@\s]+@")


class Unmet(EnvironmentFailed):
    """Requirements that can't be met. Any other failure (a network, a disk) says nothing about them."""


class Indexes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where packages come from, beside what uv's own configuration says.

    `index` are addresses asked before the default index, `find_links` folders or pages of wheels; `only_links` asks no
    index at all. They are used for one call and stored nowhere.
    """

    index: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    only_links: bool = False

    def arguments(self) -> list[str]:
        """What uv and pip are told on the command line: folders, and to ask no index. Addresses are not among it."""
        folders = [str(Path(link).absolute()) for link in self.find_links if "://" not in link]
        links = [word for folder in folders for word in ("--find-links", folder)]
        return [*links, *(["--no-index"] if self.only_links else [])]

    def pages(self) -> tuple[str, ...]:
        """The `find_links` that are addresses."""
        return tuple(link for link in self.find_links if "://" in link)


def uv(
    argv: list[str],
    *,
    indexes: Indexes = Indexes(),
    cwd: Path,
    seconds: float = RESOLVE_SECONDS,
    failing: str = "uv failed",
    next_step: str = "",
) -> str:
    """Run `uv ARGV…` in folder `cwd` and return what it printed.

    `cwd` is a folder of ours: uv would read the settings of a project it finds around it.
    Raises EnvironmentFailed: `failing`, then uv's own reason and, where known, the next step; Unmet where that reason
    is the requirements.
    """
    command = [_binary(), *argv, "--no-progress", "--color", "never"]
    command += indexes.arguments()
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=_environ(indexes),
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise EnvironmentFailed(
            f"{failing}: no answer within {seconds:.0f} seconds.", "Is the package index reachable?"
        ) from error
    if done.returncode != 0:
        reason = reason_of(done.stderr)
        kind = Unmet if "No solution found" in done.stderr else EnvironmentFailed
        raise kind(f"{failing}: {reason}", next_step or _next_step(reason), reason=reason)
    return done.stdout


def reason_of(stderr: str) -> str:
    """uv's essential reason as one sentence: its boxed tree unfolded, warnings and hints left out."""
    lines = [_FRAME.sub("", line).strip() for line in stderr.splitlines()]
    errors = [place for place, line in enumerate(lines) if line.startswith("error:")]
    lines = lines[errors[-1] :] if errors else lines
    kept = [
        line for line in lines if line and not line.startswith(("warning:", "hint:", "Using ", "Resolved "))
    ]
    words = [line.removeprefix("error: ").removeprefix("cause: ").rstrip(":") for line in kept]
    words = [word for word in words if word != "No solution found when resolving dependencies"]
    sentence = _CREDENTIALS.sub(r"\1", ": ".join(words)) or "uv gave no reason"
    return sentence if sentence.endswith(".") else sentence + "."


def _next_step(reason: str) -> str:
    lowered = reason.lower()
    if any(sign in lowered for sign in _NETWORK):
        return "Check the network or the index (--index, --find-links), or bring the wheels along with save --with-env."
    if "hash mismatch" in lowered:
        return "The index holds other files than the lock names: use the index the package was locked with."
    if any(sign in lowered for sign in _NO_WHEEL):
        return "Pin a version that has a wheel for this Python, or pass --allow-build."
    return ""


def _binary() -> str:
    from uv import find_uv_bin  # here, so that reading values needs no uv

    return find_uv_bin()


def _environ(indexes: Indexes) -> dict[str, str]:
    environ = {name: value for name, value in os.environ.items() if name not in _UNWANTED}
    environ["UV_PYTHON_DOWNLOADS"] = environ.get("UV_PYTHON_DOWNLOADS", "never")
    if not any(environ.get(name) for name in _INDEX_SETTINGS):
        for ours, pips in (("UV_DEFAULT_INDEX", "PIP_INDEX_URL"), ("UV_INDEX", "PIP_EXTRA_INDEX_URL")):
            if environ.get(pips):  # a machine set up for pip is set up for us
                environ[ours] = environ[pips]
    if indexes.index:
        environ["UV_INDEX"] = " ".join((*indexes.index, *environ.get("UV_INDEX", "").split()))
    if indexes.pages():
        links = (*indexes.pages(), environ.get("UV_FIND_LINKS", ""))
        environ["UV_FIND_LINKS"] = ",".join(filter(None, links))
    if indexes.only_links:
        environ["UV_OFFLINE"] = "1"
        environ.pop("UV_INDEX", None)
    return environ
