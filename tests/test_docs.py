"""README and docs tell the truth: their code runs, their commands exist, their links lead on."""

from __future__ import annotations

import ast
import asyncio
import inspect
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, NamedTuple

import pytest
import typer.main
from typer.core import TyperGroup

from chucky.cli.app import app

if TYPE_CHECKING:
    from tests.conftest import Server
ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("examples/*.md"), *(ROOT / "docs").rglob("*.md")])
RUN_PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK_SECONDS = 30

_FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,})(?P<language>[^\n`]*)$")
_LINK = re.compile(r"\[[^\]]*\]\((?P<inline>[^)\s]+)[^)]*\)|^\[[^\]]+\]: *(?P<reference>\S+)")
_HEADING = re.compile(r"^#+ +(?P<title>.+?) *#*$")


class Block(NamedTuple):
    """One fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str


def page_id(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> Iterator[Block]:
    fence: re.Match[str] | None = None
    start, lines = 0, list[str]()
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        match = _FENCE.match(line)
        if fence is None and match:
            fence, start, lines = match, number, []
        elif fence and match and match["ticks"] >= fence["ticks"] and not match["language"]:
            yield Block(page, start, fence["language"].strip(), "\n".join(lines))
            fence = None
        elif fence:
            lines.append(line.removeprefix(fence["indent"]))
    assert fence is None, f"{page_id(page)}:{start}: the block is never closed"


def prose(page: Path) -> Iterator[tuple[int, str]]:
    """Yield the numbered lines of a page that are not in a fenced block."""
    inside = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if _FENCE.match(line):
            inside = not inside
        elif not inside:
            yield number, line


# --- Python -----------------------------------------------------------------------------------


@pytest.fixture
def documented_environment(
    server: Server,
    offline_url: str,
    chucky_command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the code of a page finds: an empty directory, and a server it is told of."""
    command = f"{chucky_command} token --user docs --ai-dollars 1 --compute-hours 1 --window day"
    minted = subprocess.run(
        [*shlex.split(command), "--project", server.project_id, "--db", str(server.db)],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
        timeout=BLOCK_SECONDS,
    )
    monkeypatch.setenv("CHUCKY_URL", server.url)
    monkeypatch.setenv("CHUCKY_TOKEN", minted.stdout.splitlines()[-1])
    monkeypatch.setenv("CHUCKY_PROJECT_ID", server.project_id)
    monkeypatch.setenv("CHUCKY_HMAC_KEY", server.hmac_key)
    monkeypatch.setenv("CHUCKY_OFFLINE_URL", offline_url)
    monkeypatch.chdir(tmp_path)


def compile_block(block: Block) -> CodeType:
    """Compile a block so that a traceback shows the page and its line."""
    source = "\n" * block.line + block.text
    code = compile(
        source, str(block.page), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True
    )
    assert isinstance(code, CodeType)
    return code


async def run_async(code: CodeType, main: ModuleType) -> None:
    async with asyncio.timeout(BLOCK_SECONDS):
        await eval(code, main.__dict__)


@pytest.mark.usefixtures("documented_environment")
@pytest.mark.parametrize(
    "page",
    [page for page in RUN_PAGES if any(block.language == "python" for block in blocks(page))],
    ids=page_id,
)
def test_the_python_code_of_a_page_runs(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    with asyncio.Runner() as runner:  # one loop per page: a client made above is used below
        for block in blocks(page):
            if block.language != "python":
                continue
            code = compile_block(block)
            if code.co_flags & inspect.CO_COROUTINE:
                runner.run(run_async(code, main))
            else:
                exec(code, main.__dict__)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_python_is_the_only_word_for_code_that_is_run(page: Path) -> None:
    words = {block.language for block in blocks(page)}
    assert not {word for word in words if word.startswith(("py", "Py")) and word != "python"}


# --- commands ---------------------------------------------------------------------------------


def command_lines(block: Block) -> list[str]:
    """Return what a console block says to type; the rest of it is what the command prints."""
    text = block.text.replace("\\\n", " ")
    lines = text.splitlines()
    typed = [line[2:] for line in lines if line.startswith("$ ")]
    return typed or lines


def chucky_calls(line: str) -> Iterator[list[str]]:
    """Yield the words after ``chucky`` for each call in a line, also within ``"$(…)"``."""
    opened = line.replace('"$(', " $( ").replace(')"', " ) ")
    lexer = shlex.shlex(opened, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    call: list[str] | None = None
    is_start = True
    for word in [*lexer, ";"]:
        if set(word) <= set("();<>|&"):
            if call is not None:
                yield call
            call, is_start = None, True
        elif call is not None:
            call.append(word)
        elif is_start and not re.match(r"\w+=|export$", word):
            call, is_start = ([] if Path(word).name == "chucky" else None), False


def documented_commands() -> Iterator[tuple[str, list[str]]]:
    for page in PAGES:
        for block in blocks(page):
            for line in command_lines(block) if block.language == "console" else ():
                for call in chucky_calls(line) if "chucky" in line else ():
                    yield f"{page_id(page)}:{block.line}", call


def problem_with(group: TyperGroup, words: list[str]) -> str | None:
    """Return what is wrong with the words after ``chucky``, or None."""
    names = [word for word in words if not word.startswith("-")]
    command = group.commands.get(names[0]) if names else group
    if command is None:
        return f"there is no command {names[0]!r}"
    if isinstance(command, TyperGroup) and command is not group:
        return problem_with(command, words[words.index(names[0]) + 1 :])
    known = {"--help"}.union(*(param.opts + param.secondary_opts for param in command.params))
    given = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
    unknown = given - known
    return f"{command.name!r} has no option {', '.join(sorted(unknown))}" if unknown else None


def test_every_documented_command_and_option_exists() -> None:
    group = typer.main.get_group(app)

    wrong = [
        f"{place}: {problem}"
        for place, words in documented_commands()
        if (problem := problem_with(group, words))
    ]

    assert not wrong, "\n".join(wrong)


def test_the_check_of_commands_notices_a_wrong_one() -> None:
    group = typer.main.get_group(app)

    assert list(chucky_calls('A=1 export T="$(x; .venv/bin/chucky token --user "a b")" | cat')) == [
        ["token", "--user", "a b"]
    ]
    assert problem_with(group, ["serve", "--port", "0"]) is None
    assert problem_with(group, ["projects", "create", "demo", "--json"]) is None
    assert problem_with(group, ["--version"]) is None
    assert problem_with(group, ["swerve"]) == "there is no command 'swerve'"
    assert problem_with(group, ["projects", "demolish"]) == "there is no command 'demolish'"
    assert problem_with(group, ["serve", "--prot", "1"]) == "'serve' has no option --prot"


def test_every_documented_script_can_be_run() -> None:
    named = {
        match.group()
        for page in PAGES
        for match in re.finditer(
            r"(?<![\w/])(?:scripts/[a-z][\w./-]*\w|\.ci/run\b)", page.read_text(encoding="utf-8")
        )
    }

    assert {"scripts/demo", "scripts/test"} <= named
    assert not [name for name in sorted(named) if not os.access(ROOT / name, os.X_OK)]


# --- links ------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """Return the anchors that the headings of a page get on a code host."""
    found = set[str]()
    for _, line in prose(page):
        if match := _HEADING.match(line):
            title = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", match["title"]).lower()
            found.add(re.sub(r"[^\w\- ]", "", title).replace(" ", "-"))
    return found


def broken_links(page: Path) -> Iterator[str]:
    for _, line in prose(page):
        for match in _LINK.finditer(re.sub(r"`[^`]*`", "", line)):
            link = match["inline"] or match["reference"]
            if re.match(r"[a-z]+:", link):
                continue
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            if not target.exists() or (anchor and anchor not in anchors(target)):
                yield link


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_relative_link_of_a_page_leads_somewhere(page: Path) -> None:
    assert not list(broken_links(page))


def test_the_check_of_links_notices_a_broken_one(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A title: here\n"
        "[a](#a-title-here) [b](page.md#no) [c](no.md) `[d](no)` [e](https://example.org)\n"
    )

    assert list(broken_links(page)) == ["page.md#no", "no.md"]
