-- A console proxy that somebody else runs has a host and no instance.
ALTER TABLE host ADD COLUMN proxy_port INTEGER; -- of a CPVM: where it serves browsers, as it says
ALTER TABLE host ADD COLUMN active_sessions INTEGER NOT NULL DEFAULT 0; -- of such a CPVM

-- The newest console session of an instance says the same.
ALTER TABLE instance DROP COLUMN proxy_id;
ALTER TABLE instance DROP COLUMN proxy_since;

-- In milliseconds from here on.
UPDATE template_store SET next_attempt = next_attempt * 1000;
