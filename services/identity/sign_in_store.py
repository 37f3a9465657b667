"""All SQL of signing in; credentials arrive here as digests only."""

import datetime
from uuid import UUID

import asyncpg

from libs.errors import SignInRefused, Unauthenticated
from libs.pg import connection, transaction
from services.identity.access_policy_store import secret_limits_of
from services.identity.binding_store import PgBindingStore
from services.identity.model import Tuple
from services.identity.relation_store import add_tuples, notify
from services.identity.relations import Revocation
from services.identity.sign_in_model import Asker, Binding, Device, Login, NodeKey, Pending, Person, Session, Wanted

DEVICE = """id, client_id, domain_id, acr_values, max_age_s, interval_s, expires_at, polled_at, identity_id, binding_id,
denied, acr, amr, auth_time, client_ip, user_agent"""
KEEP_TOKENS = """
UPDATE identity.access_tokens t SET session_id = $1 FROM identity.sessions s
WHERE s.digest = $2 AND t.session_id = s.id AND t.identity_id = $3
"""
# Longer than any privileged session lasts, which is who asks.
FORGET_ENDED = "DELETE FROM identity.ended_sign_ins WHERE ended_at < $1::timestamptz - interval '2 days'"

# How much longer than what begins now an old state or code is remembered: about an hour after its end.
KEPT = datetime.timedelta(minutes=70)
# A bearer of a key that was revoked so many keys ago is told that it is unknown, not that it was revoked.
MOST_NODE_KEYS = 32


def login_of(row: asyncpg.Record) -> Login:
    """Return how somebody proved who they are."""
    return Login(row["acr"], tuple(row["amr"]), row["auth_time"])


def device_of(row: asyncpg.Record) -> Device:
    """Return a row as a device authorization."""
    return Device(
        id=row["id"],
        client_id=row["client_id"],
        domain_id=row["domain_id"],
        wanted=Wanted(tuple(row["acr_values"]), row["max_age_s"]),
        interval_s=row["interval_s"],
        expires_at=row["expires_at"],
        polled_at=row["polled_at"],
        person_id=row["identity_id"],
        binding_id=row["binding_id"],
        denied=row["denied"],
        login=login_of(row),
        asker=Asker(row["client_ip"], row["user_agent"]),
    )


def session_of(row: asyncpg.Record) -> Session:
    """Return a row as the login behind a credential."""
    person = Person(row["identity_id"], row["domain_id"])
    return Session(row["id"], person, login_of(row), row["expires_at"])


async def end_where(lent: asyncpg.Connection, where: str, *values: object) -> int:
    """End sessions, their approvals and access tokens in the caller's transaction. Returns how many there were."""
    ended = await lent.fetch(f"DELETE FROM identity.sessions WHERE {where} RETURNING id, digest", *values)
    # Sessions first: their approvals go with them, and a token that was issued meanwhile is seen then.
    tokens = "DELETE FROM identity.access_tokens WHERE session_id = ANY ($1) RETURNING digest"
    for row in [*ended, *await lent.fetch(tokens, [row["id"] for row in ended])]:
        await notify(lent, Revocation("credential", row["digest"].hex()))
    return len(ended)


class PgSignInStore(PgBindingStore):
    """Bindings, people, sessions, devices in PostgreSQL."""

    async def start(self, state_digest: bytes, pending: Pending) -> None:
        """Remember a sign-in under way, and forget those that were never finished."""
        sql = """
        INSERT INTO identity.pending_sign_ins
            (state_digest, binding_id, return_to, acr_values, max_age_s, expires_at, previous_digest)
        VALUES ($1, $2, $3, $4, $5, $6, $7)
        """
        async with transaction(self.pool, "start_sign_in") as lent:
            # A state is kept a while after its end, so that late and replayed ones are told from invented ones.
            await lent.execute("DELETE FROM identity.pending_sign_ins WHERE expires_at < $1", pending.expires_at - KEPT)
            wanted = pending.wanted
            await lent.execute(
                sql, state_digest, pending.binding_id, pending.return_to, list(wanted.acr_values), wanted.max_age_s,
                pending.expires_at, pending.previous,
            )  # fmt: skip

    async def finish(self, state_digest: bytes, at: datetime.datetime) -> Pending | None:
        """Return a sign-in as it was, and mark its state as used: it is found unused only once."""
        sql = """
        SELECT binding_id, return_to, acr_values, max_age_s, expires_at, previous_digest, used_at
        FROM identity.pending_sign_ins WHERE state_digest = $1 FOR UPDATE
        """
        used = "UPDATE identity.pending_sign_ins SET used_at = $2 WHERE state_digest = $1 AND used_at IS NULL"
        async with transaction(self.pool, "finish_sign_in") as lent:
            row = await lent.fetchrow(sql, state_digest)
            if row is None:
                return None
            await lent.execute(used, state_digest, at)
        wanted, is_used = Wanted(tuple(row["acr_values"]), row["max_age_s"]), row["used_at"] is not None
        return Pending(row["binding_id"], row["return_to"], wanted, row["expires_at"], row["previous_digest"], is_used)

    async def person(self, binding: Binding, subject: str) -> Person | None:
        """Return who a provider's subject is."""
        sql = "SELECT id, domain_id FROM identity.identities WHERE binding_id = $1 AND subject = $2"
        async with connection(self.pool, "person") as lent:
            row = await lent.fetchrow(sql, binding.id, subject)
        return Person(row["id"], row["domain_id"]) if row else None

    async def admit(self, binding: Binding, person: Person, subject: str, at: datetime.datetime) -> Person:
        """Create or refresh a person; two first sign-ins at once make one. Raises SignInRefused without the binding."""
        sql = """
        INSERT INTO identity.identities
            (id, domain_id, binding_id, subject, display_name, email, created_at, last_sign_in_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $7)
        ON CONFLICT (binding_id, subject) DO UPDATE SET display_name = $5, email = $6, last_sign_in_at = $7
        RETURNING id
        """
        try:
            async with transaction(self.pool, "admit") as lent:
                person_id = await lent.fetchval(
                    sql, person.id, person.domain_id, binding.id, subject, person.display_name, person.email, at
                )
        except asyncpg.ForeignKeyViolationError:
            raise SignInRefused from None
        return Person(person_id, person.domain_id, person.display_name, person.email)

    async def was_made_admin(self, person_id: UUID) -> bool:
        """Whether a person was made an administrator of the platform by the settings file, whatever became of it."""
        sql = "SELECT admin_granted_at IS NOT NULL FROM identity.identities WHERE id = $1"
        async with connection(self.pool, "was_made_admin") as lent:
            return bool(await lent.fetchval(sql, person_id))

    async def make_admin(self, person_id: UUID, row: Tuple) -> None:
        """Grant a tuple to a person and note it; a second time nothing happens, also when it was revoked since."""
        sql = """
        UPDATE identity.identities SET admin_granted_at = now()
        WHERE id = $1 AND admin_granted_at IS NULL RETURNING true
        """
        async with transaction(self.pool, "make_admin") as lent:
            if await lent.fetchval(sql, person_id):
                await add_tuples(lent, [row])

    async def open_session(self, session: Session, digest: bytes, at: datetime.datetime, ended: bytes | None) -> None:
        """Store a session, and end the one whose digest is given."""
        sql = """
        INSERT INTO identity.sessions
            (id, digest, identity_id, acr, amr, auth_time, created_at, last_seen_at, expires_at, sid,
            refresh_token, nonce_digest, refresh_at, confirmed_until)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $7, $8, $9, $10, $11, $12, $13)
        """
        async with transaction(self.pool, "open_session") as lent:
            await self._require_active(lent, session.person.id)
            if ended is not None:
                # Whoever signs in once more, for a stronger login, does not sign out: devices stay in.
                await lent.execute(KEEP_TOKENS, session.id, ended, session.person.id)
                mine = "SELECT id FROM identity.sessions WHERE digest = $1 AND identity_id = $2"
                replaced = await lent.fetchval(mine, ended, session.person.id)
                await end_where(lent, "digest = $1", ended)
                # Nor do their privileged sessions end: these follow the new session now.
                succeed = "UPDATE identity.ended_sign_ins SET successor_id = $1 WHERE id = $2"
                await lent.execute(succeed, session.id, replaced)
            await lent.execute(FORGET_ENDED, at)
            await lent.execute("DELETE FROM identity.sessions WHERE expires_at < $1", at)
            login = session.login
            await lent.execute(
                sql, session.id, digest, session.person.id, login.acr, list(login.amr), login.auth_time, at,
                session.expires_at, session.sid, *(vars(session.grant).values() if session.grant else [None] * 4),
            )  # fmt: skip

    async def _require_active(self, lent: asyncpg.Connection, person_id: UUID) -> None:
        # Whoever deactivates the binding waits for this lock and ends the session, or was first and refuses it.
        sql = """
        SELECT b.status FROM identity.identities i JOIN identity.idp_bindings b ON b.id = i.binding_id
        WHERE i.id = $1 FOR SHARE OF b
        """
        if await lent.fetchval(sql, person_id) != "active":
            raise SignInRefused

    async def use_session(self, digest: bytes, at: datetime.datetime, idle_since: datetime.datetime) -> Session | None:
        """Return a live session and move its idle time."""
        sql = """
        UPDATE identity.sessions s SET last_seen_at = $2 FROM identity.identities i
        WHERE s.digest = $1 AND s.expires_at > $2 AND s.last_seen_at > $3
            AND (s.confirmed_until IS NULL OR s.confirmed_until > $2) AND i.id = s.identity_id
        RETURNING s.id, s.identity_id, i.domain_id, s.acr, s.amr, s.auth_time, s.expires_at
        """
        async with connection(self.pool, "use_session") as lent:
            row = await lent.fetchrow(sql, digest, at, idle_since)
        return session_of(row) if row else None

    async def end_session(self, session_id: UUID) -> None:
        """End a session; it is gone for every replica when this returns."""
        async with transaction(self.pool, "end_session") as lent:
            await end_where(lent, "id = $1", session_id)

    async def end_sessions(self, person_id: UUID) -> int:
        """End every session and access token of a person; returns how many sessions there were."""
        async with transaction(self.pool, "end_sessions") as lent:
            ended = await end_where(lent, "identity_id = $1", person_id)
            await lent.execute("DELETE FROM identity.access_tokens WHERE identity_id = $1", person_id)
            await notify(lent, Revocation("identity", str(person_id)))
        return ended

    async def start_device(self, device: Device, device_digest: bytes, user_code_digest: bytes) -> None:
        """Remember a device authorization."""
        sql = """
        INSERT INTO identity.device_codes
            (id, device_digest, user_code_digest, client_id, domain_id, acr_values, max_age_s, interval_s, expires_at,
            binding_id, client_ip, user_agent)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
        """
        async with transaction(self.pool, "start_device") as lent:
            # An expired code is kept a while, so that a late approval hears that it expired.
            await lent.execute("DELETE FROM identity.device_codes WHERE expires_at < $1", device.expires_at - KEPT)
            await lent.execute(
                sql, device.id, device_digest, user_code_digest, device.client_id, device.domain_id,
                list(device.wanted.acr_values), device.wanted.max_age_s, device.interval_s, device.expires_at,
                device.binding_id, device.asker.client_ip, device.asker.user_agent,
            )  # fmt: skip

    async def device_by_user_code(self, user_code_digest: bytes) -> Device | None:
        """Return a device authorization by what a person typed."""
        sql = f"SELECT {DEVICE} FROM identity.device_codes WHERE user_code_digest = $1"
        async with connection(self.pool, "device_by_user_code") as lent:
            row = await lent.fetchrow(sql, user_code_digest)
        return device_of(row) if row else None

    async def domain_name(self, domain_id: UUID) -> str:
        """Return a Domain's name; empty when it is gone."""
        async with connection(self.pool, "domain_name") as lent:
            return str(await lent.fetchval("SELECT name FROM identity.domains WHERE id = $1", domain_id) or "")

    async def approve_device(self, device_id: UUID, session: Session) -> bool:
        """Give a device the login behind a session; False when it has one already."""
        sql = """
        UPDATE identity.device_codes SET identity_id = $2, session_id = $3, acr = $4, amr = $5, auth_time = $6,
            sid = coalesce((SELECT sid FROM identity.sessions WHERE id = $3), '')
        WHERE id = $1 AND identity_id IS NULL AND NOT denied RETURNING true
        """
        login = session.login
        try:
            async with transaction(self.pool, "approve_device") as lent:
                approved = await lent.fetchval(
                    sql, device_id, session.person.id, session.id, login.acr, list(login.amr), login.auth_time
                )
        except asyncpg.ForeignKeyViolationError:
            # The session ended, or it was none: a token must not beget tokens.
            raise Unauthenticated("a session is needed") from None
        return bool(approved)

    async def deny_device(self, device_id: UUID) -> bool:
        """Deny a device; False when it was approved or denied already."""
        sql = """
        UPDATE identity.device_codes SET denied = true WHERE id = $1 AND identity_id IS NULL AND NOT denied
        RETURNING true
        """
        async with transaction(self.pool, "deny_device") as lent:
            return bool(await lent.fetchval(sql, device_id))

    async def poll_device(self, device_digest: bytes, client_id: str, at: datetime.datetime) -> Device | None:
        """Return a device authorization as it was before this poll, and note the poll."""
        sql = f"""
        WITH before AS (
            SELECT {DEVICE} FROM identity.device_codes WHERE device_digest = $1 AND client_id = $2 FOR UPDATE
        ), noted AS (UPDATE identity.device_codes SET polled_at = $3 WHERE device_digest = $1 AND client_id = $2)
        SELECT {DEVICE} FROM before
        """
        async with transaction(self.pool, "poll_device") as lent:
            row = await lent.fetchrow(sql, device_digest, client_id, at)
        return device_of(row) if row else None

    async def issue_token(
        self, device: Device, digest: bytes, at: datetime.datetime, expires_at: datetime.datetime
    ) -> bool:
        """Store an access token's digest and forget the device; False when another poll was first."""
        sql = """
        INSERT INTO identity.access_tokens (id, digest, identity_id, acr, amr, auth_time, sid, session_id,
            created_at, expires_at)
        SELECT id, $2, identity_id, acr, amr, auth_time, sid, session_id, $3, $4
        FROM identity.device_codes WHERE id = $1
        """
        async with transaction(self.pool, "issue_token") as lent:
            await lent.execute("DELETE FROM identity.access_tokens WHERE expires_at < $1", at)
            locked = await lent.fetchval("SELECT 1 FROM identity.device_codes WHERE id = $1 FOR UPDATE", device.id)
            if not locked:
                return False
            await lent.execute(sql, device.id, digest, at, expires_at)
            await lent.execute("DELETE FROM identity.device_codes WHERE id = $1", device.id)
        return True

    async def use_token(self, digest: bytes, at: datetime.datetime) -> Session | None:
        """Return the login behind a live access token; its id is the token's."""
        sql = """
        SELECT t.id, t.identity_id, i.domain_id, t.acr, t.amr, t.auth_time, t.expires_at
        FROM identity.access_tokens t JOIN identity.identities i ON i.id = t.identity_id
        WHERE t.digest = $1 AND t.expires_at > $2
        """
        async with connection(self.pool, "use_token") as lent:
            row = await lent.fetchrow(sql, digest, at)
        return session_of(row) if row else None

    async def end_token(self, token_id: UUID) -> None:
        """End an access token."""
        sql = "DELETE FROM identity.access_tokens WHERE id = $1 RETURNING digest"
        async with transaction(self.pool, "end_token") as lent:
            digest = await lent.fetchval(sql, token_id)
            if digest:
                await notify(lent, Revocation("credential", digest.hex()))

    async def node_keys(self, node_id: UUID, at: datetime.datetime) -> list[NodeKey]:
        """Return the keys of a node, those that count and the newest of those that did."""
        sql = """
        SELECT k.node_id, n.project_id, k.domain_id, k.kid, k.fingerprint,
            k.revoked_at IS NULL AND coalesce(k.valid_until > $2, true) AS live,
            p.node_rate_per_minute, p.node_burst, p.domain_rate_per_minute, p.domain_burst
        FROM identity.node_secret_keys k LEFT JOIN identity.nodes n ON n.id = k.node_id
        LEFT JOIN identity.access_policies p ON p.domain_id = k.domain_id
        WHERE k.node_id = $1 ORDER BY live DESC, k.created_at DESC LIMIT $3
        """
        async with connection(self.pool, "node_keys") as lent:
            rows = await lent.fetch(sql, node_id, at, MOST_NODE_KEYS)
        return [
            NodeKey(
                row["node_id"], row["project_id"], row["domain_id"], row["kid"], row["fingerprint"], row["live"],
                secret_limits_of(row),
            )
            for row in rows
        ]  # fmt: skip

    async def provider_of(self, person_id: UUID) -> UUID | None:
        """Return the binding at which a person signs in."""
        async with connection(self.pool, "provider_of") as lent:
            binding_id: UUID | None = await lent.fetchval(
                "SELECT binding_id FROM identity.identities WHERE id = $1", person_id
            )
        return binding_id

    async def email(self, person_id: UUID) -> str:
        """Return a person's e-mail address, or nothing."""
        async with connection(self.pool, "email") as lent:
            email: str | None = await lent.fetchval("SELECT email FROM identity.identities WHERE id = $1", person_id)
        return email or ""
