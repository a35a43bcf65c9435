-- A session has an account from its first model call on, and not only from its first budget on. So
-- nothing is ever added up by session, and the index for it is not needed: each session had a page
-- of its own in it, which every commit wrote again.
INSERT INTO ledger_accounts (project_id, user_id, session_id, meter, settled, reserved)
SELECT project_id, user_id, session_id, meter, sum(settled), sum(reserved)
FROM (
    SELECT project_id, user_id, session_id, meter, amount AS settled, 0 AS reserved
    FROM ledger_entries
    UNION ALL
    SELECT project_id, user_id, session_id, meter, 0, amount FROM ledger_reservations
) AS moved
WHERE session_id <> '' AND meter = 'ai'
GROUP BY project_id, user_id, session_id, meter
ON CONFLICT DO NOTHING;

DROP INDEX ledger_entries_by_session;

-- Open reservations are as many as what runs in the one server of a file: few enough to be looked
-- through, by who counts the turns that begin in a minute.
DROP INDEX ledger_reservations_by_user;
