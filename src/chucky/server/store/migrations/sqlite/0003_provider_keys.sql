-- Keys that projects bring along for providers of models; sealed where there is a master key.
CREATE TABLE provider_keys (
    project_id TEXT NOT NULL REFERENCES projects (project_id),
    provider TEXT NOT NULL,
    secret TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    PRIMARY KEY (project_id, provider)
) STRICT, WITHOUT ROWID;
