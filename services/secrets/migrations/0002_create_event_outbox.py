"""Events that tell nodes of secrets that they may read."""

from libs.migrations import refuse, run

revision = "0002"
down_revision = "0001"

UPGRADE = """
CREATE TABLE secrets.event_outbox (
    id           uuid PRIMARY KEY,
    domain_id    uuid NOT NULL,
    type         text NOT NULL,
    scope        text NOT NULL,
    payload      jsonb NOT NULL,
    created_at   timestamptz NOT NULL,
    position     bigint GENERATED ALWAYS AS IDENTITY,
    refused_code text NOT NULL DEFAULT ''
);
GRANT SELECT, INSERT, UPDATE, DELETE ON secrets.event_outbox TO secrets;
"""


def upgrade() -> None:
    run(UPGRADE)


def downgrade() -> None:
    refuse("going below this revision would delete events that nobody was told of yet")
