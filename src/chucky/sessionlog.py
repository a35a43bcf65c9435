"""What sessions write to the logger ``chucky``: with their ids, and without secrets."""

from __future__ import annotations

import json
import logging
from collections.abc import MutableMapping
from typing import Any

from chucky.options import without_secrets

logger = logging.getLogger("chucky")

_HIDDEN = "…"
_LONGEST_TEXT = 1000
_SHOWN_OF_LONG_TEXT = 100

# Names under which options and tools carry credentials: a map of them, a list, or one.
_SECRET_NAMES = frozenset(
    {
        "api_key",
        "apikey",
        "args",
        "authorization",
        "cookie",
        "env",
        "headers",
        "password",
        "secret",
        "token",
    }
)


class SessionLog(logging.LoggerAdapter[logging.Logger]):
    """The logger ``chucky`` for one session: its records have the attribute ``session_id``."""

    def __init__(self) -> None:
        super().__init__(logger, {})
        self.session_id = ""

    def process(
        self, msg: Any, kwargs: MutableMapping[str, Any]
    ) -> tuple[Any, MutableMapping[str, Any]]:
        """Add the id to a record."""
        kwargs["extra"] = {**(kwargs.get("extra") or {}), "session_id": self.session_id}
        return msg, kwargs


class FrameLog:
    """Writes the frames of one connection to the log of its session."""

    def __init__(self, log: SessionLog) -> None:
        self._log = log
        self._token = ""

    def hide(self, token: str) -> None:
        """Never show this token, wherever it occurs."""
        self._token = token

    def sent(self, frame: str) -> None:
        """Log a frame of ours."""
        self._write(">", frame)

    def received(self, frame: str | bytes) -> None:
        """Log a frame of the server's."""
        self._write("<", frame)

    def closing(self, code: int) -> None:
        """Log that we close the connection."""
        self._log.debug("session %s > closing with %d", self._log.session_id or "(new)", code)

    def _write(self, direction: str, frame: str | bytes) -> None:
        if self._log.isEnabledFor(logging.DEBUG):
            text = presentable(frame)
            if self._token:
                text = text.replace(self._token, _HIDDEN)
            self._log.debug("session %s %s %s", self._log.session_id or "(new)", direction, text)


def presentable(frame: str | bytes) -> str:
    """Return a frame as it may be shown: without credentials, and long texts shortened.

    What people, models and tools say is shown.
    """
    try:
        shown = _shown(json.loads(frame))
    except (ValueError, RecursionError):  # not a frame; the log should say what came instead
        return _shortened(repr(frame))
    return json.dumps(shown, ensure_ascii=False, separators=(",", ":"))


def _shown(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _named(name, each) for name, each in value.items()}
    if isinstance(value, list):
        return [_shown(each) for each in value]
    return _shortened(value) if isinstance(value, str) else value


def _named(name: str, value: Any) -> Any:
    if name.lower() in _SECRET_NAMES:
        return _hidden(value)
    if name == "url" and isinstance(value, str):
        return _without_secrets(value)
    return _shown(value)


def _hidden(value: Any) -> Any:
    """Show what there is, and nothing of what it is."""
    if isinstance(value, dict):
        return dict.fromkeys(value, _HIDDEN)
    return [_HIDDEN] * len(value) if isinstance(value, list) else _HIDDEN


def _without_secrets(url: str) -> str:
    try:
        return _shortened(without_secrets(url))
    except ValueError:  # brackets that do not match
        return _HIDDEN


def _shortened(text: str) -> str:
    if len(text) <= _LONGEST_TEXT:
        return text
    return f"{text[:_SHOWN_OF_LONG_TEXT]}… ({len(text)} characters)"
