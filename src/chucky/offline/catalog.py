"""The models that ``GET /v1/models`` lists; every other name is answered just as well."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chucky.offline.errors import ApiError

DEFAULT_LIMIT = 20
MAX_LIMIT = 1_000

_MODELS = {
    "chucky-offline": ("Chucky's offline model", None),
    "claude-opus-5-5": ("Claude Opus 5.5, played by Chucky's offline model", "opus"),
    "claude-sonnet-5-5": ("Claude Sonnet 5.5, played by Chucky's offline model", "sonnet"),
    "claude-haiku-5-5": ("Claude Haiku 5.5, played by Chucky's offline model", "haiku"),
    "claude-sonnet-4-5-20250929": (
        "Claude Sonnet 4.5, played by Chucky's offline model",
        "sonnet",
    ),
}
_YES = {"supported": True}
_NO = {"supported": False}
_CAPABILITIES = {
    "batch": _NO,
    "citations": _NO,
    "code_execution": _NO,
    "context_management": _NO,
    "effort": {**_NO, "low": _NO, "medium": _NO, "high": _NO, "xhigh": _NO, "max": _NO},
    "image_input": _NO,
    "pdf_input": _NO,
    "server_tools": {**_NO, "web_search": _NO, "code_execution": _NO},
    "structured_outputs": _YES,
    "thinking": {
        **_YES,
        "types": {"adaptive": _YES, "between_tools": _YES, "disabled": _YES, "enabled": _YES},
    },
}


def describe_model(model_id: str) -> dict[str, Any]:
    """Describe one listed model in the API's form.

    Raises:
        ApiError: No such model is listed (status 404).
    """
    if model_id not in _MODELS:
        raise ApiError(f"model: {model_id[:256]}", status=404)
    name, line = _MODELS[model_id]
    return {
        "type": "model",
        "id": model_id,
        "display_name": name,
        "created_at": "1970-01-01T00:00:00Z",  # what the API writes for "not known"
        "lifecycle": "active",
        "line": line,
        "deprecated_at": None,
        "retires_at": None,
        "max_input_tokens": None,
        "max_tokens": None,
        "capabilities": _CAPABILITIES,
    }


def list_models(query: Mapping[str, str]) -> dict[str, Any]:
    """List the models, one page of them.

    Args:
        query: The parameters ``limit``, ``after_id`` and ``before_id``.

    Returns:
        The page in the API's form.

    Raises:
        ApiError: A parameter is wrong (status 400).
    """
    limit = _limit(query.get("limit"))
    ids = list(_MODELS)
    if "before_id" in query:
        rest = ids[: _position(ids, query["before_id"], "before_id")]
        page, has_more = rest[-limit:], len(rest) > limit
    else:
        start = _position(ids, query["after_id"], "after_id") + 1 if "after_id" in query else 0
        page, has_more = ids[start : start + limit], len(ids) > start + limit
    return {
        "data": [describe_model(model_id) for model_id in page],
        "has_more": has_more,
        "first_id": page[0] if page else None,
        "last_id": page[-1] if page else None,
    }


def _limit(text: str | None) -> int:
    if text is None:
        return DEFAULT_LIMIT
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= MAX_LIMIT:
        raise ApiError(f"limit: Input should be a whole number from 1 to {MAX_LIMIT}")
    return int(text)


def _position(ids: list[str], model_id: str, parameter: str) -> int:
    if model_id not in ids:
        raise ApiError(f"{parameter}: {model_id[:256]!r} is no listed model")
    return ids.index(model_id)
