"""What each route answers, protocol by protocol, with toy pipelines behind it."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlpacker_runtime.batch import Batch, Outcome
from mlpacker_runtime.batching import Batcher, Limits
from mlpacker_runtime.engine import Engine
from mlpacker_runtime.errors import ModelFailed
from mlpacker_runtime.manifest import Manifest, Stage
from mlpacker_runtime.rest import Request, Response, served
from mlpacker_runtime.rest.keys import Keys
from mlpacker_runtime.rest.service import ROUTES, Service
from mlpacker_runtime.signature import Field
from mlpacker_runtime.telemetry.metrics import Metrics

OUTPUTS = (Field("predict", "int64"), Field("predict_proba", "float64", (-1, 2)))
TENSOR = (Field("input", "float64", (-1, 3)),)
MATRIX = (Field("a", "float64"), Field("b", "float64"))
MIXED = (
    Field("age", "int64"),
    Field("city", "category", categories=("Kiel", "Ulm")),
    Field("note", "string", nullable=True),
    Field("at", "datetime", nullable=True),
    Field("score", "float64", required=False),
    Field("blob", "bytes", required=False, nullable=True),
    Field("flag", "bool"),
)


class Classifier:
    """Labels a row by its first number; drops 7, repeats 8, fails 9."""

    def __init__(self) -> None:
        self.wanted: list[frozenset[str] | None] = []
        self.batches: list[Batch] = []

    def predict(self, batch: Batch, want: frozenset[str] | None) -> Outcome:
        self.wanted.append(want)
        self.batches.append(batch)
        first = batch.matrix[:, 0] if batch.matrix is not None else np.asarray(batch.columns[batch.names[0]])
        x = first.reshape(len(batch), -1)[:, 0].astype(float)
        at = [i for i, v in enumerate(x) if v not in (7, 9) for _ in range(2 if v == 8 else 1)]
        label = x[at].astype(np.int64) if len(at) else np.empty(0, np.int64)
        columns = {"predict": label, "predict_proba": np.stack([1 - label / 10, label / 10], axis=1)}
        errors = {int(r): "nine is not allowed" for r, v in zip(batch.rows, x, strict=True) if v == 9}
        return Outcome(
            Batch({n: c for n, c in columns.items() if want is None or n in want}, batch.rows[at]), errors
        )


class Answering:
    """Answers with the same columns whatever it is asked."""

    def __init__(self, **columns: Any) -> None:
        self.given = columns

    def predict(self, batch: Batch, want: frozenset[str] | None) -> Outcome:
        return Outcome(Batch({n: c[: len(batch)] for n, c in self.given.items()}, batch.rows))


class Echo:
    """Answers with what went in."""

    def predict(self, batch: Batch, want: frozenset[str] | None) -> Outcome:
        return Outcome(batch)


class Served:
    """A service without sockets."""

    def __init__(
        self, inputs: tuple[Field, ...] = TENSOR, runner: Any = None, outputs: Any = OUTPUTS, **more: Any
    ) -> None:
        methods = tuple(f.name for f in outputs) if outputs is OUTPUTS else ()
        stage = Stage("toy", "function", "toy.py", methods=methods, inputs=inputs, outputs=outputs)
        self.manifest = Manifest("toy model", (stage,), inputs, outputs, version="3")
        self.runner = runner or Classifier()
        self.sample = more.pop("sample", None)
        self.limits = more.pop("limits", Limits(thread=False))
        self.more = more

    def ask(self, method: str, path: str, body: Any = b"", **headers: str) -> Response:
        return asyncio.run(self._ask(method, path, body, headers))

    async def _ask(self, method: str, path: str, body: Any, headers: dict[str, str]) -> Response:
        engine = Engine(self.manifest.stages, {"toy": self.runner})
        batcher = Batcher(engine, asyncio.get_running_loop(), self.limits)
        service = Service(served(self.manifest, "sha256:ab", self.sample), batcher, **self.more)
        path, _, query = path.partition("?")
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        lower = {k.lower().replace("_", "-").encode(): v.encode() for k, v in headers.items()}
        answers: list[Response] = []
        service.handle(Request(method, path, query, lower, data), answers.append)
        for _ in range(100):
            if answers:
                break
            await asyncio.sleep(0)
        assert len(answers) == 1
        return answers[0]

    def post(self, path: str, body: Any = b"", **headers: str) -> Any:
        response = self.ask("POST", path, body, **headers)
        assert response.status == 200, response.body
        return json.loads(response.body)

    def refused(self, path: str, body: Any = b"", status: int = 400, **headers: str) -> str:
        response = self.ask("POST", path, body, **headers)
        assert response.status == status, response.body
        return response.body.decode()


INFER = "/v2/models/toy%20model/infer"


def tensor(
    data: Any, shape: list[int] | None = None, name: str = "input", datatype: str = "FP64", **more: Any
) -> dict[str, Any]:
    return {"name": name, "shape": shape or list(np.shape(data)), "datatype": datatype, "data": data, **more}


def column(answer: dict[str, Any], name: str) -> Any:
    return next(o["data"] for o in answer["outputs"] if o["name"] == name)


# --- /predict -----------------------------------------------------------------------------------------------------------


def test_predict_answers_a_row_with_an_object_and_a_list_with_a_list() -> None:
    one = {"predict": 1, "predict_proba": [0.9, 0.1]}
    assert Served().post("/predict", {"input": [1, 2, 3]}) == one
    assert Served().post("/predict", [{"input": [1, 2, 3]}]) == [one]
    assert Served().post("/predict", [[1, 2, 3]]) == [one]
    assert Served(MATRIX).post("/predict", {"a": 1, "b": 2, "extra": "ignored"}) == one
    assert Served(MATRIX).post("/predict", [[1, 2]]) == [one]


def test_predict_keeps_the_length_of_the_list_null_for_dropped_and_a_list_for_several() -> None:
    answer = Served().post("/predict", [[1, 0, 0], [7, 0, 0], [8, 0, 0]])
    assert [type(a).__name__ for a in answer] == ["dict", "NoneType", "list"]
    assert [a["predict"] for a in answer[2]] == [8, 8]


def test_predict_fails_naming_the_row_unless_rows_may_fail_alone() -> None:
    rows = [[1, 0, 0], [9, 0, 0]]
    assert "Row 1" in Served().refused("/predict", rows)
    assert "nine is not allowed" in Served().refused("/predict", rows)
    answer = Served().post("/predict?partial=true", rows)
    assert answer[0]["predict"] == 1
    assert "nine is not allowed" in answer[1]["error"]


def test_predict_with_partial_answers_the_rows_that_could_be_read() -> None:
    answer = Served(MATRIX).post("/predict?partial=true", [{"a": 1, "b": 2}, {"a": "x", "b": 2}, {"a": 3}])
    assert answer[0]["predict"] == 1
    assert answer[1] == {"error": "Row 1, column 'a': 'x' is not a number."}
    assert "Row 2: the column 'b' is missing" in answer[2]["error"]


def test_predict_of_no_rows_is_an_empty_list() -> None:
    assert Served().post("/predict", []) == []


def test_predict_computes_only_the_outputs_asked_for() -> None:
    toy = Served()
    assert toy.post("/predict?outputs=predict", [[1, 2, 3]]) == [{"predict": 1}]
    assert toy.runner.wanted == [frozenset({"predict"})]


def test_a_wrong_value_is_refused_with_its_row_and_column() -> None:
    row = {"age": 5, "city": "Ulm", "note": None, "at": "2024-05-01T12:00:00+02:00", "flag": True}
    mixed = Served(MIXED, Echo(), MIXED)
    assert mixed.post("/predict", row)["at"] == "2024-05-01T10:00:00.000000000"
    for wrong, why in (
        ({"age": 5.5}, "5.5 is not a whole number"),
        ({"age": None}, "null, and the column can't be null"),
        ({"age": "5"}, "'5' is not a whole number"),
        ({"age": 2**70}, "is beyond int64"),
        ({"city": "Bonn"}, "'Bonn' is not one of 'Kiel', 'Ulm'"),
        ({"note": 3}, "3 is not text"),
        ({"at": "yesterday"}, "is not a time"),
        ({"at": "2024-13-45"}, "is not a time"),
        ({"flag": "maybe"}, "is neither true nor false"),
        ({"score": "high"}, "'high' is not a number"),
        ({"blob": "§"}, "is not base64"),
    ):
        said = mixed.refused("/predict", [row, {**row, **wrong}])
        assert f"Row 1, column '{next(iter(wrong))}'" in json.loads(said)["error"]
        assert why in json.loads(said)["error"]


def test_null_is_nan_in_floats_and_absent_optional_columns_are_null() -> None:
    mixed = Served(MIXED, Echo(), MIXED)
    row = {
        "age": 5,
        "city": "Ulm",
        "note": None,
        "at": None,
        "flag": False,
        "score": None,
        "blob": base64.b64encode(b"hi").decode(),
    }
    assert mixed.post("/predict", row) == {**row}
    less = {k: v for k, v in row.items() if k not in ("score", "blob")}
    assert mixed.post("/predict", less) == {**row, "blob": None}


def test_nan_and_infinity_in_an_answer_are_null() -> None:
    runner = Answering(
        x=np.array([np.nan, np.inf, 1.5]), n=np.ma.MaskedArray([1, 2, 3], mask=[True, False, False])
    )
    answer = Served(runner=runner, outputs=(Field("x", "float64"),)).post("/predict", [[1, 2, 3]] * 3)
    assert answer == [{"x": None, "n": None}, {"x": None, "n": 2}, {"x": 1.5, "n": 3}]


@pytest.mark.parametrize("body", [b"[[NaN, 1, 2]]", b"[[1, -Infinity, 2]]", b'{"input": [1, NaN, 2]}'])
def test_nan_and_infinity_in_a_request_are_refused_with_what_to_send_instead(body: bytes) -> None:
    assert "Send null for a missing number" in Served().refused("/predict", body)


@pytest.mark.parametrize("body", [b"", b"[", b"5", b'"x"', b"null", b"[1, 2, 3]", b"[[[[1]]]]", b'[{"input": {}}]', b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe", b'["\xff"]', b"[[1,2,3],null]", b"[[1,2,3],{}]"])  # fmt: skip
def test_what_is_not_rows_is_refused(body: bytes) -> None:
    assert json.loads(Served().refused("/predict", body))["error"]


def test_a_wrong_width_says_both_widths_and_the_names() -> None:
    assert "Row 1 has 1 values; the model takes 2: 'a', 'b'." in Served(MATRIX).refused(
        "/predict", [[1, 2], [1]]
    )


# --- V2 -----------------------------------------------------------------------------------------------------------------


def test_infer_answers_flat_and_nested_data_alike_and_echoes_the_id() -> None:
    flat = Served().post(INFER, {"id": "x1", "inputs": [tensor([1, 2, 3, 4, 5, 6], [2, 3])]})
    nested = Served().post(INFER, {"id": "x1", "inputs": [tensor([[1, 2, 3], [4, 5, 6]])]})
    assert flat == nested
    assert flat["id"] == "x1"
    assert (flat["model_name"], flat["model_version"]) == ("toy model", "3")
    assert flat["outputs"][0] == {"name": "predict", "datatype": "INT64", "shape": [2], "data": [1, 4]}
    assert flat["outputs"][1] == {
        "name": "predict_proba",
        "datatype": "FP64",
        "shape": [2, 2],
        "data": [0.9, 0.1, 0.6, 0.4],
    }


def test_infer_takes_one_tensor_or_one_a_column() -> None:
    one = Served(MATRIX).post(INFER, {"inputs": [tensor([[1, 2]], name="anything")]})
    each = Served(MATRIX).post(
        INFER, {"inputs": [tensor([2], name="b"), tensor([[1]], name="a", datatype="INT32")]}
    )
    assert one == each


def test_infer_gives_the_outputs_asked_for_in_that_order_and_computes_no_others() -> None:
    both = [{"name": "predict_proba"}, {"name": "predict"}]
    answer = Served().post(INFER, {"inputs": [tensor([[1, 2, 3]])], "outputs": both})
    assert [o["name"] for o in answer["outputs"]] == ["predict_proba", "predict"]
    toy = Served()
    answer = toy.post(INFER, {"inputs": [tensor([[1, 2, 3]])], "outputs": [{"name": "predict"}]})
    assert [o["name"] for o in answer["outputs"]] == ["predict"]
    assert toy.runner.wanted == [frozenset({"predict"})]
    assert "no output 'nope'" in Served().refused(
        INFER, {"inputs": [tensor([[1, 2, 3]])], "outputs": [{"name": "nope"}]}
    )


def test_infer_says_in_row_whose_the_answers_are_where_counts_differ() -> None:
    answer = Served().post(INFER, {"inputs": [tensor([[1, 0, 0], [7, 0, 0], [8, 0, 0]])]})
    assert column(answer, "row") == [0, 2, 2]
    assert column(answer, "predict") == [1, 8, 8]
    answer = Served().post(
        INFER, {"inputs": [tensor([[7, 0, 0], [8, 0, 0]])], "outputs": [{"name": "predict"}]}
    )
    assert column(answer, "row") == [1, 1]  # two answers for two rows, and yet not one each


def test_infer_fails_naming_the_row_unless_partial() -> None:
    inputs = [tensor([[1, 0, 0], [9, 0, 0]])]
    assert json.loads(Served().refused(INFER, {"inputs": inputs}))["error"].startswith("Row 1: ")
    answer = Served().post(INFER, {"inputs": inputs, "parameters": {"partial": True}})
    assert column(answer, "row") == [0]
    assert json.loads(answer["parameters"]["errors"]) == {"1": "nine is not allowed"}


def test_infer_of_no_rows_has_the_right_columns_and_no_rows() -> None:
    answer = Served().post(INFER, {"inputs": [tensor([], [0, 3])]})
    assert [(o["name"], o["datatype"], o["shape"], o["data"]) for o in answer["outputs"]] == [
        ("predict", "INT64", [0], []),
        ("predict_proba", "FP64", [0, 2], []),
    ]


def test_infer_carries_text_times_truths_and_nulls() -> None:
    mixed = Served(MIXED, Echo(), MIXED)
    inputs = [
        tensor([5, 6], name="age", datatype="INT64"),
        tensor(["Ulm", "Kiel"], name="city", datatype="BYTES"),
        tensor(["a", None], name="note", datatype="BYTES"),
        tensor([0, 1], name="at", datatype="INT64"),
        tensor([False, True], name="at.valid", datatype="BOOL"),
        tensor([True, False], name="flag", datatype="BOOL"),
    ]
    answer = mixed.post(INFER, {"inputs": inputs})
    assert column(answer, "city") == ["Ulm", "Kiel"]
    assert column(answer, "note") == ["a", None]
    assert column(answer, "note.valid") == [True, False]
    assert column(answer, "at.valid") == [False, True]
    assert column(answer, "at")[1] == 1
    assert column(answer, "score") == [None, None]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({}, "missing required field `inputs`"),
        ({"inputs": []}, "no inputs"),
        ({"inputs": [{"name": "x"}]}, "missing required field"),
        ({"inputs": [tensor([1, 2], [1, 3])]}, "has 3 elements, not 2"),
        ({"inputs": [tensor([1, 2, 3], [-1, 3])]}, "a dimension is negative"),
        ({"inputs": [tensor([1, 2, 3], [1, 3], datatype="FP8")]}, "has the datatype 'FP8'"),
        ({"inputs": [tensor([1, 2, 3], [1, 3], datatype="FP16")]}, "travels in binary only"),
        ({"inputs": [tensor([1, 2], [1, 2])]}, "[2] where the model takes [3]"),
        ({"inputs": [tensor([[1, 2, 3], 4], [1, 3])]}, "mixes lists and values"),
        ({"inputs": [tensor(["a", "b", "c"], [1, 3], datatype="BYTES")]}, "is not a number"),
        ({"inputs": [{"name": "input", "shape": [1, 3], "datatype": "FP64"}]}, "no list of data"),
        ({"inputs": [tensor([[1, 2, 3]]), tensor([[1, 2, 3]])]}, "comes twice"),
        (
            {"inputs": [tensor([1, 2, 3], [1, 3], parameters={"binary_data_size": 24})]},
            "0 are left in the body",
        ),
        ({"inputs": [tensor([], [1 << 62, 1 << 62])]}, "elements, not 0"),
    ],
)
def test_infer_refuses_what_does_not_fit_with_an_error_of_one_sentence(body: Any, why: str) -> None:
    said = json.loads(Served().refused(INFER, body))
    assert list(said) == ["error"]
    assert why in said["error"]


def binary(
    inputs: list[dict[str, Any]], raw: bytes, length: int | None = None, **more: Any
) -> tuple[bytes, dict[str, str]]:
    head = json.dumps({"inputs": inputs, **more}).encode()
    return head + raw, {"Inference_Header_Content_Length": str(len(head) if length is None else length)}


def described(name: str, datatype: str, shape: list[int], size: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": size}}


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64", "INT8", "UINT16", "INT64"])
def test_infer_takes_raw_tensors_of_every_numeric_type(datatype: str) -> None:
    kinds = {"FP16": "<f2", "FP32": "<f4", "FP64": "<f8", "INT8": "i1", "UINT16": "<u2", "INT64": "<i8"}
    raw = np.array([[1, 2, 3]], kinds[datatype]).tobytes()
    body, headers = binary([described("input", datatype, [1, 3], len(raw))], raw)
    assert column(Served().post(INFER, body, **headers), "predict") == [1]


def test_infer_answers_in_binary_what_was_asked_for_in_binary() -> None:
    raw = np.array([[1, 2, 3], [4, 5, 6]], "<f8").tobytes()
    outputs = [
        {"name": "predict", "parameters": {"binary_data": True}},
        {"name": "predict_proba", "parameters": {"binary_data": False}},
    ]
    body, headers = binary([described("input", "FP64", [2, 3], len(raw))], raw, outputs=outputs)
    response = Served().ask("POST", INFER, body, **headers)
    length = int(dict(response.headers)["Inference-Header-Content-Length"])
    head = json.loads(response.body[:length])
    assert response.content_type == "application/octet-stream"
    assert head["outputs"][0]["parameters"] == {"binary_data_size": 16}
    assert np.frombuffer(response.body[length:], "<i8").tolist() == [1, 4]
    assert head["outputs"][1]["data"] == [0.9, 0.1, 0.6, 0.4]
    body, headers = binary(
        [described("input", "FP64", [2, 3], len(raw))], raw, parameters={"binary_data_output": True}
    )
    response = Served().ask("POST", INFER, body, **headers)
    length = int(dict(response.headers)["Inference-Header-Content-Length"])
    assert np.frombuffer(response.body[length + 16 :], "<f8").tolist() == [0.9, 0.1, 0.6, 0.4]


def test_infer_carries_texts_in_binary_both_ways() -> None:
    texts = ["Grüße", "", "b"]
    raw = b"".join(struct.pack("<I", len(t.encode())) + t.encode() for t in texts)
    field = (Field("text", "string"),)
    body, headers = binary(
        [described("text", "BYTES", [3, 1], len(raw))], raw, parameters={"binary_data_output": True}
    )
    response = Served(field, Echo(), field).ask("POST", INFER, body, **headers)
    assert response.body.endswith(raw)


@pytest.mark.parametrize(
    ("inputs", "raw", "length"),
    [
        ([described("input", "FP64", [1, 3], 24)], b"\0" * 23, None),
        ([described("input", "FP64", [1, 3], 24)], b"\0" * 25, None),
        ([described("input", "FP64", [1, 3], -1)], b"\0" * 24, None),
        ([described("input", "FP64", [1, 3], "24")], b"\0" * 24, None),
        ([described("input", "FP64", [1, 3], 1 << 70)], b"\0" * 24, None),
        ([described("input", "FP64", [1 << 40, 1 << 40], 24)], b"\0" * 24, None),
        ([described("input", "FP64", [1, 3], 24)], b"\0" * 24, 10**9),
        ([described("input", "FP64", [1, 3], 24)], b"\0" * 24, -5),
        ([described("input", "FP64", [1, 3], 24)], b"\0" * 24, 3),
        ([described("input", "BYTES", [1 << 50], 8)], b"\1\0\0\0a\0\0\0", None),
        ([described("input", "BYTES", [1], 8)], b"\xff\xff\xff\xffabcd", None),
        ([described("input", "BYTES", [1, 3], 12)], b"\0" * 12, None),
    ],
)
def test_lying_lengths_in_binary_are_refused(
    inputs: list[dict[str, Any]], raw: bytes, length: int | None
) -> None:
    body, headers = binary(inputs, raw, length)
    assert json.loads(Served().refused(INFER, body, **headers))["error"]


def test_models_are_found_by_name_and_version_quoted_or_not() -> None:
    toy = Served()
    body = {"inputs": [tensor([[1, 2, 3]])]}
    for path in (
        INFER,
        "/v2/models/toy model/infer",
        "/v2/models/toy%20model/versions/3/infer",
        INFER + "?unknown=1",
    ):
        assert toy.post(path, body)["model_name"] == "toy model"
    for path in ("/v2/models/other/infer", "/v2/models/toy%20model/versions/4/infer"):
        assert json.loads(toy.refused(path, body, 404))["error"].startswith("Request for unknown model")


def test_what_the_server_and_the_model_say_of_themselves() -> None:
    toy = Served(MIXED, Echo(), OUTPUTS, sample=None)

    def get(path: str, status: int = 200) -> Any:
        response = toy.ask("GET", path)
        assert response.status == status
        return json.loads(response.body)

    assert get("/v2/health/live") == {"live": True}
    assert get("/v2/health/ready") == {"ready": True, "live": True}
    assert "binary_tensor_data" in get("/v2")["extensions"]
    assert get("/v2/models") == {"models": ["toy model"]}
    model = get("/v2/models/toy%20model")
    assert model["versions"] == ["3"]
    assert {i["name"]: i["datatype"] for i in model["inputs"]} == {
        "age": "INT64", "city": "BYTES", "note": "BYTES", "at": "INT64", "score": "FP64", "blob": "BYTES", "flag": "BOOL",
    }  # fmt: skip
    assert model["outputs"][1] == {"name": "predict_proba", "datatype": "FP64", "shape": [-1, 2]}
    assert get("/v2/models/toy%20model/ready") == {"name": "toy model", "ready": True}
    assert get("/v2/models/other/ready", 404)["error"].startswith("Request for unknown model")
    assert get("/v2/models/toy%20model/config")["input"][0] == {
        "name": "age",
        "data_type": "TYPE_INT64",
        "dims": [1],
    }
    assert get("/v2/models/toy%20model/stats")["model_stats"][0]["name"] == "toy model"
    assert toy.post("/v2/repository/index")[0]["state"] == "READY"
    assert get("/")["docs"] == "/docs"


def test_loading_and_unloading_models_is_off_and_says_so() -> None:
    for what in ("load", "unload"):
        assert "is off here" in Served().refused(f"/v2/repository/models/toy/{what}", {}, 403)


def test_a_server_whose_part_is_down_is_not_ready() -> None:
    toy = Served(healthy=lambda: False)
    assert toy.ask("GET", "/v2/health/ready").status == 503
    assert toy.ask("GET", "/v2/health/live").status == 200
    assert toy.ask("GET", "/ping").status == 503
    assert toy.ask("POST", "/predict", [[9, 0, 0]]).status == 503


# --- MLflow -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_split": {"columns": ["b", "a"], "data": [[2, 1], [4, 3]]}},
        {"dataframe_split": {"columns": ["a", "b"], "data": [[1, 2], [3, 4]], "index": [5, 6]}, "params": {}},
        {"dataframe_split": {"columns": ["b", "x", "a"], "data": [[2, "z", 1], [4, "z", 3]]}},
        {"dataframe_records": [{"a": 1, "b": 2}, {"b": 4, "a": 3}]},
        {"instances": [[1, 2], [3, 4]]},
        {"instances": [{"a": 1, "b": 2}, {"b": 4, "a": 3}]},
        {"inputs": {"a": [1, 3], "b": [2, 4]}},
        {"inputs": [[1, 2], [3, 4]]},
    ],
)
def test_invocations_answers_all_four_forms_with_the_labels_alone(body: Any) -> None:
    toy = Served(MATRIX)
    assert toy.post("/invocations", body, content_type="application/json; charset=utf-8") == {
        "predictions": [1, 3]
    }
    assert toy.runner.wanted == [frozenset({"predict"})]


def test_invocations_reads_csv_by_the_columns_types() -> None:
    assert Served(MATRIX).post("/invocations", b"b,a\n2,1\n4,3\n", content_type="text/csv") == {
        "predictions": [1, 3]
    }
    mixed = Served(MIXED, Echo(), MIXED)
    text = b'age,city,note,at,flag,score\n5,Ulm,"a, b",2024-05-01,true,\n6,Kiel,,,False,1.5\n'
    rows = mixed.post("/invocations", text, content_type="text/csv")["predictions"]
    assert [r["note"] for r in rows] == ["a, b", None]
    assert [r["flag"] for r in rows] == [True, False]
    assert [r["score"] for r in rows] == [None, 1.5]
    assert "Row 0, column 'a': 'x' is not a number" in Served(MATRIX).refused(
        "/invocations", b"a,b\nx,1\n", content_type="text/csv"
    )


def test_invocations_reads_parquet() -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.table({"b": [2.0, 4.0], "a": [1, 3], "more": ["x", "y"]}), sink)
    body = sink.getvalue().to_pybytes()
    assert Served(MATRIX).post("/invocations", body, content_type="application/vnd.apache.parquet") == {
        "predictions": [1, 3]
    }
    assert "is not Parquet" in Served(MATRIX).refused(
        "/invocations", body[:-9], content_type="application/vnd.apache.parquet"
    )


def test_invocations_gives_null_for_a_dropped_row_and_refuses_a_failed_one() -> None:
    assert Served().post("/invocations", {"inputs": [[1, 0, 0], [7, 0, 0]]}) == {"predictions": [1, None]}
    said = json.loads(Served().refused("/invocations", {"inputs": [[9, 0, 0]]}))
    assert said["error_code"] == "BAD_REQUEST"
    assert "Row 0" in said["message"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"instances": [[1, 2]], "inputs": [[1, 2]]},
        {"rows": [[1, 2]]},
        {"instances": [[1, 2]], "more": 1},
        {"instances": [[1, 2]], "params": 3},
        {"dataframe_split": {"columns": ["a", "b"]}},
        {"dataframe_split": {"columns": ["a", "b"], "data": [[1]]}},
        {"dataframe_split": [1]},
        {"dataframe_records": {"a": 1}},
        {"dataframe_records": [{"a": 1}]},
        {"inputs": {"a": [1, 2], "b": [1]}},
        {"inputs": 5},
        [1],
    ],
)
def test_invocations_refuses_in_mlflows_shape(body: Any) -> None:
    said = json.loads(Served(MATRIX).refused("/invocations", body))
    assert sorted(said) == ["error_code", "message"]


def test_invocations_refuses_another_content_type_in_plain_text() -> None:
    response = Served().ask("POST", "/invocations", b"x", content_type="application/xml")
    assert (response.status, response.content_type.partition(";")[0]) == (415, "text/plain")


# --- everything else ----------------------------------------------------------------------------------------------------


def test_with_keys_every_route_but_health_wants_one() -> None:
    toy = Served(keys=Keys(["open sesame", "second"]))
    for path in ("/v2/health/live", "/v2/health/ready", "/ping", "/health"):
        assert toy.ask("GET", path).status == 200
    for path in ("/", "/docs", "/openapi.json", "/metrics", "/v2", "/v2/models", "/version", "/nowhere"):
        assert toy.ask("GET", path).status == 401
    assert toy.ask("POST", "/predict", [[1, 2, 3]], x_api_key="wrong").status == 401
    assert toy.ask("POST", "/predict", [[1, 2, 3]], authorization="Bearer").status == 401
    for headers in (
        {"x_api_key": "second"},
        {"authorization": "Bearer open sesame"},
        {"authorization": "Basic " + base64.b64encode(b"me:second").decode()},
    ):
        assert toy.ask("POST", "/predict", [[1, 2, 3]], **headers).status == 200


def test_a_wrong_verb_is_told_the_right_one() -> None:
    response = Served().ask("GET", "/predict")
    assert (response.status, dict(response.headers)["Allow"]) == (405, "POST")
    assert Served().ask("POST", "/v2/health/live").status == 405


def test_a_full_queue_is_a_503_that_says_when_to_come_back() -> None:
    response = Served(limits=Limits(waiting_requests=0)).ask("POST", "/predict", [[1, 2, 3]])
    assert response.status == 503
    assert int(dict(response.headers)["Retry-After"]) >= 1


class Unwritable:
    def predict(self, batch: Batch, want: frozenset[str] | None) -> Outcome:
        return Outcome(Batch({"x": np.array([object()] * len(batch), dtype=object)}, batch.rows))


def test_an_answer_that_cannot_be_written_is_a_500_in_one_sentence() -> None:
    response = Served(runner=Unwritable(), outputs=(Field("x", "object"),)).ask(
        "POST", "/predict", [[1, 2, 3]]
    )
    assert response.status == 500
    assert "can't be written as JSON" in json.loads(response.body)["error"]


def test_a_pipeline_that_fails_as_a_whole_is_a_500() -> None:
    class Gone:
        shares_batches = True

        def run(self, batch: Batch, want: frozenset[str] | None = None) -> Outcome:
            raise ModelFailed("The stage worker ended.")

    async def ask() -> Response:
        toy = Served()
        service = Service(
            served(toy.manifest), Batcher(Gone(), asyncio.get_running_loop(), Limits(thread=False))
        )
        answers: list[Response] = []
        service.handle(Request("POST", "/predict", "", {}, b"[[1,2,3]]"), answers.append)
        await asyncio.sleep(0)
        return answers[0]

    assert asyncio.run(ask()).status == 500


def test_the_description_is_openapi_typed_by_the_signature_with_the_sample_as_example() -> None:
    toy = Served(
        MIXED,
        Echo(),
        OUTPUTS,
        sample={"age": [5], "city": ["Ulm"], "note": [None], "at": ["2024-05-01"], "flag": [True]},
    )
    document = json.loads(toy.ask("GET", "/openapi.json").body)
    row = document["components"]["schemas"]["Row"]
    assert document["openapi"].startswith("3.1")
    assert row["properties"]["city"] == {"enum": ["Kiel", "Ulm"]}
    assert row["properties"]["note"]["type"] == ["string", "null"]
    assert row["required"] == ["age", "city", "note", "at", "flag"]
    example = document["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["example"]
    assert toy.ask("POST", "/predict", example).status == 200
    example = document["paths"]["/v2/models/toy model/infer"]["post"]["requestBody"]["content"][
        "application/json"
    ]["example"]
    assert toy.ask("POST", INFER, example).status == 200


def test_the_page_is_self_contained_and_escapes_what_the_package_says() -> None:
    toy = Served((Field("<script>alert(1)</script>", "float64"), Field("{{script}}", "float64")))
    response = toy.ask("GET", "/docs")
    page = response.body.decode()
    assert "<script>alert" not in page
    assert page.count("<script>") == 1
    assert "http://" not in page
    assert "https://" not in page
    assert "default-src 'none'" in dict(response.headers)["Content-Security-Policy"]


def test_metrics_count_requests_rows_and_batches_over_all_workers(tmp_path: Path) -> None:
    first, second = (Metrics(tmp_path, slot, ["toy"], ROUTES, {"name": "toy"}) for slot in (0, 1))
    toy = Served(told=first)
    toy.post("/predict", [[1, 0, 0], [7, 0, 0]])
    toy.refused("/predict", [[9, 0, 0]])
    second.request("predict", 200, 0.004)
    second.batch(3, 12)
    text = toy.ask("GET", "/metrics").body.decode()
    assert 'mlpacker_requests_total{route="predict",status="200"} 2' in text
    assert 'mlpacker_requests_total{route="predict",status="400"} 1' in text
    assert 'mlpacker_request_seconds_count{route="predict"} 3' in text
    assert 'mlpacker_rows_total{outcome="dropped"} 1' in text
    assert 'mlpacker_rows_total{outcome="failed"} 1' in text
    assert 'mlpacker_batch_rows_bucket{le="16"} 1' in text
    assert "mlpacker_worker_starts_total 2" in text


def test_a_worker_that_is_started_again_counts_on(tmp_path: Path) -> None:
    Metrics(tmp_path, 0, ["toy"], ROUTES, {}).request("predict", 200, 0.1)
    again = Metrics(tmp_path, 0, ["toy"], ROUTES, {})
    again.request("predict", 200, 0.1)
    assert 'mlpacker_requests_total{route="predict",status="200"} 2' in again.text()


def test_more_rows_than_the_limit_are_a_413() -> None:
    toy = Served(limit_rows=2)
    assert len(toy.post("/predict", [[1, 2, 3]] * 2)) == 2
    assert "3 rows; this server takes 2" in toy.refused("/predict", [[1, 2, 3]] * 3, 413)


def test_an_access_log_has_a_line_for_each_request() -> None:
    lines: list[tuple[str, dict[str, Any]]] = []
    toy = Served(access_log=True, log=lambda action, **facts: lines.append((action, facts)))
    toy.post("/predict", [[1, 2, 3]])
    toy.refused("/predict", [[1]])
    assert [(a, f["route"], f["status"]) for a, f in lines] == [
        ("request", "predict", 200),
        ("request", "predict", 400),
    ]
