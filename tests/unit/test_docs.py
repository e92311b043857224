"""The pages say what is: the reference is the code's, links lead somewhere, and every command line shown would be accepted."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote

import click
import jsonschema
import pytest

from mlpacker import cli, pipeline, streaming
from mlpacker.errors import BadDescription
from mlpacker_runtime.serve import EXIT_CODES

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted(
    p
    for pattern in (
        "*.md",
        "docs/**/*.md",
        "examples/*.md",
        "examples/*/*.md",
        "benchmarks/*.md",
        "runtime/*.md",
    )
    for p in ROOT.glob(pattern)
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
MEASURED = (ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "reference" / "delivery.md")
"""Written by `make bench` and `make delivery-page`, and so not there before the first measurement."""
SHELL = ("", "sh", "bash", "console", "text")


def _names(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _prose(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))


def _anchors(text: str) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def _commands(text: str) -> Iterator[str]:
    """The `mlpacker …` lines of fenced blocks, continued lines joined, comments and pipes cut off."""
    for language, block in FENCE.findall(text):
        if language not in SHELL:
            continue
        for line in block.replace("\\\n", " ").splitlines():
            found = re.match(r"(?:\$ )?(?:\w+=\S+ +)*(mlpacker .*)", line)
            if found:
                yield found[1]


def _words(line: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    words = list(lexer)
    ends = [i for i, w in enumerate(words) if set(w) <= set("|&;<>")]
    return words[1 : ends[0] if ends else None]


def parse(line: str) -> None:
    """Parse one command line with the command line's own parser. Raises click.ClickException where it would refuse it."""
    words = _words(line)
    if not words or words[0].startswith("-"):
        return
    context = click.Context(cli.cli, info_name="mlpacker")
    _parse(cli.cli, words, context)


def _parse(group: click.Group, words: list[str], context: click.Context) -> None:
    command = group.get_command(context, words[0])
    if command is None:
        raise click.UsageError(f"There is no command {words[0]!r}.")
    for parameter in command.params:
        if isinstance(parameter.type, click.Path):
            parameter.type.exists = False
    if isinstance(command, click.Group) and len(words) > 1:
        _parse(command, words[1:], context)
    else:
        command.make_context(words[0], words[1:], parent=context)


def test_the_command_line_page_is_what_the_generator_makes() -> None:
    tool = _tool("docs_cli")
    assert tool.PAGE.read_text() == tool.page(), "Write it anew: make docs"


def test_every_exit_code_is_explained_with_the_words_of_the_command_line() -> None:
    tool = _tool("docs_cli")
    assert {c for _, c in EXIT_CODES} <= {code for code, _, _ in tool.ERRORS}


def test_the_pages_of_a_streams_settings_are_what_the_generator_makes() -> None:
    for path, text in _tool("docs_stream").pages().items():
        assert path.read_text(encoding="utf-8") == text, "Write it anew: make docs"


def test_the_schema_of_a_stream_is_one_and_refuses_what_the_reader_refuses(tmp_path: Path) -> None:
    schema = json.loads(streaming.json_schema())
    jsonschema.Draft202012Validator.check_schema(schema)
    valid = jsonschema.Draft202012Validator(schema)
    file = tmp_path / "stream.yaml"
    for value, good in STREAMS:
        file.write_text(json.dumps(value))
        assert valid.is_valid(value) is good, value
        assert _is_read(file) is good, value


STREAMS: tuple[tuple[dict[str, object], bool], ...] = (
    ({"from": "local:a", "to": "local:b"}, True),
    (
        {"from": "local:a", "to": "local:b", "keep": ["x", "y"], "workers": 2, "spool_full": "drop_oldest"},
        True,
    ),
    ({"from": "local:a"}, False),
    ({"from": "local:a", "to": "local:b", "form": "json"}, False),
    ({"from": "local:a", "to": "local:b", "workers": 0}, False),
    ({"from": "local:a", "to": "local:b", "spool_full": "drop"}, False),
    ({"from": "local:a", "to": "local:b", "name": "Upper Case"}, False),
)


def _is_read(file: Path) -> bool:
    try:
        return bool(streaming.read(file))
    except BadDescription:
        return False


@pytest.mark.parametrize("path", PAGES, ids=_names)
def test_every_stream_shown_is_accepted(path: Path, tmp_path: Path) -> None:
    for language, block in FENCE.findall(path.read_text()):
        if language != "yaml" or not re.search("^from:", block, re.MULTILINE):
            continue
        file = tmp_path / "stream.yaml"
        file.write_text(block)
        assert streaming.settings(streaming.read(file), "iris", ("predict", "predict_proba"), tmp_path).sink


@pytest.mark.parametrize("path", PAGES, ids=_names)
def test_every_relative_link_leads_to_a_file_and_a_heading(path: Path) -> None:
    for target in LINK.findall(_prose(path.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        place = (path.parent / unquote(file)).resolve() if file else path
        if place in MEASURED and not place.exists():
            continue
        assert place.exists(), f"{target}: there is no such file"
        assert place.is_relative_to(ROOT), f"{target} leads out of the repository"
        if anchor and place.suffix == ".md":
            assert anchor in _anchors(place.read_text()), f"{target}: there is no such heading"


@pytest.mark.parametrize("path", PAGES, ids=_names)
def test_every_command_shown_would_be_accepted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLPACKER_HOME", raising=False)
    for line in _commands(path.read_text()):
        try:
            parse(line)
        except click.ClickException as error:
            pytest.fail(f"{line}\n{error.format_message()}")


@pytest.mark.parametrize(
    "line",
    [
        "mlpacker pakc model.joblib",
        "mlpacker run iris --prot 80",
        "mlpacker score iris rows.csv",
        "mlpacker stream iris --form local:rows",
        "mlpacker dlq list iris",
        "mlpacker dlq ls",
    ],
)
def test_a_command_that_would_be_refused_is_noticed(line: str) -> None:
    with pytest.raises(click.ClickException):
        parse(line)


@pytest.mark.parametrize("path", PAGES, ids=_names)
def test_every_python_block_is_python(path: Path) -> None:
    for language, block in FENCE.findall(path.read_text()):
        if language == "python":
            ast.parse(block)


@pytest.mark.parametrize("path", PAGES, ids=_names)
def test_every_descriptor_shown_is_accepted(path: Path, tmp_path: Path) -> None:
    for language, block in FENCE.findall(path.read_text()):
        if language != "yaml" or "stages:" not in block or "name:" not in block:
            continue
        for file, function in re.findall(r"([\w-]+\.(?:joblib|json|onnx|csv|txt|py))(?::(\w+))?", block):
            stub = f"def {function}(rows):\n    return rows\n" if function else ""
            (tmp_path / file).write_text(stub)
        descriptor = tmp_path / "pipeline.yaml"
        descriptor.write_text(block)
        assert pipeline.parse(descriptor).stages


def test_the_readme_leads_to_every_guide() -> None:
    named = {target.partition("#")[0] for target in LINK.findall((ROOT / "README.md").read_text())}
    guides = {_names(p) for p in (ROOT / "docs").rglob("*.md")}
    assert guides <= named
