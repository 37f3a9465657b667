"""What keeps the log up never takes long, and never waits long for a lock that appends would queue behind.

`roll_log` only makes partitions. What is past keeping goes by functions of its own: places some at a time, partitions
when nobody is in the way. Also: the outbox is read by scope, each found by one look into an index.
"""

from libs.migrations import refuse, run

revision = "0004"
down_revision = "0003"

SQL = """
CREATE FUNCTION mesh.kept_since() RETURNS timestamptz LANGUAGE sql STABLE AS $$
    SELECT date_trunc('day', now(), 'UTC') - interval '8 days'
$$;

CREATE OR REPLACE FUNCTION mesh.roll_log() RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
DECLARE
    today timestamptz := date_trunc('day', now(), 'UTC');
    first timestamptz;
    name text;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('mesh.roll_log'));
    -- One day back, for events that were made before midnight; two ahead, so that a missed run does no harm.
    FOR first IN SELECT generate_series(today - interval '1 day', today + interval '2 days', interval '1 day') LOOP
        name := 'event_log_' || to_char(first AT TIME ZONE 'UTC', 'YYYYMMDD');
        IF to_regclass('mesh.' || name) IS NULL THEN
            -- Attached and not made in place: appends go on meanwhile.
            EXECUTE format('CREATE TABLE mesh.%I (LIKE mesh.event_log INCLUDING ALL)', name);
            EXECUTE format('ALTER TABLE mesh.event_log ATTACH PARTITION mesh.%I FOR VALUES FROM (%L) TO (%L)',
                           name, mesh.first_id(first), mesh.first_id(first + interval '1 day'));
        END IF;
    END LOOP;
END
$$;

-- Appends queue behind a lock that this waits for, so it does not wait for long. False: it could not have it.
CREATE FUNCTION mesh.drop_old_log() RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' SET lock_timeout = '100ms' AS $$
DECLARE
    name text;
BEGIN
    FOR name IN
        SELECT c.relname FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'mesh.event_log'::regclass
          AND c.relname < 'event_log_' || to_char(mesh.kept_since() AT TIME ZONE 'UTC', 'YYYYMMDD')
    LOOP
        -- Another replica may have dropped it since.
        EXECUTE format('DROP TABLE IF EXISTS mesh.%I', name);
    END LOOP;
    RETURN true;
EXCEPTION WHEN lock_not_available THEN
    RETURN false;
END
$$;

-- Places were noted in about the order of their sequences, so the oldest are found without an index on their time. The
-- newest one stays whatever its age: a stream that is made anew starts above it.
CREATE FUNCTION mesh.forget_old_places() RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = '' AS $$
    WITH forgotten AS (
        DELETE FROM mesh.event_positions WHERE sequence = ANY (ARRAY(
            SELECT o.sequence FROM (SELECT sequence, noted_at FROM mesh.event_positions ORDER BY sequence LIMIT 5000) o
            WHERE o.noted_at < mesh.kept_since()
        )) AND sequence < (SELECT max(sequence) FROM mesh.event_positions) RETURNING 1
    )
    SELECT count(*) FROM forgotten
$$;

REVOKE ALL ON FUNCTION mesh.drop_old_log(), mesh.forget_old_places() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION mesh.drop_old_log(), mesh.forget_old_places() TO mesh;

CREATE INDEX event_outbox_waiting ON mesh.event_outbox (domain_id, scope, position) WHERE refused_code = '';
"""


def upgrade() -> None:
    run(SQL)


def downgrade() -> None:
    refuse("below this revision the log stops to grow once too much is past keeping, and with it every publish")
