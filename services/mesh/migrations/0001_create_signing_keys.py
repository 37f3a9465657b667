"""Public halves of the Domains' event keys."""

from libs.migrations import refuse, run

revision = "0001"
down_revision = None

SQL = """
CREATE TABLE mesh.signing_keys (
    kid         text PRIMARY KEY CHECK (kid ~ '^evk_[0-9a-f]{32}$'),
    domain_id   uuid NOT NULL,
    version     integer NOT NULL CHECK (version > 0),
    public_key  bytea NOT NULL CHECK (length(public_key) = 32),
    created_at  timestamptz NOT NULL DEFAULT now(),
    expires_at  timestamptz,
    UNIQUE (domain_id, version)
);
GRANT USAGE ON SCHEMA mesh TO mesh;
GRANT SELECT, INSERT ON mesh.signing_keys TO mesh;
"""


def upgrade() -> None:
    run(SQL)


def downgrade() -> None:
    refuse("keys are never forgotten")
