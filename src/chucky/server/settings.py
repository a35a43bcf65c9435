"""Everything an operator can set, read once, with all faults told at once.

A setting comes from, in this order: an argument (a command-line option), the environment
(``CHUCKY_<NAME>``), the file ``chucky.toml``, the default. ``docs/settings.md`` lists them all.
"""

from __future__ import annotations

import difflib
import ipaddress
import math
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

from chucky.errors import ValidationError
from chucky.server.postgres_url import PostgresUrl, is_postgres_url

DEFAULT_FILE_NAME: Final = "chucky.toml"

# Names of the environment that begin like ours and are not settings of the server.
_OTHER_NAMES: Final = frozenset(
    {
        "CHUCKY_CONFIG",
        "CHUCKY_URL",
        "CHUCKY_TOKEN",
        "CHUCKY_PROJECT_ID",
        "CHUCKY_HMAC_KEY",
        "CHUCKY_OFFLINE_URL",
        # The public system's own.
        "CHUCKY_API_KEY",
        "CHUCKY_WORKER_URL",
        "CHUCKY_PORTAL_URL",
    }
)
_LOG_LEVELS: Final = ("debug", "info", "warning", "error")
_WORDS_FOR_TRUE: Final = frozenset({"true", "yes", "on", "1"})
_WORDS_FOR_FALSE: Final = frozenset({"false", "no", "off", "0"})
_MIB: Final = 1024 * 1024
_DAY_SECONDS: Final = 86_400


def default_db_path(environ: Mapping[str, str] | None = None) -> Path:
    """Return where the database is unless told otherwise, the same from every directory.

    It is ``chucky/chucky.db`` in ``$XDG_DATA_HOME``, or in ``~/.local/share`` when that is not
    set to an absolute path.

    Raises:
        ValidationError: There is no home directory either.
    """
    base = (os.environ if environ is None else environ).get("XDG_DATA_HOME", "")
    if base and Path(base).is_absolute():
        return Path(base, "chucky", "chucky.db")
    try:
        return Path.home() / ".local" / "share" / "chucky" / "chucky.db"
    except RuntimeError as error:
        raise ValidationError(
            "This user has no home directory to keep a database in; name a file with --db or "
            "CHUCKY_DB."
        ) from error


@dataclass(frozen=True)
class Settings:
    """The settings of a server and of the commands beside it. Read them with :meth:`load`.

    Attributes:
        host: The address to listen on.
        port: The port to listen on; 0 takes a free one.
        db: The database: a file, or the address of a PostgreSQL database.
        upstream_url: Where the Messages API is, when it is not at Anthropic.
        anthropic_api_key: The provider key; without it (and without ``upstream_url``) the
            offline model answers. Left out of ``repr``.
        allow_remote: Whether an address other than loopback may be bound without TLS.
        tls_cert: The certificate chain (PEM); with it the server speaks ``wss``.
        tls_key: The key of the certificate (PEM).
        tool_timeout_seconds: How long a tool of a client may take.
        turn_timeout_seconds: How long a turn may take.
        idle_timeout_seconds: After how long without a frame a connection is closed.
        max_frame_bytes: The largest frame a client may send.
        stall_timeout_seconds: How long nothing may happen in a turn.
        drain_seconds: How long running turns may go on when the server is stopped.
        max_sessions: How many sessions this process takes on.
        max_running_turns: How many turns this process runs beside each other.
        max_sessions_per_user: How many sessions one user may have open.
        max_queued_inputs: How many messages may wait in one session.
        model_attempts: How often a model call is tried, the first time included.
        allowed_betas: Beta features of the provider that clients may ask for.
        min_output_tokens: A model call is made if its input and so much output can be paid for.
        reconnect_grace_seconds: How long a session whose connection was lost waits for its client.
        evict_after_seconds: After how long without a turn a conversation leaves memory.
        session_log: Whether sessions are kept, to be resumed. Off, they end with their connection.
        ledger: Whether budgets are kept. Off, everything is paid for and nothing is booked.
        succession: Whether the successor answers for a model its vendor has retired.
        models: Changes to the model table, by model id.
        prices: Changes to the price table, by model id.
        providers: Providers of models besides ``anthropic``, by name.
        master_key: What secrets in the database are encrypted with. Left out of ``repr``.
        log_level: The least important level that is logged.
    """

    host: str = "127.0.0.1"
    port: int = 8787
    db: Path | PostgresUrl = field(default_factory=default_db_path)
    upstream_url: str | None = None
    anthropic_api_key: str | None = field(default=None, repr=False)
    allow_remote: bool = False
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tool_timeout_seconds: float = 300.0
    turn_timeout_seconds: float = 3600.0
    idle_timeout_seconds: float = 3600.0
    max_frame_bytes: int = 16 * _MIB
    stall_timeout_seconds: float = 600.0
    drain_seconds: float = 30.0
    max_sessions: int = 10_000
    max_running_turns: int = 2_000
    max_sessions_per_user: int = 100
    max_queued_inputs: int = 16
    model_attempts: int = 4
    allowed_betas: tuple[str, ...] = (
        "fine-grained-tool-streaming-2025-05-14",
        "interleaved-thinking-2025-05-14",
    )
    min_output_tokens: int = 64
    ledger: bool = True
    session_log: bool = True
    reconnect_grace_seconds: float = 60.0
    evict_after_seconds: float = 300.0
    succession: bool = True
    models: Mapping[str, Any] = field(default_factory=dict)
    prices: Mapping[str, Any] = field(default_factory=dict)
    providers: Mapping[str, Any] = field(default_factory=dict, repr=False)
    master_key: str | None = field(default=None, repr=False)
    log_level: str = "info"

    @classmethod
    def load(
        cls,
        arguments: Mapping[str, Any] | None = None,
        *,
        config: Path | str | None = None,
        environ: Mapping[str, str] | None = None,
        directory: Path | None = None,
    ) -> Settings:
        """Read the settings from wherever they are given.

        Args:
            arguments: Settings given explicitly, by field name; ``None`` means not given.
            config: The file to read. Without it ``CHUCKY_CONFIG`` names the file, and without
                that ``chucky.toml`` in ``directory`` is read if it is there.
            environ: The environment; that of the process by default.
            directory: Where relative paths of arguments and environment begin; the current
                directory by default. Those in the file begin where the file is.

        Raises:
            ValidationError: Something is wrong. The message has one line for each fault.
        """
        environ = os.environ if environ is None else environ
        directory = Path.cwd() if directory is None else directory
        faults: list[str] = []
        values: dict[str, Any] = {}
        wrong: set[str] = set()
        for given in (
            *_from_file(config or environ.get("CHUCKY_CONFIG") or None, directory, faults),
            *_from_environment(environ, directory, faults),
            *_from_arguments(arguments or {}, directory),
        ):
            try:
                values[given.name] = _READERS[given.name](given)
            except ValueError as error:
                wrong.add(given.name)
                faults.append(f"{given.label} {error}.")
        faults.extend(_contradictions(values, wrong))
        if faults:
            raise ValidationError(_as_one_message(faults))
        if "db" not in values:
            values["db"] = default_db_path(environ)
        return cls(**values)


@dataclass(frozen=True)
class _Given:
    """One value as it was given.

    Attributes:
        name: The setting.
        value: The value: text from the environment, otherwise also a TOML or Python type.
        label: How a fault names it.
        directory: Where a relative path begins.
        is_text: Whether numbers and truth values come as text.
    """

    name: str
    value: Any
    label: str
    directory: Path
    is_text: bool = False


_Reader: TypeAlias = Callable[[_Given], Any]


def _from_file(config: Path | str | None, directory: Path, faults: list[str]) -> list[_Given]:
    path = directory / (Path(config).expanduser() if config else DEFAULT_FILE_NAME)
    if config is None and not path.exists():
        return []
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        faults.append(f"There is no settings file {str(path)!r}; check --config or CHUCKY_CONFIG.")
    except OSError as error:
        faults.append(f"The settings file {str(path)!r} cannot be read ({error.strerror}).")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        # The position is told, the text is not: it may be next to a secret.
        faults.append(f"The settings file {str(path)!r} is not TOML ({error}).")
    else:
        given = []
        for name, value in table.items():
            if name in _READERS:
                label = f"{name} in {str(path)!r}"
                given.append(_Given(name, value, label, path.parent))
            else:
                faults.append(_unknown(f"setting {name!r} in {str(path)!r}", name, _READERS))
        return given
    return []


def _from_environment(
    environ: Mapping[str, str], directory: Path, faults: list[str]
) -> Iterator[_Given]:
    names = {f"CHUCKY_{name.upper()}": name for name in _READERS if name not in _TABLES}
    tables = {f"CHUCKY_{name.upper()}" for name in _TABLES}
    # An empty variable counts as not set, as in most shells and compose files.
    key = environ.get("ANTHROPIC_API_KEY")
    if key and not environ.get("CHUCKY_ANTHROPIC_API_KEY"):
        yield _Given("anthropic_api_key", key, "ANTHROPIC_API_KEY", directory, is_text=True)
    for variable in sorted(environ):
        if not variable.startswith("CHUCKY_") or variable in _OTHER_NAMES:
            continue
        if variable in tables:
            faults.append(
                f"{variable} is a table, so only the file {DEFAULT_FILE_NAME} can set it."
            )
        elif variable not in names:
            known = {*names, *_OTHER_NAMES}
            faults.append(_unknown(f"environment variable {variable}", variable, known))
        elif environ[variable]:
            yield _Given(names[variable], environ[variable], variable, directory, is_text=True)


def _from_arguments(arguments: Mapping[str, Any], directory: Path) -> Iterator[_Given]:
    for name, value in arguments.items():
        if name not in _READERS:
            raise TypeError(f"there is no setting {name!r}")
        if value is not None:
            yield _Given(name, value, f"--{name.replace('_', '-')}", directory)


def _unknown(what: str, name: str, known: Mapping[str, Any] | set[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    hint = f"did you mean {close[0]}?" if close else "docs/settings.md lists those there are."
    return f"There is no {what}; {hint}"


def _as_one_message(faults: list[str]) -> str:
    if len(faults) == 1:
        return faults[0]
    return "\n".join([f"{len(faults)} settings are wrong.", *faults])


def _contradictions(values: Mapping[str, Any], wrong: set[str]) -> Iterator[str]:
    """Find what is wrong only in combination, among the settings that are right alone."""
    if not wrong.isdisjoint({"host", "allow_remote", "tls_cert", "tls_key"}):
        return
    cert, key = values.get("tls_cert"), values.get("tls_key")
    if (cert is None) != (key is None):
        absent, present = ("tls_cert", "tls_key") if cert is None else ("tls_key", "tls_cert")
        yield f"{present} is given without {absent}; TLS needs both."
    host = values.get("host")
    if host and not is_loopback(host) and not values.get("allow_remote") and cert is None:
        yield (
            f"host {host!r} can be reached from other machines, and tokens would cross the "
            f"network in the clear; set tls_cert and tls_key, or allow_remote (--allow-remote) "
            f"when a proxy in front of the server speaks TLS."
        )


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach a server that listens on ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _read_text(given: _Given) -> str:
    if not isinstance(given.value, str):
        raise ValueError(f"must be text, not {given.value!r}")
    return given.value.strip()


def _read_host(given: _Given) -> str:
    host = _read_text(given).strip("[]")
    if not host or not all(char.isalnum() or char in ".:-_%" for char in host):
        raise ValueError(f"must be an address or host name alone, like 127.0.0.1, not {host!r}")
    return host


def _read_secret(given: _Given) -> str:
    # The value is never part of the fault.
    value = given.value.strip() if isinstance(given.value, str) else ""
    if not value or not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError("must be a key in one piece, without spaces")
    return value


def _read_master_key(given: _Given) -> str:
    # The value is never part of the fault.
    value = given.value.strip() if isinstance(given.value, str) else ""
    if not re.fullmatch("[0-9a-fA-F]{64}", value):
        raise ValueError("must be 64 hexadecimal digits; `openssl rand -hex 32` makes some")
    return value


def _read_path(given: _Given) -> Path:
    value = given.value
    if not isinstance(value, str | Path) or not str(value).strip() or "\0" in str(value):
        raise ValueError(f"must be a path, not {value!r}")
    try:
        return given.directory.absolute() / Path(value).expanduser()
    except RuntimeError as error:
        raise ValueError(f"names a home directory that is not there: {str(value)!r}") from error


def _read_database(given: _Given) -> Path | PostgresUrl:
    # No address is part of a fault: there may be a password in it.
    value = given.value
    if isinstance(value, PostgresUrl):
        return value
    if isinstance(value, str) and is_postgres_url(value.strip()):
        return PostgresUrl(value.strip())
    if isinstance(value, str) and "://" in value:
        raise ValueError("must be a file, or an address that begins with postgresql://")
    return _read_path(given)


def _read_file(given: _Given) -> Path:
    path = _read_path(given)
    if not os.path.isfile(path):  # noqa: PTH113 (Path.is_file raises where this says no)
        raise ValueError(f"must name a file, and {str(path)!r} is none")
    return path


def _read_url(given: _Given) -> str:
    problem = "must be an address like https://host/path, without user, query or fragment"
    try:
        url = urlsplit(_read_text(given))
        if url.scheme not in ("http", "https") or not url.hostname or url.port == 0:
            raise ValueError(problem)
    except ValueError as error:
        raise ValueError(problem) from error
    if url.username or url.password or url.query or url.fragment:
        raise ValueError(problem)
    return url.geturl().rstrip("/")


def _read_flag(given: _Given) -> bool:
    value = given.value
    if isinstance(value, bool):
        return value
    if given.is_text and value.strip().lower() in _WORDS_FOR_TRUE | _WORDS_FOR_FALSE:
        return value.strip().lower() in _WORDS_FOR_TRUE
    raise ValueError(f"must be true or false, not {value!r}")


def _read_names(given: _Given) -> tuple[str, ...]:
    value = given.value
    if isinstance(value, str):
        value = [name.strip() for name in value.split(",") if name.strip()]
    if not isinstance(value, list | tuple) or not all(
        isinstance(name, str) and name for name in value
    ):
        raise ValueError(f"must be a list of names, not {value!r}")
    return tuple(value)


def _read_log_level(given: _Given) -> str:
    level = _read_text(given).lower()
    if level not in _LOG_LEVELS:
        raise ValueError(f"must be one of {', '.join(_LOG_LEVELS)}, not {level!r}")
    return level


def _read_table(given: _Given) -> Mapping[str, Any]:
    if not isinstance(given.value, Mapping):
        raise ValueError(f'must be tables by name, like [{given.name}."…"]')
    for name, entry in given.value.items():
        if not isinstance(entry, Mapping):
            # Not the entry: it may be a secret in the wrong place.
            raise ValueError(f"must hold a table for each name, and {name!r} is none")
    return dict(given.value)


def _whole(least: int, most: int) -> _Reader:
    def read(given: _Given) -> int:
        value = given.value
        if given.is_text:
            try:
                value = int(value)
            except ValueError as error:
                raise ValueError(f"must be a whole number, not {value!r}") from error
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"must be a whole number, not {value!r}")
        if not least <= value <= most:
            raise ValueError(f"must be from {least:,} to {most:,}, not {value:,}")
        return value

    return read


def _seconds(least: float, most: float) -> _Reader:
    def read(given: _Given) -> float:
        value = given.value
        if given.is_text:
            try:
                value = float(value)
            except ValueError as error:
                raise ValueError(f"must be a number of seconds, not {value!r}") from error
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"must be a number of seconds, not {value!r}")
        if not math.isfinite(value) or not least <= value <= most:
            raise ValueError(f"must be from {least:,g} to {most:,g} seconds, not {value:,}")
        return float(value)

    return read


_READERS: Final[Mapping[str, _Reader]] = {
    "host": _read_host,
    "port": _whole(0, 65_535),
    "db": _read_database,
    "upstream_url": _read_url,
    "anthropic_api_key": _read_secret,
    "allow_remote": _read_flag,
    "tls_cert": _read_file,
    "tls_key": _read_file,
    "tool_timeout_seconds": _seconds(0.1, _DAY_SECONDS),
    "turn_timeout_seconds": _seconds(0.1, 7 * _DAY_SECONDS),
    "idle_timeout_seconds": _seconds(0.1, 7 * _DAY_SECONDS),
    "max_frame_bytes": _whole(1024, 256 * _MIB),
    "stall_timeout_seconds": _seconds(0.1, 7 * _DAY_SECONDS),
    "drain_seconds": _seconds(0, 3_600),
    "max_sessions": _whole(1, 1_000_000),
    "max_running_turns": _whole(1, 1_000_000),
    "max_sessions_per_user": _whole(1, 100_000),
    "max_queued_inputs": _whole(1, 1_000),
    "model_attempts": _whole(1, 10),
    "allowed_betas": _read_names,
    "min_output_tokens": _whole(1, 4_096),
    "ledger": _read_flag,
    "session_log": _read_flag,
    "reconnect_grace_seconds": _seconds(0.1, 3_600),
    "evict_after_seconds": _seconds(0.1, 7 * _DAY_SECONDS),
    "succession": _read_flag,
    "models": _read_table,
    "prices": _read_table,
    "providers": _read_table,
    "master_key": _read_master_key,
    "log_level": _read_log_level,
}
_TABLES: Final = frozenset({"models", "prices", "providers"})
