-- The whole schema as it stands: what all of migrations/postgres/ together make of an empty database
-- (a test holds the two equal). Nothing runs this file; read it to know what is stored.
-- Every time is in milliseconds since 1970, UTC. Text that is looked up is compared byte by byte.
-- All of it is in a schema of its own, so that the database may also hold other things.
CREATE SCHEMA chucky;

-- Which migrations have been applied.
CREATE TABLE chucky.schema_migrations (
    version BIGINT PRIMARY KEY,
    name TEXT NOT NULL,
    applied_ms BIGINT NOT NULL
);

CREATE TABLE chucky.projects (
    project_id TEXT COLLATE "C" NOT NULL PRIMARY KEY,  -- 32 lower-case letters and digits
    name TEXT COLLATE "C" NOT NULL UNIQUE,
    created_ms BIGINT NOT NULL,
    disabled_ms BIGINT,                    -- since when; NULL while enabled
    policy TEXT                            -- JSON, see chucky.server.policy; NULL allows all
);

-- A revoked key stays, to be named in an audit; its secret does not.
CREATE TABLE chucky.project_keys (
    key_number BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,  -- in the order of creation
    key_id TEXT COLLATE "C" NOT NULL UNIQUE,
    project_id TEXT COLLATE "C" NOT NULL REFERENCES chucky.projects (project_id),
    secret TEXT COLLATE "C" UNIQUE,
    created_ms BIGINT NOT NULL,
    revoked_ms BIGINT,                     -- NULL while live
    CHECK ((secret IS NULL) = (revoked_ms IS NOT NULL))
);

CREATE INDEX live_project_keys ON chucky.project_keys (project_id) WHERE revoked_ms IS NULL;

-- Keys that projects bring along for providers of models. With a master key they, and the keys of
-- projects, are sealed: store/cipher.py.
CREATE TABLE chucky.provider_keys (
    project_id TEXT COLLATE "C" NOT NULL REFERENCES chucky.projects (project_id),
    provider TEXT COLLATE "C" NOT NULL,
    secret TEXT NOT NULL,
    created_ms BIGINT NOT NULL,
    PRIMARY KEY (project_id, provider)
);

-- A number that moves with every change of the tables above, so that a server sees it without
-- reading them again. Triggers count: nobody who writes has to remember it.
CREATE TABLE chucky.project_changes (counter BIGINT NOT NULL);
INSERT INTO chucky.project_changes (counter) VALUES (1);

CREATE FUNCTION chucky.count_project_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE chucky.project_changes SET counter = counter + 1;
    RETURN NULL;
END $$;

CREATE TRIGGER projects_change AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON chucky.projects
EXECUTE FUNCTION chucky.count_project_change();
CREATE TRIGGER project_keys_change AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON chucky.project_keys
EXECUTE FUNCTION chucky.count_project_change();
CREATE TRIGGER provider_keys_change AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON chucky.provider_keys
EXECUTE FUNCTION chucky.count_project_change();

-- The ledger: who may spend how much, what was spent, and what is being spent now. Amounts are in
-- nano-dollars (meter ai) and milliseconds (meter compute).

-- Where the windows of a kind begin, for a user, or with user_id '' for a project.
CREATE TABLE chucky.ledger_anchors (
    project_id TEXT COLLATE "C" NOT NULL,
    user_id TEXT COLLATE "C" NOT NULL,
    window_kind TEXT COLLATE "C" NOT NULL,
    anchor_ms BIGINT NOT NULL,
    PRIMARY KEY (project_id, user_id, window_kind)
);

-- An account of a user has no session, one of a project has no user either. Whoever books holds the
-- rows of the accounts concerned. They are written all the time, so pages keep room for that.
CREATE TABLE chucky.ledger_accounts (
    account_id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    project_id TEXT COLLATE "C" NOT NULL,
    user_id TEXT COLLATE "C" NOT NULL,
    session_id TEXT COLLATE "C" NOT NULL,
    meter TEXT COLLATE "C" NOT NULL CHECK (meter IN ('ai', 'compute')),
    settled BIGINT NOT NULL,
    reserved BIGINT NOT NULL CHECK (reserved >= 0),
    granted_limit BIGINT,
    granted_start_ms BIGINT,
    granted_end_ms BIGINT,
    UNIQUE (project_id, user_id, session_id, meter)
) WITH (fillfactor = 50);

CREATE TABLE chucky.ledger_windows (
    account_id BIGINT NOT NULL REFERENCES chucky.ledger_accounts (account_id),
    window_kind TEXT COLLATE "C" NOT NULL,
    start_ms BIGINT NOT NULL,
    end_ms BIGINT NOT NULL,
    spent BIGINT NOT NULL,
    PRIMARY KEY (account_id, window_kind)
) WITH (fillfactor = 50);

CREATE TABLE chucky.ledger_prices (
    price_id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    price TEXT COLLATE "C" NOT NULL UNIQUE
);

CREATE TABLE chucky.ledger_reservations (
    reservation_id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    project_id TEXT COLLATE "C" NOT NULL,
    user_id TEXT COLLATE "C" NOT NULL,
    session_id TEXT COLLATE "C" NOT NULL,
    turn_id TEXT COLLATE "C" NOT NULL,
    meter TEXT COLLATE "C" NOT NULL CHECK (meter IN ('ai', 'compute')),
    amount BIGINT NOT NULL CHECK (amount >= 0),
    units BIGINT NOT NULL,
    checkpoint BIGINT NOT NULL CHECK (checkpoint >= 0),
    input_tokens BIGINT NOT NULL,
    output_tokens BIGINT NOT NULL,
    cache_write_5m_tokens BIGINT NOT NULL,
    cache_write_1h_tokens BIGINT NOT NULL,
    cache_read_tokens BIGINT NOT NULL,
    model TEXT COLLATE "C" NOT NULL,
    price_id BIGINT REFERENCES chucky.ledger_prices (price_id),
    granted_ms BIGINT NOT NULL,
    expires_ms BIGINT NOT NULL,
    owner TEXT COLLATE "C" NOT NULL
);

CREATE INDEX ledger_running_turns ON chucky.ledger_reservations (project_id, user_id, granted_ms)
WHERE meter = 'compute';

CREATE TABLE chucky.ledger_entries (
    entry_id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    entry_key TEXT COLLATE "C" NOT NULL UNIQUE,
    kind TEXT COLLATE "C" NOT NULL
        CHECK (kind IN ('settle', 'void', 'expire', 'late', 'credit', 'refund')),
    project_id TEXT COLLATE "C" NOT NULL,
    user_id TEXT COLLATE "C" NOT NULL,
    session_id TEXT COLLATE "C" NOT NULL,
    turn_id TEXT COLLATE "C" NOT NULL,
    meter TEXT COLLATE "C" NOT NULL CHECK (meter IN ('ai', 'compute')),
    amount BIGINT NOT NULL,
    reserved BIGINT NOT NULL,
    excess BIGINT NOT NULL,
    is_estimated BOOLEAN NOT NULL,
    started_ms BIGINT NOT NULL,
    at_ms BIGINT NOT NULL,
    model TEXT COLLATE "C" NOT NULL,
    price_id BIGINT REFERENCES chucky.ledger_prices (price_id),
    input_tokens BIGINT NOT NULL,
    output_tokens BIGINT NOT NULL,
    cache_write_5m_tokens BIGINT NOT NULL,
    cache_write_1h_tokens BIGINT NOT NULL,
    cache_read_tokens BIGINT NOT NULL,
    unpriced TEXT NOT NULL,
    refers_to TEXT COLLATE "C" NOT NULL,
    note TEXT NOT NULL
);

CREATE INDEX ledger_entries_by_user
ON chucky.ledger_entries (project_id, user_id, meter, at_ms);
CREATE INDEX ledger_entries_by_project ON chucky.ledger_entries (project_id, meter, at_ms);
CREATE INDEX ledger_refunds ON chucky.ledger_entries (refers_to) WHERE refers_to <> '';

-- What is booked stays as it was booked.
CREATE FUNCTION chucky.refuse_change_of_entries() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'ledger entries are never changed or deleted';
END $$;

CREATE TRIGGER ledger_entries_stay BEFORE UPDATE OR DELETE OR TRUNCATE ON chucky.ledger_entries
EXECUTE FUNCTION chucky.refuse_change_of_entries();

-- Servers that share this database, and until when each is taken to live: they renew it.
CREATE TABLE chucky.servers (
    server_id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    lease_ms BIGINT NOT NULL
);

-- Sessions, and what happened in them: the events are the truth, the row sums them up. A session
-- is written by its owner alone, as long as the epoch is that owner's.
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
    turn_form TEXT COLLATE "C" NOT NULL,
    owner TEXT COLLATE "C" NOT NULL DEFAULT '',   -- the server that writes it
    epoch BIGINT NOT NULL DEFAULT 1,             -- how often that has changed
    seat TEXT COLLATE "C" NOT NULL DEFAULT ''     -- the connection by which another follows it
);

CREATE INDEX sessions_by_user ON chucky.sessions (project_id, user_id, active_ms);
CREATE INDEX sessions_by_activity ON chucky.sessions (project_id, active_ms);
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

-- What servers tell each other about sessions.
CREATE TABLE chucky.session_mail (
    mail_id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    server_id TEXT COLLATE "C" NOT NULL
        REFERENCES chucky.servers (server_id) ON DELETE CASCADE,
    session_id TEXT COLLATE "C" NOT NULL,
    kind TEXT COLLATE "C" NOT NULL,
    body TEXT NOT NULL
);

CREATE INDEX session_mail_by_server ON chucky.session_mail (server_id, mail_id);
