"""One WebSocket to a server: handshake, keep-alive, close. It knows frames, not turns."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidStatus,
    InvalidURI,
)

from . import wire
from .errors import (
    AuthenticationError,
    ChuckyConnectionError,
    ChuckyTimeoutError,
    ValidationError,
    error_from_wire,
)
from .options import TokenSource

logger = logging.getLogger("chucky")

# Bounds the memory one frame may take. Images and long tool results make frames of several MiB.
MAX_FRAME_BYTES = 64 * 1024 * 1024
CLOSE_TIMEOUT_SECONDS = 5.0

_HOSTED_DOMAIN = "chucky.cloud"


class Connection:
    """A connection whose handshake is done.

    Use :meth:`open` to get one. ``frames()`` must be iterated by one task only, and
    ``keep_alive()`` must run beside it.
    """

    def __init__(self, socket: ClientConnection, address: str, keepalive_interval: float) -> None:
        self._socket = socket
        self._address = address
        self._keepalive_interval = keepalive_interval
        self._heard_at = asyncio.get_running_loop().time()
        self._early: list[wire.ServerFrame] = []
        self.debug = False

    @classmethod
    async def open(
        cls,
        *,
        url: str,
        token: TokenSource,
        init: Mapping[str, Any],
        timeout: float,
        keepalive_interval: float,
        debug: bool = False,
    ) -> Connection:
        """Connect, send ``init`` and wait until the server is ready.

        ``init`` is sent at once: some servers want it before they say that they are ready, and
        none minds it. The first of ``ready``, ``session_info`` and the system's ``init``
        message counts as ready, because servers differ in the order they send them.

        Args:
            url: The WebSocket address.
            token: The token or where to get one.
            init: The session's options by their names on the wire.
            timeout: Seconds for connecting, and again for becoming ready.
            keepalive_interval: Seconds between two pings.
            debug: Log every frame.

        Raises:
            ChuckyConnectionError: The server cannot be reached or closed the connection.
            ChuckyTimeoutError: It took longer than ``timeout``.
            AuthenticationError: The token was refused. Other errors the server reports raise
                the class that belongs to their code.
        """
        address = _without_query(url)
        target, headers = _credentials(url, await _ask(token))
        socket = await _connect(target, headers, address, timeout)
        connection = cls(socket, address, keepalive_interval)
        connection.debug = debug
        try:
            async with asyncio.timeout(timeout):
                await connection._handshake(init)
        except TimeoutError:
            await connection.close()
            raise ChuckyTimeoutError(
                f"{address} accepted the connection but was not ready within {timeout:g} s."
            ) from None
        except BaseException:
            await connection.close()
            raise
        return connection

    async def _handshake(self, init: Mapping[str, Any]) -> None:
        await self.send(wire.init_frame(init))
        async for frame in self.frames():
            if isinstance(frame, wire.ErrorFrame):
                raise error_from_wire(frame.payload)
            self._early.append(frame)
            if _means_ready(frame):
                return

    async def send(self, frame: str) -> None:
        """Send one frame.

        Raises:
            ChuckyConnectionError: The connection is closed.
        """
        if self.debug:
            logger.debug("> %s", frame)
        try:
            await self._socket.send(frame)
        except ConnectionClosed as closed:
            raise self._lost(closed) from closed

    async def frames(self) -> AsyncIterator[wire.ServerFrame]:
        """Yield what the server sends, beginning with what came during the handshake.

        Raises:
            ChuckyConnectionError: The connection was closed; the sentence says how.
            FrameError: The server sent something that is not a frame.
        """
        while self._early:
            yield self._early.pop(0)
        while True:
            try:
                text = await self._socket.recv()
            except ConnectionClosed as closed:
                raise self._lost(closed) from closed
            self._heard_at = asyncio.get_running_loop().time()
            if self.debug:
                logger.debug("< %s", text)
            yield wire.parse_server_frame(text)

    async def keep_alive(self, is_waiting: Callable[[], bool]) -> None:
        """Ping the server for as long as the connection is used.

        Args:
            is_waiting: A function that says whether an answer is awaited.

        Raises:
            ChuckyTimeoutError: An answer is awaited and nothing at all, not even the answer to
                a ping, came for two intervals.
        """
        loop = asyncio.get_running_loop()
        ping_at = loop.time() + self._keepalive_interval
        while True:
            silent_until = self._heard_at + 2 * self._keepalive_interval
            await asyncio.sleep(max(min(ping_at, silent_until) - loop.time(), 0.001))
            if loop.time() >= ping_at:
                await self.send(wire.ping_frame(time.time_ns() // 1_000_000))
                ping_at = loop.time() + self._keepalive_interval
            if loop.time() < self._heard_at + 2 * self._keepalive_interval:
                continue
            if is_waiting():
                raise ChuckyTimeoutError(
                    f"{self._address} has sent nothing for {2 * self._keepalive_interval:g} s, "
                    "not even answers to pings; the connection is given up."
                )
            self._heard_at = loop.time()

    async def close(self) -> None:
        """Say goodbye and close; takes at most a few seconds, never raises."""
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_SECONDS):
                await self._socket.send(wire.control_frame("close"))
        except (ConnectionClosed, TimeoutError):
            pass  # it is closed already, or the peer is gone: there is nobody to tell
        await self._socket.close(1000, "Client disconnect")

    def _lost(self, closed: ConnectionClosed) -> ChuckyConnectionError:
        frame = closed.rcvd or closed.sent
        how = f"code {frame.code}" if frame else "without a closing handshake"
        if frame and frame.reason:
            how += f", {frame.reason!r}"
        return ChuckyConnectionError(f"The connection to {self._address} was closed ({how}).")


async def _ask(token: TokenSource) -> str:
    given: Any = token
    if callable(token):
        given = token()
        if inspect.isawaitable(given):
            given = await given
    if not isinstance(given, str) or not given:
        raise ValidationError(
            f"The token must be a non-empty string, not {type(given).__name__}; make one with "
            "create_token or `chucky token`."
        )
    return given


def _credentials(url: str, token: str) -> tuple[str, dict[str, str]]:
    """Where to connect to and with which headers.

    A URL ends up in logs, so the token travels in a header. The hosted service reads it from
    the query alone.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if host != _HOSTED_DOMAIN and not host.endswith("." + _HOSTED_DOMAIN):
        return url, {"Authorization": f"Bearer {token}"}
    query = [*parse_qsl(parts.query, keep_blank_values=True), ("token", token), ("type", "prompt")]
    return urlunsplit(parts._replace(query=urlencode(query))), {}


def _without_query(url: str) -> str:
    """The address as it may appear in messages: neither a query nor credentials."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=""))


async def _connect(
    target: str, headers: dict[str, str], address: str, timeout: float
) -> ClientConnection:
    try:
        return await connect(
            target,
            additional_headers=headers,
            compression=None,
            open_timeout=timeout,
            close_timeout=CLOSE_TIMEOUT_SECONDS,
            max_size=MAX_FRAME_BYTES,
        )
    except TimeoutError:
        raise ChuckyTimeoutError(
            f"{address} did not answer within {timeout:g} s; is the url right?"
        ) from None
    except InvalidStatus as refused:
        raise _refused(address, refused.response.status_code) from None
    except InvalidURI:
        raise ValidationError(f"{address!r} is not a WebSocket url.") from None
    except InvalidHandshake as error:
        raise ChuckyConnectionError(
            f"{address} does not answer as a WebSocket server ({error}); is the url right?"
        ) from None
    except OSError as error:
        raise ChuckyConnectionError(
            f"Cannot reach {address} ({error.strerror or error}). Is the server running, and is "
            "the url right?"
        ) from error


def _refused(address: str, status: int) -> ChuckyConnectionError | AuthenticationError:
    if status in (401, 403):
        return AuthenticationError(f"{address} refused the token (HTTP {status}).")
    return ChuckyConnectionError(
        f"{address} answered HTTP {status} instead of opening a WebSocket; is the url right? It "
        "usually ends in /ws."
    )


def _means_ready(frame: wire.ServerFrame) -> bool:
    if isinstance(frame, wire.Control):
        return frame.action in ("ready", "session_info")
    if isinstance(frame, wire.SdkMessage):
        return frame.message.get("type") == "system"
    return False
