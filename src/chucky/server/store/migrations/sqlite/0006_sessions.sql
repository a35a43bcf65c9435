-- Sessions, and what happened in them: the events are the truth, the row sums them up.
CREATE TABLE sessions (
    session_id TEXT NOT NULL PRIMARY KEY,
    project_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    forked_from TEXT NOT NULL,
    model TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    active_ms INTEGER NOT NULL,
    last_seq INTEGER NOT NULL,
    turns INTEGER NOT NULL,
    calls INTEGER NOT NULL,
    spent_nanos INTEGER NOT NULL,
    turn_id TEXT NOT NULL,
    turn_form TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX sessions_by_user ON sessions (project_id, user_id, active_ms);
CREATE INDEX running_sessions ON sessions (turn_id) WHERE turn_id <> '';

CREATE TABLE session_events (
    session_id TEXT NOT NULL REFERENCES sessions (session_id),
    seq INTEGER NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('input', 'message', 'context')),
    turn_id TEXT NOT NULL,
    at_ms INTEGER NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (session_id, seq)
) STRICT, WITHOUT ROWID;
