"""Whatever bytes come as a body, the answer is 200 or a 4xx, never a 5xx, in the protocol's own shape."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mlpacker_runtime.batch import Batch, Outcome
from mlpacker_runtime.batching import Batcher, Limits
from mlpacker_runtime.engine import Engine
from mlpacker_runtime.manifest import Manifest, Stage
from mlpacker_runtime.rest import Request, Response, served
from mlpacker_runtime.rest.binary import DATATYPES
from mlpacker_runtime.rest.bodies import unpack
from mlpacker_runtime.rest.connection import Bounds, Connections
from mlpacker_runtime.rest.service import Service
from mlpacker_runtime.rest.v2 import refuse
from mlpacker_runtime.signature import Field

INPUTS = (
    (Field("input", "float64", (-1, 3)),),
    (Field("a", "float32"), Field("b", "float32")),
    (Field("text", "string"),),
    (
        Field("i", "int8", nullable=True),
        Field("c", "category", categories=("x", "y")),
        Field("t", "datetime", nullable=True, required=False),
        Field("b", "bool"),
        Field("raw", "bytes", required=False, nullable=True),
        Field("o", "object", required=False),
        Field("pair", "int64", (-1, 2), required=False),
    ),
)
NAMES = ["input", "a", "b", "text", "i", "c", "t", "raw", "o", "pair", "i.valid", "inputs", "x"]


class Echo:
    def predict(self, batch: Batch, want: frozenset[str] | None) -> Outcome:
        return Outcome(batch)


async def _ask(inputs: tuple[Field, ...], path: str, body: bytes, headers: dict[bytes, bytes]) -> Response:
    stage = Stage("toy", "function", "toy.py", inputs=inputs, outputs=inputs)
    manifest = Manifest("toy", (stage,), inputs, inputs)
    batcher = Batcher(Engine((stage,), {"toy": Echo()}), asyncio.get_running_loop(), Limits(thread=False))
    answers: list[Response] = []
    Service(served(manifest), batcher).handle(
        Request("POST", path, "partial=true", headers, body), answers.append
    )
    while not answers:
        await asyncio.sleep(0)
    return answers[0]


def ask(inputs: tuple[Field, ...], path: str, body: bytes, **headers: bytes) -> Response:
    response = asyncio.run(
        _ask(inputs, path, body, {k.replace("_", "-").encode(): v for k, v in headers.items()})
    )
    assert response.status == 200 or 400 <= response.status < 500, (response.status, response.body, body)
    if response.status != 200 and response.status != 415:
        said = json.loads(response.body)
        assert isinstance(said.get("error", said.get("message")), str)
    return response


VALUES: Any = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.integers(-3, 300), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=6),
        st.sampled_from(["x", "y", "2024-05-01", "2024-05-01T10:00:00Z", "aGk=", "Infinity", "0" * 30]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(NAMES), inner, max_size=4)),
    max_leaves=25,
)  # fmt: skip
LEAVES = st.sampled_from([None, True, "8", 1.5, [8], {}, 1 << 70, float("nan")])
TENSORS = st.fixed_dictionaries(
    {
        "name": st.sampled_from(NAMES),
        "shape": st.lists(st.integers(0, 4) | st.sampled_from([-1, 1 << 40, 1 << 62, 1 << 70]), max_size=3),
        "datatype": st.sampled_from([*DATATYPES, "FP8"]),
    },
    optional={
        "data": VALUES,
        "parameters": st.fixed_dictionaries({"binary_data_size": st.integers(-1, 40) | LEAVES}),
    },
)
INFER = st.fixed_dictionaries(
    {"inputs": st.lists(TENSORS, max_size=4)},
    optional={
        "id": VALUES,
        "parameters": st.dictionaries(st.sampled_from(["binary_data_output", "partial"]), st.booleans()),
        "outputs": st.lists(st.fixed_dictionaries({"name": st.sampled_from([*NAMES, "row"])}), max_size=3),
    },
)
FORMS = st.dictionaries(
    st.sampled_from(["dataframe_split", "dataframe_records", "instances", "inputs", "params"]),
    VALUES,
    min_size=1,
    max_size=2,
)
SPLITS = st.fixed_dictionaries(
    {
        "dataframe_split": st.fixed_dictionaries(
            {"columns": st.lists(st.sampled_from(NAMES), max_size=4), "data": VALUES}
        )
    }
)


def dumped(value: Any) -> bytes:
    """As a careless client writes it: NaN and Infinity as JavaScript knows them."""
    return json.dumps(value).encode()


@given(st.sampled_from(INPUTS), st.one_of(VALUES.map(dumped), st.binary(max_size=60)))
def test_predict_takes_or_refuses_any_body(inputs: tuple[Field, ...], body: bytes) -> None:
    ask(inputs, "/predict", body)


@given(st.sampled_from(INPUTS), st.one_of(INFER.map(dumped), VALUES.map(dumped), st.binary(max_size=60)))
def test_infer_takes_or_refuses_any_json(inputs: tuple[Field, ...], body: bytes) -> None:
    ask(inputs, "/v2/models/toy/infer", body)


@given(st.sampled_from(INPUTS), INFER, st.binary(max_size=64), st.integers(-3, 3) | st.integers())
def test_infer_takes_or_refuses_any_binary_body(
    inputs: tuple[Field, ...], asked: Any, raw: bytes, lie: int
) -> None:
    head = dumped(asked)
    length = len(head) if -3 < lie < 3 else lie
    ask(inputs, "/v2/models/toy/infer", head + raw, inference_header_content_length=str(length).encode())


@given(st.sampled_from(INPUTS), st.one_of(FORMS.map(dumped), SPLITS.map(dumped), st.binary(max_size=60)))
def test_invocations_takes_or_refuses_any_json(inputs: tuple[Field, ...], body: bytes) -> None:
    ask(inputs, "/invocations", body, content_type=b"application/json")


@given(
    st.sampled_from(INPUTS),
    st.lists(
        st.lists(st.sampled_from([*NAMES, "", "1", "-2.5", '"', "true", "é\n"]), max_size=4), max_size=4
    ),
    st.binary(max_size=20),
)
def test_invocations_takes_or_refuses_any_csv(
    inputs: tuple[Field, ...], cells: list[list[str]], tail: bytes
) -> None:
    ask(
        inputs,
        "/invocations",
        "\n".join(",".join(row) for row in cells).encode() + tail,
        content_type=b"text/csv",
    )


@given(st.binary(max_size=80), st.sampled_from(["gzip", "deflate", "gzip, deflate", "br", ""]))
def test_unpacking_gives_bytes_or_a_refusal(body: bytes, coding: str) -> None:
    from mlpacker_runtime.errors import MlpackerError

    try:
        assert len(unpack(body, coding, 1000)) <= 1000
    except MlpackerError:
        pass


class Wire:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.written += data

    def close(self) -> None:
        self.closed = True

    abort = close
    pause_reading = resume_reading = write_eof = lambda self: None

    def can_write_eof(self) -> bool:
        return True


class Immediate:
    def handle(self, request: Request, respond: Any) -> None:
        respond(Response(200, str(len(request.body)).encode()))


PIECES = st.sampled_from(
    [b"GET / HTTP/1.1\r\n", b"POST /x HTTP/1.1\r\n", b"Content-Length: 5\r\n", b"Content-Length: -1\r\n", b"Transfer-Encoding: chunked\r\n", b"\r\n",
     b"hello", b"5\r\nhello\r\n", b"0\r\n\r\n", b"Expect: 100-continue\r\n", b"Upgrade: h2c\r\nConnection: Upgrade\r\n", b"Connection: close\r\n", b"Content-Encoding: gzip\r\n", b"X: "]
)  # fmt: skip


@given(st.lists(st.one_of(PIECES, PIECES, st.binary(max_size=12)), max_size=14))
def test_a_connection_survives_any_bytes_in_any_pieces(pieces: list[bytes]) -> None:
    async def talk() -> bytearray:
        connection = Connections(Immediate(), Bounds(max_body=1000), refuse)()
        wire = Wire()
        connection.connection_made(wire)
        for piece in pieces:
            connection.data_received(piece)
        connection.connection_lost(None)
        return wire.written

    written = asyncio.run(talk())
    assert not written or written.startswith(b"HTTP/1.1 ")
    assert b"HTTP/1.1 500" not in written


@given(st.lists(st.lists(st.floats(width=32), min_size=2, max_size=2), max_size=5))
def test_every_float_that_json_knows_comes_back_as_it_went(rows: list[list[float]]) -> None:
    sent = [[v if np.isfinite(v) else None for v in row] for row in rows]
    answer = json.loads(ask(INPUTS[1], "/predict", json.dumps(sent).encode()).body)
    assert [[r["a"], r["b"]] for r in answer] == sent
