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

-- An account of a user has no session, one of a project has no user either.
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

CREATE INDEX ledger_reservations_by_user ON ledger_reservations (project_id, user_id, meter);

CREATE TABLE ledger_entries (
    entry_id INTEGER PRIMARY KEY AUTOINCREMENT,
    entry_key TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL CHECK (kind IN ('settle', 'void', 'expire', 'credit', 'refund')),
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

CREATE INDEX ledger_entries_by_user ON ledger_entries (project_id, user_id, meter, at_ms);
CREATE INDEX ledger_entries_by_project ON ledger_entries (project_id, meter, at_ms);
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
