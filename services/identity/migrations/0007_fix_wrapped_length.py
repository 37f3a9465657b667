"""A wrapped key has the length of one: no plaintext key in hex or base64 passes, whatever stands before it."""

from libs.migrations import refuse, run

revision = "0007"
down_revision = "0006"

UPGRADE = """
ALTER TABLE identity.node_secret_keys
    DROP CONSTRAINT node_secret_keys_wrapped_check,
    ADD CONSTRAINT node_secret_keys_wrapped_check CHECK (wrapped ~ '^vault:v[0-9]+:[A-Za-z0-9+/]{80}$');
"""


def upgrade() -> None:
    run(UPGRADE)


def downgrade() -> None:
    refuse("below this revision the database would take a plaintext node key")
