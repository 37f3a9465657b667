"""All SQL of access policies, and of what access asks before and after it issues a session."""

import datetime
import json
from dataclasses import asdict, astuple, dataclass, fields
from uuid import UUID

import asyncpg

from libs.access_policy import AccessPolicy, Override, SecretLimits, Strength
from libs.errors import NotFound, Stale
from libs.pg import connection, transaction
from services.identity.model import InForce, SessionTerms
from services.identity.relation_store import notify
from services.identity.relations import Revocation

POLICY = """required_acr, required_amr, max_auth_age_s, kinds, default_ttl_s, max_ttl_s, max_active_per_identity,
max_active_per_node, issue_rate_per_minute, node_rate_per_minute, node_burst, domain_rate_per_minute, domain_burst"""
OWN = f"SELECT {POLICY} FROM identity.access_policies WHERE domain_id = $1"
LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('identity.access_policy:' || $1, 0))"
PUT = f"""
INSERT INTO identity.access_policies AS p (domain_id, {POLICY}, updated_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $12, $13, $14, $15, $11)
ON CONFLICT (domain_id) DO UPDATE SET required_acr = $2, required_amr = $3, max_auth_age_s = $4, kinds = $5,
    default_ttl_s = $6, max_ttl_s = $7, max_active_per_identity = $8, max_active_per_node = $9,
    issue_rate_per_minute = $10, updated_at = $11, node_rate_per_minute = $12, node_burst = $13,
    domain_rate_per_minute = $14, domain_burst = $15
"""
# What the caller's own provider is asked for; of a binding that is not active nobody holds a credential.
TERMS = f"""
SELECT r.project_id, r.domain_id, n.id AS node_id, p.domain_id IS NOT NULL AS kept, b.required_acr AS binding_acr,
    {", ".join("p." + name.strip() for name in POLICY.split(","))}
FROM unnest($1::uuid[], $2::uuid[]) WITH ORDINALITY AS w (resource_id, identity_id, turn)
LEFT JOIN identity.resources r ON r.id = w.resource_id
LEFT JOIN identity.nodes n ON n.resource_id = r.id
LEFT JOIN identity.access_policies p ON p.domain_id = r.domain_id
LEFT JOIN identity.identities i ON i.id = w.identity_id
LEFT JOIN identity.idp_bindings b ON b.id = i.binding_id
ORDER BY w.turn
"""
IN_FORCE = f"""
SELECT p.domain_id IS NOT NULL AS kept, b.required_acr AS own_acr,
    (SELECT coalesce(jsonb_agg(DISTINCT of.required_acr), '[]') FROM identity.idp_bindings of
     WHERE of.domain_id = w.domain_id) AS bindings_acr,
    {", ".join("p." + name.strip() for name in POLICY.split(","))}
FROM (SELECT $1::uuid AS domain_id, $2::uuid AS identity_id) w
LEFT JOIN identity.access_policies p ON p.domain_id = w.domain_id
LEFT JOIN identity.identities i ON i.id = w.identity_id
LEFT JOIN identity.idp_bindings b ON b.id = i.binding_id
"""
ENDED = """
WITH RECURSIVE following AS (
    SELECT id AS asked, successor_id FROM identity.ended_sign_ins WHERE id = ANY ($1)
    UNION ALL
    SELECT f.asked, e.successor_id FROM following f JOIN identity.ended_sign_ins e ON e.id = f.successor_id
)
SELECT asked FROM following WHERE successor_id IS NULL
"""


def secret_limits_of(row: asyncpg.Record) -> SecretLimits:
    """Return a row's limits of secret reads."""
    return SecretLimits(**{each.name: row[each.name] for each in fields(SecretLimits)})


def policy_of(row: asyncpg.Record) -> AccessPolicy:
    """Return a row as a policy."""
    kinds = {
        kind: Override(tuple(one["required_acr"]), tuple(one["required_amr"]), one["max_auth_age_s"])
        for kind, one in json.loads(row["kinds"]).items()
    }
    strength = Strength(tuple(row["required_acr"]), tuple(row["required_amr"]), row["max_auth_age_s"])
    return AccessPolicy(
        strength, kinds, row["default_ttl_s"], row["max_ttl_s"], row["max_active_per_identity"],
        row["max_active_per_node"], row["issue_rate_per_minute"],
        secret_limits_of(row),
    )  # fmt: skip


def terms_of(row: asyncpg.Record) -> SessionTerms:
    """Return a row as terms."""
    policy = policy_of(row) if row["kept"] else AccessPolicy()
    return SessionTerms(row["project_id"], row["domain_id"], row["node_id"], policy, tuple(row["binding_acr"] or ()))


@dataclass(frozen=True)
class PgAccessPolicyStore:
    """Policies in PostgreSQL."""

    pool: asyncpg.Pool

    async def access_policy(self, domain_id: UUID) -> AccessPolicy | None:
        """Return a Domain's own policy."""
        async with connection(self.pool, "access_policy") as lent:
            row = await lent.fetchrow(OWN, domain_id)
        return policy_of(row) if row else None

    async def in_force(self, domain_id: UUID, identity_id: UUID) -> InForce:
        """Return what holds in a Domain, and for a person's own binding."""
        async with connection(self.pool, "policy_in_force") as lent:
            (row,) = await lent.fetch(IN_FORCE, domain_id, identity_id)
        policy = policy_of(row) if row["kept"] else AccessPolicy()
        return InForce(policy, tuple(row["own_acr"] or ()), tuple(map(tuple, json.loads(row["bindings_acr"]))))

    async def put_access_policy(
        self, domain_id: UUID, before: AccessPolicy, policy: AccessPolicy, at: datetime.datetime
    ) -> None:
        """Put a policy for the one that was decided on."""
        strength, kinds = policy.strength, {kind: asdict(one) for kind, one in policy.kinds.items()}
        try:
            async with transaction(self.pool, "put_access_policy") as lent:
                # The first of a Domain has no row to lock.
                await lent.execute(LOCK, str(domain_id))
                row = await lent.fetchrow(OWN, domain_id)
                if (policy_of(row) if row else AccessPolicy()) != before:
                    # Whoever decided on what there was would undo what somebody else has tightened since.
                    raise Stale
                await lent.execute(
                    PUT, domain_id, strength.required_acr, strength.required_amr, strength.max_auth_age_s,
                    json.dumps(kinds), policy.default_ttl_s, policy.max_ttl_s, policy.max_active_per_identity,
                    policy.max_active_per_node, policy.issue_rate_per_minute, at, *astuple(policy.secret_limits),
                )  # fmt: skip
                if policy.secret_limits != before.secret_limits:
                    # They are in what nodes' assertions say, which gateways remember.
                    await notify(lent, Revocation("domain", str(domain_id)))
        except asyncpg.ForeignKeyViolationError:
            raise NotFound from None

    async def session_terms(self, asked: list[tuple[UUID, UUID]]) -> list[SessionTerms | None]:
        """Return where resources stand and what sessions there ask of an identity, as it is now; None without one."""
        async with connection(self.pool, "session_terms") as lent:
            rows = await lent.fetch(TERMS, *zip(*asked, strict=True))
        return [terms_of(row) if row["domain_id"] else None for row in rows]

    async def ended_sign_ins(self, sign_in_ids: list[UUID]) -> list[UUID]:
        """Return which of these web sessions and access tokens were ended; running out ends none."""
        async with connection(self.pool, "ended_sign_ins") as lent:
            return [row["asked"] for row in await lent.fetch(ENDED, sign_in_ids)]
