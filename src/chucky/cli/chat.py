"""``chucky chat``: a conversation in the terminal."""

from __future__ import annotations

import sys
from concurrent.futures import Future
from typing import TYPE_CHECKING

import typer

from chucky.cli.options import (
    ConfigOption,
    DbOption,
    MaxTurnsOption,
    ModelOption,
    SystemPromptOption,
    TokenOption,
    UrlOption,
    load_settings,
)
from chucky.errors import ChuckyError

if TYPE_CHECKING:
    from chucky.cli.terminal import Transcript
    from chucky.loopthread import LoopThread
    from chucky.session import Session

_TOKEN_SECONDS = 86_400
_INTERRUPT_SECONDS = 10.0


def chat(
    url: UrlOption = None,
    token: TokenOption = None,
    model: ModelOption = None,
    system_prompt: SystemPromptOption = None,
    max_turns: MaxTurnsOption = None,
    db: DbOption = None,
    config: ConfigOption = None,
) -> None:
    """Talk with Claude in the terminal.

    Each line is a message; one that ends with a backslash goes on in the next line. Ctrl-C stops
    the answer that is being given; at the prompt Ctrl-C, Ctrl-D and /exit end.
    """
    from chucky import Chucky
    from chucky.cli.target import server_url, user_token
    from chucky.cli.terminal import Transcript
    from chucky.loopthread import LoopThread

    settings = load_settings(config, db=db)
    address = server_url(settings, url)
    bearer = user_token(settings, address, token, _TOKEN_SECONDS)
    client = Chucky(bearer, url=address, include_partial_messages=True)
    session = client.create_session(model=model, system_prompt=system_prompt, max_turns=max_turns)
    with LoopThread() as loop:
        try:
            _Conversation(loop, session, Transcript()).run()
        finally:
            loop.run(client.close())


class _Conversation:
    """Reads in the main thread, where Ctrl-C arrives; the connection lives on a loop beside it.

    That way the connection is kept alive also while nobody types.
    """

    def __init__(self, loop: LoopThread, session: Session, transcript: Transcript) -> None:
        self._loop = loop
        self._session = session
        self._transcript = transcript
        self._interrupted = False

    def run(self) -> None:
        while (line := self._read()) is not None:
            if line.strip() == "/exit":
                break
            if line.strip():
                self._answer(line)

    def _read(self) -> str | None:
        """Return the next message, or ``None`` when there will be no more."""
        on_terminal = sys.stdin.isatty()
        if on_terminal:
            import readline  # noqa: F401  # gives input() its line editing
        message = ""
        try:
            message = input("> " if on_terminal else "")
            while message.endswith("\\"):
                message = f"{message[:-1]}\n{input('. ' if on_terminal else '')}"
        except KeyboardInterrupt:
            message = ""
        except EOFError:
            pass  # a message that was begun counts
        else:
            return message
        if on_terminal:
            typer.echo()
        return message or None

    def _answer(self, line: str) -> None:
        self._interrupted = False
        turn = self._loop.submit(self._turn(line))
        try:
            self._wait(turn)
        finally:
            turn.cancel()
            self._transcript.end_line()

    def _wait(self, turn: Future[None]) -> None:
        """Wait for a turn to end. The first Ctrl-C stops the turn, the second the program."""
        try:
            turn.result()
        except KeyboardInterrupt:
            self._interrupted = True
            self._loop.run(self._interrupt())
            turn.result()

    async def _turn(self, line: str) -> None:
        await self._session.send(line)
        async for message in self._session.stream():
            self._transcript.show(message, interrupted=self._interrupted)

    async def _interrupt(self) -> None:
        import asyncio

        try:
            async with asyncio.timeout(_INTERRUPT_SECONDS):
                await self._session.interrupt()
        except ChuckyError as error:
            typer.echo(f"Error: {error}", err=True)
