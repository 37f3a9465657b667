"""IdP bindings, identities, sign-ins under way, sessions, device codes, access tokens."""

from libs.migrations import refuse, run

revision = "0002"
down_revision = "0001"

UPGRADE = """
CREATE TABLE identity.idp_bindings (
    id uuid PRIMARY KEY,
    domain_id uuid REFERENCES identity.domains ON DELETE CASCADE,
    issuer text NOT NULL,
    client_id text NOT NULL,
    client_secret_ref text NOT NULL CHECK (client_secret_ref ~ '^kv/idp/[a-z0-9][a-z0-9-]{0,62}$'),
    discovery_url text NOT NULL,
    claim_mappings jsonb NOT NULL,
    required_acr text[] NOT NULL,
    required_amr text[] NOT NULL,
    jit_policy text NOT NULL CHECK (jit_policy IN ('allow', 'deny')),
    status text NOT NULL CHECK (status IN ('active', 'inactive', 'degraded', 'deactivated')),
    alias text NOT NULL,
    is_primary boolean NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
);
CREATE UNIQUE INDEX one_binding_an_issuer ON identity.idp_bindings (domain_id, issuer) NULLS NOT DISTINCT;
CREATE UNIQUE INDEX one_primary_binding ON identity.idp_bindings (domain_id) NULLS NOT DISTINCT WHERE is_primary;
CREATE TABLE identity.identities (
    id uuid PRIMARY KEY,
    domain_id uuid REFERENCES identity.domains ON DELETE CASCADE,
    binding_id uuid NOT NULL REFERENCES identity.idp_bindings ON DELETE CASCADE,
    subject text NOT NULL,
    display_name text NOT NULL,
    email text NOT NULL,
    created_at timestamptz NOT NULL,
    last_sign_in_at timestamptz NOT NULL,
    UNIQUE (binding_id, subject)
);
CREATE TABLE identity.pending_sign_ins (
    state_digest bytea PRIMARY KEY CHECK (length(state_digest) = 32),
    binding_id uuid NOT NULL REFERENCES identity.idp_bindings ON DELETE CASCADE,
    return_to text NOT NULL,
    acr_values text[] NOT NULL,
    max_age_s integer,
    expires_at timestamptz NOT NULL
);
CREATE TABLE identity.sessions (
    id uuid PRIMARY KEY,
    digest bytea NOT NULL UNIQUE CHECK (length(digest) = 32),
    identity_id uuid NOT NULL REFERENCES identity.identities ON DELETE CASCADE,
    acr text NOT NULL,
    amr text[] NOT NULL,
    auth_time bigint,
    created_at timestamptz NOT NULL,
    last_seen_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL
);
CREATE INDEX sessions_by_identity ON identity.sessions (identity_id);
CREATE TABLE identity.device_codes (
    id uuid PRIMARY KEY,
    device_digest bytea NOT NULL UNIQUE CHECK (length(device_digest) = 32),
    user_code_digest bytea NOT NULL UNIQUE CHECK (length(user_code_digest) = 32),
    client_id text NOT NULL,
    domain_id uuid,
    acr_values text[] NOT NULL,
    max_age_s integer,
    interval_s integer NOT NULL,
    expires_at timestamptz NOT NULL,
    polled_at timestamptz,
    session_id uuid REFERENCES identity.sessions ON DELETE CASCADE,
    identity_id uuid REFERENCES identity.identities ON DELETE CASCADE,
    acr text NOT NULL DEFAULT '',
    amr text[] NOT NULL DEFAULT '{}',
    auth_time bigint
);
CREATE TABLE identity.access_tokens (
    id uuid PRIMARY KEY,
    digest bytea NOT NULL UNIQUE CHECK (length(digest) = 32),
    identity_id uuid NOT NULL REFERENCES identity.identities ON DELETE CASCADE,
    acr text NOT NULL,
    amr text[] NOT NULL,
    auth_time bigint,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL
);
CREATE INDEX access_tokens_by_identity ON identity.access_tokens (identity_id);
GRANT SELECT, INSERT, UPDATE, DELETE ON identity.idp_bindings, identity.identities, identity.pending_sign_ins,
    identity.sessions, identity.device_codes, identity.access_tokens TO identity;
"""


def upgrade() -> None:
    run(UPGRADE)


def downgrade() -> None:
    refuse("going below this revision would delete bindings, sessions and tokens")
