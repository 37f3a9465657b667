"""The log of published events, where each was published, rotations of keys, and mesh's own outbox.

The log is partitioned by the time in its UUIDv7 ids, so that an id is unique over all partitions. The service may only
read and append: partitions are made and dropped by a function of the owner, which keeps at least eight days.
"""

from libs.migrations import refuse, run

revision = "0002"
down_revision = "0001"

SQL = """
ALTER TABLE mesh.signing_keys
    ADD COLUMN activated_at timestamptz DEFAULT now(),
    ADD COLUMN revoked_at timestamptz,
    ADD COLUMN transition_expires timestamptz,
    ADD COLUMN announcement_id uuid,
    ADD COLUMN announced_at timestamptz;
CREATE UNIQUE INDEX one_current_key ON mesh.signing_keys (domain_id)
    WHERE activated_at IS NOT NULL AND expires_at IS NULL AND revoked_at IS NULL;
CREATE INDEX keys_to_announce ON mesh.signing_keys (announced_at) WHERE announcement_id IS NOT NULL;

CREATE TABLE mesh.event_log (
    id         uuid PRIMARY KEY,
    domain_id  uuid NOT NULL,
    scope      text NOT NULL,
    type       text NOT NULL,
    envelope   bytea NOT NULL CHECK (length(envelope) <= 60000),
    digest     bytea NOT NULL CHECK (digest = sha256(envelope)),
    issued_at  timestamptz NOT NULL
) PARTITION BY RANGE (id);

CREATE TABLE mesh.event_positions (
    sequence  bigint PRIMARY KEY CHECK (sequence > 0),
    id        uuid NOT NULL,
    noted_at  timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX positions_by_id ON mesh.event_positions (id);

CREATE TABLE mesh.event_outbox (
    id           uuid PRIMARY KEY,
    domain_id    uuid NOT NULL,
    type         text NOT NULL,
    scope        text NOT NULL,
    payload      jsonb NOT NULL,
    created_at   timestamptz NOT NULL,
    position     bigint GENERATED ALWAYS AS IDENTITY,
    refused_code text NOT NULL DEFAULT ''
);

CREATE TABLE mesh.reconciles (
    domain_id     uuid PRIMARY KEY,
    announced_at  timestamptz NOT NULL
);

CREATE FUNCTION mesh.first_id(at timestamptz) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
    SELECT (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid
$$;

CREATE FUNCTION mesh.roll_log() RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
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
            EXECUTE format('CREATE TABLE mesh.%I PARTITION OF mesh.event_log FOR VALUES FROM (%L) TO (%L)',
                           name, mesh.first_id(first), mesh.first_id(first + interval '1 day'));
        END IF;
    END LOOP;
    FOR name IN
        SELECT c.relname FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'mesh.event_log'::regclass
          AND c.relname < 'event_log_' || to_char((today - interval '8 days') AT TIME ZONE 'UTC', 'YYYYMMDD')
    LOOP
        EXECUTE format('DROP TABLE mesh.%I', name);
    END LOOP;
    -- The newest one stays whatever its age: a stream that is made anew starts above it.
    DELETE FROM mesh.event_positions
    WHERE noted_at < today - interval '8 days' AND sequence < (SELECT max(sequence) FROM mesh.event_positions);
END
$$;
SELECT mesh.roll_log();

GRANT SELECT, INSERT ON mesh.event_log, mesh.event_positions TO mesh;
GRANT SELECT, INSERT, UPDATE, DELETE ON mesh.event_outbox TO mesh;
GRANT SELECT, INSERT, UPDATE ON mesh.reconciles TO mesh;
GRANT UPDATE (activated_at, expires_at, revoked_at, announcement_id, announced_at) ON mesh.signing_keys TO mesh;
REVOKE ALL ON FUNCTION mesh.roll_log() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION mesh.roll_log() TO mesh;
"""


def upgrade() -> None:
    run(SQL)


def downgrade() -> None:
    refuse("going below this revision would forget what was published and which keys were revoked")
