"""Links are no longer unique by themselves: where an entry stands is, and a head that is locked has one successor."""

from libs.migrations import refuse, run

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    run("ALTER TABLE audit.entries DROP CONSTRAINT entries_chain_prev_hash_key")


def downgrade() -> None:
    refuse("going below this revision would build an index over every entry")
