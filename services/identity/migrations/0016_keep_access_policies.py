"""Access policies of Domains, and which sign-ins were ended: privileged sessions end with them."""

from libs.migrations import refuse, run

revision = "0016"
down_revision = "0015"

UPGRADE = """
CREATE TABLE identity.access_policies (
    domain_id               uuid PRIMARY KEY REFERENCES identity.domains ON DELETE CASCADE,
    required_acr            text[] NOT NULL,
    required_amr            text[] NOT NULL,
    max_auth_age_s          integer NOT NULL CHECK (max_auth_age_s > 0),
    kinds                   jsonb NOT NULL,
    default_ttl_s           integer NOT NULL CHECK (default_ttl_s > 0),
    max_ttl_s               integer NOT NULL CHECK (max_ttl_s >= default_ttl_s),
    max_active_per_identity integer NOT NULL CHECK (max_active_per_identity > 0),
    max_active_per_node     integer NOT NULL CHECK (max_active_per_node > 0),
    issue_rate_per_minute   integer NOT NULL CHECK (issue_rate_per_minute > 0),
    updated_at              timestamptz NOT NULL
);

-- A row a web session or access token that was taken away before its time, by whatever did. One that the same person's
-- next sign-in in that browser replaced has a successor, and is ended when that is.
CREATE TABLE identity.ended_sign_ins (
    id           uuid PRIMARY KEY,
    successor_id uuid,
    ended_at     timestamptz NOT NULL
);
CREATE INDEX ended_sign_ins_by_time ON identity.ended_sign_ins (ended_at);
CREATE FUNCTION identity.note_ended_sign_in() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.expires_at > now() THEN
        INSERT INTO identity.ended_sign_ins (id, ended_at) VALUES (OLD.id, now()) ON CONFLICT DO NOTHING;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER note_ended AFTER DELETE ON identity.sessions
    FOR EACH ROW EXECUTE FUNCTION identity.note_ended_sign_in();
CREATE TRIGGER note_ended AFTER DELETE ON identity.access_tokens
    FOR EACH ROW EXECUTE FUNCTION identity.note_ended_sign_in();

GRANT SELECT, INSERT, UPDATE ON identity.access_policies TO identity;
GRANT SELECT, INSERT, UPDATE, DELETE ON identity.ended_sign_ins TO identity;
"""


def upgrade() -> None:
    run(UPGRADE)


def downgrade() -> None:
    refuse("below this revision Domains would lose their policies, and nobody would know which sign-ins were ended")
