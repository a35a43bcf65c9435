"""The words by which a long conversation is made short."""

from __future__ import annotations

import re

from chucky.server.engines.base import Content

# Where a conversation fills so much of the model's window, it is summarised before the next call.
FULL_PERCENT = 80

_COMMAND = re.compile(r"/compact(?:\s+(?P<wish>.*))?", re.S)

_REQUEST = """\
Summarize this conversation: the summary will take the place of all messages above, and you will \
go on from it alone. Write down what the user said and wants, in their words where it matters; \
names, numbers, decisions and results of tools that are still needed; what has been done, what \
went wrong, and what comes next. Call no tools. Answer with the summary and nothing else."""

_REMINDER = "This conversation goes on from a summary of what was said before:\n\n"


def asked_for_compaction(content: Content) -> str | None:
    """What a message ``/compact …`` wishes the summary to mind; None if it is no such message."""
    if isinstance(content, list):
        texts = [block.get("text") for block in content if block.get("type") == "text"]
        content = str(texts[0]) if len(texts) == len(content) == 1 else ""
    match = _COMMAND.fullmatch(content.strip())
    return None if match is None else (match["wish"] or "").strip()


def compaction_request(wish: str) -> str:
    """The message that asks the model for a summary."""
    return f"{_REQUEST}\nThe user wishes: {wish}" if wish else _REQUEST


def as_first_message(summary: str) -> str:
    """The message that stands for everything that was summarised."""
    return _REMINDER + summary
