-- Schema `aimx`: everything the nodes keep, but for the log itself (schema `audit`).
--
-- Times are Unix milliseconds. Flag bits: flags.py. Text from the wire has had what PostgreSQL cannot hold replaced
-- (text.py); the octets themselves are `bytea`. Lists and objects are JSON in `text`: the server never looks inside.
--
-- Hot tables bear no foreign keys: each would lock and look up a row per row written, and they can be distributed by
-- owner or address later. What keeps them whole: who changes a mailbox's entries holds its row (FOR NO KEY UPDATE,
-- several in the order of their ids) until the commit; so does who deletes it.
--
-- Locks are taken in this order: mailbox rows by id, agent rows by id, idempotency keys by (agent, key), deliveries.

-- `uidvalidity`: the highest ever given, for it must differ each time a mailbox name comes back (RFC 3501 §2.3.1.1).
CREATE TABLE counter (
    name  text   NOT NULL PRIMARY KEY,
    value bigint NOT NULL
);
INSERT INTO counter VALUES ('uidvalidity', 0), ('agents', 0);

-- Who counts in `chain`: one number for each worker of each node, the same in its later lives.
CREATE TABLE writer (
    id   integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text    NOT NULL UNIQUE
);

-- ── identity ────────────────────────────────────────────────────────────────────────────────────────────────────────

CREATE TABLE agent (
    id             bigint  GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    address        text    COLLATE "C" NOT NULL UNIQUE,
    salt           bytea   NOT NULL,
    iterations     integer NOT NULL,
    stored_key     bytea   NOT NULL,
    server_key     bytea   NOT NULL,
    created_ms     bigint  NOT NULL,
    disabled       boolean NOT NULL,
    max_unacked    bigint,
    quota          bigint,
    may_prioritise boolean NOT NULL
);

CREATE TABLE token (
    digest bytea  NOT NULL PRIMARY KEY,
    agent  bigint NOT NULL REFERENCES agent ON DELETE CASCADE,
    t_ms   bigint NOT NULL
);
CREATE INDEX token_agent ON token (agent);

-- ── messages: immutable once accepted, but for erasure ──────────────────────────────────────────────────────────────

CREATE SEQUENCE message_id;

CREATE TABLE message (
    id             bigint   NOT NULL PRIMARY KEY, -- about the order of commit
    eid            text     COLLATE "C" NOT NULL UNIQUE,
    t_ms           bigint   NOT NULL,
    sender         text     NOT NULL,
    agent          text,
    recipients     text     NOT NULL,             -- JSON array
    delivered_to   text     NOT NULL,             -- JSON array
    message_id     text     COLLATE "C" NOT NULL,
    in_reply_to    text,
    subject        text     NOT NULL,
    content_type   text     NOT NULL,
    workflow       text     COLLATE "C",
    priority       integer  NOT NULL,
    origin_trace   bytea    NOT NULL,
    origin_span    bytea    NOT NULL,
    trace_flags    integer  NOT NULL,
    tracestate     text     NOT NULL,
    baggage        text     NOT NULL,
    context_source text     NOT NULL,
    received_trace bytea    NOT NULL,
    received_span  bytea    NOT NULL,
    depth          integer  NOT NULL,
    loop_key       text     NOT NULL,
    header_size    bigint   NOT NULL,
    body_size      bigint   NOT NULL,
    once_key       text,                          -- its idempotency key, for erasure
    erased         boolean  NOT NULL DEFAULT false
);
CREATE INDEX message_trace ON message (origin_trace, id);
CREATE INDEX message_message_id ON message (message_id, id);
CREATE INDEX message_workflow ON message (workflow, id) WHERE workflow IS NOT NULL;

-- A large body, put aside in parts by short commits of its own. `used` is false until a message has it. `writer`: who
-- stages it; what an earlier life of that writer left is dropped.
CREATE TABLE body (
    id     bigint  GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    size   bigint  NOT NULL,
    used   boolean NOT NULL DEFAULT false,
    writer integer NOT NULL
);
CREATE INDEX body_unused ON body (writer, id) WHERE NOT used;

CREATE TABLE part (
    body  bigint NOT NULL REFERENCES body ON DELETE CASCADE,
    start bigint NOT NULL,
    data  bytea  NOT NULL,
    PRIMARY KEY (body, start)
);
ALTER TABLE part ALTER data SET STORAGE EXTERNAL; -- not packed: what is large in mail mostly is already

-- The octets, apart from what look-ups read. `data` or `body`, never both.
CREATE TABLE content (
    message bigint NOT NULL PRIMARY KEY,
    header  bytea  NOT NULL,
    data    bytea,
    body    bigint
);
ALTER TABLE content ALTER header SET STORAGE EXTERNAL, ALTER data SET STORAGE EXTERNAL; -- substr reads only its piece

-- Who sent or received a message. role 0: sent it; 1: it waits in the queue; 2: filed by its owner (APPEND); 3: delivered.
CREATE TABLE party (
    address text     COLLATE "C" NOT NULL,
    message bigint   NOT NULL,
    role    smallint NOT NULL,
    trace   bytea    NOT NULL,
    PRIMARY KEY (address, message)
);
CREATE INDEX party_trace ON party (address, trace, message) WHERE role = 3;

-- What the loop guard counts. Each writer numbers its own rows of a loop key, so that nobody waits for anybody: the
-- count is the sum of the writers' newest numbers, the first time the least of theirs.
CREATE TABLE chain (
    loop_key   text    COLLATE "C" NOT NULL,
    message    bigint  NOT NULL,
    writer     integer NOT NULL,
    n          bigint  NOT NULL,
    first_ms   bigint  NOT NULL,
    t_ms       bigint  NOT NULL,
    sender     text    NOT NULL,
    recipients text    NOT NULL,
    payload    bytea   NOT NULL,
    template   bytea   NOT NULL,
    depth      integer NOT NULL,
    PRIMARY KEY (loop_key, message)
);
CREATE INDEX chain_count ON chain (loop_key, writer, n) INCLUDE (first_ms);

-- ── mailboxes ───────────────────────────────────────────────────────────────────────────────────────────────────────

CREATE SEQUENCE mailbox_id;

-- The counts are kept with every change of an entry, so that STATUS, quota and the unacknowledged limit read one row.
CREATE TABLE mailbox (
    owner       bigint NOT NULL REFERENCES agent ON DELETE CASCADE,
    id          bigint NOT NULL DEFAULT nextval('mailbox_id') UNIQUE,
    name        text   COLLATE "C" NOT NULL,
    special_use text,
    uidvalidity bigint NOT NULL,
    uidnext     bigint NOT NULL DEFAULT 1,
    modseq      bigint NOT NULL DEFAULT 1,
    recent_from bigint NOT NULL DEFAULT 1,
    messages    bigint NOT NULL DEFAULT 0,
    recent      bigint NOT NULL DEFAULT 0,
    unseen      bigint NOT NULL DEFAULT 0,
    deleted     bigint NOT NULL DEFAULT 0,
    unacked     bigint NOT NULL DEFAULT 0,
    octets      bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (owner, id),
    UNIQUE (owner, name)
) WITH (fillfactor = 40, autovacuum_vacuum_scale_factor = 0.02); -- changed with every mail: new versions stay on the page

CREATE TABLE entry (
    owner       bigint NOT NULL,
    mailbox     bigint NOT NULL,
    uid         bigint NOT NULL,
    message     bigint NOT NULL,
    flags       bigint NOT NULL,
    modseq      bigint NOT NULL,
    internal_ms bigint NOT NULL,
    saved_ms    bigint NOT NULL,
    size        bigint NOT NULL,
    PRIMARY KEY (owner, mailbox, uid)
);
CREATE INDEX entry_modseq ON entry (owner, mailbox, modseq);
CREATE INDEX entry_message ON entry (message);
CREATE INDEX entry_deleted ON entry (owner, mailbox, uid) WHERE flags & 2 <> 0;

-- Tombstones of expunged entries.
CREATE TABLE vanished (
    owner   bigint NOT NULL,
    mailbox bigint NOT NULL,
    modseq  bigint NOT NULL,
    uid     bigint NOT NULL,
    PRIMARY KEY (owner, mailbox, modseq, uid)
);

-- Names are case-insensitive (RFC 3501 §9); the spelling first used is kept.
CREATE TABLE keyword (
    owner bigint   NOT NULL REFERENCES agent ON DELETE CASCADE,
    bit   smallint NOT NULL CHECK (bit BETWEEN 6 AND 62),
    name  text     NOT NULL,
    PRIMARY KEY (owner, bit)
);
CREATE UNIQUE INDEX keyword_name ON keyword (owner, lower(name));

CREATE TABLE subscription (
    owner bigint NOT NULL REFERENCES agent ON DELETE CASCADE,
    name  text   COLLATE "C" NOT NULL,
    PRIMARY KEY (owner, name)
);

-- ── the queue ───────────────────────────────────────────────────────────────────────────────────────────────────────

CREATE SEQUENCE delivery_id;

CREATE TABLE delivery (
    id              bigint  NOT NULL PRIMARY KEY,
    message         bigint  NOT NULL,
    address         text    NOT NULL,
    original        text    NOT NULL,
    trace           bytea   NOT NULL,
    span            bytea   NOT NULL,
    queue           text    NOT NULL,
    transport       text    NOT NULL,
    destination     text    COLLATE "C" NOT NULL,
    options         text    NOT NULL,    -- JSON object
    priority        integer NOT NULL,
    folder          text    NOT NULL,
    flags           text    NOT NULL,    -- JSON array
    internal_ms     bigint,
    attempt         integer NOT NULL,    -- attempts begun
    created_ms      bigint  NOT NULL,
    last_ms         bigint  NOT NULL,    -- when the newest attempt was begun
    next_ms         bigint  NOT NULL,    -- when the next one is due
    deadline_ms     bigint  NOT NULL,
    reason          text    NOT NULL,
    previous_trace  bytea,               -- of the newest attempt
    previous_span   bytea,
    held            boolean NOT NULL DEFAULT false,
    leased_by       text,
    leased_until_ms bigint,
    -- When it can be claimed: when it is due, while leased not before the lease's end, while held not at all.
    wake_ms         bigint  GENERATED ALWAYS AS
        (CASE WHEN held THEN NULL ELSE greatest(next_ms, coalesce(leased_until_ms, next_ms)) END) STORED
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);
-- A lane is what waits for one destination at one priority: closed ones are stepped over whole.
CREATE INDEX delivery_priority ON delivery (priority, wake_ms, id) WHERE NOT held;
CREATE INDEX delivery_lane ON delivery (priority, destination, wake_ms, id) WHERE NOT held;
CREATE INDEX delivery_destination ON delivery (destination, id) WHERE destination <> '';
CREATE INDEX delivery_message ON delivery (message);
CREATE INDEX delivery_leased ON delivery (leased_by) WHERE leased_by IS NOT NULL;

-- A sender's idempotency keys. Where a message is erased, its digest is emptied: the key still says "used", no more.
CREATE TABLE once (
    agent    text   COLLATE "C" NOT NULL,
    key      text   COLLATE "C" NOT NULL,
    digest   bytea  NOT NULL,
    eid      text   COLLATE "C" NOT NULL,
    until_ms bigint NOT NULL,
    PRIMARY KEY (agent, key)
);
CREATE INDEX once_until ON once (until_ms);

-- ── events: outbox, openings and timeline ───────────────────────────────────────────────────────────────────────────

CREATE SEQUENCE event_seq;

-- Never deleted. Only erasure changes one (`key`, `detail`). `seq` becomes visible out of order: nobody may read on
-- from the highest one seen. Gaps are what was rolled back.
CREATE TABLE event (
    seq      bigint NOT NULL PRIMARY KEY,
    eid      text   COLLATE "C" NOT NULL UNIQUE,
    ev       text   NOT NULL,
    t_ms     bigint NOT NULL,
    trace_id bytea  NOT NULL,
    span_id  bytea  NOT NULL,
    leaf     bytea  NOT NULL,
    ref      text   COLLATE "C",
    agent    text,
    key      bytea,
    detail   text   NOT NULL             -- JSON object
);
CREATE INDEX event_trace ON event (trace_id, seq);
CREATE INDEX event_ref ON event (ref, seq) WHERE ref IS NOT NULL;

CREATE TABLE event_message (
    message_eid text    COLLATE "C" NOT NULL,
    seq         bigint  NOT NULL,
    n           integer NOT NULL,        -- place in the event's list
    PRIMARY KEY (message_eid, seq)
);
CREATE INDEX event_message_seq ON event_message (seq, n);

-- Events not yet in the log.
CREATE TABLE outbox (
    seq  bigint NOT NULL PRIMARY KEY,
    t_ms bigint NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);

-- Which events are in the log, as runs: events first..last stand at index, index + 1, … of it.
CREATE TABLE sequenced (
    first     bigint NOT NULL PRIMARY KEY,
    last      bigint NOT NULL,
    log_index bigint NOT NULL
);

-- ── legal hold, nodes, payload schemas ──────────────────────────────────────────────────────────────────────────────

CREATE TABLE hold (
    kind    text   NOT NULL,
    subject text   NOT NULL,
    reason  text   NOT NULL,
    by      text   NOT NULL,
    t_ms    bigint NOT NULL,
    PRIMARY KEY (kind, subject)
);

CREATE TABLE node (
    node       text    NOT NULL,
    worker     integer NOT NULL,
    host       text    NOT NULL,
    pid        integer NOT NULL,
    started_ms bigint  NOT NULL,
    seen_ms    bigint  NOT NULL,
    version    text    NOT NULL,
    draining   boolean NOT NULL DEFAULT false,
    PRIMARY KEY (node, worker)
);

CREATE TABLE payload_schema (
    name       text   COLLATE "C" NOT NULL PRIMARY KEY,
    descriptor bytea  NOT NULL,
    t_ms       bigint NOT NULL
);
