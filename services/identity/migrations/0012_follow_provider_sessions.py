"""A sign-in knows which session it replaces and whether its state was used; sessions know the provider's own."""

from libs.migrations import refuse, run

revision = "0012"
down_revision = "0011"

UPGRADE = """
ALTER TABLE identity.pending_sign_ins
    ADD COLUMN previous_digest bytea CHECK (length(previous_digest) = 32),
    ADD COLUMN used_at timestamptz;
ALTER TABLE identity.sessions ADD COLUMN sid text NOT NULL DEFAULT '';
ALTER TABLE identity.access_tokens ADD COLUMN sid text NOT NULL DEFAULT '';
ALTER TABLE identity.device_codes
    ADD COLUMN sid text NOT NULL DEFAULT '',
    ADD COLUMN denied boolean NOT NULL DEFAULT false;
CREATE INDEX sessions_by_sid ON identity.sessions (sid) WHERE sid <> '';
CREATE INDEX access_tokens_by_sid ON identity.access_tokens (sid) WHERE sid <> '';
CREATE TABLE identity.logout_tokens (
    binding_id uuid NOT NULL REFERENCES identity.idp_bindings ON DELETE CASCADE,
    jti_digest bytea NOT NULL CHECK (length(jti_digest) = 32),
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (binding_id, jti_digest)
);
GRANT SELECT, INSERT, DELETE ON identity.logout_tokens TO identity;
"""


def upgrade() -> None:
    run(UPGRADE)


def downgrade() -> None:
    refuse("below this revision a logout token would count a second time, and a used sign-in again")
