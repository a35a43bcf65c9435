"""Tools: functions of this process that the model can call.

::

    @tool("add", "Add two numbers")
    async def add(a: float, b: float) -> float:
        return a + b

    server = create_mcp_server("calculator", [add])

A tool is a name, a description, a JSON Schema and a handler (``definition``). The schema comes
from the function's signature (``signature``, ``inferred``, ``schemas``) or is given; the input
of each call is validated against it before the handler runs (``arguments``, ``binding``,
``problems``). A call always ends in a result for the model (``calls``, ``results``), and plain
functions run in threads that cannot hold up the program (``threads``). ``servers`` groups tools
and keeps their names apart.

Importing this package imports neither pydantic nor jsonschema nor docstring_parser; each is
loaded when a tool is defined that needs it.
"""

from __future__ import annotations

from chucky.tools.calls import call_tool
from chucky.tools.definition import (
    InputSchema,
    SdkMcpTool,
    Tool,
    ToolHandler,
    tool,
    tool_definition,
)
from chucky.tools.results import ToolResult, error_result, text_result
from chucky.tools.servers import (
    McpSdkServerConfig,
    McpServer,
    collect_tools,
    create_mcp_server,
    create_sdk_mcp_server,
)

__all__ = [
    "InputSchema",
    "McpSdkServerConfig",
    "McpServer",
    "SdkMcpTool",
    "Tool",
    "ToolHandler",
    "ToolResult",
    "call_tool",
    "collect_tools",
    "create_mcp_server",
    "create_sdk_mcp_server",
    "error_result",
    "text_result",
    "tool",
    "tool_definition",
]
