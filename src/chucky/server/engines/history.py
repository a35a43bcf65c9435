"""What the model has seen of a conversation, as it is sent to it again with every call."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

Blocks = list[dict[str, Any]]

_THINKING = frozenset({"thinking", "redacted_thinking"})
EPHEMERAL = {"type": "ephemeral"}
INTERRUPTED_TOOL = "The turn was interrupted before this tool answered."

Step = dict[str, Any]
"""One step by which a conversation came about; JSON can hold it."""


@dataclass(eq=False, slots=True)
class Entry:
    """One message of the conversation.

    Attributes:
        role: ``user`` or ``assistant``.
        blocks: Its content blocks, as the Messages API has them.
        model: The id of the model that said it; None for the user's messages.
    """

    role: str
    blocks: Blocks
    model: str | None = None

    @property
    def brings_results(self) -> bool:
        """Whether it answers tool calls."""
        return any(block.get("type") == "tool_result" for block in self.blocks)


def _forget(_step: Step) -> None:
    pass


class History:
    """The messages of one conversation, oldest first.

    Attributes:
        context_tokens: What they took of the model's window when it last said something.
    """

    def __init__(self, note: Callable[[Step], None] = _forget) -> None:
        """Begin with no messages.

        Args:
            note: Told each step by which the conversation comes about, as JSON holds it.
        """
        self._entries: list[Entry] = []
        self._note = note
        self.context_tokens = 0

    @classmethod
    def recalled(cls, steps: Iterable[Step], note: Callable[[Step], None] = _forget) -> History:
        """The conversation that came about by these steps, which goes on with others.

        Tools that were running when the last of them was noted were interrupted.
        """
        history = cls()
        for step in steps:
            history._take(step)
        history._note = note
        if calls := history._unanswered():
            history.add_user([_interrupted(call) for call in calls])
        return history

    def _take(self, step: Step) -> None:
        match step:
            case {"step": "user", "blocks": blocks}:
                self.add_user(blocks)
            case {"step": "assistant", "blocks": blocks, "model": model, "tokens": tokens}:
                self.add_assistant(blocks, model, tokens)
            case {"step": "forget", "kept": kept}:
                del self._entries[kept:]
            case {"step": "summarise", "replaced": count, "summary": summary}:
                self.replace(self.copy(count), summary)

    def _unanswered(self) -> Blocks:
        last = self._entries[-1] if self._entries else None
        if last is None or last.role != "assistant":
            return []
        return [block for block in last.blocks if block.get("type") == "tool_use"]

    def add_user(self, blocks: Blocks) -> Entry:
        """Append a message of the user, or results of tools."""
        self._note({"step": "user", "blocks": blocks})
        return self._append(Entry("user", blocks))

    def add_assistant(self, blocks: Blocks, model: str, context_tokens: int) -> Entry:
        """Append a message of the model with this id; so much of its window is taken now."""
        self._note(
            {"step": "assistant", "blocks": blocks, "model": model, "tokens": context_tokens}
        )
        self.context_tokens = context_tokens
        return self._append(Entry("assistant", blocks, model))

    def _append(self, entry: Entry) -> Entry:
        self._entries.append(entry)
        return entry

    def ends_with(self, entry: Entry) -> bool:
        """Whether nothing was said after ``entry``."""
        return self._entries[-1] is entry

    def forget_from(self, entry: Entry) -> None:
        """Drop an entry and all that follows it.

        If it has become part of a summary, everything but the summary is dropped.
        """
        at = self._entries.index(entry) if entry in self._entries else 1
        del self._entries[at:]
        self._note({"step": "forget", "kept": at})

    def messages(self, model: str) -> list[dict[str, Any]]:
        """The conversation as a request to ``model`` has it.

        Thinking is signed for the model that thought it, and others refuse it: it is left out.
        The last message is marked, so that the provider caches everything up to it. The mark is
        put on a copy: in the history it would stay, and a request may have only four.
        """
        messages: list[dict[str, Any]] = [
            {"role": entry.role, "content": blocks}
            for entry in self._entries
            if (blocks := _readable(entry, model))
        ]
        *rest, last = messages[-1]["content"]
        messages[-1]["content"] = [*rest, {**last, "cache_control": EPHEMERAL}]
        return messages

    def copy(self, end: int | None = None) -> History:
        """The same messages, or the first ones of them, to which others can be added."""
        copied = History()
        copied._entries = self._entries[:end]
        return copied

    def beginning(self) -> History:
        """What a summary can replace: everything before the message that waits for an answer.

        Where that message brings the results of tools, their calls stay with them.
        """
        waiting = 2 if self._entries[-1].brings_results else 1
        return self.copy(-waiting)

    @property
    def is_worth_a_summary(self) -> bool:
        """Whether there is more than one message, which may be a summary already."""
        return len(self._entries) > 1

    def replace(self, beginning: History, summary: str) -> None:
        """Put a summary in the place of the messages in ``beginning``.

        Thinking in the messages that stay goes: it is signed together with what came before it.
        """
        count = len(beginning._entries)
        self._note({"step": "summarise", "replaced": count, "summary": summary})
        self.context_tokens = 0
        kept = self._entries[count:]
        for entry in kept:
            entry.blocks = _without_thinking(entry.blocks)
        self._entries[:] = [Entry("user", [{"type": "text", "text": summary}]), *kept]


def _interrupted(call: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "tool_result",
        "tool_use_id": call["id"],
        "content": [{"type": "text", "text": INTERRUPTED_TOOL}],
        "is_error": True,
    }


def _readable(entry: Entry, model: str) -> Blocks:
    if entry.model in (None, model):
        return entry.blocks
    return _without_thinking(entry.blocks)


def _without_thinking(blocks: Blocks) -> Blocks:
    return [block for block in blocks if block.get("type") not in _THINKING]
