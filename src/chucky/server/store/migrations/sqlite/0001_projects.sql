-- Projects and the keys that sign their tokens.

-- "Chck": tells our databases from those of other programs.
PRAGMA application_id = 1130914667;

CREATE TABLE schema_migrations (
    version INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    applied_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE projects (
    project_id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    created_ms INTEGER NOT NULL,
    disabled_ms INTEGER
) STRICT, WITHOUT ROWID;

CREATE TABLE project_keys (
    key_number INTEGER PRIMARY KEY,
    key_id TEXT NOT NULL UNIQUE,
    project_id TEXT NOT NULL REFERENCES projects (project_id),
    secret TEXT UNIQUE,
    created_ms INTEGER NOT NULL,
    revoked_ms INTEGER,
    CHECK ((secret IS NULL) = (revoked_ms IS NOT NULL))
) STRICT;

CREATE INDEX live_project_keys ON project_keys (project_id) WHERE revoked_ms IS NULL;
