"""Tools on the client side: what a tool is, how a call runs, and servers of tools.

``defect NN`` in a docstring names the defect of the published package that the test would find.
"""

import asyncio
import contextvars
import dataclasses
import functools
import inspect
import json
import math
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Literal

import pytest
from pydantic import BaseModel, RootModel

from chucky.errors import ValidationError
from chucky.tools import (
    InputSchema,
    McpSdkServerConfig,
    McpServer,
    SdkMcpTool,
    Tool,
    ToolResult,
    call_tool,
    collect_tools,
    create_mcp_server,
    create_sdk_mcp_server,
    error_result,
    text_result,
    tool,
    tool_definition,
)

WAIT_SECONDS = 10.0


class Person(BaseModel):
    name: str


def text_of(result: ToolResult) -> str:
    assert [item["type"] for item in result.content] == ["text"]
    text = result.content[0]["text"]
    assert isinstance(text, str)
    return text


async def call(function: Callable[..., Any], arguments: object, **options: Any) -> ToolResult:
    async with asyncio.timeout(WAIT_SECONDS):
        return await call_tool(tool("probe", "A probe", **options)(function), arguments)


# ---- what a tool is ------------------------------------------------------------------------


def test_the_decorator_makes_a_tool() -> None:
    @tool("greet", "Greet someone", timeout=7)
    async def greet(name: str) -> str:
        return name

    assert isinstance(greet, Tool)
    assert (greet.name, greet.description) == ("greet", "Greet someone")
    assert (greet.execute_in, greet.timeout_seconds) == ("client", 7)
    assert greet.input_schema == {
        "type": "object",
        "properties": {"name": {"type": "string"}},
        "required": ["name"],
        "additionalProperties": False,
    }


async def test_the_schema_may_be_the_third_positional_argument() -> None:
    schema = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}

    @tool("greet", "Greet someone", schema)
    async def greet(args: dict[str, Any]) -> str:
        return f"Hello {args['name']}"

    assert greet.input_schema is schema
    assert text_of(await call_tool(greet, {"name": "Ada"})) == "Hello Ada"


def test_calling_a_tool_calls_the_function_it_was_made_from() -> None:
    @tool("add", "Add")
    def add(a: int, b: int = 2) -> int:
        return a + b

    assert add(1) == 3
    assert add(1, b=5) == 6


async def test_calling_a_tool_made_directly_calls_its_handler() -> None:
    async def handler(arguments: dict[str, Any]) -> str:
        return str(arguments["a"])

    made = Tool("t", "d", {"type": "object", "properties": {"a": {}}}, handler)
    assert await made({"a": 1}) == "1"


async def test_awaiting_the_handler_gives_the_raw_result_of_async_and_plain_functions() -> None:
    thread = threading.current_thread()

    @tool("async_one", "Async")
    async def async_one(a: int) -> tuple[int, threading.Thread]:
        return a, threading.current_thread()

    @tool("plain_one", "Plain")
    def plain_one(a: int) -> tuple[int, threading.Thread]:
        return a, threading.current_thread()

    assert await async_one.handler({"a": 1}) == (1, thread)
    assert await plain_one.handler({"a": 2}) == (2, thread)
    with pytest.raises(ValidationError, match="'async_one': parameter 'a' is missing"):
        await async_one.handler({})


async def test_a_tool_made_directly_gets_the_whole_input_after_validation() -> None:
    seen: list[dict[str, Any]] = []

    def handler(arguments: dict[str, Any]) -> ToolResult:
        seen.append(arguments)
        return text_result("ok")

    schema: InputSchema = {
        "type": "object",
        "properties": {"name": {"type": "string"}},
        "required": ["name"],
    }
    made = Tool(name="t", description="d", input_schema=schema, handler=handler)
    given_arguments = {"name": "x", "more": 1}
    assert await call_tool(made, given_arguments) == text_result("ok")
    assert (await call_tool(made, {"name": 5})).is_error
    assert seen == [{"name": "x", "more": 1}]
    assert seen[0] is not given_arguments


def test_the_fields_keep_the_positions_they_had() -> None:
    handler = len
    schema = {"type": "object"}
    made = Tool("n", "d", schema, handler, "client", 5.0)
    assert dataclasses.astuple(dataclasses.replace(made, input_schema=schema))[:2] == ("n", "d")
    assert (made.input_schema, made.handler, made.timeout_seconds) == (schema, handler, 5.0)
    assert ToolResult([], True).is_error
    assert McpServer("s", [made], "2").version == "2"
    assert McpSdkServerConfig("sdk", "s", None).instance is None
    assert SdkMcpTool("n", "d", schema, _describe).handler is _describe


async def test_a_copy_with_another_time_limit_runs_the_same_function() -> None:
    @tool("t", "d")
    def original(a: int) -> int:
        return a

    copy = dataclasses.replace(original, name="u", timeout_seconds=1.0)
    assert text_of(await call_tool(copy, {"a": 3})) == "3"


async def _describe(arguments: dict[str, Any]) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": json.dumps(arguments)}]}


def test_a_tool_says_client_on_the_wire_as_it_does_on_the_object() -> None:
    """defect 31"""

    @tool("t", "What it does")
    def made(a: int) -> None: ...

    assert tool_definition(made) == {
        "name": "t",
        "description": "What it does",
        "inputSchema": made.input_schema,
        "executeIn": made.execute_in,
    }
    assert json.loads(json.dumps(tool_definition(made)))["executeIn"] == "client"


@pytest.mark.parametrize("name", ["", "a b", "é", "a.b", "a" * 65, "mcp__a", "a\n", None, 5])
def test_a_bad_name_is_refused_where_the_tool_is_defined(name: Any) -> None:
    with pytest.raises(ValidationError, match="name of"):
        tool(name, "d")
    with pytest.raises(ValidationError, match="name of"):
        Tool(name, "d", {"type": "object"}, len)


@pytest.mark.parametrize("description", ["", "  \n", None, 5])
def test_a_bad_description_is_refused(description: Any) -> None:
    with pytest.raises(ValidationError, match="description of tool 't'"):
        tool("t", description)


@pytest.mark.parametrize("timeout", [0, -1, math.nan, math.inf, True, "5", None])
def test_a_bad_time_limit_is_refused(timeout: Any) -> None:
    with pytest.raises(ValidationError, match="timeout of tool 't'"):
        tool("t", "d", timeout=timeout)(lambda: None)


def test_execution_elsewhere_and_handlers_that_cannot_be_called_are_refused() -> None:
    elsewhere: Any = "browser"
    not_callable: Any = "handler"
    with pytest.raises(ValidationError, match="executed in 'client', not 'browser'"):
        Tool("t", "d", {"type": "object"}, len, elsewhere)
    with pytest.raises(ValidationError, match="must be callable"):
        Tool("t", "d", {"type": "object"}, not_callable)


def _generator() -> Iterator[int]:
    yield 1


class _Toolbox:
    def method(self, a: int) -> int:
        return a


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (Person, "must be made from a function"),
        (5, "must be made from a function"),
        (_generator, "is a generator"),
        (_Toolbox.method, "not bound to an object"),
        (dict.fromkeys, None),
    ],
)
def test_what_is_not_a_function_with_parameters_is_refused(
    function: Any, sentence: str | None
) -> None:
    if sentence is None:
        tool("t", "d")(function)
        return
    with pytest.raises(ValidationError, match=sentence):
        tool("t", "d")(function)


async def test_bound_methods_partials_and_callable_objects_are_functions_too() -> None:
    class Adder:
        """Not the description of a parameter."""

        async def __call__(self, a: int, b: "Literal[1, 2]") -> int:
            """Add.

            Args:
                a: The first.
            """
            return a + b

    made = tool("t", "d")(Adder())
    assert made.input_schema["properties"]["a"]["description"] == "The first."
    assert text_of(await call_tool(made, {"a": 1, "b": 2})) == "3"
    assert text_of(await call(_Toolbox().method, {"a": 4})) == "4"
    assert text_of(await call(functools.partial(Adder(), 5), {"b": 2})) == "7"


@pytest.mark.parametrize(
    ("schema", "sentence"),
    [
        ({"properties": {}}, '"type": "object"'),
        ({"type": "array"}, "its type is 'array'"),
        ({"a": int}, '"type": "object"'),
        ({"type": "object", "properties": {"a": {"type": "strin"}}}, r"at \$\.properties\.a\.type"),
        ({"type": "object", "required": None}, r"at \$\.required"),
        ({"type": "object", "properties": {"a": {"pattern": "["}}}, r"\$\.properties\.a\.pattern"),
        ({"type": "object", "properties": {"a": {"default": {1}}}}, "cannot be sent as JSON"),
        ({"type": "object", "properties": {"a": {"default": math.nan}}}, "cannot be sent as JSON"),
        ({"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}}}, "refers to '#/"),
        ({"type": "object", "anyOf": [{"$ref": "http://localhost/a"}]}, "refers to 'http://"),
        (RootModel[list[int]], '"type": "object"'),
        (int, "JSON Schema dict or a pydantic model class"),
        ("object", "JSON Schema dict or a pydantic model class"),
    ],
)
def test_a_schema_that_cannot_work_is_refused_where_the_tool_is_defined(
    schema: Any, sentence: str
) -> None:
    with pytest.raises(ValidationError, match=sentence):
        tool("t", "d", schema=schema)(lambda args: None)
    if isinstance(schema, dict):
        with pytest.raises(ValidationError, match=sentence):
            Tool("t", "d", schema, lambda args: None)


# ---- running -------------------------------------------------------------------------------


async def test_a_blocking_handler_does_not_block_the_loop() -> None:
    """defect 7"""
    release = threading.Event()

    def handler() -> str:
        assert release.wait(WAIT_SECONDS)
        return "released"

    async with asyncio.timeout(WAIT_SECONDS), asyncio.TaskGroup() as group:
        blocked = group.create_task(call(handler, {}))
        group.create_task(_set_soon(release))
    assert text_of(blocked.result()) == "released"


async def _set_soon(event: threading.Event) -> None:
    event.set()


async def test_blocking_handlers_overlap() -> None:
    """defect 7"""
    both = threading.Barrier(2)

    def handler() -> str:
        both.wait(WAIT_SECONDS)  # raises if the other one does not come
        return "met"

    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(call(handler, {})) for _ in range(2)]
    assert [text_of(done.result()) for done in calls] == ["met", "met"]


async def test_async_handlers_run_on_the_loop_and_plain_ones_in_daemon_threads() -> None:
    async def asynchronous() -> bool:
        return threading.current_thread() is threading.main_thread()

    def plain() -> bool:
        return threading.current_thread().daemon

    class CallableObject:
        async def __call__(self) -> bool:
            return threading.current_thread() is threading.main_thread()

    for handler in (asynchronous, plain, CallableObject(), functools.partial(asynchronous)):
        assert text_of(await call(handler, {})) == "true"


async def test_an_awaitable_from_a_plain_function_is_awaited_on_the_loop() -> None:
    loop = asyncio.get_running_loop()

    async def inner(a: int) -> object:
        return [a, asyncio.get_running_loop() is loop]

    def handler(a: int) -> Awaitable[object]:
        return inner(a)

    assert text_of(await call(handler, {"a": 1})) == "[1, true]"
    made = Tool("t", "d", {"type": "object"}, lambda arguments: inner(len(arguments)))
    assert text_of(await call_tool(made, {})) == "[0, true]"


async def test_context_variables_reach_the_handler() -> None:
    user: contextvars.ContextVar[str] = contextvars.ContextVar("user")
    user.set("ada")

    def handler() -> str:
        return user.get()

    assert text_of(await call(handler, {})) == "ada"


async def test_an_async_handler_is_cancelled_when_its_time_is_up() -> None:
    cancelled = asyncio.Event()

    async def handler() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    result = await call(handler, {}, timeout=0.01)
    assert result == error_result("Error: tool 'probe' did not finish within 0.01 seconds.")
    assert cancelled.is_set()


async def test_a_blocking_handler_is_left_behind_when_its_time_is_up() -> None:
    release = threading.Event()

    def handler() -> None:
        release.wait(WAIT_SECONDS)

    try:
        result = await call(handler, {}, timeout=0.01)
        assert "did not finish within 0.01 seconds" in text_of(result)
    finally:
        release.set()


async def test_a_coroutine_that_comes_too_late_is_closed() -> None:
    loop = asyncio.get_running_loop()
    started = asyncio.Event()
    release = threading.Event()

    async def inner() -> None: ...

    late = inner()

    def handler() -> Awaitable[None]:
        loop.call_soon_threadsafe(started.set)
        release.wait(WAIT_SECONDS)
        return late

    task = asyncio.create_task(call(handler, {}))
    async with asyncio.timeout(WAIT_SECONDS):
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        release.set()
        while inspect.getcoroutinestate(late) != inspect.CORO_CLOSED:  # noqa: ASYNC110
            await asyncio.sleep(0)  # nothing announces it


async def test_cancelling_a_call_cancels_it() -> None:
    started = asyncio.Event()

    async def handler() -> None:
        started.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(call(handler, {}))
    async with asyncio.timeout(WAIT_SECONDS):
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_the_number_of_threads_is_bounded_and_the_waiting_calls_run_in_turn() -> None:
    limit = 64
    loop = asyncio.get_running_loop()
    started = asyncio.Semaphore(0)
    release = threading.Event()
    ran: list[str] = []

    def blocking() -> None:
        loop.call_soon_threadsafe(started.release)
        release.wait(WAIT_SECONDS)

    def given_up() -> None:
        ran.append("given up")

    def patient() -> None:
        ran.append("patient")

    try:
        async with asyncio.timeout(WAIT_SECONDS), asyncio.TaskGroup() as group:
            for _ in range(limit):
                group.create_task(call(blocking, {}))
            for _ in range(limit):
                await started.acquire()
            waiting = group.create_task(call(patient, {}))
            # Its time is up while it waits for a thread, so it never begins.
            assert "did not finish" in text_of(await call(given_up, {}, timeout=0.01))
            assert not waiting.done()
            release.set()
    finally:
        release.set()
    assert ran == ["patient"]


def test_a_handler_that_never_returns_does_not_keep_the_program_from_ending() -> None:
    """defect 7: with threads that are joined at exit this process would not end."""
    script = """
import asyncio, threading
from chucky.tools import call_tool, tool

async def main():
    loop, started = asyncio.get_running_loop(), asyncio.Event()
    @tool("t", "d")
    def forever():
        loop.call_soon_threadsafe(started.set)
        threading.Event().wait()
    task = asyncio.create_task(call_tool(forever, {}))
    await started.wait()
    task.cancel()
    await asyncio.wait([task])
    print(task.cancelled())

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("True\n", "")


# ---- servers -------------------------------------------------------------------------------


def _named(name: str) -> Tool:
    return tool(name, "d")(lambda: name)


def test_an_sdk_server_can_stand_wherever_a_server_can() -> None:
    """defect 2"""
    add = _named("add")
    config = create_sdk_mcp_server("calculator", "2.0.0", [add])
    server = create_mcp_server("calculator", [add], "2.0.0")
    assert (config.type, config.instance) == ("sdk", server)
    assert (config.name, config.version, config.tools) == ("calculator", "2.0.0", [add])
    assert collect_tools([config]) == collect_tools([server]) == {"add": add}
    assert create_sdk_mcp_server("empty").tools == []


def test_an_sdk_server_without_a_server_in_it_says_so() -> None:
    """defect 2"""
    for config in (McpSdkServerConfig(name="s"), McpSdkServerConfig(name="s", instance=object())):
        with pytest.raises(ValidationError, match="instance of server 's'"):
            collect_tools([config])


def test_the_tools_of_all_servers_are_one_name_space() -> None:
    first, second = _named("a"), _named("b")
    servers: list[McpServer | McpSdkServerConfig] = [
        create_mcp_server("one", [first]),
        create_sdk_mcp_server("two", tools=[second]),
    ]
    assert collect_tools(servers) == {"a": first, "b": second}
    assert collect_tools([]) == {}


def test_one_name_in_two_servers_is_refused_with_both_places() -> None:
    """defect 29"""
    one = create_mcp_server("one", [_named("a")])
    two = create_mcp_server("two", [_named("b"), _named("a")])
    with pytest.raises(
        ValidationError, match="'a': tool number 1 of server 'one' and tool number 2"
    ):
        collect_tools([one, two])


def test_one_name_twice_in_a_server_is_refused_with_both_places() -> None:
    """defect 29"""
    sentence = "tool number 1 of server 's' and tool number 2 of server 's'"
    with pytest.raises(ValidationError, match=sentence):
        create_mcp_server("s", [_named("a"), _named("a")])
    with pytest.raises(ValidationError, match=sentence):
        create_sdk_mcp_server("s", tools=[_named("a"), _named("a")])
    server = create_mcp_server("s", [_named("a")])
    server.tools.append(_named("a"))
    with pytest.raises(ValidationError, match=sentence):
        collect_tools([server])


def test_two_servers_of_one_name_are_refused() -> None:
    with pytest.raises(ValidationError, match="Two servers are called 's'"):
        collect_tools([create_mcp_server("s", []), create_mcp_server("s", [])])


def test_in_a_mapping_the_key_is_the_name_of_the_server() -> None:
    """defect 31: the published package ignores the keys."""
    server = create_mcp_server("s", [_named("a")])
    assert list(collect_tools({"one": server})) == ["a"]
    with pytest.raises(ValidationError, match=r"server 'one' and .* server 'two'"):
        collect_tools({"one": server, "two": server})
    with pytest.raises(ValidationError, match="not 'o n e'"):
        collect_tools({"o n e": server})


@pytest.mark.parametrize("name", ["", "a b", "a__b", "a_", "é", "a\n", None])
def test_a_server_name_that_would_blur_the_long_names_is_refused(name: Any) -> None:
    with pytest.raises(ValidationError, match="name of"):
        create_mcp_server(name, [])


def test_long_names_fit_into_what_the_api_allows() -> None:
    longest = _named("t" * 64)
    assert create_mcp_server("s" * (128 - 7 - 64), [longest]).tools == [longest]
    with pytest.raises(ValidationError, match="has 129 characters, 128 are allowed"):
        create_mcp_server("s" * (129 - 7 - 64), [longest])


def test_what_is_no_server_or_no_tool_is_refused() -> None:
    wrong: Any = {"type": "http"}
    function: Any = len
    version: Any = 2
    with pytest.raises(ValidationError, match="not be of type 'dict'"):
        collect_tools([wrong])
    with pytest.raises(ValidationError, match="not be of type 'dict'"):
        collect_tools({"s": wrong})
    with pytest.raises(ValidationError, match="which is not a tool"):
        create_mcp_server("s", [function])
    with pytest.raises(ValidationError, match="version of server 's'"):
        create_mcp_server("s", [], version)


async def test_a_tool_of_the_agent_sdk_becomes_a_tool() -> None:
    async def with_instance(person: Person) -> dict[str, Any]:
        return {"content": [{"type": "text", "text": person.name}]}

    by_dict = SdkMcpTool("by_dict", "d", {"type": "object", "properties": {"a": {}}}, _describe)
    by_class = SdkMcpTool("by_class", "d", Person, with_instance)
    tools = collect_tools([create_sdk_mcp_server("s", tools=[by_dict, by_class])])
    assert text_of(await call_tool(tools["by_dict"], {"a": 1})) == '{"a": 1}'
    assert text_of(await call_tool(tools["by_class"], {"name": "Ada"})) == "Ada"


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_handler_that_exits_does_not_end_the_program(is_async: bool) -> None:
    def leave() -> str:
        raise SystemExit("usage: leave")

    async def leave_async() -> str:
        raise SystemExit("usage: leave")

    leaving = tool("leave", "Leaves")(leave_async if is_async else leave)
    result = await call_tool(leaving, {})
    assert result.is_error
    assert "usage: leave" in result.content[0]["text"]
