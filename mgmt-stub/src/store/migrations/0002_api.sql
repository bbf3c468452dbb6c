-- What the HTTP API needs: who may call, what was done, what runs. Times are seconds since 1970-01-01 UTC unless named.

ALTER TABLE zone ADD COLUMN network_type TEXT NOT NULL DEFAULT 'Advanced';
ALTER TABLE zone ADD COLUMN allocation_state TEXT NOT NULL DEFAULT 'Enabled';
ALTER TABLE zone ADD COLUMN dns1 TEXT;
ALTER TABLE zone ADD COLUMN dns2 TEXT;
ALTER TABLE zone ADD COLUMN internal_dns1 TEXT;
ALTER TABLE zone ADD COLUMN internal_dns2 TEXT;
ALTER TABLE zone ADD COLUMN guest_cidr TEXT;
ALTER TABLE zone ADD COLUMN network_domain TEXT;
ALTER TABLE pod ADD COLUMN gateway TEXT;
ALTER TABLE pod ADD COLUMN netmask TEXT;
ALTER TABLE pod ADD COLUMN allocation_state TEXT NOT NULL DEFAULT 'Enabled';

CREATE TABLE domain (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    uuid      TEXT NOT NULL UNIQUE,
    parent_id INTEGER REFERENCES domain (id),
    name      TEXT NOT NULL,
    path      TEXT NOT NULL UNIQUE, -- "/" for ROOT, then "/name/…"
    created   INTEGER NOT NULL
) STRICT;

CREATE TABLE account (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    uuid      TEXT NOT NULL UNIQUE,
    domain_id INTEGER NOT NULL REFERENCES domain (id),
    name      TEXT NOT NULL,
    type      INTEGER NOT NULL, -- 0 user, 1 root administrator, 2 domain administrator
    created   INTEGER NOT NULL,
    UNIQUE (domain_id, name)
) STRICT;

CREATE TABLE user (
    id                       INTEGER PRIMARY KEY AUTOINCREMENT,
    uuid                     TEXT NOT NULL UNIQUE,
    account_id               INTEGER NOT NULL REFERENCES account (id),
    username                 TEXT NOT NULL,
    first_name               TEXT NOT NULL,
    last_name                TEXT NOT NULL,
    email                    TEXT,
    timezone                 TEXT,
    password_hash            TEXT,             -- "pbkdf2-sha512$<rounds>$<salt>$<hash>"; none: nobody can log in
    password_logins_left     INTEGER,          -- of a one-time password
    password_change_required INTEGER NOT NULL DEFAULT 0,
    api_key                  TEXT UNIQUE,
    secret_key               TEXT,             -- in clear: an HMAC needs it
    created                  INTEGER NOT NULL
) STRICT;
CREATE INDEX user_name ON user (username);

-- Only hashes (SHA-256, hexadecimal): a copy of the database opens no session.
CREATE TABLE session (
    id_hash   TEXT PRIMARY KEY,
    key_hash  TEXT NOT NULL,
    user_id   INTEGER NOT NULL REFERENCES user (id),
    created   INTEGER NOT NULL,
    last_used INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX session_user ON session (user_id);

CREATE TABLE job (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    uuid          TEXT NOT NULL UNIQUE,
    user_id       INTEGER NOT NULL REFERENCES user (id),
    command       TEXT NOT NULL,
    status        INTEGER NOT NULL, -- 0 pending, 1 success, 2 failed
    result_code   INTEGER NOT NULL DEFAULT 0,
    result        TEXT,             -- JSON
    instance_type TEXT,
    instance_id   TEXT,
    created       INTEGER NOT NULL,
    completed     INTEGER
) STRICT;
CREATE INDEX job_pending ON job (id) WHERE status = 0;
CREATE INDEX job_completed ON job (completed);

CREATE TABLE event (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    uuid          TEXT NOT NULL UNIQUE,
    type          TEXT NOT NULL,
    level         TEXT NOT NULL,
    state         TEXT NOT NULL,
    description   TEXT NOT NULL,
    parent_id     INTEGER, -- the event of the start
    user_id       INTEGER NOT NULL REFERENCES user (id),
    resource_type TEXT,
    resource_id   TEXT,
    created       INTEGER NOT NULL,
    archived      INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX event_created ON event (created);

CREATE TABLE alert (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    uuid        TEXT NOT NULL UNIQUE,
    type        INTEGER NOT NULL,
    name        TEXT NOT NULL,
    description TEXT NOT NULL,
    zone_id     INTEGER REFERENCES zone (id),
    pod_id      INTEGER REFERENCES pod (id),
    sent_count  INTEGER NOT NULL DEFAULT 1,
    created     INTEGER NOT NULL,
    last_sent   INTEGER NOT NULL,
    archived    INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX alert_type ON alert (type, zone_id, pod_id);

CREATE TABLE tag (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    account_id    INTEGER NOT NULL REFERENCES account (id),
    resource_type TEXT NOT NULL,
    resource_id   TEXT NOT NULL, -- UUID
    key           TEXT NOT NULL,
    value         TEXT NOT NULL,
    customer      TEXT,
    UNIQUE (resource_id, key)
) STRICT;

-- One domain, one account, and its user, who has no password until an operator makes one; UUIDs are random (version 4).
WITH random_uuid (uuid) AS (
    VALUES (lower(hex(randomblob(4)) || '-' || hex(randomblob(2)) || '-4' || substr(hex(randomblob(2)), 2) || '-'
        || substr('89ab', 1 + (random() & 3), 1) || substr(hex(randomblob(2)), 2) || '-' || hex(randomblob(6))))
)
INSERT INTO domain (uuid, name, path, created) SELECT uuid, 'ROOT', '/', unixepoch() FROM random_uuid;

WITH random_uuid (uuid) AS (
    VALUES (lower(hex(randomblob(4)) || '-' || hex(randomblob(2)) || '-4' || substr(hex(randomblob(2)), 2) || '-'
        || substr('89ab', 1 + (random() & 3), 1) || substr(hex(randomblob(2)), 2) || '-' || hex(randomblob(6))))
)
INSERT INTO account (uuid, domain_id, name, type, created)
SELECT random_uuid.uuid, domain.id, 'admin', 1, unixepoch() FROM random_uuid, domain;

WITH random_uuid (uuid) AS (
    VALUES (lower(hex(randomblob(4)) || '-' || hex(randomblob(2)) || '-4' || substr(hex(randomblob(2)), 2) || '-'
        || substr('89ab', 1 + (random() & 3), 1) || substr(hex(randomblob(2)), 2) || '-' || hex(randomblob(6))))
)
INSERT INTO user (uuid, account_id, username, first_name, last_name, created)
SELECT random_uuid.uuid, account.id, 'admin', 'Admin', 'User', unixepoch() FROM random_uuid, account;
