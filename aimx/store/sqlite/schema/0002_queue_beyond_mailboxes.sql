-- Exactly-once, transports that leave the node, erasure and holds, nodes.

-- A sender's idempotency keys. Where a message is erased, its digest is emptied: the key still says "used", no more.
CREATE TABLE once (
    agent    TEXT    NOT NULL,
    key      TEXT    NOT NULL,
    digest   BLOB    NOT NULL,
    eid      TEXT    NOT NULL,
    until_ms INTEGER NOT NULL,
    PRIMARY KEY (agent, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX once_until ON once (until_ms);

ALTER TABLE message ADD COLUMN once_key TEXT;
ALTER TABLE message ADD COLUMN erased INTEGER NOT NULL DEFAULT 0;

-- The queue anew: a delivery may have had no attempt yet, and when it can be claimed is computed from what decides it.
CREATE TABLE delivery_2 (
    id              INTEGER PRIMARY KEY AUTOINCREMENT,
    message         INTEGER NOT NULL REFERENCES message,
    address         TEXT    NOT NULL,
    original        TEXT    NOT NULL,
    trace           BLOB    NOT NULL,
    span            BLOB    NOT NULL,
    queue           TEXT    NOT NULL,
    transport       TEXT    NOT NULL,
    destination     TEXT    NOT NULL,
    options         TEXT    NOT NULL,    -- JSON object
    priority        INTEGER NOT NULL,
    folder          TEXT    NOT NULL,
    flags           TEXT    NOT NULL,    -- JSON array
    internal_ms     INTEGER,
    attempt         INTEGER NOT NULL,    -- attempts begun
    created_ms      INTEGER NOT NULL,
    last_ms         INTEGER NOT NULL,    -- when the newest attempt was begun
    next_ms         INTEGER NOT NULL,    -- when the next one is due
    deadline_ms     INTEGER NOT NULL,
    reason          TEXT    NOT NULL,
    previous_trace  BLOB,                -- of the newest attempt
    previous_span   BLOB,
    held            INTEGER NOT NULL DEFAULT 0,
    leased_by       TEXT,
    leased_until_ms INTEGER,
    -- When it can be claimed: when it is due, while leased not before the lease's end, while held not at all.
    wake_ms         INTEGER AS (CASE WHEN held THEN NULL ELSE max(next_ms, coalesce(leased_until_ms, next_ms)) END)
) STRICT;
-- Leases end here: the node that held them is stopped.
INSERT INTO delivery_2 (id, message, address, original, trace, span, queue, transport, destination, options, priority,
    folder, flags, internal_ms, attempt, created_ms, last_ms, next_ms, deadline_ms, reason, previous_trace,
    previous_span)
SELECT id, message, address, original, trace, span, queue, transport, '', '{}', priority, folder, flags, internal_ms,
    attempt, created_ms, last_ms, next_ms, deadline_ms, reason, previous_trace, previous_span
FROM delivery;
-- Numbers of deliveries do not come back.
INSERT INTO sqlite_sequence (name, seq) SELECT 'delivery_2', 0
    WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'delivery_2');
UPDATE sqlite_sequence SET seq = max(seq, coalesce((SELECT o.seq FROM sqlite_sequence o WHERE o.name = 'delivery'), 0))
    WHERE name = 'delivery_2';
DROP TABLE delivery;
ALTER TABLE delivery_2 RENAME TO delivery;
CREATE INDEX delivery_priority ON delivery (priority, wake_ms);
-- A lane is what waits for one destination at one priority: closed ones are stepped over whole.
CREATE INDEX delivery_lane ON delivery (priority, destination, wake_ms);
CREATE INDEX delivery_destination ON delivery (destination) WHERE destination <> '';
CREATE INDEX delivery_message ON delivery (message);
CREATE INDEX delivery_leased ON delivery (leased_by) WHERE leased_by IS NOT NULL;

CREATE TABLE hold (
    kind    TEXT    NOT NULL,
    subject TEXT    NOT NULL,
    reason  TEXT    NOT NULL,
    by      TEXT    NOT NULL,
    t_ms    INTEGER NOT NULL,
    PRIMARY KEY (kind, subject)
) STRICT, WITHOUT ROWID;

CREATE TABLE node (
    node       TEXT    NOT NULL,
    worker     INTEGER NOT NULL,
    host       TEXT    NOT NULL,
    pid        INTEGER NOT NULL,
    started_ms INTEGER NOT NULL,
    seen_ms    INTEGER NOT NULL,
    version    TEXT    NOT NULL,
    draining   INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (node, worker)
) STRICT, WITHOUT ROWID;
