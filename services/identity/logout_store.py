"""What a provider's logout ends, in PostgreSQL."""

import datetime
from dataclasses import dataclass
from uuid import UUID

import asyncpg

from libs.pg import connection, transaction
from services.identity.binding_store import BINDING, binding_of
from services.identity.relation_store import notify
from services.identity.relations import Revocation
from services.identity.sign_in_model import Binding
from services.identity.sign_in_store import end_where

WHOSE = """
identity_id IN (SELECT id FROM identity.identities WHERE binding_id = $1 AND ($2 = '' OR subject = $2))
AND ($3 = '' OR sid = $3)
"""


@dataclass(frozen=True)
class PgLogoutStore:
    """Logout tokens that came, and the end of what they name."""

    pool: asyncpg.Pool

    async def believing(self, issuer: str) -> list[Binding]:
        """Return every binding to an issuer, whoever owns it."""
        sql = f"SELECT {BINDING} FROM identity.idp_bindings WHERE issuer = $1 ORDER BY id"
        async with connection(self.pool, "believing") as lent:
            return [binding_of(row) for row in await lent.fetch(sql, issuer)]

    async def known(self, binding_id: UUID, jti_digest: bytes) -> bool:
        """Whether a logout token of a binding came before."""
        sql = "SELECT true FROM identity.logout_tokens WHERE binding_id = $1 AND jti_digest = $2"
        async with connection(self.pool, "known_logout") as lent:
            return bool(await lent.fetchval(sql, binding_id, jti_digest))

    async def whose(self, binding_id: UUID, subject: str, sid: str) -> UUID | None:
        """Return the one person whose sessions a logout would end, if that is one."""
        sql = f"""
        SELECT identity_id FROM identity.sessions WHERE {WHOSE}
        UNION SELECT identity_id FROM identity.access_tokens WHERE {WHOSE}
        """
        async with connection(self.pool, "whose_logout") as lent:
            found = await lent.fetch(sql, binding_id, subject, sid)
        return found[0]["identity_id"] if len(found) == 1 else None

    async def log_out(
        self,
        binding_id: UUID,
        subject: str,
        sid: str,
        jti_digest: bytes,
        at: datetime.datetime,
        until: datetime.datetime,
    ) -> bool:
        """End what came from a provider's session, or without `sid` from all of a subject's; once a `jti_digest`."""
        noted = """
        INSERT INTO identity.logout_tokens (binding_id, jti_digest, expires_at) VALUES ($1, $2, $3)
        ON CONFLICT DO NOTHING RETURNING true
        """
        tokens = f"DELETE FROM identity.access_tokens WHERE {WHOSE} RETURNING digest"
        async with transaction(self.pool, "log_out") as lent:
            await lent.execute("DELETE FROM identity.logout_tokens WHERE expires_at < $1", at)
            if not await lent.fetchval(noted, binding_id, jti_digest, until):
                return False
            # Sessions first: their approvals go with them, and a token that was issued meanwhile is seen then.
            await end_where(lent, WHOSE, binding_id, subject, sid)
            for row in await lent.fetch(tokens, binding_id, subject, sid):
                await notify(lent, Revocation("credential", row["digest"].hex()))
        return True
