-- The audit log on PostgreSQL: schema `audit`, in the message database or in one of its own.
--
-- Run it as the role that is to own the log; again is harmless. Whoever writes the log (`aimx_seq`) may insert and
-- select, and swap the state; nobody but the owner may do more. Triggers guard against accidents, also when a session
-- plays replica (ENABLE ALWAYS); proofs guard against owners and superusers.

CREATE SCHEMA IF NOT EXISTS audit;

-- A partition a shard, so that one whose retention ended can be dropped whole.
CREATE TABLE IF NOT EXISTS audit.leaf (
    shard integer NOT NULL,
    idx   bigint NOT NULL,                   -- 0, 1, 2, … without a gap
    eid   text COLLATE "C" NOT NULL,         -- the event's id: an event enters the log once
    hash  bytea NOT NULL,                    -- RFC 6962 leaf hash, 32 octets
    entry bytea NOT NULL,                    -- the leaf's octets
    PRIMARY KEY (shard, idx),
    UNIQUE (shard, eid)
) PARTITION BY LIST (shard);

-- Complete nodes at tree levels 8, 16, …: what the tiles above level 0 hold. Level 0 are the leaves' own hashes.
CREATE TABLE IF NOT EXISTS audit.node (
    shard integer NOT NULL,
    level integer NOT NULL,                  -- tile level, from 1
    idx   bigint NOT NULL,
    hash  bytea NOT NULL,
    PRIMARY KEY (shard, level, idx)
) PARTITION BY LIST (shard);

-- Checkpoints kept for good: at most one a minute, and the first.
CREATE TABLE IF NOT EXISTS audit.checkpoint (
    shard integer NOT NULL,
    size  bigint NOT NULL,
    t_ms  bigint NOT NULL,
    note  text NOT NULL,
    PRIMARY KEY (shard, size)
) PARTITION BY LIST (shard);

-- One row a shard; the newest is what an append compares and swaps.
CREATE TABLE IF NOT EXISTS audit.state (
    shard    integer PRIMARY KEY,
    size     bigint NOT NULL,
    root     bytea NOT NULL,
    frontier bytea NOT NULL,
    signed   text                            -- the newest signed checkpoint
);

-- Who sequences now. It only saves work: the swap above is what cannot be passed.
CREATE TABLE IF NOT EXISTS audit.leader (
    one     integer PRIMARY KEY CHECK (one = 1),
    name    text NOT NULL,
    expires timestamptz NOT NULL
);
INSERT INTO audit.leader VALUES (1, '', now()) ON CONFLICT DO NOTHING;

CREATE OR REPLACE FUNCTION audit.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the audit log is append-only' USING ERRCODE = 'integrity_constraint_violation';
END $$;

CREATE OR REPLACE FUNCTION audit.leaves_in_order() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE run record;
BEGIN
    FOR run IN SELECT shard, min(idx) AS low, max(idx) AS high, count(*) AS n FROM added GROUP BY shard LOOP
        IF run.high - run.low + 1 <> run.n OR run.low <> coalesce(
            (SELECT max(idx) + 1 FROM audit.leaf WHERE shard = run.shard AND idx < run.low), 0)
        THEN
            RAISE EXCEPTION 'the audit log only grows at its end' USING ERRCODE = 'integrity_constraint_violation';
        END IF;
    END LOOP;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION audit.nodes_in_order() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE run record;
BEGIN
    FOR run IN SELECT shard, level, min(idx) AS low, max(idx) AS high, count(*) AS n FROM added GROUP BY 1, 2 LOOP
        IF run.high - run.low + 1 <> run.n OR run.low <> coalesce(
            (SELECT max(idx) + 1 FROM audit.node
             WHERE shard = run.shard AND level = run.level AND idx < run.low), 0)
        THEN
            RAISE EXCEPTION 'the audit log only grows at its end' USING ERRCODE = 'integrity_constraint_violation';
        END IF;
    END LOOP;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION audit.checkpoints_in_order() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM audit.checkpoint WHERE shard = new.shard AND size >= new.size) THEN
        RAISE EXCEPTION 'checkpoints only go forward' USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN new;
END $$;

CREATE OR REPLACE FUNCTION audit.state_grows() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF new.size < old.size OR new.shard <> old.shard THEN
        RAISE EXCEPTION 'the audit log never shrinks' USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN new;
END $$;

CREATE OR REPLACE TRIGGER kept BEFORE UPDATE OR DELETE ON audit.leaf
    FOR EACH ROW EXECUTE FUNCTION audit.refuse();
CREATE OR REPLACE TRIGGER kept BEFORE UPDATE OR DELETE ON audit.node
    FOR EACH ROW EXECUTE FUNCTION audit.refuse();
CREATE OR REPLACE TRIGGER kept BEFORE UPDATE OR DELETE ON audit.checkpoint
    FOR EACH ROW EXECUTE FUNCTION audit.refuse();
CREATE OR REPLACE TRIGGER kept BEFORE DELETE ON audit.state
    FOR EACH ROW EXECUTE FUNCTION audit.refuse();
CREATE OR REPLACE TRIGGER grows BEFORE UPDATE ON audit.state
    FOR EACH ROW EXECUTE FUNCTION audit.state_grows();

-- Row triggers do not see TRUNCATE.
CREATE OR REPLACE TRIGGER whole BEFORE TRUNCATE ON audit.leaf EXECUTE FUNCTION audit.refuse();
CREATE OR REPLACE TRIGGER whole BEFORE TRUNCATE ON audit.node EXECUTE FUNCTION audit.refuse();
CREATE OR REPLACE TRIGGER whole BEFORE TRUNCATE ON audit.checkpoint EXECUTE FUNCTION audit.refuse();
CREATE OR REPLACE TRIGGER whole BEFORE TRUNCATE ON audit.state EXECUTE FUNCTION audit.refuse();

CREATE OR REPLACE TRIGGER in_order AFTER INSERT ON audit.leaf
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION audit.leaves_in_order();
CREATE OR REPLACE TRIGGER in_order AFTER INSERT ON audit.node
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION audit.nodes_in_order();
CREATE OR REPLACE TRIGGER in_order BEFORE INSERT ON audit.checkpoint
    FOR EACH ROW EXECUTE FUNCTION audit.checkpoints_in_order();

-- A session with session_replication_role = replica passes other triggers by.
ALTER TABLE audit.leaf ENABLE ALWAYS TRIGGER kept, ENABLE ALWAYS TRIGGER whole, ENABLE ALWAYS TRIGGER in_order;
ALTER TABLE audit.node ENABLE ALWAYS TRIGGER kept, ENABLE ALWAYS TRIGGER whole, ENABLE ALWAYS TRIGGER in_order;
ALTER TABLE audit.checkpoint ENABLE ALWAYS TRIGGER kept, ENABLE ALWAYS TRIGGER whole, ENABLE ALWAYS TRIGGER in_order;
ALTER TABLE audit.state ENABLE ALWAYS TRIGGER kept, ENABLE ALWAYS TRIGGER whole, ENABLE ALWAYS TRIGGER grows;

-- The next shard: its partitions, guarded like their parents, and its empty state. As the owner, for the sequencer
-- may not make tables.
CREATE OR REPLACE FUNCTION audit.begin_shard(number integer, root bytea, frontier bytea) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE parent text;
BEGIN
    IF number <> (SELECT coalesce(max(s.shard), 0) + 1 FROM audit.state s) THEN
        RAISE EXCEPTION 'shard % does not come next', number USING ERRCODE = 'unique_violation';
    END IF;
    INSERT INTO audit.state VALUES (number, 0, root, frontier, NULL);
    FOREACH parent IN ARRAY ARRAY['leaf', 'node', 'checkpoint'] LOOP
        EXECUTE format('CREATE TABLE audit.%I PARTITION OF audit.%I FOR VALUES IN (%s)',
            parent || '_' || number, parent, number);
        EXECUTE format('CREATE TRIGGER whole BEFORE TRUNCATE ON audit.%I EXECUTE FUNCTION audit.refuse()',
            parent || '_' || number);
        EXECUTE format('ALTER TABLE audit.%I ENABLE ALWAYS TRIGGER kept, ENABLE ALWAYS TRIGGER whole',
            parent || '_' || number);
    END LOOP;
END $$;

-- The oldest shard, whole. For the owner alone.
CREATE OR REPLACE FUNCTION audit.drop_shard(number integer) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE parent text;
BEGIN
    IF number <> (SELECT min(shard) FROM audit.state) OR number = (SELECT max(shard) FROM audit.state) THEN
        RAISE EXCEPTION 'only the oldest shard can be dropped, and never the newest';
    END IF;
    FOREACH parent IN ARRAY ARRAY['leaf', 'node', 'checkpoint'] LOOP
        EXECUTE format('DROP TABLE audit.%I', parent || '_' || number);
    END LOOP;
    ALTER TABLE audit.state DISABLE TRIGGER kept;
    DELETE FROM audit.state WHERE shard = number;
    ALTER TABLE audit.state ENABLE ALWAYS TRIGGER kept;
END $$;

REVOKE ALL ON FUNCTION audit.begin_shard, audit.drop_shard FROM PUBLIC;

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'aimx_seq') THEN
        GRANT USAGE ON SCHEMA audit TO aimx_seq;
        GRANT SELECT, INSERT ON audit.leaf, audit.node, audit.checkpoint TO aimx_seq;
        GRANT SELECT, UPDATE (size, root, frontier, signed) ON audit.state TO aimx_seq;
        GRANT SELECT, UPDATE (name, expires) ON audit.leader TO aimx_seq;
        GRANT EXECUTE ON FUNCTION audit.begin_shard TO aimx_seq;
    END IF;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'aimx_app') THEN
        GRANT USAGE ON SCHEMA audit TO aimx_app;
        GRANT SELECT ON ALL TABLES IN SCHEMA audit TO aimx_app;
    END IF;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'aimx_api') THEN
        GRANT USAGE ON SCHEMA audit TO aimx_api;
        GRANT SELECT ON ALL TABLES IN SCHEMA audit TO aimx_api;
    END IF;
END $$;
