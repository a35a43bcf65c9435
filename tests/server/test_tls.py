"""The server over TLS, and certificates that cannot be used."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest

from chucky import Chucky
from chucky.errors import ValidationError
from chucky.server.model.anthropic_api import open_upstream
from chucky.server.model.providers import ProviderSettings
from chucky.server.model.upstream import ModelRequest, UpstreamError

WAIT_SECONDS = 20


def certificate(directory: Path, *, password: str | None = None) -> dict[str, Path]:
    """Make a certificate of its own for 127.0.0.1, and its key."""
    cert, key = directory / "cert.pem", directory / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-days", "1", "-subj", "/CN=test"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-out", str(cert), "-keyout", str(key)]
    command += ["-passout", f"pass:{password}"] if password else ["-noenc"]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    return {"tls_cert": cert, "tls_key": key}


@pytest.fixture(autouse=True)
def _openssl(require_part: Any) -> None:
    require_part("openssl", shutil.which("openssl") is not None, "install the package openssl")


async def test_a_client_that_trusts_the_certificate_is_served(
    start_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(files["tls_cert"]))
    async with start_server(**files) as server:
        assert server.url.startswith("wss://")
        result = await Chucky(server.token(), server.url).prompt("What is 2 + 2?")
    assert result.subtype == "success"


async def test_a_client_that_does_not_trust_it_is_told_of_the_certificate(
    start_server: Any, tmp_path: Path
) -> None:
    async with start_server(**certificate(tmp_path)) as server:
        with pytest.raises(ConnectionError, match="certificate"):
            await Chucky(server.token(), server.url).prompt("hi")


async def test_a_certificate_that_cannot_be_used_is_named(
    start_server: Any, tmp_path: Path
) -> None:
    files = certificate(tmp_path)
    files["tls_key"].write_text("no key")
    with pytest.raises(ValidationError, match="tls_cert"):
        async with start_server(**files):
            pass


async def test_a_key_with_a_password_is_refused_and_nobody_is_asked(
    start_server: Any, tmp_path: Path
) -> None:
    files = certificate(tmp_path, password=secrets.token_hex(8))
    with pytest.raises(ValidationError, match="password"):
        async with start_server(**files):
            pass


@pytest.mark.parametrize("is_trusted", [True, False])
async def test_a_model_provider_is_trusted_as_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_trusted: bool
) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nevent: x\ndata: {}\n\n")
        writer.close()

    files = certificate(tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(files["tls_cert"], files["tls_key"])
    if is_trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(files["tls_cert"]))
    async with await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls) as server:
        port = server.sockets[0].getsockname()[1]
        provider = ProviderSettings(
            name="own", kind="anthropic", base_url=f"https://127.0.0.1:{port}"
        )
        upstream = await asyncio.to_thread(open_upstream, provider)
        found: list[str] | UpstreamError
        try:
            async with asyncio.timeout(WAIT_SECONDS), upstream.stream(ModelRequest({})) as events:
                found = [event async for event in events]
        except UpstreamError as error:
            found = error
        finally:
            await upstream.close()
    if is_trusted:
        assert found == ["{}"]
    else:
        assert isinstance(found, UpstreamError)
        assert (found.reason, found.is_free) == ("model_unreachable", True)
