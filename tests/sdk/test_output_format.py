"""``output_format``: answers that are instances of a class, and answers that cannot be."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date
from typing import TYPE_CHECKING, Annotated, Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, RootModel, field_validator

from chucky import Chucky, PromptResult

if TYPE_CHECKING:
    from tests.conftest import Server
    from tests.sdk.conftest import Peer, StartServer


class Line(BaseModel):
    sku: str
    quantity: Annotated[int, Field(ge=1)] = 1


class Order(BaseModel):
    """An order of the shop."""

    model_config = ConfigDict(strict=True)

    day: date
    lines: list[Line]

    @field_validator("day")
    @classmethod
    def _is_after_the_opening(cls, day: date) -> date:
        if day.year < 2020:
            raise ValueError("the shop was not open yet")
        if day.year > 2100:
            raise LookupError("no calendar")
        return day


GOOD = {"day": "2026-05-01", "lines": [{"sku": "A17", "quantity": 2}]}
ORDER = Order(day=date(2026, 5, 1), lines=[Line(sku="A17", quantity=2)])


def say(value: Any) -> str:
    """A message that makes the offline model answer with a value."""
    return f"Go.\n```offline\n{json.dumps([{'text': json.dumps(value)}])}\n```"


async def prompt(client: Chucky, message: str, output_format: Any) -> PromptResult:
    return await client.prompt(message, output_format=output_format)


async def stream(client: Chucky, message: str, output_format: Any) -> PromptResult:
    events = [event async for event in client.stream(message, output_format=output_format)]
    [result] = [event.data for event in events if event.type == "result"]
    assert isinstance(result, PromptResult)
    return result


async def session(client: Chucky, message: str, output_format: Any) -> PromptResult:
    async with client.create_session(output_format=output_format) as opened:
        await opened.send(message)
        messages = [each async for each in opened.stream()]
    assert isinstance(messages[-1], PromptResult)
    return messages[-1]


Ask = Callable[[Chucky, str, Any], Any]
EVERYWHERE = pytest.mark.parametrize("ask", [prompt, stream, session])


@pytest.fixture
async def client(server: Server) -> Any:
    async with Chucky(server.token("forms"), url=server.url) as made:
        yield made


@EVERYWHERE
async def test_an_answer_is_an_instance_of_the_class(client: Chucky, ask: Ask) -> None:
    result = await ask(client, say(GOOD), Order)
    assert result.subtype == "success"
    assert result.structured_output == ORDER
    assert type(result.structured_output) is Order
    assert json.loads(result.result) == GOOD


@EVERYWHERE
async def test_an_answer_for_a_schema_is_the_plain_value(client: Chucky, ask: Ask) -> None:
    result = await ask(client, say(GOOD), Order.model_json_schema())
    assert result.structured_output == GOOD


async def test_the_class_of_the_client_is_that_of_every_session(server: Server) -> None:
    async with Chucky(server.token("forms"), server.url, output_format=Order) as client:
        first = await client.prompt(say(GOOD))
        other = await client.prompt(say([1, 2]), output_format=RootModel[list[int]])
    assert first.structured_output == ORDER
    assert other.structured_output.root == [1, 2]


@EVERYWHERE
@pytest.mark.parametrize(
    ("day", "words"),
    [
        ("2019-01-01", "$.day: Value error, the shop was not open yet"),
        ("2200-01-01", "its validation raised LookupError: no calendar"),
    ],
)
async def test_an_answer_that_the_class_refuses_is_a_failed_turn(
    client: Chucky, ask: Ask, day: str, words: str
) -> None:
    value = {**GOOD, "day": day}
    result = await ask(client, say(value), Order)
    assert (result.subtype, result.is_error) == ("error", True)
    assert result.result == result.error.message == f"Order refuses the answer: {words}."
    assert result.error.code == "STRUCTURED_OUTPUT"
    assert result.error.reason == "structured_output_refused"
    assert result.error.faults == [words]
    assert result.structured_output == value  # as it came, for whoever can make use of it
    assert result.total_cost_usd > 0


async def test_a_session_goes_on_after_an_answer_that_the_class_refuses(client: Chucky) -> None:
    async with client.create_session(output_format=Order) as opened:
        kinds = []
        for value in ({**GOOD, "day": "2019-01-01"}, GOOD):
            await opened.send(say(value))
            kinds.append([each.type async for each in opened.stream()])
    assert kinds[0][-2:] == ["error", "result"]
    assert kinds[1][-2:] == ["assistant", "result"]


async def test_what_the_server_refuses_is_its_failure_and_not_looked_at_here(
    scripted_server: StartServer,
) -> None:
    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.turn("", subtype="error_max_structured_output_retries", is_error=True)
        await peer.until_closed()

    server = await scripted_server(script)
    async with server.client() as client:
        result = await client.prompt("Hello", output_format=Order)
    assert result.error.code == "STRUCTURED_OUTPUT"
    assert result.error.subtype == "error_max_structured_output_retries"
    assert "structured_output" not in result


async def test_a_result_without_a_value_stays_as_it_is(scripted_server: StartServer) -> None:
    """As after /compact, and from servers that keep no model to a schema."""

    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.turn("Compacted.", structured_output=None)
        await peer.turn("Compacted.")
        await peer.until_closed()

    server = await scripted_server(script)
    async with (
        server.client(output_format=Order) as client,
        client.create_session() as opened,
    ):
        for _ in range(2):
            await opened.send("/compact")
            result = [each async for each in opened.stream()][-1]
            assert result.subtype == "success"
            assert result.get("structured_output") is None


async def test_a_value_from_an_other_server_is_checked_here(scripted_server: StartServer) -> None:
    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.turn("{}", structured_output={"lines": [{"sku": "A", "quantity": 0}]})
        await peer.until_closed()

    server = await scripted_server(script)
    async with server.client() as client:
        result = await client.prompt("Hello", output_format=Order)
    assert result.error.faults == [
        "$.day: Field required",
        "$.lines[0].quantity: Input should be greater than or equal to 1",
    ]
    assert result.error.subtype == "success"
