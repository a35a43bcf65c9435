"""From an identity and its wishes to a grant or a refusal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import date
from typing import Any

from chucky.errors import ChuckyError, ValidationError
from chucky.options import DEFAULT_MODEL
from chucky.server.admission.grant import Grant, Policy
from chucky.server.admission.tools import granted_tools, tool_servers
from chucky.server.admission.values import count, flag, invalid, is_given, names, unsupported
from chucky.server.auth import Identity
from chucky.server.model.catalog import Model, Resolution
from chucky.server.permissions import Permissions
from chucky.server.policy import ProjectPolicy, dollars_to_nanos
from chucky.server.schemas import SchemaError, check_usable_for_values
from chucky.server.sessions.past import Resumption

# Options that would change what the engine `messages` does and that it cannot honour. Naming one
# is refused: answering as if it had not been said would be wrong in a way nobody sees.
_NEEDS_CLAUDE_CODE = {
    "agents": "sub-agents",
    "vessel": "a persistent sandbox",
    "settingSources": "settings files",
}
# Options without a meaning here; the session goes on without them and says so.
_IGNORED = (
    "allowDangerouslySkipPermissions",
    "allowedTools",
    "env",
    "jobId",
    "permissionMode",
)
_PERMISSION_MODES = ("default", "acceptEdits", "plan", "dontAsk", "bypassPermissions")

MAX_SYSTEM_PROMPT_CHARACTERS = 1_000_000


def admit(
    identity: Identity,
    project: ProjectPolicy,
    requested: Mapping[str, Any],
    policy: Policy,
    today: date,
) -> Grant | ChuckyError:
    """Decide what a session may do.

    Args:
        identity: Who asks, with what the token says.
        project: The policy of its project.
        requested: The options of ``init``, by their names on the wire.
        policy: What the operator decided for all projects.
        today: The day, for retired models.

    Returns:
        The grant, or the error that says what is wrong and what to do.
    """
    try:
        _check_locked(project, requested)
        options = {**requested, **identity.sdk_config}
        return _admit(identity, project, options, policy, today)
    except ChuckyError as error:
        return error


def _check_locked(project: ProjectPolicy, requested: Mapping[str, Any]) -> None:
    if project.is_damaged:
        raise ValidationError(
            "The policy of this project cannot be read, so nothing is allowed; its operator has "
            "to set it again.",
            reason="policy_damaged",
        )
    for name in sorted(project.locked):
        if is_given(requested.get(name)):
            raise ValidationError(
                f"The policy of this project does not let clients set the option {name!r}; leave "
                "it out, or have the token set it.",
                reason="option_locked",
            )


def _admit(
    identity: Identity,
    project: ProjectPolicy,
    options: Mapping[str, Any],
    policy: Policy,
    today: date,
) -> Grant:
    ignored = _check_supported(options)
    limits = {"token": identity.permissions, "policy of this project": project.permissions}
    # Some tokens call it defaultModel: the application's choice, unless the client names one.
    name = options.get("model") or options.get("defaultModel") or DEFAULT_MODEL
    resolution = _resolve("model", name, limits, policy, today)
    fallback = _fallback(options, limits, policy, today)
    servers = tool_servers(options.get("mcpServers"))
    system_prompt, preset = _system_prompt(options.get("systemPrompt"))
    thinking = _max_thinking_tokens(options, project)
    return Grant(
        model=resolution.model,
        system_prompt=system_prompt,
        tools=tuple(granted_tools(servers, options, limits.values())),
        server_names=tuple(servers),
        max_turns=_max_turns(options, limits.values()),
        include_partial_messages=flag(options, "includePartialMessages"),
        ignored=(*ignored, *preset),
        notices=(
            *([resolution.notice] if resolution.notice else []),
            *_thinking_notices(resolution.model, thinking),
        ),
        fallback_model=None if fallback is resolution.model else fallback,
        max_thinking_tokens=thinking,
        output_schema=_output_schema(options.get("outputFormat")),
        betas=_betas(options, project, policy),
        resumption=_resumption(options),
        max_budget_nanos=_max_budget(options, project),
    )


def _check_supported(options: Mapping[str, Any]) -> list[str]:
    """Refuse what would change the outcome; return the names of what has no effect."""
    for name, what in _NEEDS_CLAUDE_CODE.items():
        if is_given(options.get(name)):
            raise unsupported(
                f"The option {name!r} ({what}) needs the engine 'claude_code'; this server "
                "answers with the engine 'messages'. Leave it out."
            )
    mode = options.get("permissionMode")
    if is_given(mode) and mode not in _PERMISSION_MODES:
        raise invalid(
            f"The option 'permissionMode' must be one of {', '.join(_PERMISSION_MODES)}, not "
            f"{mode!r:.40}."
        )
    ignored = [name for name in _IGNORED if is_given(options.get(name))]
    return [*_built_in_tools(options.get("tools")), *ignored]


def _built_in_tools(tools: Any) -> Iterator[str]:
    if not tools:
        return
    if isinstance(tools, dict | str):
        yield "tools"  # a preset of built-in tools; there are none here
        return
    raise unsupported(
        f"The option 'tools' names built-in tools ({tools!r:.80}), which need the engine "
        "'claude_code'; this server answers with the engine 'messages'. Give tools of your own "
        "in 'mcpServers'."
    )


def _resolve(
    option: str,
    name: Any,
    limits: Mapping[str, Permissions],
    policy: Policy,
    today: date,
) -> Resolution:
    if not isinstance(name, str):
        raise invalid(f"The option {option!r} must be a name, not {name!r:.80}.")
    resolution = policy.catalog.resolve(name, today, succession=policy.succession)
    for who, permissions in limits.items():
        if permissions.models is not None and permissions.models.isdisjoint(resolution.names):
            raise ValidationError(
                f"The {who} does not permit the model {name!r}; it permits "
                f"{', '.join(sorted(permissions.models)) or 'none'}.",
                reason="model_not_permitted",
            )
    return resolution


def _fallback(
    options: Mapping[str, Any], limits: Mapping[str, Permissions], policy: Policy, today: date
) -> Model | None:
    name = options.get("fallbackModel")
    if not is_given(name):
        return None
    return _resolve("fallbackModel", name, limits, policy, today).model


def _system_prompt(given: Any) -> tuple[str | None, list[str]]:
    """The prompt, and what of the option has no effect here."""
    prompt: Any
    preset: list[str]
    if given is None or isinstance(given, str):
        prompt, preset = given, []
    elif isinstance(given, dict) and given.get("type") == "preset":
        # The preset's text belongs to the other engine; what is appended to it is the caller's.
        prompt, preset = given.get("append"), ["systemPrompt.preset"]
    else:
        raise invalid("The option 'systemPrompt' must be text or a preset object.")
    if prompt is None:
        return None, preset
    if not isinstance(prompt, str) or len(prompt) > MAX_SYSTEM_PROMPT_CHARACTERS:
        raise invalid(
            "The option 'systemPrompt' must be text of at most "
            f"{MAX_SYSTEM_PROMPT_CHARACTERS} characters."
        )
    return prompt if prompt.strip() else None, preset


def _max_turns(options: Mapping[str, Any], limits: Iterable[Permissions]) -> int | None:
    asked = [count(options, "maxTurns", 1), *(permissions.max_turns for permissions in limits)]
    return min((each for each in asked if each is not None), default=None)


def _resumption(options: Mapping[str, Any]) -> Resumption | None:
    asked = {name: options[name] for name in ("resume", "sessionId") if is_given(options.get(name))}
    for name, given in {**asked, "resumeSessionAt": options.get("resumeSessionAt")}.items():
        if given is not None and not isinstance(given, str):
            raise invalid(f"The option {name!r} must be an id, not {given!r:.40}.")
    if len(set(asked.values())) > 1:
        raise invalid("The options 'resume' and 'sessionId' name two sessions; leave one out.")
    session_id = next(iter(asked.values()), None)
    forks, at = flag(options, "forkSession"), options.get("resumeSessionAt") or None
    if session_id is None and not flag(options, "continue"):
        if forks or at:
            raise invalid(
                "'forkSession' and 'resumeSessionAt' need the session: name it in 'resume'."
            )
        return None
    return Resumption(session_id, forks, at)


def _max_budget(options: Mapping[str, Any], project: ProjectPolicy) -> int | None:
    given = options.get("maxBudgetUsd")
    asked = None if given is None else dollars_to_nanos(given)
    if given is not None and asked is None:
        raise invalid(f"The option 'maxBudgetUsd' must be an amount of dollars, not {given!r:.40}.")
    return min(
        (each for each in (asked, project.max_budget_nanos) if each is not None), default=None
    )


def _max_thinking_tokens(options: Mapping[str, Any], project: ProjectPolicy) -> int | None:
    asked, cap = count(options, "maxThinkingTokens", 0), project.max_thinking_tokens
    if asked is None:
        # Many models think unasked: where none is allowed, that has to be said.
        return 0 if cap == 0 else None
    return asked if cap is None else min(asked, cap)


def _thinking_notices(model: Model, max_thinking_tokens: int | None) -> Iterator[str]:
    if max_thinking_tokens is None:
        return
    if max_thinking_tokens and model.thinking == "none":
        yield f"The model {model.id!r} cannot think; maxThinkingTokens has no effect."
    elif max_thinking_tokens and model.thinking == "adaptive":
        yield (
            f"The model {model.id!r} decides itself how much it thinks; maxThinkingTokens has "
            "turned thinking on and limits nothing."
        )
    elif model.thinking == "adaptive" and model.thinking_off != "disabled":
        yield f"The model {model.id!r} cannot be kept from thinking altogether."


def _output_schema(given: Any) -> Mapping[str, Any] | None:
    if not is_given(given):
        return None
    schema = given.get("schema") if isinstance(given, dict) else None
    if not isinstance(schema, dict) or given.get("type") != "json_schema":
        raise invalid(
            "The option 'outputFormat' must be {'type': 'json_schema', 'schema': {…}}, not "
            f"{given!r:.80}."
        )
    try:
        check_usable_for_values(schema)
    except SchemaError as error:
        raise invalid(f"The schema of the option 'outputFormat' {error}.") from None
    return schema


def _betas(options: Mapping[str, Any], project: ProjectPolicy, policy: Policy) -> tuple[str, ...]:
    asked = tuple(dict.fromkeys(names(options, "betas")))
    for beta in asked:
        if beta not in policy.allowed_betas:
            raise unsupported(
                f"The beta {beta!r:.80} is not allowed on this server; leave it out, or have the "
                "operator add it to the setting allowed_betas."
            )
        if project.betas is not None and beta not in project.betas:
            raise unsupported(
                f"The policy of this project does not allow the beta {beta!r:.80}; leave it out."
            )
    return asked
