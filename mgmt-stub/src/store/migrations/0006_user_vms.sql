-- VMs of users and what they need of this machine (management.md §1). Times are seconds since 1970-01-01 UTC.

CREATE TABLE storage_pool (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    uuid    TEXT NOT NULL UNIQUE,
    zone_id INTEGER NOT NULL REFERENCES zone (id),
    name    TEXT NOT NULL,
    path    TEXT NOT NULL, -- a directory of this machine
    created INTEGER NOT NULL,
    UNIQUE (zone_id, name)
) STRICT;

-- A template whose copy on the pool is complete: root disks are overlays on it.
CREATE TABLE template_pool (
    template_id   INTEGER NOT NULL REFERENCES template (id),
    pool_id       INTEGER NOT NULL REFERENCES storage_pool (id),
    path          TEXT NOT NULL, -- relative to the pool
    size          INTEGER NOT NULL, -- virtual, in bytes
    physical_size INTEGER NOT NULL, -- of the file, in bytes
    created       INTEGER NOT NULL,
    PRIMARY KEY (template_id, pool_id)
) STRICT;

-- What an instance of type User has besides: without a row somebody else runs it.
CREATE TABLE user_vm (
    instance_id INTEGER PRIMARY KEY REFERENCES instance (id),
    host_name   TEXT NOT NULL, -- `name` in the API
    user_id     INTEGER NOT NULL, -- who deployed it
    template_id INTEGER NOT NULL REFERENCES template (id),
    offering    TEXT NOT NULL -- UUID of the service offering
) STRICT;

CREATE TABLE volume (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    uuid        TEXT NOT NULL UNIQUE,
    name        TEXT NOT NULL,
    instance_id INTEGER NOT NULL REFERENCES instance (id),
    template_id INTEGER NOT NULL REFERENCES template (id),
    pool_id     INTEGER NOT NULL REFERENCES storage_pool (id),
    account_id  INTEGER NOT NULL,
    state       TEXT NOT NULL, -- Allocated: there is no file yet; Ready
    size        INTEGER, -- virtual, in bytes
    path        TEXT, -- relative to the pool
    created     INTEGER NOT NULL,
    removed     INTEGER
) STRICT;
CREATE INDEX volume_instance ON volume (instance_id) WHERE removed IS NULL;
