"""What a stream's ends guarantee: settings on standard input, one JSON object on standard output. Run in the stream's environment."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

from .. import brokers
from ..errors import MlpackerError
from . import settings as settings_of
from .settings import Settings

PROMISE = "At least once: every row is answered or a dead letter, and is repeated rather than lost."


def explain(settings: Settings) -> dict[str, Any]:
    """The guarantee of each end, and what of the whole they come to."""
    ends = {
        name: _end(text, "source" if name == "source" else "sink", settings)
        for name, text in settings_of.addresses(settings).items()
    }
    source = settings_of.placed(settings.source, settings)
    if brokers.get(source.scheme).journalled:
        ends["source"]["holds"].append(
            "Each message is written to this machine's disk before the broker is told that we have it: from then on the promise "
            "rests on that disk."
        )
    if settings.spool:
        ends["sink"]["holds"].append(
            f"While it is away, up to {settings.spool:,} bytes wait on this machine's disk; at the bound: {settings.spool_full}."
        )
    order = "Order is kept for each key." if settings.ordered else "No order is kept: readers compete."
    return {"promise": f"{PROMISE} {order}", **ends}


def _end(text: str, role: str, settings: Settings) -> dict[str, Any]:
    address = settings_of.placed(text, settings)
    told = brokers.get(address.scheme).explain(address, role)
    return {"address": text, "holds": list(told.holds), "settings": [asdict(s) for s in told.settings]}


def main() -> int:
    try:
        told = explain(settings_of.from_json(sys.stdin.read()))
    except MlpackerError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    json.dump(told, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
