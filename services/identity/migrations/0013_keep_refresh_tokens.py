"""A session keeps the provider's refresh token as ciphertext, and for how long the provider's word about it holds."""

from libs.migrations import refuse, run

revision = "0013"
down_revision = "0012"

UPGRADE = """
ALTER TABLE identity.sessions
    ADD COLUMN refresh_token text CHECK (refresh_token ~ '^vault:v[0-9]+:[A-Za-z0-9+/]{80,}=*$'),
    ADD COLUMN nonce_digest bytea CHECK (length(nonce_digest) = 32),
    ADD COLUMN refresh_at timestamptz,
    ADD COLUMN confirmed_until timestamptz,
    ADD CONSTRAINT kept_whole_or_not CHECK (
        num_nonnulls(refresh_token, nonce_digest, refresh_at, confirmed_until) IN (0, 4)
    );
CREATE INDEX sessions_to_refresh ON identity.sessions (refresh_at) WHERE refresh_at IS NOT NULL;
"""


def upgrade() -> None:
    run(UPGRADE)


def downgrade() -> None:
    refuse("below this revision sessions would live on whose provider no longer knows their people")
