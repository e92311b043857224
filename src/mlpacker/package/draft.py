"""A draft: a folder laid out as the package will be, and what the files in it say of themselves before anything is built."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mlpacker_runtime import formats
from mlpacker_runtime.formats import Facts, FolderFiles, Trust
from mlpacker_runtime.loading import code_modules
from mlpacker_runtime.manifest import Stage

from ..environments.captured import imports
from ..errors import BadDescription, BadInput, MlpackerError
from ..pipeline import Pipeline, StageDescription

IGNORED = ("__pycache__", ".git", ".ipynb_checkpoints")


@dataclass(frozen=True)
class Draft:
    """stages: as far as they are known, in topological order. facts: by stage name."""

    folder: Path
    stages: tuple[Stage, ...]
    facts: dict[str, Facts]

    @property
    def files(self) -> FolderFiles:
        return FolderFiles(self.folder)


def _inspected(stage: Stage, files: FolderFiles, accepted: Trust) -> Facts:
    """What the stage's file says, unloaded. What is wrong with it is said with its name: a pipeline has several."""
    try:
        told: Facts = formats.get(stage.format).inspect(files, stage.path, accepted)
    except MlpackerError as cause:
        name = PurePosixPath(stage.path).name
        if name in cause.sentence:
            raise
        raise type(cause)(f"{name}: {cause.sentence}", cause.next_step, **cause.facts) from cause
    return told


def make(pipeline: Pipeline, folder: Path, trust: Trust) -> Draft:
    """Copy the pipeline's files into `folder` and audit each. Raises BadDescription, BadInput or Refused."""
    stages = []
    facts = {}
    for described in pipeline.stages:
        stage = _copy(described, folder)
        files = FolderFiles(folder)
        accepted = Trust(
            trust.names | frozenset(described.trust),
            trust.code or described.function is not None,
            code_modules(files, stage.code),
        )
        told = _inspected(stage, files, accepted)
        told = dataclasses.replace(told, modules=_outside(told, files, stage))
        _copy_beside(described, told, stage, folder)
        facts[stage.name] = told
        holds_code = told.code or bool(stage.code)
        stages.append(
            dataclasses.replace(
                stage,
                trusted=told.trusted,
                holds_code=holds_code,
                options=told.options,
                inputs=stage.inputs or told.inputs or (),
            )
        )
    return Draft(folder, tuple(stages), facts)


def _outside(told: Facts, files: FolderFiles, stage: Stage) -> tuple[str, ...]:
    """The modules an environment must bring: those of the model and of its code that are not packed themselves."""
    sources = [p for c in stage.code for p in _python_files(files.file(c))]
    needed = set(told.modules).union(*(imports(p.read_text(encoding="utf-8")) for p in sources))
    return tuple(sorted(needed - code_modules(files, stage.code) - {p.stem for p in sources}))


def _python_files(place: Path) -> list[Path]:
    return [place] if place.is_file() else sorted(place.rglob("*.py"))


def _copy(described: StageDescription, folder: Path) -> Stage:
    code = tuple(copy_code(place, folder / "code" / described.name, folder) for place in described.code)
    stage = Stage(
        name=described.name,
        format="function",
        path="",
        after=described.after,
        args=dict(described.args),
        methods=described.methods,
        takes=described.takes,
        batch=described.batch or "rows",
        inputs=described.inputs,
        outputs=described.outputs,
        code=code,
    )
    if described.function is not None:
        source, entry = described.function
        return dataclasses.replace(
            stage, path=copy_code(source, folder / "code" / described.name, folder), entry=entry
        )
    assert described.model is not None
    path = _copy_model(described.model, folder / "models" / described.name, folder)
    try:
        return dataclasses.replace(stage, path=path, format=formats.find(FolderFiles(folder), path))
    except BadInput as error:
        said = error.sentence.replace(path, described.model.name)
        raise BadInput(said, error.next_step) from error


def _copy_beside(described: StageDescription, told: Facts, stage: Stage, folder: Path) -> None:
    """Further files of a model's own folder that it says it reads (ONNX keeps large tensors so)."""
    if described.model is None or described.model.is_dir():
        return
    for path in told.beside:
        target = folder / path
        source = described.model.parent / target.relative_to((folder / stage.path).parent)
        if not source.is_file():
            raise BadDescription(f"{described.model.name} reads {source.name}, which is not beside it.")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def _copy_model(source: Path, into: Path, root: Path) -> str:
    if source.name == "MLmodel":
        source = source.parent
    if not source.exists():
        raise BadDescription(f"There is no model file {source}.")
    target = into / source.name if source.is_file() else into
    if source.is_dir():
        copy_tree(source, target)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    return target.relative_to(root).as_posix()


def copy_code(source: Path, into: Path, root: Path) -> str:
    """A code file with the neighbours it imports, or a folder of modules. Returns its path in the package."""
    if not source.exists():
        raise BadDescription(f"There is no code at {source}.")
    if source.is_dir():
        target = into / source.name
        copy_tree(source, target)
        return target.relative_to(root).as_posix()
    for file in (source, *neighbours(source)):
        target = into / file.relative_to(source.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    return (into / source.name).relative_to(root).as_posix()


def neighbours(source: Path) -> Iterator[Path]:
    """The files beside a code file that it imports, and that these import."""
    seen = {source}
    waiting = [source]
    while waiting:
        current = waiting.pop()
        for module in sorted(imports(current.read_text(encoding="utf-8"))):
            for place in (source.parent / f"{module}.py", *sorted((source.parent / module).rglob("*.py"))):
                if place.is_file() and place not in seen:
                    seen.add(place)
                    waiting.append(place)
                    yield place


def copy_tree(source: Path, target: Path) -> None:
    """A folder's files; links that lead out of it are an error, caches are left out."""
    for file in sorted(source.rglob("*")):
        if any(part in IGNORED for part in file.parts) or not file.is_file():
            continue
        if not file.resolve().is_relative_to(source.resolve()):
            raise BadDescription(f"{file} leads out of {source}.", "Pack the file itself.")
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)
