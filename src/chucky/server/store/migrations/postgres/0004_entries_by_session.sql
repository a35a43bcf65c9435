-- The account of a session is made from what was spent in it, which must not take longer the more
-- its user has spent.
CREATE INDEX ledger_entries_by_session ON chucky.ledger_entries (session_id, meter);
