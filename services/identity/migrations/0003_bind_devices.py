"""A device may ask for one binding: only who signed in there approves it."""

from libs.migrations import refuse, run

revision = "0003"
down_revision = "0002"

UPGRADE = """
ALTER TABLE identity.device_codes ADD COLUMN binding_id uuid REFERENCES identity.idp_bindings ON DELETE CASCADE;
"""


def upgrade() -> None:
    run(UPGRADE)


def downgrade() -> None:
    refuse("below this revision any session could approve a device that asked for one binding")
