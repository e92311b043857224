"""Locking against an index of our own, whose uploads we decide: time passes there as we like (PEP 503, 691, 700)."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from mlpacker.environments import asof, interpreters, lock, resolve
from mlpacker.environments import index as index_answers
from mlpacker.environments.lock import Lock, Requirements
from mlpacker.environments.resolve import RuntimeRequirements
from mlpacker.environments.uv import Indexes
from mlpacker.errors import EnvironmentFailed

HERE = interpreters.this_platform()
SECRET = "hunter2"
pytestmark = pytest.mark.skipif(HERE != "x86_64-linux", reason="the wheels made here are of x86_64 Linux")


def wheel(name: str, version: str, requires: tuple[str, ...], tag: str) -> tuple[str, bytes]:
    """A small wheel: its file name and its bytes."""
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" + "".join(
        f"Requires-Dist: {text}\n" for text in requires
    )
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as into:
        into.writestr(f"{name}.py", f"VERSION = {version!r}\n# {tag}\n")
        into.writestr(f"{info}/METADATA", metadata)
        into.writestr(
            f"{info}/WHEEL", f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n"
        )
        into.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    return f"{name}-{version}-{tag}.whl", made.getvalue()


def metadata_of(data: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as opened:
        return opened.read(next(name for name in opened.namelist() if name.endswith("METADATA")))


class Index:
    """What is uploaded, and when; `dated` False is an index that does not tell upload times."""

    def __init__(self) -> None:
        self.files: dict[str, tuple[str, str, bytes]] = {}
        self.dated = True
        self.address = ""

    def upload(self, day: str, name: str, version: str, *requires: str, tag: str = "py3-none-any") -> None:
        filename, data = wheel(name, version, requires, tag)
        self.files[filename] = (name, f"{day}T12:00:00Z", data)

    def listing(self, name: str) -> bytes:
        files = [
            {
                "filename": filename,
                "url": f"{self.address}/files/{filename}",
                "hashes": {"sha256": hashlib.sha256(data).hexdigest()},
                "core-metadata": True,
                **({"upload-time": uploaded, "size": len(data)} if self.dated else {}),
            }
            for filename, (owner, uploaded, data) in self.files.items()
            if owner == name
        ]
        meta = {"api-version": "1.1"}
        return json.dumps({"meta": meta, "name": name, "files": files, "versions": []}).encode()


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Index]:
    made = Index()

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            _, kind, name = (self.path.rstrip("/")).split("/", 2)
            if name.endswith(".metadata"):
                self.reply(metadata_of(made.files[name.removesuffix(".metadata")][2]), "text/plain")
            elif kind == "files":
                self.reply(made.files[name][2], "application/octet-stream")
            elif any(owner == name for owner, _, _ in made.files.values()):
                self.reply(made.listing(name), "application/vnd.pypi.simple.v1+json")
            else:
                self.send_error(404)

        def reply(self, data: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        made.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        monkeypatch.setenv("UV_DEFAULT_INDEX", f"http://me:{SECRET}@127.0.0.1:{server.server_port}/simple")
        monkeypatch.setenv("UV_NO_CACHE", "1")
        yield made
        server.shutdown()
        thread.join()


@pytest.fixture
def stocked(index: Index) -> Index:
    """A model library of 2023 and the array library it needs; and what was released since."""
    index.upload("2022-01-01", "numpy", "1.20")
    index.upload("2023-03-01", "numpy", "1.24")
    index.upload("2023-03-09", "trees", "1.2", "numpy>=1.17")
    index.upload("2023-06-01", "numpy", "1.25")
    index.upload("2024-06-01", "trees", "1.5", "numpy>=1.17")
    index.upload("2024-07-01", "numpy", "2.0")
    return index


def locked(*requirements: str, runtime: RuntimeRequirements | None = None, **options: object) -> Lock:
    wanted = Requirements("3.11", requirements)
    return resolve.resolve(wanted, runtime or RuntimeRequirements(), here=HERE, platforms=(), **options)  # type: ignore[arg-type]


def versions(of: Lock) -> dict[str, str]:
    return {pin.name: pin.version for pin in of.platforms[HERE].pins}


def test_what_is_uploaded_later_changes_no_lock(stocked: Index):
    before = locked("trees==1.2")
    stocked.upload("2023-04-01", "numpy", "1.24.9")  # a newer version of what is needed
    stocked.upload(
        "2023-09-01", "numpy", "1.24", tag="cp311-cp311-manylinux_2_17_x86_64"
    )  # another wheel of it
    stocked.upload(
        "2023-09-01", "trees", "1.2", "numpy>=1.17", tag="cp311-cp311-manylinux_2_17_x86_64"
    )  # of the pin
    assert lock.encode(locked("trees==1.2")) == lock.encode(before)
    assert before.as_of == date(2023, 3, 12)
    assert versions(before) == {"numpy": "1.24", "trees": "1.2"}


def test_wheels_of_the_first_days_all_belong_to_the_release(stocked: Index):
    stocked.upload("2023-03-10", "trees", "1.2", "numpy>=1.17", tag="cp311-cp311-manylinux_2_17_x86_64")
    [pin] = [pin for pin in locked("trees==1.2").platforms[HERE].pins if pin.name == "trees"]
    assert len(pin.hashes) == 2


def test_a_newer_pin_beside_an_older_one_does_not_bring_the_newer_ones_numpy(stocked: Index):
    stocked.upload("2025-01-01", "forest", "3.0", "numpy")
    assert versions(locked("trees==1.2", "forest==3.0")) == {"numpy": "1.24", "trees": "1.2", "forest": "3.0"}


def test_a_pin_that_needs_newer_things_moves_the_date_just_far_enough(stocked: Index):
    stocked.upload("2023-07-01", "forest", "3.0", "numpy>=1.25")
    made = locked("trees==1.2", "forest==3.0")
    assert (made.as_of, versions(made)["numpy"]) == (date(2023, 7, 4), "1.25")


def test_an_old_pin_without_numpy_does_not_age_the_others(stocked: Index):
    stocked.upload("2014-01-01", "numpy", "1.18")
    stocked.upload("2015-01-01", "tiny", "0.1")
    assert versions(locked("tiny==0.1", "trees==1.5"))["numpy"] == "1.25"


def test_the_runtimes_own_needs_are_of_the_release_and_leave_the_pins_alone(stocked: Index):
    stocked.upload("2022-05-01", "server", "0.9")
    stocked.upload("2025-05-01", "server", "3.1", "numpy>=1.20")
    made = locked("trees==1.2", runtime=RuntimeRequirements(("server>=0.5", "numpy>=1.20")))
    assert versions(made) == {"numpy": "1.24", "trees": "1.2", "server": "3.1"}


def test_pins_and_the_runtime_that_meet_only_together_are_resolved_together(stocked: Index):
    stocked.upload("2025-05-01", "server", "3.1", "numpy>=1.25")
    made = locked("trees==1.2", runtime=RuntimeRequirements(("server>=3",)))
    assert versions(made)["server"] == "3.1"
    assert versions(made)["trees"] == "1.2"


def test_pins_that_can_not_live_beside_the_runtime_are_an_error(stocked: Index):
    stocked.upload("2025-05-01", "server", "3.1", "trees>=1.3")
    with pytest.raises(EnvironmentFailed, match=r"trees"):
        locked("trees==1.2", runtime=RuntimeRequirements(("server>=3",)))


def test_a_pin_newer_than_the_release_is_still_found(stocked: Index):
    stocked.upload("2031-01-01", "trees", "9.0", "numpy>=2")
    assert versions(locked("trees==9.0")) == {"numpy": "2.0", "trees": "9.0"}


def test_an_index_that_tells_no_times_is_pinned_as_of_today_and_said_so(stocked: Index):
    stocked.dated = False
    told: list[str] = []
    made = locked("trees==1.2", progress=told.append)
    assert made.as_of is None
    assert versions(made)["numpy"] == "2.0"
    assert any("no upload times" in text for text in told)


def test_what_was_first_released_after_mlpacker_itself_is_found(stocked: Index):
    stocked.upload("2031-01-01", "young", "0.1", "numpy>=1.17")
    made = locked("young")
    assert (made.as_of, versions(made)["young"]) == (date(2031, 1, 4), "0.1")


def test_wheels_of_a_folder_need_no_upload_time_and_what_they_need_is_of_the_release(
    stocked: Index, tmp_path: Path
):
    for name, data in (
        wheel("ore", "0.3", ("numpy", "mill"), "py3-none-any"),
        wheel("mill", "7", (), "py3-none-any"),
    ):
        (tmp_path / name).write_bytes(data)
    stocked.upload("2031-01-01", "numpy", "9.0")
    made = locked("ore==0.3", carried=tmp_path)
    assert made.as_of == asof.RELEASED
    assert versions(made) == {"ore": "0.3", "mill": "7", "numpy": "2.0"}
    assert [pin.wheel for pin in made.platforms[HERE].pins if pin.name != "numpy"] == [
        "mill-7-py3-none-any.whl",
        "ore-0.3-py3-none-any.whl",
    ]


def test_a_date_told_is_the_date_taken(stocked: Index):
    wanted = Requirements("3.11", ("trees==1.2",), as_of=date(2022, 6, 1))
    made = resolve.resolve(wanted, RuntimeRequirements(), here=HERE, platforms=())
    assert (made.as_of, versions(made)["numpy"]) == (date(2022, 6, 1), "1.20")


def test_neither_addresses_nor_passwords_are_in_a_lock_or_an_error(stocked: Index):
    assert b"127.0.0.1" not in lock.encode(locked("trees==1.2"))
    with pytest.raises(EnvironmentFailed) as caught:
        locked("nothing-like-it==1.0")
    assert SECRET not in str(caught.value)


def test_a_machine_set_up_for_pip_is_set_up_for_us(stocked: Index, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("UV_DEFAULT_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", f"{stocked.address}/simple")
    assert versions(locked("trees==1.2"))["trees"] == "1.2"


def test_wheels_for_newer_systems_only_are_locked_where_this_one_is_newer(stocked: Index):
    glibc = index_answers.glibc()
    if glibc < (2, 34):
        pytest.skip("this system's C library is older than the wheel")
    stocked.upload("2024-01-01", "modern", "1.0", tag="cp311-cp311-manylinux_2_34_x86_64")
    assert versions(locked("modern==1.0"))["modern"] == "1.0"


def test_an_index_that_stops_answering_is_never_taken_for_a_missing_platform(
    stocked: Index, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    asking = resolve.ask

    def stopped(
        question: index_answers.Question,
        asked: tuple[str, ...],
        platform: str | None,
        *rest: Any,
        **more: Any,
    ) -> Any:
        if platform == "arm64-macos":
            monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
        return asking(question, asked, platform, *rest, **more)

    monkeypatch.setattr(resolve, "ask", stopped)
    wanted = Requirements("3.11", ("trees==1.2",))
    with pytest.raises(EnvironmentFailed, match="Failed to fetch"):
        resolve.resolve(wanted, RuntimeRequirements(), here=HERE, platforms=("arm64-macos",))


def test_an_index_may_be_added_for_one_call(stocked: Index, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
    made = locked("trees==1.2", indexes=Indexes(index=(f"{stocked.address}/simple",)))
    assert versions(made)["trees"] == "1.2"
