"""Chucky: Claude agents as a service, that you own.

This is the client SDK. The names below are the whole public interface; each is imported from
its module on first use, so that ``from chucky import create_token`` loads no networking.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chucky.client import Chucky
    from chucky.errors import (
        AuthenticationError,
        BudgetExceededError,
        ChuckyConnectionError,
        ChuckyError,
        ChuckyTimeoutError,
        ConcurrencyLimitError,
        ProtocolError,
        RateLimitError,
        SessionError,
        ToolExecutionError,
        ValidationError,
    )
    from chucky.inquiries import SessionSummary
    from chucky.legacy import (
        AssistantMessage,
        ContentBlock,
        ResultMessage,
        SDKMessage,
        SystemMessage,
        TextBlock,
        ThinkingBlock,
        ToolResultBlock,
        ToolUseBlock,
        UserMessage,
    )
    from chucky.messages import (
        Message,
        PromptResult,
        StreamEvent,
        get_assistant_text,
        get_result_text,
    )
    from chucky.options import ChuckyOptions, PromptOptions
    from chucky.session import Session
    from chucky.tokens import (
        Budget,
        BudgetToken,
        TokenBudget,
        create_budget,
        create_token,
        decode_token,
        extract_project_id,
        is_token_expired,
        verify_token,
    )
    from chucky.tools import (
        InputSchema,
        McpSdkServerConfig,
        McpServer,
        SdkMcpTool,
        Tool,
        ToolResult,
        create_mcp_server,
        create_sdk_mcp_server,
        error_result,
        text_result,
        tool,
    )

__version__ = "0.3.0.dev0"

_MODULE_BY_NAME = {
    name: module
    for module, names in {
        "client": ("Chucky",),
        "errors": (
            "AuthenticationError",
            "BudgetExceededError",
            "ChuckyConnectionError",
            "ChuckyError",
            "ChuckyTimeoutError",
            "ConcurrencyLimitError",
            "ProtocolError",
            "RateLimitError",
            "SessionError",
            "ToolExecutionError",
            "ValidationError",
        ),
        "inquiries": ("SessionSummary",),
        "legacy": (
            "AssistantMessage",
            "ContentBlock",
            "ResultMessage",
            "SDKMessage",
            "SystemMessage",
            "TextBlock",
            "ThinkingBlock",
            "ToolResultBlock",
            "ToolUseBlock",
            "UserMessage",
        ),
        "messages": (
            "Message",
            "PromptResult",
            "StreamEvent",
            "get_assistant_text",
            "get_result_text",
        ),
        "options": ("ChuckyOptions", "PromptOptions"),
        "session": ("Session",),
        "tokens": (
            "Budget",
            "BudgetToken",
            "TokenBudget",
            "create_budget",
            "create_token",
            "decode_token",
            "extract_project_id",
            "is_token_expired",
            "verify_token",
        ),
        "tools": (
            "InputSchema",
            "McpSdkServerConfig",
            "McpServer",
            "SdkMcpTool",
            "Tool",
            "ToolResult",
            "create_mcp_server",
            "create_sdk_mcp_server",
            "error_result",
            "text_result",
            "tool",
        ),
    }.items()
    for name in names
}

__all__ = [  # the imports above and the table say the same; a test holds the three together
    "AssistantMessage",
    "AuthenticationError",
    "Budget",
    "BudgetExceededError",
    "BudgetToken",
    "Chucky",
    "ChuckyConnectionError",
    "ChuckyError",
    "ChuckyOptions",
    "ChuckyTimeoutError",
    "ConcurrencyLimitError",
    "ContentBlock",
    "InputSchema",
    "McpSdkServerConfig",
    "McpServer",
    "Message",
    "PromptOptions",
    "PromptResult",
    "ProtocolError",
    "RateLimitError",
    "ResultMessage",
    "SDKMessage",
    "SdkMcpTool",
    "Session",
    "SessionError",
    "SessionSummary",
    "StreamEvent",
    "SystemMessage",
    "TextBlock",
    "ThinkingBlock",
    "TokenBudget",
    "Tool",
    "ToolExecutionError",
    "ToolResult",
    "ToolResultBlock",
    "ToolUseBlock",
    "UserMessage",
    "ValidationError",
    "create_budget",
    "create_mcp_server",
    "create_sdk_mcp_server",
    "create_token",
    "decode_token",
    "error_result",
    "extract_project_id",
    "get_assistant_text",
    "get_result_text",
    "is_token_expired",
    "text_result",
    "tool",
    "verify_token",
]


def __getattr__(name: str) -> Any:
    module = _MODULE_BY_NAME.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{module}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
