"""Limits may change while their cells are in use, and whoever waits as long as told gets past both."""

from libs.migrations import refuse, run

revision = "0006"
down_revision = "0005"

UPGRADE = """
-- The interval that a cell counts in; unknown is as now.
ALTER TABLE secrets.limit_cells ADD COLUMN every interval;

-- Makes a cell count by the limits of now: reads that were made under others are as many as they were, but no more than
-- a burst. It is kept even when nothing is charged then: what is waited counts by the limits that said how long.
CREATE FUNCTION secrets.follow_limits(cell uuid, every_now interval, burst integer) RETURNS void LANGUAGE sql AS $$
    UPDATE secrets.limit_cells c
    SET every = every_now,
        tat = clock_timestamp() + least(
            greatest(c.tat - clock_timestamp(), interval '0')
                * (extract(epoch FROM every_now) / extract(epoch FROM coalesce(c.every, every_now)))::double precision,
            every_now * burst
        )
    WHERE c.id = cell AND (c.every IS DISTINCT FROM every_now OR c.tat > clock_timestamp() + every_now * burst)
$$;

-- As before: GCRA (ITU-T I.371, annex A), locks in the order node, then Domain, the clock read after each. A node over
-- its own limit looks at its Domain's cell without a lock, only to say how long both of them take.
CREATE OR REPLACE FUNCTION secrets.spend(
    node uuid, node_interval interval, node_burst integer,
    domain uuid, domain_interval interval, domain_burst integer,
    OUT refused text, OUT retry_after interval
) LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    node_tat timestamptz;
    domain_tat timestamptz;
    at timestamptz;
BEGIN
    INSERT INTO secrets.limit_cells (id, tat, every)
    VALUES (node, '-infinity', node_interval), (domain, '-infinity', domain_interval) ON CONFLICT DO NOTHING;
    PERFORM secrets.follow_limits(node, node_interval, node_burst);
    SELECT c.tat INTO STRICT node_tat FROM secrets.limit_cells c WHERE c.id = node FOR UPDATE;
    at := clock_timestamp();
    node_tat := greatest(node_tat, at) + node_interval;
    retry_after := node_tat - at - node_interval * node_burst;
    PERFORM secrets.follow_limits(domain, domain_interval, domain_burst);
    IF retry_after > interval '0' THEN
        refused := 'node';
        SELECT c.tat INTO STRICT domain_tat FROM secrets.limit_cells c WHERE c.id = domain;
    ELSE
        SELECT c.tat INTO STRICT domain_tat FROM secrets.limit_cells c WHERE c.id = domain FOR UPDATE;
        at := clock_timestamp();
    END IF;
    domain_tat := greatest(domain_tat, at) + domain_interval;
    retry_after := greatest(retry_after, domain_tat - at - domain_interval * domain_burst);
    IF retry_after > interval '0' THEN
        refused := coalesce(refused, 'domain');
        RETURN;
    END IF;
    UPDATE secrets.limit_cells c SET tat = node_tat WHERE c.id = node;
    UPDATE secrets.limit_cells c SET tat = domain_tat WHERE c.id = domain;
END $$;

REVOKE ALL ON FUNCTION secrets.follow_limits FROM PUBLIC;
GRANT EXECUTE ON FUNCTION secrets.follow_limits TO secrets;
"""


def upgrade() -> None:
    run(UPGRADE)


def downgrade() -> None:
    refuse("below this revision a limit that was raised keeps nodes waiting for what the lower one asked")
