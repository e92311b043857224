"""The descriptor: what a pipeline is made of, as a person writes it (`pipeline.yaml`) or as arguments say it.

A key is added to PIPELINE or STAGE below, which both read it and publish it in the JSON Schema, and to the value it fills.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement

from mlpacker_runtime import manifest
from mlpacker_runtime.annotations import TAKES
from mlpacker_runtime.formats import function as functions
from mlpacker_runtime.manifest import INPUT
from mlpacker_runtime.signature import DTYPES, NUMERIC, Field

from .errors import BadDescription, MlpackerError
from .schema import document
from .schema.document import Node
from .schema.kinds import Anything, Choice, Either, Flag, Key, Many, Record, Table, Text, Whole, did_you_mean
from .schema.reference import page

NAME = r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*"
VERSION = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
STAGE_NAME = r"[A-Za-z0-9_][A-Za-z0-9_-]{0,62}"
FUNCTION = r".+\.py:[^:]+"
MAX_NAME = 100


@dataclass(frozen=True)
class StageDescription:
    """One stage as described.

    model: a model's file or folder; function: a code file and the name in it. One of the two. after: where its rows come
    from: names of stages, or `input`. methods: which of its answers; () is its own choice. code: files and folders that a
    saved model or a function refers to. trust: imports outside the allow-list to accept, as `module.name`. batch, stateful,
    inputs, outputs: None and () where it is to be found out. at: its path in the descriptor.
    """

    name: str
    model: Path | None = None
    function: tuple[Path, str] | None = None
    after: tuple[str, ...] = (INPUT,)
    args: Mapping[str, Any] = field(default_factory=dict)
    methods: tuple[str, ...] = ()
    takes: str | None = None
    python: str | None = None
    requirements: tuple[str, ...] = ()
    code: tuple[Path, ...] = ()
    trust: tuple[str, ...] = ()
    stateful: bool | None = None
    batch: str | None = None
    inputs: tuple[Field, ...] = ()
    outputs: tuple[Field, ...] = ()
    at: str = field(default="", compare=False)


@dataclass(frozen=True)
class Pipeline:
    """What is to be packed. stages: in topological order, as near the written order as that allows.

    python: the minor version, as "3.11". requirements: PEP 508 lines, for every stage. inputs, outputs: the signature, where
    it was written down. file, lines: where it was written, for errors.
    """

    name: str
    stages: tuple[StageDescription, ...]
    version: str | None = None
    sample: Path | None = None
    expect: Path | None = None
    inputs: tuple[Field, ...] = ()
    outputs: tuple[Field, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    python: str | None = None
    requirements: tuple[str, ...] = ()
    index: str | None = None
    find_links: tuple[str, ...] = ()
    file: str = field(default="", compare=False)
    lines: Mapping[str, int] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Names are checked here too, because an argument may replace what the descriptor says."""
        _checked("name", self.name, PIPELINE_NAME)
        if self.version is not None:
            _checked("version", self.version, PIPELINE_VERSION)

    def stage(self, name: str) -> StageDescription:
        return next(s for s in self.stages if s.name == name)

    def wrong(self, at: str, sentence: str, next_step: str = "") -> BadDescription:
        """An error about what stands at this path of the descriptor (or above it, where it is not written out)."""
        return document.wrong(self.file, _line(self.lines, at), at if self.lines else "", sentence, next_step)


def _line(lines: Mapping[str, int], at: str) -> int | None:
    while at and at not in lines:
        at = at[: max(at.rfind("."), at.rfind("["), 0)]
    return lines.get(at)


# ---- what may be written

PIPELINE_NAME = Text(f"a name of at most {MAX_NAME} lower-case letters, digits, and . _ - between them", NAME)
PIPELINE_VERSION = Text("a version of at most 128 letters, digits and . _ -", VERSION, loose=True)
PATH = Text("a path, relative to this file")
REQUIREMENTS = Many(Text('a requirement, as "pandas==2.2.3", or a requirements file'), or_one=True)
PYTHON = Text('a Python version, as "3.11"', r"3\.\d{1,2}", loose=True)
OR_NULL = " or null"
DTYPE = Text(
    f"a type ({', '.join(DTYPES)}), or as `float64{OR_NULL}`", rf"(?:{'|'.join(DTYPES)})(?:{OR_NULL})?"
)
FIELD = Record(
    "what a column is",
    {
        "dtype": Key(
            DTYPE, f"Its type, followed by `{OR_NULL.strip()}` where null is a legal value.", required=True
        ),
        "shape": Key(Many(Whole(-1)), "Its shape; the first axis is rows and -1. A plain column is [-1]."),
        "required": Key(Flag(), "Whether a row must have it (default: true)."),
        "categories": Key(Many(Anything()), "The labels of a category, in the model's order."),
    },
)
FIELDS = Table(Either(FIELD, DTYPE))
STAGE = Record(
    "a stage: a mapping with a name and a model or a function",
    {
        "name": Key(
            Text("a name of letters, digits, - and _", STAGE_NAME),
            "What the stage is called, once in a pipeline; not `input`.",
            required=True,
        ),
        "model": Key(PATH, "The file or folder of a trained model, relative to this file."),
        "function": Key(
            Text("FILE.py:NAME, relative to this file", FUNCTION),
            "A plain function or class, FILE.py:NAME. What it takes and gives is what its annotations say.",
        ),
        "after": Key(
            Many(Text("the name of a stage, or input"), or_one=True),
            "Where its rows come from: a stage, several (joined row by row), or `input`, the request. Default: the stage above.",
        ),
        "args": Key(Table(Anything()), "What a class is made with, or a function is given beside its rows."),
        "method": Key(
            Many(Text("the name of a method", r"[A-Za-z_][A-Za-z0-9_]*"), or_one=True),
            "Which of the model's methods answer, such as predict or predict_proba. Default: all at the end of a pipeline; "
            "within it transform, else predict.",
        ),
        "takes": Key(
            Choice((*TAKES, "texts")), "How rows are handed over, where the annotations do not say it."
        ),
        "batch": Key(
            Choice(("rows", "request")),
            "rows: each row's answer is its own. request: it depends on its neighbours, so requests never share a batch. "
            "Default: found out with the sample.",
        ),
        "stateful": Key(Flag(), "Whether what it saw before changes its answers. Default: true for a class."),
        "python": Key(PYTHON, "The Python this stage runs on, where it is not the others'."),
        "requirements": Key(
            REQUIREMENTS,
            "What this stage needs beside the pipeline's requirements: lines, or a file of them.",
        ),
        "code": Key(Many(PATH, or_one=True), "Code files and folders that the model or function refers to."),
        "trust": Key(
            Many(Text("a name, as module.name", r"[\w]+(?:\.\w+)+"), or_one=True),
            "Imports outside the allow-list that this model may make.",
        ),
        "inputs": Key(FIELDS, "The columns it takes, where the model does not say: name: dtype."),
        "outputs": Key(FIELDS, "The columns it gives, where the model does not say: name: dtype."),
    },
    one_of=("model", "function"),
)
PIPELINE = Record(
    "a pipeline: a mapping with a name and stages",
    {
        "name": Key(
            PIPELINE_NAME,
            "What the package is called.",
            required=True,
        ),
        "version": Key(
            PIPELINE_VERSION,
            "Its version; part of the digest.",
        ),
        "stages": Key(Many(STAGE, least=1), "The stages, each a trained model or a function.", required=True),
        "sample": Key(PATH, "Rows to prove the package with: CSV, JSON, JSON lines, Parquet or NumPy."),
        "expect": Key(PATH, "The answers those rows must have."),
        "signature": Key(
            Record(
                "a mapping with inputs and outputs",
                {
                    "inputs": Key(FIELDS, "The columns a request brings: name: dtype."),
                    "outputs": Key(FIELDS, "The columns of the answer: name: dtype."),
                },
            ),
            "What goes in and comes out, where models, annotations and sample do not show it.",
        ),
        "metadata": Key(
            Table(Anything()), "Anything worth keeping with the package: authors, data, a licence."
        ),
        "python": Key(
            PYTHON,
            "The Python it was trained with. Default: what the model files or the training interpreter say.",
        ),
        "requirements": Key(REQUIREMENTS, "Pins of your own: PEP 508 lines, or a requirements file."),
        "code": Key(Many(PATH, or_one=True), "Code files and folders that saved models refer to."),
        "trust": Key(STAGE.keys["trust"].kind, "Imports outside the allow-list that the models may make."),
        "index": Key(
            Text("the address of a package index"), "Where packages are resolved from. Default: uv's."
        ),
        "find_links": Key(Many(Text("a folder or page of wheels"), or_one=True), "More places with wheels."),
    },
)


def schema() -> dict[str, Any]:
    """The descriptor's JSON Schema (draft 2020-12)."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "MLPacker pipeline",
        "description": "pipeline.yaml: what a pipeline is made of. Unknown keys are errors.",
        **PIPELINE.schema(),
    }


def reference() -> str:
    """The page of the reference on the descriptor, as Markdown."""
    return page("pipeline.yaml", REFERENCE, PIPELINE)


REFERENCE = """\
What a pipeline is made of. A file may begin with a comment that names the schema, for completion in an editor:
`# yaml-language-server: $schema=…/pipeline.schema.json`. Paths are relative to the file. Unknown keys are errors."""


# ---- reading


def parse(path: Path) -> Pipeline:
    """The pipeline a descriptor file describes; a folder is read at its `pipeline.yaml`. Raises BadDescription."""
    path = Path(path)
    if path.is_dir():
        path = path / "pipeline.yaml"
    try:
        with path.open("rb") as stream:
            data = stream.read(document.MAX_BYTES + 1)
    except (OSError, ValueError) as cause:
        raise BadDescription(
            f"There is no descriptor {path}.", "Name one with -f, or give the models."
        ) from cause
    return read(data, path)


def read(data: bytes, path: Path) -> Pipeline:
    """The pipeline these bytes describe, as if they stood in a file at `path`. Raises BadDescription."""
    root = document.read(data, path.name)
    given = PIPELINE.read(root)
    if len(given["name"]) > MAX_NAME:
        raise root["name"].wrong(f"at most {MAX_NAME} letters, not {len(given['name'])}.")
    folder = path.parent.absolute()
    shared = _Shared(
        code=tuple(_existing(n, folder) for n in _items(root, "code")),
        trust=given.get("trust", ()),
    )
    names = _names(root["stages"])
    described = [_stage(node, i, names, folder, shared) for i, node in enumerate(_list(root["stages"]))]
    signature = given.get("signature", {})
    return Pipeline(
        name=given["name"],
        stages=_ordered(described, root["stages"]),
        version=given.get("version"),
        sample=_file(root, "sample", folder),
        expect=_file(root, "expect", folder),
        inputs=_fields(root, signature, "signature", "inputs"),
        outputs=_fields(root, signature, "signature", "outputs"),
        metadata=given.get("metadata", {}),
        python=given.get("python"),
        requirements=_requirements(root, folder),
        index=given.get("index"),
        find_links=given.get("find_links", ()),
        file=path.name,
        lines=dict(root.lines()),
    )


@dataclass(frozen=True)
class _Shared:
    """What is said for all stages at once."""

    code: tuple[Path, ...] = ()
    trust: tuple[str, ...] = ()


def _list(node: Node) -> list[Node]:
    assert isinstance(node.value, list)
    return node.value


def _items(node: Node, key: str) -> list[Node]:
    """The nodes of a list, or the lone one in place of it."""
    assert isinstance(node.value, dict)
    child = node.value.get(key)
    if child is None:
        return []
    return child.value if isinstance(child.value, list) else [child]


def _names(stages: Node) -> tuple[str, ...]:
    lines: dict[str, int] = {}
    for stage in _list(stages):
        node = stage["name"]
        name = str(node.value)
        if name == INPUT:
            raise node.wrong(f"{INPUT!r} is the request's own name.", "Call the stage something else.")
        if name in lines:
            raise node.wrong(
                f"there is a stage {name!r} already, on line {lines[name]}.", "Each has a name of its own."
            )
        lines[name] = node.line
    return tuple(lines)


def _stage(node: Node, at: int, names: tuple[str, ...], folder: Path, shared: _Shared) -> StageDescription:
    given = STAGE.read(node)
    return StageDescription(
        name=given["name"],
        model=_model(node["model"], folder) if "model" in given else None,
        function=_function(node["function"], folder) if "function" in given else None,
        after=_after(node, at, names),
        args=given.get("args", {}),
        methods=given.get("method", ()),
        takes=given.get("takes"),
        python=given.get("python"),
        requirements=_requirements(node, folder),
        code=_once((*(_existing(n, folder) for n in _items(node, "code")), *shared.code)),
        trust=_once((*given.get("trust", ()), *shared.trust)),
        stateful=given.get("stateful"),
        batch=given.get("batch"),
        inputs=_fields(node, given, "", "inputs"),
        outputs=_fields(node, given, "", "outputs"),
        at=node.path,
    )


def _once(items: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(items))


def _existing(node: Node, folder: Path) -> Path:
    try:
        place = folder / str(node.value)
        found = place.exists()
    except (OSError, ValueError) as cause:
        raise node.wrong("not a path.") from cause
    if not found:
        raise node.wrong(f"there is no file {node.value!r}.", _similar(place))
    return place


def _similar(place: Path) -> str:
    beside = [p.name for p in place.parent.iterdir()] if place.parent.is_dir() else []
    step = did_you_mean(place.name, beside)
    return step if step.startswith("Did") else ""


def _file(node: Node, key: str, folder: Path) -> Path | None:
    assert isinstance(node.value, dict)
    return _existing(node[key], folder) if key in node.value else None


def _model(node: Node, folder: Path) -> Path:
    if re.fullmatch(FUNCTION, str(node.value)):
        raise node.wrong(f"{node.value} is a function.", f"Write function: {node.value}")
    return _existing(node, folder)


def _function(node: Node, folder: Path) -> tuple[Path, str]:
    name, entry = _split(str(node.value))
    place = _existing(dataclasses.replace(node, value=name), folder)
    try:
        check_function(place, entry)
    except MlpackerError as cause:
        raise node.wrong(cause.sentence, cause.next_step) from cause
    return place, entry


def _split(text: str) -> tuple[str, str]:
    name, _, entry = text.rpartition(":")
    return name, entry


def check_function(place: Path, entry: str) -> None:
    """Whether the code file has that name, without running it. Raises BadInput, with the name that was probably meant."""
    if not place.is_file():
        raise BadDescription(f"{place.name} is not a file.")
    functions.check_entry(functions.read(place.read_bytes(), place.name), place.name, entry)


def _after(node: Node, at: int, names: tuple[str, ...]) -> tuple[str, ...]:
    assert isinstance(node.value, dict)
    if "after" not in node.value:
        return (names[at - 1],) if at else (INPUT,)
    items = _items(node, "after")
    for item in items:
        if item.value != INPUT and item.value not in names:
            raise item.wrong(
                f"there is no stage {item.value!r}.", did_you_mean(str(item.value), (*names, INPUT))
            )
    after = tuple(str(i.value) for i in items)
    if len(set(after)) < len(after):
        raise node["after"].wrong("names a stage twice.")
    return after or (INPUT,)


def _ordered(stages: list[StageDescription], node: Node) -> tuple[StageDescription, ...]:
    """Topological order, each stage as early as it was written. Raises BadDescription, showing the circle."""
    done: dict[str, StageDescription] = {}
    waiting = list(stages)
    while waiting:
        ready = next((s for s in waiting if all(a == INPUT or a in done for a in s.after)), None)
        if ready is None:
            circle = _circle(waiting)
            at = next(i for i, s in enumerate(stages) if s.name == circle[0])
            raise node[at].wrong_key(
                "after", f"the stages go in a circle: {' → '.join([*circle, circle[0]])}."
            )
        waiting.remove(ready)
        done[ready.name] = ready
    return tuple(done.values())


def _circle(waiting: list[StageDescription]) -> list[str]:
    """Stages that each wait for the next, in the direction the rows would go."""
    after = {s.name: next(a for a in s.after if a in {w.name for w in waiting}) for s in waiting}
    seen = [waiting[0].name]
    while after[seen[-1]] not in seen:
        seen.append(after[seen[-1]])
    return list(reversed(seen[seen.index(after[seen[-1]]) :]))


def _fields(node: Node, given: Mapping[str, Any], within: str, key: str) -> tuple[Field, ...]:
    """Columns as they are written: `name: dtype`, or `name: {dtype: …}`."""
    if key not in given:
        return ()
    place = (node[within] if within else node)[key]
    return tuple(_field(name, value, place[name]) for name, value in given[key].items())


def _field(name: str, given: str | Mapping[str, Any], node: Node) -> Field:
    told: dict[str, Any] = {"dtype": given} if isinstance(given, str) else dict(given)
    dtype, _, null = told["dtype"].partition(OR_NULL[:-4])
    shape = told.get("shape", (-1,))
    if shape[:1] != (-1,) or 0 in shape:
        raise node.wrong_key("shape", "the first axis is rows and -1, the others are -1 or from 1.")
    categories = told.get("categories")
    if categories is not None and dtype != "category":
        raise node.wrong_key("categories", f"a {dtype} has no categories.", "Make its dtype category.")
    return Field(name, dtype, shape, bool(null), told.get("required", True), categories)


def _requirements(node: Node, folder: Path) -> tuple[str, ...]:
    return _once(line for item in _items(node, "requirements") for line in _lines_of(item, folder))


def _lines_of(node: Node, folder: Path) -> list[str]:
    """A requirement as it stands, or those of a requirements file."""
    text = str(node.value)
    try:
        return requirement_lines(text, folder)
    except BadDescription as cause:
        raise node.wrong(cause.sentence, cause.next_step) from cause


def requirement_lines(text: str, folder: Path) -> list[str]:
    """One PEP 508 line, or the lines of a requirements file (comments and hashes left out). Raises BadDescription."""
    return _lines_of_file(folder / text) if text.endswith(".txt") else [_requirement(text)]


def _requirement(text: str) -> str:
    try:
        told = Requirement(text)
    except InvalidRequirement as cause:
        first = (str(cause).splitlines() or [""])[0].rstrip(".")
        raise BadDescription(
            f"{text!r} is not a requirement: {first}.", 'Write it as "pandas==2.2.3".'
        ) from cause
    if told.url and ":" in told.url.split("://")[-1].split("/")[0].rpartition("@")[0]:
        raise BadDescription(
            f"The address of {told.name!r} holds a password.", "A package keeps none; leave it to uv."
        )
    return str(told)


def _lines_of_file(place: Path) -> list[str]:
    try:
        text = place.read_text(encoding="utf-8")
    except (OSError, ValueError) as cause:
        raise BadDescription(f"There is no requirements file {place.name}.") from cause
    found = []
    for number, line in enumerate(text.replace("\\\n", " ").splitlines(), 1):
        bare = re.sub(r"(^|\s)#.*$|\s--hash=\S+", "", line).strip()
        if bare.startswith("-"):
            raise BadDescription(
                f"{place.name}:{number}: the option {bare.split()[0]} is not taken here.",
                "Leave it out; say index or find_links.",
            )
        if bare:
            try:
                found.append(_requirement(bare))
            except BadDescription as cause:
                raise BadDescription(f"{place.name}:{number}: {cause.sentence}", cause.next_step) from cause
    return found


# ---- from arguments


def from_arguments(
    models: Sequence[str | Path],
    *,
    name: str | None = None,
    version: str | None = None,
    sample: str | Path | None = None,
    expect: str | Path | None = None,
    code: Sequence[str | Path] = (),
    requirements: Sequence[str] = (),
    trust: Sequence[str] = (),
    python: str | None = None,
    index: str | None = None,
    find_links: Sequence[str] = (),
    metadata: Mapping[str, Any] | None = None,
    folder: Path | None = None,
) -> Pipeline:
    """The chain `MODEL|FILE.py:FUNCTION …`, each stage after the one before. Raises BadDescription.

    folder: what relative paths start from (default: the current one). The pipeline is called after its first model.
    """
    folder = Path.cwd() if folder is None else Path(folder).absolute()
    if not models:
        raise BadDescription("There is nothing to pack.", "Give a model file, or FILE.py:FUNCTION.")
    places = tuple(_argument(c, folder, "code") for c in code)
    stages: list[StageDescription] = []
    for model in models:
        made = _stage_of(str(model), folder, [s.name for s in stages])
        after = (stages[-1].name,) if stages else (INPUT,)
        stages.append(dataclasses.replace(made, after=after, code=places, trust=tuple(trust)))
    called = name if name is not None else _called(stages)
    return Pipeline(
        name=called,
        stages=tuple(stages),
        version=version,
        sample=None if sample is None else _argument(sample, folder, "sample"),
        expect=None if expect is None else _argument(expect, folder, "expect"),
        metadata=dict(metadata or {}),
        python=None if python is None else _checked("python", python, PYTHON),
        requirements=_once(line for r in requirements for line in requirement_lines(r, folder)),
        index=index,
        find_links=tuple(find_links),
    )


def _checked(what: str, text: str, kind: Text) -> str:
    if re.fullmatch(kind.pattern or ".*", text) and (what != "name" or len(text) <= MAX_NAME):
        return text
    close = _slug(text, lower=True)
    raise BadDescription(
        f"{what}: {kind.says}, not {text!r}.", f"Take {close!r}?" if what == "name" and close else ""
    )


def _argument(given: str | Path, folder: Path, what: str) -> Path:
    place = folder / given
    try:
        found = place.exists()
    except (OSError, ValueError) as cause:
        raise BadDescription(f"{what}: {str(given)!r} is not a path.") from cause
    if not found:
        raise BadDescription(f"{what}: there is no file {str(given)!r}.", _similar(place))
    return place


def _stage_of(text: str, folder: Path, taken: Sequence[str]) -> StageDescription:
    if re.fullmatch(FUNCTION, text):
        name, entry = _split(text)
        place = _argument(name, folder, text)
        try:
            check_function(place, entry)
        except MlpackerError as cause:
            raise BadDescription(cause.sentence, cause.next_step) from cause
        return StageDescription(_unique(_slug(entry), taken), function=(place, entry))
    place = _argument(text, folder, "model")
    if place.suffix == ".py":
        names = ", ".join(_functions_in(place)) or "no function"
        raise BadDescription(f"{text} is code: which of its functions?", f"Say {text}:NAME; it has {names}.")
    stem = place.resolve().name if place.is_dir() else place.name.split(".")[0] or place.name
    return StageDescription(_unique(_slug(stem), taken), model=place)


def _functions_in(place: Path) -> list[str]:
    try:
        return list(functions.read(place.read_bytes(), place.name).defined)[:12]
    except MlpackerError:
        return []


def _slug(text: str, lower: bool = False) -> str:
    """Letters, digits, - and _ of a text; lower: as a pipeline's name has them."""
    words = re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-")[:60]
    return re.sub(r"[_.-]+", "-", words).strip("-").lower() if lower else words


def _unique(name: str, taken: Sequence[str]) -> str:
    name = name or "stage"
    for candidate in (name, *(f"{name}-{n}" for n in range(2, len(taken) + 3))):
        if candidate not in taken and candidate != INPUT:
            return candidate
    raise AssertionError("there is always one more number")


def _called(stages: Sequence[StageDescription]) -> str:
    """The first model's name, else the first function's."""
    first = next((s for s in stages if s.model is not None), stages[0])
    return _slug(first.name, lower=True) or "pipeline"


# ---- writing


def normalised(pipeline: Pipeline) -> dict[str, Any]:
    """The descriptor's content as the package keeps it: no path of this machine, nothing left to a default.

    The same pipeline in another folder gives the same value; and it reads back as the same pipeline, beside the files.
    Where packages are fetched from is no part of it.
    """
    signature = {"inputs": _written(pipeline.inputs), "outputs": _written(pipeline.outputs)}
    return _without_nothing(
        {
            "name": pipeline.name,
            "version": pipeline.version,
            "stages": [_normalised_stage(s) for s in pipeline.stages],
            "sample": pipeline.sample.name if pipeline.sample else None,
            "expect": pipeline.expect.name if pipeline.expect else None,
            "signature": _without_nothing(signature),
            "metadata": dict(pipeline.metadata),
            "python": pipeline.python,
            "requirements": list(pipeline.requirements),
        }
    )


def _normalised_stage(stage: StageDescription) -> dict[str, Any]:
    function = f"{stage.function[0].name}:{stage.function[1]}" if stage.function else None
    return _without_nothing(
        {
            "name": stage.name,
            "model": stage.model.name if stage.model else None,
            "function": function,
            "after": list(stage.after),
            "args": dict(stage.args),
            "method": list(stage.methods),
            "takes": stage.takes,
            "batch": stage.batch,
            "stateful": stage.stateful,
            "python": stage.python,
            "requirements": list(stage.requirements),
            "code": [c.name for c in stage.code],
            "trust": list(stage.trust),
            "inputs": _written(stage.inputs),
            "outputs": _written(stage.outputs),
        }
    )


def _without_nothing(value: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in value.items() if v is not None and v not in ({}, [])}


def _written(fields: tuple[Field, ...]) -> dict[str, Any]:
    return {f.name: _written_field(f) for f in fields}


def _written_field(f: Field) -> str | dict[str, Any]:
    dtype = f.dtype + (OR_NULL if f.nullable else "")
    more: dict[str, Any] = {"shape": list(f.shape)} if f.shape != (-1,) else {}
    more |= {} if f.required else {"required": False}
    more |= {} if f.categories is None else {"categories": list(f.categories)}
    return {"dtype": dtype, **more} if more else dtype


# ---- between stages


def check_between(stages: Sequence[manifest.Stage], pipeline: Pipeline | None = None) -> None:
    """Whether each stage is given what it takes, as far as both sides say so: names, dtypes and shapes.

    Raises BadDescription naming both stages, and file and line where the pipeline was written down.
    """
    known = {s.name: s for s in stages}
    for stage in stages:
        sources = [known[a] for a in stage.after if a != INPUT]
        if len(sources) < len(stage.after) or not stage.inputs or not all(s.outputs for s in sources):
            continue
        found = _mismatch(stage, sources)
        if found:
            between = " and ".join(repr(s.name) for s in sources)
            sentence = f"stage {stage.name!r} does not fit after {between}: {found}"
            if pipeline is None:
                raise BadDescription(sentence)
            raise pipeline.wrong(pipeline.stage(stage.name).at, sentence)


def _mismatch(stage: manifest.Stage, sources: Sequence[manifest.Stage]) -> str | None:
    offered = _joined(sources)
    if _by_place(stage):
        return _width_mismatch(stage, offered)
    for wanted in stage.inputs:
        given = offered.get(wanted.name)
        if given is None:
            if wanted.required:
                return f"it takes {wanted.name!r}, and is given {', '.join(map(repr, list(offered)[:12]))}."
            continue
        if not _casts(given.dtype, wanted.dtype):
            return f"it takes {wanted.name!r} as {wanted.dtype}, and is given {given.dtype}."
        if not _shapes_fit(given.shape, wanted.shape):
            return (
                f"it takes {wanted.name!r} of shape {list(wanted.shape)}, and is given {list(given.shape)}."
            )
    return None


def _joined(sources: Sequence[manifest.Stage]) -> dict[str, Field]:
    """The columns a stage is given; a name that two branches share becomes `branch.column`, as `batch.join` has it."""
    names = [f.name for s in sources for f in s.outputs]
    return {
        f"{s.name}.{f.name}" if names.count(f.name) > 1 else f.name: f for s in sources for f in s.outputs
    }


def _by_place(stage: manifest.Stage) -> bool:
    """One array or one plain value takes what is there, whatever it is called."""
    if len(stage.inputs) > 1:
        return False
    return len(stage.inputs[0].shape) > 1 or stage.takes in ("values", "texts", "list", "series")


def _width_mismatch(stage: manifest.Stage, offered: Mapping[str, Field]) -> str | None:
    wanted = stage.inputs[0]
    foreign = next((f for f in offered.values() if not _casts(f.dtype, wanted.dtype)), None)
    if foreign is not None:
        return f"it takes {wanted.dtype}, and is given {foreign.name!r}, which is {foreign.dtype}."
    if len(wanted.shape) > 2 and len(offered) == 1:
        only = next(iter(offered.values()))
        return (
            None
            if _shapes_fit(only.shape, wanted.shape)
            else f"it takes the shape {list(wanted.shape)}, and is given {list(only.shape)}."
        )
    needed = 1 if len(wanted.shape) == 1 else wanted.shape[1]
    widths = [1 if len(f.shape) == 1 else f.shape[1] for f in offered.values()]
    if len(wanted.shape) > 2 or needed < 0 or any(w < 0 for w in widths) or sum(widths) == needed:
        return None
    return f"it takes {needed} column{'s' if needed != 1 else ''}, and is given {sum(widths)}."


def _shapes_fit(given: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(given) == len(wanted) and all(
        -1 in (g, w) or g == w for g, w in zip(given, wanted, strict=True)
    )


def _casts(given: str, wanted: str) -> bool:
    """Whether a column of one type serves where another is taken: numbers widen, labels are text, objects are anything."""
    if given == wanted or "object" in (given, wanted):
        return True
    if {given, wanted} <= {"string", "category"}:
        return True
    if given in NUMERIC and wanted in NUMERIC:
        return _rank(given) <= _rank(wanted)
    return "category" in (given, wanted) and (given in NUMERIC or wanted in NUMERIC)


def _rank(dtype: str) -> int:
    """bool, then whole numbers, then floats: widths are the model's own affair."""
    return 0 if dtype == "bool" else 2 if dtype.startswith("float") else 1
