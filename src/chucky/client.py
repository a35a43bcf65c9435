"""The client: where an application begins."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import warnings
from collections.abc import AsyncGenerator, Callable
from typing import Any, ParamSpec

from chucky.errors import ChuckyConnectionError, ValidationError
from chucky.messages import Message, PromptResult, StreamEvent
from chucky.options import (
    DEFAULT_MODEL,
    DEFAULT_URL,
    ChuckyOptions,
    McpServers,
    PromptOptions,
    TokenSource,
)
from chucky.session import Content, Session
from chucky.tools import Tool

logger = logging.getLogger("chucky")

P = ParamSpec("P")


def _url_may_come_first(init: Callable[P, None]) -> Callable[P, None]:
    """Let ``Chucky(url, …)``, the order of version 0.2.0, go on working.

    A token never looks like a url, so the two orders cannot be confused. This is a wrapper
    because ``Chucky(url, token=…)`` would give ``token`` twice before any code of ours runs.
    """

    @functools.wraps(init)
    def accept(*args: P.args, **kwargs: P.kwargs) -> None:
        if len(args) < 2 or not _is_url(args[1]):
            return init(*args, **kwargs)
        warnings.warn(
            "Chucky(url, token) is the order of version 0.2.0; write Chucky(token, url=…).",
            DeprecationWarning,
            stacklevel=2,
        )
        client, url, *rest = args
        return init(client, *rest, url=url, **kwargs)  # type: ignore[arg-type]

    return accept


def _is_url(argument: object) -> bool:
    return isinstance(argument, str) and argument.startswith(("ws://", "wss://"))


class Chucky:
    """A client of a Chucky server.

    It holds options and makes sessions; each session has a connection of its own, so one client
    may serve many tasks at once. As an asynchronous context manager it closes itself.

    Example::

        async with Chucky(token, url="ws://127.0.0.1:8787/ws") as client:
            result = await client.prompt("What is the capital of France?")
            print(result.result)
    """

    @_url_may_come_first
    def __init__(
        self,
        token: TokenSource | None = None,
        url: str | None = None,
        model: str = DEFAULT_MODEL,
        system_prompt: str | None = None,
        max_turns: int | None = None,
        timeout: float = 30.0,
        keepalive_interval: float = 60.0,
        *,
        allowed_tools: list[str] | None = None,
        disallowed_tools: list[str] | None = None,
        mcp_servers: McpServers | None = None,
        include_partial_messages: bool = False,
        turn_timeout: float | None = None,
        debug: bool = False,
    ) -> None:
        """Make a client; nothing is connected yet.

        Args:
            token: The end user's token, or a function (plain or asynchronous) that returns one
                and is asked for every connection. Without it ``CHUCKY_TOKEN`` is used.
            url: The server's WebSocket address. Without it ``CHUCKY_URL`` is used, and without
                that the hosted service.
            model: The model, by its exact name or an alias (``sonnet``, ``opus``, ``haiku``).
            system_prompt: The system prompt.
            max_turns: How often the model may be called to answer one message.
            timeout: Seconds for connecting, and again for the server to be ready.
            keepalive_interval: Seconds between keep-alive pings. A server that stays silent for
                two of them while an answer is awaited is given up.
            allowed_tools: Tools the agent may use without asking, by name. Our own server's
                engine never asks, and says that it ignores this.
            disallowed_tools: Tools the model may not use, by name.
            mcp_servers: Servers of tools, for all sessions; a mapping's keys name them.
            include_partial_messages: Also yield partial messages while the model writes.
            turn_timeout: Seconds a turn may take in all; None for no limit but the server's.
            debug: Log every frame to the logger ``chucky``, and that to standard error.

        Raises:
            ValidationError: There is no token, or the url or a number is wrong.
        """
        self.options = ChuckyOptions(
            url=url or os.environ.get("CHUCKY_URL") or DEFAULT_URL,
            token=token or os.environ.get("CHUCKY_TOKEN") or "",
            model=model,
            system_prompt=system_prompt,
            max_turns=max_turns,
            allowed_tools=allowed_tools,
            disallowed_tools=disallowed_tools,
            mcp_servers=mcp_servers,
            timeout=timeout,
            keepalive_interval=keepalive_interval,
            turn_timeout=turn_timeout,
            include_partial_messages=include_partial_messages,
        )
        self.options.check()
        self.debug = debug
        if debug:
            _log_to_stderr()
        self._sessions: set[Session] = set()

    async def __aenter__(self) -> Chucky:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    def create_session(
        self,
        *,
        model: str | None = None,
        system_prompt: str | None = None,
        tools: list[Tool] | None = None,
        max_turns: int | None = None,
        include_partial_messages: bool | None = None,
    ) -> Session:
        """Make a session of several turns. It connects on its first ``send()``.

        Arguments that are None keep what the client was made with.

        Raises:
            ValidationError: A tool is wrong, or two have the same name.
        """
        wanted = PromptOptions(model, system_prompt, max_turns, tools, include_partial_messages)
        session = Session(self.options, wanted, self.debug, on_close=self._sessions.discard)
        self._sessions.add(session)
        return session

    async def prompt(
        self,
        message: Content,
        *,
        model: str | None = None,
        system_prompt: str | None = None,
        tools: list[Tool] | None = None,
        max_turns: int | None = None,
    ) -> PromptResult:
        """Send one message, wait for the whole answer and return its result.

        A turn that fails is a result too: its ``subtype`` is ``'error'``.

        Raises:
            ValidationError: An argument is wrong.
            ChuckyConnectionError: The server cannot be reached, or the connection was lost.
            ChuckyTimeoutError: Connecting or the turn took too long.
            AuthenticationError: The server refused the token.
        """
        session = self.create_session(
            model=model, system_prompt=system_prompt, tools=tools, max_turns=max_turns
        )
        async with session:
            await session.send(message)
            messages = [each async for each in session.stream()]
        result = messages[-1]
        if not isinstance(result, PromptResult):
            raise ChuckyConnectionError("The server ended the turn without a result.")
        result.messages = list(messages)
        return result

    async def stream(
        self,
        message: Content,
        *,
        model: str | None = None,
        system_prompt: str | None = None,
        tools: list[Tool] | None = None,
        max_turns: int | None = None,
        include_partial_messages: bool | None = None,
        options: PromptOptions | None = None,
        debug: bool = False,
    ) -> AsyncGenerator[StreamEvent, None]:
        """Send one message and yield events as the answer comes.

        Args:
            message: The text, or a list of content blocks.
            model: Overrides the client's.
            system_prompt: Overrides the client's.
            tools: Tools for this answer.
            max_turns: Overrides the client's.
            include_partial_messages: Also yield ``delta`` events while the model writes.
            options: The same options in one object, as version 0.2.0 took them; a keyword
                wins over it.
            debug: Log every frame of this call.

        Raises:
            ValidationError, ChuckyConnectionError, ChuckyTimeoutError, AuthenticationError: As
                :meth:`prompt`.
        """
        base = PromptOptions() if options is None else options
        if not isinstance(base, PromptOptions):
            raise ValidationError(
                f"options must be PromptOptions(…), not a {type(base).__name__}; or give each "
                "option as a keyword."
            )
        session = self.create_session(
            model=base.model if model is None else model,
            system_prompt=base.system_prompt if system_prompt is None else system_prompt,
            tools=base.tools if tools is None else tools,
            max_turns=base.max_turns if max_turns is None else max_turns,
            include_partial_messages=(
                base.include_partial_messages
                if include_partial_messages is None
                else include_partial_messages
            ),
        )
        if debug:
            session.debug = True
            _log_to_stderr()
        async with session:
            await session.send(message)
            async for each in session.stream():
                for event in _events(each):
                    yield event

    async def close(self) -> None:
        """Close every session that is still open."""
        async with asyncio.TaskGroup() as closing:
            for session in list(self._sessions):
                closing.create_task(session.close())


def _events(message: Message) -> list[StreamEvent]:
    kind = message.get("type")
    if kind == "stream_event":
        return [StreamEvent("delta", message)]
    if kind == "error":
        return [StreamEvent("error", message)]
    if kind == "result":
        done = {"sessionId": message.get("session_id", "")}
        return [StreamEvent("result", message), StreamEvent("done", done)]
    calls = [StreamEvent("tool_use", block) for block in _tool_uses(message)]
    return [StreamEvent("message", message), *calls]


def _tool_uses(message: Message) -> list[dict[str, Any]]:
    if message.get("type") != "assistant":
        return []
    inner = message.get("message")
    content = inner.get("content") if isinstance(inner, dict) else None
    return [
        block
        for block in (content if isinstance(content, list) else [])
        if isinstance(block, dict)
        and block.get("type") == "tool_use"
        and isinstance(block.get("name"), str)
    ]


def _log_to_stderr() -> None:
    if not logger.hasHandlers():
        logger.addHandler(logging.StreamHandler())
    logger.setLevel(logging.DEBUG)
