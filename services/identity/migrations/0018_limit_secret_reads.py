"""A Domain's policy may say how often its secrets are read; where it says nothing, the platform does."""

from libs.migrations import refuse, run

revision = "0018"
down_revision = "0017"

UPGRADE = """
ALTER TABLE identity.access_policies
    ADD COLUMN node_rate_per_minute   integer CHECK (node_rate_per_minute > 0),
    ADD COLUMN node_burst             integer CHECK (node_burst > 0),
    ADD COLUMN domain_rate_per_minute integer CHECK (domain_rate_per_minute > 0),
    ADD COLUMN domain_burst           integer CHECK (domain_burst > 0);
"""


def upgrade() -> None:
    run(UPGRADE)


def downgrade() -> None:
    refuse("below this revision Domains would lose limits that they have set")
