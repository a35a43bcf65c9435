"""What a user told about themselves earlier, and the questions that ask for it."""

from __future__ import annotations

import re
from collections.abc import Iterable

MAX_REMEMBERED_TEXTS = 200

_SENTENCE_END = re.compile(r"[.!?\n;]+(?:\s|$)")
_MAX_SENTENCE = 300
_MAX_SENTENCES = 50

_LEAD = r"(?:(?:hello|hi|hey|good (?:morning|evening|day)|and|but|also|please|so)\b[,! ]{0,3}){0,3}"
_NAME = r"(?P<name>[^\W\d_][\w'’-]{0,40}(?: [A-Z][\w'’-]{0,40}){0,2})"
_NAMED = re.compile(rf"^(?i:{_LEAD}(?:my name is|my name's|call me|you can call me)) {_NAME}")
# "I am hungry" is no introduction: without "my name is" a name must begin with a capital.
_AM = re.compile(rf"^(?i:{_LEAD}(?:i am|i'm|i’m|this is)) (?=[A-Z]){_NAME}$")
_MINE = re.compile(
    rf"^{_LEAD}(?:(?:please )?remember(?: that)?:? )?my (?P<key>[\w' -]{{1,60}}?) (?:is|are) "
    r"(?P<value>.{1,200})$",
    re.I,
)
_TOLD = re.compile(
    rf"^{_LEAD}(?:please )?(?:remember|note)(?: that)?:? the (?P<key>[\w' -]{{1,60}}?) (?:is|are) "
    r"(?P<value>.{1,200})$",
    re.I,
)
_ASKED_NAME = re.compile(
    r"\b(?:what(?:'s|’s| is| was)|do you (?:know|remember)) my name\b|\bwho am i\b", re.I
)
_ASKED = re.compile(
    r"\b(?:what(?:'s|’s| is| are| was)|who is|do you (?:know|remember)) (?P<owner>my|the) "
    r"(?P<key>[\w' -]{1,60}?)(?: again)?\s{0,3}[?.!]{0,3}$",
    re.I,
)
_SPELLINGS = (("favorite", "favourite"), ("color", "colour"))


def find_name(text: str) -> str | None:
    """Find the name by which somebody introduces themselves: "Hello, I am Alice"."""
    for sentence in _sentences(text):
        if match := _NAMED.match(sentence) or _AM.match(sentence):
            return match["name"]
    return None


def find_fact(text: str) -> tuple[str, str] | None:
    """Find a thing somebody tells: "My favourite colour is blue".

    Returns:
        What it is about, with its owner (``"my favourite colour"``), and what was said of it
        (``"blue"``).
    """
    facts = list(_facts_in(text))
    return facts[-1] if facts else None


def asks_for_name(text: str) -> bool:
    """Tell whether somebody asks for their own name."""
    return _ASKED_NAME.search(text[:2_000]) is not None


def asked_fact(text: str) -> str | None:
    """Find what somebody asks to be told back: ``"my favourite colour"``."""
    for sentence in text[:2_000].split("\n"):
        if match := _ASKED.search(sentence[:_MAX_SENTENCE]):
            return _key(match["owner"], match["key"])
    return None


def recall_name(texts: Iterable[str]) -> str | None:
    """Find the name that was told last in these texts, the oldest first."""
    names = [name for text in _newest(texts) if (name := find_name(text))]
    return names[-1] if names else None


def recall_fact(key: str, texts: Iterable[str]) -> str | None:
    """Find what was told last about a thing in these texts, the oldest first.

    Args:
        key: As :func:`asked_fact` gives it.
        texts: What the user said.
    """
    values = [value for text in _newest(texts) for told, value in _facts_in(text) if told == key]
    return values[-1] if values else None


def _facts_in(text: str) -> Iterable[tuple[str, str]]:
    for sentence in _sentences(text):
        if match := _MINE.match(sentence):
            yield _key("my", match["key"]), match["value"].strip()
        elif match := _TOLD.match(sentence):
            yield _key("the", match["key"]), match["value"].strip()


def _key(owner: str, key: str) -> str:
    words = f"{owner} {key}".lower()
    for spelling, ours in _SPELLINGS:
        words = words.replace(spelling, ours)
    return words


def _sentences(text: str) -> list[str]:
    parts = _SENTENCE_END.split(text[:5_000])[:_MAX_SENTENCES]
    return [part.strip()[:_MAX_SENTENCE] for part in parts if part.strip()]


def _newest(texts: Iterable[str]) -> list[str]:
    return list(texts)[-MAX_REMEMBERED_TEXTS:]
