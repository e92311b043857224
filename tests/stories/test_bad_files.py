"""What can be wrong with the files that packing is given: each is refused in a sentence that says what to do."""

from __future__ import annotations

import json
from typing import Any

import pytest

from storytelling import TRAIN, TRAINED_WITH, Person


@pytest.fixture(scope="module")
def trained(interpreter: Any, environments: Any, tmp_path_factory: pytest.TempPathFactory) -> Person:
    """Somebody with a trained model, in one folder for all tests."""
    root = tmp_path_factory.mktemp("bad")
    (root / "home").mkdir(mode=0o700)
    (root / "work").mkdir()
    (root / "home" / "envs").symlink_to(environments)
    person = Person(root / "home", root / "work", interpreter("3.11", *TRAINED_WITH))
    person.trains(TRAIN)
    return person


def refused(person: Person, *words: str, code: int = 1) -> str:
    said = person.says("pack", *words, "--name", "bad", "--python", person.python, code=code).stderr
    assert "Traceback" not in said
    assert "error: " in said
    return said.partition("error: ")[2]


def test_a_pickle_protocol_of_the_future_is_named(trained: Person) -> None:
    data = bytearray((trained.folder / "model.joblib").read_bytes())
    assert data[:1] == b"\x80"
    data[1] = 9
    (trained.folder / "future.pkl").write_bytes(data)
    said = refused(trained, "future.pkl", "--sample", "rows.csv")
    assert "protocol 9" in said


@pytest.mark.parametrize("protocol", [0, 2])
def test_the_old_pickle_protocols_pack_too(trained: Person, protocol: int) -> None:
    trained.trains(
        TRAIN + f"\nimport pickle\npickle.dump(model, open('p{protocol}.pkl', 'wb'), {protocol})\n"
    )
    words = ("pack", f"p{protocol}.pkl", "--sample", "rows.csv", "--python", trained.python)
    assert trained.told(*words)["proof"]["verdict"] == "proven"


def test_a_model_of_a_module_that_is_not_there_names_file_and_class(trained: Person) -> None:
    (trained.folder / "shop.py").write_text(
        "from sklearn.linear_model import LogisticRegression\nclass Ours(LogisticRegression): pass\n"
    )
    trained.trains(
        "import joblib, shop\njoblib.dump(shop.Ours().fit([[1.0], [2.0]], [0, 1]), 'ours.joblib')\n"
    )
    (trained.folder / "shop.py").rename(trained.folder / "shop.txt")
    said = refused(trained, "ours.joblib", code=4)
    assert "ours.joblib" in said
    assert "shop.Ours" in said


def test_a_function_whose_module_is_nowhere_names_it(trained: Person) -> None:
    (trained.folder / "lost.py").write_text(
        "import no_such_module_anywhere\ndef f(row: dict) -> dict:\n    return row\n"
    )
    said = refused(trained, "lost.py:f", "--sample", "rows.csv")
    assert "No module named 'no_such_module_anywhere'" in said


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("nothing.csv", b"", "Empty"),
        ("header.csv", b"sepal length (cm),sepal width (cm),petal length (cm),petal width (cm)\n", "no rows"),
        (
            "words.csv",
            b"sepal length (cm),sepal width (cm),petal length (cm),petal width (cm)\n1,2,x,3\n",
            "petal length",
        ),
        (
            "ragged.csv",
            b"sepal length (cm),sepal width (cm),petal length (cm),petal width (cm)\n1,2,3,4\n1,2\n",
            "Expected 4 columns, got 2",
        ),
        ("narrow.json", b"[[1, 2, 3]]", "3"),
        ("broken.json", b'[{"a": 1}', "line 1"),
        ("rows.xlsx", b"PK\x03\x04", "xlsx"),
        ("bytes.csv", b"\xff\xfe\x00\x00", ""),
    ],
)
def test_a_sample_that_can_not_be_used_is_named_with_the_reason(
    trained: Person, name: str, data: bytes, why: str
) -> None:
    (trained.folder / name).write_bytes(data)
    said = refused(trained, "model.joblib", "--sample", name)
    assert why in said


def test_expected_answers_that_do_not_fit_are_refused(trained: Person) -> None:
    (trained.folder / "few.csv").write_text("predict\n0\n")
    said = refused(trained, "model.joblib", "--sample", "rows.csv", "--expect", "few.csv", code=2)
    assert "few.csv" in said


def test_what_is_refused_leaves_nothing_behind(trained: Person) -> None:
    refused(trained, "train.py:nothing", code=2)
    assert "bad" not in json.dumps(trained.told("ls"))
