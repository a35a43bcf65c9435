"""The page's "Complete Example"."""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING

import pytest

from chucky import decode_token, verify_token

if TYPE_CHECKING:
    from tests.conftest import Server
    from tests.page.conftest import CompileExample

MICRO_DOLLARS = 1_000_000
HOUR_SECONDS = 3600


def test_the_complete_example_runs_from_token_to_close(
    compile_example: CompileExample, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, object] = {"__name__": "__main__"}
    before = datetime.now()  # noqa: DTZ005 - the example's tool says local time
    exec(compile_example("complete"), names)
    answer, cost, *lines = capsys.readouterr().out.splitlines()

    assert answer == "Answer: 2 + 2 = 4."
    assert re.fullmatch(r"Cost: \$0\.\d{4}", cost)
    done = lines[-1]
    assert done.startswith("Done: ")
    said = re.search(r"\d{4}-\d\d-\d\dT[\d:.]+\d", done)
    assert said, "the answer says the time that the tool told"
    assert before <= datetime.fromisoformat(said[0]) <= datetime.now()  # noqa: DTZ005
    assert done.removeprefix("Done: ") in lines[:-1]  # the assistant's text is printed, too

    token = str(names["token"])
    assert verify_token(token, server.hmac_key)
    claims = decode_token(token)["payload"]
    assert claims["sub"] == "user-123"
    assert claims["iss"] == server.project_id
    budget = claims["budget"]
    assert (budget["ai"], budget["compute"], budget["window"]) == (
        1 * MICRO_DOLLARS,
        1 * HOUR_SECONDS,
        "day",
    )
