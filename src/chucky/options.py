"""What a client and a session are asked to be, and how that is said in ``init``.

``_OPTIONS`` is the one table of what travels: an option's name here, its name on the wire, and
what it may be. The same names are fields of the two dataclasses, which hold an application's
wishes, and keys of the two ``TypedDict``s, by which type checkers know the keywords of
``Chucky(…)``, ``create_session``, ``prompt`` and ``stream``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, SupportsFloat, TypedDict, get_args
from urllib.parse import urlsplit, urlunsplit

from chucky.errors import ValidationError
from chucky.outputformat import OutputFormat, OutputFormatSource

if TYPE_CHECKING:
    from decimal import Decimal

    from chucky.tools import Tool
    from chucky.toolservers import McpServers

DEFAULT_URL = "wss://conjure.chucky.cloud/ws"
DEFAULT_MODEL = "claude-sonnet-4-5-20250929"

TokenSource = str | Callable[[], str | Awaitable[str]]
"""A token, or a function that returns one and is asked again for every connection."""

PermissionMode = Literal["default", "acceptEdits", "plan", "dontAsk", "bypassPermissions"]
SettingSource = Literal["user", "project", "local"]


class ClientKeywords(TypedDict, total=False):
    """What a client may be given for all its sessions, and each session for itself.

    The page's parameters are not here; those stand in the signatures.
    """

    mcp_servers: McpServers | None
    allowed_tools: Sequence[str] | None
    disallowed_tools: Sequence[str] | None
    output_format: OutputFormatSource | None
    include_partial_messages: bool | None
    max_budget_usd: float | Decimal | None
    max_thinking_tokens: int | None
    fallback_model: str | None
    permission_mode: PermissionMode | None
    agents: Mapping[str, Mapping[str, Any]] | None
    env: Mapping[str, str] | None
    setting_sources: Sequence[SettingSource] | None
    vessel: str | None
    betas: Sequence[str] | None


class SessionKeywords(ClientKeywords, total=False):
    """What one session, prompt or stream may be given."""

    resume: str | None
    continue_session: bool | None
    fork_session: bool | None
    resume_session_at: str | None


@dataclass(kw_only=True)
class _NewOptions:
    """The options that have come since the fields of 0.2.0, whose order stays."""

    output_format: OutputFormatSource | None = None
    max_budget_usd: float | Decimal | None = None
    max_thinking_tokens: int | None = None
    fallback_model: str | None = None
    permission_mode: PermissionMode | None = None
    agents: Mapping[str, Mapping[str, Any]] | None = None
    env: Mapping[str, str] | None = field(default=None, repr=False)
    setting_sources: Sequence[SettingSource] | None = None
    vessel: str | None = None
    betas: Sequence[str] | None = None


@dataclass
class ChuckyOptions(_NewOptions):
    """What all sessions of a client share. Times are in seconds."""

    url: str
    token: TokenSource = field(repr=False)
    model: str = DEFAULT_MODEL
    system_prompt: str | None = None
    max_turns: int | None = None
    allowed_tools: Sequence[str] | None = None
    disallowed_tools: Sequence[str] | None = None
    mcp_servers: McpServers | None = field(default=None, repr=False)
    timeout: float = 30.0
    keepalive_interval: float = 60.0
    turn_timeout: float | None = None
    include_partial_messages: bool | None = None

    def check(self) -> None:
        """Refuse what cannot work, before anything is connected.

        Raises:
            ValidationError: The sentence names the option.
        """
        _check_url(self.url)
        if not self.token:
            raise ValidationError(
                "No token: pass token=… to Chucky, or set CHUCKY_TOKEN. Tokens are made on your "
                "server with create_token, or with `chucky token`."
            )
        if not isinstance(self.token, str) and not callable(self.token):
            raise ValidationError(
                "The token must be a string or a function that returns one, not "
                f"{type(self.token).__name__}."
            )
        _check_seconds("timeout", self.timeout)
        _check_seconds("keepalive_interval", self.keepalive_interval)
        if self.turn_timeout is not None:
            _check_seconds("turn_timeout", self.turn_timeout)
        _check_options(self)


@dataclass
class PromptOptions(_NewOptions):
    """What one prompt or session wants different from its client; None keeps the client's."""

    model: str | None = None
    system_prompt: str | None = None
    max_turns: int | None = None
    tools: list[Tool] | None = None
    include_partial_messages: bool | None = None
    allowed_tools: Sequence[str] | None = field(default=None, kw_only=True)
    disallowed_tools: Sequence[str] | None = field(default=None, kw_only=True)
    mcp_servers: McpServers | None = field(default=None, kw_only=True, repr=False)
    resume: str | None = field(default=None, kw_only=True)
    continue_session: bool | None = field(default=None, kw_only=True)
    fork_session: bool | None = field(default=None, kw_only=True)
    resume_session_at: str | None = field(default=None, kw_only=True)

    def check(self) -> None:
        """Refuse what cannot work, before anything is connected.

        Raises:
            ValidationError: The sentence names the option.
        """
        _check_options(self)
        if self.resume is not None and self.continue_session:
            raise ValidationError(
                "resume names a session and continue_session means the latest; give one of them."
            )
        for name in ("fork_session", "resume_session_at"):
            if getattr(self, name) and self.resume is None and not self.continue_session:
                raise ValidationError(
                    f"{name} needs a session: give resume=… or continue_session=True too."
                )


def overridden(options: PromptOptions | None, keywords: Mapping[str, Any]) -> PromptOptions:
    """Return options with the keywords that were given in the place of their own.

    Raises:
        ValidationError: ``options`` are none.
    """
    if options is None:
        return PromptOptions(**keywords)
    if not isinstance(options, PromptOptions):
        raise ValidationError(
            f"options must be PromptOptions(…), not a {type(options).__name__}; or give each "
            "option as a keyword."
        )
    return replace(options, **{name: each for name, each in keywords.items() if each is not None})


def init_options(options: ChuckyOptions, wanted: PromptOptions) -> dict[str, Any]:
    """Return the payload of ``init``: every option that was given, by its name on the wire.

    The servers of tools and the capabilities are not options, and not in it.
    """
    payload: dict[str, Any] = {}
    for name, option in _OPTIONS.items():
        value = chosen(name, options, wanted)
        if value is not None and value is not False:
            payload[option.wire_name] = option.to_wire(value)
    if "resume" in payload:
        payload["sessionId"] = payload["resume"]  # its name in the public system's other SDKs
    if payload.get("permissionMode") == "bypassPermissions":
        # The public system wants it said twice; whoever gives this mode has meant it.
        payload["allowDangerouslySkipPermissions"] = True
    return payload


def chosen(name: str, options: ChuckyOptions, wanted: PromptOptions) -> Any:
    """Return an option of a session: its own, or else its client's."""
    own = getattr(wanted, name, None)
    return getattr(options, name, None) if own is None else own


def without_secrets(url: str) -> str:
    """The address as it may appear in messages: neither a query nor credentials."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=""))


def check_text(name: str, text: object) -> None:
    """Refuse what is no string, or one that cannot be sent.

    Args:
        name: What the text is, for the sentence.
        text: What was given.

    Raises:
        ValidationError: The sentence names it.
    """
    if not isinstance(text, str):
        raise ValidationError(f"{name} must be a string, not {type(text).__name__}.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValidationError(
            f"{name} contains half of a surrogate pair at position {error.start}, which is not "
            "text."
        ) from None


def check_texts(name: str, texts: object) -> None:
    """Refuse what is no mapping of names to strings, such as ``env`` and headers are.

    Raises:
        ValidationError: The sentence names it, and shows none of the strings.
    """
    if not isinstance(texts, Mapping):
        raise ValidationError(
            f"{name} must be a dict of strings by name, not {type(texts).__name__}."
        )
    for key, text in texts.items():
        check_name(f"Each name in {name}", key)
        check_text(f"{key!r} in {name}", text)


def check_name(name: str, text: object) -> None:
    """Refuse what is no string, or an empty one.

    Raises:
        ValidationError: The sentence names it.
    """
    check_text(name, text)
    if text == "":
        raise ValidationError(f"{name} must not be empty.")


def check_names(name: str, texts: object, what: str = "names") -> None:
    """Refuse what is no list of strings.

    Raises:
        ValidationError: The sentence names it.
    """
    if not isinstance(texts, list | tuple):
        raise ValidationError(f"{name} must be a list of {what}, not {type(texts).__name__}.")
    for text in texts:
        check_text(f"Each name in {name}", text)


# --- what the single options may be -----------------------------------------------------------


def _check_options(options: ChuckyOptions | PromptOptions) -> None:
    for each in fields(options):
        value = getattr(options, each.name)
        if value is not None and each.name in _OPTIONS:
            _OPTIONS[each.name].check(each.name, value)


def _check_url(url: object) -> None:
    if not isinstance(url, str):
        raise ValidationError(f"The url must be a string, not {type(url).__name__}.")
    try:
        parts = urlsplit(url)
        is_complete = parts.scheme in ("ws", "wss") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets that do not match, a port that is no number
        raise ValidationError("The url is not one: its host or port is malformed.") from None
    if not is_complete:
        raise ValidationError(
            "The url must look like ws://host:port/ws or wss://host/ws, not "
            f"{without_secrets(url)!r}."
        )
    if parts.fragment or "@" in parts.netloc:
        raise ValidationError(
            f"The url of {parts.hostname} must have neither a user nor a '#': the token alone "
            "says who you are."
        )


def _check_seconds(name: str, seconds: object) -> None:
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not is_number or not seconds > 0:  # type: ignore[operator]
        raise ValidationError(f"{name} must be more than 0 seconds, not {seconds!r}.")


def _check_model(name: str, model: object) -> None:
    check_text(name, model)
    if model == "":
        raise ValidationError(f"{name} must not be empty; leave it out for the default.")


def _check_count(name: str, count: object) -> None:
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise ValidationError(f"{name} must be a whole number from 0, not {count!r}.")


def _check_dollars(name: str, dollars: object) -> None:
    is_number = isinstance(dollars, SupportsFloat) and not isinstance(dollars, bool)
    try:
        is_amount = is_number and 0 < float(dollars) < math.inf  # type: ignore[arg-type]
    except (OverflowError, ValueError):  # too large for a float; a Decimal that signals
        is_amount = False
    if not is_amount:
        raise ValidationError(f"{name} must be more than 0 dollars, not {dollars!r:.80}.")


def _check_flag(name: str, flag: object) -> None:
    if not isinstance(flag, bool):
        raise ValidationError(f"{name} must be True or False, not {flag!r:.80}.")


def _check_tool_names(name: str, names: object) -> None:
    check_names(name, names, "tool names")


def _check_permission_mode(name: str, mode: object) -> None:
    if mode not in get_args(PermissionMode):
        modes = ", ".join(get_args(PermissionMode))
        raise ValidationError(f"{name} must be one of {modes}, not {mode!r:.80}.")


def _check_setting_sources(name: str, sources: object) -> None:
    check_names(name, sources)
    for source in sources:  # type: ignore[attr-defined]
        if source not in get_args(SettingSource):
            raise ValidationError(
                f"{name} may name {', '.join(get_args(SettingSource))}, not {source!r:.80}."
            )


def _check_agents(name: str, agents: object) -> None:
    if not isinstance(agents, Mapping):
        raise ValidationError(
            f"{name} must be a dict of agents by name, not {type(agents).__name__}."
        )
    for key, agent in agents.items():
        check_name(f"Each name in {name}", key)
        if not isinstance(agent, Mapping):
            raise ValidationError(
                f"The agent {key!r} must be a dict with its description and prompt, not "
                f"{type(agent).__name__}."
            )
        try:
            json.dumps(dict(agent), allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValidationError(f"The agent {key!r} cannot be sent as JSON: {error}.") from None


def _check_output_format(_name: str, given: object) -> None:
    OutputFormat.of(given)


def _as_given(value: Any) -> Any:
    return value


def _agents_to_wire(agents: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {name: dict(agent) for name, agent in agents.items()}


def _output_format_to_wire(given: OutputFormatSource) -> dict[str, Any]:
    return OutputFormat.of(given).to_wire()


class _Option(NamedTuple):
    """How an option is called on the wire, what it may be, and what it becomes there."""

    wire_name: str
    check: Callable[[str, object], None]
    to_wire: Callable[[Any], Any] = _as_given


_OPTIONS = {
    "model": _Option("model", _check_model),
    "fallback_model": _Option("fallbackModel", _check_model),
    "system_prompt": _Option("systemPrompt", check_text),
    "max_turns": _Option("maxTurns", _check_count),
    "max_thinking_tokens": _Option("maxThinkingTokens", _check_count),
    "max_budget_usd": _Option("maxBudgetUsd", _check_dollars, float),
    "allowed_tools": _Option("allowedTools", _check_tool_names, list),
    "disallowed_tools": _Option("disallowedTools", _check_tool_names, list),
    "output_format": _Option("outputFormat", _check_output_format, _output_format_to_wire),
    "include_partial_messages": _Option("includePartialMessages", _check_flag),
    "permission_mode": _Option("permissionMode", _check_permission_mode),
    "agents": _Option("agents", _check_agents, _agents_to_wire),
    "env": _Option("env", check_texts, dict),
    "setting_sources": _Option("settingSources", _check_setting_sources, list),
    "vessel": _Option("vessel", check_name),
    "betas": _Option("betas", check_names, list),
    "resume": _Option("resume", check_name),
    "continue_session": _Option("continue", _check_flag),
    "fork_session": _Option("forkSession", _check_flag),
    "resume_session_at": _Option("resumeSessionAt", check_name),
}
