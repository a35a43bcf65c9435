-- What the operator decided for all sessions of a project: JSON, read by chucky.server.policy.
ALTER TABLE projects ADD COLUMN policy TEXT;
