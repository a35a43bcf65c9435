-- The whole schema as it stands: what all of migrations/ together make of an empty file
-- (a test holds the two equal). Nothing runs this file; read it to know what is stored.
-- Every time is in milliseconds since 1970, UTC.

-- "Chck": tells our databases from those of other programs.
PRAGMA application_id = 1130914667;

-- Which migrations have been applied.
CREATE TABLE schema_migrations (
    version INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    applied_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE projects (
    project_id TEXT NOT NULL PRIMARY KEY,  -- 32 lower-case letters and digits
    name TEXT NOT NULL UNIQUE,
    created_ms INTEGER NOT NULL,
    disabled_ms INTEGER,                   -- since when; NULL while enabled
    policy TEXT                            -- JSON, see chucky.server.policy; NULL allows all
) STRICT, WITHOUT ROWID;

-- A revoked key stays, to be named in an audit; its secret does not.
CREATE TABLE project_keys (
    key_number INTEGER PRIMARY KEY,        -- in the order of creation
    key_id TEXT NOT NULL UNIQUE,
    project_id TEXT NOT NULL REFERENCES projects (project_id),
    secret TEXT UNIQUE,
    created_ms INTEGER NOT NULL,
    revoked_ms INTEGER,                    -- NULL while live
    CHECK ((secret IS NULL) = (revoked_ms IS NOT NULL))
) STRICT;

CREATE INDEX live_project_keys ON project_keys (project_id) WHERE revoked_ms IS NULL;

-- Keys that projects bring along for providers of models. With a master key they, and the keys of
-- projects, are sealed: store/cipher.py.
CREATE TABLE provider_keys (
    project_id TEXT NOT NULL REFERENCES projects (project_id),
    provider TEXT NOT NULL,
    secret TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    PRIMARY KEY (project_id, provider)
) STRICT, WITHOUT ROWID;
