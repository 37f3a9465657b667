"""Sessions whose provider is asked about them, in PostgreSQL."""

import datetime
from dataclasses import dataclass
from uuid import UUID

import asyncpg

from libs.pg import transaction
from services.identity.binding_store import BINDING, binding_of
from services.identity.relation_store import notify
from services.identity.relations import Revocation
from services.identity.sign_in_model import Held
from services.identity.sign_in_store import end_where

# Whoever takes a session has it for itself until its next time: two replicas never present one refresh token.
DUE = """
WITH waiting AS (
    SELECT s.id, s.refresh_at, i.binding_id,
        row_number() OVER (PARTITION BY i.binding_id ORDER BY s.refresh_at) AS place
    FROM identity.sessions s JOIN identity.identities i ON i.id = s.identity_id
    WHERE s.refresh_at <= $1 AND s.expires_at > $1
), turn AS (
    SELECT id FROM identity.sessions WHERE refresh_at <= $1 AND id IN (
        SELECT id FROM waiting
        WHERE place + (SELECT count(*) FROM unnest($5::uuid[]) AS busy WHERE busy = binding_id) <= $4
    )
    ORDER BY refresh_at LIMIT $3 FOR UPDATE SKIP LOCKED
)
UPDATE identity.sessions s SET refresh_at = $2 FROM identity.identities i
WHERE s.id IN (SELECT id FROM turn) AND i.id = s.identity_id
RETURNING s.id AS session_id, s.refresh_token, s.nonce_digest, s.auth_time, i.id AS person_id, i.domain_id, i.subject,
    i.binding_id
"""


@dataclass(frozen=True)
class PgRefreshStore:
    """Refresh tokens as ciphertext, and for how long the provider's word holds."""

    pool: asyncpg.Pool

    async def due(
        self, at: datetime.datetime, next_at: datetime.datetime, limit: int, of_one: int, busy: list[UUID]
    ) -> list[Held]:
        """Return sessions whose time has come, and put it off for whoever else looks."""
        bindings = f"SELECT {BINDING} FROM identity.idp_bindings WHERE id = ANY ($1)"
        async with transaction(self.pool, "due_refreshes") as lent:
            rows = [dict(row) for row in await lent.fetch(DUE, at, next_at, limit, of_one, busy)]
            found = await lent.fetch(bindings, [row["binding_id"] for row in rows])
        by_id = {binding.id: binding for binding in map(binding_of, found)}
        return [Held(binding=by_id[row.pop("binding_id")], **row) for row in rows]

    async def keep(self, session_id: UUID, refresh_token: str) -> None:
        """Keep what to ask with next."""
        async with transaction(self.pool, "keep_refresh_token") as lent:
            await lent.execute(
                "UPDATE identity.sessions SET refresh_token = $2 WHERE id = $1", session_id, refresh_token
            )

    async def confirm(self, session_id: UUID, until: datetime.datetime) -> None:
        """Believe the provider about a session until then."""
        async with transaction(self.pool, "confirm_session") as lent:
            await lent.execute("UPDATE identity.sessions SET confirmed_until = $2 WHERE id = $1", session_id, until)

    async def end(self, session_id: UUID) -> None:
        """End a session and the access tokens of the same provider's session."""
        tokens = """
        DELETE FROM identity.access_tokens t USING identity.sessions s
        WHERE s.id = $1 AND t.identity_id = s.identity_id AND t.sid = s.sid RETURNING t.digest
        """
        async with transaction(self.pool, "end_unconfirmed") as lent:
            # Its approvals wait for this lock, and then find no session.
            await lent.execute("SELECT 1 FROM identity.sessions WHERE id = $1 FOR UPDATE", session_id)
            for row in await lent.fetch(tokens, session_id):
                await notify(lent, Revocation("credential", row["digest"].hex()))
            await end_where(lent, "id = $1", session_id)
