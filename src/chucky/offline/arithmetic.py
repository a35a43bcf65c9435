"""Arithmetic as people write it in a sentence, computed exactly and never by ``eval``."""

from __future__ import annotations

import ast
import re
from fractions import Fraction

MAX_EXPRESSION_CHARACTERS = 200
MAX_PARTS = 100
MAX_BITS = 2_048

_WORDS = (
    ("to the power of", "**"),
    ("multiplied by", "*"),
    ("divided by", "/"),
    ("times", "*"),
    ("plus", "+"),
    ("minus", "-"),
    ("over", "/"),
)
_ASKS = re.compile(r"(?:what(?:'?s| is| are)|how much is|calculate|compute|evaluate|solve)\b")
_EXPRESSION = re.compile(r"[-+(]{0,8}\d[\d.+\-*/%^() ]{0,200}")
_SPACED_SIGN = re.compile(r"[\d)] (?:[+*/^%]|\*\*) [\d(+-]")
_TIGHT_SIGN = re.compile(r"[\d)](?:[+*/^%]|\*\*)[\d(+-]|[\d)] - [\d(]")
_TIMES_SIGN = re.compile(r"(?<=[\d)]) {0,3}[x×·] {0,3}(?=[\d(])")
_PERCENT_OF = re.compile(r"(\d{1,30}(?:\.\d{1,30})?) {0,3}(?:%|percent) of\b")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_ROOT = re.compile(r"square root of (\d{1,30})")
_NUMBER = re.compile(r"(?<![\w.])-?\d{1,30}(?:\.\d{1,30})?(?!\w)")
_THAT = r"(?:that|it|this|the (?:result|answer|last number))"
_OPERAND = r"(-?\d{1,30}(?:\.\d{1,30})?)"
_FOLLOW_UPS = tuple(
    (re.compile(pattern), template)
    for pattern, template in (
        (rf"\bmultiply {_THAT} by {_OPERAND}", "{that} * {n}"),
        (rf"\b(?:divide {_THAT} by|{_THAT} divided by) {_OPERAND}", "{that} / {n}"),
        (rf"\badd {_OPERAND} to {_THAT}", "{that} + {n}"),
        (rf"\b(?:subtract|take) {_OPERAND} (?:away )?from {_THAT}", "{that} - {n}"),
        (rf"\b{_THAT} times {_OPERAND}", "{that} * {n}"),
        (rf"\b{_THAT} plus {_OPERAND}", "{that} + {n}"),
        (rf"\b{_THAT} minus {_OPERAND}", "{that} - {n}"),
        (rf"\bdouble {_THAT}", "{that} * 2"),
        (rf"\bhalve {_THAT}", "{that} / 2"),
        (rf"\bsquare {_THAT}", "{that} ** 2"),
    )
)


class ArithmeticRefused(ValueError):  # noqa: N818 - it is an answer, not a failure of ours
    """What was asked cannot be computed; the message says why, as a sentence."""


def find_expression(text: str) -> str | None:
    """Find the first arithmetic expression in a message.

    Args:
        text: The message; only its beginning is looked at.

    Returns:
        The expression in digits, parentheses and ``+ - * / % **``; ``None`` if there is none.
    """
    plain = _in_signs(text[:2_000].lower())
    if root := _ROOT.search(plain):
        return f"{root[1]} ** 0.5"
    for match in _EXPRESSION.finditer(plain):
        expression = _trimmed(match[0])
        if _is_asked_for(expression, plain) and _parsed(expression) is not None:
            return expression.replace("^", "**")
    return None


def find_follow_up(text: str, last_number: str | None) -> str | None:
    """Find an expression that continues from the last number, as in "Multiply that by 2".

    Args:
        text: The message.
        last_number: The last number of the conversation before it.
    """
    if last_number is None:
        return None
    plain = text[:2_000].lower()
    for pattern, template in _FOLLOW_UPS:
        if match := pattern.search(plain):
            operand = match[1] if pattern.groups else ""
            return template.format(that=_parenthesised(last_number), n=_parenthesised(operand))
    return None


def find_last_number(text: str) -> str | None:
    """Find the last number in a text; only the end of a long one is looked at."""
    numbers = _NUMBER.findall(_THOUSANDS.sub("", text[-2_000:]))
    return numbers[-1] if numbers else None


def calculate(expression: str) -> str:
    """Compute an expression exactly.

    Args:
        expression: As :func:`find_expression` finds it.

    Returns:
        The value: a whole number, or a decimal with at most 12 significant digits.

    Raises:
        ArithmeticRefused: It is no expression, is not defined, or is too large.
    """
    tree = _parsed(expression)
    if tree is None:
        raise ArithmeticRefused("I cannot read that expression.")
    if sum(1 for _ in ast.walk(tree)) > MAX_PARTS:
        raise ArithmeticRefused("That expression is too long for me.")
    return _written(_value(tree.body))


def _parsed(expression: str) -> ast.Expression | None:
    if len(expression) > MAX_EXPRESSION_CHARACTERS:
        return None
    try:
        return ast.parse(expression.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None  # the parser's ways to say that it is none, or nested too deep


def _trimmed(expression: str) -> str:
    """Take off what the sentence around an expression left at its ends."""
    expression = expression.rstrip(" .%^*/+-(")
    while expression.endswith(")") and expression.count(")") > expression.count("("):
        expression = expression[:-1].rstrip()
    return expression


def _in_signs(text: str) -> str:
    for word, sign in _WORDS:
        text = text.replace(f" {word} ", f" {sign} ")
    text = _THOUSANDS.sub("", text)
    text = _PERCENT_OF.sub(r"\1 / 100 *", text)
    return _TIMES_SIGN.sub(" * ", text)


def _is_asked_for(expression: str, text: str) -> bool:
    """Tell ``2+2`` and ``what is 7 - 3`` from dates, phone numbers and ``24/7`` in a sentence."""
    if not any(sign in expression[1:] for sign in "+-*/%^"):
        return False
    if text.strip(" ?=.!") == expression or _SPACED_SIGN.search(expression):
        return True
    return bool(_TIGHT_SIGN.search(expression) and _ASKS.search(text))


def _parenthesised(number: str) -> str:
    return f"({number})" if number.startswith("-") else number


def _value(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return _limited(Fraction(repr(value)))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _value(operand)
        case ast.BinOp(left=left, op=operator, right=right):
            return _limited(_combined(_value(left), operator, _value(right)))
        case _:
            raise ArithmeticRefused("I cannot read that expression.")


def _combined(left: Fraction, operator: ast.operator, right: Fraction) -> Fraction:
    if isinstance(operator, (ast.Div, ast.Mod, ast.FloorDiv)) and right == 0:
        raise ArithmeticRefused("Division by zero is not defined.")
    match operator:
        case ast.Add():
            return left + right
        case ast.Sub():
            return left - right
        case ast.Mult():
            return left * right
        case ast.Div():
            return left / right
        case ast.FloorDiv():
            return Fraction(left // right)
        case ast.Mod():
            return left % right
        case ast.Pow():
            return _power(left, right)
        case _:
            raise ArithmeticRefused("I cannot read that expression.")


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if base == 0 and exponent < 0:
        raise ArithmeticRefused("Division by zero is not defined.")
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(exponent) * bits > MAX_BITS:
        raise ArithmeticRefused("That number is too large for me.")
    if exponent.denominator == 1:
        return base**exponent.numerator
    if base < 0:
        raise ArithmeticRefused("That root is not a real number.")
    try:
        return Fraction(float(base) ** float(exponent))
    except OverflowError:
        raise ArithmeticRefused("That number is too large for me.") from None


def _limited(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > 2 * MAX_BITS:
        raise ArithmeticRefused("That number is too large for me.")
    return value


def _written(value: Fraction) -> str:
    if value.denominator == 1:
        return str(value.numerator)
    try:
        return f"{float(value):.12g}"
    except OverflowError:
        raise ArithmeticRefused("That number is too large for me.") from None
