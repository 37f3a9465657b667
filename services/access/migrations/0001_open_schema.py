"""The schema is opened to its service; it has no table yet."""

from libs.migrations import run

revision = "0001"
down_revision = None


def upgrade() -> None:
    run("GRANT USAGE ON SCHEMA access TO access")


def downgrade() -> None:
    run("REVOKE USAGE ON SCHEMA access FROM access")
