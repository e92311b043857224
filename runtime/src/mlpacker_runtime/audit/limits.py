"""How much a file may ask of us before anything in it is believed."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1024 * 1024


@dataclass(frozen=True)
class Limits:
    """Bounds on one file. A file beyond one of them is refused with the bound in the sentence.

    `bytes`: size after decompression. `ratio`: decompressed to compressed size, judged only above
    `ratio_from` bytes, because a sparse forest of a few kilobytes honestly shrinks a thousandfold.
    `opcodes`: pickle instructions, nested pickles included; also what bounds the memo.
    `marks`: open MARKs at one time. `members`: entries of a zip file. `text`: longest string looked into.
    `dictionary`: memory an xz or zstd stream may ask for.
    """

    bytes: int = 16 * 1024 * MIB
    ratio: int = 250
    ratio_from: int = 256 * MIB
    opcodes: int = 100_000_000
    marks: int = 10_000
    members: int = 200_000
    text: int = 4096
    dictionary: int = 512 * MIB


LIMITS = Limits()
