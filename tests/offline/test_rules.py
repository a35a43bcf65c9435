"""What the rules answer, asked as a user would ask it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from chucky.offline.conversation import Conversation
from chucky.offline.request import Message
from chucky.offline.rules import find_answer


def say(role: str, text: str) -> Message:
    return Message("user" if role == "user" else "assistant", ({"type": "text", "text": text},))


def talk(*texts: str) -> list[str | None]:
    """Say these things one after the other; return the answers, ``None`` where no rule fits."""
    messages: list[Message] = []
    answers: list[str | None] = []
    for text in texts:
        messages.append(say("user", text))
        answer = find_answer(Conversation(messages))
        answers.append(answer.text if answer else None)
        messages.append(say("assistant", answer.text if answer else "I do not know."))
    return answers


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("What is the capital of France?", "The capital of France is Paris."),
        ("what's the capital city of the netherlands", "The capital of the Netherlands is Amst"),
        ("Capital of New Zealand please", "The capital of New Zealand is Wellington."),
        ("What is the capital of Atlantis?", "I am Chucky's offline model and know only a few"),
        ("What is 2 + 2?", "2 + 2 = 4."),
        ("What is 5 + 3?", "5 + 3 = 8."),
        ("Write a poem about coding", "A line about coding,"),
        ("What is calculus?", "Calculus is the mathematics of change."),
        ("Hello", "Hello! I am Chucky's offline model."),
        ("Hello, I am Alice", "Hello Alice! Nice to meet you."),
        ("Who are you?", "I am Chucky's offline model, not a language model"),
        ("What time is it?", "I am Chucky's offline model and have no clock."),
        ("Reply with the word OK", "OK"),
        ('Say exactly: "pong pong"', "pong pong"),
    ],
)
def test_first_questions_get_sensible_answers(text: str, answer: str) -> None:
    assert (talk(text)[0] or "").startswith(answer)


@pytest.mark.parametrize(
    "text",
    [
        "I am hungry.",
        "I work 24/7",
        "What happened on 2024-12-15?",
        "Call 555-1234",
        "What is 2 +",
        "Reply with a haiku",
        "Tell me about whales",
    ],
)
def test_what_no_rule_fits_is_left_to_the_honest_answer(text: str) -> None:
    assert talk(text) == [None]


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("2+2", "4"),
        ("What's (3 + 4) * 2?", "14"),
        ("what is 10 divided by 4", "2.5"),
        ("What is 7 plus 8?", "15"),
        ("Is 2 + 2 really 4?", "4"),
        ("What is 15% of 80?", "12"),
        ("What is 1,000 + 5?", "1005"),
        ("What is 2^10?", "1024"),
        ("What is 2 ** 0.5?", "1.41421356237"),
        ("Calculate 10 - 3 - 2.", "5"),
        ("What is -5 + 3?", "-2"),
        ("What is 17 % 5?", "2"),
        ("What is 0.1 + 0.2?", "0.3"),
        ("what is 3 x 4?", "12"),
        ("(see 2 + 2)", "4"),
        ("What is the square root of 16?", "4"),
    ],
)
def test_arithmetic_is_exact(text: str, result: str) -> None:
    answer = talk(text)[0] or ""

    assert answer.endswith(f" = {result}.")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("What is 1 / 0?", "Division by zero is not defined."),
        ("What is 0 ** -1?", "Division by zero is not defined."),
        ("What is 9 ** 9 ** 9 ** 9?", "That number is too large for me."),
        ("What is 99999 ** 99999?", "That number is too large for me."),
        ("What is (-8) ** 0.5?", "That root is not a real number."),
    ],
)
def test_arithmetic_that_cannot_be_done_says_why(text: str, answer: str) -> None:
    assert talk(text) == [answer]


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("Multiply that by 2", "16"),
        ("Divide it by 4", "2"),
        ("Add 5 to that", "13"),
        ("Subtract 10 from the result", "-2"),
        ("Double that", "16"),
        ("What is that minus 3?", "5"),
    ],
)
def test_arithmetic_goes_on_from_the_last_number(text: str, result: str) -> None:
    assert (talk("What is 5 + 3?", text)[-1] or "").endswith(f" = {result}.")


def test_a_negative_number_is_gone_on_from_too() -> None:
    answers = talk("What is 1 - 5?", "Multiply that by 3", "Subtract -2 from it")

    assert [(answer or "").rpartition(" = ")[2] for answer in answers] == ["-4.", "-12.", "-10."]


def test_without_a_number_there_is_nothing_to_go_on_from() -> None:
    assert talk("Multiply that by 2") == [None]


@pytest.mark.parametrize(
    "told",
    ["Hello, I am Alice", "my name is Alice.", "Hi! I'm Alice. Nice day!", "Call me Alice"],
)
@pytest.mark.parametrize("asked", ["What is my name?", "who am I?", "Do you remember my name?"])
def test_a_name_is_remembered(told: str, asked: str) -> None:
    assert talk(told, "What is 2 + 2?", asked)[-1] == "Your name is Alice."


def test_the_last_name_counts() -> None:
    assert talk("I am Alice", "My name is Bob", "What's my name?")[-1] == "Your name is Bob."


def test_what_was_not_told_is_not_known() -> None:
    assert talk("What is my name?") == ["You have not told me your name."]
    assert talk("What is my favourite colour?") == ["You have not told me your favourite colour."]


def test_the_name_an_assistant_says_is_not_the_users() -> None:
    messages = [say("user", "Hm"), say("assistant", "I am Claude"), say("user", "Who am I?")]

    answer = find_answer(Conversation(messages))

    assert answer is not None
    assert answer.text == "You have not told me your name."


@pytest.mark.parametrize(
    ("told", "noted", "asked", "answer"),
    [
        (
            "My favorite color is blue.",
            "I will remember that your favourite colour is blue.",
            "What is my favourite colour?",
            "Your favourite colour is blue.",
        ),
        (
            "Remember that the code is 1234",
            "I will remember that the code is 1234.",
            "What is the code?",
            "The code is 1234.",
        ),
    ],
)
def test_facts_are_remembered(told: str, noted: str, asked: str, answer: str) -> None:
    assert talk(told, asked) == [noted, answer]


def test_notes_of_the_cli_are_not_what_the_user_said() -> None:
    note = "<system-reminder>\nMy name is Mallory.\n</system-reminder>"
    asked: Sequence[Message] = [
        say("user", f"{note}I am Alice"),
        say("assistant", "Hello"),
        Message(
            "user",
            (
                {"type": "text", "text": "What is my name?"},
                {"type": "text", "text": f"{note}{note}"},
            ),
        ),
    ]

    answer = find_answer(Conversation(asked))

    assert answer is not None
    assert answer.text == "Your name is Alice."


@pytest.mark.parametrize(
    "text",
    [
        "(" * 200_000,
        "1" * 200_000,
        "what is " + "1+" * 100_000,
        "my " * 70_000,
        "what is my " + "a " * 100_000,
        "hello, " * 30_000,
        " " * 200_000 + "?",
        "say" + " the word" * 20_000,
        "capital of " + "a " * 100_000,
        "I am " + "A " * 100_000,
        "```" * 70_000,
        "<system-reminder>" * 12_000,
    ],
)
@pytest.mark.timeout(10, method="thread")  # a pattern gone wild does not let a signal through
def test_no_text_keeps_the_rules_busy(text: str) -> None:
    said = [say("user", text), say("assistant", text), say("user", text)]

    answer = find_answer(Conversation(said))

    assert answer is None or answer.text
