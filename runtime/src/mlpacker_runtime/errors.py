"""What can go wrong, as values: one sentence, the next step, and the facts behind them.

The classes know nothing of exit codes or HTTP; the command line and the server map a class to their own.
Standard library only: this module is also imported inside a user's training interpreter.
"""

from __future__ import annotations


class MlpackerError(Exception):
    """Anything we stop for on purpose. `str(error)` is the sentence followed by the next step."""

    def __init__(self, sentence: str, next_step: str = "", **facts: object) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.next_step = next_step
        self.facts = facts

    def __str__(self) -> str:
        return f"{self.sentence} {self.next_step}".strip()


class BadInput(MlpackerError):
    """What the caller gave does not fit: a request, a row, a sample, a file of data."""


class BadDescription(MlpackerError):
    """A written description (descriptor, flag, option) is wrong; names file, line and path where known."""


class NotFound(MlpackerError):
    """The thing named does not exist."""


class Refused(MlpackerError):
    """The audit refuses to build what a file describes. `facts["names"]` holds the imports refused."""


class NotProvable(MlpackerError):
    """The clean environment's answers are not the reference's. `facts["rows"]` holds the differing rows."""


class EnvironmentFailed(MlpackerError):
    """An interpreter, a pin or an installation is missing or can't be had."""


class StoreFailed(MlpackerError):
    """The store or a registry failed, or holds bytes that are not what their digest says."""


class ModelFailed(MlpackerError):
    """A stage raised while it computed. `facts["stage"]` names it."""


class Away(MlpackerError):
    """A broker can't be reached, or can't say whether it has what it was sent. Close, make anew, go on; never a row's fault."""


class Unusable(MlpackerError):
    """Trying again will not mend a broker: credentials refused, a topic that is not there, a setting it does not take."""
