-- Servers that share this database, and until when each is taken to live: they renew it.
CREATE TABLE servers (
    server_id TEXT NOT NULL PRIMARY KEY,
    lease_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Which server writes a session, and how often that has changed: who has another number is not
-- that server any more. And the connection by which another server follows a turn.
ALTER TABLE sessions ADD COLUMN owner TEXT NOT NULL DEFAULT '';
ALTER TABLE sessions ADD COLUMN epoch INTEGER NOT NULL DEFAULT 1;
ALTER TABLE sessions ADD COLUMN seat TEXT NOT NULL DEFAULT '';

-- What servers tell each other about sessions.
CREATE TABLE session_mail (
    mail_id INTEGER PRIMARY KEY,
    server_id TEXT NOT NULL REFERENCES servers (server_id) ON DELETE CASCADE,
    session_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    body TEXT NOT NULL
) STRICT;

CREATE INDEX session_mail_by_server ON session_mail (server_id, mail_id);
