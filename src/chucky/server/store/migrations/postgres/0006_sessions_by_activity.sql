-- The sessions of a project that are old, or its latest, are found without reading all the others.
CREATE INDEX sessions_by_activity ON chucky.sessions (project_id, active_ms);
