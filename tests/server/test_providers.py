"""Who serves a model: Anthropic, the clouds, any other address; and with whose key."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import secrets
import struct
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from chucky import ValidationError
from chucky.server.model.catalog import Catalog
from chucky.server.model.providers import Providers
from chucky.server.store import Store

WAIT_SECONDS = 20
MODEL = "claude-sonnet-5-5"
INIT = {"model": MODEL, "capabilities": ["result_details"]}


def served_by(provider: str, name: str | None = None) -> dict[str, Any]:
    """A change of the model table."""
    return {MODEL: {"provider": provider, **({"provider_model": name} if name else {})}}


async def ask(dial: Any, server: Any, token: str | None = None, **init: Any) -> dict[str, Any]:
    """One turn; its result, with the notices of the session."""
    async with (
        asyncio.timeout(WAIT_SECONDS),
        dial(server.url, token=token or server.token()) as raw,
    ):
        await raw.send(type="init", payload={**INIT, **init})
        await raw.ask("Hello")
        frames = await raw.receive_until("result")
    infos = [frame["payload"]["data"] for frame in frames[:2] if "data" in frame.get("payload", {})]
    result: dict[str, Any] = frames[-1]
    return {**result, "notices": infos[0]["notices"] if infos else []}


# --- an address of one's own ------------------------------------------------------------------


async def test_any_address_that_speaks_the_api_serves_models_under_its_own_names(
    start_server: Any, start_provider: Any, api: Any, dial: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = secrets.token_urlsafe()
    monkeypatch.setenv("LOCAL_KEY", key)
    async with start_provider(api.says("I am local.")) as provider:
        local = {"kind": "anthropic", "base_url": provider.url, "api_key_env": "LOCAL_KEY"}
        models = served_by("local", "their-name")
        async with start_server(providers={"local": local}, models=models) as server:
            result = await ask(dial, server, betas=["interleaved-thinking-2025-05-14"])
    assert result["result"] == "I am local."
    assert result["model"] == MODEL
    assert provider.requests[0]["model"] == "their-name"
    assert provider.headers[0]["authorization"] == f"Bearer {key}"
    assert provider.headers[0]["anthropic-beta"] == "interleaved-thinking-2025-05-14"
    # A real model answers this one, and nothing else is said.
    assert not any("offline" in notice for notice in result["notices"])


async def test_a_provider_without_credentials_is_refused_by_the_name_of_its_setting(
    start_server: Any, start_provider: Any, dial: Any
) -> None:
    async with start_provider() as provider:
        local = {"kind": "anthropic", "base_url": provider.url}
        async with start_server(providers={"local": local}, models=served_by("local")) as server:
            assert (await ask(dial, server))["subtype"] == "success"
            # Where a provider is set up, no test double answers for the others.
            refused = await ask(dial, server, model="haiku")
            fallback = await ask(dial, server, fallbackModel="haiku")
    for result in (refused, fallback):
        assert result["error"]["reason"] == "provider_not_configured"
        assert "anthropic_api_key" in result["result"]


# --- the clouds ---------------------------------------------------------------------------------


def event_stream_message(payload: bytes) -> bytes:
    """One message of AWS's event stream: lengths, headers, payload, check sums."""
    headers = b""
    for name, value in (
        (":event-type", "chunk"),
        (":content-type", "application/json"),
        (":message-type", "event"),
    ):
        headers += struct.pack("!B", len(name)) + name.encode()
        headers += struct.pack("!BH", 7, len(value)) + value.encode()
    prelude = struct.pack("!II", 16 + len(headers) + len(payload), len(headers))
    message = prelude + struct.pack("!I", binascii.crc32(prelude)) + headers + payload
    return message + struct.pack("!I", binascii.crc32(message))


async def as_event_stream(events: list[dict[str, Any]]) -> AsyncIterator[bytes]:
    for event in events:
        inner = base64.b64encode(json.dumps(event).encode()).decode()
        yield event_stream_message(json.dumps({"bytes": inner}).encode())


@pytest.mark.parametrize("how", ["signed", "bearer"])
async def test_bedrock_gets_signed_requests_and_is_understood(
    start_server: Any, start_provider: Any, api: Any, dial: Any, how: str
) -> None:
    secret = secrets.token_urlsafe()
    credentials = (
        {"access_key": "generated", "secret_key": secret}
        if how == "signed"
        else {"api_key": secret}
    )

    async def respond(request: Request) -> Response:
        seen.append(request)
        bodies.append(json.loads(await request.body()))
        return StreamingResponse(as_event_stream(api.says("From the cloud.")))

    seen: list[Request] = []
    bodies: list[dict[str, Any]] = []
    async with start_provider() as provider:
        provider.respond_as = respond
        aws = {"kind": "bedrock", "region": "eu-central-1", "base_url": provider.url, **credentials}
        models = served_by("aws", "anthropic.their-name-v1:0")
        async with start_server(providers={"aws": aws}, models=models) as server:
            result = await ask(dial, server, betas=["interleaved-thinking-2025-05-14"])
    assert result["result"] == "From the cloud."
    (request,) = seen
    assert request.url.path == "/model/anthropic.their-name-v1:0/invoke-with-response-stream"
    authorization = request.headers["authorization"]
    signed, bearer = (
        authorization.startswith("AWS4-HMAC-SHA256"),
        authorization == f"Bearer {secret}",
    )
    assert (signed, bearer) == ((True, False) if how == "signed" else (False, True))
    assert secret not in authorization or how == "bearer"
    assert bodies[0]["anthropic_beta"] == ["interleaved-thinking-2025-05-14"]
    assert "model" not in bodies[0]


async def test_vertex_gets_its_token_and_is_understood(
    start_server: Any, start_provider: Any, api: Any, dial: Any
) -> None:
    token = secrets.token_urlsafe()
    async with start_provider(api.says("From the other cloud.")) as provider:
        google = {
            "kind": "vertex",
            "region": "europe-west1",
            "project": "p",
            "access_token": token,
            "base_url": provider.url,
        }
        models = served_by("google", "their-name")
        async with start_server(providers={"google": google}, models=models) as server:
            result = await ask(dial, server)
    assert result["result"] == "From the other cloud."
    assert provider.headers[0]["authorization"] == f"Bearer {token}"
    path = "/projects/p/locations/europe-west1/publishers/anthropic/models/their-name"
    assert provider.paths == [f"{path}:streamRawPredict"]


@pytest.mark.parametrize("kind", ["bedrock", "vertex"])
async def test_credentials_that_are_not_there_are_a_sentence_that_names_the_table(
    start_server: Any, dial: Any, kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Nothing of this machine, whatever is configured on it, and nothing of the network.
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = {"kind": kind, "region": "eu-west-1", "base_url": "http://127.0.0.1:9"}
    if kind == "vertex":
        settings["project"] = "p"
    async with start_server(
        providers={"cloud": settings}, models=served_by("cloud"), model_attempts=1
    ) as server:
        result = await ask(dial, server)
    assert result["error"]["reason"] == "provider_credentials"
    assert "[providers.cloud]" in result["result"]


# --- a key for each project ---------------------------------------------------------------------


async def test_a_project_with_a_key_of_its_own_pays_with_it(
    start_server: Any, start_provider: Any, dial: Any
) -> None:
    ours, theirs = secrets.token_urlsafe(), secrets.token_urlsafe()
    async with (
        start_provider() as provider,
        start_server(upstream_url=provider.url, anthropic_api_key=ours) as server,
        asyncio.timeout(WAIT_SECONDS),
    ):
        await ask(dial, server)
        assert provider.headers[-1]["authorization"] == f"Bearer {ours}"
        set_key = server.store.set_provider_key
        await asyncio.to_thread(set_key, server.project_id, "anthropic", theirs)
        while provider.headers[-1]["authorization"] == f"Bearer {ours}":  # a running server follows
            await ask(dial, server)
        assert provider.headers[-1]["authorization"] == f"Bearer {theirs}"
        await asyncio.to_thread(set_key, server.project_id, "anthropic", None)
        while provider.headers[-1]["authorization"] == f"Bearer {theirs}":
            await ask(dial, server)


async def test_a_key_of_another_master_key_is_used_for_nothing(
    start_server: Any, start_provider: Any, dial: Any, tmp_path: Path
) -> None:
    def prepare() -> None:
        with closing(Store.open(tmp_path / "chucky.db")) as store:
            store.ensure_default_project()
        with closing(Store.open(tmp_path / "chucky.db", secrets.token_hex(32))) as store:
            store.set_provider_key("default", "anthropic", secrets.token_urlsafe())

    await asyncio.to_thread(prepare)
    async with (
        start_provider() as provider,
        start_server(upstream_url=provider.url, master_key=secrets.token_hex(32)) as server,
    ):
        result = await ask(dial, server)
    assert result["error"]["reason"] == "provider_key_unreadable"
    assert provider.requests == []


def test_sealed_secrets_are_nowhere_in_the_file(tmp_path: Path) -> None:
    path, master, secret = tmp_path / "chucky.db", secrets.token_hex(32), secrets.token_urlsafe()
    with closing(Store.open(path, master)) as store:
        project, key = store.create_project("acme")
        store.set_provider_key(project, "anthropic", secret)
    written = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert secret.encode() not in written
    assert key.secret.encode() not in written
    with closing(Store.open(path, master)) as store:
        found = store.find_project("acme")
        assert found.keys == (key,)
        assert found.provider_key("anthropic") == secret
        assert secret not in repr(found)
    with closing(Store.open(path)) as store:
        assert store.find_project("acme").keys == ()


def test_a_sealed_secret_cannot_be_moved_to_another_row(tmp_path: Path) -> None:
    master = secrets.token_hex(32)
    with closing(Store.open(tmp_path / "chucky.db", master)) as store:
        for name in ("rich", "poor"):
            store.create_project(name)
            store.set_provider_key(name, "anthropic", secrets.token_urlsafe())
        with store.database.writing() as connection:
            connection.execute(
                "UPDATE provider_keys SET secret = (SELECT max(secret) FROM provider_keys)"
            )
        opened = [
            key.secret
            for name in ("rich", "poor")
            for key in store.find_project(name).provider_keys
        ]
    assert opened.count(None) == 1


# --- faults of the settings ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tables", "word"),
    [
        ({"x": {}}, "kind"),
        ({"x": {"kind": "azure"}}, "kind"),
        ({"x": {"kind": "anthropic"}}, "lacks base_url"),
        ({"x": {"kind": "anthropic", "base_url": "localhost"}}, "base_url"),
        ({"x": {"kind": "anthropic", "base_url": "http://[", "odd": "y"}}, "unknown field 'odd'"),
        ({"x": {"kind": "bedrock"}}, "lacks region"),
        ({"x": {"kind": "bedrock", "region": "r", "access_key": "a"}}, "both access_key"),
        ({"x": {"kind": "vertex", "region": "r"}}, "lacks project"),
        ({"x": {"kind": "vertex", "region": 7, "project": "p"}}, "region"),
        (
            {"x": {"kind": "anthropic", "base_url": "http://x", "api_key_env": "UNSET"}},
            "'UNSET'",
        ),
        ({"anthropic": {"kind": "anthropic"}}, "anthropic_api_key"),
    ],
)
def test_a_wrong_table_is_told_by_name(tables: dict[str, Any], word: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Providers.load(tables, Catalog.load(), api_key=None, base_url=None, environ={})
    assert caught.value.reason == "invalid_providers"
    assert word in str(caught.value)


def test_a_model_of_a_provider_that_is_not_there_is_told() -> None:
    catalog = Catalog.load(served_by("nobody"))
    with pytest.raises(ValidationError, match=r"\[providers\.nobody\]"):
        Providers.load({}, catalog, api_key=None, base_url=None, environ={})


def test_secrets_are_in_no_repr() -> None:
    secret = secrets.token_urlsafe()
    names = ("api_key", "secret_key", "session_token")
    table = {"kind": "bedrock", "region": "r", "access_key": "a", **dict.fromkeys(names, secret)}
    loaded = Providers.load({"x": table}, Catalog.load(), api_key=secret, base_url=None, environ={})
    assert secret not in repr(loaded.by_name)
