"""A program of one question: an object on standard input, an object on standard output. Run where the brokers' clients are."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from ..errors import MlpackerError


def main(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> int:
    """The exit code. An error of ours goes out as `{"error": …}`, for whoever asked to raise."""
    try:
        told = answer(json.load(sys.stdin))
    except MlpackerError as error:
        told = {
            "error": {
                "class": type(error).__name__,
                "sentence": error.sentence,
                "next_step": error.next_step,
            }
        }
    json.dump(told, sys.stdout)
    return 1 if "error" in told else 0
