"""A heartbeat says since when its node is healthy; a finished rotation of a mesh key keeps the receipt that it gave."""

from libs.migrations import refuse, run

revision = "0005"
down_revision = "0004"

UPGRADE = """
ALTER TABLE identity.heartbeats ADD COLUMN healthy_since timestamptz NOT NULL DEFAULT now();
UPDATE identity.heartbeats SET healthy_since = accepted_at;
ALTER TABLE identity.key_rotations
    ADD COLUMN kid text CHECK (kid ~ '^nsk_[0-9a-f]{32}$'),
    ADD COLUMN wrap_key_version int CHECK (wrap_key_version > 0),
    ADD CONSTRAINT receipt_when_completed
        CHECK ((completed_at IS NULL) = (kid IS NULL) AND (completed_at IS NULL) = (wrap_key_version IS NULL));
"""


def upgrade() -> None:
    run(UPGRADE)


def downgrade() -> None:
    refuse("going below this revision would delete the receipts of rotated keys")
