from __future__ import annotations

from datetime import date

import pytest

from mlpacker.environments.lock import (
    Lock,
    Pin,
    PlatformLock,
    decode,
    encode,
    pinned,
    pins_for,
    requirement,
    with_libraries,
)
from mlpacker.errors import BadDescription, EnvironmentFailed

NUMPY = Pin("numpy", "1.24.2", ("sha256:aa",))
ARROW = Pin("pyarrow", "26.0.0", ("sha256:bb",), extras=("parquet",))
LINUX = PlatformLock("locked", pins=(NUMPY, ARROW))
MACOS = PlatformLock("unavailable", reason="no wheel of numpy==1.24.2")


def lock(**changes: object) -> Lock:
    told: dict = {
        "schema": 1,
        "python": "3.11",
        "as_of": date(2023, 3, 12),
        "platforms": {"x86_64-linux": LINUX, "arm64-macos": MACOS},
        "extras": {"parquet": "together"},
    }
    return Lock(**(told | changes))


def test_a_lock_reads_back_as_it_was_written():
    assert decode(encode(lock())) == lock()


def test_equal_locks_give_equal_bytes_whatever_order_they_were_made_in():
    other = lock(platforms={"arm64-macos": MACOS, "x86_64-linux": LINUX})
    assert encode(other) == encode(lock())


def test_an_unknown_field_is_refused():
    with pytest.raises(BadDescription, match="unknown field"):
        decode(encode(lock()).replace(b'"as_of"', b'"asof"'))


def test_a_lock_of_a_later_kind_is_refused():
    with pytest.raises(BadDescription, match="kind 2"):
        decode(encode(lock(schema=2)))


def test_bytes_that_are_no_lock_are_refused():
    with pytest.raises(BadDescription, match="can't be read"):
        decode(b"\xff{")


def test_pins_of_an_extra_are_installed_only_when_asked_for():
    assert pins_for(lock(), "x86_64-linux") == (NUMPY,)
    assert pins_for(lock(), "x86_64-linux", ("parquet",)) == (NUMPY, ARROW)


def test_an_unavailable_platform_says_why():
    with pytest.raises(EnvironmentFailed, match=r"arm64-macos \(no wheel of numpy==1.24.2\)"):
        pins_for(lock(), "arm64-macos")


def test_a_platform_that_was_never_asked_for_is_an_error():
    with pytest.raises(EnvironmentFailed, match="riscv64-linux"):
        pins_for(lock(), "riscv64-linux")


def test_an_extra_that_lives_apart_is_not_installed_here():
    apart = lock(extras={"parquet": "apart: no wheel of pyarrow==26.0.0"})
    with pytest.raises(EnvironmentFailed, match="no wheel of pyarrow"):
        pins_for(apart, "x86_64-linux", ("parquet",))


def test_libraries_are_sorted_into_the_lock():
    assert with_libraries(lock(), ("libz2.so", "liba.so")).libraries == ("liba.so", "libz2.so")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("scikit_learn==1.2.2", ("scikit-learn", "1.2.2")),
        ("pandas[parquet] == 2.2.3", ("pandas", "2.2.3")),
        ("torch===2.1.0+cpu", ("torch", "2.1.0+cpu")),
        ("numpy==1.24.*", None),
        ("numpy>=1.24", None),
        ("numpy", None),
    ],
)
def test_only_one_exact_version_is_a_pin(text: str, found: tuple[str, str] | None):
    assert pinned(text) == found


def test_what_is_no_requirement_is_named():
    with pytest.raises(BadDescription, match="'not a requirement!'"):
        requirement("not a requirement!")
