"""Checkpoints: the Merkle tree's hashes and the signed notes; both refuse change as entries do."""

from libs.migrations import refuse, run

revision = "0002"
down_revision = "0001"

UPGRADE = """
CREATE TABLE audit.tree (
    chain text NOT NULL,
    level smallint NOT NULL CHECK (level BETWEEN 0 AND 62),
    position bigint NOT NULL CHECK (position >= 0),
    hash bytea NOT NULL CHECK (length(hash) = 32),
    PRIMARY KEY (chain, level, position)
);
CREATE TABLE audit.checkpoints (
    chain text NOT NULL,
    size bigint NOT NULL CHECK (size >= 1),
    root bytea NOT NULL CHECK (length(root) = 32),
    note text NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (chain, size)
);

CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE ON audit.tree
    FOR EACH ROW EXECUTE FUNCTION audit.refuse_change();
CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON audit.tree
    FOR EACH STATEMENT EXECUTE FUNCTION audit.refuse_change();
CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE ON audit.checkpoints
    FOR EACH ROW EXECUTE FUNCTION audit.refuse_change();
CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON audit.checkpoints
    FOR EACH STATEMENT EXECUTE FUNCTION audit.refuse_change();

GRANT SELECT, INSERT ON audit.tree, audit.checkpoints TO audit;
"""


def upgrade() -> None:
    run(UPGRADE)


def downgrade() -> None:
    refuse("going below this revision would delete signed checkpoints")
