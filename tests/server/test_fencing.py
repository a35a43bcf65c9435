"""Who may write a session: its owner alone, and nobody who was it before."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from chucky import Chucky, Message, Session
from chucky.server.ledger.accounts import Holder
from chucky.server.ledger.booking import book
from chucky.server.ledger.operations import Reserve, Void
from chucky.server.ledger.wishes import Wish
from chucky.server.sessions.log import Event, Progress, SessionRecord
from chucky.server.sessions.mail import Mail
from chucky.server.store import postgres_database, session_rows, sqlite_file
from chucky.server.store.migration import migrations
from chucky.server.store.opening import open_database, open_ledger
from chucky.server.store.session_rows import KeptSessions

if TYPE_CHECKING:
    from tests.server.conftest import Place, StartServer

FAR_MS = 2**50
SESSION = SessionRecord("s", "p", "u", owner="a")


@pytest.fixture
def rows(place: Place) -> Any:
    with closing(open_ledger(place.db, lambda: 1_000)) as opened:
        yield opened


@pytest.fixture
def kept(place: Place, rows: Any) -> Any:
    with closing(KeptSessions(open_database(place.db))) as opened:
        yield opened


def append(
    rows: Any, session: SessionRecord, seq: int, *, turn: str = "", event_of: str = ""
) -> bool:
    """Write an event; a turn may run after it."""
    with rows.transaction() as transaction:
        progress = Progress(turn, "flat" if turn else "")
        event = Event(seq, "message", event_of or turn or "t", "{}")
        written = transaction.append_events(session, [event], progress)
    assert isinstance(written, bool)
    return written


def seize(rows: Any, by: str, to: str | None = None, seat: str = "") -> SessionRecord | None:
    with rows.transaction() as transaction:
        seized = transaction.seize("s", by, by if to is None else to, seat)
    assert seized is None or isinstance(seized, SessionRecord)
    return seized


def enter(rows: Any, server_id: str, lease_ms: int, *, is_alone: bool = False) -> None:
    with rows.transaction() as transaction:
        transaction.enter(server_id, lease_ms, is_alone=is_alone)


# --- the log ------------------------------------------------------------------------------------


def test_who_was_the_owner_before_writes_nothing(rows: Any, kept: KeptSessions) -> None:
    assert append(rows, SESSION, 1)
    new = seize(rows, "b")
    assert new is not None
    assert (new.owner, new.epoch, new.last_seq) == ("b", 2, 1)

    assert not append(rows, SESSION, 2, turn="zombie")
    assert append(rows, new, 2, event_of="new")
    # Also not where the new owner has given the number to something else.
    assert not append(rows, SESSION, 2, event_of="zombie")
    assert [event.turn_id for event in kept.events("s")] == ["t", "new"]
    record = kept.session("s")
    assert record is not None
    assert record.turn_id == ""


def test_what_was_written_before_counts_as_written_whoever_has_the_session_now(rows: Any) -> None:
    assert append(rows, SESSION, 1)
    seize(rows, "b")
    assert append(rows, SESSION, 1)


def test_nobody_has_a_session_that_was_deleted(rows: Any, kept: KeptSessions) -> None:
    append(rows, SESSION, 1)
    kept.disown("s")
    assert append(rows, SESSION, 2)
    assert seize(rows, "b") is None
    assert len(kept.events("s")) == 1


# --- turns that are left ------------------------------------------------------------------------


def test_a_turn_is_left_when_the_leases_of_its_server_and_its_reservations_are_over(
    rows: Any, kept: KeptSessions
) -> None:
    enter(rows, "a", FAR_MS)
    append(rows, SESSION, 1, turn="running")
    assert kept.left_sessions("b") == []
    assert seize(rows, "b") is None

    with rows.transaction() as transaction:
        transaction.leave("a")
    holder = Holder("p", "u", "s", "running")
    reserve = Reserve("r", holder, "ai", Wish(10, 0, 0, 0, 0, 0), ())
    with rows.transaction() as transaction:
        book(transaction, [[reserve]], "a")
    assert kept.left_sessions("b") == []
    assert seize(rows, "b") is None

    with rows.transaction() as transaction:
        book(transaction, [[Void("r", holder, "ai")]], "a")
    assert kept.left_sessions("b") == ["s"]
    assert kept.left_sessions("a") == []  # its own it ends itself
    seized = seize(rows, "b")
    assert seized is not None
    assert (seized.owner, seized.epoch, seized.turn_id) == ("b", 2, "running")


def test_a_server_that_is_alone_leaves_no_other_alive(rows: Any, kept: KeptSessions) -> None:
    enter(rows, "a", FAR_MS)
    append(rows, SESSION, 1, turn="running")
    enter(rows, "b", FAR_MS)
    assert kept.left_sessions("b") == []
    enter(rows, "b", FAR_MS, is_alone=True)
    assert kept.left_sessions("b") == ["s"]


# --- seats and mail -----------------------------------------------------------------------------


def test_a_connection_that_follows_loses_its_seat_to_the_next_and_keeps_it_when_a_turn_is_ended(
    rows: Any, kept: KeptSessions
) -> None:
    append(rows, SESSION, 1)
    with rows.transaction() as transaction:
        assert transaction.take_seat("s", "first") == "a"
        assert transaction.take_seat("s", "second") == "a"
    assert seize(rows, "b", seat="first") is None
    assert seize(rows, "c", to="") is not None  # who ends a turn leaves the session to others
    record = kept.session("s")
    assert record is not None
    assert (record.owner, record.seat) == ("", "second")
    owned = seize(rows, "b", seat="second")
    assert owned is not None
    assert (owned.owner, owned.seat) == ("b", "")


def test_mail_is_for_servers_that_are_there(rows: Any, kept: KeptSessions) -> None:
    enter(rows, "a", FAR_MS)
    mails = [Mail.write("s", "answer", callId=str(number)) for number in range(3)]
    with rows.transaction() as transaction:
        for mail in mails:
            transaction.send_mail("a", mail)
        transaction.send_mail("gone", mails[0])
    found = kept.mail("a")
    assert [mail for _, mail in found] == mails
    assert kept.mail("gone") == []

    with rows.transaction() as transaction:
        transaction.delete_mail([found[1][0]])
    assert [mail for _, mail in kept.mail("a")] == [mails[0], mails[2]]
    with rows.transaction() as transaction:
        transaction.leave("a")
    assert kept.mail("a") == []


# --- databases of earlier versions --------------------------------------------------------------


def test_the_sessions_of_an_earlier_version_belong_to_nobody(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:
        for module in (sqlite_file, postgres_database):
            earlier.setattr(module, "migrations", _before_servers)
        open_database(place.db).close()
        place.execute(
            "INSERT INTO sessions VALUES ('s', 'p', 'u', '', 'm', 1, 1, 1, 0, 0, 0, 'left', 'flat')"
        )
    with closing(KeptSessions(open_database(place.db))) as kept:
        record = kept.session("s")
        assert record is not None
        assert (record.owner, record.epoch, record.seat) == ("", 1, "")
        assert kept.left_sessions("a") == ["s"]


def _before_servers(kind: str) -> Any:
    known = migrations(kind)
    [servers] = [each.version for each in known if each.name.endswith("_servers.sql")]
    return [each for each in known if each.version < servers]


# --- a server whose session was taken -----------------------------------------------------------


def _failing_twice() -> Callable[..., bool]:
    """Let the beginning of a turn be written a while after its first reservation."""
    append_events, fails = session_rows.append_events, [True, True]

    def append(*args: Any) -> bool:
        if fails:
            fails.pop()
            raise AssertionError("A fault of a test.")
        return append_events(*args)

    return append


async def ask(session: Session, text: str) -> list[Message]:
    await session.send(text)
    return [each async for each in session.stream()]


@pytest.mark.parametrize("is_late", [False, True])
async def test_a_turn_of_a_session_that_is_anothers_calls_no_model_and_holds_no_money(
    start_server: StartServer,
    start_provider: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_late: bool,
) -> None:
    async with (
        start_provider() as provider,
        start_server(upstream_url=provider.url) as server,
        Chucky(server.token(), server.url) as client,
    ):
        session = client.create_session()
        assert (await ask(session, "Hello"))[-1].subtype == "success"
        asked = len(provider.requests)
        with closing(sqlite3.connect(tmp_path / "chucky.db")) as connection, connection:
            connection.execute("UPDATE sessions SET owner = 'another', epoch = epoch + 1")
            [before] = connection.execute("SELECT count(*) FROM session_events").fetchall()
        if is_late:
            monkeypatch.setattr(session_rows, "append_events", _failing_twice())

        result = (await ask(session, "Hello again"))[-1]
        assert (result.error.code, result.error.reason) == ("SESSION_ERROR", "session_taken_over")
        assert len(provider.requests) == asked
        with closing(sqlite3.connect(tmp_path / "chucky.db")) as connection:
            [after] = connection.execute("SELECT count(*) FROM session_events").fetchall()
            held = connection.execute("SELECT count(*) FROM ledger_reservations").fetchone()
        assert after == before
        assert held == (0,)
