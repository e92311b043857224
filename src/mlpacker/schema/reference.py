"""A record's keys as a page of the reference."""

from __future__ import annotations

from collections.abc import Iterator

from .kinds import Either, Key, Kind, Many, Record, Table


def page(title: str, opening: str, record: Record) -> str:
    """The record and the records within it, each a table of its keys, as Markdown."""
    lines = [f"# {title}", "", opening, ""]
    for path, inner in _records("", record):
        if path:
            lines += [f"## `{path}`", ""]
        lines += ["| key | | what it is |", "|---|---|---|"]
        lines += [_row(name, key, name in inner.one_of) for name, key in inner.keys.items()]
        lines.append("")
    return "\n".join(lines)


def _row(name: str, key: Key, one_of: bool) -> str:
    need = "required" if key.required else "one of these" if one_of else ""
    return (
        f"| `{name}` | {need} | {_cell(key.says)} *{_cell(key.kind.says[0].upper() + key.kind.says[1:])}.* |"
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _records(path: str, record: Record) -> Iterator[tuple[str, Record]]:
    """A record and those within it, by path, each once."""
    seen: list[Record] = []
    waiting = [(path, record)]
    while waiting:
        path, inner = waiting.pop(0)
        if inner in seen:
            continue
        seen.append(inner)
        yield path, inner
        for name, key in inner.keys.items():
            for suffix, kind in _within(key.kind):
                waiting.append((f"{path}.{name}{suffix}".lstrip("."), kind))


def _within(kind: Kind) -> Iterator[tuple[str, Record]]:
    if isinstance(kind, Record):
        yield "", kind
    elif isinstance(kind, Many):
        yield from ((f"[]{suffix}", found) for suffix, found in _within(kind.item))
    elif isinstance(kind, Table):
        yield from ((f".<name>{suffix}", found) for suffix, found in _within(kind.item))
    elif isinstance(kind, Either):
        yield from _within(kind.mapping)
