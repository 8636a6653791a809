-- audit.db: the log itself. Append-only; triggers guard against accidents, proofs against administrators.

CREATE TABLE IF NOT EXISTS leaf (
    idx   INTEGER PRIMARY KEY,          -- 0, 1, 2, … without a gap
    eid   TEXT NOT NULL UNIQUE,         -- the event's id: an event enters the log once
    hash  BLOB NOT NULL,                -- RFC 6962 leaf hash, 32 octets
    entry BLOB NOT NULL                 -- the leaf's octets
) STRICT;

-- Complete nodes at tree levels 8, 16, …: what the tiles above level 0 hold. Level 0 are the leaves' own hashes.
CREATE TABLE IF NOT EXISTS node (
    level INTEGER NOT NULL,             -- tile level, from 1
    idx   INTEGER NOT NULL,
    hash  BLOB NOT NULL,
    PRIMARY KEY (level, idx)
) STRICT, WITHOUT ROWID;

-- The one row that an append compares and swaps.
CREATE TABLE IF NOT EXISTS state (
    one      INTEGER PRIMARY KEY CHECK (one = 1),
    size     INTEGER NOT NULL,
    root     BLOB NOT NULL,
    frontier BLOB NOT NULL,
    signed   TEXT                       -- the newest signed checkpoint
) STRICT;

-- Checkpoints kept for good: at most one a minute, and the first.
CREATE TABLE IF NOT EXISTS checkpoint (
    size INTEGER PRIMARY KEY,
    t_ms INTEGER NOT NULL,
    note TEXT NOT NULL
) STRICT;

CREATE TRIGGER IF NOT EXISTS leaf_in_order BEFORE INSERT ON leaf
WHEN new.idx <> (SELECT coalesce(max(idx), -1) + 1 FROM leaf)
BEGIN SELECT raise(ABORT, 'the audit log only grows at its end'); END;
CREATE TRIGGER IF NOT EXISTS leaf_kept BEFORE UPDATE ON leaf
BEGIN SELECT raise(ABORT, 'the audit log is append-only'); END;
CREATE TRIGGER IF NOT EXISTS leaf_stays BEFORE DELETE ON leaf
BEGIN SELECT raise(ABORT, 'the audit log is append-only'); END;
-- INSERT OR REPLACE would delete the row whose eid collides, without a DELETE trigger.
CREATE TRIGGER IF NOT EXISTS leaf_once BEFORE INSERT ON leaf
WHEN EXISTS (SELECT 1 FROM leaf WHERE eid = new.eid)
BEGIN SELECT raise(ABORT, 'this event is in the audit log already'); END;

CREATE TRIGGER IF NOT EXISTS node_in_order BEFORE INSERT ON node
WHEN new.idx <> (SELECT coalesce(max(idx), -1) + 1 FROM node WHERE level = new.level)
BEGIN SELECT raise(ABORT, 'the audit log only grows at its end'); END;
CREATE TRIGGER IF NOT EXISTS node_kept BEFORE UPDATE ON node
BEGIN SELECT raise(ABORT, 'the audit log is append-only'); END;
CREATE TRIGGER IF NOT EXISTS node_stays BEFORE DELETE ON node
BEGIN SELECT raise(ABORT, 'the audit log is append-only'); END;

CREATE TRIGGER IF NOT EXISTS checkpoint_in_order BEFORE INSERT ON checkpoint
WHEN new.size <= (SELECT coalesce(max(size), -1) FROM checkpoint)
BEGIN SELECT raise(ABORT, 'checkpoints only go forward'); END;
CREATE TRIGGER IF NOT EXISTS checkpoint_kept BEFORE UPDATE ON checkpoint
BEGIN SELECT raise(ABORT, 'the audit log is append-only'); END;
CREATE TRIGGER IF NOT EXISTS checkpoint_stays BEFORE DELETE ON checkpoint
BEGIN SELECT raise(ABORT, 'the audit log is append-only'); END;

CREATE TRIGGER IF NOT EXISTS state_grows BEFORE UPDATE ON state
WHEN new.size < old.size
BEGIN SELECT raise(ABORT, 'the audit log never shrinks'); END;
CREATE TRIGGER IF NOT EXISTS state_stays BEFORE DELETE ON state
BEGIN SELECT raise(ABORT, 'the audit log is append-only'); END;
CREATE TRIGGER IF NOT EXISTS state_once BEFORE INSERT ON state
WHEN EXISTS (SELECT 1 FROM state)
BEGIN SELECT raise(ABORT, 'the audit log has one state'); END;
