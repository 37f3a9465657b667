"""An access token knows the session that approved it, and ends with it."""

from libs.migrations import refuse, run

revision = "0015"
down_revision = "0014"

UPGRADE = """
ALTER TABLE identity.access_tokens ADD COLUMN session_id uuid;
CREATE INDEX access_tokens_by_session ON identity.access_tokens (session_id);
"""


def upgrade() -> None:
    run(UPGRADE)


def downgrade() -> None:
    refuse("below this revision an access token would outlive the session that it came from")
