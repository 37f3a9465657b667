"""A reference has the form of one by itself, whatever the ids of its row."""

from libs.migrations import refuse, run

revision = "0005"
down_revision = "0004"

UPGRADE = """
ALTER TABLE secrets.secrets
    ADD CONSTRAINT reference_form CHECK (reference ~ '^secrets/[0-9a-f-]{36}/[0-9a-f-]{36}$');
"""


def upgrade() -> None:
    run(UPGRADE)


def downgrade() -> None:
    refuse("below this revision the column guard lets nobody start")
