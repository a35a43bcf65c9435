"""Scripts: a message tells the offline model what to do, one step for each model call.

A script is a JSON list in a fenced block with the info string ``offline``. Everything in it is
checked before its first step is taken, so that a test fails at once and by name.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from chucky.jsontext import read_json
from chucky.offline.errors import ApiError
from chucky.offline.reply import CACHE_1H, CACHE_5M, CACHE_CREATION, CACHE_READ, split_text

MAX_STEPS = 1_000
MAX_CHUNKS = 100_000
MAX_TOOLS = 100
MAX_DELAY_MS = 600_000
MAX_TOKENS = 10**12
MAX_RETRY_AFTER_SECONDS = 86_400

_INFO = "offline"
_USAGE_KEYS = ("input_tokens", "output_tokens", CACHE_CREATION, CACHE_READ, "cache_creation")
_ERROR_KEYS = ("status", "type", "message", "retry_after")


@dataclass(frozen=True, slots=True)
class ScriptedCall:
    """A tool call to make; ``name`` may be bare."""

    name: str
    input: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ScriptedUsage:
    """Numbers to report instead of counted ones; ``None`` where the script gives none."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_creation_5m_tokens: int = 0
    cache_creation_1h_tokens: int = 0
    cache_read_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """What to do at one model call; see ``docs/offline-model.md`` for each key."""

    text: tuple[str, ...] | None = None
    thinking: str | None = None
    tools: tuple[ScriptedCall, ...] = ()
    usage: ScriptedUsage = field(default_factory=ScriptedUsage)
    delay_ms: int = 0
    chunk_delay_ms: int = 0
    error: ApiError | None = None
    cut_after_chunks: int | None = None
    overrun: bool = False

    @property
    def fails(self) -> bool:
        """The call ends without a message, so the conversation will not show that it was made."""
        return self.error is not None or self.cut_after_chunks is not None


class StepMemory:
    """How many failed attempts were made at each point of each scripted turn.

    A failed attempt adds nothing to the conversation, yet the retry must get the next step. The
    memory is bounded (the turns used longest ago are forgotten) and lives in the process.

    Args:
        capacity: How many turns are remembered.
    """

    def __init__(self, capacity: int = 4_096) -> None:
        self._capacity = capacity
        self._failures: OrderedDict[str, dict[int, int]] = OrderedDict()

    def next_step(self, turn: str, calls_made: int) -> int:
        """Tell which step is next, counted from 0.

        Args:
            turn: What tells the turn from others, see ``Conversation.fingerprint``.
            calls_made: How many calls of the turn the conversation shows.
        """
        failures = self._failures.get(turn, {})
        earlier = (count for made, count in failures.items() if made <= calls_made)
        return calls_made + sum(earlier)

    def note_failure(self, turn: str, calls_made: int) -> None:
        """Remember that the next step of this turn is taken by an attempt that fails."""
        failures = self._failures.setdefault(turn, {})
        failures[calls_made] = failures.get(calls_made, 0) + 1
        self._failures.move_to_end(turn)
        while len(self._failures) > self._capacity:
            self._failures.popitem(last=False)


def find_script(prompt: str) -> tuple[Step, ...] | None:
    """Read the script in a prompt.

    Args:
        prompt: The text of the message that started the turn.

    Returns:
        The steps, or ``None`` if the prompt has no ``offline`` block.

    Raises:
        ApiError: There is such a block, but what is in it is no script; says what is wrong.
    """
    source = _fenced_block(prompt)
    if source is None:
        return None
    try:
        steps = read_json(source.encode())
    except ValueError as error:
        raise ApiError(f"offline script: the block is not valid JSON: {error}") from None
    if not isinstance(steps, list):
        raise ApiError(f"offline script: must be a list of steps, not {_kind(steps)}")
    if len(steps) > MAX_STEPS:
        raise ApiError(f"offline script: at most {MAX_STEPS} steps are allowed")
    return tuple(_step(step, number) for number, step in enumerate(steps, 1))


def _fenced_block(prompt: str) -> str | None:
    if "```" not in prompt:
        return None
    blocks: list[str] = []
    fence, content, wanted = "", list[str](), False
    for line in prompt.split("\n"):  # not splitlines: JSON strings may hold other separators
        mark = line.strip()
        if not fence:
            info = mark.lstrip("`")
            ticks = len(mark) - len(info)
            if ticks >= 3 and "`" not in info:
                fence, content, wanted = "`" * ticks, [], info.strip() == _INFO
        elif mark.startswith(fence) and not mark.strip("`"):
            if wanted:
                blocks.append("\n".join(content))
            fence = ""
        else:
            content.append(line)
    if fence and wanted:
        raise ApiError(f"offline script: the block is not closed; end it with a line of {fence}")
    if len(blocks) > 1:
        raise ApiError("offline script: only one offline block is allowed in a message")
    return blocks[0] if blocks else None


# --- One step -------------------------------------------------------------------------------------


class _Fields:
    """The fields of an object of the script, read by name; faults name the place."""

    def __init__(self, value: Any, place: str, known: tuple[str, ...]) -> None:
        self.place = place
        if not isinstance(value, dict):
            self.fail(f"must be an object, not {_kind(value)}")
        unknown = [key for key in value if key not in known]
        if unknown:
            self.fail(f"unknown key {unknown[0][:64]!r}; the keys are {', '.join(known)}")
        self.values: dict[str, Any] = value

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def fail(self, reason: str) -> NoReturn:
        raise ApiError(f"offline script: {self.place}: {reason}")

    def text(self, key: str) -> str:
        value = self.values[key]
        if not isinstance(value, str):
            self.fail(f"{key!r} must be a string, not {_kind(value)}")
        return value

    def flag(self, key: str) -> bool:
        value = self.values[key]
        if not isinstance(value, bool):
            self.fail(f"{key!r} must be true or false, not {_kind(value)}")
        return value

    def whole_number(self, key: str, *, least: int = 0, most: int) -> int:
        value = self.values[key]
        if isinstance(value, bool) or not isinstance(value, int):
            self.fail(f"{key!r} must be a whole number, not {_kind(value)}")
        if not least <= value <= most:
            self.fail(f"{key!r} must be from {least} to {most}")
        return value

    def items(self, key: str, *, most: int) -> list[Any]:
        value = self.values[key]
        if not isinstance(value, list):
            self.fail(f"{key!r} must be a list, not {_kind(value)}")
        if len(value) > most:
            self.fail(f"{key!r} may have at most {most} entries")
        return value


def _step(value: Any, number: int) -> Step:
    fields = _Fields(value, f"step {number}", tuple(_READERS))
    values = {key: _READERS[key](fields) for key in fields.values}
    if "error" in fields:
        for other in ("tools", "cut_after_chunks"):
            if other in fields:
                fields.fail(f"'error' and {other!r} exclude each other")
    return Step(**values)


def _read_text(fields: _Fields) -> tuple[str, ...]:
    value = fields.values["text"]
    if isinstance(value, str):
        return split_text(value)
    if not isinstance(value, list) or not all(isinstance(chunk, str) for chunk in value):
        fields.fail("'text' must be a string or a list of strings")
    return tuple(fields.items("text", most=MAX_CHUNKS))


def _read_tools(fields: _Fields) -> tuple[ScriptedCall, ...]:
    calls = []
    for index, value in enumerate(fields.items("tools", most=MAX_TOOLS), 1):
        call = _Fields(value, f"{fields.place}, tool {index}", ("name", "input"))
        if "name" not in call:
            call.fail("'name' is missing")
        arguments = call.values.get("input", {})
        if not isinstance(arguments, dict):
            call.fail(f"'input' must be an object, not {_kind(arguments)}")
        calls.append(ScriptedCall(call.text("name"), arguments))
    return tuple(calls)


def _read_usage(fields: _Fields) -> ScriptedUsage:
    usage = _Fields(fields.values["usage"], f"{fields.place}, usage", _USAGE_KEYS)
    numbers = {
        key: usage.whole_number(key, most=MAX_TOKENS)
        for key in usage.values
        if key != "cache_creation"
    }
    five_minutes, one_hour = numbers.get(CACHE_CREATION, 0), 0
    if "cache_creation" in usage:
        five_minutes, one_hour = _read_cache_creation(usage)
        if numbers.get(CACHE_CREATION, five_minutes + one_hour) != five_minutes + one_hour:
            usage.fail(f"{CACHE_CREATION!r} must be the sum of the numbers in 'cache_creation'")
    return ScriptedUsage(
        numbers.get("input_tokens"),
        numbers.get("output_tokens"),
        five_minutes,
        one_hour,
        numbers.get(CACHE_READ, 0),
    )


def _read_cache_creation(usage: _Fields) -> tuple[int, int]:
    keys = (CACHE_5M, CACHE_1H)
    parts = _Fields(usage.values["cache_creation"], f"{usage.place}, cache_creation", keys)
    five_minutes, one_hour = (
        parts.whole_number(key, most=MAX_TOKENS) if key in parts else 0 for key in keys
    )
    return five_minutes, one_hour


def _read_error(fields: _Fields) -> ApiError:
    error = _Fields(fields.values["error"], f"{fields.place}, error", _ERROR_KEYS)
    if "status" not in error:
        error.fail("'status' is missing")
    status = error.whole_number("status", least=400, most=599)
    return ApiError(
        error.text("message") if "message" in error else f"Scripted error {status}.",
        status=status,
        kind=error.text("type") if "type" in error else None,
        retry_after_seconds=_read_retry_after(error),
    )


def _read_retry_after(error: _Fields) -> float | None:
    if "retry_after" not in error:
        return None
    seconds = error.values["retry_after"]
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        error.fail(f"'retry_after' must be a number of seconds, not {_kind(seconds)}")
    if not 0 <= seconds <= MAX_RETRY_AFTER_SECONDS:
        error.fail(f"'retry_after' must be from 0 to {MAX_RETRY_AFTER_SECONDS} seconds")
    return seconds


_READERS: Mapping[str, Callable[[_Fields], Any]] = {
    "text": _read_text,
    "thinking": lambda fields: fields.text("thinking"),
    "tools": _read_tools,
    "usage": _read_usage,
    "delay_ms": lambda fields: fields.whole_number("delay_ms", most=MAX_DELAY_MS),
    "chunk_delay_ms": lambda fields: fields.whole_number("chunk_delay_ms", most=MAX_DELAY_MS),
    "error": _read_error,
    "cut_after_chunks": lambda fields: fields.whole_number("cut_after_chunks", most=MAX_TOKENS),
    "overrun": lambda fields: fields.flag("overrun"),
}


def _kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "a list"
        case _:
            return "an object"
