-- What is settled after its lease had ended is an entry of a kind of its own.
ALTER TABLE chucky.ledger_entries DROP CONSTRAINT ledger_entries_kind_check;
ALTER TABLE chucky.ledger_entries ADD CONSTRAINT ledger_entries_kind_check
    CHECK (kind IN ('settle', 'void', 'expire', 'late', 'credit', 'refund'));
