"""The page's "Chucky Client", "Import" and "Constructor"."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pytest

import chucky
from chucky import Chucky

if TYPE_CHECKING:
    from tests.conftest import Server
    from tests.page.conftest import Peer, RunExample

HOSTED = "wss://conjure.chucky.cloud/ws"
MODEL = "claude-sonnet-4-5-20250929"
# The signature on the page, in its order. Ours allows more for two of the defaults: a token and
# a url may also come from the environment, so in the signature they are None.
PARAMETERS = {
    "token": inspect.Parameter.empty,
    "url": HOSTED,
    "model": MODEL,
    "system_prompt": None,
    "max_turns": None,
    "timeout": 30.0,
    "keepalive_interval": 60.0,
}

BY_NAME_ALONE = {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD}

Within = Callable[[Awaitable[Any]], Awaitable[Any]]


def test_the_distribution_chucky_sdk_provides_the_package() -> None:
    assert version("chucky-sdk") == chucky.__version__


def test_the_client_is_a_class_of_the_package() -> None:
    names: dict[str, Any] = {}
    exec("from chucky import Chucky", names)
    assert inspect.isclass(names["Chucky"])
    assert "Chucky" in chucky.__all__


def test_the_parameters_have_the_pages_names_order_and_defaults() -> None:
    parameters = list(inspect.signature(Chucky).parameters.values())
    assert [each.name for each in parameters[: len(PARAMETERS)]] == list(PARAMETERS)
    for parameter in parameters[: len(PARAMETERS)]:
        assert parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        if parameter.name not in ("token", "url"):
            assert parameter.default == PARAMETERS[parameter.name]
    beyond = parameters[len(PARAMETERS) :]
    assert {each.kind for each in beyond} <= BY_NAME_ALONE


def test_every_parameter_may_be_given_by_position_or_by_name() -> None:
    values = ["jwt", "ws://127.0.0.1:1/ws", "opus", "Be brief.", 3, 5.0, 7.0]
    by_position = Chucky(*values)  # type: ignore[arg-type]
    by_name = Chucky(**dict(zip(PARAMETERS, values, strict=True)))  # type: ignore[arg-type]
    assert by_position.options == by_name.options
    assert [getattr(by_name.options, name) for name in PARAMETERS] == values


def test_what_is_not_given_has_the_pages_default() -> None:
    options = Chucky("jwt").options
    for name, default in PARAMETERS.items():
        if name != "token":
            assert getattr(options, name) == default


def test_without_a_token_the_client_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match="pass token="):
        Chucky()


async def test_the_token_is_what_the_server_judges(server: Server, within: Within) -> None:
    accepted = await within(Chucky(server.token("page"), server.url).prompt("What is 1 + 1?"))
    assert accepted.subtype == "success"
    with pytest.raises(RuntimeError, match="token"):
        await within(Chucky("no.such.token", server.url).prompt("What is 1 + 1?"))


async def test_the_url_is_where_the_client_connects(peer: Peer, within: Within) -> None:
    result = await within(Chucky("jwt", url=peer.url).prompt("Are you there?"))
    assert result.result == "Yes."
    assert peer.opened == 1


async def test_what_sessions_inherit_travels_in_init(peer: Peer, within: Within) -> None:
    client = Chucky("jwt", peer.url, model="opus", system_prompt="Be brief.", max_turns=3)
    await within(client.prompt("Hello"))
    await within(Chucky("jwt", peer.url).prompt("Hello"))
    given, defaults = (frame["payload"] for frame in peer.of_type("init"))
    assert (given["model"], given["systemPrompt"], given["maxTurns"]) == ("opus", "Be brief.", 3)
    assert defaults["model"] == MODEL
    assert not {"systemPrompt", "maxTurns"} & set(defaults)


async def test_max_turns_of_the_client_limits_its_prompts(
    server: Server, script: Callable[..., str], within: Within
) -> None:
    @chucky.tool("look", "Look again")
    def look() -> str:
        return "nothing"

    again = script(*[{"tools": [{"name": "look"}]}] * 3, {"text": "done"})
    token = server.token("page")
    limited = await within(Chucky(token, server.url, max_turns=2).prompt(again, tools=[look]))
    assert limited.error.code == "MAX_TURNS"
    assert limited.num_turns == 2
    assert (await within(Chucky(token, server.url).prompt(again, tools=[look]))).result == "done"


async def test_the_timeout_limits_connecting_and_getting_ready(
    silent_peer: Peer, within: Within
) -> None:
    with pytest.raises(RuntimeError, match=r"not ready within 0\.1 s"):
        await within(Chucky("jwt", silent_peer.url, timeout=0.1).prompt("Hello"))

    async def say_nothing(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _reader.read()
        writer.close()

    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        with pytest.raises(TimeoutError, match=r"did not answer within 0\.1 s"):
            await within(Chucky("jwt", f"ws://127.0.0.1:{port}/ws", timeout=0.1).prompt("Hello"))


async def test_a_ping_is_sent_every_keepalive_interval(peer: Peer, within: Within) -> None:
    # At the default of 60 s the wait below would end without them.
    async with Chucky("jwt", peer.url, keepalive_interval=0.05) as client:
        await within(client.create_session().send("Hello"))
        await peer.until(lambda: len(peer.of_type("ping")) >= 3)
    stamps = [frame["payload"]["timestamp"] for frame in peer.of_type("ping")]
    assert stamps == sorted(stamps)
    assert all(type(stamp) is int for stamp in stamps)


async def test_the_example_makes_a_client(
    run_example: RunExample, server: Server, within: Within
) -> None:
    _printed, names = await run_example("constructor")
    client = names["client"]
    assert isinstance(client, Chucky)
    assert client.options.model == MODEL
    assert client.options.system_prompt == "You are a helpful assistant."
    assert client.options.timeout == 60.0
    assert (await within(client.prompt("What is 2 + 2?"))).subtype == "success"
