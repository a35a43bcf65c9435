-- The whole schema as it stands: what all of migrations/sqlite/ together make of an empty file
-- (a test holds the two equal). Nothing runs this file; read it to know what is stored.
-- Every time is in milliseconds since 1970, UTC.

-- "Chck": tells our databases from those of other programs.
PRAGMA application_id = 1130914667;

-- Which migrations have been applied.
CREATE TABLE schema_migrations (
    version INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    applied_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE projects (
    project_id TEXT NOT NULL PRIMARY KEY,  -- 32 lower-case letters and digits
    name TEXT NOT NULL UNIQUE,
    created_ms INTEGER NOT NULL,
    disabled_ms INTEGER,                   -- since when; NULL while enabled
    policy TEXT                            -- JSON, see chucky.server.policy; NULL allows all
) STRICT, WITHOUT ROWID;

-- A revoked key stays, to be named in an audit; its secret does not.
CREATE TABLE project_keys (
    key_number INTEGER PRIMARY KEY,        -- in the order of creation
    key_id TEXT NOT NULL UNIQUE,
    project_id TEXT NOT NULL REFERENCES projects (project_id),
    secret TEXT UNIQUE,
    created_ms INTEGER NOT NULL,
    revoked_ms INTEGER,                    -- NULL while live
    CHECK ((secret IS NULL) = (revoked_ms IS NOT NULL))
) STRICT;

CREATE INDEX live_project_keys ON project_keys (project_id) WHERE revoked_ms IS NULL;

-- Keys that projects bring along for providers of models. With a master key they, and the keys of
-- projects, are sealed: store/cipher.py.
CREATE TABLE provider_keys (
    project_id TEXT NOT NULL REFERENCES projects (project_id),
    provider TEXT NOT NULL,
    secret TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    PRIMARY KEY (project_id, provider)
) STRICT, WITHOUT ROWID;

-- A number that moves with every change of the tables above, so that a server sees it without
-- reading them again. Triggers count: nobody who writes has to remember it.
CREATE TABLE project_changes (counter INTEGER NOT NULL) STRICT;
INSERT INTO project_changes (counter) VALUES (1);

CREATE TRIGGER projects_insert AFTER INSERT ON projects
BEGIN UPDATE project_changes SET counter = counter + 1; END;
CREATE TRIGGER projects_update AFTER UPDATE ON projects
BEGIN UPDATE project_changes SET counter = counter + 1; END;
CREATE TRIGGER projects_delete AFTER DELETE ON projects
BEGIN UPDATE project_changes SET counter = counter + 1; END;

CREATE TRIGGER project_keys_insert AFTER INSERT ON project_keys
BEGIN UPDATE project_changes SET counter = counter + 1; END;
CREATE TRIGGER project_keys_update AFTER UPDATE ON project_keys
BEGIN UPDATE project_changes SET counter = counter + 1; END;
CREATE TRIGGER project_keys_delete AFTER DELETE ON project_keys
BEGIN UPDATE project_changes SET counter = counter + 1; END;

CREATE TRIGGER provider_keys_insert AFTER INSERT ON provider_keys
BEGIN UPDATE project_changes SET counter = counter + 1; END;
CREATE TRIGGER provider_keys_update AFTER UPDATE ON provider_keys
BEGIN UPDATE project_changes SET counter = counter + 1; END;
CREATE TRIGGER provider_keys_delete AFTER DELETE ON provider_keys
BEGIN UPDATE project_changes SET counter = counter + 1; END;

-- The ledger: who may spend how much, what was spent, and what is being spent now. Amounts are in
-- nano-dollars (meter ai) and milliseconds (meter compute).

-- Where the windows of a kind begin, for a user, or with user_id '' for a project.
CREATE TABLE ledger_anchors (
    project_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    window_kind TEXT NOT NULL,
    anchor_ms INTEGER NOT NULL,
    PRIMARY KEY (project_id, user_id, window_kind)
) STRICT, WITHOUT ROWID;

-- An account of a user has no session, one of a project has no user either. Those of users and of
-- sessions (of these only for ai) are there before anything is booked on them.
CREATE TABLE ledger_accounts (
    account_id INTEGER PRIMARY KEY,
    project_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    session_id TEXT NOT NULL,
    meter TEXT NOT NULL CHECK (meter IN ('ai', 'compute')),
    settled INTEGER NOT NULL,
    reserved INTEGER NOT NULL CHECK (reserved >= 0),
    granted_limit INTEGER,
    granted_start_ms INTEGER,
    granted_end_ms INTEGER,
    UNIQUE (project_id, user_id, session_id, meter)
) STRICT;

CREATE TABLE ledger_windows (
    account_id INTEGER NOT NULL REFERENCES ledger_accounts (account_id),
    window_kind TEXT NOT NULL,
    start_ms INTEGER NOT NULL,
    end_ms INTEGER NOT NULL,
    spent INTEGER NOT NULL,
    PRIMARY KEY (account_id, window_kind)
) STRICT, WITHOUT ROWID;

CREATE TABLE ledger_prices (
    price_id INTEGER PRIMARY KEY,
    price TEXT NOT NULL UNIQUE
) STRICT;

CREATE TABLE ledger_reservations (
    reservation_id TEXT NOT NULL PRIMARY KEY,
    project_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    session_id TEXT NOT NULL,
    turn_id TEXT NOT NULL,
    meter TEXT NOT NULL CHECK (meter IN ('ai', 'compute')),
    amount INTEGER NOT NULL CHECK (amount >= 0),
    units INTEGER NOT NULL,
    checkpoint INTEGER NOT NULL CHECK (checkpoint >= 0),
    input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    cache_write_5m_tokens INTEGER NOT NULL,
    cache_write_1h_tokens INTEGER NOT NULL,
    cache_read_tokens INTEGER NOT NULL,
    model TEXT NOT NULL,
    price_id INTEGER REFERENCES ledger_prices (price_id),
    granted_ms INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL,
    owner TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE ledger_entries (
    entry_id INTEGER PRIMARY KEY,
    entry_key TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL
        CHECK (kind IN ('settle', 'void', 'expire', 'late', 'credit', 'refund')),
    project_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    session_id TEXT NOT NULL,
    turn_id TEXT NOT NULL,
    meter TEXT NOT NULL CHECK (meter IN ('ai', 'compute')),
    amount INTEGER NOT NULL,
    reserved INTEGER NOT NULL,
    excess INTEGER NOT NULL,
    is_estimated INTEGER NOT NULL,
    started_ms INTEGER NOT NULL,
    at_ms INTEGER NOT NULL,
    model TEXT NOT NULL,
    price_id INTEGER REFERENCES ledger_prices (price_id),
    input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    cache_write_5m_tokens INTEGER NOT NULL,
    cache_write_1h_tokens INTEGER NOT NULL,
    cache_read_tokens INTEGER NOT NULL,
    unpriced TEXT NOT NULL,
    refers_to TEXT NOT NULL,
    note TEXT NOT NULL
) STRICT;

-- By time before meter: what a turn costs in either lies on one page then.
CREATE INDEX ledger_entries_by_user ON ledger_entries (project_id, user_id, at_ms, meter);
CREATE INDEX ledger_entries_by_project ON ledger_entries (project_id, at_ms, meter);
CREATE INDEX ledger_refunds ON ledger_entries (refers_to) WHERE refers_to <> '';

-- What is booked stays as it was booked.
CREATE TRIGGER ledger_entries_stay BEFORE UPDATE ON ledger_entries
BEGIN
    SELECT raise(ABORT, 'ledger entries are never changed');
END;
CREATE TRIGGER ledger_entries_remain BEFORE DELETE ON ledger_entries
BEGIN
    SELECT raise(ABORT, 'ledger entries are never deleted');
END;

-- Servers that share this database, and until when each is taken to live: they renew it.
CREATE TABLE servers (
    server_id TEXT NOT NULL PRIMARY KEY,
    lease_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Sessions, and what happened in them: the events are the truth, the row sums them up. A session
-- is written by its owner alone, as long as the epoch is that owner's.
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
    turn_form TEXT NOT NULL,
    owner TEXT NOT NULL DEFAULT '',         -- the server that writes it
    epoch INTEGER NOT NULL DEFAULT 1,       -- how often that has changed
    seat TEXT NOT NULL DEFAULT ''           -- the connection by which another server follows it
) STRICT, WITHOUT ROWID;

CREATE INDEX sessions_by_user ON sessions (project_id, user_id, active_ms);
CREATE INDEX sessions_by_activity ON sessions (project_id, active_ms);
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

-- What servers tell each other about sessions.
CREATE TABLE session_mail (
    mail_id INTEGER PRIMARY KEY,
    server_id TEXT NOT NULL REFERENCES servers (server_id) ON DELETE CASCADE,
    session_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    body TEXT NOT NULL
) STRICT;

CREATE INDEX session_mail_by_server ON session_mail (server_id, mail_id);
