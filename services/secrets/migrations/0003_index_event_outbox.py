"""The outbox is read by scope, each found by one look into an index."""

from libs.migrations import run

revision = "0003"
down_revision = "0002"

UPGRADE = """
CREATE INDEX event_outbox_waiting ON secrets.event_outbox (domain_id, scope, position) WHERE refused_code = '';
"""


def upgrade() -> None:
    run(UPGRADE)


def downgrade() -> None:
    run("DROP INDEX secrets.event_outbox_waiting")
