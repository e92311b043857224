"""`python -m mlpacker_runtime serve …`: serve a package. What a launcher runs inside the pipeline's own environment."""

from __future__ import annotations

import sys

COMMANDS = ("serve",)


def main(argv: list[str]) -> int:
    if not argv or argv[0] not in COMMANDS:
        print(f"usage: python -m mlpacker_runtime {{{','.join(COMMANDS)}}} …", file=sys.stderr)  # noqa: T201
        return 2
    from .serve import main as serve

    return serve(argv[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
