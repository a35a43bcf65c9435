-- Servers that share this database, and until when each is taken to live: they renew it.
CREATE TABLE chucky.servers (
    server_id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    lease_ms BIGINT NOT NULL
);

-- Which server writes a session, and how often that has changed: who has another number is not
-- that server any more. And the connection by which another server follows a turn.
ALTER TABLE chucky.sessions ADD COLUMN owner TEXT COLLATE "C" NOT NULL DEFAULT '';
ALTER TABLE chucky.sessions ADD COLUMN epoch BIGINT NOT NULL DEFAULT 1;
ALTER TABLE chucky.sessions ADD COLUMN seat TEXT COLLATE "C" NOT NULL DEFAULT '';

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
