"""The outbox keeps the order of its rows and what mesh would never take; nodes have endpoints and rotate mesh keys."""

from libs.migrations import refuse, run

revision = "0004"
down_revision = "0003"

UPGRADE = """
ALTER TABLE identity.event_outbox
    ADD COLUMN position bigint GENERATED ALWAYS AS IDENTITY,
    ADD COLUMN refused_code text NOT NULL DEFAULT '';
CREATE TABLE identity.endpoints (
    node_id uuid PRIMARY KEY REFERENCES identity.nodes ON DELETE CASCADE,
    endpoint text NOT NULL,
    nat_type text NOT NULL,
    reported_at timestamptz NOT NULL,
    accepted_at timestamptz NOT NULL
);
CREATE TABLE identity.key_rotations (
    id uuid PRIMARY KEY,
    node_id uuid NOT NULL REFERENCES identity.nodes ON DELETE CASCADE,
    requested_at timestamptz NOT NULL,
    completed_at timestamptz,
    public_key bytea CHECK (length(public_key) = 32),
    CHECK ((completed_at IS NULL) = (public_key IS NULL))
);
CREATE UNIQUE INDEX one_pending_rotation_a_node ON identity.key_rotations (node_id) WHERE completed_at IS NULL;
CREATE INDEX rotations_by_node ON identity.key_rotations (node_id, completed_at);
GRANT SELECT, INSERT, UPDATE, DELETE ON identity.endpoints, identity.key_rotations TO identity;
"""


def upgrade() -> None:
    run(UPGRADE)


def downgrade() -> None:
    refuse("going below this revision would delete the record of rotated keys")
