"""Epochs of the archive: after an acknowledged restore a chain is archived anew, beside what was archived before."""

from libs.migrations import refuse, run

revision = "0005"
down_revision = "0004"

UPGRADE = """
ALTER TABLE audit.archived DROP CONSTRAINT archived_chain_first_fkey, DROP CONSTRAINT archived_pkey;
ALTER TABLE audit.segments DROP CONSTRAINT segments_pkey;
ALTER TABLE audit.segments ADD COLUMN epoch bigint NOT NULL DEFAULT 0 CHECK (epoch >= 0),
    ADD PRIMARY KEY (chain, epoch, first);
ALTER TABLE audit.archived ADD COLUMN epoch bigint NOT NULL DEFAULT 0,
    ADD PRIMARY KEY (chain, epoch, first), ADD FOREIGN KEY (chain, epoch, first) REFERENCES audit.segments;
"""


def upgrade() -> None:
    run(UPGRADE)


def downgrade() -> None:
    refuse("going below this revision would mix archives of different histories")
