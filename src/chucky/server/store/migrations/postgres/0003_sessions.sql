-- Sessions, and what happened in them: the events are the truth, the row sums them up.
CREATE TABLE chucky.sessions (
    session_id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    project_id TEXT COLLATE "C" NOT NULL,
    user_id TEXT COLLATE "C" NOT NULL,
    forked_from TEXT COLLATE "C" NOT NULL,
    model TEXT COLLATE "C" NOT NULL,
    created_ms BIGINT NOT NULL,
    active_ms BIGINT NOT NULL,
    last_seq BIGINT NOT NULL,
    turns BIGINT NOT NULL,
    calls BIGINT NOT NULL,
    spent_nanos BIGINT NOT NULL,
    turn_id TEXT COLLATE "C" NOT NULL,
    turn_form TEXT COLLATE "C" NOT NULL
);

CREATE INDEX sessions_by_user ON chucky.sessions (project_id, user_id, active_ms);
CREATE INDEX running_sessions ON chucky.sessions (turn_id) WHERE turn_id <> '';

CREATE TABLE chucky.session_events (
    session_id TEXT COLLATE "C" NOT NULL REFERENCES chucky.sessions (session_id),
    seq BIGINT NOT NULL,
    kind TEXT COLLATE "C" NOT NULL CHECK (kind IN ('input', 'message', 'context')),
    turn_id TEXT COLLATE "C" NOT NULL,
    at_ms BIGINT NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (session_id, seq)
);
