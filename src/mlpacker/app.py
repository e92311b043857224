"""The SDK: one verb per use case. The command line is a thin front over it.

import mlpacker
packed = mlpacker.pack("model.joblib", name="iris")
with mlpacker.open("iris") as iris:
    iris.predict(frame)
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs

from mlpacker_runtime import manifest as manifests
from mlpacker_runtime.manifest import Manifest
from mlpacker_runtime.stream.settings import Settings
from mlpacker_runtime.stream.settings import to_json as settings_json

from . import streaming, trust
from .environments import variables
from .errors import BadDescription, EnvironmentFailed, MlpackerError, ModelFailed, NotFound, StoreFailed
from .events import Events, Silent

if TYPE_CHECKING:
    from mlpacker_runtime.batch import Batch, Outcome

    from .environments.install import Environment
    from .environments.lock import Lock
    from .letters import Letters
    from .package import packing
    from .package.diff import Change, Side
    from .pipeline import StageDescription
    from .score import Counts
    from .stores.registry import Registry

PROOF = "application/vnd.mlpacker.proof.v1+json"
GOLDEN = "application/vnd.mlpacker.golden.v1+json"
WHEELS = "application/vnd.mlpacker.wheels.v1"
PLATFORM = "vnd.mlpacker.platform"
DOOR = "the door"
"""The environment that serves where no stage's can; no stage has a name with a blank."""


@dataclass(frozen=True)
class Info:
    """What a package says of itself. size: bytes of all its layers. proof: what was compared when it was packed."""

    digest: str
    manifest: Manifest
    size: int
    proof: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def version(self) -> str | None:
        return self.manifest.version

    def to_json(self) -> dict[str, Any]:
        """One object, as `--json` prints it."""
        plain = manifests.to_plain(self.manifest)
        return {
            "name": self.name,
            "version": self.version,
            "digest": self.digest,
            "stages": plain["stages"],
            "signature": {"inputs": plain["inputs"], "outputs": plain["outputs"]},
            "environments": plain.get("environments", {}),
            "metadata": plain.get("metadata", {}),
            "size": self.size,
            "proof": dict(self.proof),
        }


def default_home(environ: Mapping[str, str] = os.environ) -> Path:
    """MLPACKER_HOME, else the platform's data folder."""
    named = environ.get("MLPACKER_HOME")
    return (
        Path(named).expanduser() if named else Path(platformdirs.user_data_dir("mlpacker", appauthor=False))
    )


class Mlpacker:
    """One home: its store, its environments, and what was accepted on this machine.

    home: a folder (default: MLPACKER_HOME, else the platform's data folder). events: told how long work goes on.
    Every verb raises the errors of `mlpacker.errors`; a REF is `name`, `name:version`, `name@sha256:…` or a digest prefix.
    """

    def __init__(self, home: Path | str | None = None, events: Events | None = None) -> None:
        from .stores.layout import LayoutStore

        self.home = (Path(home).expanduser() if home is not None else default_home()).absolute()
        try:
            self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as cause:
            raise StoreFailed(
                f"{self.home} can't be made: {cause.strerror}.",
                "Name another folder: MLPACKER_HOME, or --home.",
            ) from cause
        self.events: Events = events or Silent()
        self.store = LayoutStore(self.home / "store")

    # --- pack

    def pack(
        self,
        *models: str | Path,
        descriptor: str | Path | None = None,
        name: str | None = None,
        version: str | None = None,
        sample: str | Path | None = None,
        expect: str | Path | None = None,
        python: str | Path | None = None,
        code: Sequence[str | Path] = (),
        requirements: Sequence[str] = (),
        trust: Sequence[str] = (),
        trust_code: bool = False,
        index: str | None = None,
        find_links: Sequence[str] = (),
        allow_build: bool = False,
        vendor: bool = False,
        move: bool = False,
    ) -> Info:
        """Make a package and put it into the store.

        models: model files, MLflow folders, `FILE.py:FUNCTION`, in order; or a descriptor (pipeline.yaml).
        python: the training interpreter. Raises BadDescription, BadInput, Refused, EnvironmentFailed, NotProvable, StoreFailed.
        """
        from mlpacker_runtime.formats import Trust

        from . import pipeline as pipelines
        from .environments.uv import Indexes
        from .package import environment, packing

        if descriptor is not None:
            described = pipelines.parse(Path(descriptor))
            given: dict[str, Any] = {
                "name": name,
                "version": version,
                "sample": Path(sample) if sample else None,
                "expect": Path(expect) if expect else None,
                "requirements": (*described.requirements, *_requirement_lines(requirements)) or None,
                "stages": tuple(_with_code(s, code) for s in described.stages),
            }
            described = replace(described, **{k: v for k, v in given.items() if v is not None})
        else:
            described = pipelines.from_arguments(
                models,
                name=name,
                version=version,
                sample=sample,
                expect=expect,
                code=code,
                requirements=requirements,
                trust=trust,
            )
        options = environment.Options(
            python=Path(python) if python is not None else None,
            trust=Trust(frozenset(trust), trust_code),
            indexes=Indexes(
                index=tuple(i for i in (index, described.index) if i),
                find_links=(*find_links, *described.find_links),
            ),
            allow_build=allow_build,
        )
        with tempfile.TemporaryDirectory(prefix="mlpacker-pack-") as folder:
            packed = packing.pack(
                described,
                Path(folder),
                self.home,
                options,
                self.events,
                lambda made: None if move else self._refuse_taken(described.name, described.version, made),
            )
            self.events.step("Writing the package")
            digest = self._record(packed, move)
        if vendor:
            self.vendor(digest)
        return self.inspect(digest)

    def _refuse_taken(self, name: str, version: str | None, folder: Path) -> None:
        """Raises BadDescription where name:version is taken by other models or code: better now than after the long work."""
        from .stores import packages

        if version is None:
            return
        try:
            digest = packages.resolve(self.store, f"{name}:{version}")
        except NotFound:
            return
        there = packages.read_files(self.store, digest)
        kept = {p: d.digest for p, d in there.items() if p.startswith(("models/", "code/"))}
        if kept != {
            f"{top}/{f.relative_to(folder / top).as_posix()}": f"sha256:{hashlib.sha256(f.read_bytes()).hexdigest()}"
            for top in ("models", "code")
            for f in (folder / top).rglob("*")
            if f.is_file()
        }:
            raise packages.taken(f"{name}:{version}", digest)

    def _record(self, packed: packing.Packed, move: bool) -> str:
        """Into the store, with what hangs on it; accepted here, because it was packed here."""
        from .package.packing import golden_document, proof_document
        from .stores import packages, referrers

        files = {p: packages.PackageFile(packed.folder / p, _kind(p)) for p in packed.files}
        made = packed.manifest
        digest = packages.write_package(
            self.store, made.name, made.version, files, move=move, progress=self.events.progress
        )
        referrers.attach(self.store, digest, PROOF, proof_document(packed), replace=True)
        referrers.attach(self.store, digest, GOLDEN, golden_document(packed), replace=True)
        trust.accept(self.home, digest, "packed here")
        return digest

    # --- look

    def list(self) -> list[Listed]:
        """Every name in the store, newest last."""
        from .stores import packages

        listed = []
        for found in packages.list_packages(self.store):
            if found.damage:
                self.events.warn(f"{found.digest} is damaged: {found.damage}")
                continue
            try:
                info = self._info(found.digest, found.size)
            except MlpackerError as error:
                self.events.warn(f"{found.digest} is damaged: {error}")
                continue
            listed += [Listed(ref, info) for ref in (found.refs or (found.digest,))]
        return listed

    def inspect(self, ref: str) -> Info:
        """What a package says of itself. Raises NotFound."""
        from .stores import packages

        digest = self.resolve(ref)
        return self._info(digest, packages.size_of(packages.read_manifest(self.store, digest)))

    def resolve(self, ref: str) -> str:
        """The digest a REF means. Raises NotFound with near names."""
        from .stores import packages

        return packages.resolve(self.store, ref)

    def _info(self, digest: str, size: int) -> Info:
        from .stores import packages

        data = packages.read_file(self.store, digest, manifests.PATH)
        return Info(digest, manifests.decode(data), size, self._document(digest, PROOF) or {})

    def _document(self, digest: str, kind: str) -> dict[str, Any] | None:
        """The newest JSON document of that kind that hangs on the package."""
        from .stores import referrers

        found = referrers.referrers(self.store, digest, kind)
        if not found:
            return None
        value = json.loads(referrers.read_referrer(self.store, found[-1]))
        return value if isinstance(value, dict) else None

    def diff(self, a: str, b: str) -> Sequence[Change]:
        """What changed from `a` to `b`: names, signature, stages, models, code, pins."""
        from .package.diff import changes

        return changes(self._side(a), self._side(b))

    def _side(self, ref: str) -> Side:
        from .package.diff import Side
        from .stores import packages

        digest = self.resolve(ref)
        layers = {p: d.digest for p, d in packages.read_files(self.store, digest).items()}
        return Side(self.inspect(digest).manifest, layers, self.locks(digest))

    def locks(self, digest: str) -> dict[str, Lock]:
        """A package's locks by environment."""
        from .environments import lock
        from .stores import packages

        manifest = manifests.decode(packages.read_file(self.store, digest, manifests.PATH))
        return {
            n: lock.decode(packages.read_file(self.store, digest, e.lock))
            for n, e in manifest.environments.items()
        }

    def verify(self, ref: str) -> dict[str, Any]:
        """Read every byte of a package and of what hangs on it. Raises StoreFailed naming what is damaged."""
        from .stores import packages

        digest = self.resolve(ref)
        self.events.step("Reading every byte")
        checked = packages.verify(self.store, digest, progress=self.events.progress)
        return {"digest": digest, "files": checked.blobs, "bytes": checked.size}

    # --- names

    def tag(self, ref: str, name: str, *, move: bool = False) -> str:
        """Give a package a further name (`name` or `name:version`); its digest."""
        from .stores import packages

        return packages.tag(self.store, ref, name, move=move)

    def remove(self, ref: str) -> None:
        """Take a name away. The bytes go with the next gc."""
        from .stores import packages

        packages.remove(self.store, ref)

    # --- environments

    def environments(
        self, digest: str, extras: Mapping[str, tuple[str, ...]] | None = None
    ) -> dict[str, Environment]:
        """A package's environments, made where they are not there yet. Raises EnvironmentFailed.

        extras: extras of the runtime (`parquet`) that an environment shall have beside the pins, by its name.
        """
        from .environments import install
        from .environments.runtime_wheel import runtime_wheel

        runtime = runtime_wheel(self.home / "cache")
        locks = self.locks(digest)
        wanted = {name: (extras or {}).get(name, ()) for name in locks}
        places = {n: install.place(lock, self.home, runtime, wanted[n]) for n, lock in locks.items()}
        if all(install.is_there(p) for p in places.values()):
            return places
        self.events.step("Preparing the environment")
        with self._carried_wheels(digest) as wheels:
            return {
                name: install.ensure(
                    lock, self.home, runtime, extras=wanted[name], wheels=wheels, progress=self.events.note
                )
                for name, lock in locks.items()
            }

    @contextmanager
    def _carried_wheels(self, digest: str) -> Iterator[Path | None]:
        """The wheels inside a package and those that hang on it, in one folder; None where there are none."""
        from .stores import referrers

        inside = self.materialise(digest) / "wheels"
        hanging = referrers.referrers(self.store, digest, WHEELS)
        if not hanging and not inside.is_dir():
            yield None
            return
        with tempfile.TemporaryDirectory(prefix="mlpacker-wheels-") as folder:
            for i, referrer in enumerate(hanging):
                for wheel in referrers.referrer_files(self.store, referrer, Path(folder, str(i))).values():
                    wheel.replace(Path(folder, wheel.name))
            for wheel in inside.glob("*.whl"):
                shutil.copyfile(wheel, Path(folder, wheel.name))
            yield Path(folder)

    def materialise(self, digest: str) -> Path:
        """The package as a verified folder, for the runtime to read."""
        from .stores import materialise

        return materialise.materialise(
            self.store, digest, self.home / "packages", progress=self.events.progress
        )

    def gc(self, *, dry_run: bool = False, unnamed: bool = False) -> dict[str, int]:
        """Delete what no package needs: bytes, unpacked folders and environments. Counts, and bytes freed.

        unnamed: first forget the packages that have no name any more, as one packed anew without a version leaves behind.
        """
        from .environments import install
        from .stores import materialise, packages

        listed = [p for p in packages.list_packages(self.store) if p.refs or not unnamed]
        live = [p.digest for p in listed]
        whole = [p.digest for p in listed if not p.damage]
        keep = {key for d in whole for key in self._keys(d)}
        environments = [f for f in (self.home / "envs").glob("*") if f.is_dir() and f.name not in keep]
        freed = sum(install.size(f) for f in environments)
        if not dry_run:
            install.prune(self.home, keep)
        freed += materialise.prune(self.home / "packages", live, dry_run=dry_run)
        blobs = packages.collect(self.store, time.time(), unnamed=unnamed, dry_run=dry_run)
        return {
            "blobs": len(blobs),
            "environments": len(environments),
            "bytes": freed + sum(b.size for b in blobs),
        }

    def _keys(self, digest: str) -> Iterator[str]:
        """The environments that a package needs on this platform."""
        from .environments import install
        from .environments.runtime_wheel import runtime_wheel

        runtime = runtime_wheel(self.home / "cache")
        for lock in self.locks(digest).values():
            try:
                yield install.place(lock, self.home, runtime).key
            except EnvironmentFailed:
                continue

    # --- elsewhere

    def vendor(self, ref: str, platform: str | None = None) -> str:
        """Hang the environment's wheels on a package, so that it can be installed with no index reachable."""
        from .environments import interpreters, wheels
        from .environments.runtime_wheel import runtime_wheel
        from .stores import referrers

        digest = self.resolve(ref)
        platform = platform or interpreters.inspect(Path(sys.executable)).platform
        self.events.step(f"Fetching the wheels for {platform}")
        carried = self.materialise(digest) / "wheels"
        with tempfile.TemporaryDirectory(prefix="mlpacker-wheels-") as folder:
            files: dict[str, bytes | Path] = {}
            for name, lock in self.locks(digest).items():
                place = Path(folder) / name
                runtime = runtime_wheel(self.home / "cache")
                fetched = wheels.download_wheels(
                    lock, platform, place, runtime, carried=carried, progress=self.events.note
                )
                for wheel in fetched:
                    files[wheel.name] = wheel
            referrers.attach_files(
                self.store, digest, WHEELS, files, {PLATFORM: platform}, progress=self.events.progress
            )
        return digest

    def save(self, ref: str, out: Path | str, *, with_env: bool = False, platform: str | None = None) -> Path:
        """Write a package, and what hangs on it, to one tar file. with_env: carry the environment's wheels for `platform`."""
        from .stores import archive

        digest = self.vendor(ref, platform) if with_env else self.resolve(ref)
        self.events.step("Writing the file")
        left = () if with_env else (WHEELS,)
        names = (ref,) if ":" in ref and "@" not in ref and not ref.startswith("sha256:") else ()
        return archive.save(
            self.store, digest, Path(out), refs=names, without=left, progress=self.events.progress
        )

    def load(self, tar: Path | str, *, move: bool = False) -> Sequence[Info]:
        """Take in the packages of a saved file."""
        from .stores import archive

        self.events.step("Reading the file")
        digests = archive.load(self.store, Path(tar), move=move, progress=self.events.progress)
        return [self.inspect(d) for d in digests]

    def push(self, ref: str, remote: str, *, plain_http: bool = False, with_env: bool = False) -> str:
        """Send a package to a registry (`HOST/REPOSITORY:TAG`); where it is now, with its digest."""
        from .stores import transfer

        digest = self.vendor(ref) if with_env else self.resolve(ref)
        self.events.step(f"Pushing to {remote}")
        with self._registry(remote, push=True, plain_http=plain_http) as registry:
            left = () if with_env else (WHEELS,)
            return transfer.push(
                self.store, digest, registry, without=left, progress=self.events.progress
            ).place

    def pull(self, remote: str, *, plain_http: bool = False, move: bool = False) -> Info:
        """Fetch a package from a registry; every byte is verified before it has a name here."""
        from .stores import transfer

        self.events.step(f"Pulling from {remote}")
        with self._registry(remote, push=False, plain_http=plain_http) as registry:
            pulled = transfer.pull(self.store, registry, move=move, progress=self.events.progress)
        for reason in pulled.skipped:
            self.events.warn(reason)
        return self.inspect(pulled.digest)

    def _registry(self, remote: str, *, push: bool, plain_http: bool) -> Registry:
        from .stores.registry import open_registry
        from .stores.remotes import parse_remote

        return open_registry(parse_remote(remote), os.environ, Path.home(), push=push, plain_http=plain_http)

    # --- use

    def open(self, ref: str, *, trust_code: bool = False) -> Opened:
        """Start a package's workers in its own environments; answers until closed. Use as a context manager."""
        info = self.inspect(ref)
        accepted = self._accepted(info, trust_code)
        folder = self.materialise(info.digest)
        return Opened(info, folder, self.environments(info.digest), accepted, self.serve)

    def _accepted(self, info: Info, trust_code: bool) -> bool:
        return trust.require(self.home, info.digest, self._reasons(info), trust_code, info.name)

    def _reasons(self, info: Info) -> tuple[str, ...]:
        """Why running the package would run code that its packer chose."""
        from .stores import packages, referrers

        files = packages.read_files(self.store, info.digest)
        hanging = referrers.referrers(self.store, info.digest, WHEELS)
        wheels = bool(hanging) or any(p.startswith("wheels/") for p in files)
        locked = [p for lock in self.locks(info.digest).values() for p in lock.platforms.values()]
        return trust.reasons(info.manifest.holds_code, wheels, (pin.name for p in locked for pin in p.pins))

    def score(
        self,
        ref: str,
        input: Path | str,
        output: Path | str,
        *,
        want: frozenset[str] | None = None,
        restart: bool = False,
        trust_code: bool = False,
    ) -> Counts:
        """Answer every row of a file into another; goes on where a killed run was. want: only these outputs."""
        from . import score

        info = self.inspect(ref)
        _check_outputs(info, want)
        job = score.Job(
            digest=info.digest,
            inputs=info.manifest.inputs,
            input=Path(input),
            output=Path(output),
            want=want,
            whole=any(s.batch == "request" for s in info.manifest.stages),
            restart=restart,
        )
        with self.open(info.digest, trust_code=trust_code) as package:
            self.events.step("Scoring")
            return score.score(job, package, self.events)

    def launch(
        self, ref: str, *, trust_code: bool = False, extras: Sequence[str] = (), **served: Any
    ) -> Launch:
        """The command that serves a package.

        extras: of the runtime, for doors that need more (`parquet`: Parquet bodies to `/invocations`). served: `host`,
        `port`, `workers`, `api_key_file`, `max_body`, `timeout`, `limit_rows`, `log`, `access_log` and `no_batching`, as
        `mlpacker run` has them.
        """
        return self._launch(self.inspect(ref), trust_code, extras, served)

    def stream(
        self,
        ref: str,
        *,
        trust_code: bool = False,
        served: Mapping[str, Any] | None = None,
        file: Path | str | None = None,
        **described: Any,
    ) -> Launch:
        """The command that runs a package on a stream.

        described: the keys of `stream.yaml` (`source` for `from`, `to`, `key` …), which win over those of `file`. served:
        `host`, `port`, `timeout`, `log`. Raises BadDescription.
        """
        info, settings = self.stream_settings(ref, file, described)
        return self._launch(info, trust_code, streaming.extras(settings), served or {}, settings)

    def stream_settings(
        self, ref: str, file: Path | str | None, described: Mapping[str, Any]
    ) -> tuple[Info, Settings]:
        """The package and the settings that a file and words of one's own come to."""
        info = self.inspect(ref)
        words = {
            ("from" if k == "source" else k): v for k, v in described.items() if v is not None and v != ()
        }
        given = {**(streaming.read(Path(file)) if file is not None else {}), **words}
        return info, streaming.settings(given, info.name, _outputs(info), self.home)

    def explain(self, ref: str, file: Path | str | None = None, **described: Any) -> dict[str, Any]:
        """What the edge from a stream's source to its sink guarantees, asked of the brokers in the package's environment."""
        info, settings = self.stream_settings(ref, file, described)
        launch = self._launch(info, True, streaming.extras(settings), {}, settings)
        argv = [launch.argv[0], "-I", "-B", "-m", "mlpacker_runtime.stream.explain"]
        done = subprocess.run(
            argv,
            input=settings_json(settings),
            env=launch.environ,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise EnvironmentFailed(
                f"The brokers could not be asked: {done.stderr.strip().splitlines()[-1:]}."
            )
        return json.loads(done.stdout)

    def replay(
        self,
        ref: str,
        *,
        to: str,
        since: str = "earliest",
        until: str | None = None,
        called: str | None = None,
        trust_code: bool = False,
        served: Mapping[str, Any] | None = None,
        file: Path | str | None = None,
        **described: Any,
    ) -> dict[str, Any]:
        """Answer what a stream's source holds from `since` to `until` (default: now) once more, into `to`; ends by itself.

        described, file: of the stream, as for `stream`; its place, its sink and its dead letters are left alone. called: the
        replay's own name. Raises BadDescription for a source that keeps no past.
        """
        from . import replays

        given = {} if file is None else streaming.read(Path(file))
        given = {k: v for k, v in given.items() if k not in replays.NOT_OF_THE_FILE}
        words = {k: v for k, v in described.items() if v is not None and v != ()}
        words |= {"to": to, "from": words.pop("source", None) or given.get("from")}
        info = self.inspect(ref)
        stream = streaming.settings({**given, **words}, info.name, _outputs(info), self.home)
        settings = replays.settings(stream, since, until or "", time.time(), called or "")
        launch = self._launch(
            info, trust_code, streaming.extras(settings), {"port": 0, **(served or {})}, settings
        )
        return replays.run(launch.argv, launch.environ, settings)

    def compare(
        self,
        a: str,
        b: str,
        *,
        key: str = "id",
        tolerance: float = 1e-9,
        output: Path | str | None = None,
    ) -> dict[str, Any]:
        """Two outputs, row by row: addresses, or .jsonl and .csv files. key: `id`, or a field. output: a file for what differs."""
        from . import clients

        addresses = [side for side in (a, b) if ":" in side]
        order = {"a": a, "b": b, "key": key, "tolerance": tolerance, "logs": str(self.home / "logs")}
        order["output"] = None if output is None else str(output)
        return clients.ask(
            clients.interpreter(addresses, self.home, self.events), "compare", order, os.environ
        )

    def letters(self, name: str, at: str = "") -> Letters:
        """The dead letters of a deployment; at: an address, where they are not kept in its state folder. Raises NotFound."""
        from .letters import Letters

        return Letters(self.home, name, at, self.events)

    def _launch(
        self,
        info: Info,
        trust_code: bool,
        extras: Sequence[str],
        served: Mapping[str, Any],
        stream: Settings | None = None,
    ) -> Launch:
        """A stream's own process loads no model, so every environment has a stage worker then."""
        accepted = self._accepted(info, trust_code)
        own = info.manifest.stages[0].environment
        folder = self.materialise(info.digest)
        door = self._door(info.digest, own, extras)
        environments = self.environments(info.digest, {} if door else {own: tuple(extras)})
        python, name = (door.python, DOOR) if door else (environments[own].python, own)
        argv = [str(python), "-I", "-B", "-m", "mlpacker_runtime", "serve"]
        argv += ["--package", str(folder), "--digest", info.digest, "--environment", name]
        argv += ["--accepted"] if accepted else []
        for other, environment in environments.items():
            if other != name or stream is not None:
                argv += ["--stage-worker", f"{other}={environment.python}"]
        argv += _flags(served)
        argv += ["--stream", settings_json(stream)] if stream is not None else []
        return Launch(argv, variables.clean(os.environ))

    def _door(self, digest: str, own: str, extras: Sequence[str]) -> Environment | None:
        """An environment for the door alone, where an extra it needs can't live beside the pins; its stages are then asked
        over sockets. None where the stages' own will do."""
        from .environments import install, interpreters, resolve
        from .environments import lock as locks
        from .environments.runtime_wheel import runtime_wheel

        packed = self.locks(digest)[own]
        if not any(
            packed.extras.get(e, "apart: packed before there was this extra").startswith("apart")
            for e in extras
        ):
            return None
        runtime = runtime_wheel(self.home / "cache")
        self.events.step("Preparing an environment for the door")
        lock = resolve.resolve(
            locks.Requirements(python=packed.python),
            resolve.runtime_requirements(runtime.path),
            here=interpreters.this_platform(),
            platforms=(),
            progress=self.events.note,
        )
        return install.ensure(lock, self.home, runtime, extras=tuple(extras), progress=self.events.note)

    def serve(self, ref: str, *, port: int = 0, **options: Any) -> Serving:
        """Serve a package in the background until closed; `port` 0 picks a free one. options: those of `launch`."""
        return Serving(self.launch(ref, port=port, **options))


def _requirement_lines(requirements: Sequence[str]) -> tuple[str, ...]:
    """Files among them read; else the name of a file would be taken for a distribution's, and fetched."""
    from . import pipeline as pipelines

    return tuple(line for r in requirements for line in pipelines.requirement_lines(r, Path.cwd()))


def _with_code(stage: StageDescription, code: Sequence[str | Path]) -> StageDescription:
    return replace(stage, code=(*stage.code, *(Path(c).absolute() for c in code)))


def _outputs(info: Info) -> tuple[str, ...]:
    return tuple(f.name for f in info.manifest.outputs)


def _check_outputs(info: Info, want: frozenset[str] | None) -> None:
    known = set(_outputs(info))
    unknown = sorted((want or frozenset()) - known)
    if unknown:
        raise BadDescription(
            f"{info.name} has no output {unknown[0]!r}.", f"It has {', '.join(sorted(known))}."
        )


def _flags(served: Mapping[str, Any]) -> list[str]:
    flags = []
    for key, value in served.items():
        if value is None or value is False:
            continue
        flags += [f"--{key.replace('_', '-')}"] + ([] if value is True else [str(value)])
    return flags


def _kind(path: str) -> str:
    """What a file of a package is, as ModelPack sorts them."""
    top = path.partition("/")[0]
    return {"models": "weight", "code": "code", "wheels": "code", "sample.json": "dataset"}.get(
        top, "weight.config"
    )


@dataclass(frozen=True)
class Listed:
    """A name in the store and what it names."""

    name: str
    info: Info

    def to_json(self) -> dict[str, Any]:
        return {"ref": self.name, **self.info.to_json()}


@dataclass(frozen=True)
class Launch:
    """A command to run, and its variables."""

    argv: list[str]
    environ: dict[str, str]


class Serving:
    """A server in the background. Close it, or use it as a context manager. url: where it answers."""

    def __init__(self, launch: Launch) -> None:
        self._process = subprocess.Popen(launch.argv, env=launch.environ, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        said = self._process.stdout.readline().split()
        if said[:1] != ["ready"]:
            self.close()
            raise EnvironmentFailed(
                f"The server ended before it was ready (exit code {self._process.returncode}).",
                "Its log on standard error says why.",
            )
        self.url = said[1]

    def close(self) -> None:
        """Let it finish what is in flight, and end it."""
        self._process.terminate()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> Serving:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Opened:
    """A package whose workers run, answering calls from Python. Close it, or use it as a context manager."""

    def __init__(
        self,
        info: Info,
        folder: Path,
        environments: Mapping[str, Environment],
        accepted: bool,
        serve: Callable[..., Serving],
    ) -> None:
        from .package import crew

        self.info = info
        self._stack = ExitStack()
        pythons = {n: crew.clean(e.python, os.environ) for n, e in environments.items()}
        workers = self._stack.enter_context(crew.crew(folder, pythons, digest=info.digest, accepted=accepted))
        try:
            for stage in info.manifest.stages:
                workers.load(stage)
        except BaseException:
            self.close()
            raise
        self._engine = workers.engine(info.manifest.stages)
        self._serve = serve

    def serve(self, **options: Any) -> Serving:
        """Serve the package in the background; `port` 0 (the default) picks a free one."""
        return self._serve(self.info.digest, **options)

    def run(self, batch: Batch, want: frozenset[str] | None = None) -> Outcome:
        """Answer a batch that fits the signature; an outcome per row."""
        return self._engine.run(batch, want)

    def predict(self, rows: Any, *, partial: bool = False) -> Any:
        """Answer rows: a pandas DataFrame, an array, a dict of columns, or a list of records or of lists.

        Gives a DataFrame for a DataFrame (its index is kept), else a dict of arrays; where rows were dropped or expanded
        a dict also holds `row`, each answer's row. Raises BadInput or ModelFailed at the first failing row, unless
        `partial`, which leaves failing rows out.
        """
        import numpy as np

        from . import tables

        given = tables.fit(tables.from_python(rows), self.info.manifest.inputs, "The data")
        batch = given.with_rows(np.arange(len(given)))
        outcome = self.run(batch)
        if outcome.errors and not partial:
            row, said = min(outcome.errors.items())
            raise ModelFailed(
                f"Row {row}: {said}",
                "Give partial=True to leave failing rows out.",
                rows=dict(outcome.errors),
            )
        return tables.to_python(outcome.batch, rows)

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def pack(*models: str | Path, home: Path | str | None = None, **options: Any) -> Info:
    """`Mlpacker(home).pack(...)`."""
    return Mlpacker(home).pack(*models, **options)


def open(ref: str, *, home: Path | str | None = None, trust_code: bool = False) -> Opened:
    """`Mlpacker(home).open(ref)`."""
    return Mlpacker(home).open(ref, trust_code=trust_code)
