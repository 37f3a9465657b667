"""Places for sessions on their way are not logged: one that a crash takes away makes no session, and costs no flush."""

from libs.migrations import refuse, run

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    run("ALTER TABLE access.reservations SET UNLOGGED")


def downgrade() -> None:
    refuse("a place is held for seconds; nothing is gained by logging it again")
