"""``chucky serve``, ``prompt``, ``chat`` and ``offline``: real processes, real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import pty
import queue
import re
import select
import shlex
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import IO, Any, Protocol

import pytest
from typer.testing import CliRunner, Result
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from chucky import Chucky
from chucky.cli.app import app
from chucky.cli.terminal import Transcript, printable
from chucky.server.store import Store
from chucky.tokens import create_budget, create_token, decode_token

ENTRY = [sys.executable, "-m", "chucky.cli.main"]
WAIT_SECONDS = 20.0


class Server(Protocol):
    """What the fixture ``server`` tells of the server it runs."""

    @property
    def url(self) -> str: ...
    @property
    def db(self) -> Path: ...
    def token(self, user: str = ...) -> str: ...


class Process:
    """One running command; every wait on it has a limit."""

    def __init__(self, popen: subprocess.Popen[str]) -> None:
        self.popen = popen
        self.said = ""
        self._output: queue.SimpleQueue[str] = queue.SimpleQueue()
        assert popen.stdout is not None
        assert popen.stderr is not None
        self._errors: list[str] = []
        self._readers = [
            threading.Thread(target=self._read, args=(popen.stdout, self._output.put)),
            threading.Thread(target=self._read, args=(popen.stderr, self._errors.append)),
        ]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _read(stream: IO[str], keep: Callable[[str], None]) -> None:
        while character := stream.read(1):
            keep(character)
        keep("")

    def wait_for(self, text: str) -> str:
        """Wait until the output since the last wait contains ``text``; return it."""
        output = ""
        while text not in output:
            try:
                character = self._output.get(timeout=WAIT_SECONDS)
            except queue.Empty:
                character = ""
            if not character:
                raise AssertionError(f"no {text!r} in {output!r}; errors: {self.errors!r}")
            output += character
        return output

    def write(self, text: str) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write(text)
        self.popen.stdin.flush()

    def close_input(self) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.close()

    def end(self, signal_number: signal.Signals | None = None) -> tuple[int, str]:
        """Wait for the end, after a signal if given; return exit code and the rest it said."""
        if signal_number is not None:
            self.popen.send_signal(signal_number)
        exit_code = self.popen.wait(WAIT_SECONDS)
        for reader in self._readers:
            reader.join(WAIT_SECONDS)
        rest = ""
        while not self._output.empty():
            rest += self._output.get()
        return exit_code, rest

    @property
    def errors(self) -> str:
        return "".join(self._errors)


class Start(Protocol):
    def __call__(self, *arguments: object) -> Process: ...


@pytest.fixture(autouse=True)
def own_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    yield
    logging.getLogger("chucky").setLevel(logging.NOTSET)  # `serve` has set it


@pytest.fixture
def start() -> Iterator[Start]:
    """Start ``chucky`` with arguments; whatever still runs at the end is killed."""
    running: list[Process] = []

    def run(*arguments: object) -> Process:
        popen = subprocess.Popen(
            [*ENTRY, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Like any program with a pipe for output: only what is flushed arrives.
            env={key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"},
        )
        running.append(Process(popen))
        return running[-1]

    yield run
    for process in running:
        process.popen.kill()
        process.end()
        for stream in (process.popen.stdin, process.popen.stdout, process.popen.stderr):
            assert stream is not None
            stream.close()


def chucky(*arguments: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments], input=stdin)


def refused(result: Result) -> str:
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def script(*steps: Mapping[str, Any]) -> str:
    """Tell the offline model what to do."""
    return f"Do as told:\n```offline\n{json.dumps(steps)}\n```"


# --- serve ----------------------------------------------------------------------------------


def test_a_server_says_where_it_listens_and_how_to_make_a_token_and_ends_when_told(
    start: Start, tmp_path: Path
) -> None:
    db = tmp_path / "with a space.db"
    server = start("serve", "--port", 0, "--db", db)
    lines = server.wait_for("offline model answers").splitlines()
    assert lines[0].startswith("Listening on ws://127.0.0.1:")
    assert lines[0].endswith("/ws")
    with closing(Store.open(db)) as store:
        project = store.find_project("default")
    assert lines[1] == f"Project id: {project.project_id}"

    program, *arguments = shlex.split(lines[3])
    assert program == "chucky"
    token = chucky(*arguments).stdout.splitlines()[-1]
    claims = decode_token(token)["payload"]
    assert (claims["sub"], claims["iss"]) == ("alice", project.project_id)
    assert claims["budget"]["window"] == "day"

    health = lines[0].removeprefix("Listening on ws").removesuffix("/ws") + "/healthz"
    with urllib.request.urlopen(f"http{health}", timeout=WAIT_SECONDS) as response:
        assert response.status == 200

    exit_code, _ = server.end(signal.SIGTERM)
    assert exit_code == 0
    assert "Traceback" not in server.errors


def test_the_server_of_the_default_database_is_found_until_it_is_interrupted(start: Start) -> None:
    server = start("serve", "--port", 0)
    url = server.wait_for("/ws\n").split()[-1]
    result = chucky("prompt", "What is 2 + 2?", "--url", url)
    assert (result.exit_code, result.stdout) == (0, "2 + 2 = 4.\n")
    chat = start("chat", "--url", url)
    chat.write("What is 2 + 2?\n")
    chat.wait_for(" in all)\n")

    exit_code, _ = server.end(signal.SIGINT)
    assert exit_code == 130
    assert "Traceback" not in server.errors
    chat.write("Are you there?\n")
    assert chat.end() == (1, "")
    assert chat.errors.startswith("Error: ")
    assert chat.errors.count("\n") == 1


def test_a_port_that_is_in_use_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        text = refused(chucky("serve", "--port", port, "--db", tmp_path / "chucky.db"))
    assert str(port) in text
    assert "--port" in text


def test_a_second_server_on_the_same_database_is_refused(server: Server) -> None:
    text = refused(chucky("serve", "--port", 0, "--db", server.db))
    assert "Another `chucky serve` (process " in text
    assert str(server.db) in text


def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    path = tmp_path / "letter.txt"
    path.write_text("Dear Sir or Madam,\n" * 100)
    assert refused(chucky("serve", "--port", 0, "--db", path)) == (
        f"Error: The database '{path}' is not a chucky database; name another file with --db.\n"
    )


# --- offline --------------------------------------------------------------------------------


def test_the_offline_model_runs_alone_until_told_to_stop(start: Start) -> None:
    model = start("offline", "--port", 0)
    url = model.wait_for("\n").split()[-1]
    with urllib.request.urlopen(f"{url}/v1/models", timeout=WAIT_SECONDS) as response:
        assert json.load(response)["data"]
    assert model.end(signal.SIGTERM)[0] == 0


def test_the_offline_model_tells_a_port_that_is_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        text = refused(chucky("offline", "--port", port))
    assert f"cannot listen on 127.0.0.1:{port}" in text
    assert "choose another port" in text


# --- prompt ---------------------------------------------------------------------------------


def test_a_prompt_prints_the_answer_and_nothing_else(server: Server) -> None:
    result = chucky("prompt", "What is 2 + 2?", "--url", server.url, "--db", server.db)
    assert (result.exit_code, result.output) == (0, "2 + 2 = 4.\n")


def test_a_prompt_may_come_from_standard_input(server: Server) -> None:
    result = chucky(
        *("prompt", "-", "--url", server.url, "--db", server.db),
        stdin=script({"text": "line one\nline two"}),
    )
    assert (result.exit_code, result.output) == (0, "line one\nline two\n")


def test_a_prompt_can_print_the_whole_result_as_one_line_of_json(server: Server) -> None:
    result = chucky("prompt", "What is 2 + 2?", "--json", "--url", server.url, "--db", server.db)
    assert result.exit_code == 0
    assert result.stdout.count("\n") == 1
    message = json.loads(result.stdout)
    assert (message["type"], message["subtype"]) == ("result", "success")
    assert message["result"] == "2 + 2 = 4."
    assert message["total_cost_usd"] > 0


def test_a_prompt_takes_address_and_token_from_the_environment(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHUCKY_URL", server.url)
    monkeypatch.setenv("CHUCKY_TOKEN", server.token("env-user"))
    result = chucky("prompt", "What is 2 + 2?")
    assert (result.exit_code, result.output) == (0, "2 + 2 = 4.\n")


def test_a_prompt_passes_model_and_limits_on(server: Server) -> None:
    common = ("--url", server.url, "--db", server.db)
    asked = ("prompt", "Hello", "--json", "--model", "haiku", "--max-turns", 1)
    result = chucky(*asked, "--system-prompt", "Be brief.", *common)
    assert result.exit_code == 0
    text = refused(chucky("prompt", "Hello", "--model", "no-such-model", *common))
    assert "no-such-model" in text


def test_a_failed_prompt_exits_with_1_and_says_why(server: Server) -> None:
    failing = script({"error": {"status": 400, "type": "invalid_request_error", "message": "No."}})
    common = ("--url", server.url, "--db", server.db)
    refused(chucky("prompt", failing, *common))
    result = chucky("prompt", failing, "--json", *common)
    assert result.exit_code == 1
    message = json.loads(result.stdout)
    assert message["subtype"] == "error"
    assert result.stderr == f"Error: {message['result']}\n"


def test_a_prompt_without_a_server_says_so(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    url = f"ws://127.0.0.1:{port}/ws"
    text = refused(chucky("prompt", "Hello", "--url", url, "--db", server.db))
    assert url in text


def test_a_token_the_server_refuses_is_told_without_repeating_it(
    server: Server, tmp_path: Path
) -> None:
    other = tmp_path / "other.db"
    with closing(Store.open(other)) as store:
        store.ensure_default_project()
    token = chucky(
        *("token", "--user", "eve", "--ai-dollars", 1, "--compute-hours", 1, "--db", other)
    ).stdout.strip()
    text = refused(chucky("prompt", "Hello", "--url", server.url, "--token", token))
    assert token not in text


def test_an_empty_prompt_is_told(server: Server) -> None:
    text = refused(chucky("prompt", " ", "--url", server.url, "--db", server.db))
    assert "empty" in text


# --- chat -----------------------------------------------------------------------------------


def test_a_chat_through_a_pipe_answers_each_line_in_one_conversation(
    start: Start, server: Server
) -> None:
    chat = start("chat", "--url", server.url, "--db", server.db)
    chat.write("Hello, I am Alice\n")
    assert "Alice" in chat.wait_for(" in all)\n")
    chat.write("What is my name?\n")
    assert "Your name is Alice." in chat.wait_for(" in all)\n")
    chat.close_input()
    assert chat.end() == (0, "")
    assert chat.errors == ""


def test_ctrl_c_stops_the_answer_and_the_chat_goes_on(start: Start, server: Server) -> None:
    chat = start("chat", "--url", server.url, "--db", server.db)
    slow = script({"text": ["It was a dark ", "and stormy night."], "chunk_delay_ms": 600_000})
    chat.write(slow.replace("\n", "\\\n") + "\n")
    chat.wait_for("It was a dark ")
    chat.popen.send_signal(signal.SIGINT)
    rest = chat.wait_for("(interrupted)\n")
    assert "stormy" not in rest
    chat.write("What is 2 + 2?\n")
    chat.wait_for("2 + 2 = 4.\n")
    failing = script({"error": {"status": 400, "type": "invalid_request_error", "message": "No."}})
    chat.write(failing.replace("\n", "\\\n") + "\n")
    chat.close_input()
    exit_code, rest = chat.end()
    assert exit_code == 0
    assert "interrupted" not in rest
    assert chat.errors.startswith("Error: ")
    assert chat.errors.count("\n") == 1


def test_a_chat_in_a_terminal_prompts_and_ends_with_ctrl_c_at_the_prompt(server: Server) -> None:
    terminal, device = pty.openpty()
    with subprocess.Popen(
        [*ENTRY, "chat", "--url", server.url, "--db", str(server.db)],
        stdin=device,
        stdout=device,
        stderr=device,
        env={**os.environ, "TERM": "xterm"},
    ) as chat:
        os.close(device)
        try:
            read_until(terminal, "> ")
            os.write(terminal, b"What is 2 + 2?\n")
            shown = read_until(terminal, "> ")
            assert "2 + 2 = 4." in shown
            assert "\x1b[2m($0.0" in shown  # dim
            assert interrupted(chat) == 0
        finally:
            chat.kill()
            os.close(terminal)


def interrupted(chat: subprocess.Popen[bytes]) -> int | None:
    """Press Ctrl-C until the program ends.

    Once may be too early: readline shows its prompt a moment before it waits for input, and a
    signal in that moment is noticed with the next key.
    """
    for _ in range(int(WAIT_SECONDS)):
        chat.send_signal(signal.SIGINT)
        try:
            return chat.wait(1)
        except subprocess.TimeoutExpired:
            continue
    return None


def read_until(terminal: int, end: str) -> str:
    """Read what a terminal shows up to ``end``."""
    shown = ""
    while not shown.endswith(end):
        ready, _, _ = select.select([terminal], [], [], WAIT_SECONDS)
        assert ready, f"no {end!r} in {shown!r}"
        shown += os.read(terminal, 1).decode("utf-8", "replace")
    return shown


def test_exit_ends_a_chat_and_empty_lines_are_no_messages(server: Server) -> None:
    result = chucky(
        *("chat", "--url", server.url, "--db", server.db), stdin="\n  \n/exit\nWhat is 2 + 2?\n"
    )
    assert (result.exit_code, result.output) == (0, "")


def test_a_failed_turn_is_told_and_the_chat_goes_on(server: Server) -> None:
    failing = script({"error": {"status": 400, "type": "invalid_request_error", "message": "No."}})
    result = chucky(
        *("chat", "--url", server.url, "--db", server.db),
        stdin=failing.replace("\n", "\\\n") + "\nWhat is 2 + 2?\n",
    )
    assert result.exit_code == 0
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert "2 + 2 = 4.\n" in result.stdout


def test_a_chat_without_a_server_says_so(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    url = f"ws://127.0.0.1:{port}/ws"
    assert url in refused(chucky("chat", "--url", url, "--db", server.db, stdin="Hello\n"))


# --- how a conversation is shown ------------------------------------------------------------


def delta(text: str) -> dict[str, Any]:
    block = {"type": "text_delta", "text": text}
    return {"type": "stream_event", "event": {"type": "content_block_delta", "delta": block}}


def assistant(*content: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "assistant", "message": {"role": "assistant", "content": list(content)}}


START = {"type": "stream_event", "event": {"type": "message_start"}}
TOOL_USE = {"type": "tool_use", "id": "1", "name": "mcp__own__add", "input": {"a": 1, "b": "é"}}
RESULT = {"type": "result", "subtype": "success", "result": "Hi.", "total_cost_usd": 0.25}


def test_text_is_shown_as_it_streams_and_not_again_when_complete(
    capsys: pytest.CaptureFixture[str],
) -> None:
    transcript = Transcript()
    transcript.show(START)
    transcript.show(delta("Hi"))
    assert capsys.readouterr().out == "Hi"
    transcript.show(delta("."))
    transcript.show(assistant({"type": "text", "text": "Hi."}))
    transcript.show(RESULT)
    assert capsys.readouterr().out == ".\n($0.2500, $0.2500 in all)\n"


def test_what_was_streamed_hides_only_its_own_message(capsys: pytest.CaptureFixture[str]) -> None:
    transcript = Transcript()
    transcript.show(START)
    transcript.show(delta("Hi."))
    transcript.show(assistant({"type": "text", "text": "Hi."}))
    transcript.show(START)
    transcript.show(assistant({"type": "text", "text": " Ho."}))
    assert capsys.readouterr().out == "Hi. Ho."


def test_text_is_shown_when_the_server_sends_no_partial_messages(
    capsys: pytest.CaptureFixture[str],
) -> None:
    transcript = Transcript()
    transcript.show(assistant({"type": "text", "text": "Hi."}))
    transcript.show(RESULT)
    assert capsys.readouterr().out == "Hi.\n($0.2500, $0.2500 in all)\n"


def test_a_result_is_shown_when_nothing_else_was(capsys: pytest.CaptureFixture[str]) -> None:
    Transcript().show(RESULT)
    assert capsys.readouterr().out == "Hi.\n($0.2500, $0.2500 in all)\n"


def test_the_cost_of_a_turn_is_what_it_added(capsys: pytest.CaptureFixture[str]) -> None:
    transcript = Transcript()
    transcript.show(RESULT)
    transcript.show({**RESULT, "total_cost_usd": 0.375})
    assert capsys.readouterr().out.endswith("($0.1250, $0.3750 in all)\n")


def test_each_tool_call_has_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    transcript = Transcript()
    transcript.show(START)
    transcript.show(delta("Adding."))
    transcript.show(assistant({"type": "text", "text": "Adding."}, TOOL_USE))
    transcript.show(assistant({**TOOL_USE, "name": "bare", "input": {"text": "x" * 1000}}))
    first, second, third, *rest = capsys.readouterr().out.split("\n")
    assert (first, second) == ("Adding.", '[tool add({"a": 1, "b": "é"})]')
    assert third.startswith('[tool bare({"text": "xxx')
    assert third.endswith("…)]")
    assert len(third) < 250
    assert rest == [""]


def test_an_answer_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert printable("a\x1b[2Jb\x07\r\x9bc\td\ne") == "a[2Jbc\td\ne"
    transcript = Transcript()
    transcript.show(delta("\x1b]0;title\x07"))
    transcript.show(assistant({**TOOL_USE, "name": "x\x1b[31m", "input": {}}))
    output = capsys.readouterr()
    assert "\x1b" not in output.out + output.err


def test_no_secret_is_in_what_a_server_logs(start: Start, tmp_path: Path) -> None:
    db = tmp_path / "chucky.db"
    process = start("serve", "--port", "0", "--log-level", "debug", "--db", db)
    url = re.search(r"ws://\S+/ws", process.wait_for("Make a token"))
    assert url
    created = subprocess.run(
        [*ENTRY, "projects", "create", "p", "--json", "--db", str(db)],
        check=True,
        capture_output=True,
        timeout=WAIT_SECONDS,
    )
    project = json.loads(created.stdout)
    token = create_token("user", project["projectId"], project["hmacKey"], create_budget(1, 1))
    forged = f"{token[:-4]}AAAA"

    async def visit() -> None:
        assert (await Chucky(token, url[0]).prompt("hi")).subtype == "success"
        for query in (f"?token={token}", f"?token={forged}", f"nope?token={token}"):
            async with asyncio.timeout(WAIT_SECONDS), connect(f"{url[0]}{query}") as socket:
                with contextlib.suppress(ConnectionClosed):
                    await socket.send("{")
                    async for _frame in socket:
                        pass

    asyncio.run(visit())
    exit_code, _rest = process.end(signal.SIGTERM)
    assert exit_code == 0
    assert process.errors
    for secret in (token, forged, project["hmacKey"], token.split(".")[2]):
        assert secret not in process.errors
