-- mail.db: everything a node keeps, but for the log itself (audit.db).
-- Written by one thread (writer.py); other processes write through the same code and take their turn at the file's lock.
-- Times are Unix milliseconds. Flag bits: flags.py.

-- Highest UIDVALIDITY ever given: it must differ each time a mailbox name comes back (RFC 3501 §2.3.1.1).
CREATE TABLE counter (
    name  TEXT    NOT NULL PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO counter VALUES ('uidvalidity', 0);

-- ── identity ────────────────────────────────────────────────────────────────────────────────────────────────────────

CREATE TABLE agent (
    id             INTEGER PRIMARY KEY AUTOINCREMENT,
    address        TEXT    NOT NULL UNIQUE,
    salt           BLOB    NOT NULL,
    iterations     INTEGER NOT NULL,
    stored_key     BLOB    NOT NULL,
    server_key     BLOB    NOT NULL,
    created_ms     INTEGER NOT NULL,
    disabled       INTEGER NOT NULL,
    max_unacked    INTEGER,
    quota          INTEGER,
    may_prioritise INTEGER NOT NULL
) STRICT;

CREATE TABLE token (
    digest BLOB    NOT NULL PRIMARY KEY,
    agent  INTEGER NOT NULL REFERENCES agent ON DELETE CASCADE,
    t_ms   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX token_agent ON token (agent);

-- ── messages: immutable once accepted ───────────────────────────────────────────────────────────────────────────────

CREATE TABLE message (
    id             INTEGER PRIMARY KEY, -- order of commit
    eid            TEXT    NOT NULL UNIQUE,
    t_ms           INTEGER NOT NULL,
    sender         TEXT    NOT NULL,
    agent          TEXT,
    recipients     TEXT    NOT NULL,    -- JSON array
    delivered_to   TEXT    NOT NULL,    -- JSON array
    message_id     TEXT    NOT NULL,
    in_reply_to    TEXT,
    subject        TEXT    NOT NULL,
    content_type   TEXT    NOT NULL,
    workflow       TEXT,
    priority       INTEGER NOT NULL,
    origin_trace   BLOB    NOT NULL,
    origin_span    BLOB    NOT NULL,
    trace_flags    INTEGER NOT NULL,
    tracestate     TEXT    NOT NULL,
    baggage        TEXT    NOT NULL,
    context_source TEXT    NOT NULL,
    received_trace BLOB    NOT NULL,
    received_span  BLOB    NOT NULL,
    depth          INTEGER NOT NULL,
    loop_key       TEXT    NOT NULL,
    header_size    INTEGER NOT NULL,
    body_size      INTEGER NOT NULL
) STRICT;
CREATE INDEX message_trace ON message (origin_trace);
CREATE INDEX message_message_id ON message (message_id);
CREATE INDEX message_workflow ON message (workflow) WHERE workflow IS NOT NULL;

-- A large body, put aside in parts by short commits of its own. No message: staged, not used yet.
CREATE TABLE body (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    size    INTEGER NOT NULL,
    message INTEGER REFERENCES message
) STRICT;
CREATE INDEX body_unused ON body (id) WHERE message IS NULL;

CREATE TABLE part (
    body  INTEGER NOT NULL REFERENCES body ON DELETE CASCADE,
    start INTEGER NOT NULL,
    data  BLOB    NOT NULL,
    UNIQUE (body, start)
) STRICT;

-- The octets, apart from what look-ups read. `data` or `body`, never both.
CREATE TABLE content (
    message INTEGER PRIMARY KEY REFERENCES message,
    header  BLOB NOT NULL,
    data    BLOB,
    body    INTEGER REFERENCES body
) STRICT;

-- Who sent or received a message. role 0: sent it; 1: it waits in the queue; 2: filed by its owner (APPEND); 3: delivered.
CREATE TABLE party (
    address TEXT    NOT NULL,
    message INTEGER NOT NULL REFERENCES message,
    role    INTEGER NOT NULL,
    trace   BLOB    NOT NULL,
    PRIMARY KEY (address, message)
) STRICT, WITHOUT ROWID;
CREATE INDEX party_trace ON party (address, trace, message) WHERE role = 3;

-- What the loop guard counts. Each row carries its number and the first one's time, so that counting reads one row.
CREATE TABLE chain (
    loop_key   TEXT    NOT NULL,
    message    INTEGER NOT NULL REFERENCES message,
    n          INTEGER NOT NULL,
    first_ms   INTEGER NOT NULL,
    t_ms       INTEGER NOT NULL,
    sender     TEXT    NOT NULL,
    recipients TEXT    NOT NULL,
    payload    BLOB    NOT NULL,
    template   BLOB    NOT NULL,
    depth      INTEGER NOT NULL,
    PRIMARY KEY (loop_key, message)
) STRICT, WITHOUT ROWID;

-- ── mailboxes ───────────────────────────────────────────────────────────────────────────────────────────────────────

-- The counts are kept with every change of an entry, so that STATUS, quota and the unacknowledged limit read one row.
CREATE TABLE mailbox (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    owner       INTEGER NOT NULL REFERENCES agent ON DELETE CASCADE,
    name        TEXT    NOT NULL,
    special_use TEXT,
    uidvalidity INTEGER NOT NULL,
    uidnext     INTEGER NOT NULL DEFAULT 1,
    modseq      INTEGER NOT NULL DEFAULT 1,
    recent_from INTEGER NOT NULL DEFAULT 1,
    messages    INTEGER NOT NULL DEFAULT 0,
    recent      INTEGER NOT NULL DEFAULT 0,
    unseen      INTEGER NOT NULL DEFAULT 0,
    deleted     INTEGER NOT NULL DEFAULT 0,
    unacked     INTEGER NOT NULL DEFAULT 0,
    octets      INTEGER NOT NULL DEFAULT 0,
    UNIQUE (owner, name),
    UNIQUE (owner, id)
) STRICT;

CREATE TABLE entry (
    owner       INTEGER NOT NULL,
    mailbox     INTEGER NOT NULL,
    uid         INTEGER NOT NULL,
    message     INTEGER NOT NULL REFERENCES message,
    flags       INTEGER NOT NULL,
    modseq      INTEGER NOT NULL,
    internal_ms INTEGER NOT NULL,
    saved_ms    INTEGER NOT NULL,
    size        INTEGER NOT NULL,
    PRIMARY KEY (owner, mailbox, uid),
    FOREIGN KEY (owner, mailbox) REFERENCES mailbox (owner, id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE INDEX entry_modseq ON entry (owner, mailbox, modseq);
CREATE INDEX entry_message ON entry (message);
CREATE INDEX entry_deleted ON entry (owner, mailbox, uid) WHERE flags & 2;

-- Tombstones of expunged entries.
CREATE TABLE vanished (
    owner   INTEGER NOT NULL,
    mailbox INTEGER NOT NULL,
    modseq  INTEGER NOT NULL,
    uid     INTEGER NOT NULL,
    PRIMARY KEY (owner, mailbox, modseq, uid),
    FOREIGN KEY (owner, mailbox) REFERENCES mailbox (owner, id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

CREATE TABLE keyword (
    owner INTEGER NOT NULL REFERENCES agent ON DELETE CASCADE,
    bit   INTEGER NOT NULL CHECK (bit BETWEEN 6 AND 62),
    name  TEXT    NOT NULL COLLATE NOCASE,
    PRIMARY KEY (owner, bit),
    UNIQUE (owner, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE subscription (
    owner INTEGER NOT NULL REFERENCES agent ON DELETE CASCADE,
    name  TEXT    NOT NULL,
    PRIMARY KEY (owner, name)
) STRICT, WITHOUT ROWID;

-- ── the queue ───────────────────────────────────────────────────────────────────────────────────────────────────────

CREATE TABLE delivery (
    id             INTEGER PRIMARY KEY AUTOINCREMENT,
    message        INTEGER NOT NULL REFERENCES message,
    address        TEXT    NOT NULL,
    original       TEXT    NOT NULL,
    trace          BLOB    NOT NULL,
    span           BLOB    NOT NULL,
    queue          TEXT    NOT NULL,
    transport      TEXT    NOT NULL,
    priority       INTEGER NOT NULL,
    folder         TEXT    NOT NULL,
    flags          TEXT    NOT NULL,    -- JSON array
    internal_ms    INTEGER,
    attempt        INTEGER NOT NULL,    -- attempts begun
    created_ms     INTEGER NOT NULL,
    last_ms        INTEGER NOT NULL,    -- when the newest attempt was begun
    next_ms        INTEGER NOT NULL,    -- when the next one is due
    deadline_ms    INTEGER NOT NULL,
    reason         TEXT    NOT NULL,
    previous_trace BLOB    NOT NULL,
    previous_span  BLOB    NOT NULL,
    leased_by      TEXT,
    wake_ms        INTEGER NOT NULL     -- when it can be claimed: next_ms, while leased not before the lease's end
) STRICT;
CREATE INDEX delivery_wake ON delivery (wake_ms);
CREATE INDEX delivery_priority ON delivery (priority, wake_ms);
CREATE INDEX delivery_message ON delivery (message);
CREATE INDEX delivery_leased ON delivery (leased_by) WHERE leased_by IS NOT NULL;

-- ── events: outbox, openings and timeline ───────────────────────────────────────────────────────────────────────────

-- Never deleted, numbered without a gap: `seq` is the order of commit. Only erasure changes one (`key`, `detail`).
CREATE TABLE event (
    seq      INTEGER PRIMARY KEY,
    eid      TEXT    NOT NULL UNIQUE,
    ev       TEXT    NOT NULL,
    t_ms     INTEGER NOT NULL,
    trace_id BLOB    NOT NULL,
    span_id  BLOB    NOT NULL,
    leaf     BLOB    NOT NULL,
    ref      TEXT,
    agent    TEXT,
    key      BLOB,
    detail   TEXT    NOT NULL           -- JSON object
) STRICT;
CREATE INDEX event_trace ON event (trace_id);
CREATE INDEX event_ref ON event (ref) WHERE ref IS NOT NULL;

CREATE TABLE event_message (
    message_eid TEXT    NOT NULL,
    seq         INTEGER NOT NULL REFERENCES event,
    n           INTEGER NOT NULL,       -- place in the event's list
    PRIMARY KEY (message_eid, seq)
) STRICT, WITHOUT ROWID;
CREATE INDEX event_message_seq ON event_message (seq, n);

-- Which events are in the log, as runs: events first..last stand at index, index + 1, … of it. A sequencer that goes on
-- in order keeps one row growing, where a column of `event` would write every event twice.
CREATE TABLE sequenced (
    first     INTEGER PRIMARY KEY,
    last      INTEGER NOT NULL,
    log_index INTEGER NOT NULL
) STRICT;

-- ── payload schemas ─────────────────────────────────────────────────────────────────────────────────────────────────

CREATE TABLE payload_schema (
    name       TEXT    NOT NULL PRIMARY KEY,
    descriptor BLOB    NOT NULL,
    t_ms       INTEGER NOT NULL
) STRICT;
