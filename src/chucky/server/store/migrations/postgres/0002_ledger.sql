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

CREATE INDEX ledger_reservations_by_user
ON chucky.ledger_reservations (project_id, user_id, meter);

CREATE TABLE chucky.ledger_entries (
    entry_id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    entry_key TEXT COLLATE "C" NOT NULL UNIQUE,
    kind TEXT COLLATE "C" NOT NULL
        CHECK (kind IN ('settle', 'void', 'expire', 'credit', 'refund')),
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
