"""What a client says when it connects: its token, what it can do, and what it has already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.websockets import WebSocket

from chucky import wire
from chucky.server.sessions.mailbox import Position


def token_of_request(websocket: WebSocket) -> str | None:
    """The token in the url or the header; None if neither is there at all."""
    if "token" in websocket.query_params:
        return websocket.query_params["token"]
    scheme, _, credentials = websocket.headers.get("authorization", "").partition(" ")
    return credentials.strip() if scheme.lower() == "bearer" else None


def capabilities(options: Mapping[str, Any]) -> frozenset[str]:
    """The extensions of ours that a client names."""
    named = options.get("capabilities")
    return frozenset(map(str, named)) if isinstance(named, list) else frozenset()


def last_seen(options: Mapping[str, Any]) -> Position | None:
    """The last message that a client has which comes back; None for one that begins.

    Raises:
        FrameError: It is malformed.
    """
    given = options.get("lastSeen")
    if given is None:
        return None
    match given:
        case {"seq": int(seq), "delta": int(delta)} if seq >= 0 and delta >= 0:
            return Position(seq, delta)
    raise wire.FrameError("init.lastSeen", "must have the numbers 'seq' and 'delta'")


def may_be_unknown(options: Mapping[str, Any]) -> bool:
    """Whether a client that comes back has no result yet, so that nothing may have been kept."""
    seen = options.get("lastSeen")
    return isinstance(seen, dict) and seen.get("mayBeUnknown") is True
