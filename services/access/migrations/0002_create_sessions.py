"""Session keys' public halves, sessions, places that are held for sessions on their way, and what announces them."""

from libs.migrations import refuse, run

revision = "0002"
down_revision = "0001"

UPGRADE = """
CREATE TABLE access.signing_keys (
    kid         text PRIMARY KEY CHECK (kid ~ '^sek_[0-9a-f]{32}$'),
    domain_id   uuid NOT NULL,
    version     integer NOT NULL CHECK (version > 0),
    public_key  bytea NOT NULL CHECK (octet_length(public_key) = 32),
    created_at  timestamptz NOT NULL,
    expires_at  timestamptz,
    revoked_at  timestamptz,
    UNIQUE (domain_id, version)
);
CREATE UNIQUE INDEX one_current_key ON access.signing_keys (domain_id)
    WHERE expires_at IS NULL AND revoked_at IS NULL;

-- `claims` are what the token says, without its signature: a repeat of the request signs the same bytes once more.
CREATE TABLE access.sessions (
    id             uuid PRIMARY KEY,
    domain_id      uuid NOT NULL,
    project_id     uuid NOT NULL,
    resource_id    uuid NOT NULL,
    node_id        uuid NOT NULL,
    identity_id    uuid NOT NULL,
    sign_in_id     uuid NOT NULL,
    kind           text NOT NULL CHECK (kind IN ('ssh', 'k8s', 'tcp')),
    target         jsonb NOT NULL,
    issued_at      timestamptz NOT NULL,
    expires_at     timestamptz NOT NULL CHECK (expires_at > issued_at),
    last_active_at timestamptz NOT NULL,
    revoked_at     timestamptz,
    revoke_reason  text NOT NULL DEFAULT '',
    kid            text NOT NULL REFERENCES access.signing_keys,
    claims         text NOT NULL,
    CHECK ((revoked_at IS NULL) = (revoke_reason = ''))
);
CREATE INDEX sessions_by_project ON access.sessions (project_id, id);
CREATE INDEX sessions_by_identity ON access.sessions (identity_id, expires_at);
CREATE INDEX sessions_by_node ON access.sessions (node_id, expires_at);
CREATE INDEX sessions_active ON access.sessions (id) WHERE revoked_at IS NULL;

-- What was revoked, until its token runs out: looked at beside the row itself.
CREATE TABLE access.denylist (
    session_id  uuid PRIMARY KEY,
    expires_at  timestamptz NOT NULL
);
-- A place within the limits, for a request that is being decided: it counts until the session is there or time is up.
CREATE TABLE access.reservations (
    session_id   uuid PRIMARY KEY,
    identity_id  uuid NOT NULL,
    node_id      uuid NOT NULL,
    expires_at   timestamptz NOT NULL
);
CREATE INDEX reservations_by_identity ON access.reservations (identity_id);
CREATE INDEX reservations_by_node ON access.reservations (node_id);
-- Which session a request got: by the digest of its caller's key, with the digest of what else it said.
CREATE TABLE access.requests (
    identity_id     uuid NOT NULL,
    request_digest  bytea NOT NULL CHECK (octet_length(request_digest) = 32),
    body_digest     bytea NOT NULL CHECK (octet_length(body_digest) = 32),
    session_id      uuid NOT NULL UNIQUE,
    asked_at        timestamptz NOT NULL,
    PRIMARY KEY (identity_id, request_digest)
);
CREATE TABLE access.event_outbox (
    id           uuid PRIMARY KEY,
    domain_id    uuid NOT NULL,
    type         text NOT NULL,
    scope        text NOT NULL,
    payload      jsonb NOT NULL,
    created_at   timestamptz NOT NULL,
    position     bigint GENERATED ALWAYS AS IDENTITY,
    refused_code text NOT NULL DEFAULT ''
);
CREATE INDEX event_outbox_waiting ON access.event_outbox (domain_id, scope, position) WHERE refused_code = '';

-- Holds a place for a session, or says why there is none. Who asks for the same person waits, and then who asks for the
-- same node, in this order for all; so what is counted is all that there is.
CREATE FUNCTION access.reserve(
    session uuid, identity uuid, node uuid, request bytea, body bytea, at timestamptz, until timestamptz,
    repeats_since timestamptz, per_identity integer, per_node integer, per_minute integer,
    OUT refused text, OUT repeats uuid
) LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    before access.requests;
    held integer;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('access.identity:' || identity, 0));
    DELETE FROM access.reservations r WHERE r.identity_id = identity AND r.expires_at <= at;
    IF request IS NOT NULL THEN
        DELETE FROM access.requests q WHERE q.identity_id = identity AND q.asked_at <= repeats_since;
        SELECT * INTO before FROM access.requests q WHERE q.identity_id = identity AND q.request_digest = request;
        IF FOUND THEN
            IF EXISTS (SELECT FROM access.reservations r WHERE r.session_id = before.session_id) THEN
                refused := CASE WHEN before.body_digest = body THEN 'in_flight' ELSE 'other_body' END;
                RETURN;
            ELSIF EXISTS (SELECT FROM access.sessions s WHERE s.id = before.session_id) THEN
                IF before.body_digest = body THEN
                    repeats := before.session_id;
                ELSE
                    refused := 'other_body';
                END IF;
                RETURN;
            END IF;
            -- The one before came to nothing.
            DELETE FROM access.requests q WHERE q.identity_id = identity AND q.request_digest = request;
        END IF;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended('access.node:' || node, 0));
    SELECT count(*) INTO held FROM access.reservations r WHERE r.identity_id = identity;
    IF held + (SELECT count(*) FROM access.sessions s WHERE s.identity_id = identity AND s.expires_at > at
               AND s.revoked_at IS NULL) >= per_identity THEN
        refused := 'identity';
    ELSIF held + (SELECT count(*) FROM access.sessions s WHERE s.identity_id = identity
                  AND s.issued_at > at - interval '1 minute') >= per_minute THEN
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

GRANT SELECT, INSERT, UPDATE ON access.signing_keys TO access;
GRANT SELECT, INSERT, UPDATE ON access.sessions TO access;
GRANT SELECT, INSERT, DELETE ON access.denylist, access.reservations, access.requests TO access;
GRANT SELECT, INSERT, UPDATE, DELETE ON access.event_outbox TO access;
REVOKE ALL ON FUNCTION access.reserve FROM PUBLIC;
GRANT EXECUTE ON FUNCTION access.reserve TO access;
"""


def upgrade() -> None:
    run(UPGRADE)


def downgrade() -> None:
    refuse("without these tables nobody knows which sessions there are, or which keys verify them")
