-- A session has an account from its first model call on, and not only from its first budget on. So
-- nothing is ever added up by session, and the index for it is not needed.
INSERT INTO chucky.ledger_accounts (project_id, user_id, session_id, meter, settled, reserved)
SELECT project_id, user_id, session_id, meter, sum(settled), sum(reserved)
FROM (
    SELECT project_id, user_id, session_id, meter, amount AS settled, 0 AS reserved
    FROM chucky.ledger_entries
    UNION ALL
    SELECT project_id, user_id, session_id, meter, 0, amount FROM chucky.ledger_reservations
) AS moved
WHERE session_id <> '' AND meter = 'ai'
GROUP BY project_id, user_id, session_id, meter
ON CONFLICT DO NOTHING;

DROP INDEX chucky.ledger_entries_by_session;

-- Only the turns that run are looked for by user, and counted by when they began.
DROP INDEX chucky.ledger_reservations_by_user;
CREATE INDEX ledger_running_turns ON chucky.ledger_reservations (project_id, user_id, granted_ms)
WHERE meter = 'compute';
