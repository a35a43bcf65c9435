"""One WebSocket to a server: handshake, keep-alive, close. It knows frames, not turns."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidProxy,
    InvalidStatus,
    InvalidURI,
    SecurityError,
)
from websockets.http11 import Response

from chucky import wire
from chucky.errors import (
    AuthenticationError,
    ChuckyConnectionError,
    ChuckyError,
    ChuckyTimeoutError,
    ProtocolError,
    ValidationError,
    error_from_wire,
)
from chucky.options import TokenSource, without_secrets
from chucky.sessionlog import FrameLog
from chucky.wire import MAX_FRAME_BYTES

# The library writes whole requests to its log when it may, and the token is in them.
_library_logger = logging.getLogger("chucky.websockets")
_library_logger.setLevel(logging.WARNING)

MAX_HANDSHAKE_FRAMES = 100
CLOSE_TIMEOUT_SECONDS = 5.0
_LEAVING = 1000  # how a client closes that does not come back

_HOSTED_DOMAIN = "chucky.cloud"


class Connection:
    """A connection whose handshake is done.

    Use :meth:`open` to get one. ``receive()`` must be called by one task only, and
    ``keep_alive()`` must run beside it.
    """

    def __init__(self, socket: ClientConnection, address: str, keepalive_interval: float) -> None:
        self._socket = socket
        self._address = address
        self._keepalive_interval = keepalive_interval
        self._early: deque[wire.ServerFrame] = deque()
        self._reading = asyncio.Lock()
        self._is_ready = False
        self._received_frames = 0
        self._frame_log: FrameLog | None = None

    @classmethod
    async def open(
        cls,
        *,
        url: str,
        token: TokenSource,
        init: Mapping[str, Any],
        timeout: float,
        keepalive_interval: float,
        comes_back_for: str = "",
        frame_log: FrameLog | None = None,
    ) -> Connection:
        """Connect, send ``init`` and wait until the server is ready.

        ``init`` is sent at once: some servers want it before they say that they are ready, and
        none minds it. The first of ``ready``, ``session_info`` and the system's ``init``
        message counts as ready, because servers differ in the order they send them.

        Args:
            url: The WebSocket address.
            token: The token or where to get one.
            init: The session's options by their names on the wire.
            timeout: Seconds for getting the token, again for connecting, and again for the
                server to become ready.
            keepalive_interval: Seconds between two pings.
            comes_back_for: The session whose connection was lost, if one was.
            frame_log: Where every frame is logged, if anywhere.

        Raises:
            ChuckyConnectionError: The server cannot be reached or closed the connection.
            ChuckyTimeoutError: It took longer than ``timeout``.
            AuthenticationError: The token was refused. Other errors the server reports raise
                the class that belongs to their code.
            ProtocolError: The server does not speak this protocol.
            ValidationError: There is no usable token.
        """
        address = without_secrets(url)
        bearer = await _ask(token, timeout)
        if frame_log is not None:
            frame_log.hide(bearer)
        target, headers = _credentials(url, bearer, init.get("vessel"))
        if comes_back_for:
            headers["Chucky-Session"] = comes_back_for
        socket = await _connect(target, headers, address, timeout)
        connection = cls(socket, address, keepalive_interval)
        connection._frame_log = frame_log
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
        early: list[wire.ServerFrame] = []
        while not self._is_ready:
            frame = await self.receive()
            if isinstance(frame, wire.ErrorFrame):
                raise error_from_wire(frame.payload)
            if isinstance(frame, wire.Control) and frame.action == "close":
                raise ChuckyConnectionError(
                    f"{self._address} closed the session before it was ready."
                )
            early.append(frame)
            self._is_ready = _means_ready(frame)
            if len(early) > MAX_HANDSHAKE_FRAMES:
                raise ProtocolError(
                    f"{self._address} has sent {len(early)} frames and was still not ready."
                )
        self._early.extend(early)

    async def send(self, frame: str) -> None:
        """Send one frame; a peer that does not read is noticed by :meth:`keep_alive`.

        When the connection has ended, nothing happens: :meth:`receive` says why it ended, after
        what the server said last and nobody has read yet. That is often the better reason.
        """
        if self._frame_log is not None:
            self._frame_log.sent(frame)
        try:
            await self._socket.send(frame)
        except ConnectionClosed:
            pass

    async def receive(self) -> wire.ServerFrame:
        """Wait for the next frame, beginning with those that came during the handshake.

        Raises:
            ChuckyConnectionError: The connection was closed; the sentence says how.
            ProtocolError: The server sent something that is not a frame.
        """
        if self._early:
            return self._early.popleft()
        try:
            async with self._reading:
                text = await self._socket.recv()
        except ConnectionClosed as closed:
            raise self._lost(closed) from closed
        self._received_frames += 1
        if self._frame_log is not None:
            self._frame_log.received(text)
        try:
            return wire.parse_server_frame(text)
        except wire.FrameError as error:
            raise ProtocolError(
                f"{self._address} sent something that is not a frame of this protocol: {error}"
            ) from error

    async def keep_alive(self, is_waiting: Callable[[], bool]) -> None:
        """Ping the server for as long as the connection is used.

        Args:
            is_waiting: A function that says whether an answer is awaited.

        Raises:
            ChuckyTimeoutError: For two whole intervals an answer was awaited and nothing at
                all came, not even the answer to a ping, or the server read nothing.
        """
        silent_intervals = 0
        while True:
            awaited, received, unsent = is_waiting(), self._received_frames, self._unsent_bytes()
            await asyncio.sleep(self._keepalive_interval)
            is_silent = received == self._received_frames and self._unsent_bytes() >= unsent
            # Intervals are counted, not times compared: a program that was itself held up for
            # long must not take that for the server's silence.
            silent_intervals = silent_intervals + 1 if awaited and is_silent else 0
            if silent_intervals == 2:
                self._socket.transport.abort()  # nobody would answer a closing handshake
                raise ChuckyTimeoutError(
                    f"{self._address} has sent nothing for {2 * self._keepalive_interval:g} s, "
                    "not even answers to pings; the connection is given up."
                )
            if self._unsent_bytes() == 0:  # else a ping would only queue up behind
                await self.send(wire.ping_frame(time.time_ns() // 1_000_000))

    async def close(self, *, knows_codes: bool = False) -> None:
        """Say goodbye and close; takes at most a few seconds, never raises.

        Args:
            knows_codes: Whether the server tells by the closing code a client that leaves from one
                that was lost. Others have to be told in a frame.
        """
        try:
            if self._socket.close_code is None:  # it is still open, or somebody is closing it
                await self._say_goodbye(knows_codes)
        except TimeoutError:
            pass  # the peer is gone or stuck: there is nobody to tell
        finally:
            self._socket.transport.abort()  # nothing happens when it is closed

    async def _say_goodbye(self, knows_codes: bool) -> None:
        async with asyncio.timeout(CLOSE_TIMEOUT_SECONDS), asyncio.TaskGroup() as closing:
            closing.create_task(self._discard())
            if not knows_codes:
                await self.send(wire.control_frame("close"))
            if self._frame_log is not None:
                self._frame_log.closing(_LEAVING)
            await self._socket.close(_LEAVING, "Client disconnect")

    async def _discard(self) -> None:
        """Read what nobody wants any more; the peer's goodbye comes behind it."""
        try:
            async with self._reading:
                while True:
                    await self._socket.recv()
        except ConnectionClosed:
            pass

    def _unsent_bytes(self) -> int:
        return self._socket.transport.get_write_buffer_size()

    def _lost(self, closed: ConnectionClosed) -> ChuckyConnectionError:
        frame = closed.rcvd or closed.sent
        how = f"code {frame.code}" if frame else "without a closing handshake"
        if frame and frame.reason:
            how += f", {frame.reason!r}"
        when = "" if self._is_ready else " before the server was ready"
        error = ChuckyConnectionError(
            f"The connection to {self._address} was closed{when} ({how})."
        )
        error.close_code = None if frame is None else frame.code
        return error


async def _ask(token: TokenSource, timeout: float) -> str:
    given: object = token
    if callable(token):
        given = token()
        if inspect.isawaitable(given):
            given = await _within(timeout, given)
    if not isinstance(given, str) or not given.strip():
        raise ValidationError(
            f"The token must be a non-empty string, not {type(given).__name__}; make one with "
            "create_token or `chucky token`."
        )
    given = given.strip()  # a token read from a file brings a line end along
    if not given.isascii() or not given.isprintable() or " " in given:
        raise ValidationError(
            "The token contains characters that no token has; is it complete, and nothing else?"
        )
    return given


async def _within(timeout: float, token: Awaitable[object]) -> object:
    limit = asyncio.timeout(timeout)
    try:
        async with limit:
            return await token
    except TimeoutError:
        if not limit.expired():
            raise  # the function's own
        raise ChuckyTimeoutError(
            f"The token function did not return a token within {timeout:g} s."
        ) from None


def _credentials(url: str, token: str, vessel: str | None = None) -> tuple[str, dict[str, str]]:
    """Where to connect to and with which headers.

    A URL ends up in logs, so the token travels in a header. The hosted service reads it, and the
    vessel, from the query alone.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if host != _HOSTED_DOMAIN and not host.endswith("." + _HOSTED_DOMAIN):
        return url, {"Authorization": f"Bearer {token}"}
    own = [("token", token), ("type", "prompt"), *([("vessel", vessel)] if vessel else [])]
    given = parse_qsl(parts.query, keep_blank_values=True)
    query = [pair for pair in given if pair[0] not in dict(own)] + own
    return urlunsplit(parts._replace(query=urlencode(query))), {}


async def _connect(
    target: str, headers: dict[str, str], address: str, timeout: float
) -> ClientConnection:
    try:
        return await connect(
            target,
            additional_headers=headers,
            compression=None,
            proxy=True if _may_need_proxy() else None,
            ping_interval=None,  # see keep_alive(), which is patient when the program is held up
            open_timeout=timeout,
            close_timeout=CLOSE_TIMEOUT_SECONDS,
            max_size=MAX_FRAME_BYTES,
            logger=_library_logger,
        )
    except TimeoutError:
        raise ChuckyTimeoutError(
            f"{address} did not answer within {timeout:g} s; is the url right?"
        ) from None
    except InvalidStatus as refused:
        raise _refused(address, refused.response) from None
    except (InvalidURI, SecurityError):
        # The url itself has been checked; the library's text may contain the token.
        raise ChuckyConnectionError(
            f"{address} redirects to an address that cannot be followed; use the final url."
        ) from None
    except InvalidProxy:
        # Its address may contain a password.
        raise ChuckyConnectionError(
            f"{address} cannot be reached through the proxy that the environment sets, because "
            "that is not the address of one; check http_proxy and https_proxy."
        ) from None
    except InvalidHandshake as error:
        raise ChuckyConnectionError(
            f"{address} does not answer as a WebSocket server ({error}); is the url right?"
        ) from None
    except (OSError, UnicodeError, ImportError) as error:
        # Besides the network: a host name that cannot be one, and a SOCKS proxy that needs a
        # package which is not installed.
        reason = getattr(error, "strerror", None) or error
        raise ChuckyConnectionError(
            f"Cannot reach {address} ({reason}). Is the server running, and is the url right?"
        ) from error


def _may_need_proxy() -> bool:
    """Whether the library has to look for a proxy.

    It reads the whole environment twice to find that there is none, which takes as long as all
    else that is done for a connection. On some systems a proxy is also set elsewhere.
    """
    is_set_elsewhere = sys.platform in ("darwin", "win32")
    return is_set_elsewhere or any(name.lower().endswith("_proxy") for name in os.environ)


def _refused(address: str, response: Response) -> ChuckyError:
    """The error that an HTTP answer instead of a WebSocket stands for."""
    status = response.status_code
    said = _said_in(response.body)
    if said is not None:
        return said
    if status in (401, 403):
        return AuthenticationError(f"{address} refused the token (HTTP {status}).")
    return ChuckyConnectionError(
        f"{address} answered HTTP {status} instead of opening a WebSocket; is the url right? It "
        "usually ends in /ws."
    )


def _said_in(body: bytes | bytearray) -> ChuckyError | None:
    """The error in the JSON body ``{"error": code, "message": text}``, if its code is known."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(said, dict):
        return None
    error = error_from_wire({"code": said.get("error"), "message": said.get("message")})
    return None if type(error) is ChuckyError else error


def _means_ready(frame: wire.ServerFrame) -> bool:
    if isinstance(frame, wire.Control):
        return frame.action in ("ready", "session_info")
    if isinstance(frame, wire.SdkMessage):
        return frame.message.get("type") == "system"
    return False
