"""``examples/web_backend``: the backend over HTTP, and its page in a browser."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from signal import SIGTERM
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from chucky import Chucky, decode_token, verify_token

if TYPE_CHECKING:
    from tests.conftest import Server
    from tests.examples.conftest import Page, Running

WAIT_SECONDS = 20


class Answer(NamedTuple):
    """What the backend answered."""

    status: int
    headers: Mapping[str, str]
    body: str


def request(method: str, url: str, **headers: str) -> Answer:
    asked = urllib.request.Request(url, method=method, headers=headers)
    try:
        with urllib.request.urlopen(asked, timeout=WAIT_SECONDS) as response:
            return Answer(response.status, dict(response.headers), response.read().decode())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, dict(error.headers), error.read().decode())


def sign_in(url: str, name: str) -> str:
    """Sign in and return the cookie."""
    answer = request("POST", f"{url}/sign-in?{urllib.parse.urlencode({'name': name})}")
    assert answer.status == 204
    return answer.headers["set-cookie"]


def script(*steps: Mapping[str, Any]) -> str:
    """Tell the offline model what to do."""
    return f"Do as told:\n```offline\n{json.dumps(steps)}\n```"


@pytest.fixture(scope="module")
def command(examples: Path) -> list[str]:
    """How the README starts the backend."""
    return [sys.executable, str(examples / "web_backend" / "app.py")]


@pytest.fixture(scope="module")
def backend(
    command: list[str],
    server: Server,
    running: Running,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """The address of a running backend."""
    with pytest.MonkeyPatch.context() as patch:
        set_environment(patch, server.url, server.project_id, server.hmac_key)
        with running(command, tmp_path_factory.mktemp("backend"), [-SIGTERM]) as address:
            yield f"http://{address}"


def set_environment(patch: pytest.MonkeyPatch, url: str, project_id: str, hmac_key: str) -> None:
    patch.setenv("CHUCKY_URL", url)
    patch.setenv("CHUCKY_PROJECT_ID", project_id)
    patch.setenv("CHUCKY_HMAC_KEY", hmac_key)
    patch.setenv("PORT", "0")


# --- the backend ------------------------------------------------------------------------------


def test_only_who_is_signed_in_gets_a_token(backend: str) -> None:
    assert request("POST", f"{backend}/chat-token").status == 401
    made_up = f"session={secrets.token_urlsafe(32)}"
    answer = request("POST", f"{backend}/chat-token", Cookie=made_up)
    assert (answer.status, json.loads(answer.body)) == (401, {"error": "Please sign in first."})


def test_a_user_gets_a_short_lived_token_with_a_budget_and_never_the_secret(
    backend: str, server: Server
) -> None:
    cookie = sign_in(backend, "Zoë")
    assert "httponly" in cookie.lower()
    assert "samesite=strict" in cookie.lower()
    answer = request("POST", f"{backend}/chat-token", Cookie=cookie.partition(";")[0])
    assert answer.status == 200
    assert answer.headers["cache-control"] == "no-store"
    assert server.hmac_key not in answer.body
    given = json.loads(answer.body)
    assert given["url"] == server.url
    assert verify_token(given["token"], server.hmac_key)
    claims = decode_token(given["token"])["payload"]
    assert (claims["iss"], claims["sub"]) == (server.project_id, "Zoë")
    assert claims["exp"] - claims["iat"] == 900
    assert (claims["budget"]["ai"], claims["budget"]["window"]) == (1_000_000, "day")


async def test_whatever_the_page_asks_for_the_token_decides(backend: str, server: Server) -> None:
    cookie = sign_in(backend, "mallory").partition(";")[0]
    token = json.loads(request("POST", f"{backend}/chat-token", Cookie=cookie).body)["token"]
    async with Chucky(token, url=server.url, model="opus") as client:
        result = await client.prompt("What is 2 + 2?")
    assert result.result == "2 + 2 = 4."
    assert "haiku" in result.model


@pytest.mark.parametrize("name", ["", " ", "a" * 41, "a\nb"])
def test_a_name_that_is_none_is_refused(backend: str, name: str) -> None:
    answer = request("POST", f"{backend}/sign-in?{urllib.parse.urlencode({'name': name})}")
    assert answer.status == 400
    assert "set-cookie" not in answer.headers


def test_a_link_cannot_get_a_token_nor_a_site_that_renames_this_computer(backend: str) -> None:
    cookie = sign_in(backend, "alice").partition(";")[0]
    assert request("GET", f"{backend}/chat-token", Cookie=cookie).status == 405
    renamed = request("POST", f"{backend}/chat-token", Cookie=cookie, Host="evil.example")
    assert renamed.status == 400


def test_the_backend_names_the_settings_it_misses(
    command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, "ws://127.0.0.1/ws", "some-project", "")
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=WAIT_SECONDS
    )
    assert done.returncode == 1
    assert done.stderr == "Error: set CHUCKY_HMAC_KEY; examples/README.md says how.\n"


# --- the page ---------------------------------------------------------------------------------

IS_ANSWERED = "document.querySelector('.assistant') && !document.getElementById('send').hidden"


@pytest.fixture
def chat(page: Page, backend: str, request: pytest.FixtureRequest) -> Page:
    """The page, with somebody signed in."""
    page.open(backend)
    page.wait_for_text("there is no password")
    page.write("textbox", "Your name", request.node.name[:40])
    page.wait_for("!document.getElementById('chat').hidden")
    return page


def test_a_user_signs_in_and_talks_in_one_conversation(chat: Page) -> None:
    chat.write("textbox", "Message", "Hello, I am Alice")
    chat.wait_for_text("Cost so far: $0.0")
    chat.write("textbox", "Message", "What is my name?")
    chat.wait_for_text("Your name is Alice.")
    assert chat.text_of("#log > *") == [
        "You\nHello, I am Alice",
        "Assistant\nHello Alice! Nice to meet you.",
        "You\nWhat is my name?",
        "Assistant\nYour name is Alice.",
    ]


def test_text_appears_while_it_is_written_and_stop_ends_it(chat: Page) -> None:
    slow = script({"text": ["It was a dark ", "and stormy night."], "chunk_delay_ms": 600_000})
    chat.evaluate(f"document.getElementById('message').value = {json.dumps(slow)}")
    chat.click("button", "Send")
    chat.wait_for("document.querySelector('.assistant')?.innerText.includes('It was a dark')")
    chat.click("button", "Stop")
    chat.wait_for("document.querySelector('.notice')")
    assert chat.text_of("#log .assistant") == ["Assistant\nIt was a dark "]
    chat.write("textbox", "Message", "What is 2 + 2?")
    chat.wait_for_text("2 + 2 = 4.")


def test_the_model_uses_a_tool_that_runs_in_the_browser(chat: Page) -> None:
    chat.set_timezone("Asia/Tokyo")
    chat.write("textbox", "Message", "What is the local time?")
    chat.wait_for(IS_ANSWERED)
    assert chat.text_of(".tool summary") == ["Used get_local_time"]
    chat.click("DisclosureTriangle", "Used get_local_time")
    [shown] = chat.text_of(".tool pre")
    assert shown.startswith("asked: {}\nanswered: ")
    assert shown.endswith("(Asia/Tokyo)")
    assert "(Asia/Tokyo)" in chat.text_of("#log .assistant")[-1]


def test_what_the_model_writes_never_becomes_part_of_the_page(chat: Page) -> None:
    markup = "<img src=x onerror=alert(1)><b>bold</b>"
    chat.write("textbox", "Message", f"Say exactly: {markup}")
    chat.wait_for(IS_ANSWERED)
    assert chat.text_of("#log .assistant") == [f"Assistant\n{markup}"]
    assert chat.text_of("#log img, #log b") == []


def test_the_end_of_a_conversation_is_told_and_the_next_message_begins_another(
    page: Page,
    command: list[str],
    chucky_command: str,
    running: Running,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    db = str(tmp_path / "chucky.db")
    created = subprocess.run(
        [chucky_command, "projects", "create", "shop", "--json", "--db", db],
        check=True,
        capture_output=True,
        timeout=WAIT_SECONDS,
    )
    project = json.loads(created.stdout)
    serve = [chucky_command, "serve", "--db", db, "--port"]
    with ExitStack() as last:
        with running([*serve, "0"], tmp_path) as address:
            url = f"ws://{address}/ws"
            set_environment(monkeypatch, url, project["projectId"], project["hmacKey"])
            backend = last.enter_context(running(command, tmp_path, [-SIGTERM]))
            page.open(f"http://{backend}")
            page.wait_for_text("there is no password")
            page.write("textbox", "Your name", "alice")
            page.wait_for("!document.getElementById('chat').hidden")
        page.wait_for_text("Your next message begins a new conversation.")
        assert "server" in page.text_of(".notice")[0]
        page.write("textbox", "Message", "Hello, I am Alice")
        page.wait_for("document.querySelectorAll('.notice').length === 2")
        assert "cannot be reached" in page.text_of(".notice")[1]
        with running([*serve, address.rpartition(":")[2]], tmp_path):
            page.click("button", "Send")  # the message is still there
            page.wait_for_text("Nice to meet you.")


def test_a_browser_may_send_its_origin_and_the_token_in_the_url(chat: Page) -> None:
    first = chat.evaluate(
        """fetch("/chat-token", { method: "POST" })
          .then((response) => response.json())
          .then(({ url, token }) => new Promise((resolve) => {
            const socket = new WebSocket(`${url}?token=${token}`);
            socket.onmessage = ({ data }) => { socket.close(); resolve(JSON.parse(data)); };
          }))"""
    )
    assert first == {"type": "control", "payload": {"action": "ready"}}


def test_a_token_that_the_server_refuses_is_told_on_the_page(
    page: Page,
    command: list[str],
    server: Server,
    running: Running,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrong_key = f"hk_live_{secrets.token_hex(32)}"
    set_environment(monkeypatch, server.url, server.project_id, wrong_key)
    with running(command, tmp_path, [-SIGTERM]) as address:
        page.open(f"http://{address}")
        page.wait_for_text("there is no password")
        page.write("textbox", "Your name", "alice")
        page.wait_for_text("Your next message begins a new conversation.")
        assert "sign" in page.text_of(".notice")[0]
