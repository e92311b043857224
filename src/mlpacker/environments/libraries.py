"""Shared libraries that wheels need and no wheel ships: LightGBM wants the system's `libgomp.so.1`.

ELF files say what they need in their dynamic section (DT_NEEDED; System V ABI, chapter 5). What the same environment
holds, and what every Linux that runs manylinux wheels has (PEP 600), is not listed.
"""

from __future__ import annotations

import mmap
import re
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

_DYNAMIC, _STRTAB, _NEEDED, _LOAD = 2, 5, 1, 1
# PEP 600's list for manylinux_2_28, less libgomp-like ones it never had.
_EVERYWHERE = re.compile(
    r"^(ld-linux.*|libc|libm|libdl|librt|libpthread|libutil|libresolv|libnsl|libcrypt|libanl|libmvec|libgcc_s|libstdc\+\+"
    r"|libz|libexpat|libatomic|linux-vdso|libpython3.*)\.so(\.\d+)*$"
)
# Drivers and accelerators: used when the machine has them, and their absence is not an error of the package.
_OPTIONAL = re.compile(
    r"^lib(cuda|nv|cu[a-z]+|nccl|OpenCL|GL|EGL|hsa|amdhip|rocm|tbb|X|xcb|Xrender|ibverbs|mlx5|rdmacm|efa)"
)
_TRY = """
import ctypes, sys
for name in sys.argv[1:]:
    try:
        ctypes.CDLL(name)
    except OSError:
        print(name)
"""


def needed_libraries(folder: Path) -> tuple[str, ...]:
    """Names of the shared libraries that the environment in `folder` needs from the system, sorted."""
    needed, held = set(), set()
    for path in folder.rglob("*.so*"):
        if path.is_file() and not path.is_symlink():
            held.add(path.name)
            needed |= set(needed_by(path))
    wanted = needed - held
    return tuple(sorted(name for name in wanted if not _EVERYWHERE.match(name) and not _OPTIONAL.match(name)))


def missing_libraries(python: Path, libraries: tuple[str, ...]) -> tuple[str, ...]:
    """Those of `libraries` that the interpreter `python` can't load on this machine."""
    if not libraries:
        return ()
    done = subprocess.run(
        [str(python), "-I", "-c", _TRY, *libraries], capture_output=True, text=True, timeout=60, check=True
    )
    return tuple(done.stdout.split())


def needed_by(path: Path) -> tuple[str, ...]:
    """DT_NEEDED of an ELF file (64 bit); empty for anything else."""
    try:
        with open(path, "rb") as file:
            if file.read(6) not in (b"\x7fELF\x02\x01", b"\x7fELF\x02\x02"):
                return ()
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:  # some have hundreds of MB
                return tuple(_needed(data))
    except (OSError, struct.error, StopIteration, RuntimeError, OverflowError, ValueError):
        return ()


def _needed(data: mmap.mmap) -> Iterator[str]:
    order = "<" if data[5] == 1 else ">"
    start, size, count = (
        *struct.unpack_from(f"{order}Q", data, 32),
        *struct.unpack_from(f"{order}HH", data, 54),
    )
    segments = [struct.unpack_from(f"{order}IIQQQQQQ", data, start + size * at) for at in range(count)]
    loaded = [
        (address, length, offset) for kind, _, offset, address, _, length, _, _ in segments if kind == _LOAD
    ]
    for kind, _, offset, _, _, length, _, _ in segments:
        if kind == _DYNAMIC:
            entries = [struct.unpack_from(f"{order}QQ", data, offset + at) for at in range(0, length, 16)]
            table = next(value for tag, value in entries if tag == _STRTAB)
            strings = next(at + table - first for first, size, at in loaded if first <= table < first + size)
            for tag, value in entries:
                if tag == _NEEDED:
                    begin = strings + value
                    yield data[begin : data.find(b"\0", begin)].decode("ascii")
