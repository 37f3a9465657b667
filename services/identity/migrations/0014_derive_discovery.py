"""A binding's discovery document is where its issuer has it: whoever leads it elsewhere is anybody of the binding."""

from libs.migrations import refuse, run

revision = "0014"
down_revision = "0013"

# Rows that differ are set right, not refused: the issuer is what people of the binding were believed by.
UPGRADE = """
UPDATE identity.idp_bindings
SET discovery_url = regexp_replace(issuer, '/$', '') || '/.well-known/openid-configuration';
ALTER TABLE identity.idp_bindings ADD CONSTRAINT discovery_is_the_issuers
    CHECK (discovery_url = regexp_replace(issuer, '/$', '') || '/.well-known/openid-configuration');
"""


def upgrade() -> None:
    run(UPGRADE)


def downgrade() -> None:
    refuse("below this revision whoever manages a Domain can sign in as anybody of its bindings")
