"""Secrets' metadata, and the cells of the rate limits."""

from libs.migrations import refuse, run

revision = "0001"
down_revision = None

SQL = """
CREATE TABLE secrets.secrets (
    id               uuid PRIMARY KEY,
    domain_id        uuid NOT NULL,
    project_id       uuid NOT NULL,
    name             text NOT NULL CHECK (name ~ '^[a-z][a-z0-9_-]{0,62}$'),
    reference        text NOT NULL CHECK (reference = 'secrets/' || domain_id || '/' || id),
    current_version  integer NOT NULL DEFAULT 0 CHECK (current_version >= 0),
    pending_version  integer CHECK (pending_version > 0),
    pending_at       timestamptz,
    destroying_at    timestamptz,
    created_at       timestamptz NOT NULL DEFAULT now(),
    updated_at       timestamptz NOT NULL DEFAULT now(),
    UNIQUE (project_id, name),
    CHECK ((pending_version IS NULL) = (pending_at IS NULL))
);
CREATE INDEX secrets_unsettled ON secrets.secrets (id) WHERE pending_at IS NOT NULL OR destroying_at IS NOT NULL;

-- A cell is the id of a node or of a Domain. Unlogged: a crash of the database empties the cells, which refills the
-- limits once, and in return a read costs no write-ahead log.
CREATE UNLOGGED TABLE secrets.limit_cells (
    id   uuid PRIMARY KEY,
    tat  timestamptz NOT NULL
);

-- GCRA (ITU-T I.371, annex A) on two cells, with the database's clock. Row locks are taken in the same order by all:
-- node, then Domain. The clock is read after the locks, so that whoever waited is judged by when its turn came.
CREATE FUNCTION secrets.spend(
    node uuid, node_interval interval, node_burst integer,
    domain uuid, domain_interval interval, domain_burst integer,
    OUT refused text, OUT retry_after interval
) LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    node_tat timestamptz;
    domain_tat timestamptz;
    at timestamptz;
BEGIN
    INSERT INTO secrets.limit_cells (id, tat) VALUES (node, '-infinity'), (domain, '-infinity') ON CONFLICT DO NOTHING;
    SELECT c.tat INTO STRICT node_tat FROM secrets.limit_cells c WHERE c.id = node FOR UPDATE;
    at := clock_timestamp();
    node_tat := greatest(node_tat, at) + node_interval;
    IF node_tat - at > node_interval * node_burst THEN
        refused := 'node';
        retry_after := node_tat - at - node_interval * node_burst;
        RETURN;
    END IF;
    SELECT c.tat INTO STRICT domain_tat FROM secrets.limit_cells c WHERE c.id = domain FOR UPDATE;
    at := clock_timestamp();
    domain_tat := greatest(domain_tat, at) + domain_interval;
    IF domain_tat - at > domain_interval * domain_burst THEN
        refused := 'domain';
        retry_after := domain_tat - at - domain_interval * domain_burst;
        RETURN;
    END IF;
    UPDATE secrets.limit_cells c SET tat = node_tat WHERE c.id = node;
    UPDATE secrets.limit_cells c SET tat = domain_tat WHERE c.id = domain;
END $$;

GRANT USAGE ON SCHEMA secrets TO secrets;
GRANT SELECT, INSERT, UPDATE, DELETE ON secrets.secrets TO secrets;
GRANT SELECT, INSERT, UPDATE ON secrets.limit_cells TO secrets;
REVOKE ALL ON FUNCTION secrets.spend FROM PUBLIC;
GRANT EXECUTE ON FUNCTION secrets.spend TO secrets;
"""


def upgrade() -> None:
    run(SQL)


def downgrade() -> None:
    refuse("without this table nobody knows which values OpenBao holds")
