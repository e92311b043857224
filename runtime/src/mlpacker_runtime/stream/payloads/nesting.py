"""What untyped values may be, so that nothing behind the decoder stumbles: not nested without end, no endless numbers."""

from __future__ import annotations

import sys
from typing import Any

from ...errors import BadInput

DEPTH = 64
"""How deep values may be nested."""
HUGE = int(sys.float_info.max)
SHORT = sys.float_info.max_10_exp
"""A text of so many bytes holds no larger number."""


def check(value: Any, size: int) -> None:
    """A dict or a list that was read from a text of `size` bytes. Raises BadInput where it is nested too deeply or holds a
    whole number that no float can."""
    level = [value]
    for _ in range(DEPTH):
        below: list[Any] = []
        for holder in level:
            values = holder.values() if type(holder) is dict else holder
            kinds = set(map(type, values))
            if int in kinds and size > SHORT:
                _check_numbers([v for v in values if type(v) is int])
            if dict in kinds or list in kinds:
                below += [v for v in values if type(v) is dict or type(v) is list]
        if not below:
            return
        level = below
    raise too_deep()


def _check_numbers(found: list[int]) -> None:
    if max(found) > HUGE or min(found) < -HUGE:
        raise BadInput(f"The message holds a whole number of more than {SHORT} digits.")


def too_deep() -> BadInput:
    return BadInput(f"The message is nested more than {DEPTH} deep.")
