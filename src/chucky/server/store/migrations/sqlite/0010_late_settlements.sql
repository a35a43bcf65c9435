-- What is settled after its lease had ended is an entry of a kind of its own. SQLite cannot change a
-- condition of a table, so that entries are copied into one that has the new condition. Their
-- numbers rise without AUTOINCREMENT too, which writes one more page with each commit: no entry is
-- ever deleted.
DROP TRIGGER ledger_entries_stay;
DROP TRIGGER ledger_entries_remain;
DROP INDEX ledger_entries_by_user;
DROP INDEX ledger_entries_by_project;
DROP INDEX ledger_entries_by_session;
DROP INDEX ledger_refunds;
ALTER TABLE ledger_entries RENAME TO ledger_entries_before;

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

INSERT INTO ledger_entries SELECT * FROM ledger_entries_before ORDER BY entry_id;
DROP TABLE ledger_entries_before;

-- By time before meter: what a turn costs in either lies on one page then.
CREATE INDEX ledger_entries_by_user ON ledger_entries (project_id, user_id, at_ms, meter);
CREATE INDEX ledger_entries_by_project ON ledger_entries (project_id, at_ms, meter);
CREATE INDEX ledger_entries_by_session ON ledger_entries (session_id, meter);
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
