"""A binding names only secrets of its own Domain, and pins what it believes; who was made an administrator by file."""

from libs.migrations import refuse, run

revision = "0007"
down_revision = "0006"

UPGRADE = """
ALTER TABLE identity.idp_bindings DROP CONSTRAINT idp_bindings_client_secret_ref_check;
UPDATE identity.idp_bindings SET client_secret_ref =
    'kv/idp/' || coalesce(domain_id::text, 'platform') || '/' || substr(client_secret_ref, length('kv/idp/') + 1);
ALTER TABLE identity.idp_bindings
    ADD CONSTRAINT client_secret_is_its_owners CHECK (
        client_secret_ref ~ ('^kv/idp/' || coalesce(domain_id::text, 'platform') || '/[a-z0-9][a-z0-9-]{0,62}$')
    ),
    ADD COLUMN scopes text[] NOT NULL DEFAULT '{openid,email,profile}' CHECK ('openid' = ANY (scopes)),
    ADD COLUMN accepted_amr text[] NOT NULL DEFAULT '{}',
    ADD COLUMN max_auth_age_s integer NOT NULL DEFAULT 0 CHECK (max_auth_age_s >= 0),
    ADD COLUMN leeway_s integer NOT NULL DEFAULT 30 CHECK (leeway_s BETWEEN 0 AND 60),
    ADD COLUMN algorithms text[] NOT NULL DEFAULT '{RS256,PS256,ES256,EdDSA,Ed25519}' CHECK (
        algorithms <> '{}' AND algorithms <@ '{RS256,PS256,ES256,EdDSA,Ed25519}'
    );
ALTER TABLE identity.identities ADD COLUMN admin_granted_at timestamptz;
UPDATE identity.identities i SET admin_granted_at = now() FROM identity.relation_tuples t
WHERE (t.resource_type, t.resource_id, t.relation, t.subject_type) = ('platform', 'main', 'admin', 'user')
    AND t.subject_id = i.id::text;
"""


def upgrade() -> None:
    run(UPGRADE)


def downgrade() -> None:
    refuse("below this revision a binding can name the client secret of another Domain")
