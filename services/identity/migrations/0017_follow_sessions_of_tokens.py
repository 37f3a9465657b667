"""An access token that ran out is followed by the session that approved it: what came from it ends with that."""

from libs.migrations import refuse, run

revision = "0017"
down_revision = "0016"

UPGRADE = """
CREATE OR REPLACE FUNCTION identity.note_ended_sign_in() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.expires_at > now() THEN
        INSERT INTO identity.ended_sign_ins (id, ended_at) VALUES (OLD.id, now()) ON CONFLICT DO NOTHING;
    ELSIF TG_TABLE_NAME = 'access_tokens' THEN
        INSERT INTO identity.ended_sign_ins (id, successor_id, ended_at)
        SELECT OLD.id, OLD.session_id, now() WHERE OLD.session_id IS NOT NULL ON CONFLICT DO NOTHING;
    END IF;
    RETURN NULL;
END $$;
"""


def upgrade() -> None:
    run(UPGRADE)


def downgrade() -> None:
    refuse("below this revision a sign-out would not end what an access token began that has run out")
