-- NICs of system VMs and their addresses (management.md §4). Times are seconds since 1970-01-01 UTC.
CREATE TABLE nic (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    instance_id INTEGER NOT NULL REFERENCES instance (id),
    zone_id     INTEGER NOT NULL REFERENCES zone (id),
    device      INTEGER NOT NULL, -- 0 is eth0
    traffic     TEXT NOT NULL, -- Control, Management, Public, Storage or Guest
    mac         TEXT, -- that of a control NIC is made of its address, and goes with it
    address     TEXT,
    prefix      INTEGER,
    gateway     TEXT, -- of its network
    is_default  INTEGER NOT NULL, -- whether it has the default route
    taken       INTEGER, -- since when it has this address
    UNIQUE (instance_id, device)
) STRICT;
-- No two have the same, whoever starts them at the same time.
CREATE UNIQUE INDEX nic_address ON nic (zone_id, traffic, address) WHERE address IS NOT NULL;
CREATE UNIQUE INDEX nic_mac ON nic (mac) WHERE mac IS NOT NULL;

-- The host row of a VM's agent is found by the VM's name.
CREATE INDEX host_name ON host (name) WHERE removed IS NULL;
