"""``examples/terminal_chat.py``, as somebody at a keyboard uses it."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Server
    from tests.examples.conftest import RunExample

WAIT_SECONDS = 20.0
CTRL_C = "\x03"
CTRL_D = "\x04"


# A program becomes the one that Ctrl-C reaches when it opens the terminal in a session of its own.
IN_TERMINAL = """
import os, sys
os.close(os.open(os.ttyname(0), os.O_RDWR))
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


class Terminal:
    """A terminal in which a program runs; what is typed into it is shown, too."""

    def __init__(self, program: Path) -> None:
        self._terminal, device = pty.openpty()
        self._process = subprocess.Popen(
            [sys.executable, "-c", IN_TERMINAL, str(program)],
            stdin=device,
            stdout=device,
            stderr=device,
            start_new_session=True,
        )
        os.close(device)

    def type(self, keys: str) -> None:
        os.write(self._terminal, keys.encode())

    def read_until(self, end: str) -> str:
        """Read what is shown up to ``end``."""
        shown = b""
        while not shown.endswith(end.encode()):
            ready, _, _ = select.select([self._terminal], [], [], WAIT_SECONDS)
            assert ready, f"no {end!r} in {shown!r}"
            shown += os.read(self._terminal, 1)
        return shown.decode().replace("\r\n", "\n")

    def wait(self) -> int:
        """Wait for the end of the program and return its exit code."""
        return self._process.wait(WAIT_SECONDS)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._terminal)


@pytest.fixture
def chat(
    examples: Path, server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Terminal]:
    monkeypatch.setenv("CHUCKY_URL", server.url)
    monkeypatch.setenv("CHUCKY_TOKEN", server.token("somebody at a keyboard"))
    monkeypatch.chdir(tmp_path)
    terminal = Terminal(examples / "terminal_chat.py")
    terminal.read_until("> ")
    yield terminal
    terminal.close()


def test_a_conversation_goes_on_and_shows_its_cost_until_ctrl_d(chat: Terminal) -> None:
    chat.type("Hello, I am Alice\n")
    shown = chat.read_until("> ")
    assert shown.count("Hello Alice! Nice to meet you.\n") == 1
    assert " so far]\n" in shown
    chat.type("\n")
    chat.read_until("> ")
    chat.type("What is my name?\n")
    assert "Your name is Alice.\n[$0.0" in chat.read_until("> ")
    chat.type(CTRL_D)
    assert chat.wait() == 0


def test_ctrl_c_stops_the_answer_that_is_being_written_and_the_chat_goes_on(
    chat: Terminal,
) -> None:
    steps = [{"text": ["It was a dark ", "and stormy night."], "chunk_delay_ms": 600_000}]
    for line in ("Tell it.\\", "```offline\\", f"{json.dumps(steps)}\\"):
        chat.type(f"{line}\n")
        chat.read_until(". ")
    chat.type("```\n")
    chat.read_until("It was a dark ")
    chat.type(CTRL_C)
    shown = chat.read_until("> ")
    assert "interrupted" in shown
    assert "stormy" not in shown
    chat.type("What is 2 + 2?\n")
    assert "2 + 2 = 4.\n" in chat.read_until("> ")


def test_ctrl_c_at_the_prompt_drops_the_line_and_stops_nothing_later(chat: Terminal) -> None:
    chat.type(f"What is 3 + 3?{CTRL_C}")
    chat.read_until("(Ctrl-D ends the chat.)\r\n> ")
    chat.type("What is 2 + 2?\n")
    assert "2 + 2 = 4.\n" in chat.read_until("> ")


def test_escape_sequences_in_an_answer_do_not_reach_the_terminal(chat: Terminal) -> None:
    steps = [{"text": "\x1b[2Jred"}]
    for line in ("Say it.\\", "```offline\\", f"{json.dumps(steps)}\\"):
        chat.type(f"{line}\n")
        chat.read_until(". ")
    chat.type("```\n")
    chat.read_until("```\r\n")
    assert chat.read_until("> ").startswith("[2Jred\n")


def test_without_a_token_it_says_so(
    run_example: RunExample, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CHUCKY_TOKEN")
    done = run_example("terminal_chat.py")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: No token: ")
    assert done.stderr.count("\n") == 1
