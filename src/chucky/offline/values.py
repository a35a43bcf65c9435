"""Taking values for named, typed places out of a message: the arguments of a tool call, mostly."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from chucky.offline import arithmetic
from chucky.offline.conformity import conforms
from chucky.offline.schemas import UNSUPPORTED, Schema, SchemaUnsupported, kinds, resolve

MAX_TEXT = 4_000
MAX_NAMES = 200


class _Missing:
    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = _Missing()

_NAME_LIKE = frozenset({"name", "person", "user", "username", "customer", "author", "recipient"})
_PLACE_LIKE = frozenset(
    {"city", "place", "location", "country", "town", "region", "address", "destination", "origin"}
)
_PATH_LIKE = frozenset({"path", "file", "filename", "filepath", "directory", "dir", "folder"})
_ID_LIKE = frozenset({"id", "ids", "code", "key", "sku", "ticket", "order", "reference", "ref"})
_EXPRESSION_LIKE = frozenset({"expression", "formula", "equation", "calculation"})
# Places for which a whole sentence is never a sensible value.
_NO_SENTENCE = (
    _PATH_LIKE
    | _ID_LIKE
    | frozenset(
        {"url", "uri", "link", "email", "mail", "date", "time", "timestamp", "day", "timezone"}
        | {"phone", "command", "cmd", "script", "sql", "regex", "pattern", "language", "model"}
    )
)

_QUOTED = re.compile(
    r'"([^"\n]{1,1000})"|“([^”\n]{1,1000})”|`([^`\n]{1,1000})`|(?<!\w)\'([^\'\n]{1,1000})\'(?!\w)'
)
_NUMBER = re.compile(r"(?<![\w.])-?\d{1,15}(?:\.\d{1,15})?(?![\w])")
# Words that begin sentences with a capital and are no names.
_STARTS = (
    "A|Add|An|And|Are|Call|Can|Could|Do|Does|For|Get|Give|Greet|He|Hello|Hey|Hi|How|I|If|In|Is|It|"
    "Let|List|Look|Make|My|No|Now|Please|Read|Say|Search|Send|Set|She|Show|Tell|That|The|There|"
    "They|This|Use|We|What|When|Where|Which|Who|Why|Will|Write|Yes|You"
)
_CAPITALISED = r"[A-ZÀ-ÖØ-Þ][\w'’-]{0,40}"
_PROPER = re.compile(rf"\b(?!(?:{_STARTS})\b){_CAPITALISED}(?: {_CAPITALISED}){{0,3}}")
_PREPOSITION = re.compile(r"\b(?:in|at|for|from|to|of|near|with) $")
_CODE = re.compile(r"\b(?=[\w-]{0,40}\d)\w[\w-]{0,40}\b")
_PATH = re.compile(r"(?<![\w/])[~.\w-]{0,100}(?:/[\w.-]{1,100}){1,20}|\b[\w-]{1,100}\.[a-z]{1,5}\b")
_EMAIL = re.compile(r"[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,5}")
_URI = re.compile(r"\bhttps?://[^\s\"'<>]{1,500}[^\s\"'<>.,;:?!)]")
_DATE = re.compile(r"\b\d{4}-\d{2}-\d{2}\b")
_DATE_TIME = re.compile(r"\b\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(?::\d{2})?(?:Z|[+-]\d{2}:\d{2})?")
_TIME = re.compile(r"\b\d{1,2}:\d{2}(?::\d{2})?\b")
_FORMATS: dict[str, re.Pattern[str]] = {
    "email": _EMAIL,
    "uri": _URI,
    "date": _DATE,
    "date-time": _DATE_TIME,
    "time": _TIME,
}
_FORMAT_BY_WORD = {
    "email": "email",
    "mail": "email",
    "url": "uri",
    "uri": "uri",
    "link": "uri",
    "date": "date",
    "time": "time",
}
_TRUE = frozenset({"true", "yes", "on"})
_FALSE = frozenset({"false", "no", "off"})
_DENIED = re.compile(r"\b(?:no|not|without|don't|don’t|never)(?: \w{1,20})? $", re.I)


def words_of(name: str) -> list[str]:
    """Split a name into lower-case words: ``getOrder_status`` is get, order, status."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name[:128])
    return [word.lower() for word in re.split(r"[\s_\-.]+", spaced) if word]


class ValueFinder:
    """Finds values in one message, each part of the message used for one place only.

    Args:
        text: The message; only its beginning is looked at.
        names: The names of all places that will be asked for.
        root: The schema in which references are looked up.
    """

    def __init__(self, text: str, names: Iterable[str], root: Schema) -> None:
        self.text = text[:MAX_TEXT]
        self._root = root
        self._used: list[tuple[int, int]] = []
        self._mentions = self._find_mentions(list(names)[:MAX_NAMES])

    def evident(self, name: str, schema: Schema) -> Any:
        """Find what the message says about this place by name, or by one of its allowed values.

        Returns:
            The value, or :data:`MISSING`.
        """
        schema = self._plain(schema)
        if not isinstance(schema, dict):
            return MISSING
        finders = (self._mentioned, self._chosen, self._switched, self._expression)
        return self._first_fit(finders, name, schema)

    def likely(self, name: str, schema: Schema) -> Any:
        """Find what the message most likely means for this place: the next number, a quotation …

        Returns:
            The value, or :data:`MISSING`.
        """
        schema = self._plain(schema)
        if not isinstance(schema, dict):
            return MISSING
        return self._first_fit((self._typed,), name, schema)

    def takes_sentence(self, name: str, schema: Schema) -> bool:
        """Tell whether the whole message is a sensible value for this place."""
        schema = self._plain(schema)
        if not isinstance(schema, dict) or "string" not in kinds(schema):
            return False
        if {"format", "pattern", "enum", "const"} & set(schema):
            return False
        return _NO_SENTENCE.isdisjoint(words_of(name))

    def _first_fit(
        self,
        finders: Sequence[Callable[[str, dict[str, Any]], Any]],
        name: str,
        schema: dict[str, Any],
    ) -> Any:
        for finder in finders:
            value = finder(name, schema)
            if value is not MISSING and self._fits(value, schema):
                return value
        return MISSING

    def _fits(self, value: Any, schema: dict[str, Any]) -> bool:
        try:
            return conforms(self._root, value, schema, passed_over=UNSUPPORTED)
        except SchemaUnsupported:
            return False

    def _plain(self, schema: Schema) -> Schema:
        """Look through references and through alternatives with null."""
        for _ in range(10):
            schema = resolve(self._root, schema)
            if isinstance(schema, bool):
                break
            options = schema.get("anyOf") or schema.get("oneOf")
            if options:
                real = [each for each in options if each != {"type": "null"}]
                schema = real[0] if real else options[0]
            elif "$ref" not in schema:
                break
        return schema

    # --- By name ---

    def _find_mentions(self, names: list[str]) -> dict[str, int]:
        mentions: dict[str, int] = {}
        for name in names:
            words = [re.escape(word) for word in words_of(name)]
            if not words:
                continue
            mention = re.compile(
                rf"(?<!\w){'[_ -]?'.join(words)}(?: ?[:=] ?| is (?!there\b|it\b|the\b))", re.I
            )
            if match := mention.search(self.text):
                mentions[name] = match.end()
                phrase = self._phrase(match.end())
                number = _NUMBER.match(phrase)
                self._use(match.start(), match.end() + len(number[0] if number else phrase))
        return mentions

    def _mentioned(self, name: str, schema: dict[str, Any]) -> Any:
        start = self._mentions.get(name)
        if start is None:
            return MISSING
        if "array" in kinds(schema):
            items = re.split(r", ?| and ", re.split(r"[;\n]", self.text[start:])[0].rstrip(".?! "))
            item_schema = self._plain(schema.get("items", True))
            values = [self._converted(item, item_schema) for item in items if item.strip()]
            return MISSING if MISSING in values else values
        return self._converted(self._phrase(start), schema)

    def _phrase(self, start: int) -> str:
        rest = self.text[start:]
        if quoted := _QUOTED.match(rest):
            return quoted[0]
        end = re.search(r"[,;\n]|[.?!](?:\s|$)| and |$", rest)
        return rest[: end.start()] if end else rest

    def _converted(self, phrase: str, schema: Schema) -> Any:
        phrase = phrase.strip()
        if quoted := _QUOTED.fullmatch(phrase):
            phrase = next(group for group in quoted.groups() if group)
        for kind in kinds(schema) or ("string",):
            value = _as_kind(phrase, kind)
            if value is not MISSING:
                return _as_allowed(value, schema)
        return MISSING

    def _chosen(self, name: str, schema: dict[str, Any]) -> Any:
        for value in schema.get("enum", [])[:200]:
            if isinstance(value, str) and value and _has_phrase(self.text, value[:200]):
                return value
        return MISSING

    def _switched(self, name: str, schema: dict[str, Any]) -> Any:
        if kinds(schema) != ("boolean",):
            return MISSING
        phrase = "[_ -]".join(re.escape(word) for word in words_of(name))
        match = re.search(rf"(?<!\w){phrase}(?!\w)", self.text, re.I) if phrase else None
        if match is None:
            return MISSING
        return _DENIED.search(self.text[: match.start()][-40:]) is None

    def _expression(self, name: str, schema: dict[str, Any]) -> Any:
        if "string" not in kinds(schema) or _EXPRESSION_LIKE.isdisjoint(words_of(name)):
            return MISSING
        return arithmetic.find_expression(self.text) or MISSING

    # --- By type ---

    def _typed(self, name: str, schema: dict[str, Any]) -> Any:
        for kind in kinds(schema):
            match kind:
                case "integer" | "number":
                    value = self._next_number(kind)
                case "string":
                    value = self._string(words_of(name), schema)
                case "array":
                    value = self._all_of(self._plain(schema.get("items", True)))
                case _:
                    value = MISSING
            if value is not MISSING:
                return value
        return MISSING

    def _next_number(self, kind: str) -> Any:
        for match in _NUMBER.finditer(self.text):
            value = _as_kind(match[0], kind)
            if value is not MISSING and self._take(match):
                return value
        return MISSING

    def _string(self, words: list[str], schema: dict[str, Any]) -> Any:
        wanted = schema.get("format") or next(
            (_FORMAT_BY_WORD[word] for word in words if word in _FORMAT_BY_WORD), ""
        )
        if wanted in _FORMATS:
            return self._next_match(_FORMATS[wanted])
        quoted = self._next_quoted()
        if quoted is not MISSING:
            return quoted
        last = words[-1] if words else ""
        if last in _PATH_LIKE:
            return self._next_match(_PATH)
        if last in _ID_LIKE:
            return self._next_match(_CODE)
        if last in _NAME_LIKE or last in _PLACE_LIKE:
            return self._next_proper_noun()
        return MISSING

    def _next_match(self, pattern: re.Pattern[str]) -> Any:
        for match in pattern.finditer(self.text):
            if self._take(match):
                return match[0].rstrip(".")
        return MISSING

    def _next_quoted(self) -> Any:
        for match in _QUOTED.finditer(self.text):
            if self._take(match):
                return next(group for group in match.groups() if group)
        return MISSING

    def _next_proper_noun(self) -> Any:
        """Take the next name; one after a preposition, or at least inside a sentence, is better."""
        candidates = []
        for match in _PROPER.finditer(self.text):
            before = self.text[: match.start()]
            inside = bool(before.rstrip()) and before.rstrip()[-1] not in ".!?:"
            rank = 2 if _PREPOSITION.search(before[-10:]) else int(inside)
            candidates.append((-rank, match.start(), match))
        for _, _, match in sorted(candidates, key=lambda each: each[:2]):
            if self._take(match):
                return re.sub(r"['’]s$", "", match[0])
        return MISSING

    def _all_of(self, item: Schema) -> Any:
        wanted = kinds(item)
        if isinstance(item, dict) and "enum" in item:
            chosen = [each for each in item["enum"][:200] if isinstance(each, str)]
            values: list[Any] = [each for each in chosen if _has_phrase(self.text, each[:200])]
            return values or MISSING
        values = []
        while len(values) < 100:
            value = MISSING
            if "integer" in wanted or "number" in wanted:
                value = self._next_number("integer" if "integer" in wanted else "number")
            elif "string" in wanted:
                value = self._next_quoted()
            if value is MISSING:
                break
            values.append(value)
        return values or MISSING

    def _use(self, start: int, end: int) -> None:
        self._used.append((start, end))

    def _take(self, match: re.Match[str]) -> bool:
        start, end = match.span()
        if any(start < used_end and used_start < end for used_start, used_end in self._used):
            return False
        self._use(start, end)
        return True


def _as_kind(phrase: str, kind: str) -> Any:
    match kind:
        case "integer" | "number":
            match = _NUMBER.match(phrase)
            if match is None or ("." in match[0] and kind == "integer"):
                return MISSING
            return float(match[0]) if "." in match[0] else int(match[0])
        case "boolean":
            word = phrase.lower()
            return word in _TRUE if word in _TRUE | _FALSE else MISSING
        case "null":
            return MISSING
        case "string":
            return phrase or MISSING
        case _:
            return MISSING


def _as_allowed(value: Any, schema: Schema) -> Any:
    """Write a value as the schema's ``enum`` writes it."""
    if isinstance(schema, dict) and isinstance(value, str):
        for allowed in schema.get("enum", []):
            if isinstance(allowed, str) and allowed.lower() == value.lower():
                return allowed
    return value


def _has_phrase(text: str, phrase: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text, re.I) is not None
