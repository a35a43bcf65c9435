-- How a server sees that projects were changed, by whomever, without reading them again. Triggers
-- count, so that nobody who writes has to remember it.
CREATE TABLE project_changes (counter INTEGER NOT NULL) STRICT;
INSERT INTO project_changes (counter) VALUES (1);

CREATE TRIGGER projects_insert AFTER INSERT ON projects
BEGIN UPDATE project_changes SET counter = counter + 1; END;
CREATE TRIGGER projects_update AFTER UPDATE ON projects
BEGIN UPDATE project_changes SET counter = counter + 1; END;
CREATE TRIGGER projects_delete AFTER DELETE ON projects
BEGIN UPDATE project_changes SET counter = counter + 1; END;

CREATE TRIGGER project_keys_insert AFTER INSERT ON project_keys
BEGIN UPDATE project_changes SET counter = counter + 1; END;
CREATE TRIGGER project_keys_update AFTER UPDATE ON project_keys
BEGIN UPDATE project_changes SET counter = counter + 1; END;
CREATE TRIGGER project_keys_delete AFTER DELETE ON project_keys
BEGIN UPDATE project_changes SET counter = counter + 1; END;

CREATE TRIGGER provider_keys_insert AFTER INSERT ON provider_keys
BEGIN UPDATE project_changes SET counter = counter + 1; END;
CREATE TRIGGER provider_keys_update AFTER UPDATE ON provider_keys
BEGIN UPDATE project_changes SET counter = counter + 1; END;
CREATE TRIGGER provider_keys_delete AFTER DELETE ON provider_keys
BEGIN UPDATE project_changes SET counter = counter + 1; END;
