"""``chucky.sync``: the same client for code that waits, against a real server."""

from __future__ import annotations

import asyncio
import gc
import inspect
import json
import signal
import subprocess
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel

import chucky
from chucky import (
    AuthenticationError,
    ChuckyConnectionError,
    Message,
    PromptResult,
    SessionError,
    Tool,
    ValidationError,
    tool,
)
from chucky.loopthread import LoopThread
from chucky.sync import Chucky, Session

if TYPE_CHECKING:
    from tests.conftest import Server

WAIT_SECONDS = 20
FOREVER = {"delay_ms": 600_000}


def say(*steps: dict[str, Any]) -> str:
    """A message that tells the offline model what to do, one step per model call."""
    return f"Go.\n```offline\n{json.dumps(steps)}\n```"


@pytest.fixture
def client(server: Server) -> Iterator[Chucky]:
    with Chucky(server.token("sync"), url=server.url) as made:
        yield made


@tool("look", "Looks")
def look() -> str:
    return "seen"


# ---- the calls -------------------------------------------------------------------------------


def test_a_prompt_returns_its_result(client: Chucky) -> None:
    result = client.prompt("What is the capital of France?")
    assert isinstance(result, PromptResult)
    assert result.result == "The capital of France is Paris."
    assert result.messages[-1] == result


def test_a_stream_is_a_plain_iterator_of_events(client: Chucky) -> None:
    asked = say({"tools": [{"name": "look"}]}, {"text": ["Se", "en."]})
    events = list(client.stream(asked, tools=[look], include_partial_messages=True))
    kinds = [event.type for event in events]
    assert [kind for kind in kinds if kind != "delta"] == [
        "message",
        "message",
        "tool_use",
        "message",
        "message",
        "result",
        "done",
    ]
    assert "".join(str(event.data) for event in events if event.type == "delta") == "Seen."


def test_a_session_remembers_and_knows_its_id(client: Chucky) -> None:
    with client.create_session(system_prompt="Be brief.") as session:
        assert isinstance(session, Session)
        assert session.session_id == ""
        session.send("Hello, I am Alice")
        session.send("What is my name?")
        _first, second = list(session.stream()), list(session.receive())
    assert isinstance(second[-1], Message)
    assert second[-1].result == "Your name is Alice."
    assert session.session_id == second[-1].session_id


def test_an_answer_can_be_an_instance_of_a_class(client: Chucky) -> None:
    class Point(BaseModel):
        x: int

    result = client.prompt(say({"text": '{"x": 3}'}), output_format=Point)
    assert result.structured_output == Point(x=3)


def test_a_turn_can_be_interrupted(client: Chucky) -> None:
    with client.create_session() as session:
        session.send(say(FOREVER))
        session.interrupt()
        assert list(session.stream())[-1].error.code == "INTERRUPTED"
        session.send("What is 2 + 2?")
        assert list(session.stream())[-1].result == "2 + 2 = 4."


def test_leaving_a_stream_early_leaves_the_session_usable(client: Chucky) -> None:
    with client.create_session() as session:
        session.send(say({"text": "One."}))
        for _message in session.stream():
            break
        session.send(say({"text": "Two."}))
        assert list(session.stream())[-1].result == "Two."
    for event in client.stream(say({"text": "One."}, FOREVER), tools=[look]):
        assert event.type == "message"
        break
    assert client.prompt(say({"text": "Two."})).result == "Two."


@pytest.mark.parametrize(("twin", "original"), [(Chucky, chucky.Chucky), (Session, chucky.Session)])
def test_every_method_has_the_signature_of_its_twin(twin: type, original: type) -> None:
    names = [
        name
        for name, method in inspect.getmembers(original, inspect.isfunction)
        if not name.startswith("_")
    ]
    assert len(names) >= 4
    for name in names:
        signature = inspect.signature(getattr(twin, name))
        assert signature.parameters == inspect.signature(getattr(original, name)).parameters
        assert inspect.getdoc(getattr(twin, name))


def test_a_client_is_made_like_its_twin() -> None:
    assert inspect.signature(Chucky) == inspect.signature(chucky.Chucky)
    client = Chucky("a-token", "ws://127.0.0.1:1/ws", "opus", timeout=5.0, vessel="box")
    assert client.options == chucky.ChuckyOptions(
        "ws://127.0.0.1:1/ws", "a-token", "opus", timeout=5.0, vessel="box"
    )


def test_nothing_runs_before_it_is_needed() -> None:
    before = threading.active_count()
    client = Chucky("a-token")
    client.create_session()
    client.stream("Hello")
    client.close()
    assert threading.active_count() == before


# ---- failures --------------------------------------------------------------------------------


def test_exceptions_have_their_own_types(server: Server) -> None:
    with pytest.raises(ValidationError, match="max_turns must be a whole number"):
        Chucky("a-token", max_turns=-1)
    with Chucky("no.such.token", server.url) as client, pytest.raises(AuthenticationError):
        client.prompt("Hello")
    with Chucky("a-token", "ws://127.0.0.1:1/ws") as client:
        with pytest.raises(ChuckyConnectionError, match="Cannot reach"):
            list(client.stream("Hello"))
        with pytest.raises(ValidationError, match="The message is empty"):
            client.prompt(" ")
        with pytest.raises(SessionError, match="There is nothing to stream"):
            list(client.create_session().stream())


def test_an_exception_of_the_token_function_comes_out_as_it_is() -> None:
    def refuse() -> str:
        raise LookupError("nobody is logged in")

    with Chucky(refuse) as client, pytest.raises(LookupError, match="nobody is logged in"):
        client.prompt("Hello")


@pytest.fixture
def interrupt_here() -> Callable[[], str]:
    """A function for a tool's thread, as if somebody pressed Ctrl-C in the test's."""
    main = threading.get_ident()

    def press() -> str:
        signal.pthread_kill(main, signal.SIGINT)
        return "pressed"

    return press


@dataclass
class WaitingTool:
    """A tool that waits until it is stopped."""

    waiting: threading.Event = field(default_factory=threading.Event)
    stopped: threading.Event = field(default_factory=threading.Event)

    def tool(self) -> Tool:
        @tool("wait", "Waits")
        async def wait() -> None:
            self.waiting.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.stopped.set()

        return wait


@pytest.mark.parametrize("call", ["prompt", "stream"])
def test_ctrl_c_stops_the_turn_of_a_call(
    client: Chucky, interrupt_here: Callable[[], str], call: str
) -> None:
    wait = WaitingTool()

    @tool("press", "Presses Ctrl-C")
    def press() -> str:
        assert wait.waiting.wait(WAIT_SECONDS)
        return interrupt_here()

    asked = say({"tools": [{"name": "wait"}, {"name": "press"}]})
    with pytest.raises(KeyboardInterrupt):
        list(getattr(client, call)(asked, tools=[wait.tool(), press]))
    assert wait.stopped.wait(WAIT_SECONDS)
    assert client.prompt("What is 2 + 2?").result == "2 + 2 = 4."


def test_ctrl_c_stops_a_turn_also_when_nobody_waits_for_its_next_step_yet(
    client: Chucky, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = WaitingTool()
    submit = LoopThread.submit

    def submit_and_press(thread: LoopThread, work: Any) -> Any:
        submit(thread, work)
        assert wait.waiting.wait(WAIT_SECONDS)
        raise KeyboardInterrupt

    def take_all() -> None:
        for event in client.stream(say({"tools": [{"name": "wait"}]}), tools=[wait.tool()]):
            if event.type == "tool_use":
                monkeypatch.setattr(LoopThread, "submit", submit_and_press)

    with pytest.raises(KeyboardInterrupt):
        take_all()
    monkeypatch.undo()
    assert wait.stopped.wait(WAIT_SECONDS)
    assert client.prompt("What is 2 + 2?").result == "2 + 2 = 4."


def test_ctrl_c_leaves_a_session_usable(client: Chucky, interrupt_here: Callable[[], str]) -> None:
    press = tool("press", "Presses Ctrl-C")(interrupt_here)
    with client.create_session(tools=[press]) as session:
        session.send(say({"tools": [{"name": "press"}]}, FOREVER))
        with pytest.raises(KeyboardInterrupt):
            list(session.stream())
        session.interrupt()
        session.send("What is 2 + 2?")
        assert list(session.stream())[-1].result == "2 + 2 = 4."


# ---- closing ---------------------------------------------------------------------------------


def thread_started_by(call: Callable[..., object], *arguments: Any) -> threading.Thread:
    """Make the first call of a client, and return the thread that its loop has got."""
    before = set(threading.enumerate())
    call(*arguments)
    [thread] = [t for t in threading.enumerate() if t.name == "chucky" and t not in before]
    return thread


def test_closing_ends_the_thread_and_may_be_repeated(server: Server) -> None:
    client = Chucky(server.token("sync"), server.url)
    session = client.create_session()
    thread = thread_started_by(session.send, "Hello")
    session.close()
    session.close()
    client.close()
    assert not thread.is_alive()
    client.close()
    with pytest.raises(SessionError, match="This session is closed"):
        session.send("Hello")


def test_a_closed_client_can_be_used_again_like_its_twin(client: Chucky) -> None:
    for _ in range(2):
        assert client.prompt("What is 2 + 2?").result == "2 + 2 = 4."
        client.close()


@pytest.mark.parametrize("what", ["client", "session"])
def test_closing_from_another_thread_ends_a_stream(client: Chucky, what: str) -> None:
    session = client.create_session()
    begun = threading.Event()

    def read() -> None:
        for _message in session.stream():
            begun.set()

    session.send(say(FOREVER))
    with ThreadPoolExecutor() as threads:
        reading = threads.submit(read)
        assert begun.wait(WAIT_SECONDS)
        (client if what == "client" else session).close()
        with pytest.raises(SessionError, match="The session was closed"):
            reading.result(WAIT_SECONDS)


def test_closing_from_another_thread_ends_a_prompt(client: Chucky) -> None:
    running = threading.Event()

    @tool("begin", "Begins")
    def begin() -> str:
        running.set()
        return "begun"

    asked = say({"tools": [{"name": "begin"}]}, FOREVER)
    with ThreadPoolExecutor() as threads:
        prompting = threads.submit(client.prompt, asked, tools=[begin])
        assert running.wait(WAIT_SECONDS)
        client.close()
        with pytest.raises(SessionError, match="The session was closed"):
            prompting.result(WAIT_SECONDS)


def test_a_client_that_is_dropped_closes_itself(server: Server) -> None:
    client = Chucky(server.token("sync"), server.url)
    session = client.create_session()
    thread = thread_started_by(session.send, "Hello")
    dropped = weakref.ref(client)

    del client
    gc.collect()
    assert dropped() is not None  # its session is still in use
    assert list(session.stream())[-1].subtype == "success"

    del session
    gc.collect()
    assert dropped() is None
    thread.join(WAIT_SECONDS)
    assert not thread.is_alive()


def test_a_stream_keeps_its_client(server: Server) -> None:
    events = Chucky(server.token("sync"), server.url).stream("What is 2 + 2?")
    gc.collect()
    assert [event.data.result for event in events if event.type == "result"] == ["2 + 2 = 4."]


@pytest.mark.parametrize("ending", ["", "import sys; sys.exit(3)", "raise KeyboardInterrupt"])
def test_a_program_that_closes_nothing_ends_at_once_and_says_goodbye(
    server: Server, ending: str
) -> None:
    code = f"""
import logging
from chucky.sync import Chucky
client = Chucky({server.token("sync")!r}, {server.url!r}, debug=True)
session = client.create_session()
session.send("What is 2 + 2?")
for message in session.stream():
    print(message)
session.send({say(FOREVER)!r})
{ending}
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
    )
    assert "2 + 2 = 4." in done.stdout
    assert "> closing with 1000" in done.stderr
    assert "Exception ignored" not in done.stderr
    assert done.returncode == {"": 0, "import sys; sys.exit(3)": 3}.get(ending, -signal.SIGINT)


# ---- threads and loops -----------------------------------------------------------------------


def test_many_threads_may_use_one_client(client: Chucky) -> None:
    def add(number: int) -> str:
        return str(client.prompt(f"What is {number} + 1?").result)

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(add, range(24)))
    assert answers == [f"{number} + 1 = {number + 1}." for number in range(24)]


def test_threads_may_share_a_session(client: Chucky) -> None:
    with client.create_session() as session, ThreadPoolExecutor(4) as threads:
        list(threads.map(session.send, [say({"text": f"{number}."}) for number in range(4)]))
        turns = threads.map(lambda _: list(session.stream())[-1].result, range(4))
        assert sorted(turns) == ["0.", "1.", "2.", "3."]


def test_a_tool_that_is_a_plain_function_may_use_its_client(client: Chucky) -> None:
    @tool("ask", "Asks another model")
    def ask() -> str:
        return str(client.prompt("What is 2 + 2?").result)

    result = client.prompt(say({"tools": [{"name": "ask"}]}, {"text": "Done."}), tools=[ask])
    [answer] = [each for each in result.messages if each["type"] == "user"]
    assert "2 + 2 = 4." in json.dumps(answer)


def test_a_tool_on_the_loop_of_its_client_is_told_that_it_would_wait_for_itself(
    client: Chucky,
) -> None:
    @tool("ask", "Asks another model")
    async def ask() -> str:
        return str(client.prompt("What is 2 + 2?").result)

    result = client.prompt(say({"tools": [{"name": "ask"}]}, {"text": "Done."}), tools=[ask])
    [answer] = [each for each in result.messages if each["type"] == "user"]
    assert "make the tool a plain function (def), which runs in a thread" in json.dumps(answer)


@pytest.mark.may_block("that is what is looked at")
async def test_in_a_coroutine_it_works_and_warns_that_it_blocks(client: Chucky) -> None:
    words = "chucky.sync blocks the event loop .* use chucky.Chucky and await it"
    with pytest.warns(RuntimeWarning, match=words) as caught:
        result = client.prompt("What is 2 + 2?")
    assert result.result == "2 + 2 = 4."
    assert caught[0].filename == __file__
    with pytest.warns(RuntimeWarning, match=words) as caught:
        events = list(client.stream("What is 2 + 2?"))
    assert events[-1].type == "done"
    assert caught[0].filename == __file__


@pytest.mark.may_block("as the cells of a notebook do")
async def test_in_a_notebook_nothing_is_said(
    client: Chucky, monkeypatch: pytest.MonkeyPatch
) -> None:
    ipython = types.SimpleNamespace(get_ipython=object)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    assert client.prompt("What is 2 + 2?").result == "2 + 2 = 4."
    assert asyncio.get_running_loop().is_running()


def test_importing_it_loads_neither_pydantic_nor_jsonschema() -> None:
    code = "import sys, chucky.sync; print('pydantic' in sys.modules, 'jsonschema' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=30
    )
    assert done.stdout == "False False\n"
