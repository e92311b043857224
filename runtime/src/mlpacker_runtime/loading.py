"""From a stage's description to something that answers: the stage's code put in place, its model built under the audit."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from . import formats
from .formats import Files, Predictor, Trust
from .importing import define_in_main
from .manifest import Manifest, Stage


def trust_of(files: Files, stage: Stage, accepted: bool) -> Trust:
    """What to trust of a stage: what its packer accepted, but only where this machine accepted the package."""
    return Trust(frozenset(stage.trusted), True, code_modules(files, stage.code)) if accepted else Trust()


def code_modules(files: Files, code: Iterable[str]) -> frozenset[str]:
    """The modules whose source was packed with `--code`; `__main__` where a file of it may be the training script."""
    found = set()
    for path in code:
        place = files.file(path)
        if place.is_file():
            found |= {place.stem, "__main__"}
        elif (place / "__init__.py").exists():
            found.add(place.name)
        else:
            found |= {p.stem for p in place.glob("*.py")} | {
                p.parent.name for p in place.glob("*/__init__.py")
            }
    return frozenset(found)


def load_stage(files: Files, stage: Stage, accepted: bool) -> Predictor:
    """Raises Refused, BadInput or EnvironmentFailed."""
    if stage.code and accepted:
        use_code(files, stage)
    predictor: Predictor = formats.get(stage.format).load(files, stage, trust_of(files, stage, accepted))
    return predictor


def load_all(files: Files, manifest: Manifest, accepted: bool) -> dict[str, Predictor]:
    return {s.name: load_stage(files, s, accepted) for s in manifest.stages}


def use_code(files: Files, stage: Stage) -> None:
    """Put packed code on the path, and let `__main__`'s names be found in the files packed for it."""
    for path in stage.code:
        place = files.file(path)
        package = place.is_file() or (place / "__init__.py").exists()
        # The folder it is imported from is verified too: what stands beside it can be imported as well.
        folder = str(files.file(path.rpartition("/")[0]) if package else place)
        if folder not in sys.path:
            sys.path.insert(0, folder)
        if place.is_file() and place.suffix == ".py":
            define_in_main(place)
