"""A wrapped key has the length of one: no plaintext key in hex or base64 passes. A reference is one by itself."""

from libs.migrations import refuse, run

revision = "0010"
down_revision = "0009"

UPGRADE = """
ALTER TABLE identity.node_secret_keys
    DROP CONSTRAINT node_secret_keys_wrapped_check,
    ADD CONSTRAINT node_secret_keys_wrapped_check CHECK (wrapped ~ '^vault:v[0-9]+:[A-Za-z0-9+/]{80}$');
ALTER TABLE identity.idp_bindings ADD CONSTRAINT client_secret_ref_form
    CHECK (client_secret_ref ~ '^kv/idp/[a-z0-9-]{1,36}/[a-z0-9][a-z0-9-]{0,62}$');
"""


def upgrade() -> None:
    run(UPGRADE)


def downgrade() -> None:
    refuse("below this revision the database would take a plaintext node key")
