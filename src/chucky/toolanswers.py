"""The answers of tools as frames, remembered in case they are asked for again."""

from __future__ import annotations

from collections import OrderedDict, deque

from chucky import wire
from chucky.tools import ToolResult, error_result

_REMEMBERED = 1000
_REMEMBERED_BYTES = 64 * 1024 * 1024


class ToolAnswers:
    """Makes the answers to tool calls. A call that comes again is not run again."""

    def __init__(self) -> None:
        self._frames: OrderedDict[str, str] = OrderedDict()
        self._large: deque[str] = deque(
            maxlen=_REMEMBERED
        )  # the ids of those that are kept whole, oldest first
        self._bytes = 0

    def known(self, call: wire.ToolCall) -> str | None:
        """The frame a call was answered with before; None if it was not."""
        return self._frames.get(call.call_id)

    def remember(self, call: wire.ToolCall, frame: str) -> None:
        """Keep an answer: it may be on its way when the connection is lost."""
        self._keep(call.call_id, frame)
        self._large.append(call.call_id)
        while self._bytes > _REMEMBERED_BYTES and self._large:
            # Not forgotten: the call must not run again, whatever becomes of its result.
            call_id = self._large.popleft()
            lost = error_result("Error: the tool ran, and its result was lost on the way.")
            self._keep(call_id, wire.tool_result_frame(call_id, lost.content, is_error=True))
        while len(self._frames) > _REMEMBERED:
            self._bytes -= len(self._frames.popitem(last=False)[1])

    def _keep(self, call_id: str, frame: str) -> None:
        self._bytes += len(frame) - len(self._frames.get(call_id, ""))
        self._frames[call_id] = frame

    def clear(self) -> None:
        """Forget all answers."""
        self._frames.clear()
        self._large.clear()
        self._bytes = 0

    def frame(self, call: wire.ToolCall, result: ToolResult, max_bytes: int) -> str:
        """Make the frame of an answer; one that the server would not take is an error instead."""
        frame = wire.tool_result_frame(call.call_id, result.content, is_error=result.is_error)
        if len(frame) <= max_bytes:
            return frame
        # Sent all the same it would cost the connection, and the model would never know.
        too_large = error_result(
            f"Error: the result of tool {call.tool_name!r} has {len(frame)} bytes, and the "
            f"server takes {max_bytes}; have it return less."
        )
        return wire.tool_result_frame(call.call_id, too_large.content, is_error=True)
