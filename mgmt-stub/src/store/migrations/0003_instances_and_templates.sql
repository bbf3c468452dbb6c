-- System VMs, user VMs, templates, console sessions (management.md §1). Times are seconds since 1970-01-01 UTC.

-- A store that is a directory of this machine: where ssvm processes find it instead of mounting its URL.
ALTER TABLE image_store ADD COLUMN local_directory TEXT;
ALTER TABLE image_store ADD COLUMN used_bytes INTEGER;
ALTER TABLE image_store ADD COLUMN total_bytes INTEGER;

CREATE TABLE instance (
    id              INTEGER PRIMARY KEY AUTOINCREMENT,
    uuid            TEXT NOT NULL UNIQUE,
    name            TEXT NOT NULL, -- such as v-2-VM; agents and host rows are found by it
    display_name    TEXT NOT NULL,
    type            TEXT NOT NULL,
    hypervisor      TEXT NOT NULL,
    state           TEXT NOT NULL,
    reason          TEXT NOT NULL, -- why it is in this state, for people
    state_since     INTEGER NOT NULL,
    update_count    INTEGER NOT NULL DEFAULT 0,
    zone_id         INTEGER NOT NULL REFERENCES zone (id),
    pod_id          INTEGER REFERENCES pod (id),
    account_id      INTEGER NOT NULL,
    role            TEXT, -- of an SSVM: templateProcessor or commandExecutor
    os_type         TEXT,
    public_ip       TEXT,
    console_port    INTEGER, -- of a CPVM: where browsers connect
    vnc_address     TEXT,
    vnc_port        INTEGER,
    vnc_password    TEXT,
    active_sessions INTEGER NOT NULL DEFAULT 0, -- of a CPVM
    last_load       TEXT, -- of a CPVM: its last report as it came
    proxy_id        INTEGER REFERENCES instance (id), -- the CPVM that showed its console last
    proxy_since     INTEGER,
    created         INTEGER NOT NULL,
    removed         INTEGER
) STRICT;
CREATE INDEX instance_name ON instance (name) WHERE removed IS NULL;

CREATE TABLE template (
    id                     INTEGER PRIMARY KEY AUTOINCREMENT,
    uuid                   TEXT NOT NULL UNIQUE,
    kind                   TEXT NOT NULL, -- TEMPLATE or ISO
    name                   TEXT NOT NULL,
    display_text           TEXT NOT NULL,
    unique_name            TEXT NOT NULL,
    format                 TEXT NOT NULL,
    hypervisor             TEXT NOT NULL,
    url                    TEXT NOT NULL,
    checksum               TEXT, -- {ALGORITHM}hex
    arch                   TEXT NOT NULL,
    bits                   INTEGER NOT NULL,
    os_type                TEXT,
    template_tag           TEXT,
    details                TEXT NOT NULL, -- a JSON object of strings
    account_id             INTEGER NOT NULL,
    zone_id                INTEGER NOT NULL REFERENCES zone (id),
    is_public              INTEGER NOT NULL,
    is_featured            INTEGER NOT NULL,
    is_extractable         INTEGER NOT NULL,
    is_bootable            INTEGER NOT NULL,
    requires_hvm           INTEGER NOT NULL,
    password_enabled       INTEGER NOT NULL,
    ssh_key_enabled        INTEGER NOT NULL,
    dynamically_scalable   INTEGER NOT NULL,
    created                INTEGER NOT NULL,
    removed                INTEGER
) STRICT;

CREATE TABLE template_store (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    template_id   INTEGER NOT NULL REFERENCES template (id),
    store_id      INTEGER NOT NULL REFERENCES image_store (id),
    state         TEXT NOT NULL,
    percent       INTEGER NOT NULL DEFAULT 0,
    error         TEXT, -- why it is not downloaded, or what the agent is doing
    job_id        TEXT, -- of the SSVM
    install_path  TEXT,
    size          INTEGER, -- virtual, in bytes
    physical_size INTEGER, -- of the file, in bytes
    checksum      TEXT, -- as found
    bytes         INTEGER NOT NULL DEFAULT 0, -- received by now
    rate          INTEGER, -- bytes per second
    attempt       INTEGER NOT NULL DEFAULT 1,
    next_attempt  INTEGER, -- when a failed download is tried again
    updated       INTEGER NOT NULL,
    UNIQUE (template_id, store_id)
) STRICT;

CREATE TABLE console_session (
    id              INTEGER PRIMARY KEY AUTOINCREMENT,
    uuid            TEXT NOT NULL UNIQUE,
    account_id      INTEGER NOT NULL,
    user_id         INTEGER NOT NULL,
    instance_id     INTEGER NOT NULL REFERENCES instance (id),
    proxy           TEXT NOT NULL, -- name of the CPVM
    creator_address TEXT,
    client_address  TEXT,
    created         INTEGER NOT NULL,
    acquired        INTEGER,
    removed         INTEGER
) STRICT;

-- Commands under way at SSVMs: their load.
CREATE TABLE command_log (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    host_id  INTEGER NOT NULL REFERENCES host (id),
    instance TEXT NOT NULL, -- name of the SSVM
    command  TEXT NOT NULL,
    created  INTEGER NOT NULL
) STRICT;
