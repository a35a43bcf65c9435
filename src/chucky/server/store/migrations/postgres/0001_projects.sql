-- Projects, the keys that sign their tokens and those they bring along for providers of models.

CREATE TABLE chucky.schema_migrations (
    version BIGINT PRIMARY KEY,
    name TEXT NOT NULL,
    applied_ms BIGINT NOT NULL
);

CREATE TABLE chucky.projects (
    project_id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    name TEXT COLLATE "C" NOT NULL UNIQUE,
    created_ms BIGINT NOT NULL,
    disabled_ms BIGINT,
    policy TEXT
);

-- A revoked key stays, to be named in an audit; its secret does not.
CREATE TABLE chucky.project_keys (
    key_number BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    key_id TEXT COLLATE "C" NOT NULL UNIQUE,
    project_id TEXT COLLATE "C" NOT NULL REFERENCES chucky.projects (project_id),
    secret TEXT COLLATE "C" UNIQUE,
    created_ms BIGINT NOT NULL,
    revoked_ms BIGINT,
    CHECK ((secret IS NULL) = (revoked_ms IS NOT NULL))
);

CREATE INDEX live_project_keys ON chucky.project_keys (project_id) WHERE revoked_ms IS NULL;

-- Keys that projects bring along for providers of models. With a master key they, and the keys of
-- projects, are sealed: store/cipher.py.
CREATE TABLE chucky.provider_keys (
    project_id TEXT COLLATE "C" NOT NULL REFERENCES chucky.projects (project_id),
    provider TEXT COLLATE "C" NOT NULL,
    secret TEXT NOT NULL,
    created_ms BIGINT NOT NULL,
    PRIMARY KEY (project_id, provider)
);

-- A number that moves with every change of the tables above, so that a server sees it without
-- reading them again. Triggers count: nobody who writes has to remember it.
CREATE TABLE chucky.project_changes (counter BIGINT NOT NULL);
INSERT INTO chucky.project_changes (counter) VALUES (1);

CREATE FUNCTION chucky.count_project_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE chucky.project_changes SET counter = counter + 1;
    RETURN NULL;
END $$;

CREATE TRIGGER projects_change AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON chucky.projects
EXECUTE FUNCTION chucky.count_project_change();
CREATE TRIGGER project_keys_change AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON chucky.project_keys
EXECUTE FUNCTION chucky.count_project_change();
CREATE TRIGGER provider_keys_change AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON chucky.provider_keys
EXECUTE FUNCTION chucky.count_project_change();
