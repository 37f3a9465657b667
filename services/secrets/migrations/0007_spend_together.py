"""Reads of a Domain that come at the same time are charged in one call, each as if it came alone."""

from libs.migrations import refuse, run

revision = "0007"
down_revision = "0006"

UPGRADE = """
-- Charges one read after the other, as `spend` does. Whoever charges several locks all of its nodes first, in the order
-- of their ids, and the Domain after them, so that nobody waits in a circle.
CREATE FUNCTION secrets.spend_all(
    nodes uuid[], node_interval interval, node_burst integer,
    domain uuid, domain_interval interval, domain_burst integer
) RETURNS TABLE (refused text, retry_after interval) LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    node uuid;
BEGIN
    INSERT INTO secrets.limit_cells (id, tat, every)
    SELECT DISTINCT n.id, '-infinity'::timestamptz, node_interval FROM unnest(nodes) AS n (id) ORDER BY n.id
    ON CONFLICT DO NOTHING;
    PERFORM FROM secrets.limit_cells c WHERE c.id = ANY (nodes) ORDER BY c.id FOR UPDATE;
    FOREACH node IN ARRAY nodes LOOP
        RETURN QUERY SELECT s.refused, s.retry_after
        FROM secrets.spend(node, node_interval, node_burst, domain, domain_interval, domain_burst) s;
    END LOOP;
END $$;

REVOKE ALL ON FUNCTION secrets.spend_all FROM PUBLIC;
GRANT EXECUTE ON FUNCTION secrets.spend_all TO secrets;
"""


def upgrade() -> None:
    run(UPGRADE)


def downgrade() -> None:
    refuse("a process of this revision charges nobody without this function, and so lets nobody read")
