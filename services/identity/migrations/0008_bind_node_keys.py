"""A wrapped key has exactly its form; a node may have a superseded key too; no two of a Domain share a mesh key."""

from libs.migrations import refuse, run

revision = "0008"
down_revision = "0007"

UPGRADE = """
-- 32 bytes with nonce and tag are 60, which are 80 characters: what is shorter or longer is no wrapped key.
ALTER TABLE identity.node_secret_keys
    DROP CONSTRAINT node_secret_keys_wrapped_check,
    ADD CONSTRAINT node_secret_keys_wrapped_check CHECK (wrapped ~ '^vault:v[0-9]+:[A-Za-z0-9+/]{80}$'),
    ADD COLUMN valid_until timestamptz;
DROP INDEX identity.one_live_key_a_node;
CREATE UNIQUE INDEX one_current_key_a_node ON identity.node_secret_keys (node_id)
    WHERE revoked_at IS NULL AND valid_until IS NULL;
CREATE UNIQUE INDEX one_superseded_key_a_node ON identity.node_secret_keys (node_id)
    WHERE revoked_at IS NULL AND valid_until IS NOT NULL;
ALTER TABLE identity.nodes ADD CONSTRAINT one_node_a_mesh_key UNIQUE (domain_id, public_key);
CREATE INDEX resources_by_project ON identity.resources (project_id, id);
"""


def upgrade() -> None:
    run(UPGRADE)


def downgrade() -> None:
    refuse("below this revision a node has one live key, and the others would be lost")
