"""Scoring a file: every row ends in exactly one place, whatever happens on the way."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from mlpacker.errors import BadDescription, BadInput
from mlpacker.events import Silent
from mlpacker.score import Counts, Job, score
from mlpacker_runtime.batch import Batch, Outcome
from mlpacker_runtime.signature import Field

INPUTS = (Field("a", "float64"), Field("b", "int64"))
CHUNK = 50
ROWS = 3 * CHUNK + 17


class Toy:
    """Answers a+b; drops rows with b == 5, fails those with b == 7, answers b == 9 twice. Can die after some batches."""

    def __init__(self, dies_after: int | None = None) -> None:
        self.left = dies_after

    def run(self, batch: Batch, want: frozenset[str] | None = None) -> Outcome:
        if self.left is not None:
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
        b = np.asarray(batch.columns["b"])
        kept = (b != 5) & (b != 7)
        at = np.repeat(np.flatnonzero(kept), np.where(b[kept] == 9, 2, 1))
        total = np.asarray(batch.columns["a"])[at] + b[at]
        answer = Batch({"sum": total, "wide": np.column_stack([total, -total])}, batch.rows[at])
        return Outcome(answer, {int(r): "b is 7" for r in batch.rows[b == 7]})


def rows(count: int = ROWS) -> list[tuple[float, int]]:
    return [(i / 2, i % 11) for i in range(count)]


def write_csv(path: Path, count: int = ROWS) -> Path:
    lines = ["b,extra,a", *(f'{b},"x, y",{a}' for a, b in rows(count))]
    path.write_text("\n".join(lines) + "\n")
    return path


def job(source: Path, output: Path) -> Job:
    return Job("sha256:1", INPUTS, source, output, chunk_rows=CHUNK)


def expected(count: int = ROWS) -> list[tuple[int, float]]:
    return [
        (i, a + b)
        for i, (a, b) in enumerate(rows(count))
        if b not in (5, 7)
        for _ in range(2 if b == 9 else 1)
    ]


def read_csv(path: Path) -> list[tuple[int, float]]:
    with path.open(newline="") as file:
        return [(int(r["row"]), float(r["sum"])) for r in csv.DictReader(file)]


def test_every_row_is_answered_dropped_or_rejected(tmp_path: Path) -> None:
    counts = score(job(write_csv(tmp_path / "in.csv"), tmp_path / "out.csv"), Toy(), Silent())
    assert read_csv(tmp_path / "out.csv") == expected()
    assert counts.rows == ROWS
    assert counts.lines == len(expected())
    rejected = [json.loads(line) for line in (tmp_path / "out.csv.rejected.jsonl").read_text().splitlines()]
    assert [r["row"] for r in rejected] == [i for i, (_, b) in enumerate(rows()) if b == 7]
    assert rejected[0]["reason"] == "b is 7"
    assert rejected[0]["data"]["extra"] == "x, y"
    assert counts.dropped + counts.rejected + len({row for row, _ in expected()}) == ROWS


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet", ".npz"])
@pytest.mark.parametrize("dies_after", [0, 1, 3])
def test_a_killed_run_goes_on_without_repeating_or_losing_a_row(
    tmp_path: Path, ending: str, dies_after: int
) -> None:
    source = write_csv(tmp_path / "in.csv")
    whole, cut = tmp_path / f"whole{ending}", tmp_path / f"cut{ending}"
    reference = score(job(source, whole), Toy(), Silent())
    with pytest.raises(KeyboardInterrupt):
        score(job(source, cut), Toy(dies_after), Silent())
    assert not cut.exists()
    assert score(job(source, cut), Toy(), Silent()) == reference
    if ending in (".csv", ".jsonl"):
        assert cut.read_bytes() == whole.read_bytes()
    elif ending == ".parquet":
        assert pyarrow.parquet.read_table(cut) == pyarrow.parquet.read_table(whole)
    else:
        np.testing.assert_array_equal(np.load(cut)["wide"], np.load(whole)["wide"])
    rejected = [p.with_name(p.name + ".rejected.jsonl").read_bytes() for p in (cut, whole)]
    assert rejected[0] == rejected[1]
    assert (
        sorted(p.name for p in tmp_path.iterdir() if "checkpoint" in p.name or "part" in p.name.split("."))
        == []
    )


def numbers(output: Path) -> list[int]:
    """Which rows a file answers, whatever its kind."""
    if output.suffix == ".csv":
        return [row for row, _ in read_csv(output)]
    if output.suffix == ".jsonl":
        return [json.loads(line)["row"] for line in output.read_text().splitlines()]
    if output.suffix == ".parquet":
        return pyarrow.parquet.read_table(output)["row"].to_pylist()  # type: ignore[no-any-return]
    return np.load(output)["row"].tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet", ".npz"])
@pytest.mark.parametrize("answered", [0, 3])
def test_chunks_without_a_single_answer_are_as_good_as_any(
    tmp_path: Path, ending: str, answered: int
) -> None:
    bad = "\n".join(["5,1"] * CHUNK + ["7,1"] * CHUNK + ["1,1"] * answered)
    (tmp_path / "in.csv").write_text(f"b,a\n{bad}\n")
    output = tmp_path / f"out{ending}"
    counts = score(job(tmp_path / "in.csv", output), Toy(), Silent())
    assert counts == Counts(rows=2 * CHUNK + answered, lines=answered, dropped=CHUNK, rejected=CHUNK)
    assert numbers(output) == [2 * CHUNK + i for i in range(answered)]
    if ending == ".npz":
        assert np.load(output)["wide"].shape == (answered, 2)


def test_what_was_written_after_the_checkpoint_is_cut_away(tmp_path: Path) -> None:
    source = write_csv(tmp_path / "in.csv")
    with pytest.raises(KeyboardInterrupt):
        score(job(source, tmp_path / "out.csv"), Toy(1), Silent())
    with (tmp_path / "out.csv.part").open("ab") as file:
        file.write(b"half a li")
    score(job(source, tmp_path / "out.csv"), Toy(), Silent())
    assert read_csv(tmp_path / "out.csv") == expected()


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet", ".npz"])
def test_a_run_killed_just_after_the_file_has_its_name_ends_as_if_it_was_not(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = write_csv(tmp_path / "in.csv"), tmp_path / f"out{ending}"
    replaced = Path.replace

    def replace_and_die(self: Path, target: Path) -> Path:
        done = replaced(self, target)
        if target == output:
            raise KeyboardInterrupt
        return done

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", replace_and_die)
        with pytest.raises(KeyboardInterrupt):
            score(job(source, output), Toy(), Silent())
    before = output.read_bytes()
    counts = score(job(source, output), Toy(), Silent())
    assert counts.rows == ROWS
    if ending == ".npz":
        np.testing.assert_array_equal(np.load(output)["row"], [row for row, _ in expected()])
    else:
        assert output.read_bytes() == before
    left = {"in.csv", output.name, f"{output.name}.rejected.jsonl"}
    assert {p.name for p in tmp_path.iterdir()} == left


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_a_run_whose_written_part_is_gone_is_refused_and_not_filled_up(tmp_path: Path, ending: str) -> None:
    source, output = write_csv(tmp_path / "in.csv"), tmp_path / f"out{ending}"
    with pytest.raises(KeyboardInterrupt):
        score(job(source, output), Toy(2), Silent())
    for part in [*tmp_path.glob("*.part"), *tmp_path.glob("*.parts/*")]:
        part.unlink()
    with pytest.raises(BadDescription, match="not what the killed run left"):
        score(job(source, output), Toy(), Silent())
    assert score(replace(job(source, output), restart=True), Toy(), Silent()).rows == ROWS


def test_other_outputs_do_not_go_on_with_a_begun_run(tmp_path: Path) -> None:
    begun = job(write_csv(tmp_path / "in.csv"), tmp_path / "out.csv")
    with pytest.raises(KeyboardInterrupt):
        score(replace(begun, want=frozenset({"sum"})), Toy(1), Silent())
    with pytest.raises(BadDescription, match="begun with sum"):
        score(begun, Toy(), Silent())
    assert score(replace(begun, want=frozenset({"sum"})), Toy(), Silent()).rows == ROWS


def test_another_input_does_not_go_on_with_a_begun_run(tmp_path: Path) -> None:
    source = write_csv(tmp_path / "in.csv")
    with pytest.raises(KeyboardInterrupt):
        score(job(source, tmp_path / "out.csv"), Toy(1), Silent())
    write_csv(source, ROWS - 1)
    with pytest.raises(BadDescription, match="another input"):
        score(job(source, tmp_path / "out.csv"), Toy(), Silent())
    counts = score(replace(job(source, tmp_path / "out.csv"), restart=True), Toy(), Silent())
    assert counts.rows == ROWS - 1


def test_an_output_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    source = write_csv(tmp_path / "in.csv", 3)
    (tmp_path / "out.csv").write_text("mine")
    with pytest.raises(BadDescription, match="there already"):
        score(job(source, tmp_path / "out.csv"), Toy(), Silent())
    assert (tmp_path / "out.csv").read_text() == "mine"


def test_bad_lines_of_a_csv_are_rejected_with_their_reasons(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text('a,b\n1,1\n2\nx,3\n4,4.5\n"5\n",1\n6,,7\n,2\n')
    counts = score(job(tmp_path / "in.csv", tmp_path / "out.csv"), Toy(), Silent())
    rejected = [json.loads(line) for line in (tmp_path / "out.csv.rejected.jsonl").read_text().splitlines()]
    reasons = {r["row"]: r["reason"] for r in rejected}
    assert "1 values" in reasons[1]
    assert "'a'" in reasons[2]
    assert "'x'" in reasons[2]
    assert "'b'" in reasons[3]
    assert "3 values" in reasons[5]
    assert sorted(reasons) == [1, 2, 3, 5]
    assert counts == Counts(rows=7, lines=3, dropped=0, rejected=4)


def test_bad_json_lines_are_rejected_with_their_reasons(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"a": 1, "b": 1}\n{"a": \n{"a": 2}\n{"a": null, "b": 2}\n[1, 2]\n\n')
    counts = score(job(tmp_path / "in.jsonl", tmp_path / "out.jsonl"), Toy(), Silent())
    rejected = [json.loads(line) for line in (tmp_path / "out.jsonl.rejected.jsonl").read_text().splitlines()]
    assert [r["row"] for r in rejected] == [1, 2, 4]
    assert (counts.rows, counts.lines) == (5, 2)


def test_parquet_and_numpy_give_the_same_answers_as_csv(tmp_path: Path) -> None:
    score(job(write_csv(tmp_path / "in.csv"), tmp_path / "csv.csv"), Toy(), Silent())
    a, b = (np.array(c) for c in zip(*rows(), strict=True))
    pyarrow.parquet.write_table(pyarrow.table({"b": b, "a": a}), tmp_path / "in.parquet")
    np.save(tmp_path / "in.npy", np.column_stack([a, b]))
    for name in ("in.parquet", "in.npy"):
        score(job(tmp_path / name, tmp_path / f"{name}.csv"), Toy(), Silent())
        assert (tmp_path / f"{name}.csv").read_bytes() == (tmp_path / "csv.csv").read_bytes()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.csv", b""),
        ("a.parquet", b"PAR1 no"),
        ("a.npy", b"\x93NUMPY no"),
        ("a.xlsx", b"PK"),
        ("a.csv", b"a,a\n1,2\n"),
    ],
)
def test_a_file_that_is_not_what_it_says_is_an_error(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(BadInput):
        score(job(tmp_path / name, tmp_path / "out.csv"), Toy(), Silent())


def test_a_pickled_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(BadInput, match="NumPy"):
        score(job(tmp_path / "in.npy", tmp_path / "out.csv"), Toy(), Silent())


def test_a_missing_column_is_an_error_and_not_a_rejected_file(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("a,c\n1,2\n")
    with pytest.raises(BadInput, match="'b'"):
        score(job(tmp_path / "in.csv", tmp_path / "out.csv"), Toy(), Silent())
