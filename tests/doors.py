"""The doors of a served package, each asked with the same rows: what a client of each would write, and what comes back as rows.

A row is a dict of columns; None stands for a null. An answer is a dict of outputs, or None for a row that was dropped.
"""

from __future__ import annotations

import csv
import http.client
import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]
Answers = Sequence[Row | None]

HEADER_LENGTH = "Inference-Header-Content-Length"
JSON = {"Content-Type": "application/json"}
NUMBERS = {"FP64": "<f8", "FP32": "<f4", "INT64": "<i8", "INT32": "<i4", "BOOL": "?"}


# --- Asking ----------------------------------------------------------------------------------------------------------


def post(url: str, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, dict[str, str], bytes]:
    """Status, headers in lower case, and body of the answer."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    try:
        connection.request("POST", path, body, dict(headers))
        response = connection.getresponse()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
    finally:
        connection.close()


def ask(url: str, path: str, body: object, status: int = 200) -> Any:
    """Send JSON; what the JSON of the answer says."""
    given, _, said = post(url, path, json.dumps(body).encode(), JSON)
    assert given == status, said
    return json.loads(said)


def by_plain_json(url: str, rows: Sequence[Row]) -> Answers:
    """POST /predict."""
    answers: Answers = ask(url, "/predict", list(rows))
    return answers


def by_v2_json(url: str, name: str, rows: Sequence[Row]) -> Answers:
    """POST /v2/models/NAME/infer, a tensor for each column."""
    answer = ask(url, f"/v2/models/{name}/infer", {"inputs": tensors(rows), "id": "7"})
    assert answer["id"] == "7"
    return from_tensors(answer["outputs"], len(rows))


def by_v2_binary(url: str, name: str, rows: Sequence[Row]) -> Answers:
    """POST /v2/models/NAME/infer with binary tensors, in and out."""
    body, headers = binary(rows)
    status, given, said = post(url, f"/v2/models/{name}/infer", body, headers)
    assert status == 200, said
    length = int(given[HEADER_LENGTH.lower()])
    return from_tensors(list(unpacked(json.loads(said[:length])["outputs"], said[length:])), len(rows))


def by_invocations(url: str, rows: Sequence[Row]) -> list[Any]:
    """POST /invocations with `dataframe_split`: its predictions, as they are."""
    columns = list(rows[0])
    split = {"columns": columns, "data": [[r[c] for c in columns] for r in rows]}
    predictions: list[Any] = ask(url, "/invocations", {"dataframe_split": split})["predictions"]
    return predictions


def named(answer: Any, outputs: Sequence[str]) -> Any:
    """MLflow's protocol gives the bare value where there is one output; with its name, as other doors have it."""
    bare = answer is not None and len(outputs) == 1 and not isinstance(answer, dict)
    return {outputs[0]: answer} if bare else answer


# --- V2's tensors ----------------------------------------------------------------------------------------------------


def tensors(rows: Sequence[Row]) -> list[Row]:
    """One V2 JSON tensor a column."""
    return [
        {"name": n, "shape": [len(rows)], "datatype": datatype(v), "data": v}
        for n, v in ((n, [r[n] for r in rows]) for n in rows[0])
    ]


def datatype(values: Sequence[Any]) -> str:
    if any(isinstance(v, str) for v in values):
        return "BYTES"
    return "INT64" if all(type(v) is int for v in values) else "FP64"


def binary(rows: Sequence[Row], **parameters: Any) -> tuple[bytes, dict[str, str]]:
    """The body and headers of a request whose columns are binary tensors."""
    blobs, inputs = [], []
    for name in rows[0]:
        for tensor, blob in binary_column(name, [r[name] for r in rows]):
            inputs.append({**tensor, "parameters": {"binary_data_size": len(blob)}})
            blobs.append(blob)
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True, **parameters}}).encode()
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(head))}
    return head + b"".join(blobs), headers


def binary_column(name: str, values: list[Any]) -> Iterator[tuple[Row, bytes]]:
    """A column as binary tensors: its values, and which of them are there where text is missing."""
    kind = datatype(values)
    tensor = {"name": name, "shape": [len(values)], "datatype": kind}
    if kind == "BYTES":
        encoded = [(v or "").encode() for v in values]
        yield tensor, b"".join(struct.pack("<I", len(t)) + t for t in encoded)
        if None in values:
            valid = [v is not None for v in values]
            yield {"name": f"{name}.valid", "shape": [len(values)], "datatype": "BOOL"}, bytes(valid)
    elif kind == "INT64":
        yield tensor, np.array(values, "<i8").tobytes()
    else:
        yield tensor, np.array([np.nan if v is None else v for v in values], "<f8").tobytes()


def unpacked(outputs: Sequence[Row], data: bytes) -> Iterator[Row]:
    """Binary output tensors as JSON ones would be."""
    at = 0
    for output in outputs:
        size = output["parameters"]["binary_data_size"]
        part = data[at : at + size]
        at += size
        kind = output["datatype"]
        values = texts(part) if kind == "BYTES" else np.frombuffer(part, NUMBERS[kind]).tolist()
        yield {"name": output["name"], "shape": output["shape"], "data": values}
    assert at == len(data)


def texts(part: bytes) -> list[str]:
    """Texts, each after its length."""
    found = []
    while part:
        (length,) = struct.unpack_from("<I", part)
        found.append(part[4 : 4 + length].decode())
        part = part[4 + length :]
    return found


def from_tensors(outputs: Sequence[Row], count: int) -> Answers:
    """V2 outputs as rows; `row` says which row an answer belongs to, where some were dropped."""
    arrays = {o["name"]: np.array(o["data"], dtype=object).reshape(o["shape"]) for o in outputs}
    rows = [int(r) for r in arrays.pop("row", np.arange(count))]
    answers: list[Row | None] = [None] * count
    for at, row in enumerate(rows):
        answers[row] = {n: c[at].tolist() if c.ndim > 1 else c[at] for n, c in arrays.items()}
    return answers


# --- Files -----------------------------------------------------------------------------------------------------------


def lines_of(path: Path) -> list[dict[str, str]]:
    """A CSV file's lines, each field as it is written."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def rows_of(path: Path) -> list[Row]:
    """A CSV file's rows: numbers as numbers, an empty field as None."""
    return [{k: value_of(v) for k, v in line.items()} for line in lines_of(path)]


def value_of(text: str) -> Any:
    """What a CSV field holds."""
    if text == "":
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def from_lines(lines: Sequence[Mapping[str, Any]], count: int) -> Answers:
    """What `score` wrote, a CSV line each, as rows: `name_0`, `name_1` … make up one wide answer."""
    answers: list[Row | None] = [None] * count
    for line in lines:
        answer: Row = {}
        for name, value in line.items():
            wide, _, place = name.rpartition("_")
            if name != "row" and wide and place.isdigit():
                answer.setdefault(wide, []).append(value)
            elif name != "row":
                answer[name] = value
        answers[int(line["row"])] = answer
    return answers


# --- Comparing -------------------------------------------------------------------------------------------------------


def agrees(given: Any, wanted: Any, tolerance: float = 1e-12) -> bool:
    """Labels exactly; floats to the tolerance, which is PACKAGING's for float64 answers of the same batch."""
    if isinstance(wanted, list):
        return len(given) == len(wanted) and all(
            agrees(g, w, tolerance) for g, w in zip(given, wanted, strict=True)
        )
    if isinstance(wanted, float):
        return math.isclose(given, wanted, rel_tol=tolerance, abs_tol=tolerance)
    return bool(given == wanted)


def assert_rows_agree(given: Answers, wanted: Answers, tolerance: float = 1e-12) -> None:
    """Row for row: the outputs wanted are there, and dropped rows are dropped."""
    assert len(given) == len(wanted)
    for n, (one, other) in enumerate(zip(given, wanted, strict=True)):
        if other is None:
            assert one is None, f"row {n}"
        else:
            assert one is not None, f"row {n}"
            right = all(k in one and agrees(one[k], v, tolerance) for k, v in other.items())
            assert right, f"row {n}: {one} where {other} was right"
