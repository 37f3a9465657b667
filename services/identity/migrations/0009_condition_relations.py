"""Relations may depend on a caveat; what SpiceDB refuses is kept aside; ids fit into a notification."""

from libs.migrations import refuse, run

revision = "0009"
down_revision = "0008"

UPGRADE = """
ALTER TABLE identity.relation_tuples
    ADD COLUMN caveat_name text NOT NULL DEFAULT '',
    ADD COLUMN caveat_context jsonb NOT NULL DEFAULT '{}',
    ADD COLUMN refused_code text NOT NULL DEFAULT '',
    ADD CONSTRAINT notifiable CHECK (length(resource_id) <= 1024 AND length(subject_id) <= 1024) NOT VALID;
DROP INDEX identity.tuples_to_deliver;
CREATE INDEX tuples_to_deliver ON identity.relation_tuples (id) WHERE state <> 'live' AND refused_code = '';
"""


def upgrade() -> None:
    run(UPGRADE)


def downgrade() -> None:
    refuse("going below this revision would make conditional relations unconditional")
