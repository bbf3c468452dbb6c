-- Times are seconds since 1970-01-01 UTC. Ids are never used twice (AUTOINCREMENT): agents remember theirs.

CREATE TABLE zone (
    id   INTEGER PRIMARY KEY AUTOINCREMENT,
    uuid TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL UNIQUE
) STRICT;

CREATE TABLE pod (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    uuid    TEXT NOT NULL UNIQUE,
    zone_id INTEGER NOT NULL REFERENCES zone (id),
    name    TEXT NOT NULL,
    cidr    TEXT,
    UNIQUE (zone_id, name)
) STRICT;

CREATE TABLE image_store (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    uuid        TEXT NOT NULL UNIQUE,
    zone_id     INTEGER NOT NULL REFERENCES zone (id),
    name        TEXT NOT NULL,
    url         TEXT NOT NULL,
    nfs_version TEXT,
    parent      TEXT, -- the directory an SSVM mounted it on
    removed     INTEGER
) STRICT;
CREATE UNIQUE INDEX image_store_url ON image_store (zone_id, url) WHERE removed IS NULL;

CREATE TABLE host (
    id              INTEGER PRIMARY KEY AUTOINCREMENT,
    uuid            TEXT NOT NULL UNIQUE,
    guid            TEXT NOT NULL,
    guid_stem       TEXT NOT NULL, -- guid without "-<resource class>"
    name            TEXT NOT NULL, -- of the VM's instance
    type            TEXT NOT NULL,
    zone_id         INTEGER NOT NULL REFERENCES zone (id),
    pod_id          INTEGER REFERENCES pod (id),
    status          TEXT NOT NULL,
    status_reason   TEXT NOT NULL,
    version         TEXT NOT NULL,
    arch            TEXT NOT NULL,
    private_ip      TEXT,
    private_mac     TEXT,
    private_netmask TEXT,
    public_ip       TEXT,
    public_mac      TEXT,
    public_netmask  TEXT,
    storage_ip      TEXT,
    storage_mac     TEXT,
    storage_netmask TEXT,
    ms_host_list    TEXT,
    created         INTEGER NOT NULL,
    last_ping       INTEGER,
    disconnected    INTEGER, -- since when it is neither Connecting nor Up
    removed         INTEGER
) STRICT;
CREATE UNIQUE INDEX host_guid ON host (guid) WHERE removed IS NULL;
CREATE INDEX host_guid_stem ON host (guid_stem) WHERE removed IS NULL;

CREATE TABLE setting (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE certificate (
    serial     TEXT PRIMARY KEY, -- hexadecimal, lower case, no leading zeros
    host_id    INTEGER REFERENCES host (id),
    subject    TEXT NOT NULL,
    sans       TEXT NOT NULL, -- a JSON list of strings
    not_before INTEGER NOT NULL,
    not_after  INTEGER NOT NULL,
    issued     INTEGER NOT NULL,
    revoked    INTEGER
) STRICT, WITHOUT ROWID;

-- The one zone and the one pod of a zone on one machine, with random (version 4) UUIDs.
WITH random_uuid (uuid) AS (
    VALUES (lower(hex(randomblob(4)) || '-' || hex(randomblob(2)) || '-4' || substr(hex(randomblob(2)), 2) || '-'
        || substr('89ab', 1 + (random() & 3), 1) || substr(hex(randomblob(2)), 2) || '-' || hex(randomblob(6))))
)
INSERT INTO zone (uuid, name) SELECT uuid, 'zone1' FROM random_uuid;

WITH random_uuid (uuid) AS (
    VALUES (lower(hex(randomblob(4)) || '-' || hex(randomblob(2)) || '-4' || substr(hex(randomblob(2)), 2) || '-'
        || substr('89ab', 1 + (random() & 3), 1) || substr(hex(randomblob(2)), 2) || '-' || hex(randomblob(6))))
)
INSERT INTO pod (uuid, zone_id, name) SELECT random_uuid.uuid, zone.id, 'pod1' FROM random_uuid, zone;
