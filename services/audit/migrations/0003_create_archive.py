"""The archive: which segments are planned, and which are archived; both refuse change as entries do."""

from libs.migrations import refuse, run

revision = "0003"
down_revision = "0002"

UPGRADE = """
CREATE TABLE audit.segments (
    chain text NOT NULL,
    first bigint NOT NULL CHECK (first >= 1),
    last bigint NOT NULL CHECK (last >= first),
    size bigint NOT NULL CHECK (size >= last),
    PRIMARY KEY (chain, first)
);
CREATE TABLE audit.archived (
    chain text NOT NULL,
    first bigint NOT NULL,
    etag text NOT NULL,
    archived_at timestamptz NOT NULL,
    PRIMARY KEY (chain, first),
    FOREIGN KEY (chain, first) REFERENCES audit.segments
);

CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE ON audit.segments
    FOR EACH ROW EXECUTE FUNCTION audit.refuse_change();
CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON audit.segments
    FOR EACH STATEMENT EXECUTE FUNCTION audit.refuse_change();
CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE ON audit.archived
    FOR EACH ROW EXECUTE FUNCTION audit.refuse_change();
CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON audit.archived
    FOR EACH STATEMENT EXECUTE FUNCTION audit.refuse_change();

GRANT SELECT, INSERT ON audit.segments, audit.archived TO audit;
"""


def upgrade() -> None:
    run(UPGRADE)


def downgrade() -> None:
    refuse("going below this revision would forget what is archived")
