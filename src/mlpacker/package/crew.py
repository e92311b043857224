"""A crew: the stage workers of one pipeline, one process for each environment, here on this machine.

mlpacker never loads a model in its own process. Packing asks a crew in the training interpreter and one in the clean
environments; scoring and the SDK ask one for a finished package.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from mlpacker_runtime.engine import Engine
from mlpacker_runtime.formats import Description
from mlpacker_runtime.hop.client import StageWorker
from mlpacker_runtime.manifest import Stage

from ..environments import variables


@dataclass(frozen=True)
class Python:
    """How to start an interpreter: its command line, and the variables it sees."""

    argv: tuple[str, ...]
    environ: Mapping[str, str]


def clean(python: Path, environ: Mapping[str, str]) -> Python:
    """An environment of ours: isolated from the user's site folder and variables.

    -B, because isolation makes Python deaf to variables: bytecode beside a stage's code would become part of the package.
    """
    return Python((str(python), "-I", "-B"), variables.clean(environ))


def training(python: Path, runtime: Path, environ: Mapping[str, str]) -> Python:
    """The user's interpreter as it is, with the runtime's sources (and nothing else) put before its own packages."""
    path = f"{runtime}:{environ['PYTHONPATH']}" if environ.get("PYTHONPATH") else str(runtime)
    return Python((str(python),), {**environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"})


def unpack_runtime(wheel: Path, sha256: str, cache: Path) -> Path:
    """A folder that holds the runtime's sources alone, for PYTHONPATH."""
    folder = cache / "runtime-sources" / sha256[:16]
    if not (folder / "mlpacker_runtime" / "__init__.py").exists():
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    return folder


class Crew:
    """Workers by environment. Use `crew(...)`."""

    def __init__(self, workers: Mapping[str, StageWorker]) -> None:
        self.workers = workers

    def load(self, stage: Stage) -> Description:
        """Have the stage's worker build it (again, where the stage's description changed)."""
        return self.workers[stage.environment].load(stage)

    def engine(self, stages: Sequence[Stage]) -> Engine:
        """An engine over these stages, which must have been loaded."""
        runners = {s.name: self.workers[s.environment].runner(s.name) for s in stages}
        return Engine(tuple(stages), runners)


@contextmanager
def crew(
    package: Path, pythons: Mapping[str, Python], *, digest: str | None = None, accepted: bool = False
) -> Iterator[Crew]:
    """Start a worker in each environment; end them all on the way out. Raises EnvironmentFailed."""
    with ExitStack() as stack:
        yield Crew(
            {
                name: stack.enter_context(
                    StageWorker(p.argv, package, digest=digest, accepted=accepted, environ=p.environ)
                )
                for name, p in pythons.items()
            }
        )
