-- What outsiders said of our log, and what this deployment has witnessed of others'. Run as the owner; idempotent.

CREATE SCHEMA IF NOT EXISTS audit;

CREATE TABLE IF NOT EXISTS audit.anchor (
    id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind   text NOT NULL,
    name   text NOT NULL,
    origin text NOT NULL,
    size   bigint NOT NULL,
    t_ms   bigint NOT NULL,
    note   text NOT NULL,
    token  bytea NOT NULL
);
CREATE INDEX IF NOT EXISTS anchor_of ON audit.anchor (kind, name, origin, id);

CREATE TABLE IF NOT EXISTS audit.witnessed (
    origin text PRIMARY KEY,
    size   bigint NOT NULL,
    root   bytea NOT NULL,
    note   text NOT NULL
);

CREATE OR REPLACE FUNCTION audit.witness_goes_forward() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF tg_op <> 'UPDATE' THEN
        RAISE EXCEPTION 'a witness never forgets';
    ELSIF new.size < old.size OR (new.size = old.size AND new.root <> old.root) THEN
        RAISE EXCEPTION 'a witness never goes back';
    END IF;
    RETURN new;
END $$;

DROP TRIGGER IF EXISTS witnessed_forward ON audit.witnessed;
CREATE TRIGGER witnessed_forward BEFORE UPDATE OR DELETE ON audit.witnessed
    FOR EACH ROW EXECUTE FUNCTION audit.witness_goes_forward();
ALTER TABLE audit.witnessed ENABLE ALWAYS TRIGGER witnessed_forward;
DROP TRIGGER IF EXISTS witnessed_stays ON audit.witnessed;
CREATE TRIGGER witnessed_stays BEFORE TRUNCATE ON audit.witnessed
    FOR EACH STATEMENT EXECUTE FUNCTION audit.witness_goes_forward();
ALTER TABLE audit.witnessed ENABLE ALWAYS TRIGGER witnessed_stays;

DO $$
DECLARE who text;
BEGIN
    FOREACH who IN ARRAY ARRAY['aimx_seq', 'aimx_app'] LOOP
        IF EXISTS (SELECT FROM pg_roles WHERE rolname = who) THEN
            EXECUTE format('GRANT USAGE ON SCHEMA audit TO %I', who);
            EXECUTE format('GRANT SELECT, INSERT, DELETE ON audit.anchor TO %I', who);
            EXECUTE format('GRANT SELECT, INSERT, UPDATE ON audit.witnessed TO %I', who);
        END IF;
    END LOOP;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'aimx_api') THEN
        GRANT USAGE ON SCHEMA audit TO aimx_api;
        GRANT SELECT ON audit.anchor, audit.witnessed TO aimx_api;
        GRANT INSERT, UPDATE ON audit.witnessed TO aimx_api;
    END IF;
END $$;
