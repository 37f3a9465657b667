"""An access token knows the session that approved it, and ends with it."""

from libs.migrations import run

revision = "0015"
down_revision = "0014"

UPGRADE = """
ALTER TABLE identity.access_tokens ADD COLUMN session_id uuid;
CREATE INDEX access_tokens_by_session ON identity.access_tokens (session_id);
"""

DOWNGRADE = "ALTER TABLE identity.access_tokens DROP COLUMN session_id;"


def upgrade() -> None:
    run(UPGRADE)


def downgrade() -> None:
    run(DOWNGRADE)
