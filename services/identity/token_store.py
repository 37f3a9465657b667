"""All SQL of API tokens, service tokens and service identities; texts arrive here as digests only."""

import datetime
from dataclasses import dataclass
from uuid import UUID

import asyncpg

from libs.errors import AlreadyExists, ApiTokenLimit, ApiTokenRotated, InvalidClient, NotFound
from libs.pg import connection, transaction
from services.identity.model import Tuple
from services.identity.relation_store import mark_tuples, notify
from services.identity.relations import Revocation
from services.identity.token_model import ApiToken, Identity, Owner, ServiceIdentity, ServiceToken

MOST_API_TOKENS = 100
# Whoever a provider vouched for is let in only while the Domain believes that provider.
API_TOKENS = """
SELECT t.id, t.identity_id, t.service_id, t.env_prefix, t.scope, t.issued_by, t.created_at, t.expires_at,
    t.last_used_at, t.rotated_at, coalesce(i.domain_id, s.domain_id) AS domain_id, s.federation_kind,
    coalesce(b.status, 'active') = 'active' AS trusted
FROM identity.api_tokens t
LEFT JOIN identity.identities i ON i.id = t.identity_id
LEFT JOIN identity.idp_bindings b ON b.id = i.binding_id
LEFT JOIN identity.service_identities s ON s.id = t.service_id
"""
USED = """
WITH used AS (
    UPDATE identity.api_tokens SET last_used_at = $2
    WHERE digest = $1 AND expires_at > $2
      AND (last_used_at IS NULL OR last_used_at <= $2::timestamptz - interval '1 minute')
)
"""
ADD = """
INSERT INTO identity.api_tokens
    (id, digest, identity_id, service_id, env_prefix, scope, issued_by, created_at, expires_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
"""
IDENTITIES = """
SELECT * FROM (
    SELECT i.id, 'user' AS kind, i.domain_id, i.display_name, b.issuer, i.subject, i.email, i.last_sign_in_at,
        i.created_at, i.last_sign_in_at AS updated_at
    FROM identity.identities i JOIN identity.idp_bindings b ON b.id = i.binding_id WHERE i.domain_id = $1
    UNION ALL
    SELECT s.id, 'service-identity', s.domain_id, s.display_name, s.audience, s.subject, '', s.last_sign_in_at,
        s.created_at, s.created_at
    FROM identity.service_identities s WHERE s.domain_id = $1
) AS found
"""


def token_of(row: asyncpg.Record) -> ApiToken:
    """Return a row as an API token."""
    kind = "user" if row["identity_id"] else "service"
    owner = Owner(kind, row["identity_id"] or row["service_id"], row["domain_id"], row["federation_kind"] or "")
    return ApiToken(
        row["id"], owner, row["env_prefix"], scope_of(row["scope"]), row["issued_by"], row["created_at"],
        row["expires_at"], row["last_used_at"], row["rotated_at"],
    )  # fmt: skip


def scope_of(scope: list[str] | None) -> tuple[str, ...] | None:
    """Return a scope; None stays None."""
    return None if scope is None else tuple(scope)


@dataclass(frozen=True)
class PgTokenStore:
    """Tokens and service identities in PostgreSQL."""

    pool: asyncpg.Pool

    async def owner(self, kind: str, identity_id: UUID) -> Owner | None:
        """Return a person or service identity as an owner of tokens."""
        sql = "SELECT domain_id, '' AS federation_kind FROM identity.identities WHERE id = $1"
        if kind == "service":
            sql = "SELECT domain_id, federation_kind FROM identity.service_identities WHERE id = $1"
        async with connection(self.pool, "owner") as lent:
            row = await lent.fetchrow(sql, identity_id)
        return Owner(kind, identity_id, row["domain_id"], row["federation_kind"]) if row else None

    async def add_api_token(self, token: ApiToken, digest: bytes) -> None:
        """Store a token; raises ApiTokenLimit, and NotFound when its owner is gone."""
        column = "identity_id" if token.owner.kind == "user" else "service_id"
        async with transaction(self.pool, "add_api_token") as lent:
            await _hold(lent, token.owner)
            expired = f"DELETE FROM identity.api_tokens WHERE {column} = $1 AND expires_at <= $2"
            await lent.execute(expired, token.owner.id, token.created_at)
            count = await lent.fetchval(f"SELECT count(*) FROM identity.api_tokens WHERE {column} = $1", token.owner.id)
            if count >= MOST_API_TOKENS:
                raise ApiTokenLimit
            await _add(lent, token, digest)

    async def api_tokens(self, owner: Owner, at: datetime.datetime) -> list[ApiToken]:
        """Return the owner's live tokens, newest first."""
        column = "identity_id" if owner.kind == "user" else "service_id"
        sql = f"{API_TOKENS} WHERE t.{column} = $1 AND t.expires_at > $2 ORDER BY t.id DESC"
        async with connection(self.pool, "api_tokens") as lent:
            return [token_of(row) for row in await lent.fetch(sql, owner.id, at)]

    async def api_token(self, token_id: UUID, at: datetime.datetime) -> ApiToken | None:
        """Return a live token."""
        async with connection(self.pool, "api_token") as lent:
            row = await lent.fetchrow(f"{API_TOKENS} WHERE t.id = $1 AND t.expires_at > $2", token_id, at)
        return token_of(row) if row else None

    async def use_api_token(self, digest: bytes, at: datetime.datetime) -> ApiToken | None:
        """Return a live token whose owner may come in, and note its use at most once a minute."""
        async with connection(self.pool, "use_api_token") as lent:
            row = await lent.fetchrow(f"{USED} {API_TOKENS} WHERE t.digest = $1 AND t.expires_at > $2", digest, at)
        return token_of(row) if row and row["trusted"] else None

    async def rotate_api_token(
        self, token_id: UUID, successor: ApiToken, digest: bytes, deadline: datetime.datetime
    ) -> datetime.datetime | None:
        """Store the successor, and end the old token at the deadline or at its own end; returns when that is."""
        async with transaction(self.pool, "rotate_api_token") as lent:
            await _hold(lent, successor.owner)
            old = await lent.fetchrow(
                "SELECT expires_at, rotated_at FROM identity.api_tokens WHERE id = $1 AND expires_at > $2 FOR UPDATE",
                token_id, successor.created_at,
            )  # fmt: skip
            if old is None:
                return None
            if old["rotated_at"] is not None:
                raise ApiTokenRotated
            ends: datetime.datetime = min(old["expires_at"], deadline)
            await lent.execute(
                "UPDATE identity.api_tokens SET expires_at = $2, rotated_at = $3 WHERE id = $1",
                token_id, ends, successor.created_at,
            )  # fmt: skip
            await _add(lent, successor, digest)
        return ends

    async def revoke_api_token(self, token_id: UUID) -> bool:
        """End a token and all that it begot, for every replica when this returns; False when there is none."""
        sql = """
        WITH begotten AS (DELETE FROM identity.service_tokens WHERE api_token_id = $1 RETURNING digest),
        ended AS (DELETE FROM identity.api_tokens WHERE id = $1 RETURNING digest)
        SELECT digest FROM ended UNION ALL SELECT digest FROM begotten
        """
        async with transaction(self.pool, "revoke_api_token") as lent:
            # Held against a service token under way: it would be begotten by a token that is no more.
            held = await lent.fetchval("SELECT true FROM identity.api_tokens WHERE id = $1 FOR UPDATE", token_id)
            for row in await lent.fetch(sql, token_id):
                await notify(lent, Revocation("credential", row["digest"].hex()))
        return bool(held)

    async def add_service_token(self, token: ServiceToken, digest: bytes, at: datetime.datetime) -> None:
        """Store a service token; raises InvalidClient when its API token is gone."""
        sql = """
        INSERT INTO identity.service_tokens (id, digest, api_token_id, scope, created_at, expires_at)
        VALUES ($1, $2, $3, $4, $5, $6)
        """
        scope = None if token.scope is None else list(token.scope)
        try:
            async with transaction(self.pool, "add_service_token") as lent:
                await lent.execute("DELETE FROM identity.service_tokens WHERE expires_at < $1", at)
                await lent.execute(sql, token.id, digest, token.api_token_id, scope, at, token.expires_at)
                await lent.execute(
                    "UPDATE identity.service_identities SET last_sign_in_at = $2 WHERE id = $1", token.owner.id, at
                )
        except asyncpg.ForeignKeyViolationError:
            raise InvalidClient from None

    async def use_service_token(self, digest: bytes, at: datetime.datetime) -> ServiceToken | None:
        """Return a live service token whose API token lives."""
        sql = """
        SELECT b.id, b.api_token_id, b.scope, b.expires_at, s.id AS service_id, s.domain_id, s.federation_kind
        FROM identity.service_tokens b JOIN identity.api_tokens t ON t.id = b.api_token_id
        JOIN identity.service_identities s ON s.id = t.service_id
        WHERE b.digest = $1 AND b.expires_at > $2 AND t.expires_at > $2
        """
        async with connection(self.pool, "use_service_token") as lent:
            row = await lent.fetchrow(sql, digest, at)
        if row is None:
            return None
        owner = Owner("service", row["service_id"], row["domain_id"], row["federation_kind"])
        return ServiceToken(row["id"], row["api_token_id"], owner, scope_of(row["scope"]), row["expires_at"])

    # Identities -------------------------------------------------------------------------------------------------------

    async def identities(self, domain_id: UUID, kind: str, after: UUID, limit: int) -> list[Identity]:
        """Return identities by id, beyond `after`; an empty kind for all."""
        sql = f"{IDENTITIES} WHERE id > $2 AND $3 IN ('', kind) ORDER BY id LIMIT $4"
        async with connection(self.pool, "identities") as lent:
            return [Identity(**row) for row in await lent.fetch(sql, domain_id, after, kind, limit)]

    async def identity(self, domain_id: UUID, identity_id: UUID) -> Identity | None:
        """Return one of the Domain's."""
        async with connection(self.pool, "identity") as lent:
            row = await lent.fetchrow(f"{IDENTITIES} WHERE id = $2", domain_id, identity_id)
        return Identity(**row) if row else None

    async def add_service_identity(self, row: ServiceIdentity) -> None:
        """Raise AlreadyExists for the same subject, audience and federation; NotFound when the Domain is gone."""
        sql = """
        INSERT INTO identity.service_identities
            (id, domain_id, display_name, subject, audience, federation_kind, created_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7)
        """
        try:
            async with transaction(self.pool, "add_service_identity") as lent:
                await lent.execute(
                    sql, row.id, row.domain_id, row.display_name, row.subject, row.audience, row.federation_kind,
                    row.created_at,
                )  # fmt: skip
        except asyncpg.UniqueViolationError:
            raise AlreadyExists("the Domain has a service identity with this subject and audience") from None
        except asyncpg.ForeignKeyViolationError:
            raise NotFound from None

    async def delete_service_identity(self, domain_id: UUID, identity_id: UUID) -> list[Tuple] | None:
        """Delete it with its tokens and mark its tuples as removing; None when there is none."""
        sql = "DELETE FROM identity.service_identities WHERE domain_id = $1 AND id = $2 RETURNING true"
        async with transaction(self.pool, "delete_service_identity") as lent:
            if not await lent.fetchval(sql, domain_id, identity_id):
                return None
            await notify(lent, Revocation("identity", str(identity_id)))
            return await mark_tuples(lent, "subject_type = 'service' AND subject_id = $1", str(identity_id))


async def _hold(lent: asyncpg.Connection, owner: Owner) -> None:
    """Hold an owner, so that two tokens at once are not both the last that fits; raises NotFound when it is gone.

    A person's binding is held as well: what ends its people would not see a token that is just being stored.
    """
    held = "SELECT true FROM identity.service_identities WHERE id = $1 FOR UPDATE"
    if owner.kind == "user":
        held = """
        SELECT true FROM identity.identities i JOIN identity.idp_bindings b ON b.id = i.binding_id
        WHERE i.id = $1 AND b.status = 'active' FOR SHARE OF b FOR UPDATE OF i
        """
    if not await lent.fetchval(held, owner.id):
        raise NotFound


async def _add(lent: asyncpg.Connection, token: ApiToken, digest: bytes) -> None:
    person, service = (token.owner.id if token.owner.kind == kind else None for kind in ("user", "service"))
    await lent.execute(
        ADD, token.id, digest, person, service, token.env_prefix, None if token.scope is None else list(token.scope),
        token.issued_by, token.created_at, token.expires_at,
    )  # fmt: skip
