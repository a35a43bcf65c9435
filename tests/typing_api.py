"""What type checkers see of the public API. Checked by mypy with everything else, never run."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any, assert_type

from pydantic import BaseModel

import chucky.sync
from chucky import (
    Chucky,
    ChuckyError,
    McpServer,
    Message,
    PromptOptions,
    PromptResult,
    Session,
    StreamEvent,
    TokenBudget,
    Tool,
    ToolResult,
    create_budget,
    create_mcp_server,
    create_token,
    get_assistant_text,
    get_result_text,
    is_token_expired,
    text_result,
    tool,
    verify_token,
)


@tool("get_time", "Get current time")
async def get_time() -> dict[str, Any]:
    """Return anything a handler may return."""
    return {"time": "now"}


@tool("add", "Add two numbers")
def add(a: int, b: int) -> int:
    """Be a plain function."""
    return a + b


def make_token(secret: str) -> str:
    """Sign a token."""
    budget = create_budget(ai_dollars=1.00, compute_hours=1, window="day")
    assert_type(budget, TokenBudget)
    token = create_token("user-123", "project-1", secret, budget)
    assert_type(token, str)
    assert_type(verify_token(token, secret), bool)
    assert_type(is_token_expired(token), bool)
    return token


async def fetch_token() -> str:
    """Be a function that gives tokens."""
    return "a-token"


def clients(plain: Callable[[], str]) -> list[Chucky]:
    """Make clients in every way there is."""
    return [
        Chucky("a-token"),
        Chucky(token="a-token", url="ws://localhost/ws", model="opus", timeout=60.0),
        Chucky(plain),
        Chucky(fetch_token, mcp_servers={"math": create_mcp_server("math", [add])}),
        Chucky(mcp_servers=[create_mcp_server("math", [add])]),
        Chucky(mcp_servers={"docs": {"url": "https://example.com", "headers": {"X-Key": "k"}}}),
        Chucky(mcp_servers=[{"name": "files", "command": "mcp-files", "args": ["."]}]),
        Chucky(max_turns="3"),  # type: ignore[arg-type]
        Chucky(max_turn=3),  # type: ignore[call-arg]
        Chucky(permission_mode="yolo"),  # type: ignore[arg-type]
        Chucky(resume="an-id"),  # type: ignore[call-arg]
    ]


class Point(BaseModel):
    """Be the form of an answer."""

    x: int


def options(client: Chucky) -> list[Session]:
    """Give the options of a session, right and wrong."""
    return [
        client.create_session(
            output_format=Point,
            include_partial_messages=True,
            max_budget_usd=0.5,
            max_thinking_tokens=4000,
            fallback_model="haiku",
            permission_mode="plan",
            agents={"critic": {"description": "Finds faults", "prompt": "Find faults."}},
            env={"LANG": "C"},
            setting_sources=["project"],
            vessel="box",
            betas=[],
            resume="an-id",
            fork_session=True,
        ),
        client.create_session(output_format={"type": "object"}, allowed_tools=("Read",)),
        client.create_session(output_format="json"),  # type: ignore[arg-type]
        client.create_session(betas=[1]),  # type: ignore[list-item]
        client.create_session(max_turn=3),  # type: ignore[call-arg]
    ]


def use_blocking_client(token: str) -> None:
    """Use everything of the blocking twin."""
    with chucky.sync.Chucky(token, url="ws://localhost/ws", vessel="box") as client:
        assert_type(client, chucky.sync.Chucky)
        assert_type(client.prompt("Hello", tools=[add], output_format=Point), PromptResult)
        assert_type(client.stream("Hello", max_turns=3), Generator[StreamEvent, None, None])
        client.prompt("Hello", max_turn=3)  # type: ignore[call-arg]
        with client.create_session(resume="an-id") as session:
            assert_type(session, chucky.sync.Session)
            session.send("Hello")
            session.send(5)  # type: ignore[arg-type]
            assert_type(session.stream(), Generator[Message, None, None])
            assert_type(list(session.receive()), list[Message])
            session.interrupt()
            assert_type(session.session_id, str)
    chucky.sync.Chucky(max_turn=3)  # type: ignore[call-arg]


async def use_client(client: Chucky) -> None:
    """Use everything of a client."""
    assert_type(get_time, Tool)
    assert_type(add, Tool)
    assert_type(create_mcp_server("math", [add, get_time]), McpServer)
    assert_type(text_result("x"), ToolResult)
    async with client as entered:
        assert_type(entered, Chucky)
        result = await client.prompt("Hello", tools=[get_time, add], max_turns=3)
        assert_type(result, PromptResult)
        assert_type(get_result_text(result), str | None)
        events = client.stream("Hello", options=PromptOptions(model="opus"))
        assert_type(events, AsyncGenerator[StreamEvent, None])
        async for event in events:
            assert_type(event.type, str)
            assert_type(event.name, str | None)


async def use_session(client: Chucky) -> None:
    """Use everything of a session."""
    session = client.create_session(system_prompt="You are a math tutor.", tools=[get_time])
    assert_type(session, Session)
    async with session as entered:
        assert_type(entered, Session)
        await session.send("Hello")
        await session.send([{"type": "text", "text": "Hello"}])
        async for message in session.stream():
            assert_type(message, Message)
            assert_type(get_assistant_text(message), str)
        async for message in session.receive():
            assert_type(message, Message)
        await session.interrupt()
        assert_type(session.session_id, str)


def look_at(error: ChuckyError) -> tuple[str, str | None, dict[str, Any]]:
    """Branch on an error."""
    assert_type(error.code, str)
    return error.code, error.reason, error.details
