"""Whoever approves a device sees where its request came from, and what it says that it is."""

from libs.migrations import refuse, run

revision = "0019"
down_revision = "0018"

UPGRADE = """
ALTER TABLE identity.device_codes
    ADD COLUMN client_ip  text NOT NULL DEFAULT '',
    ADD COLUMN user_agent text NOT NULL DEFAULT '';
"""


def upgrade() -> None:
    run(UPGRADE)


def downgrade() -> None:
    refuse("below this revision people would approve devices blindly")
