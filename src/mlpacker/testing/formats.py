"""The contract of a format adapter, as a suite to subclass.

from mlpacker.testing.formats import Case, FormatContract

class TestMyFormat(FormatContract):
    @pytest.fixture
    def case(self, tmp_path): ...   # -> Case: a model as its library saved it, and what the library answers
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlpacker_runtime import formats
from mlpacker_runtime.batch import Batch, concat, is_sparse
from mlpacker_runtime.engine import run_stage
from mlpacker_runtime.errors import MlpackerError
from mlpacker_runtime.formats import Description, FolderFiles, Predictor, Trust
from mlpacker_runtime.hop.client import StageWorker
from mlpacker_runtime.manifest import Stage, from_plain, to_plain
from mlpacker_runtime.signature import Field, field_of

FOREIGN: Mapping[str, bytes] = {
    "nothing": b"",
    "one byte": b"\x80",
    "text": b"tree\nof life, version=none\n",
    "zeros": bytes(4096),
    "noise": np.random.default_rng(7).bytes(8192),
    "JSON": b'{"learner": {}, "version": "none"}',
    "a list": b"[1, 2, 3]",
    "YAML": b"flavours:\n  vanilla: {}\n",
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(64),
    "an archive": b"PK\x03\x04" + bytes(26) + b"name",
    "CSV": b"a,b,c\n1,2,3\n",
    "a lying length": b"CBM1\xff\xff\xff\x7f" + bytes(64),
    "a message of another kind": b"\x0a\x03abc\x12\x04abcd",
    "Python": b"def predict(row):\n    return row\n",
}
"""Bytes of no model."""


@dataclass(frozen=True)
class Case:
    """One model as its library saved it, and what the library answers.

    folder, path: where it lies, and the model's path in there. inputs: what `describe` is to say. batch: some rows, at
    least three, under the names of the inputs. answers: by output, what the library itself answers to them; the first is
    the plain answer. tolerance: of floats, where rows go through in other numbers or from other memory. trust, stage: what loading it needs.
    """

    format: str
    folder: Path
    path: str
    inputs: tuple[Field, ...] | None
    batch: Batch
    answers: Mapping[str, np.ndarray]
    tolerance: float = 0.0
    trust: Trust = field(default_factory=Trust)
    stage: Mapping[str, Any] = field(default_factory=dict)

    @property
    def files(self) -> FolderFiles:
        return FolderFiles(self.folder)

    @property
    def adapter(self) -> Any:
        return formats.get(self.format)

    @property
    def undescribed(self) -> dict[str, Any]:
        """What is known of the stage before its model is loaded: what was trusted, and what the file says to `load`."""
        options = self.adapter.inspect(self.files, self.path, self.trust).options
        return {"trusted": tuple(sorted(self.trust.names)), "options": options, **self.stage}

    def described(self, **changes: Any) -> Stage:
        """The stage a package would hold: its signature is known."""
        inputs = (
            self.inputs
            if self.inputs is not None
            else tuple(field_of(n, c) for n, c in self.batch.columns.items())
        )
        outputs = tuple(field_of(n, a) for n, a in self.answers.items())
        given = {"inputs": inputs, "outputs": outputs, **self.undescribed, **changes}
        return Stage(self.format, self.format, self.path, **given)

    def load(self, **changes: Any) -> Predictor:
        predictor: Predictor = self.adapter.load(self.files, self.described(**changes), self.trust)
        return predictor


def check_equal(given: Mapping[str, Any], wanted: Mapping[str, Any], tolerance: float = 0.0) -> None:
    """Labels and integers exactly, floats within the tolerance, and the same names in the same order."""
    assert list(given) == list(wanted)
    for name, column in wanted.items():
        ours, theirs = _dense(given[name]), _dense(column)
        assert ours.shape == theirs.shape, name
        assert ours.dtype.kind == theirs.dtype.kind, name
        if ours.dtype.kind == "f":
            np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance, err_msg=name)
        else:
            np.testing.assert_array_equal(ours, theirs, err_msg=name)


def _dense(column: Any) -> np.ndarray:
    column = column.toarray() if is_sparse(column) else np.asarray(column)
    return column.astype(object) if column.dtype.kind == "U" else column


def _pieces(case: Case, folder: Path) -> Iterator[Path]:
    """The model copied to `folder`, one file of it cut short at a time."""
    source = case.folder / case.path
    for part in (p for p in ([source] if source.is_file() else sorted(source.rglob("*"))) if p.is_file()):
        data = part.read_bytes()
        for length in sorted({0, 1, 7, 64, len(data) // 3, len(data) // 2, len(data) - 1}):
            if 0 <= length < len(data):
                target = folder / f"{part.name}-{length}"
                _copy(source, target)
                (target / part.relative_to(source) if source.is_dir() else target).write_bytes(data[:length])
                yield target


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy(source, target)


class FormatContract:
    """What every adapter promises. The fixture `case` is the subclass's to give."""

    @pytest.fixture
    def case(self) -> Case:
        raise NotImplementedError("give the suite a model: a fixture `case`")

    @pytest.fixture
    def foreign(self) -> Mapping[str, bytes]:
        """More bytes that are not of this format: other formats' models, say."""
        return {}

    @pytest.fixture(scope="class")
    @classmethod
    def worker(cls) -> Iterator[Callable[[Path], StageWorker]]:
        """A stage worker over a folder, in this interpreter; one a folder for all tests of a class."""
        open_workers: dict[Path, StageWorker] = {}

        def worker(folder: Path) -> StageWorker:
            if folder not in open_workers:
                open_workers[folder] = StageWorker([sys.executable], folder, accepted=True)
            return open_workers[folder]

        yield worker
        for opened in open_workers.values():
            opened.close()

    def test_a_model_is_found_by_its_content_whatever_its_name(self, case: Case, tmp_path: Path) -> None:
        name = "notes.csv.onnx.json.pkl.txt"
        _copy(case.folder / case.path, tmp_path / name)
        assert formats.find(FolderFiles(tmp_path), name) == case.format

    def test_bytes_of_no_model_do_not_match(
        self, case: Case, foreign: Mapping[str, bytes], tmp_path: Path
    ) -> None:
        for i, (what, data) in enumerate({**FOREIGN, **foreign}.items()):
            (tmp_path / str(i)).write_bytes(data)
            assert case.adapter.matches(FolderFiles(tmp_path), str(i)) is False, what
        (tmp_path / "empty folder").mkdir()
        assert case.adapter.matches(FolderFiles(tmp_path), "empty folder") is False
        assert case.adapter.matches(FolderFiles(tmp_path), "not there") is False

    def test_half_a_model_is_told_apart_or_refused_with_a_reason(self, case: Case, tmp_path: Path) -> None:
        for piece in _pieces(case, tmp_path):
            cut = replace(case, folder=tmp_path, path=piece.name)
            if not case.adapter.matches(cut.files, cut.path):
                continue
            try:
                case.adapter.inspect(cut.files, cut.path, case.trust)
                cut.load()
            except MlpackerError as error:
                assert error.sentence

    def test_looking_at_a_file_imports_nothing_and_builds_nothing(self, case: Case) -> None:
        script = (
            "import sys; from pathlib import Path; from mlpacker_runtime import formats\n"
            "files, path, names = formats.FolderFiles(Path(sys.argv[1])), sys.argv[2], frozenset(sys.argv[4:])\n"
            "before = set(sys.modules)\n"
            "found = formats.find(files, path)\n"
            "adapter = formats.get(found)\n"
            "adapter.inspect(files, path, formats.Trust(names, sys.argv[3] == 'True'))\n"
            "new = {m.partition('.')[0] for m in set(sys.modules) - before if m[0] != '_'}\n"
            "print(found, *sorted(new - sys.stdlib_module_names - {adapter.__name__.partition('.')[0], 'numpy', 'mlpacker_runtime', 'yaml', 'cython_runtime'}))\n"
        )
        argv = [
            sys.executable,
            "-c",
            script,
            str(case.folder),
            case.path,
            str(case.trust.code),
            *case.trust.names,
        ]
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == [case.format]

    def test_a_model_describes_itself(self, case: Case) -> None:
        described = case.adapter.load(
            case.files, Stage("s", case.format, case.path, **case.undescribed), case.trust
        ).describe()
        assert described.inputs == case.inputs
        if not case.described().methods:
            assert described.methods in (tuple(case.answers), ())
        assert from_plain(Description, to_plain(described), "description") == described

    def test_answers_are_the_library_s_own(self, case: Case) -> None:
        outcome = case.load().predict(case.batch, None)
        assert not outcome.errors
        check_equal(outcome.batch.columns, case.answers)

    def test_a_model_answers_before_its_signature_is_written(self, case: Case) -> None:
        predictor = case.adapter.load(
            case.files, Stage("s", case.format, case.path, **case.undescribed), case.trust
        )
        check_equal(predictor.predict(case.batch, None).batch.columns, case.answers)

    def test_rows_keep_their_identity(self, case: Case) -> None:
        rows = np.arange(len(case.batch))[::-1] * 3 + 7
        outcome = case.load().predict(case.batch.with_rows(rows), None)
        np.testing.assert_array_equal(outcome.batch.rows, rows)
        check_equal(outcome.batch.columns, case.answers)

    def test_only_what_is_wanted_is_computed(self, case: Case) -> None:
        predictor = case.load()
        for name in case.answers:
            outcome = predictor.predict(case.batch, frozenset({name}))
            check_equal(outcome.batch.columns, {name: case.answers[name]})
        assert not predictor.predict(case.batch, frozenset()).batch.columns

    def test_the_order_of_columns_does_not_matter(self, case: Case) -> None:
        turned = Batch(dict(reversed(case.batch.columns.items())), case.batch.rows)
        check_equal(case.load().predict(turned, None).batch.columns, case.answers)

    def test_a_column_too_much_does_not_matter(self, case: Case) -> None:
        wider = Batch({"not of the model": np.zeros(len(case.batch)), **case.batch.columns}, case.batch.rows)
        check_equal(case.load().predict(wider, None).batch.columns, case.answers)

    def test_rows_answer_the_same_alone_and_among_many(self, case: Case) -> None:
        predictor = case.load()
        for i in range(min(3, len(case.batch))):
            alone = predictor.predict(case.batch.take(slice(i, i + 1)), None)
            check_equal(
                alone.batch.columns, {n: a[i : i + 1] for n, a in case.answers.items()}, case.tolerance
            )
        many = concat([case.batch] * 50)
        answers = predictor.predict(many.with_rows(np.arange(len(many))), None).batch.columns
        check_equal(
            answers, {n: np.concatenate([_dense(a)] * 50) for n, a in case.answers.items()}, case.tolerance
        )

    def test_no_rows_are_answered_by_no_rows(self, case: Case) -> None:
        outcome = run_stage(case.described(), case.load(), case.batch.take(slice(0, 0)), None)
        assert not outcome.errors
        assert {n: len(c) for n, c in outcome.batch.columns.items()} == dict.fromkeys(case.answers, 0)

    def test_the_same_answers_come_over_a_hop(
        self, case: Case, worker: Callable[[Path], StageWorker]
    ) -> None:
        opened = worker(case.folder)
        stage = replace(case.described(), name=case.path)
        assert opened.load(stage).inputs == case.inputs
        outcome = opened.predict(stage.name, case.batch, None)
        assert not outcome.errors
        check_equal(outcome.batch.columns, case.answers, case.tolerance)
