"""A digest has the length of one by itself, whatever its envelope."""

from libs.migrations import refuse, run

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    run("ALTER TABLE mesh.event_log ADD CONSTRAINT digest_form CHECK (length(digest) = 32)")


def downgrade() -> None:
    refuse("below this revision the column guard lets nobody start")
