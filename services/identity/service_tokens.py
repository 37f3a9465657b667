"""The rules by which service identities come in: client credentials (RFC 6749, 4.4), the secret being an API token."""

import datetime
from dataclasses import dataclass
from uuid import UUID, uuid5

from libs.clock import Clock
from libs.decision import Record, Recorder
from libs.errors import FederationKindMismatch, InvalidClient, InvalidScope, PlexError
from libs.ids import uuid7
from libs.scope import PERMISSIONS
from services.identity.sign_in_model import digest
from services.identity.token_model import API_TOKEN, SERVICE_TOKEN, Owner, ServiceToken, new_text, well_formed
from services.identity.token_ports import TokenStore

LIFETIME = datetime.timedelta(minutes=15)
SPACE = UUID("5d1c0a52-32a5-5a5f-9a3e-1d54b8f0f0c7")


@dataclass(frozen=True)
class ServiceTokens:
    """Exchanges a secret for a short token."""

    store: TokenStore
    audit: Recorder
    clock: Clock
    environment: str

    async def issue(
        self, client_id: str, secret: str, wanted: tuple[str, ...]
    ) -> tuple[str, datetime.timedelta, tuple[str, ...] | None]:
        """Return an access token, its lifetime and its scope, which is never more than the secret's."""
        now = self.clock.now()
        client = await self._client(client_id)
        if client is not None and client.federation_kind != "api_token":
            raise await self._refused(client, FederationKindMismatch())
        token = await self.store.use_api_token(digest(secret), now) if well_formed(secret, API_TOKEN) else None
        if client is None or token is None or token.owner != client:
            raise await self._refused(client, InvalidClient())
        if not set(wanted) <= set(PERMISSIONS if token.scope is None else token.scope):
            raise await self._refused(client, InvalidScope())
        scope = tuple(dict.fromkeys(wanted)) or token.scope
        issued = ServiceToken(uuid7(), token.id, client, scope, min(now + LIFETIME, token.expires_at))
        await self.audit.record(_record(client, issued.id, "granted", {"api_token": [str(token.id)]}, uuid7()))
        text = new_text(SERVICE_TOKEN, self.environment)
        await self.store.add_service_token(issued, digest(text), now)
        return text, issued.expires_at - now, scope

    async def _client(self, client_id: str) -> Owner | None:
        try:
            return await self.store.owner("service", UUID(client_id))
        except ValueError:
            return None

    async def _refused(self, client: Owner | None, refusal: PlexError) -> PlexError:
        if client is not None:
            # Anybody may ask, and must not decide how the chain grows: a row a client, reason and minute.
            minute = self.clock.now().astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%MZ")
            context = {"service_token": [refusal.code], "minute": [minute]}
            key = uuid5(SPACE, f"{client.id}/{refusal.code}/{minute}")
            await self.audit.record(_record(client, client.id, "caveat_violation", context, key))
        return refusal


def _record(client: Owner, issued: UUID, reason: str, context: dict[str, list[str]], key: UUID) -> Record:
    return Record(
        domain_id=str(client.domain_id or ""),
        action="service_token.issue",
        relation="client_credentials",
        object_type="service_token",
        object_id=str(issued),
        reason=reason,
        subject_id=str(client.id),
        subject_kind="service",
        context=context,
        idempotency_key=key,
    )
