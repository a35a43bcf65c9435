"""What the tests of ``examples/`` need: a place to run them, and a browser to look at a page."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from websockets.sync.client import ClientConnection, connect

if TYPE_CHECKING:
    from tests.conftest import Server

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
WAIT_SECONDS = 20.0

Running = Callable[..., AbstractContextManager[str]]


class RunExample(Protocol):
    """Runs an example to its end."""

    def __call__(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run ``examples/<name>`` with arguments; see what it printed and its exit code."""
        ...


@pytest.fixture(scope="session")
def examples() -> Path:
    return EXAMPLES


@pytest.fixture
def run_example(
    request: pytest.FixtureRequest,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> RunExample:
    """Run an example as its README says, as a user that only this test has."""
    monkeypatch.setenv("CHUCKY_URL", server.url)
    monkeypatch.setenv("CHUCKY_TOKEN", server.token(request.node.name[:200]))

    def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(EXAMPLES / name), *arguments],
            cwd=tmp_path,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=WAIT_SECONDS,
        )

    return run


# --- a browser --------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def browser_command() -> str | None:
    """A browser that speaks the DevTools protocol, if this machine has one."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


@pytest.fixture(scope="session")
def browser_url(
    browser_command: str | None, running: Running, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str | None]:
    """Where the browser of this run listens, or None without a browser."""
    if browser_command is None:
        yield None
        return
    directory = tmp_path_factory.mktemp("browser")
    options = (
        "--headless=new",
        "--remote-debugging-port=0",
        f"--user-data-dir={directory}",
        # It shows pages of this test run only, and its own sandbox does not work for root.
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--no-first-run",
    )
    with running([browser_command, *options], directory, [-signal.SIGTERM]) as address:
        version = urllib.request.urlopen(f"http://{address}/json/version", timeout=WAIT_SECONDS)
        with version:
            url = json.load(version)["webSocketDebuggerUrl"]
        yield url


@pytest.fixture
def page(browser_url: str | None, require_part: Callable[[str, bool, str], None]) -> Iterator[Page]:
    """A tab with no history and no cookies. Errors on a page fail the test."""
    require_part("a browser", browser_url is not None, "scripts/parts installs Debian's chromium")
    assert browser_url is not None
    with connect(browser_url, max_size=None) as socket:
        page = Page(socket)
        yield page
        page.close()
    assert page.errors == []


class Page:
    """A tab, driven through the DevTools protocol; every wait has a limit.

    What a user sees is found as a screen reader finds it, by role and name, so that a test that
    finds its button has also seen that everybody can.
    """

    def __init__(self, socket: ClientConnection) -> None:
        self.errors: list[str] = []
        self._socket = socket
        self._session: dict[str, str] = {}
        self._last_id = 0
        self._context = self._call("Target.createBrowserContext")["browserContextId"]
        target = self._call(
            "Target.createTarget", url="about:blank", browserContextId=self._context
        )
        attached = self._call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Accessibility"):
            self._call(f"{domain}.enable")

    def open(self, url: str) -> None:
        self._call("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'")

    def set_timezone(self, name: str) -> None:
        self._call("Emulation.setTimezoneOverride", timezoneId=name)

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression, of what it resolves to if a promise."""
        done = self._call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def wait_for(self, condition: str) -> None:
        """Wait until a JavaScript condition holds; it is looked at after each change."""
        self.evaluate(
            f"""new Promise((resolve) => {{
              const look = () => {{ if ({condition}) {{ observer.disconnect(); resolve(); }} }};
              const observer = new MutationObserver(look);
              const changes = {{ childList: true, attributes: true, characterData: true }};
              observer.observe(document, {{ subtree: true, ...changes }});
              document.addEventListener("readystatechange", look);
              look();
            }})"""
        )

    def wait_for_text(self, text: str) -> None:
        self.wait_for(f"document.body.innerText.includes({json.dumps(text)})")

    def text_of(self, selector: str) -> list[str]:
        """Return the lines of text of each element that a CSS selector finds."""
        found = self.evaluate(
            f"[...document.querySelectorAll({json.dumps(selector)})].map((each) => each.innerText)"
        )
        return ["\n".join(filter(None, text.split("\n"))) for text in found]

    def click(self, role: str, name: str) -> None:
        self._do(role, name, "function() { this.click(); }")

    def write(self, role: str, name: str, text: str) -> None:
        """Put the cursor into a field, type, and press Enter."""
        self._do(role, name, "function() { this.focus(); }")
        self._call("Input.insertText", text=text)
        enter = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13}
        self._call("Input.dispatchKeyEvent", type="keyDown", text="\r", **enter)
        self._call("Input.dispatchKeyEvent", type="keyUp", **enter)

    def close(self) -> None:
        """Close the tab and forget its cookies."""
        self._session = {}
        self._call("Target.disposeBrowserContext", browserContextId=self._context)

    def _do(self, role: str, name: str, function: str) -> None:
        document = self._call("Runtime.evaluate", expression="document")["result"]["objectId"]
        query = {"objectId": document, "role": role, "accessibleName": name}
        found = self._call("Accessibility.queryAXTree", **query)["nodes"]
        assert len(found) == 1, f"{role} {name!r}: {len(found)} of them"
        node = self._call("DOM.resolveNode", backendNodeId=found[0]["backendDOMNodeId"])
        element = node["object"]["objectId"]
        self._call("Runtime.callFunctionOn", objectId=element, functionDeclaration=function)

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._last_id += 1
        call = {"id": self._last_id, "method": method, "params": params, **self._session}
        self._socket.send(json.dumps(call))
        while True:
            message = json.loads(self._socket.recv(timeout=WAIT_SECONDS))
            if message.get("id") == self._last_id:
                assert "error" not in message, f"{method}: {message}"
                result = message["result"]
                assert isinstance(result, dict)
                return result
            self._note(message.get("method"), message.get("params", {}))

    def _note(self, event: str | None, params: dict[str, Any]) -> None:
        if event == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(params["exceptionDetails"]))
        elif event == "Log.entryAdded":
            entry = params["entry"]
            if entry["level"] == "error" and entry["source"] != "network":
                self.errors.append(entry["text"])
