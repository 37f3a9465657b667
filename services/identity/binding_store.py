"""All SQL of IdP bindings, and what goes with them when they are taken away."""

import datetime
import json
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg

from libs.errors import BindingConflict, NotFound
from libs.pg import connection, transaction
from services.identity.model import Tuple
from services.identity.relation_store import mark_tuples, notify
from services.identity.relations import Revocation
from services.identity.sign_in_model import Binding

BINDING = """id, domain_id, issuer, client_id, client_secret_ref, discovery_url, claim_mappings, required_acr,
required_amr, jit_policy, status, alias, is_primary, created_at, updated_at, scopes, accepted_amr, max_auth_age_s,
leeway_s, algorithms"""
INSERT = f"""
INSERT INTO identity.idp_bindings ({BINDING})
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20)
"""
OF_PEOPLE = "subject_type = 'user' AND subject_id IN (SELECT id::text FROM identity.identities WHERE binding_id = $1)"


def binding_of(row: asyncpg.Record) -> Binding:
    """Return a row as a binding."""
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
    values["primary"] = values.pop("is_primary")
    values["claim_mappings"] = json.loads(values["claim_mappings"])
    return Binding(**values)


def values_of(binding: Binding) -> list[Any]:
    """Return a binding as values of a row, in the order of its columns."""
    return [json.dumps(value) if isinstance(value, dict) else value for value in vars(binding).values()]


@dataclass(frozen=True)
class PgBindingStore:
    """Bindings in PostgreSQL."""

    pool: asyncpg.Pool

    async def add_binding(self, binding: Binding) -> None:
        """Raise BindingConflict for a second issuer, or a second primary, of a Domain."""
        try:
            async with transaction(self.pool, "add_binding") as lent:
                await lent.execute(INSERT, *values_of(binding))
        except asyncpg.UniqueViolationError:
            raise BindingConflict from None
        except asyncpg.ForeignKeyViolationError:
            raise NotFound from None

    async def ensure_binding(self, binding: Binding) -> None:
        """Add the platform's binding of an issuer, or bring client and discovery of the one that is there up to date.

        A new one takes the first place from any other; what else was changed of it, its status too, stays.
        """
        displace = """
        UPDATE identity.idp_bindings SET is_primary = false WHERE domain_id IS NULL AND is_primary AND NOT EXISTS (
            SELECT FROM identity.idp_bindings WHERE domain_id IS NULL AND issuer = $1
        )
        """
        sql = f"""
        {INSERT} ON CONFLICT (domain_id, issuer) DO UPDATE SET
            client_id = excluded.client_id, client_secret_ref = excluded.client_secret_ref,
            discovery_url = excluded.discovery_url, updated_at = excluded.updated_at
        WHERE (idp_bindings.client_id, idp_bindings.client_secret_ref, idp_bindings.discovery_url)
            <> (excluded.client_id, excluded.client_secret_ref, excluded.discovery_url)
        """
        async with transaction(self.pool, "ensure_binding") as lent:
            await lent.execute(displace, binding.issuer)
            await lent.execute(sql, *values_of(binding))

    async def binding(self, binding_id: UUID) -> Binding | None:
        """Return a binding."""
        async with connection(self.pool, "binding") as lent:
            row = await lent.fetchrow(f"SELECT {BINDING} FROM identity.idp_bindings WHERE id = $1", binding_id)
        return binding_of(row) if row else None

    async def bindings(self, domain_id: UUID | None) -> list[Binding]:
        """Return a Domain's bindings, or the platform's, the primary one first."""
        sql = f"""
        SELECT {BINDING} FROM identity.idp_bindings
        WHERE domain_id IS NOT DISTINCT FROM $1 ORDER BY is_primary DESC, id
        """
        async with connection(self.pool, "bindings") as lent:
            return [binding_of(row) for row in await lent.fetch(sql, domain_id)]

    async def change_binding(self, before: Binding, after: Binding) -> None:
        """Put one state of a binding for another; raises BindingConflict when it changed, or for a second primary."""
        sql = """
        UPDATE identity.idp_bindings SET
            claim_mappings = $3, required_acr = $4, required_amr = $5, jit_policy = $6, alias = $7, is_primary = $8,
            updated_at = $9, scopes = $10, accepted_amr = $11, max_auth_age_s = $12, leeway_s = $13, algorithms = $14
        WHERE id = $1 AND updated_at = $2 RETURNING true
        """
        try:
            async with transaction(self.pool, "change_binding") as lent:
                changed = await lent.fetchval(
                    sql, after.id, before.updated_at, json.dumps(after.claim_mappings), after.required_acr,
                    after.required_amr, after.jit_policy, after.alias, after.primary, after.updated_at, after.scopes,
                    after.accepted_amr, after.max_auth_age_s, after.leeway_s, after.algorithms,
                )  # fmt: skip
        except asyncpg.UniqueViolationError:
            raise BindingConflict from None
        if not changed:
            raise BindingConflict("the binding was changed meanwhile")

    async def set_binding_status(self, binding_id: UUID, status: str, at: datetime.datetime) -> Binding | None:
        """Set a status; whatever the people of a binding that is not active hold is worth nothing once it returns."""
        sql = f"""
        UPDATE identity.idp_bindings SET status = $2, updated_at = greatest($3, updated_at + interval '1 microsecond')
        WHERE id = $1 RETURNING {BINDING}
        """
        async with transaction(self.pool, "set_binding_status") as lent:
            row = await lent.fetchrow(sql, binding_id, status, at)
            if row is not None and status != "active":
                await end_people(lent, binding_id)
        return binding_of(row) if row else None

    async def remove_binding(self, binding_id: UUID) -> list[Tuple] | None:
        """Remove a binding with its people and what they hold, and mark their tuples as removing; returns these."""
        async with transaction(self.pool, "remove_binding") as lent:
            if not await lent.fetchval("SELECT 1 FROM identity.idp_bindings WHERE id = $1 FOR UPDATE", binding_id):
                return None
            await end_people(lent, binding_id)
            rows = await mark_tuples(lent, OF_PEOPLE, binding_id)
            await lent.execute("DELETE FROM identity.idp_bindings WHERE id = $1", binding_id)
        return rows


async def end_people(lent: asyncpg.Connection, binding_id: UUID) -> None:
    """End the sessions, device approvals, access and API tokens of a binding's people and tell the feed.

    The caller holds the binding's row, for which opening a session waits. Sessions go first: with them go approvals,
    which waits for a token that is being issued for one, and the tokens after that are all there will be.
    """
    ended: set[UUID] = set()
    for table in ("sessions", "access_tokens", "api_tokens"):
        sql = f"""
        DELETE FROM identity.{table} held USING identity.identities i
        WHERE i.binding_id = $1 AND held.identity_id = i.id RETURNING i.id
        """
        ended |= {row["id"] for row in await lent.fetch(sql, binding_id)}
    await notify(lent, *(Revocation("identity", str(person_id)) for person_id in ended))
