"""A device may ask for one binding: only who signed in there approves it."""

from libs.migrations import run

revision = "0003"
down_revision = "0002"

UPGRADE = """
ALTER TABLE identity.device_codes ADD COLUMN binding_id uuid REFERENCES identity.idp_bindings ON DELETE CASCADE;
"""

DOWNGRADE = """
ALTER TABLE identity.device_codes DROP COLUMN binding_id;
"""


def upgrade() -> None:
    run(UPGRADE)


def downgrade() -> None:
    run(DOWNGRADE)
