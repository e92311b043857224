"""Environments with real interpreters, a real index and real wheels. uv's cache makes a second run quick."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from mlpacker.environments import asof, captured, install, interpreters, libraries, lock, resolve, wheels
from mlpacker.environments.lock import Lock, Requirements
from mlpacker.environments.resolve import RuntimeRequirements
from mlpacker.environments.runtime_wheel import RuntimeWheel, read, runtime_wheel
from mlpacker.environments.uv import Indexes
from mlpacker.errors import EnvironmentFailed

HERE = interpreters.this_platform()
NOWHERE = "http://127.0.0.1:9/simple"  # nothing listens on the discard port

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(HERE not in lock.PLATFORMS, reason=f"no wheels are locked for {HERE}"),
]


def needs(python: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(interpreters.find(python) is None, reason=f"no Python {python} here")


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> RuntimeWheel:
    return runtime_wheel(tmp_path_factory.mktemp("runtime"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home of environments")  # with a space in it


@pytest.fixture(scope="module")
def needed(runtime: RuntimeWheel) -> RuntimeRequirements:
    return resolve.runtime_requirements(runtime.path)


def python_here() -> str:
    return ".".join(str(part) for part in sys.version_info[:2])


def small(needed: RuntimeRequirements, *requirements: str) -> Lock:
    """A lock of a few small wheels, for this Python and platform alone."""
    wanted = Requirements(python_here(), requirements)
    return resolve.resolve(wanted, needed, here=HERE, platforms=())


def run(python: Path, code: str) -> str:
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def versions(locked: Lock, platform: str = HERE) -> dict[str, str]:
    return {pin.name: pin.version for pin in locked.platforms[platform].pins}


@needs("3.11")
def test_what_a_pin_needs_is_of_the_pins_own_time(home, runtime, needed):
    locked = resolve.resolve(Requirements("3.11", ("scikit-learn==1.2.2",)), needed, here=HERE)
    assert versions(locked)["numpy"] == "1.24.2"
    assert str(locked.as_of) == "2023-03-12"
    assert {locked.platforms[name].status for name in lock.PLATFORMS} == {"locked"}
    made = install.ensure(locked, home, runtime)
    code = "import sklearn.ensemble, mlpacker_runtime, numpy; print(sklearn.__version__, numpy.__version__)"
    assert run(made.python, code) == "1.2.2 1.24.2"


@needs("3.10")
def test_a_model_of_2021_gets_the_environment_of_2021_and_the_runtime_of_today(home, runtime, needed):
    locked = resolve.resolve(Requirements("3.10", ("scikit-learn==1.0.2",)), needed, here=HERE, platforms=())
    assert versions(locked)["numpy"].startswith("1.21.")
    made = install.ensure(locked, home, runtime, extras=("parquet",))
    code = "import sklearn.svm, msgspec, httptools, pyarrow, numpy; print(pyarrow.array(numpy.ones(2)).to_numpy().sum())"
    assert run(made.python, code) == "2.0"


def test_locking_twice_gives_the_same_bytes(needed):
    first, second = (small(needed, "joblib==1.3.2", "threadpoolctl") for _ in range(2))
    assert lock.encode(first) == lock.encode(second)


def test_the_oldest_pin_that_needs_numpy_sets_the_date(needed):
    wanted = Requirements("3.11", ("scikit-learn==1.2.2", "xgboost==3.0.2", "cloudpickle==1.6.0"))
    locked = resolve.resolve(wanted, needed, here=HERE, platforms=())
    assert str(locked.as_of) == "2023-03-12"
    assert versions(locked)["numpy"] == "1.24.2"


def test_no_requirements_at_all_are_resolved_as_of_the_release(needed):
    assert small(needed).as_of == asof.RELEASED


def test_a_range_of_versions_is_resolved_as_of_the_version_it_means(needed):
    locked = resolve.resolve(Requirements("3.11", ("scikit-learn<1.3",)), needed, here=HERE, platforms=())
    assert str(locked.as_of) == "2023-03-12"


def test_a_platform_without_a_wheel_is_recorded_and_fails_nothing(needed):
    wanted = Requirements("3.10", ("catboost==1.0.6",))
    if HERE == "aarch64-linux":
        pytest.skip("that wheel is missing here, of all places")
    locked = resolve.resolve(wanted, needed, here=HERE, platforms=(HERE, "aarch64-linux"))
    assert locked.platforms[HERE].status == "locked"
    assert locked.platforms["aarch64-linux"].reason == "no wheel of catboost==1.0.6"


def test_the_packing_platform_must_lock(needed):
    with pytest.raises(EnvironmentFailed, match=r"can't be locked for Python 3.12 .*scikit-learn==1.0.2"):
        resolve.resolve(Requirements("3.12", ("scikit-learn==1.0.2",)), needed, here=HERE)


def test_requirements_that_contradict_each_other_are_told_in_uvs_words(needed):
    with pytest.raises(EnvironmentFailed, match=r"pandas==2.2.3 .*numpy"):
        small(needed, "pandas==2.2.3", "numpy==1.21.0")


def test_an_extra_that_can_not_live_beside_the_pins_is_recorded_with_the_reason(needed):
    odd = RuntimeRequirements(needed.requirements, {"odd": ("joblib<1.0",), "even": ("joblib>=1.0",)})
    locked = small(odd, "joblib==1.3.2")
    assert locked.extras["even"] == "together"
    assert locked.extras["odd"].startswith("apart: ")
    with pytest.raises(EnvironmentFailed, match="odd can't live"):
        lock.pins_for(locked, HERE, ("odd",))


def test_pins_of_extras_are_marked_with_all_that_need_them(needed):
    two = RuntimeRequirements(needed.requirements, {"a": ("six==1.16.0",), "b": ("six",)})
    [pin] = [pin for pin in small(two).platforms[HERE].pins if pin.name == "six"]
    assert (pin.version, pin.extras) == ("1.16.0", ("a", "b"))


def test_an_index_that_does_not_answer_is_named_with_the_next_step(needed, monkeypatch):
    monkeypatch.setenv("UV_DEFAULT_INDEX", NOWHERE)
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    monkeypatch.setenv("UV_NO_CACHE", "1")
    with pytest.raises(EnvironmentFailed, match=r"Failed to fetch.*Check the network or the index"):
        small(needed, "joblib==1.3.2")


# --- Pythons ----------------------------------------------------------------------------------------------------


def test_the_trained_python_is_taken_where_the_pins_have_wheels_for_it():
    assert (
        resolve.choose_python(("scikit-learn==1.2.2",), "3.10", here=HERE, available=("3.10", "3.11"))
        == "3.10"
    )


def test_without_it_the_newest_python_of_the_pins_time_is_taken():
    known = ("3.10", "3.11", "3.12", "3.13")
    assert resolve.choose_python(("scikit-learn==1.2.2",), None, here=HERE, available=known) == "3.11"
    assert resolve.choose_python(("scikit-learn==1.0.2",), "3.8", here=HERE, available=known) == "3.10"


def test_wheels_for_any_python_do_not_take_a_python_newer_than_the_pins():
    assert resolve.choose_python(("lightgbm==3.3.5",), None, here=HERE, available=("3.11", "3.13")) == "3.11"


def test_the_python_that_is_missing_is_named():
    with pytest.raises(EnvironmentFailed, match=r"scikit-learn==1.0.2 needs Python 3.10; found here: 3.12"):
        resolve.choose_python(("scikit-learn==1.0.2",), None, here=HERE, available=("3.12",))


def test_bytecode_of_a_python_that_is_not_here_is_refused():
    with pytest.raises(EnvironmentFailed, match=r"bytecode of Python 3.8"):
        resolve.choose_python((), "3.8", here=HERE, available=("3.12",), must_be_trained=True)


def test_pins_older_than_the_runtimes_oldest_python_are_told_so():
    with pytest.raises(EnvironmentFailed, match=r"Python 3.9, which is older than what mlpacker runs on"):
        resolve.choose_python(("scikit-learn==0.24.2",), None, here=HERE, available=("3.12",))


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training environment: an editable project, a wheel by path, and a small package of the index."""
    folder = tmp_path_factory.mktemp("training")
    project(folder / "mine")
    uv = [sys.executable, "-m", "uv"]
    subprocess.run(
        [*uv, "venv", "-q", "--no-project", "--python", sys.executable, folder / "venv"], check=True
    )
    into = ["--python", folder / "venv/bin/python"]
    subprocess.run([*uv, "pip", "install", "-q", *into, "pyyaml==6.0.2", "-e", folder / "mine"], check=True)
    return folder / "venv"


def project(folder: Path) -> Path:
    (folder / "ore").mkdir(parents=True)
    (folder / "ore" / "__init__.py").write_text("GRADE = 7\n")
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        '[project]\nname = "ore"\nversion = "0.3"\n'
    )
    return folder


def test_an_interpreter_tells_what_it_has_without_importing_it(venv):
    found = interpreters.installed(interpreters.inspect(venv / "bin/python"))
    assert found.versions["pyyaml"] == "6.0.2"
    assert found.top_level["yaml"] == "pyyaml"
    mine = found.distributions["ore"]
    assert (mine.version, mine.origin) == ("0.3", "editable")
    assert mine.source.startswith("file://")


def test_the_active_environment_is_the_training_interpreter(venv):
    environ = {"VIRTUAL_ENV": str(venv), "PATH": os.environ["PATH"]}
    assert interpreters.training(None, environ).prefix == venv
    assert interpreters.training(Path(sys.executable), environ).prefix == Path(sys.prefix)


def test_an_interpreter_that_has_what_the_model_needs_comes_before_the_active_one(venv):
    empty = interpreters.training(None, {"PATH": str(venv / "bin")}, wanted=("pytest",))
    assert empty.prefix == Path(sys.prefix)


def test_what_is_no_interpreter_is_named(tmp_path):
    (tmp_path / "python").write_text("#!/bin/sh\nexit 3\n")
    (tmp_path / "python").chmod(0o755)
    with pytest.raises(EnvironmentFailed, match="does not run as a Python interpreter"):
        interpreters.training(tmp_path / "python", {})


@pytest.mark.parametrize("python", ["3.6", "3.7", "3.8", "3.13"])
def test_interpreters_old_and_new_can_be_asked(python):
    found = interpreters.find(python)
    if found is None:
        pytest.skip(f"no Python {python} here")
    assert "pip" in interpreters.installed(found).versions


# --- making environments ----------------------------------------------------------------------------------------


def test_an_environment_is_made_once_and_found_again_at_once(home, runtime, needed, monkeypatch):
    locked, told = small(needed, "joblib==1.3.2"), []
    made = install.ensure(locked, home, runtime)
    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "Popen", None)  # nothing is run, neither uv nor an interpreter
        assert install.ensure(locked, home, runtime, progress=told.append) == made
    assert told == []
    assert install.size(made.folder) > 10_000_000
    assert list(made.folder.rglob("joblib/__pycache__/*.pyc")), "bytecode is compiled"


def test_with_a_new_runtime_the_packages_are_taken_over(tmp_path, runtime, needed):
    locked, told = small(needed, "six==1.16.0"), []
    first = install.ensure(locked, tmp_path, runtime)
    newer = tmp_path / runtime.path.name
    with zipfile.ZipFile(runtime.path) as old, zipfile.ZipFile(newer, "w") as new:
        for item in old.infolist():
            new.writestr(item, old.read(item))
        new.comment = b"another build"
    second = install.ensure(locked, tmp_path, read(newer), progress=told.append)
    assert second.key != first.key
    assert told == ["making an environment: the packages are here, the runtime is new"]
    shared = [next(made.folder.rglob("six.py")).stat().st_ino for made in (first, second)]
    assert shared[0] == shared[1]
    install.prune(tmp_path, {second.key})
    assert run(second.python, "import six, mlpacker_runtime; print(six.__version__)") == "1.16.0"


def test_an_environment_whose_interpreter_is_gone_is_made_anew(tmp_path, runtime, needed):
    locked = small(needed, "six==1.16.0")
    made = install.ensure(locked, tmp_path, runtime)
    made.python.unlink()
    made.python.symlink_to(tmp_path / "gone")
    assert run(install.ensure(locked, tmp_path, runtime).python, "print(1)") == "1"


def test_callers_at_the_same_time_get_one_environment(tmp_path, runtime, needed):
    locked, told = small(needed, "six==1.16.0"), []
    with ThreadPoolExecutor() as pool:
        asked = [
            pool.submit(install.ensure, locked, tmp_path, runtime, progress=told.append) for _ in range(3)
        ]
        assert len({one.result() for one in asked}) == 1
    assert len([text for text in told if text.startswith("making")]) == 1


def test_a_kill_in_between_leaves_no_half_environment_in_use(tmp_path, runtime, needed):
    locked = small(needed, "six==1.16.0")
    (tmp_path / "lock").write_bytes(lock.encode(locked))
    code = f"""
from pathlib import Path
from mlpacker.environments import asof, captured, install, lock
from mlpacker.environments.runtime_wheel import read
locked = lock.decode(Path({str(tmp_path / "lock")!r}).read_bytes())
install.ensure(locked, Path({str(tmp_path)!r}), read(Path({str(runtime.path)!r})), progress=lambda text: print("go", flush=True))
"""
    for _ in range(20):
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
        child.stdout.readline()
        while not list(tmp_path.glob("envs/*/bin/python")):
            time.sleep(0.001)
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
        if not list(tmp_path.glob("envs/*/.mlpacker-complete")):
            break
        install.prune(tmp_path, ())  # it was quicker than we
    else:
        pytest.fail("killed too late each time to prove anything")
    assert (
        run(install.ensure(locked, tmp_path, runtime).python, "import six; print(six.__version__)")
        == "1.16.0"
    )


def test_a_wheel_with_other_bytes_than_the_lock_names_is_refused(tmp_path, runtime, needed):
    locked = small(needed, "six==1.16.0")
    pins = tuple(
        msgspec.structs.replace(pin, hashes=("sha256:" + "0" * 64,)) if pin.name == "six" else pin
        for pin in locked.platforms[HERE].pins
    )
    wrong = msgspec.structs.replace(locked, platforms={HERE: lock.PlatformLock("locked", pins=pins)})
    with pytest.raises(EnvironmentFailed, match="six"):
        install.ensure(wrong, tmp_path, runtime)
    assert not list(tmp_path.glob("envs/*/.mlpacker-complete"))


def test_a_runtime_with_other_bytes_is_refused(tmp_path, runtime, needed):
    with pytest.raises(EnvironmentFailed, match="not the runtime that belongs to this mlpacker"):
        install.ensure(small(needed), tmp_path, RuntimeWheel(runtime.path, "0" * 64, runtime.version))


def test_an_interpreter_that_is_not_here_is_named(tmp_path, runtime, needed):
    alien = msgspec.structs.replace(small(needed), python="3.99")
    with pytest.raises(
        EnvironmentFailed, match=r"needs Python 3.99, and none was found here. Install Python 3.99"
    ):
        install.ensure(alien, tmp_path, runtime)


# --- wheels that travel -----------------------------------------------------------------------------------------


def test_saved_wheels_make_the_environment_with_no_index_reachable(tmp_path, runtime, needed, monkeypatch):
    locked = small(needed, "joblib==1.3.2")
    saved = wheels.download_wheels(locked, HERE, tmp_path / "saved wheels", runtime)
    assert len(saved) == len(lock.pins_for(locked, HERE)) + 1
    monkeypatch.setenv("UV_DEFAULT_INDEX", NOWHERE)
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "an empty cache"))
    made = install.ensure(locked, tmp_path, runtime, wheels=tmp_path / "saved wheels")
    assert run(made.python, "import joblib, mlpacker_runtime; print(joblib.__version__)") == "1.3.2"


def test_wheels_of_another_platform_can_be_saved_here(tmp_path, runtime, needed):
    other = "arm64-macos" if HERE != "arm64-macos" else "x86_64-linux"
    wanted = Requirements("3.12", ("pyyaml==6.0.2",))
    locked = resolve.resolve(wanted, RuntimeRequirements(), here=HERE, platforms=(HERE, other))
    [path] = [
        path
        for path in wheels.download_wheels(locked, other, tmp_path, runtime)
        if "yaml" in path.name.lower()
    ]
    assert ("macosx" if other == "arm64-macos" else "x86_64") in path.name


def test_a_project_of_ones_own_is_built_and_carried(tmp_path, runtime, needed, monkeypatch):
    source, carried = project(tmp_path / "source" / "ore"), tmp_path / "carried"
    interpreter = interpreters.find(python_here())
    wheel = wheels.build_local(source.as_uri(), carried, interpreter)
    assert wheel.name.startswith("ore-0.3-")
    assert sorted(path.name for path in source.iterdir()) == ["ore", "pyproject.toml"], (
        "nothing is left in the source"
    )
    again = wheels.build_local(source, tmp_path / "again", interpreter)
    assert hashlib.sha256(again.read_bytes()).digest() == hashlib.sha256(wheel.read_bytes()).digest()

    wanted = Requirements(python_here(), ("ore==0.3", "six==1.16.0"))
    locked = resolve.resolve(wanted, needed, here=HERE, platforms=(HERE, "arm64-macos"), carried=carried)
    assert {pin.wheel for pin in locked.platforms["arm64-macos"].pins} == {None, wheel.name}
    made = install.ensure(locked, tmp_path, runtime, wheels=carried)
    assert run(made.python, "import ore; print(ore.GRADE)") == "7"


def test_what_no_index_has_is_carried_and_the_rest_is_left_as_it_is(tmp_path, venv):
    training = interpreters.inspect(venv / "bin/python")
    [mine] = captured.strangers(interpreters.installed(training), {"ore", "pyyaml"})
    asked = ("ore==0.3", "pyyaml==6.0.2", "docopt==0.6.2")
    told = wheels.carry(asked, tmp_path, training, sources={mine.name: mine.source}, allow_build=True)
    assert told == asked
    assert sorted(path.name.partition("-")[0] for path in tmp_path.glob("*.whl")) == ["docopt", "ore"]


def test_an_address_becomes_a_pinned_wheel(tmp_path):
    source = project(tmp_path / "my project")
    git = ["git", "-C", source, "-c", "user.name=me", "-c", "user.email=me@example.com"]
    for words in (("init", "-q"), ("add", "."), ("commit", "-qm", "first")):
        subprocess.run([*git, *words], check=True)
    told = wheels.carry(
        (f"ore @ git+{source.as_uri()}",), tmp_path / "carried", interpreters.inspect(Path(sys.executable))
    )
    assert told == ("ore==0.3",)


def test_a_project_that_does_not_build_is_named_with_its_last_words(tmp_path):
    source = project(tmp_path / "ore")
    (source / "pyproject.toml").write_text('[project]\nname = "ore"\n')
    with pytest.raises(EnvironmentFailed, match=r"No wheel could be built of .*ore"):
        wheels.build_local(source, tmp_path / "out", interpreters.find(python_here()))


# --- CPU variants and shared libraries --------------------------------------------------------------------------

FIT = """
import numpy, xgboost
data = xgboost.DMatrix(numpy.arange(8.0).reshape(4, 2), label=[0, 1, 0, 1])
print(len(xgboost.train({}, data, 1).predict(data)))
"""


@pytest.mark.skipif(HERE != "x86_64-linux", reason="plain xgboost brings NCCL on x86_64 Linux alone")
@pytest.mark.parametrize(("version", "name"), [("2.1.4", "xgboost-cpu"), ("1.7.6", "xgboost")])
def test_xgboost_comes_without_libraries_for_accelerators(home, runtime, needed, version, name):
    wanted = Requirements("3.11", (f"xgboost=={version}",))
    locked = resolve.resolve(wanted, needed, here=HERE, platforms=())
    assert versions(locked)[name] == version
    assert not [pin for pin in versions(locked) if pin.startswith("nvidia")]
    if name == "xgboost-cpu":  # the other has 200 MB, and is seen to run without NCCL: it never asks for it
        assert run(install.ensure(locked, home, runtime).python, FIT) == "4"


@pytest.mark.skipif(not HERE.endswith("linux"), reason="ELF is Linux's")
def test_shared_libraries_that_no_wheel_ships_are_found(home, runtime, needed):
    locked = resolve.resolve(Requirements("3.11", ("lightgbm==4.5.0",)), needed, here=HERE, platforms=())
    made = install.ensure(locked, home, runtime)
    wanted = libraries.needed_libraries(made.folder)
    assert wanted == ("libgomp.so.1",)
    assert libraries.missing_libraries(made.python, ("libnowhere.so.3",)) == ("libnowhere.so.3",)


def test_a_wheel_with_a_name_of_another_is_not_taken_for_it(tmp_path, runtime, needed):
    locked = small(needed, "six==1.16.0")
    with zipfile.ZipFile(tmp_path / "six-1.16.0-py2.py3-none-any.whl", "w") as made:
        made.writestr("six.py", "print('not six')")
    saved = wheels.download_wheels(
        locked, HERE, tmp_path / "into", runtime, indexes=Indexes(find_links=(str(tmp_path),))
    )
    [six] = [path for path in saved if path.name.startswith("six")]
    [pin] = [pin for pin in locked.platforms[HERE].pins if pin.name == "six"]
    assert f"sha256:{hashlib.sha256(six.read_bytes()).hexdigest()}" in pin.hashes
