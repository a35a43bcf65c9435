"""Answers that are JSON of a schema the client gave."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

POINT = {
    "type": "object",
    "properties": {
        "x": {"type": "integer", "minimum": 10},
        "label": {"type": "string"},
    },
    "required": ["x"],
}
DETAILS = ["result_details"]


def asking(schema: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"outputFormat": {"type": "json_schema", "schema": schema}, **more}


async def test_the_result_has_the_value_beside_its_text(server: Any, dial: Any) -> None:
    async with dial(server.url, token=server.token()) as client:
        await client.send(type="init", payload=asking({**POINT, "required": ["x", "label"]}))
        await client.ask("x = 12 and the label is north")
        result = await client.result()
    assert result["subtype"] == "success"
    assert result["structured_output"] == json.loads(result["result"])
    assert result["structured_output"]["x"] == 12


async def test_without_a_schema_there_is_no_such_field(server: Any, dial: Any) -> None:
    async with dial(server.url, token=server.token()) as client:
        await client.send(type="init", payload={})
        await client.ask('Say exactly: {"x": 12}')
        assert "structured_output" not in await client.result()


async def test_the_api_is_asked_for_what_it_can_express_and_the_rest_is_said_in_words(
    start_server: Any, start_provider: Any, api: Any, dial: Any
) -> None:
    async with (
        start_provider(api.says('{"x": 12}')) as provider,
        start_server(upstream_url=provider.url) as server,
        dial(server.url, token=server.token()) as client,
    ):
        await client.send(type="init", payload=asking(POINT))
        await client.ask("Go")
        assert (await client.result())["structured_output"] == {"x": 12}
    (request,) = provider.requests
    assert request["output_config"] == {
        "format": {
            "type": "json_schema",
            "schema": {
                "type": "object",
                "properties": {
                    "x": {"type": "integer", "description": "(minimum: 10)"},
                    "label": {"type": "string"},
                },
                "required": ["x"],
                "additionalProperties": False,
            },
        }
    }
    assert "system" not in request


OPEN = {"type": "object", "additionalProperties": {"type": "integer"}}
LINKED = {
    "type": "object",
    "properties": {"next": {"$ref": "#/$defs/node"}},
    "$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}},
}


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        (OPEN, {"a": 1}),
        (LINKED, {"next": {"next": {}}}),
        ({"type": "object", "properties": {"a": {"not": {"type": "null"}}}}, {"a": 1}),
        ({"type": "object", "properties": {"a": {"type": ["integer", "null"]}}}, {"a": None}),
        ({"type": "object", "properties": {"a": {}}}, {"a": [1]}),
        ({"type": "object", "properties": {"a": {"type": "array"}}}, {"a": [1, "b"]}),
    ],
    ids=["map", "recursive", "not", "two types", "anything", "open array"],
)
async def test_a_schema_the_api_cannot_express_is_put_into_words(
    start_server: Any,
    start_provider: Any,
    api: Any,
    dial: Any,
    schema: dict[str, Any],
    value: dict[str, Any],
) -> None:
    # Models that are asked in words like to put the value between fences.
    answer = f"```json\n{json.dumps(value)}\n```"
    async with (
        start_provider(api.says(answer)) as provider,
        start_server(upstream_url=provider.url) as server,
        dial(server.url, token=server.token()) as client,
    ):
        await client.send(type="init", payload=asking(schema, systemPrompt="Be brief."))
        await client.ask("Go")
        assert (await client.result())["structured_output"] == value
    (request,) = provider.requests
    assert "output_config" not in request
    first, second = request["system"]
    assert first == {"type": "text", "text": "Be brief."}
    assert second["text"].endswith(json.dumps(schema, separators=(",", ":")))


async def test_the_model_gets_one_chance_to_correct_itself_and_is_told_what_was_wrong(
    start_server: Any, start_provider: Any, api: Any, dial: Any
) -> None:
    async with (
        start_provider(api.says('{"x": 1}'), api.says('{"x": 10}')) as provider,
        start_server(upstream_url=provider.url) as server,
        dial(server.url, token=server.token()) as client,
    ):
        await client.send(type="init", payload=asking(POINT))
        await client.ask("Go")
        result = await client.result()
    assert result["structured_output"] == {"x": 10}
    assert result["num_turns"] == 2
    told = provider.requests[1]["messages"][-1]["content"][0]["text"]
    assert "$.x: 1 is less than the minimum of 10" in told


async def test_a_correction_is_one_of_the_calls_that_max_turns_allows(
    start_server: Any, start_provider: Any, api: Any, dial: Any
) -> None:
    async with (
        start_provider(api.says('{"x": 1}'), api.says('{"x": 10}')) as provider,
        start_server(upstream_url=provider.url) as server,
        dial(server.url, token=server.token()) as client,
    ):
        await client.send(type="init", payload=asking(POINT, maxTurns=1))
        await client.ask("Go")
        result = await client.result()
        assert (result["subtype"], result["num_turns"]) == ("error_max_turns", 1)
        assert len(provider.requests) == 1
        await client.ask("Go on")
        assert (await client.result())["structured_output"] == {"x": 10}


@pytest.mark.parametrize("answer", ['{"x": 1}', "I would rather talk.", '{"x": NaN}', "[]"])
@pytest.mark.parametrize("details", [True, False])
async def test_then_the_turn_fails_and_the_session_goes_on(
    start_server: Any, start_provider: Any, api: Any, dial: Any, answer: str, details: bool
) -> None:
    async with (
        start_provider(api.says(answer), api.says(answer), api.says('{"x": 10}')) as provider,
        start_server(upstream_url=provider.url) as server,
        dial(server.url, token=server.token()) as client,
    ):
        capabilities = DETAILS if details else []
        await client.send(type="init", payload=asking(POINT, capabilities=capabilities))
        await client.ask("Go")
        result = await client.result()
        assert result["is_error"] is True
        assert "structured_output" not in result
        if details:
            assert result["subtype"] == "error_max_structured_output_retries"
            assert result["error"]["code"] == "STRUCTURED_OUTPUT"
            assert len(result["error"]["faults"]) == 1
        else:
            # Some published clients do not survive the other subtype.
            assert result["subtype"] == "error_during_execution"
        await client.ask("Again")
        assert (await client.result())["structured_output"] == {"x": 10}
    assert len(provider.requests) == 3


async def test_an_answer_that_was_cut_off_is_not_asked_for_again(
    start_server: Any, start_provider: Any, api: Any, dial: Any
) -> None:
    cut = api.message(*api.text_block('{"x": 1'), stop_reason="max_tokens")
    async with (
        start_provider(cut) as provider,
        start_server(upstream_url=provider.url) as server,
        dial(server.url, token=server.token()) as client,
    ):
        await client.send(type="init", payload=asking(POINT, capabilities=DETAILS))
        await client.ask("Go")
        assert (await client.result())["error"]["reason"] == "output_limit_reached"
    assert len(provider.requests) == 1


async def test_tools_may_be_called_before_the_answer(
    server: Any, dial: Any, script: Callable[..., str]
) -> None:
    look = {"name": "look", "description": "d", "inputSchema": {}, "executeIn": "client"}
    async with dial(server.url, token=server.token()) as client:
        servers = [{"name": "s", "tools": [look]}]
        await client.send(type="init", payload=asking(POINT, mcpServers=servers))
        await client.ask(script({"tools": [{"name": "look"}]}, {"text": '{"x": 11}'}))
        call = (await client.receive_until("tool_call"))[-1]["payload"]
        result = {"content": [{"type": "text", "text": "eleven"}]}
        await client.send(type="tool_result", payload={"callId": call["callId"], "result": result})
        assert (await client.result())["structured_output"] == {"x": 11}


@pytest.mark.parametrize(
    "ref",
    ["http://127.0.0.1:9/schema.json", "#/$defs/missing", "#"],
    ids=["elsewhere", "missing", "itself"],
)
async def test_a_schema_that_leads_elsewhere_fetches_nothing_and_fails_by_name(
    start_server: Any, start_provider: Any, api: Any, dial: Any, ref: str
) -> None:
    schema = {"type": "object", "properties": {"x": {"allOf": [{"$ref": ref}]}}}
    if ref == "#":
        schema = {"type": "object", "$ref": "#"}
    async with (
        start_provider(api.says('{"x": 1}')) as provider,
        start_server(upstream_url=provider.url) as server,
        dial(server.url, token=server.token()) as client,
    ):
        await client.send(type="init", payload=asking(schema, capabilities=DETAILS))
        await client.ask("Go")
        result = await client.result()
    assert result["error"]["reason"] == "option_invalid"
