"""The outbox is read by scope, each found by one look into an index; how much a node has announced of itself."""

from libs.migrations import refuse, run

revision = "0006"
down_revision = "0005"

UPGRADE = """
CREATE INDEX event_outbox_waiting ON identity.event_outbox (domain_id, scope, position) WHERE refused_code = '';
ALTER TABLE identity.endpoints ADD COLUMN changes_tat timestamptz;
"""


def upgrade() -> None:
    run(UPGRADE)


def downgrade() -> None:
    refuse("below this revision one node can fill the outbox faster than it is emptied")
