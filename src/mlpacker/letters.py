"""A stream's dead letters: where they are, which are meant, and what is asked of them."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import clients
from .errors import BadDescription, NotFound
from .events import Events

FOLDER = "dead-letters"
"""The log in a deployment's state folder."""


@dataclass(frozen=True)
class Wanted:
    """Which letters are meant; those that fit all that is said. since: seconds since the epoch."""

    reason: str = ""
    stage: str = ""
    since: float = 0.0

    def fits(self, letter: Mapping[str, Any]) -> bool:
        return (
            self.reason.lower() in str(letter.get("reason", "")).lower()
            and self.stage in ("", letter.get("stage"))
            and float(letter.get("failed_at", 0)) >= self.since
        )


class Letters:
    """The dead letters of one deployment. at: the address they are at; empty: the log in its state folder.

    Raises NotFound where there is no deployment of that name here and no address is given.
    """

    def __init__(self, home: Path, name: str, at: str, events: Events) -> None:
        self.home = home
        self.name = name
        self.state = home / "streams" / name
        if not at and not self.state.is_dir():
            raise _unknown(home / "streams", name)
        self.at = at or f"local:{FOLDER}?path={self.state}"
        self.events = events

    def list(self, wanted: Wanted = Wanted()) -> list[dict[str, Any]]:
        """In brief, without the messages; the oldest first."""
        letters = self._ask("list")["letters"]
        return sorted(filter(wanted.fits, letters), key=lambda letter: letter.get("failed_at", 0))

    def show(self, id: str) -> dict[str, Any]:
        """All of one letter; the newest, where a row failed more than once. Raises NotFound."""
        (found,) = choose(self.list(), [id], self.name)
        return self._ask("show", ids=[found])["letters"][-1]

    def replay(self, ids: Sequence[str], sources: Iterable[str], to: str | None = None) -> dict[str, Any]:
        """Publish the messages that these letters are of to their sources (or `to`), and drop each when that is confirmed.

        sources: addresses that the letters name. `done` are ids, `stay` those that stay, with why.
        """
        return self._ask("replay", ids=list(ids), to=to, others=(to,) if to else tuple(sources))

    def drop(self, ids: Sequence[str]) -> dict[str, Any]:
        """As `replay`, and sends nothing."""
        return self._ask("drop", ids=list(ids))

    def _ask(self, do: str, others: Iterable[str] = (), **more: Any) -> dict[str, Any]:
        python = clients.interpreter((self.at, *others), self.home, self.events)
        order = {
            "do": do,
            "at": self.at,
            "name": self.name,
            "logs": str(self.home / "logs"),
            "state": str(self.state / "dlq"),
            **more,
        }
        return clients.ask(python, "dlq", order, os.environ)


def choose(letters: Sequence[Mapping[str, Any]], ids: Sequence[str], name: str) -> list[str]:
    """The whole ids of these, which may be shortened. Raises NotFound, and BadDescription where several begin so."""
    known = list(dict.fromkeys(str(letter["id"]) for letter in letters))
    chosen = []
    for id in ids:
        found = [whole for whole in known if whole == id] or [w for w in known if w.startswith(id)]
        if not found:
            raise NotFound(f"{name} has no dead letter {id}.", f"See: mlpacker dlq ls {name}")
        if len(found) > 1:
            raise BadDescription(f"{len(found)} dead letters of {name} begin with {id}.", "Write more of it.")
        chosen += found
    return list(dict.fromkeys(chosen))


def _unknown(folder: Path, name: str) -> NotFound:
    there = sorted(f.name for f in folder.glob("*") if f.is_dir()) if folder.is_dir() else []
    near = difflib.get_close_matches(name, there, 3, 0.5) or there[:5]
    hint = f"There is {', '.join(near)}." if near else "A deployment is made by mlpacker stream."
    return NotFound(f"No stream named {name} has run here.", f"{hint} Letters on a broker: --at ADDRESS.")
