"""Domains, projects, resources, nodes and their keys, bootstrap tokens, relation tuples, the event outbox."""

from libs.migrations import refuse, run

revision = "0001"
down_revision = None

UPGRADE = """
CREATE TABLE identity.domains (
    id uuid PRIMARY KEY,
    name text NOT NULL,
    slug text NOT NULL UNIQUE,
    description text NOT NULL,
    region text NOT NULL,
    mesh_cidr cidr NOT NULL,
    heartbeat_interval_s double precision NOT NULL CHECK (heartbeat_interval_s > 0),
    stale_after_s double precision NOT NULL CHECK (stale_after_s > heartbeat_interval_s),
    unreachable_after_s double precision NOT NULL CHECK (unreachable_after_s > stale_after_s),
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    CONSTRAINT mesh_cidr_exclusive EXCLUDE USING gist (mesh_cidr inet_ops WITH &&)
);
CREATE TABLE identity.projects (
    id uuid PRIMARY KEY,
    domain_id uuid NOT NULL REFERENCES identity.domains,
    name text NOT NULL,
    slug text NOT NULL,
    description text NOT NULL,
    sub_range_cidr cidr,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    UNIQUE (domain_id, slug),
    CONSTRAINT sub_range_exclusive EXCLUDE USING gist (domain_id WITH =, sub_range_cidr inet_ops WITH &&)
);
CREATE TABLE identity.resources (
    id uuid PRIMARY KEY,
    project_id uuid NOT NULL REFERENCES identity.projects,
    domain_id uuid NOT NULL REFERENCES identity.domains,
    kind text NOT NULL,
    external_ref text NOT NULL,
    origin text NOT NULL CHECK (origin = 'adopted'),
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
);
CREATE UNIQUE INDEX resources_by_ref ON identity.resources (project_id, external_ref) WHERE external_ref <> '';
CREATE TABLE identity.nodes (
    id uuid PRIMARY KEY,
    resource_id uuid NOT NULL UNIQUE REFERENCES identity.resources ON DELETE CASCADE,
    project_id uuid NOT NULL REFERENCES identity.projects,
    domain_id uuid NOT NULL REFERENCES identity.domains,
    mesh_ip inet NOT NULL,
    public_key bytea NOT NULL CHECK (length(public_key) = 32),
    created_at timestamptz NOT NULL,
    UNIQUE (domain_id, mesh_ip)
);
CREATE TABLE identity.node_secret_keys (
    kid text PRIMARY KEY CHECK (kid ~ '^nsk_[0-9a-f]{32}$'),
    node_id uuid NOT NULL,
    domain_id uuid NOT NULL,
    wrapped text NOT NULL CHECK (wrapped ~ '^vault:v[0-9]+:[A-Za-z0-9+/]{60,}=*$'),
    fingerprint bytea NOT NULL UNIQUE CHECK (length(fingerprint) = 32),
    created_at timestamptz NOT NULL,
    revoked_at timestamptz
);
CREATE UNIQUE INDEX one_live_key_a_node ON identity.node_secret_keys (node_id) WHERE revoked_at IS NULL;
CREATE INDEX keys_by_node ON identity.node_secret_keys (node_id);
CREATE TABLE identity.heartbeats (
    node_id uuid PRIMARY KEY REFERENCES identity.nodes ON DELETE CASCADE,
    accepted_at timestamptz NOT NULL,
    binary_checksum bytea NOT NULL CHECK (length(binary_checksum) = 32),
    binary_version text NOT NULL,
    nat_summary jsonb NOT NULL
);
CREATE TABLE identity.bootstrap_tokens (
    id uuid PRIMARY KEY,
    project_id uuid NOT NULL REFERENCES identity.projects ON DELETE CASCADE,
    kind text NOT NULL CHECK (kind IN ('node', 'bridge')),
    env_prefix text NOT NULL,
    selector text NOT NULL UNIQUE,
    digest bytea NOT NULL CHECK (length(digest) = 32),
    issued_by uuid NOT NULL,
    issued_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    consumed_at timestamptz,
    revoked_at timestamptz,
    nonce uuid,
    public_key bytea CHECK (length(public_key) = 32),
    node_id uuid
);
CREATE UNIQUE INDEX nonce_once ON identity.bootstrap_tokens (nonce) WHERE nonce IS NOT NULL;
CREATE TABLE identity.relation_tuples (
    id uuid PRIMARY KEY,
    resource_type text NOT NULL,
    resource_id text NOT NULL,
    relation text NOT NULL,
    subject_type text NOT NULL,
    subject_id text NOT NULL,
    state text NOT NULL CHECK (state IN ('pending', 'live', 'removing')),
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (resource_type, resource_id, relation, subject_type, subject_id)
);
CREATE INDEX tuples_by_subject ON identity.relation_tuples (subject_type, subject_id);
CREATE INDEX tuples_to_deliver ON identity.relation_tuples (created_at) WHERE state <> 'live';
CREATE TABLE identity.event_outbox (
    id uuid PRIMARY KEY,
    domain_id uuid NOT NULL,
    type text NOT NULL,
    scope text NOT NULL,
    payload jsonb NOT NULL,
    created_at timestamptz NOT NULL
);
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA identity TO identity;
REVOKE ALL ON identity.alembic_version FROM identity;
REVOKE DELETE ON identity.node_secret_keys FROM identity;
"""


def upgrade() -> None:
    run(UPGRADE)


def downgrade() -> None:
    refuse("going below this revision would delete node keys")
