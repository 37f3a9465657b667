"""Service identities, API tokens, service tokens."""

from libs.migrations import refuse, run

revision = "0011"
down_revision = "0010"

UPGRADE = """
CREATE TABLE identity.service_identities (
    id uuid PRIMARY KEY,
    domain_id uuid NOT NULL REFERENCES identity.domains,
    display_name text NOT NULL,
    subject text NOT NULL,
    audience text NOT NULL,
    federation_kind text NOT NULL CHECK (federation_kind IN ('oidc_cc', 'spiffe_svid', 'api_token')),
    created_at timestamptz NOT NULL,
    last_sign_in_at timestamptz
);
-- By hash because a subject may be longer than an index takes; nothing is kept secret by it.
CREATE UNIQUE INDEX service_identities_once ON identity.service_identities
    (domain_id, federation_kind, md5(subject), md5(audience));
CREATE TABLE identity.api_tokens (
    id uuid PRIMARY KEY,
    digest bytea NOT NULL UNIQUE CHECK (length(digest) = 32),
    identity_id uuid REFERENCES identity.identities ON DELETE CASCADE,
    service_id uuid REFERENCES identity.service_identities ON DELETE CASCADE,
    env_prefix text NOT NULL CHECK (env_prefix IN ('dev', 'stage', 'prod')),
    scope text[] CHECK (
        cardinality(scope) > 0
        AND scope <@ ARRAY['read', 'observe', 'deploy', 'act', 'node-operate', 'manage', 'audit']),
    issued_by uuid NOT NULL,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL CHECK (expires_at <= created_at + interval '31536000 s'),
    last_used_at timestamptz,
    rotated_at timestamptz,
    CONSTRAINT one_owner CHECK (num_nonnulls(identity_id, service_id) = 1)
);
CREATE INDEX api_tokens_by_identity ON identity.api_tokens (identity_id);
CREATE INDEX api_tokens_by_service ON identity.api_tokens (service_id);
CREATE TABLE identity.service_tokens (
    id uuid PRIMARY KEY,
    digest bytea NOT NULL UNIQUE CHECK (length(digest) = 32),
    api_token_id uuid NOT NULL REFERENCES identity.api_tokens ON DELETE CASCADE,
    scope text[],
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL CHECK (expires_at <= created_at + interval '15 minutes')
);
CREATE INDEX service_tokens_by_api_token ON identity.service_tokens (api_token_id);
GRANT SELECT, INSERT, UPDATE, DELETE ON identity.service_identities, identity.api_tokens, identity.service_tokens
    TO identity;
"""


def upgrade() -> None:
    run(UPGRADE)


def downgrade() -> None:
    refuse("below this revision no API token and no service identity would be left")
