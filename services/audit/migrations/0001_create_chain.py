"""The chain: heads, entries that refuse change, idempotency keys, the erasable personal records."""

from libs.migrations import refuse, run

revision = "0001"
down_revision = None

UPGRADE = """
CREATE TABLE audit.chains (
    chain text PRIMARY KEY,
    seq bigint NOT NULL CHECK (seq >= 0),
    entry_hash bytea NOT NULL CHECK (length(entry_hash) = 32)
);
CREATE TABLE audit.entries (
    chain text NOT NULL,
    seq bigint NOT NULL CHECK (seq >= 1),
    prev_hash bytea NOT NULL CHECK (length(prev_hash) = 32),
    entry_hash bytea NOT NULL CHECK (length(entry_hash) = 32),
    canonical bytea NOT NULL,
    occurred_at timestamptz NOT NULL,
    pseudonym text NOT NULL CHECK (pseudonym ~ '^[0-9a-f]{64}$'),
    relation text NOT NULL,
    object_type text NOT NULL,
    object_id text NOT NULL,
    reason text NOT NULL CHECK (
        reason IN ('granted', 'out_of_scope', 'insufficient_relation', 'caveat_violation', 'unknown')
    ),
    correlation_id text NOT NULL,
    context jsonb NOT NULL,
    PRIMARY KEY (chain, seq),
    UNIQUE (chain, prev_hash)
);
CREATE INDEX entries_by_pseudonym ON audit.entries (chain, pseudonym, seq);
CREATE INDEX entries_by_object ON audit.entries (chain, object_type, object_id, seq);
CREATE INDEX entries_by_correlation ON audit.entries (correlation_id);

CREATE TABLE audit.idempotency (
    key uuid PRIMARY KEY,
    chain text NOT NULL,
    seq bigint NOT NULL
);
CREATE TABLE audit.personal (
    chain text NOT NULL,
    seq bigint NOT NULL,
    pseudonym text NOT NULL CHECK (pseudonym ~ '^[0-9a-f]{64}$'),
    salt bytea NOT NULL CHECK (length(salt) = 16),
    subject_id text NOT NULL,
    subject_kind text NOT NULL,
    client_ip text NOT NULL,
    user_agent text NOT NULL,
    PRIMARY KEY (chain, seq)
);
CREATE INDEX personal_by_pseudonym ON audit.personal (chain, pseudonym);
CREATE TABLE audit.erasures (
    chain text NOT NULL,
    pseudonym text NOT NULL CHECK (pseudonym ~ '^[0-9a-f]{64}$'),
    erased_at timestamptz NOT NULL,
    PRIMARY KEY (chain, pseudonym)
);

CREATE FUNCTION audit.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'audit entries are never changed' USING ERRCODE = '0A000';
END $$;
CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE ON audit.entries
    FOR EACH ROW EXECUTE FUNCTION audit.refuse_change();
CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON audit.entries
    FOR EACH STATEMENT EXECUTE FUNCTION audit.refuse_change();
CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE ON audit.idempotency
    FOR EACH ROW EXECUTE FUNCTION audit.refuse_change();
CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON audit.idempotency
    FOR EACH STATEMENT EXECUTE FUNCTION audit.refuse_change();

GRANT SELECT, INSERT, UPDATE ON audit.chains TO audit;
GRANT SELECT, INSERT ON audit.entries, audit.idempotency, audit.erasures TO audit;
GRANT SELECT, INSERT, DELETE ON audit.personal TO audit;
"""


def upgrade() -> None:
    run(UPGRADE)


def downgrade() -> None:
    refuse("going below this revision would delete audit entries")
