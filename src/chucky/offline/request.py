"""One request of the Messages API, checked: what the rest of the package may rely on.

What the API refuses is refused in its words where they are known: a client that works against
this model should not fail on its first call to a real one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

from chucky.offline.errors import ApiError

Block: TypeAlias = dict[str, Any]
Role: TypeAlias = Literal["user", "assistant", "system"]

MAX_MESSAGES = 100_000
MAX_STOP_SEQUENCES = 1_000
MAX_TOOLS = 10_000
MIN_THINKING_TOKENS = 1_024

_TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")
_THINKING_TYPES = ("enabled", "adaptive", "disabled", "between_tools")
_CHOICES = ("auto", "any", "tool", "none")
_USER_BLOCKS = frozenset({"tool_result", "image", "document", "search_result", "container_upload"})
_ASSISTANT_BLOCKS = frozenset(
    {"tool_use", "thinking", "redacted_thinking", "server_tool_use", "mcp_tool_use", "compaction"}
)


@dataclass(frozen=True, slots=True)
class Message:
    """One message: who said it, and its content blocks as they came (a string as a text block)."""

    role: Role
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Tool:
    """One offered tool; ``input_schema`` is ``None`` for tools whose schema the API itself owns."""

    name: str
    description: str
    input_schema: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether tools may or must be called; ``name`` is set when ``kind`` is ``"tool"``."""

    kind: str = "auto"
    name: str | None = None
    parallel: bool = True


@dataclass(frozen=True, slots=True)
class MessagesRequest:
    """A checked request.

    Attributes:
        model: The name of the model that was asked for; every name is answered.
        messages: The conversation; each tool call in it has its result, and the other way round.
        max_tokens: The most output tokens; 0 where the endpoint has no such field.
        system: The system prompt's text, ``""`` without one.
        tools: The tools offered.
        tool_choice: Whether they may or must be called.
        thinks: A thinking block is wanted.
        output_schema: The JSON schema the answer must conform to, if one is given.
        stop_sequences: Texts that end the answer.
        stream: The answer is wanted as server-sent events.
        user_id: ``metadata.user_id``, ``""`` without one.
    """

    model: str
    messages: tuple[Message, ...]
    max_tokens: int
    system: str
    tools: tuple[Tool, ...]
    tool_choice: ToolChoice
    thinks: bool
    output_schema: dict[str, Any] | None
    stop_sequences: tuple[str, ...]
    stream: bool
    user_id: str


def parse_messages_request(body: Any, *, betas: str = "") -> MessagesRequest:
    """Check the body of ``POST /v1/messages``.

    Args:
        body: The JSON value.
        betas: The ``anthropic-beta`` header.

    Raises:
        ApiError: The first thing that is wrong, with the name of its field (status 400).
    """
    fields = _object(body, "")
    max_tokens = _whole_number(_required(fields, "max_tokens"), "max_tokens", minimum=0)
    request = _parse(fields, max_tokens)
    if "interleaved-thinking" not in betas:
        _check_thinking_budget(fields.get("thinking"), max_tokens)
    return request


def parse_count_request(body: Any) -> MessagesRequest:
    """Check the body of ``POST /v1/messages/count_tokens``, which has no ``max_tokens``.

    Raises:
        ApiError: The first thing that is wrong, with the name of its field (status 400).
    """
    return _parse(_object(body, ""), 0)


def _parse(fields: dict[str, Any], max_tokens: int) -> MessagesRequest:
    tools = _tools(fields.get("tools"))
    return MessagesRequest(
        model=_model(_required(fields, "model")),
        messages=_messages(_required(fields, "messages")),
        max_tokens=max_tokens,
        system=_system(fields.get("system")),
        tools=tools,
        tool_choice=_tool_choice(fields.get("tool_choice"), tools),
        thinks=_thinks(fields.get("thinking")),
        output_schema=_output_schema(fields),
        stop_sequences=_stop_sequences(fields.get("stop_sequences")),
        stream=_flag(fields.get("stream"), "stream"),
        user_id=_user_id(fields.get("metadata")),
    )


# --- Fields ---------------------------------------------------------------------------------------


def _model(value: Any) -> str:
    name = _text(value, "model")
    if not 1 <= len(name) <= 256:
        raise ApiError("model: String should have between 1 and 256 characters")
    return name


def _system(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    texts = []
    for index, block in enumerate(_list(value, "system")):
        path = f"system.{index}"
        fields = _object(block, path)
        if fields.get("type") != "text":
            raise ApiError(f"{path}.type: Input should be 'text'")
        texts.append(_text(fields.get("text"), f"{path}.text"))
    return "\n\n".join(texts)


def _thinks(value: Any) -> bool:
    if value is None:
        return False
    kind = _object(value, "thinking").get("type")
    if kind not in _THINKING_TYPES:
        raise ApiError(f"thinking.type: Input should be one of {', '.join(_THINKING_TYPES)}")
    return kind in ("enabled", "adaptive")


def _check_thinking_budget(thinking: Any, max_tokens: int) -> None:
    if thinking is None or thinking["type"] != "enabled":
        return
    path = "thinking.enabled.budget_tokens"
    budget = thinking.get("budget_tokens")
    if budget is None:
        raise ApiError(f"{path}: Field required")
    if _whole_number(budget, path, minimum=MIN_THINKING_TOKENS) >= max_tokens:
        raise ApiError("`max_tokens` must be greater than `thinking.budget_tokens`")


def _output_schema(fields: dict[str, Any]) -> dict[str, Any] | None:
    config = fields.get("output_config")
    path, wanted = "output_format", fields.get("output_format")
    if config is not None and _object(config, "output_config").get("format") is not None:
        path, wanted = "output_config.format", config["format"]
    if wanted is None:
        return None
    wanted = _object(wanted, path)
    if wanted.get("type") != "json_schema":
        raise ApiError(f"{path}.type: Input should be 'json_schema'")
    return _object(wanted.get("schema"), f"{path}.schema")


def _stop_sequences(value: Any) -> tuple[str, ...]:
    sequences = _list([] if value is None else value, "stop_sequences")
    if len(sequences) > MAX_STOP_SEQUENCES:
        raise ApiError(f"stop_sequences: List should have at most {MAX_STOP_SEQUENCES} items")
    for index, sequence in enumerate(sequences):
        if not _text(sequence, f"stop_sequences.{index}").strip():
            raise ApiError(f"stop_sequences.{index}: must contain non-whitespace")
    return tuple(sequences)


def _user_id(metadata: Any) -> str:
    if metadata is None:
        return ""
    user_id = _object(metadata, "metadata").get("user_id")
    return "" if user_id is None else _text(user_id, "metadata.user_id")


# --- Tools ----------------------------------------------------------------------------------------


def _tools(value: Any) -> tuple[Tool, ...]:
    entries = _list([] if value is None else value, "tools")
    if len(entries) > MAX_TOOLS:
        raise ApiError(f"tools: List should have at most {MAX_TOOLS} items")
    tools = tuple(_tool(entry, f"tools.{index}") for index, entry in enumerate(entries))
    if len({tool.name for tool in tools}) < len(tools):
        raise ApiError("tools: Tool names must be unique.")
    return tools


def _tool(value: Any, path: str) -> Tool:
    fields = _object(value, path)
    kind = fields.get("type") or "custom"
    name = _text(_required(fields, "name", path), f"{path}.name")
    if kind != "custom":
        return Tool(name, "", None)
    if not _TOOL_NAME.fullmatch(name):
        raise ApiError(
            f"{path}.custom.name: String should match pattern '^[a-zA-Z0-9_-]{{1,128}}$'"
        )
    schema_path = f"{path}.custom.input_schema"
    schema = _object(_required(fields, "input_schema", f"{path}.custom"), schema_path)
    if schema.get("type") != "object":
        raise ApiError(f"{schema_path}.type: Input should be 'object'")
    description = fields.get("description")
    if description is not None:
        _text(description, f"{path}.custom.description")
    return Tool(name, description or "", schema)


def _tool_choice(value: Any, tools: tuple[Tool, ...]) -> ToolChoice:
    if value is None:
        return ToolChoice()
    fields = _object(value, "tool_choice")
    kind = fields.get("type")
    if kind not in _CHOICES:
        raise ApiError(f"tool_choice.type: Input should be one of {', '.join(_CHOICES)}")
    if kind != "none" and not tools:
        raise ApiError("tool_choice: may only be specified while providing tools")
    parallel = not _flag(
        fields.get("disable_parallel_tool_use"), "tool_choice.disable_parallel_tool_use"
    )
    if kind != "tool":
        return ToolChoice(kind, None, parallel)
    name = _text(_required(fields, "name", "tool_choice"), "tool_choice.name")
    if name not in {tool.name for tool in tools}:
        raise ApiError(f"tool_choice: Tool {name!r} not found in provided tools")
    return ToolChoice(kind, name, parallel)


# --- Messages -------------------------------------------------------------------------------------


def _messages(value: Any) -> tuple[Message, ...]:
    entries = _list(value, "messages")
    if not entries:
        raise ApiError("messages: at least one message is required")
    if len(entries) > MAX_MESSAGES:
        raise ApiError(f"messages: List should have at most {MAX_MESSAGES} items")
    last = len(entries) - 1
    messages = tuple(
        _message(entry, f"messages.{index}", may_be_empty=index == last)
        for index, entry in enumerate(entries)
    )
    _check_tool_results(messages)
    return messages


def _message(value: Any, path: str, *, may_be_empty: bool) -> Message:
    fields = _object(value, path)
    role = _required(fields, "role", path)
    if role not in ("user", "assistant", "system"):
        raise ApiError(f"{path}.role: Input should be 'user', 'assistant' or 'system'")
    content = _required(fields, "content", path)
    if isinstance(content, str):
        content = [{"type": "text", "text": content}] if content else []
    blocks = _list(content, f"{path}.content")
    if not blocks and not (may_be_empty and role == "assistant"):
        raise ApiError(
            f"{path}: all messages must have non-empty content "
            "except for the optional final assistant message"
        )
    for index, block in enumerate(blocks):
        _check_block(block, role, f"{path}.content.{index}")
    return Message(cast(Role, role), tuple(blocks))


def _check_block(value: Any, role: str, path: str) -> None:
    fields = _object(value, path)
    kind = _text(_required(fields, "type", path), f"{path}.type")
    if kind == "text":
        _check_text(fields, path)
    elif kind in _ASSISTANT_BLOCKS:
        _check_role(kind, role, "assistant", path)
        if kind == "tool_use":
            _check_tool_use(fields, f"{path}.tool_use")
        elif kind == "thinking":
            _text(_required(fields, "thinking", path), f"{path}.thinking")
    elif kind in _USER_BLOCKS:
        _check_role(kind, role, "user", path)
        if kind == "tool_result":
            _check_tool_result(fields, f"{path}.tool_result")
    elif not kind.endswith("_tool_result"):  # results of the API's own tools: passed over
        raise ApiError(f"{path}: Input tag {kind[:64]!r} does not match any of the expected tags")


def _check_role(kind: str, role: str, only: str, path: str) -> None:
    if role != only:
        raise ApiError(f"{path}: `{kind}` blocks can only be in `{only}` messages")


def _check_text(fields: Block, path: str) -> None:
    if not _text(_required(fields, "text", f"{path}.text"), f"{path}.text.text"):
        raise ApiError(f"{path}: text content blocks must be non-empty")


def _check_tool_use(fields: Block, path: str) -> None:
    _text(_required(fields, "id", path), f"{path}.id")
    _text(_required(fields, "name", path), f"{path}.name")
    _object(_required(fields, "input", path), f"{path}.input")


def _check_tool_result(fields: Block, path: str) -> None:
    _text(_required(fields, "tool_use_id", path), f"{path}.tool_use_id")
    _flag(fields.get("is_error"), f"{path}.is_error")
    content = fields.get("content")
    if content is None or isinstance(content, str):
        return
    for index, block in enumerate(_list(content, f"{path}.content")):
        inner = f"{path}.content.{index}"
        if _object(block, inner).get("type") == "text":
            _text(_required(block, "text", inner), f"{inner}.text")


def _check_tool_results(messages: tuple[Message, ...]) -> None:
    """Check that calls and results pair up, over turns: the API joins neighbours of one role."""
    open_calls: set[str] = set()
    last_index = 0
    for index, blocks in _turns(messages):
        results = [block["tool_use_id"] for block in blocks if block["type"] == "tool_result"]
        _check_results_known(results, open_calls, index)
        _check_all_answered(open_calls - set(results), last_index)
        open_calls = _new_calls(blocks, index)
        last_index = index
    _check_all_answered(open_calls, last_index)


def _turns(messages: tuple[Message, ...]) -> Iterator[tuple[int, list[Block]]]:
    """Join neighbours of one role; yield the index of their last message and all their blocks."""
    role, blocks, last = "", list[Block](), 0
    for index, message in enumerate(messages):
        if message.role == "system":
            continue
        if message.role != role and role:
            yield last, blocks
            blocks = []
        role, last = message.role, index
        blocks.extend(message.blocks)
    if role:
        yield last, blocks


def _new_calls(blocks: list[Block], index: int) -> set[str]:
    ids = [block["id"] for block in blocks if block["type"] == "tool_use"]
    if len(set(ids)) < len(ids):
        raise ApiError(f"messages.{index}: `tool_use` ids must be unique")
    return set(ids)


def _check_results_known(results: list[str], open_calls: set[str], index: int) -> None:
    unknown = [each for each in results if each not in open_calls]
    if unknown:
        raise ApiError(
            f"messages.{index}: unexpected `tool_use_id` found in `tool_result` blocks: "
            f"{unknown[0][:128]}. Each `tool_result` block must have a corresponding `tool_use` "
            "block in the previous message."
        )
    if len(set(results)) < len(results):
        raise ApiError(
            f"messages.{index}: each tool_use must have a single result. "
            "Found multiple `tool_result` blocks with one id"
        )


def _check_all_answered(missing: set[str], index: int) -> None:
    if missing:
        names = ", ".join(sorted(each[:128] for each in missing)[:10])
        raise ApiError(
            f"messages.{index}: `tool_use` ids were found without `tool_result` blocks "
            f"immediately after: {names}. Each `tool_use` block must have a corresponding "
            "`tool_result` block in the next message."
        )


# --- Values ---------------------------------------------------------------------------------------


def _required(fields: dict[str, Any], name: str, path: str = "") -> Any:
    if fields.get(name) is None:
        raise ApiError(f"{path}.{name}: Field required" if path else f"{name}: Field required")
    return fields[name]


def _object(value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ApiError(f"{path or 'body'}: Input should be a valid dictionary")
    return value


def _list(value: Any, path: str) -> list[Any]:
    if not isinstance(value, list):
        raise ApiError(f"{path}: Input should be a valid list")
    return value


def _text(value: Any, path: str) -> str:
    if not isinstance(value, str):
        raise ApiError(f"{path}: Input should be a valid string")
    return value


def _flag(value: Any, path: str) -> bool:
    if value is None or isinstance(value, bool):
        return bool(value)
    raise ApiError(f"{path}: Input should be a valid boolean")


def _whole_number(value: Any, path: str, *, minimum: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ApiError(f"{path}: Input should be a valid integer")
    if value < minimum:
        raise ApiError(f"{path}: Input should be greater than or equal to {minimum}")
    return value
