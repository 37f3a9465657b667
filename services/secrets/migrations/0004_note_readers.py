"""Whom a change concerns, noted before it is made and until they are told of it."""

from libs.migrations import refuse, run

revision = "0004"
down_revision = "0003"

UPGRADE = """
CREATE TABLE secrets.untold (
    id         uuid PRIMARY KEY,
    domain_id  uuid NOT NULL,
    node_ids   uuid[] NOT NULL,
    reason     text NOT NULL,
    noted_at   timestamptz NOT NULL DEFAULT now()
);
GRANT SELECT, INSERT, DELETE ON secrets.untold TO secrets;
"""


def upgrade() -> None:
    run(UPGRADE)


def downgrade() -> None:
    refuse("going below this revision would forget who is still to be told of a change")
