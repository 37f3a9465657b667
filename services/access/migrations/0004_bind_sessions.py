"""A session is bound to what was granted, to every sign-in that got its token, and its repeats count as requests."""

from libs.migrations import refuse, run

revision = "0004"
down_revision = "0003"

UPGRADE = """
-- All sign-ins that got the token, the first one first: the session ends when any of them does.
ALTER TABLE access.sessions ALTER COLUMN sign_in_id TYPE uuid[] USING ARRAY[sign_in_id];
ALTER TABLE access.sessions RENAME COLUMN sign_in_id TO sign_in_ids;
ALTER TABLE access.sessions ADD CHECK (cardinality(sign_in_ids) > 0);
-- Over `kid` and `claims`, under a key that is not in the database. Without one nothing is signed again.
ALTER TABLE access.sessions ADD COLUMN seal bytea CHECK (octet_length(seal) = 32);

-- Requests that got an earlier session again, for a minute. Like places, they are worth no flush.
CREATE UNLOGGED TABLE access.repeats (
    identity_id  uuid NOT NULL,
    asked_at     timestamptz NOT NULL
);
CREATE INDEX repeats_by_identity ON access.repeats (identity_id, asked_at);
GRANT SELECT, INSERT, DELETE ON access.repeats TO access;

-- What nodes say of sessions that they host.
CREATE TABLE access.activity (
    session_id   uuid NOT NULL REFERENCES access.sessions,
    reported_at  timestamptz NOT NULL,
    report       jsonb NOT NULL CHECK (jsonb_typeof(report) = 'object')
);
CREATE INDEX activity_by_session ON access.activity (session_id, reported_at);
GRANT SELECT, INSERT ON access.activity TO access;

-- As it was, but that repeats are counted beside sessions, and refused with them.
CREATE OR REPLACE FUNCTION access.reserve(
    session uuid, identity uuid, node uuid, request bytea, body bytea, at timestamptz, until timestamptz,
    repeats_since timestamptz, per_identity integer, per_node integer, per_minute integer,
    OUT refused text, OUT repeats uuid
) LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    before access.requests;
    held integer;
    recent integer;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('access.identity:' || identity, 0));
    DELETE FROM access.reservations r WHERE r.identity_id = identity AND r.expires_at <= at;
    DELETE FROM access.repeats r WHERE r.identity_id = identity AND r.asked_at <= at - interval '1 minute';
    SELECT count(*) INTO held FROM access.reservations r WHERE r.identity_id = identity;
    SELECT held + (SELECT count(*) FROM access.repeats r WHERE r.identity_id = identity)
        + (SELECT count(*) FROM access.sessions s WHERE s.identity_id = identity
           AND s.issued_at > at - interval '1 minute') INTO recent;
    IF request IS NOT NULL THEN
        DELETE FROM access.requests q WHERE q.identity_id = identity AND q.asked_at <= repeats_since;
        SELECT * INTO before FROM access.requests q WHERE q.identity_id = identity AND q.request_digest = request;
        IF FOUND THEN
            IF EXISTS (SELECT FROM access.reservations r WHERE r.session_id = before.session_id) THEN
                refused := CASE WHEN before.body_digest = body THEN 'in_flight' ELSE 'other_body' END;
                RETURN;
            ELSIF EXISTS (SELECT FROM access.sessions s WHERE s.id = before.session_id) THEN
                IF before.body_digest <> body THEN
                    refused := 'other_body';
                ELSIF recent >= per_minute THEN
                    refused := 'issue_rate';
                ELSE
                    INSERT INTO access.repeats (identity_id, asked_at) VALUES (identity, at);
                    repeats := before.session_id;
                END IF;
                RETURN;
            END IF;
            -- The one before came to nothing.
            DELETE FROM access.requests q WHERE q.identity_id = identity AND q.request_digest = request;
        END IF;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended('access.node:' || node, 0));
    IF held + (SELECT count(*) FROM access.sessions s WHERE s.identity_id = identity AND s.expires_at > at
               AND s.revoked_at IS NULL) >= per_identity THEN
        refused := 'identity';
    ELSIF recent >= per_minute THEN
        refused := 'issue_rate';
    ELSIF (SELECT count(*) FROM access.reservations r WHERE r.node_id = node AND r.expires_at > at)
        + (SELECT count(*) FROM access.sessions s WHERE s.node_id = node AND s.expires_at > at
           AND s.revoked_at IS NULL) >= per_node THEN
        refused := 'node';
    ELSE
        INSERT INTO access.reservations (session_id, identity_id, node_id, expires_at)
        VALUES (session, identity, node, until);
        IF request IS NOT NULL THEN
            INSERT INTO access.requests (identity_id, request_digest, body_digest, session_id, asked_at)
            VALUES (identity, request, body, session, at);
        END IF;
    END IF;
END $$;
"""


def upgrade() -> None:
    run(UPGRADE)


def downgrade() -> None:
    refuse("below this revision a session would outlive sign-ins that got its token")
