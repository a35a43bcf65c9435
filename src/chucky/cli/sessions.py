"""``chucky sessions``: what is kept of conversations, for whoever runs the server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from chucky.cli.options import ConfigOption, DbOption, JsonOption, load_settings
from chucky.errors import ValidationError
from chucky.server.ledger.windows import iso_time
from chucky.server.model.pricing import nanos_to_dollars
from chucky.server.sessions.log import Event, SessionRecord
from chucky.server.store import KeptSessions, open_sessions, open_store

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Look at the sessions that are kept, and delete them, also while the server runs.",
)

_SessionArgument: TypeAlias = Annotated[
    str, typer.Argument(metavar="SESSION", help="Id of the session.", show_default=False)
]

# What one transaction deletes: a running server waits no longer than for this.
_EVENTS_AT_ONCE = 500
_LONGEST_SHOWN = 2_000


@contextmanager
def _opened(config: Path | None, db: str | None) -> Iterator[KeptSessions]:
    kept = open_sessions(load_settings(config, db=db), create=False)
    try:
        yield kept
    finally:
        kept.close()


@app.command("list")
def list_sessions(
    project: Annotated[
        str | None,
        typer.Option(
            "--project",
            metavar="PROJECT",
            help="Name or id of the project; `default` by default.",
            show_default=False,
        ),
    ] = None,
    user: Annotated[
        str | None,
        typer.Option("--user", metavar="ID", help="Only this user's.", show_default=False),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", min=1, help="How many at most.")
    ] = 50,
    as_json: JsonOption = False,
    db: DbOption = None,
    config: ConfigOption = None,
) -> None:
    """List the sessions of a project, the latest first."""
    settings = load_settings(config, db=db)
    store = open_store(settings, create=False)
    try:
        project_id = store.find_project(project or "default").project_id
    finally:
        store.close()
    with _opened(config, db) as kept:
        sessions = kept.sessions(project_id, user, limit)
    if as_json:
        typer.echo(json.dumps([_as_entry(session) for session in sessions]))
        return
    for session in sessions:
        typer.echo(_line(session))


@app.command()
def show(
    session: _SessionArgument,
    as_json: JsonOption = False,
    db: DbOption = None,
    config: ConfigOption = None,
) -> None:
    """Show a session: what is known of it, and what was said."""
    with _opened(config, db) as kept:
        found = _find(kept, session)
        events = kept.events(found.session_id)
    if as_json:
        typer.echo(json.dumps(_as_entry(found)))
        return
    typer.echo(_line(found))
    if found.forked_from:
        typer.echo(f"A copy of {found.forked_from}.")
    from chucky.cli.terminal import printable

    for event in events:
        for line in _said(event):
            typer.echo(printable(line))


@app.command()
def export(session: _SessionArgument, db: DbOption = None, config: ConfigOption = None) -> None:
    """Print every event of a session, one line of JSON each."""
    with _opened(config, db) as kept:
        events = kept.events(_find(kept, session).session_id)
    for event in events:
        head = json.dumps({"seq": event.seq, "kind": event.kind, "turnId": event.turn_id})
        typer.echo(f'{head[:-1]}, "body": {event.body}}}')


@app.command()
def delete(session: _SessionArgument, db: DbOption = None, config: ConfigOption = None) -> None:
    """Delete all that was said in a session; what it cost stays in the ledger.

    A session that is open goes on until it is closed, and nothing more of it is kept.
    """
    with _opened(config, db) as kept:
        found = _find(kept, session)
        kept.disown(found.session_id)
        while kept.sweep(_EVENTS_AT_ONCE):
            pass
    typer.echo(f"The session {found.session_id} is deleted.")


def _find(kept: KeptSessions, session_id: str) -> SessionRecord:
    found = kept.session(session_id)
    if found is None:
        raise ValidationError(
            f"There is no session {session_id[:64]!r}; `chucky sessions list` shows those there "
            "are."
        )
    return found


def _as_entry(session: SessionRecord) -> dict[str, Any]:
    return {
        "sessionId": session.session_id,
        "projectId": session.project_id,
        "userId": session.user_id,
        "forkedFrom": session.forked_from or None,
        "model": session.model,
        "createdAt": iso_time(session.created_ms),
        "lastActivityAt": iso_time(session.active_ms),
        "isRunning": bool(session.turn_id),
        "events": session.last_seq,
        "turns": session.turns,
        "numTurns": session.calls,
        "totalCostUsd": nanos_to_dollars(session.spent_nanos),
    }


def _line(session: SessionRecord) -> str:
    turns = "1 turn" if session.turns == 1 else f"{session.turns} turns"
    state = ", running" if session.turn_id else ""
    cost = f"${nanos_to_dollars(session.spent_nanos):.6f}"
    return (
        f"{session.session_id}  {iso_time(session.active_ms)}  {session.user_id}  "
        f"{session.model}  {turns}{state}  {cost}"
    )


def _said(event: Event) -> Iterator[str]:
    """What an event says to a person; nothing for the steps of the model's conversation."""
    if event.kind == "context":
        return
    body = json.loads(event.body)
    if event.kind == "input":
        yield from _blocks("user", body["content"])
    elif body["type"] in ("assistant", "user"):
        yield from _blocks(body["type"], body["message"]["content"])
    elif body["type"] == "result" and body["is_error"]:
        yield f"failed: {_shortened(body['result'])}"
    elif body.get("subtype") == "compact_boundary":
        yield "(the conversation so far was summarised)"


def _blocks(role: str, content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield f"{role}: {_shortened(content)}"
        return
    for block in content:
        match block:
            case {"type": "text", "text": text}:
                yield f"{role}: {_shortened(text)}"
            case {"type": "thinking", "thinking": text}:
                yield f"{role} thinks: {_shortened(text)}"
            case {"type": "tool_use", "name": name, "input": given}:
                yield f"{role} calls {name}: {_shortened(json.dumps(given, ensure_ascii=False))}"
            case {"type": "tool_result", "content": result}:
                yield from _blocks("tool", result)
            case _:
                yield f"{role}: ({block.get('type')})"


def _shortened(text: str) -> str:
    if len(text) <= _LONGEST_SHOWN:
        return text
    return f"{text[:_LONGEST_SHOWN]}… ({len(text)} characters)"
