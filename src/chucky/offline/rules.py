"""The rules: small, fixed, honest answers to what people type first into something new."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from chucky.offline import arithmetic, facts
from chucky.offline.conversation import Conversation

HONEST = (
    "I am Chucky's offline model: I answer by a few simple rules, and none of them fits this "
    "message. Set ANTHROPIC_API_KEY where `chucky serve` runs and a real model will answer."
)

_CAPITALS = {
    "argentina": "Buenos Aires",
    "australia": "Canberra",
    "austria": "Vienna",
    "belgium": "Brussels",
    "brazil": "Brasília",
    "canada": "Ottawa",
    "chile": "Santiago",
    "china": "Beijing",
    "denmark": "Copenhagen",
    "egypt": "Cairo",
    "finland": "Helsinki",
    "france": "Paris",
    "germany": "Berlin",
    "greece": "Athens",
    "hungary": "Budapest",
    "india": "New Delhi",
    "ireland": "Dublin",
    "italy": "Rome",
    "japan": "Tokyo",
    "kenya": "Nairobi",
    "mexico": "Mexico City",
    "the netherlands": "Amsterdam",
    "new zealand": "Wellington",
    "norway": "Oslo",
    "poland": "Warsaw",
    "portugal": "Lisbon",
    "south korea": "Seoul",
    "spain": "Madrid",
    "sweden": "Stockholm",
    "switzerland": "Bern",
    "turkey": "Ankara",
    "ukraine": "Kyiv",
    "the united kingdom": "London",
    "the united states": "Washington, D.C.",
}
_CAPITAL_OF = re.compile(r"\bcapital(?: city)? of ((?:[a-z]{2,20} ){0,2}[a-z]{2,20})\b")
_GREETING = re.compile(r"^(?:hello|hi|hey|good (?:morning|afternoon|evening|day))\b", re.I)
_POEM = re.compile(r"\bpoem\b(?: (?:about|on|of) ([\w' -]{1,40}))?", re.I)
# "Reply with a poem" is no text to say; a colon, a quotation mark or "the word" makes it one.
_SAY = re.compile(
    r"^(?:please )?(?:say|repeat(?: after me)?|(?:reply|answer|respond) with)"
    r"(?:(?: exactly| only| just| the words?)+:?|:| (?=[\"'“`])) ?(.{1,500})$",
    re.I | re.S,
)
_SUMMARIZE = re.compile(r"^(?:please )?summari[sz]e (?:this|the|our) conversation\b", re.I)
_FENCED = re.compile(r"```.*?```", re.S)
_LONGEST_QUOTE = 2_000
_SAY_WORD = re.compile(r"^(?:please )?say (\w{1,40})[.!]?$", re.I)
_WHO = re.compile(r"\b(?:who|what) are you\b|\byour name\b|\bwhat model\b", re.I)
_CLOCK = re.compile(r"\bwhat(?:'s| is)? (?:the )?(?:time|date|day)\b", re.I)
_FIXED = (
    (
        re.compile(r"\bcalculus\b", re.I),
        "Calculus is the mathematics of change. Differential calculus finds how fast a quantity "
        "changes at a point, integral calculus adds up infinitely many small parts, and the "
        "fundamental theorem says that the two undo each other.",
    ),
    (re.compile(r"^(?:thanks|thank you)\b", re.I), "You are welcome."),
    (
        _WHO,
        "I am Chucky's offline model, not a language model: I answer by a few simple rules, "
        "without a key and without a network.",
    ),
    (
        _CLOCK,
        "I am Chucky's offline model and have no clock. Offer me a tool such as get_time and "
        "I will call it.",
    ),
)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer and the name of the rule it was found by."""

    text: str
    rule: str


def find_answer(conversation: Conversation) -> Answer | None:
    """Answer the prompt by the first rule that fits; ``None`` if none does."""
    for rule, answer in _RULES:
        if text := answer(conversation):
            return Answer(text, rule)
    return None


def _say_back(conversation: Conversation) -> str | None:
    match = _SAY.match(conversation.prompt) or _SAY_WORD.match(conversation.prompt)
    return match[1].strip().strip("\"'“”`") if match else None


def _compute(conversation: Conversation) -> str | None:
    expression = arithmetic.find_expression(conversation.prompt)
    if expression is None:
        expression = arithmetic.find_follow_up(conversation.prompt, _last_number(conversation))
    if expression is None:
        return None
    try:
        return f"{expression} = {arithmetic.calculate(expression)}."
    except arithmetic.ArithmeticRefused as refusal:
        return str(refusal)


def _last_number(conversation: Conversation) -> str | None:
    for _, text in reversed(conversation.earlier_texts[-20:]):
        if number := arithmetic.find_last_number(text):
            return number
    return None


def _recall_name(conversation: Conversation) -> str | None:
    if not facts.asks_for_name(conversation.prompt):
        return None
    name = facts.recall_name(_told(conversation))
    return f"Your name is {name}." if name else "You have not told me your name."


def _recall_fact(conversation: Conversation) -> str | None:
    key = facts.asked_fact(conversation.prompt)
    if key is None:
        return None
    value = facts.recall_fact(key, _told(conversation))
    yours = f"your {key[3:]}" if key.startswith("my ") else key
    if value is not None:
        return f"{yours[0].upper()}{yours[1:]} is {value}."
    return f"You have not told me {yours}." if key.startswith("my ") else None


def _note_fact(conversation: Conversation) -> str | None:
    if conversation.prompt.endswith("?"):
        return None
    name = facts.find_name(conversation.prompt)
    if name:
        return f"Hello {name}! Nice to meet you."
    fact = facts.find_fact(conversation.prompt)
    if fact is None:
        return None
    key, value = fact
    yours = f"your {key[3:]}" if key.startswith("my ") else key
    return f"I will remember that {yours} is {value}."


def _told(conversation: Conversation) -> list[str]:
    return [text for role, text in conversation.earlier_texts if role == "user"]


def _summarize(conversation: Conversation) -> str | None:
    if not _SUMMARIZE.match(conversation.prompt):
        return None
    said = [_without_script(text) for text in _told(conversation)]
    return "\n\n".join(["The user said:", *filter(None, said)])


def _without_script(text: str) -> str:
    return _FENCED.sub("", text).strip()[:_LONGEST_QUOTE]


def _capital(conversation: Conversation) -> str | None:
    match = _CAPITAL_OF.search(conversation.prompt[:2_000].lower())
    if match is None:
        return None
    words = match[1].split()
    for end in range(len(words), 0, -1):
        country = " ".join(words[:end])
        for name in (country, f"the {country}"):
            if name in _CAPITALS:
                capital = _CAPITALS[name].rstrip(".")
                return f"The capital of {_in_title_case(name)} is {capital}."
    return "I am Chucky's offline model and know only a few capitals; that one is not among them."


def _in_title_case(name: str) -> str:
    return " ".join(word if word == "the" else word.capitalize() for word in name.split())


def _poem(conversation: Conversation) -> str | None:
    match = _POEM.search(conversation.prompt[:2_000])
    if match is None:
        return None
    topic = (match[1] or "this").strip()
    return (
        f"A line about {topic}, a line more to write,\n"
        "I count every token by day and by night;\n"
        "no network, no key, just a rule and a rhyme,\n"
        "and all of it free, and the same every time."
    )


def _fixed(conversation: Conversation) -> str | None:
    for pattern, text in _FIXED:
        if pattern.search(conversation.prompt[:2_000]):
            return text
    return None


def _greet(conversation: Conversation) -> str | None:
    if _GREETING.match(conversation.prompt) and len(conversation.prompt) <= 60:
        return "Hello! I am Chucky's offline model. How can I help?"
    return None


_RULES: tuple[tuple[str, Callable[[Conversation], str | None]], ...] = (
    ("summary", _summarize),
    ("say", _say_back),
    ("arithmetic", _compute),
    ("name", _recall_name),
    ("fact", _recall_fact),
    ("introduction", _note_fact),
    ("capital", _capital),
    ("poem", _poem),
    ("fixed answer", _fixed),
    ("greeting", _greet),
)
