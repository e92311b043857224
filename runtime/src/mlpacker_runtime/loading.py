"""From a stage's description to something that answers: the stage's code put in place, its model built under the audit."""

from __future__ import annotations

import sys

from . import formats
from .formats import Files, Predictor, Trust
from .importing import import_file
from .manifest import Manifest, Stage


def trust_of(stage: Stage, accepted: bool) -> Trust:
    """What to trust of a stage: what its packer accepted, but only where this machine accepted the package."""
    return Trust(frozenset(stage.trusted), True) if accepted else Trust()


def load_stage(files: Files, stage: Stage, accepted: bool) -> Predictor:
    """Raises Refused, BadInput or EnvironmentFailed."""
    if stage.code and accepted:
        use_code(files, stage)
    predictor: Predictor = formats.get(stage.format).load(files, stage, trust_of(stage, accepted))
    return predictor


def load_all(files: Files, manifest: Manifest, accepted: bool) -> dict[str, Predictor]:
    return {s.name: load_stage(files, s, accepted) for s in manifest.stages}


def use_code(files: Files, stage: Stage) -> None:
    """Put packed code on the path, and let `__main__`'s names be found in the files packed for it.

    A class defined in the training script is saved as `__main__.Name`; the script was packed as a plain module.
    """
    main = sys.modules["__main__"]
    for path in stage.code:
        place = files.file(path)
        folder = place if place.is_dir() else place.parent
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
        if place.is_file() and place.suffix == ".py":
            module = import_file(place, place.stem)
            for key, value in vars(module).items():
                if not key.startswith("__") and getattr(value, "__module__", None) == module.__name__:
                    setattr(main, key, value)
