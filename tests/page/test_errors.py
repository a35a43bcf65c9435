"""The page's "Error Handling"."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from chucky import Chucky, ChuckyError, create_budget, create_token, errors

if TYPE_CHECKING:
    from tests.conftest import Server
    from tests.page.conftest import RunExample

NOBODY = "ws://127.0.0.1:1/ws"


@pytest.fixture
def token_that_fails(server: Server) -> str:
    """A good token whose application chose a model there is not, so that every turn fails."""
    return create_token(
        user_id="page",
        project_id=server.project_id,
        secret=server.hmac_key,
        budget=create_budget(ai_dollars=1, compute_hours=1, window="day"),
        sdk_config={"model": "no-such-model"},
    )


async def test_the_example_prints_the_answer_when_nothing_fails(run_example: RunExample) -> None:
    printed, _names = await run_example("errors")
    assert printed == "Hello! I am Chucky's offline model. How can I help?\n"


async def test_the_example_prints_the_error_of_a_failed_turn(
    run_example: RunExample, token_that_fails: str
) -> None:
    printed, names = await run_example("errors", token=token_that_fails)
    assert printed.startswith("Error: ")
    assert "no-such-model" in printed
    assert names["result"]["subtype"] == "error"


async def test_the_example_calls_an_unreachable_server_a_connection_error(
    run_example: RunExample,
) -> None:
    printed, _names = await run_example("errors", url=NOBODY)
    assert printed.startswith(f"Connection error: Cannot reach {NOBODY}")


async def test_the_example_calls_a_refused_token_a_connection_error(
    run_example: RunExample,
) -> None:
    printed, _names = await run_example("errors", token="not.a.token")
    assert printed.startswith("Connection error: ")
    assert "token" in printed
    assert "not.a.token" not in printed


def test_every_error_of_the_package_is_a_runtime_error() -> None:
    classes = [
        value
        for value in vars(errors).values()
        if inspect.isclass(value) and issubclass(value, Exception)
    ]
    assert ChuckyError in classes
    assert all(issubclass(each, RuntimeError) for each in classes)


async def test_the_streaming_example_prints_the_error(
    run_example: RunExample, server: Server, token_that_fails: str
) -> None:
    client = Chucky(token_that_fails, server.url)
    printed, names = await run_example("streaming_errors", client=client)
    (line,) = printed.splitlines()
    assert line.startswith("Error: ")
    assert "no-such-model" in line
    assert names["msg"]["type"] == "error"


async def test_the_streaming_example_prints_nothing_when_nothing_fails(
    run_example: RunExample, client: Chucky
) -> None:
    printed, names = await run_example("streaming_errors", client=client)
    assert printed == ""
    assert names["msg"]["type"] == "result"


@pytest.mark.parametrize("fault", ["model", "turns"])
async def test_every_kind_of_failed_turn_is_a_result_with_subtype_error(
    client: Chucky, script: Callable[..., str], fault: str
) -> None:
    scripted: dict[str, Any] = {
        "model": {"error": {"status": 400, "type": "invalid_request_error", "message": "Broken."}},
        "turns": {"tools": [{"name": "no_such_tool"}]},
    }
    result = await client.prompt(script(scripted[fault]))
    assert result.get("subtype") == "error"
    assert result.get("result")
