"""Clients that people already have, against the real server: Triton's, a browser, and a tester that reads our OpenAPI."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlpacker_runtime.manifest import Manifest, Stage, encode
from mlpacker_runtime.signature import Field

NUMBERS = tuple(Field(n, "float64") for n in ("width", "height", "depth"))
PEOPLE = (
    Field("age", "int16"),
    Field("city", "category", categories=("Kiel", "Ulm")),
    Field("note", "string", nullable=True),
    Field("at", "datetime", nullable=True),
    Field("score", "float64", required=False),
    Field("flag", "bool"),
)
CODE = """
import numpy as np

def label(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    first = next(iter(columns.values()))
    x = np.nan_to_num(first.astype(float), nan=0.0, posinf=9.0, neginf=-9.0)
    return {"label": (x > 1).astype(np.int64), "share": np.stack([x, 1 - x], axis=1), "word": np.where(x > 1, "big", "small").astype(object)}
"""
OUTPUTS = (Field("label", "int64"), Field("share", "float64", (-1, 2)), Field("word", "string"))
SAMPLE = {
    "age": [5, 6],
    "city": ["Ulm", "Kiel"],
    "note": ["a", None],
    "at": ["2024-05-01", None],
    "score": [0.5, None],
    "flag": [True, False],
}


def serve(folder: Path, inputs: tuple[Field, ...], sample: dict[str, Any]) -> Iterator[str]:
    (folder / "label.py").write_text(CODE)
    stage = Stage(
        "label", "function", "label.py", entry="label", inputs=inputs, outputs=OUTPUTS, holds_code=True
    )
    (folder / "mlpacker.json").write_bytes(
        encode(Manifest("toy", (stage,), inputs, OUTPUTS, sample="sample.json"))
    )
    (folder / "sample.json").write_text(json.dumps({"columns": sample}))
    argv = [
        sys.executable,
        "-m",
        "mlpacker_runtime",
        "serve",
        "--package",
        str(folder),
        "--port",
        "0",
        "--accepted",
    ]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split()[1]
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    yield from serve(tmp_path_factory.mktemp("people"), PEOPLE, SAMPLE)


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    yield from serve(
        tmp_path_factory.mktemp("numbers"),
        NUMBERS,
        {"width": [1.0, 2.0], "height": [1.0, 2.0], "depth": [0.5, 0.25]},
    )


def test_a_tester_that_reads_our_openapi_finds_no_server_error_and_no_broken_promise(people: str) -> None:
    """Whether a request that fits the schema is taken is the model's to say, and `partial` answers what does not fit with
    200 and an error a row: so the checks of acceptance and of rejection are left out.
    """
    pytest.importorskip("schemathesis")
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,response_schema_conformance,unsupported_method"
    argv = [
        sys.executable,
        "-m",
        "schemathesis.cli",
        "run",
        f"{people}/openapi.json",
        "--checks",
        checks,
        "--max-examples",
        "25",
        "--generation-deterministic",
        "--no-color",
    ]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


class TestTritonsClient:
    """`tritonclient` sends binary tensors unless told not to, and may pack both ways."""

    @pytest.fixture
    def client(self, numbers: str) -> Iterator[Any]:
        http = pytest.importorskip("tritonclient.http")
        with http.InferenceServerClient(numbers.removeprefix("http://")) as client:
            yield client

    def asked(self, values: np.ndarray, datatype: str, binary: bool) -> Any:
        import tritonclient.http as http

        tensor = http.InferInput("rows", list(values.shape), datatype)
        tensor.set_data_from_numpy(values, binary_data=binary)
        return [tensor]

    def test_it_learns_what_there_is(self, client: Any) -> None:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("toy")
        assert not client.is_model_ready("other")
        assert client.get_model_metadata("toy")["inputs"][0] == {
            "name": "width",
            "datatype": "FP64",
            "shape": [-1],
        }
        assert client.get_model_config("toy")["max_batch_size"] > 0
        assert client.get_model_repository_index()[0]["name"] == "toy"
        assert client.get_inference_statistics("toy")["model_stats"][0]["name"] == "toy"

    @pytest.mark.parametrize("sent", [None, "gzip", "deflate"])
    @pytest.mark.parametrize("received", [None, "gzip", "deflate"])
    @pytest.mark.parametrize("binary", [True, False])
    def test_it_is_answered_however_it_packs(
        self, client: Any, sent: str | None, received: str | None, binary: bool
    ) -> None:
        import tritonclient.http as http

        rows = np.random.default_rng(0).normal(size=(200, 3))
        outputs = [http.InferRequestedOutput(n, binary_data=binary) for n in ("word", "share", "label")]
        answer = client.infer(
            "toy", self.asked(rows, "FP64", binary), outputs=outputs, request_id="42",
            request_compression_algorithm=sent, response_compression_algorithm=received,
        )  # fmt: skip
        assert answer.get_response()["id"] == "42"
        assert [o["name"] for o in answer.get_response()["outputs"]] == ["word", "share", "label"]
        np.testing.assert_array_equal(
            answer.as_numpy("share"), np.stack([rows[:, 0], 1 - rows[:, 0]], axis=1)
        )
        words = [w.decode() if isinstance(w, bytes) else w for w in answer.as_numpy("word")]
        assert words == ["big" if x > 1 else "small" for x in rows[:, 0]]

    def test_it_shows_our_sentences(self, client: Any) -> None:
        import tritonclient.utils as utils

        with pytest.raises(utils.InferenceServerException, match="Request for unknown model"):
            client.infer("other", self.asked(np.zeros((1, 3)), "FP64", True))
        with pytest.raises(utils.InferenceServerException, match="2 columns wide"):
            client.infer("toy", self.asked(np.zeros((1, 2)), "FP64", True))
        with pytest.raises(utils.InferenceServerException, match="off here"):
            client.load_model("toy")


def test_the_page_answers_its_own_example_in_a_browser(people: str, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium here")
    argv = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path}",
        "--virtual-time-budget=8000",
        "--dump-dom",
        f"{people}/docs#go",
    ]
    page = subprocess.run(argv, capture_output=True, text=True, timeout=120).stdout
    assert "200 in" in page
    assert '"label":1' in page


def test_a_million_rows_of_numbers_are_answered_or_refused_by_the_limit(numbers: str) -> None:
    import urllib.error
    import urllib.request

    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "x",
                    "shape": [1_000_000, 3],
                    "datatype": "FP64",
                    "parameters": {"binary_data_size": 24_000_000},
                }
            ],
            "outputs": [{"name": "label"}],
        }
    ).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    request = urllib.request.Request(
        f"{numbers}/v2/models/toy/infer", head + np.full(3_000_000, 2.0).tobytes(), headers
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert json.load(answer)["outputs"][0]["shape"] == [1_000_000]
    rows = b"[" + b",".join([b"[1,2,3]"] * 1_000_000) + b"]"
    with urllib.request.urlopen(urllib.request.Request(f"{numbers}/predict", rows), timeout=120) as answer:
        assert len(json.load(answer)) == 1_000_000
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(f"{numbers}/predict", b"[" * (65 << 20)), timeout=60)
    assert refused.value.code == 413
