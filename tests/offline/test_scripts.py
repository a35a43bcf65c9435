"""Scripts: a message makes the model say, think, call, fail and wait exactly as told."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

import anthropic
import httpx2
import pytest
from anthropic import AsyncAnthropic
from anthropic.types import Message, MessageParam

from chucky.offline.script import StepMemory

MODEL = "claude-sonnet-5-5"

Script = Callable[..., str]
Ask = Callable[..., Awaitable[Message]]
Conversation = list[MessageParam]


@pytest.fixture
def ask(client: AsyncAnthropic) -> Ask:
    async def ask(*messages: str | MessageParam, **more: Any) -> Message:
        said: Conversation = [
            {"role": "user", "content": each} if isinstance(each, str) else each
            for each in messages
        ]
        message = await client.messages.create(
            **{"model": MODEL, "max_tokens": 1_000, "messages": said, **more}
        )
        assert isinstance(message, Message)
        return message

    return ask


def text_of(message: Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def turn(message: Message, result: str = "done") -> Conversation:
    """An answer that called tools, and the results."""
    uses = [block for block in message.content if block.type == "tool_use"]
    return [
        {"role": "assistant", "content": list(message.content)},
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": use.id, "content": result} for use in uses
            ],
        },
    ]


def tools(*names: str) -> list[Any]:
    return [{"name": name, "input_schema": {"type": "object"}} for name in names]


async def events_of(client: AsyncAnthropic, message: str, **more: Any) -> list[Any]:
    """The raw events of a streamed answer."""
    stream = await client.messages.create(
        **{
            "model": MODEL,
            "max_tokens": 1_000,
            "messages": [{"role": "user", "content": message}],
            "stream": True,
            **more,
        }
    )
    return [event async for event in stream]


async def hear(client: AsyncAnthropic, message: str, heard: list[str]) -> None:
    """Stream an answer; keep what was heard of its text, also when it breaks off."""
    async with client.messages.stream(
        model=MODEL, max_tokens=99, messages=[{"role": "user", "content": message}]
    ) as stream:
        async for text in stream.text_stream:
            heard.append(text)


# --- saying and calling ---------------------------------------------------------------------------


async def test_each_model_call_takes_a_step(ask: Ask, script: Script) -> None:
    told = script(
        {"thinking": "hm", "text": "First", "tools": [{"name": "f", "input": {"a": [1]}}]},
        {"tools": [{"name": "f"}, {"name": "g"}]},
        {"text": "Last"},
    )

    first = await ask(told, tools=tools("f", "g"))
    second = await ask(told, *turn(first), tools=tools("f", "g"))
    third = await ask(told, *turn(first), *turn(second), tools=tools("f", "g"))

    thinking, text, use = first.content
    assert (thinking.type, text.type, use.type) == ("thinking", "text", "tool_use")
    assert use.type == "tool_use"
    assert (use.name, use.input) == ("f", {"a": [1]})
    assert first.stop_reason == "tool_use"
    assert [block.type for block in second.content] == ["tool_use", "tool_use"]
    assert (text_of(third), third.stop_reason) == ("Last", "end_turn")


async def test_a_call_too_many_is_told_so(ask: Ask, script: Script) -> None:
    told = script({"tools": [{"name": "f"}]})

    first = await ask(told, tools=tools("f"))
    second = await ask(told, *turn(first), tools=tools("f"))

    assert text_of(second) == "The offline script has no step 2: it has 1 step."


async def test_the_next_turn_has_its_own_script(ask: Ask, script: Script) -> None:
    first, second = script({"text": "one"}), script({"text": "two"})

    answer: MessageParam = {"role": "assistant", "content": "one"}

    assert text_of(await ask(first, answer, second)) == "two"
    assert text_of(await ask(first, answer, "What is 2 + 2?")) == "2 + 2 = 4."


async def test_chunks_are_streamed_one_by_one_and_exactly(
    client: AsyncAnthropic, script: Script
) -> None:
    events = await events_of(client, script({"text": ["a", "", "b c", "\n\u2028d"]}))

    deltas = [event.delta.text for event in events if event.type == "content_block_delta"]
    assert deltas == ["a", "", "b c", "\n\u2028d"]


async def test_a_string_is_streamed_in_pieces(client: AsyncAnthropic, script: Script) -> None:
    text = "It was the best of times, it was the worst of times.\n\n  " + "x" * 100

    events = await events_of(client, script({"text": text}))

    deltas = [event.delta.text for event in events if event.type == "content_block_delta"]
    assert len(deltas) > 4
    assert "".join(deltas) == text


async def test_an_empty_step_is_an_empty_answer(ask: Ask, script: Script) -> None:
    message = await ask(script({}))

    assert (message.content, message.stop_reason) == ([], "end_turn")


async def test_a_bare_name_finds_the_one_tool_it_fits(ask: Ask, script: Script) -> None:
    offered = tools("mcp__chucky-tools__f", "mcp__other__g", "mcp__chucky-tools__g")

    message = await ask(script({"tools": [{"name": "f"}]}), tools=offered)

    assert message.content[0].type == "tool_use"
    assert message.content[0].name == "mcp__chucky-tools__f"
    with pytest.raises(anthropic.BadRequestError, match=r"several tools.*mcp__other__g, mcp__chuc"):
        await ask(script({"tools": [{"name": "g"}]}), tools=offered)
    with pytest.raises(anthropic.BadRequestError, match=r"no such tool is offered.*mcp__other__g"):
        await ask(script({"tools": [{"name": "h"}]}), tools=offered)
    with pytest.raises(anthropic.BadRequestError, match="offered are: none"):
        await ask(script({"tools": [{"name": "h"}]}))


# --- usage and max_tokens -------------------------------------------------------------------------

USAGE = {
    "input_tokens": 1_000,
    "output_tokens": 200,
    "cache_read_input_tokens": 30,
    "cache_creation": {"ephemeral_5m_input_tokens": 4, "ephemeral_1h_input_tokens": 5},
}


async def test_usage_is_what_the_script_says(
    ask: Ask, client: AsyncAnthropic, script: Script
) -> None:
    told = script({"text": "hi", "usage": USAGE})

    usage = (await ask(told)).usage
    events = await events_of(client, told)

    assert (usage.input_tokens, usage.output_tokens) == (1_000, 200)
    assert (usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (30, 9)
    assert usage.cache_creation is not None
    assert usage.cache_creation.ephemeral_5m_input_tokens == 4
    assert usage.cache_creation.ephemeral_1h_input_tokens == 5
    assert events[0].message.usage.input_tokens == 1_000
    assert events[0].message.usage.cache_creation.ephemeral_1h_input_tokens == 5
    assert events[-2].usage.output_tokens == 200


async def test_cache_writes_without_more_are_for_five_minutes(ask: Ask, script: Script) -> None:
    usage = (await ask(script({"usage": {"cache_creation_input_tokens": 7}}))).usage

    assert usage.cache_creation is not None
    assert usage.cache_creation.ephemeral_5m_input_tokens == 7
    assert usage.input_tokens > 1


async def test_counting_tells_the_next_steps_input_and_takes_no_step(
    ask: Ask, client: AsyncAnthropic, script: Script
) -> None:
    told = script({"text": "hi", "usage": USAGE}, {"text": "there"})
    said: Conversation = [{"role": "user", "content": told}]

    counted = [await client.messages.count_tokens(model=MODEL, messages=said) for _ in range(2)]

    # all input, cached or not, as the API counts it
    assert [each.input_tokens for each in counted] == [1_039, 1_039]
    first = await ask(told)
    assert text_of(first) == "hi"
    said += [
        {"role": "assistant", "content": "hi"},
        {
            "role": "user",
            "content": [
                {"type": "image", "source": {"type": "url", "url": "https://example.com/a"}}
            ],
        },
    ]
    counted_anew = await client.messages.count_tokens(model=MODEL, messages=said)
    assert 1_600 < counted_anew.input_tokens < 1_700


async def test_scripted_output_stops_at_max_tokens(ask: Ask, script: Script) -> None:
    step = {
        "text": ["0123456789", "0123456789"],
        "tools": [{"name": "f"}],
        "usage": {"output_tokens": 400},
    }

    message = await ask(script(step), max_tokens=100, tools=tools("f"))

    assert message.stop_reason == "max_tokens"
    assert message.usage.output_tokens == 100
    assert text_of(message) == "01234"  # a quarter of 20 and of the 3 of the call
    assert [block.type for block in message.content] == ["text"]


async def test_text_is_not_counted_if_the_script_counts_it(ask: Ask, script: Script) -> None:
    text = "long " * 100

    message = await ask(script({"text": text, "usage": {"output_tokens": 5}}), max_tokens=10)

    assert (text_of(message), message.stop_reason) == (text, "end_turn")


async def test_a_model_that_overruns_max_tokens_is_scripted_too(ask: Ask, script: Script) -> None:
    step = {"text": "x" * 80, "usage": {"output_tokens": 400}, "overrun": True}

    message = await ask(script(step), max_tokens=10)

    assert (message.usage.output_tokens, message.stop_reason) == (400, "end_turn")
    assert text_of(message) == "x" * 80


# --- failing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "raised", "kind"),
    [
        (400, anthropic.BadRequestError, "invalid_request_error"),
        (401, anthropic.AuthenticationError, "authentication_error"),
        (404, anthropic.NotFoundError, "not_found_error"),
        (429, anthropic.RateLimitError, "rate_limit_error"),
        (500, anthropic.InternalServerError, "api_error"),
        (529, anthropic.OverloadedError, "overloaded_error"),
    ],
)
async def test_an_error_is_answered_and_then_the_next_step(
    ask: Ask, script: Script, status: int, raised: type[anthropic.APIStatusError], kind: str
) -> None:
    told = script({"error": {"status": status}}, {"text": "at last"})

    with pytest.raises(raised) as caught:
        await ask(told)

    assert caught.value.type == kind
    assert caught.value.request_id
    assert text_of(await ask(told)) == "at last"


async def test_an_error_says_what_the_script_says(ask: Ask, script: Script) -> None:
    error = {"status": 429, "type": "slow_error", "message": "Slow down.", "retry_after": 1.5}

    with pytest.raises(anthropic.RateLimitError) as caught:
        await ask(script({"error": error}))

    assert caught.value.api_message == "Slow down."
    assert str(caught.value.type) == "slow_error"
    assert caught.value.response.headers["retry-after"] == "1.5"


async def test_failed_steps_count_at_every_point_of_a_turn(ask: Ask, script: Script) -> None:
    failure = {"error": {"status": 529}}
    told = script(failure, failure, {"tools": [{"name": "f"}]}, failure, {"text": "done"})

    async def attempt(*then: MessageParam) -> Message:
        while True:
            try:
                return await ask(told, *then, tools=tools("f"))
            except anthropic.OverloadedError:
                failures.append(len(then))

    failures: list[int] = []
    called = await attempt()
    done = await attempt(*turn(called))

    assert failures == [0, 0, 2]
    assert text_of(done) == "done"


async def test_the_client_retries_by_itself(base_url: str, script: Script) -> None:
    told = script(
        {"error": {"status": 529, "retry_after": 0.001}},
        {"cut_after_chunks": 0},
        {"text": "at last"},
    )
    retrying = AsyncAnthropic(
        base_url=base_url,
        api_key=secrets.token_hex(16),
        max_retries=2,
        http_client=httpx2.AsyncClient(verify=False),
    )

    async with retrying, asyncio.timeout(20):
        message = await retrying.messages.create(
            model=MODEL, max_tokens=99, messages=[{"role": "user", "content": told}]
        )

    assert text_of(message) == "at last"


async def test_users_do_not_share_the_memory_of_failures(ask: Ask, script: Script) -> None:
    told = script({"error": {"status": 529}}, {"text": "at last"})

    for user in ("a", "b"):
        with pytest.raises(anthropic.OverloadedError):
            await ask(told, metadata={"user_id": user})

    assert text_of(await ask(told, metadata={"user_id": "b"})) == "at last"


async def test_a_retry_is_recognised_whatever_changes_between_calls(
    ask: Ask, script: Script
) -> None:
    told = script({"error": {"status": 529}}, {"text": "at last"})
    marked: MessageParam = {
        "role": "user",
        "content": [
            {"type": "text", "text": "<system-reminder>Now it is noon.</system-reminder>"},
            {"type": "text", "text": told, "cache_control": {"type": "ephemeral"}},
        ],
    }

    with pytest.raises(anthropic.OverloadedError):
        await ask(told, system="It is morning.")

    assert text_of(await ask(marked, model="claude-opus-5-5")) == "at last"


async def test_a_retry_is_recognised_when_cache_markers_move(ask: Ask, script: Script) -> None:
    told = script({"error": {"status": 529}}, {"text": "at last"})
    use: Any = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}}
    said: Any = {"type": "text", "text": "noon"}
    result: Any = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [said]}
    marker = {"cache_control": {"type": "ephemeral"}}

    def conversation(result: Any) -> Conversation:
        return [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": [use]},
            {"role": "user", "content": [result]},
            {"role": "assistant", "content": "It is noon."},
            {"role": "user", "content": told},
        ]

    with pytest.raises(anthropic.OverloadedError):
        await ask(*conversation({**result, **marker}))

    assert text_of(await ask(*conversation({**result, "content": [{**said, **marker}]}))) == (
        "at last"
    )


async def test_the_beginning_of_an_answer_is_not_an_answer(ask: Ask, script: Script) -> None:
    beginning: MessageParam = {"role": "assistant", "content": "It is"}

    assert text_of(await ask(script({"text": "one"}, {"text": "two"}), beginning)) == "one"


async def test_another_conversation_before_it_makes_it_another_turn(
    ask: Ask, script: Script
) -> None:
    told = script({"error": {"status": 529}}, {"text": "at last"})
    before: Conversation = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hm"},
    ]

    for earlier in ([], before):
        with pytest.raises(anthropic.OverloadedError):
            await ask(*earlier, told)


async def test_an_error_with_text_breaks_a_stream_after_the_text(
    client: AsyncAnthropic, script: Script
) -> None:
    told = script(
        {"text": ["so", "far"], "error": {"status": 529, "message": "Too much."}}, {"text": "ok"}
    )
    parts: list[str] = []

    with pytest.raises(anthropic.APIStatusError) as caught:
        await hear(client, told, parts)

    assert parts == ["so", "far"]
    assert caught.value.type == "overloaded_error"
    assert caught.value.api_message == "Too much."
    (event, *_) = await events_of(client, told)
    assert event.type == "message_start"


async def test_an_error_without_text_is_an_error_response_to_a_stream_too(
    client: AsyncAnthropic, script: Script
) -> None:
    with pytest.raises(anthropic.OverloadedError):
        await events_of(client, script({"error": {"status": 529}}))


BEFORE_TEXT = "message_start content_block_start ping thinking_delta signature_delta"
IN_TEXT = f"{BEFORE_TEXT} content_block_stop content_block_start text_delta text_delta"


@pytest.mark.parametrize(
    ("cut", "seen"),
    [
        (0, "message_start"),
        (1, "message_start content_block_start ping thinking_delta"),
        (4, IN_TEXT),
        (99, f"{IN_TEXT} text_delta content_block_stop"),
    ],
)
async def test_a_cut_stream_ends_after_so_many_deltas(
    http: httpx2.AsyncClient, script: Script, cut: int, seen: str
) -> None:
    told = script({"thinking": "hm", "text": ["a", "b", "c"], "cut_after_chunks": cut})
    wanted = {
        "model": MODEL,
        "max_tokens": 99,
        "stream": True,
        "messages": [{"role": "user", "content": told}],
    }
    kinds: list[str] = []

    async def listen() -> None:
        async with http.stream("POST", "/v1/messages", json=wanted) as response:
            async for line in response.aiter_lines():
                if line.startswith("data: "):
                    event = json.loads(line[6:])
                    kinds.append(event.get("delta", {}).get("type") or event["type"])

    with pytest.raises(httpx2.RemoteProtocolError):
        await listen()

    assert kinds == seen.split()


async def test_a_cut_stream_raises_in_the_client_and_the_retry_goes_on(
    client: AsyncAnthropic, ask: Ask, script: Script
) -> None:
    told = script({"text": ["a", "b", "c"], "cut_after_chunks": 2}, {"text": "ok"})
    parts: list[str] = []

    with pytest.raises(httpx2.RemoteProtocolError):
        await hear(client, told, parts)

    assert parts == ["a", "b"]
    assert text_of(await ask(told)) == "ok"


async def test_a_cut_message_never_arrives(ask: Ask, script: Script) -> None:
    told = script({"text": "a", "cut_after_chunks": 1}, {"text": "ok"})

    with pytest.raises(anthropic.APIConnectionError):
        await ask(told)

    assert text_of(await ask(told)) == "ok"


# --- waiting --------------------------------------------------------------------------------------


async def test_a_delayed_answer_arrives(client: AsyncAnthropic, ask: Ask, script: Script) -> None:
    told = script({"text": ["a", "b"], "delay_ms": 5, "chunk_delay_ms": 5})

    assert text_of(await ask(told)) == "ab"
    assert [event.type for event in await events_of(client, told)][-1] == "message_stop"


async def test_chunks_before_a_delay_arrive_before_it(
    client: AsyncAnthropic, script: Script
) -> None:
    told = script({"text": ["a", "b"], "chunk_delay_ms": 600_000})

    async with client.messages.stream(
        model=MODEL, max_tokens=99, messages=[{"role": "user", "content": told}]
    ) as stream:
        async for text in stream.text_stream:
            assert text == "a"
            break


async def test_delays_of_all_chunks_together_are_limited(
    client: AsyncAnthropic, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One by one, the waits would take longer than this test is given.
    monkeypatch.setattr("chucky.offline.delivery.MAX_DELAY_MS", 200)
    told = script({"text": ["a"] * 200, "delay_ms": 600_000, "chunk_delay_ms": 600_000})

    async with asyncio.timeout(20):
        events = await events_of(client, told)

    assert events[-1].type == "message_stop"


# --- finding and reading a script -----------------------------------------------------------------


async def test_a_script_is_found_among_other_blocks(ask: Ask) -> None:
    text = (
        "Look:\n```python\nprint('```offline')\n```\n"
        "```x``` is code.\n"
        '  ````  offline\n  [{"text": "found ```"}]\n````\nThanks'
    )

    assert text_of(await ask(text)) == "found ```"


async def test_a_block_of_another_kind_is_no_script(ask: Ask) -> None:
    assert text_of(await ask('What is 2 + 2?\n```json\n[{"text": "no"}]\n```')) == "2 + 2 = 4."


async def test_a_prompt_that_failed_before_does_not_answer_for_the_next(
    ask: Ask, script: Script
) -> None:
    # Agents join a failed prompt and the next one into one message.
    joined: MessageParam = {
        "role": "user",
        "content": [
            {"type": "text", "text": script({"text": "old"})},
            {"type": "text", "text": "What is 2 + 2?"},
        ],
    }

    assert text_of(await ask(joined)) == "2 + 2 = 4."


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("", "not valid JSON: Expecting value"),
        ('[{"text": "a"}', "not valid JSON"),
        ("[NaN]", "NaN is not a JSON value"),
        ("[" * 200 + "]" * 200, "nested deeper than 100 levels"),
        ("{}", "must be a list of steps, not an object"),
        ("[5]", "step 1: must be an object, not a number"),
        ("[" + "{}," * 1_000 + "{}]", "at most 1000 steps"),
        ('[{}, {"txet": "a"}]', "step 2: unknown key 'txet'; the keys are text, thinking,"),
        ('[{"text": 5}]', "step 1: 'text' must be a string or a list of strings"),
        ('[{"text": ["a", 5]}]', "step 1: 'text' must be a string or a list of strings"),
        ('[{"thinking": []}]', "step 1: 'thinking' must be a string, not a list"),
        ('[{"tools": {}}]', "step 1: 'tools' must be a list, not an object"),
        ('[{"tools": [{"input": {}}]}]', "step 1, tool 1: 'name' is missing"),
        ('[{"tools": [{"name": "f", "input": 5}]}]', "tool 1: 'input' must be an object"),
        ('[{"tools": [{"name": "f", "args": {}}]}]', "tool 1: unknown key 'args'"),
        ('[{"usage": {"tokens": 5}}]', "step 1, usage: unknown key 'tokens'"),
        ('[{"usage": {"input_tokens": -1}}]', "'input_tokens' must be from 0 to"),
        ('[{"usage": {"input_tokens": 1.5}}]', "'input_tokens' must be a whole number"),
        (
            '[{"usage": {"cache_creation_input_tokens": 1, "cache_creation": {}}}]',
            "'cache_creation_input_tokens' must be the sum",
        ),
        ('[{"usage": {"cache_creation": {"x": 1}}}]', "usage, cache_creation: unknown key 'x'"),
        ('[{"delay_ms": true}]', "'delay_ms' must be a whole number, not true or false"),
        ('[{"delay_ms": 600001}]', "'delay_ms' must be from 0 to 600000"),
        ('[{"chunk_delay_ms": 600001}]', "'chunk_delay_ms' must be from 0 to 600000"),
        ('[{"cut_after_chunks": null}]', "'cut_after_chunks' must be a whole number, not null"),
        ('[{"overrun": 1}]', "'overrun' must be true or false, not a number"),
        ('[{"error": {}}]', "step 1, error: 'status' is missing"),
        ('[{"error": {"status": 200}}]', "'status' must be from 400 to 599"),
        ('[{"error": {"status": 429, "retry_after": -1}}]', "'retry_after' must be from 0"),
        ('[{"error": {"status": 429, "retry_after": "1"}}]', "'retry_after' must be a number"),
        ('[{"error": {"status": 429, "after": 1}}]', "error: unknown key 'after'"),
        ('[{"error": {"status": 429}, "tools": []}]', "'error' and 'tools' exclude each other"),
        (
            '[{"error": {"status": 429}, "cut_after_chunks": 1}]',
            "'error' and 'cut_after_chunks' exclude each other",
        ),
        ("[]\n```\nand\n```offline\n[]", "only one offline block"),
    ],
)
async def test_a_wrong_script_is_refused_with_the_reason(ask: Ask, source: str, says: str) -> None:
    with pytest.raises(anthropic.BadRequestError) as caught:
        await ask(f"```offline\n{source}\n```")

    assert caught.value.type == "invalid_request_error"
    assert caught.value.api_message is not None
    assert caught.value.api_message.startswith("offline script: ")
    assert says in caught.value.api_message


async def test_a_block_that_is_not_closed_is_refused(ask: Ask) -> None:
    with pytest.raises(anthropic.BadRequestError, match="the block is not closed"):
        await ask("```offline\n[]")


async def test_a_wrong_script_is_refused_when_counting_too(client: AsyncAnthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="offline script"):
        await client.messages.count_tokens(
            model=MODEL, messages=[{"role": "user", "content": "```offline\n{}\n```"}]
        )


def test_the_memory_of_failures_is_bounded() -> None:
    memory = StepMemory(capacity=2)
    for name in ("a", "b"):
        memory.note_failure(name, 0)
    memory.note_failure("a", 0)

    memory.note_failure("c", 0)

    assert [memory.next_step(name, 0) for name in ("a", "b", "c")] == [2, 0, 1]
