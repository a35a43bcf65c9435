"""The client: where an application begins."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import warnings
from collections.abc import AsyncGenerator, Callable
from typing import Any, ParamSpec, Unpack

from chucky import wire
from chucky.errors import ChuckyConnectionError, ChuckyError, ValidationError
from chucky.inquiries import SessionSummary
from chucky.messages import Message, PromptResult, StreamEvent
from chucky.options import (
    DEFAULT_MODEL,
    DEFAULT_URL,
    ChuckyOptions,
    ClientKeywords,
    PromptOptions,
    SessionKeywords,
    TokenSource,
    overridden,
)
from chucky.session import Session
from chucky.sessionlog import logger
from chucky.tools import Tool
from chucky.usermessage import Content

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
        turn_timeout: float | None = None,
        debug: bool = False,
        **defaults: Unpack[ClientKeywords],
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
            turn_timeout: Seconds a turn may take in all; None for no limit but the server's.
            debug: Log every frame to the logger ``chucky``, and that to standard error.
            **defaults: Any of :class:`~chucky.options.ClientKeywords`, for all sessions of this
                client; ``docs/sdk.md`` has a table of them.

        Raises:
            ValidationError: There is no token, or an option is wrong.
        """
        for name in SessionKeywords.__annotations__.keys() - ClientKeywords.__annotations__.keys():
            if name in defaults:
                raise ValidationError(
                    f"{name} is about one conversation: give it to create_session, prompt or "
                    "stream."
                )
        self.options = ChuckyOptions(
            url=url or os.environ.get("CHUCKY_URL") or DEFAULT_URL,
            token=token or os.environ.get("CHUCKY_TOKEN") or "",
            model=model,
            system_prompt=system_prompt,
            max_turns=max_turns,
            timeout=timeout,
            keepalive_interval=keepalive_interval,
            turn_timeout=turn_timeout,
            **defaults,
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
        **options: Unpack[SessionKeywords],
    ) -> Session:
        """Make a session of several turns. It connects on its first ``send()``.

        Arguments that are None keep what the client was made with.

        Args:
            model: The model.
            system_prompt: The system prompt.
            tools: Tools of this session, beside the servers in ``mcp_servers``.
            max_turns: How often the model may be called to answer one message.
            **options: Any of :class:`~chucky.options.SessionKeywords`; ``docs/sdk.md`` has a
                table of them.

        Raises:
            ValidationError: An option or a tool is wrong, or two tools have the same name.
        """
        return self._create_session(
            PromptOptions(model, system_prompt, max_turns, tools, **options)
        )

    def resume_session(
        self,
        session_id: str,
        *,
        model: str | None = None,
        system_prompt: str | None = None,
        tools: list[Tool] | None = None,
        max_turns: int | None = None,
        **options: Unpack[SessionKeywords],
    ) -> Session:
        """Go on with a session: ``create_session(resume=session_id, …)``.

        The server knows what was said. Options and tools are not kept: give them again.

        Raises:
            ValidationError: As :meth:`create_session`, or another session is named too.
        """
        if options.get("resume") is not None:
            raise ValidationError("resume_session takes the session's id once; leave out resume.")
        options["resume"] = session_id
        return self._create_session(
            PromptOptions(model, system_prompt, max_turns, tools, **options)
        )

    async def list_sessions(self, *, limit: int = 100) -> list[SessionSummary]:
        """Return the sessions of the token's user, the latest first.

        Args:
            limit: How many at most, from 1 to 1,000.

        Raises:
            ValidationError: The limit is none.
            SessionError: This server cannot list sessions (the hosted one cannot).
            ChuckyConnectionError, ChuckyTimeoutError, AuthenticationError: As :meth:`prompt`.
        """
        if isinstance(limit, bool) or limit not in range(1, 1001):
            raise ValidationError(
                f"limit must be a whole number from 1 to 1000, not {limit!r:.80}."
            )
        async with self.create_session() as session:
            found, _ = await session._inquire(wire.LIST_SESSIONS, limit=limit)
        return [SessionSummary.from_wire(each) for each in found]

    def _create_session(self, wanted: PromptOptions) -> Session:
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
        **options: Unpack[SessionKeywords],
    ) -> PromptResult:
        """Send one message, wait for the whole answer and return its result.

        A turn that fails is a result too: its ``subtype`` is ``'error'``. The keywords are those
        of :meth:`create_session`.

        Raises:
            ValidationError: An argument is wrong.
            ChuckyConnectionError: The server cannot be reached, or the connection was lost.
            ChuckyTimeoutError: Connecting or the turn took too long.
            AuthenticationError: The server refused the token.
        """
        session = self.create_session(
            model=model, system_prompt=system_prompt, tools=tools, max_turns=max_turns, **options
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
        options: PromptOptions | None = None,
        debug: bool = False,
        **more: Unpack[SessionKeywords],
    ) -> AsyncGenerator[StreamEvent, None]:
        """Send one message and yield events as the answer comes.

        Args:
            message: The text, or a list of content blocks.
            model: Overrides the client's.
            system_prompt: Overrides the client's.
            tools: Tools for this answer.
            max_turns: Overrides the client's.
            options: The same options in one object, as version 0.2.0 took them; a keyword
                wins over it.
            debug: Log every frame of this call.
            **more: The other keywords of :meth:`create_session`.

        Raises:
            ValidationError, ChuckyConnectionError, ChuckyTimeoutError, AuthenticationError: As
                :meth:`prompt`.
        """
        own = {
            "model": model,
            "system_prompt": system_prompt,
            "tools": tools,
            "max_turns": max_turns,
        }
        session = self._create_session(overridden(options, {**own, **more}))
        if debug:
            session.debug = True
            _log_to_stderr()
        async with session:
            await session.send(message)
            async for each in session.stream():
                for event in _events(each):
                    yield event

    async def close(self) -> None:
        """Close every session that is still open.

        Raises:
            SessionError: A session is in use on another event loop; the others are closed.
        """
        errors: list[ChuckyError] = []
        async with asyncio.TaskGroup() as closing:
            for session in list(self._sessions):
                closing.create_task(_close(session, errors))
        if errors:
            raise errors[0]


async def _close(session: Session, errors: list[ChuckyError]) -> None:
    try:
        await session.close()
    except ChuckyError as error:  # which must not keep the others from being closed
        errors.append(error)


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
