"""Who is compared, each in the way its own documentation recommends: how it is installed, started, asked and read."""

from __future__ import annotations

import array
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from load import Answer, Ask
from machine import environment, free_port

SERVICES = Path(__file__).parent / "services"
SCIKIT_LEARN = ("scikit-learn>=1.6,<2", "pandas>=2")
OCTETS = "application/octet-stream"
HEADER_LENGTH = "Inference-Header-Content-Length"
OURS, WRITTEN, SERVER, CEILING = "ours", "hand-written", "model server", "ceiling"

Rows = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Place:
    """Where a contestant works: its interpreter, a folder of its own, the workload's folder, the training interpreter."""

    python: Path
    folder: Path
    workload: Path
    training: Path

    @property
    def model(self) -> Path:
        return self.workload / "model.joblib"

    @property
    def name(self) -> str:
        return self.workload.name

    def script(self, name: str) -> str:
        return str(self.python.parent / name)

    def call(
        self, argv: Sequence[str], env: Mapping[str, str] | None = None, folder: Path | None = None
    ) -> str:
        """Run to the end, quietly, in a folder. Raises CalledProcessError with what it said."""
        done = subprocess.run(
            list(argv),
            env=environment(env or {}),
            cwd=folder or self.folder,
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
        )
        return done.stdout


@dataclass(frozen=True)
class Start:
    """A server's command line and what it finds in its environment."""

    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)


def _nothing(place: Place) -> None:
    return None


@dataclass(frozen=True)
class Contestant:
    """kind: ours, hand-written, model server or ceiling. venv: the environment it shares with its variants.

    prepare: what is done once for a workload, before anything is timed. pack: how a package is made of a model, and where
    it lies then; timed apart. workloads: those it takes part in (all, where empty).
    """

    name: str
    kind: str
    venv: str
    requirements: tuple[str, ...]
    start: Callable[[Place, int], Start]
    ask: Callable[[Rows], Ask]
    labels: Callable[[Answer], list[float]]
    prepare: Callable[[Place], None] = _nothing
    pack: Callable[[Place, int], Path] | None = None
    workloads: frozenset[str] = frozenset()


# How rows are asked and answers read.


def ask_rows(path: str) -> Callable[[Rows], Ask]:
    return lambda rows: Ask(path, json.dumps({"rows": rows}).encode())


def ask_plain(rows: Rows) -> Ask:
    return Ask("/predict?outputs=predict", json.dumps(rows).encode())


def ask_tensor(rows: Rows) -> Ask:
    return Ask("/invocations", json.dumps({"inputs": rows}).encode())


def ask_dataframe(rows: Rows) -> Ask:
    split = {"columns": [f"x{i}" for i in range(len(rows[0]))], "data": rows}
    return Ask("/invocations", json.dumps({"dataframe_split": split}).encode())


def ask_v2(model: str) -> Callable[[Rows], Ask]:
    def ask(rows: Rows) -> Ask:
        data = [value for row in rows for value in row]
        tensor = {"name": "input", "shape": [len(rows), len(rows[0])], "datatype": "FP64", "data": data}
        return Ask(
            f"/v2/models/{model}/infer",
            json.dumps({"inputs": [tensor], "outputs": [{"name": "predict"}]}).encode(),
        )

    return ask


def ask_binary(model: str) -> Callable[[Rows], Ask]:
    def ask(rows: Rows) -> Ask:
        data = array.array("d", [value for row in rows for value in row]).tobytes()
        tensor = {
            "name": "input",
            "shape": [len(rows), len(rows[0])],
            "datatype": "FP64",
            "parameters": {"binary_data_size": len(data)},
        }
        output = {"name": "predict", "parameters": {"binary_data": True}}
        header = json.dumps({"inputs": [tensor], "outputs": [output]}).encode()
        headers = {"Content-Type": OCTETS, HEADER_LENGTH: str(len(header))}
        return Ask(f"/v2/models/{model}/infer", header + data, headers)

    return ask


def labels_at(*path: str | int) -> Callable[[Answer], list[float]]:
    def labels(answer: Answer) -> list[float]:
        value = json.loads(answer.body)
        for step in path:
            value = value[step]
        return list(value)

    return labels


def labels_plain(answer: Answer) -> list[float]:
    """`/predict` answers row by row, with each of the pipeline's outputs or with the one it has."""
    value = json.loads(answer.body)
    rows = value if isinstance(value, list) else value["predictions"]
    return [row["predict"] if isinstance(row, dict) else row for row in rows]


def labels_binary(answer: Answer) -> list[float]:
    length = int(answer.headers[HEADER_LENGTH.lower()])
    kind = json.loads(answer.body[:length])["outputs"][0]["datatype"]
    return array.array({"INT64": "q", "INT32": "i", "FP64": "d"}[kind], answer.body[length:]).tolist()


# The contestants.


def _uvicorn(place: Place, port: int, app: str) -> list[str]:
    flags = ["--host", "127.0.0.1", "--port", str(port), "--no-access-log", "--log-level", "warning"]
    return [
        str(place.python),
        "-m",
        "uvicorn",
        "--app-dir",
        str(SERVICES),
        "--loop",
        "uvloop",
        "--http",
        "httptools",
        *flags,
        app,
    ]


def start_fastapi(place: Place, port: int) -> Start:
    return Start(_uvicorn(place, port, "fastapi_service:app"), {"BENCH_MODEL": str(place.model)})


def start_constant(place: Place, port: int) -> Start:
    return Start(_uvicorn(place, port, "constant:app"))


def save_mlflow(kind: str) -> Callable[[Place, int], Path]:
    def save(place: Place, version: int) -> Path:
        folder = place.folder / f"saved-{kind}-{version}"
        shutil.rmtree(folder, ignore_errors=True)
        sample = place.workload / "sample.npy"
        place.call(
            [
                str(place.python),
                str(SERVICES / "mlflow_save.py"),
                str(place.model),
                str(sample),
                str(folder),
                kind,
            ]
        )
        return folder

    return save


def start_mlflow(kind: str) -> Callable[[Place, int], Start]:
    def start(place: Place, port: int) -> Start:
        folder = place.folder / f"saved-{kind}-0"
        flags = ["--env-manager", "local", "--workers", "1", "--host", "127.0.0.1", "--port", str(port)]
        path = f"{place.python.parent}{os.pathsep}{os.environ['PATH']}"  # it starts `uvicorn` by name
        return Start([place.script("mlflow"), "models", "serve", "-m", str(folder), *flags], {"PATH": path})

    return start


def mlflow(name: str, kind: str, ask: Callable[[Rows], Ask], **more: frozenset[str]) -> Contestant:
    def prepare(place: Place) -> None:
        save_mlflow(kind)(place, 0)

    return Contestant(
        name,
        SERVER,
        "mlflow",
        ("mlflow>=3,<4", *SCIKIT_LEARN),
        start_mlflow(kind),
        ask,
        labels_at("predictions"),
        prepare,
        save_mlflow(kind) if kind == "tensor" else None,
        **more,
    )


def build_bento(place: Place, version: int) -> Path:
    """`bentoml build` of the service and the model, requirements locked as it does by default.

    It refuses a project under a hidden folder, so the project lies among the temporary files.
    """
    project = Path(tempfile.mkdtemp(prefix="bench-bento-"))
    shutil.copy(SERVICES / "bentoml_service.py", project / "service.py")
    shutil.copy(place.model, project / "model.joblib")
    (project / "bentofile.yaml").write_text(
        "service: 'service:Plain'\nname: bench\ninclude: ['service.py', 'model.joblib']\npython:\n  packages: ['scikit-learn']\n"
    )
    home = {"BENTOML_HOME": str(place.folder / "home")}
    tag = f"bench:v{version}"
    subprocess.run(
        [place.script("bentoml"), "delete", "-y", tag],
        env=environment(home),
        capture_output=True,
        check=False,
    )
    try:
        place.call([place.script("bentoml"), "build", "--version", f"v{version}"], home, project)
    finally:
        shutil.rmtree(project)
    return Path(place.call([place.script("bentoml"), "get", tag, "-o", "path"], home).strip())


def start_bento(service: str) -> Callable[[Place, int], Start]:
    def start(place: Place, port: int) -> Start:
        argv = [
            place.script("bentoml"),
            "serve",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--working-dir",
            str(SERVICES),
        ]
        options = "api_server.logging.access.enabled=false api_server.traffic.timeout=60"
        env = {
            "BENCH_MODEL": str(place.model),
            "BENTOML_HOME": str(place.folder / "home"),
            "BENTOML_CONFIG_OPTIONS": options,
        }
        return Start([*argv, f"bentoml_service:{service}"], env)

    return start


def bento(name: str, service: str) -> Contestant:
    requirements = ("bentoml>=1.4,<2", "uv", *SCIKIT_LEARN)  # `bentoml build` locks with uv
    pack = build_bento if service == "Plain" else None
    return Contestant(
        name,
        SERVER,
        "bentoml",
        requirements,
        start_bento(service),
        ask_rows("/predict"),
        labels_at(),
        pack=pack,
    )


def start_mlserver(batch: int) -> Callable[[Place, int], Start]:
    def start(place: Place, port: int) -> Start:
        """Its folder of settings. No process for the model (it would share the core), adaptive batching where asked."""
        folder = place.folder / f"settings-{batch}"
        folder.mkdir(exist_ok=True)
        server = {
            "host": "127.0.0.1",
            "http_port": port,
            "grpc_port": free_port(),
            "metrics_port": free_port(),
        }
        server |= {"parallel_workers": 0, "debug": False}
        model: dict[str, object] = {"name": "bench", "implementation": "mlserver_sklearn.SKLearnModel"}
        model["parameters"] = {"uri": str(place.model)}
        if batch > 1:
            model |= {"max_batch_size": batch, "max_batch_time": 0.002}
        (folder / "settings.json").write_text(json.dumps(server))
        (folder / "model-settings.json").write_text(json.dumps(model))
        return Start([place.script("mlserver"), "start", str(folder)])

    return start


def mlserver(name: str, batch: int) -> Contestant:
    requirements = ("mlserver>=1.7,<2", "mlserver-sklearn>=1.7,<2", *SCIKIT_LEARN)
    return Contestant(
        name,
        SERVER,
        "mlserver",
        requirements,
        start_mlserver(batch),
        ask_v2("bench"),
        labels_at("outputs", 0, "data"),
    )


def litserve(name: str, batch: int) -> Contestant:
    def start(place: Place, port: int) -> Start:
        env = {"BENCH_MODEL": str(place.model), "BENCH_BATCH": str(batch)}
        return Start([str(place.python), str(SERVICES / "litserve_service.py"), str(port)], env)

    requirements = ("litserve>=0.2.15,<0.3", *SCIKIT_LEARN)
    return Contestant(
        name, SERVER, "litserve", requirements, start, ask_rows("/predict"), labels_at("labels")
    )


def _mlpacker(place: Place) -> tuple[list[str], dict[str, str]]:
    return [str(Path(sys.executable).parent / "mlpacker")], {"MLPACKER_HOME": str(place.folder / "home")}


def pack_ours(place: Place, version: int) -> Path:
    """`mlpacker pack`, proof included, from the interpreter the model was trained with; and the saved file, to be weighed."""
    command, env = _mlpacker(place)
    sample = ["--sample", str(place.workload / "sample.csv"), "--python", str(place.training)]
    ref = f"{place.name}:v{version}"
    place.call(
        [*command, "pack", str(place.model), "--name", place.name, "--version", f"v{version}", *sample], env
    )
    file = place.folder / f"{place.name}-v{version}.tar"
    file.unlink(missing_ok=True)
    place.call([*command, "save", ref, str(file)], env)
    return file


def prepare_ours(place: Place) -> None:
    """Pack, and let `run` make the environment once: what is timed later is what a user sees the second time."""
    shutil.rmtree(place.folder / "home", ignore_errors=True)
    pack_ours(place, 0)


def start_ours(place: Place, port: int) -> Start:
    command, env = _mlpacker(place)
    return Start([*command, "run", f"{place.name}:v0", "--host", "127.0.0.1", "--port", str(port)], env)


def ours(
    name: str,
    ask: Callable[[str], Callable[[Rows], Ask]],
    labels: Callable[[Answer], list[float]],
    workload: str,
) -> Contestant:
    model = MODELS[workload]
    first = name == "mlpacker"
    return Contestant(
        name,
        OURS,
        "",
        (),
        start_ours,
        ask(model),
        labels,
        prepare_ours,
        pack_ours if first else None,
        frozenset({workload}),
    )


MODELS = {"W1": "linear", "W2": "forest", "W3": "linear"}
"""Which model each workload uses; also the name it is packed under."""


def every_one() -> tuple[Contestant, ...]:
    """In the order of the tables."""
    plain = ask_plain
    first_two = frozenset({"W1", "W2"})
    return (
        *(ours("mlpacker", ask_v2, labels_at("outputs", 0, "data"), w) for w in MODELS),
        ours("mlpacker, plain JSON", lambda _: plain, labels_plain, "W1"),
        ours("mlpacker, V2 binary", ask_binary, labels_binary, "W1"),
        ours("mlpacker, V2 binary", ask_binary, labels_binary, "W3"),
        Contestant(
            "FastAPI by hand",
            WRITTEN,
            "fastapi",
            ("fastapi", "uvicorn[standard]", *SCIKIT_LEARN),
            start_fastapi,
            ask_rows("/predict"),
            labels_at("labels"),
        ),
        mlflow("MLflow, tensor", "tensor", ask_tensor),
        mlflow("MLflow, DataFrame", "dataframe", ask_dataframe, workloads=frozenset({"W1"})),
        bento("BentoML", "Plain"),
        bento("BentoML, batching", "Batched"),
        mlserver("MLServer", 1),
        mlserver("MLServer, batching", 256),
        litserve("LitServe", 1),
        _only(litserve("LitServe, batching", 64), first_two),
        Contestant(
            "the HTTP server, a constant",
            CEILING,
            "fastapi",
            ("fastapi", "uvicorn[standard]", *SCIKIT_LEARN),
            start_constant,
            ask_rows("/"),
            labels_at("labels"),
        ),
    )


def _only(contestant: Contestant, workloads: frozenset[str]) -> Contestant:
    return replace(contestant, workloads=workloads)
