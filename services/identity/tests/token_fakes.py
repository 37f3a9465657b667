"""The fake of the ports of tokens and identities, in memory."""

import datetime
from dataclasses import dataclass, field, replace
from uuid import UUID

from libs.errors import AlreadyExists, ApiTokenLimit, ApiTokenRotated, InvalidClient, NotFound
from services.identity.model import Tuple
from services.identity.token_model import ApiToken, Identity, Owner, ServiceIdentity, ServiceToken

MOST = 100


@dataclass
class FakeTokenStore:
    """Owners, API tokens and service tokens by digest, service identities."""

    owners: dict[tuple[str, UUID], Owner] = field(default_factory=dict)
    tokens: dict[bytes, ApiToken] = field(default_factory=dict)
    service_tokens: dict[bytes, ServiceToken] = field(default_factory=dict)
    people: list[Identity] = field(default_factory=list)
    services: list[ServiceIdentity] = field(default_factory=list)
    domains: set[UUID] = field(default_factory=set)
    tuples: list[Tuple] = field(default_factory=list)

    def know(self, owner: Owner) -> Owner:
        """Make somebody known."""
        self.owners[owner.kind, owner.id] = owner
        return owner

    async def owner(self, kind: str, identity_id: UUID) -> Owner | None:
        return self.owners.get((kind, identity_id))

    async def add_api_token(self, token: ApiToken, digest: bytes) -> None:
        if token.owner not in self.owners.values():
            raise NotFound
        if len(await self.api_tokens(token.owner, token.created_at)) >= MOST:
            raise ApiTokenLimit
        self.tokens[digest] = token

    async def api_tokens(self, owner: Owner, at: datetime.datetime) -> list[ApiToken]:
        live = (token for token in self.tokens.values() if token.owner == owner and token.expires_at > at)
        return sorted(live, key=lambda token: token.id, reverse=True)

    async def api_token(self, token_id: UUID, at: datetime.datetime) -> ApiToken | None:
        live = (token for token in self.tokens.values() if token.id == token_id and token.expires_at > at)
        return next(live, None)

    async def use_api_token(self, digest: bytes, at: datetime.datetime) -> ApiToken | None:
        token = self.tokens.get(digest)
        if token is None or token.expires_at <= at:
            return None
        if token.last_used_at is None or at - token.last_used_at >= datetime.timedelta(minutes=1):
            self.tokens[digest] = replace(token, last_used_at=at)
        return token

    async def rotate_api_token(
        self, token_id: UUID, successor: ApiToken, digest: bytes, deadline: datetime.datetime
    ) -> datetime.datetime | None:
        old = await self.api_token(token_id, successor.created_at)
        if old is None:
            return None
        if old.rotated_at is not None:
            raise ApiTokenRotated
        ends = min(old.expires_at, deadline)
        self._replace(replace(old, expires_at=ends, rotated_at=successor.created_at))
        self.tokens[digest] = successor
        return ends

    def _replace(self, token: ApiToken) -> None:
        self.tokens = {digest: token if kept.id == token.id else kept for digest, kept in self.tokens.items()}

    async def revoke_api_token(self, token_id: UUID) -> bool:
        before = len(self.tokens)
        self.tokens = {digest: token for digest, token in self.tokens.items() if token.id != token_id}
        begotten = {digest: one for digest, one in self.service_tokens.items() if one.api_token_id != token_id}
        self.service_tokens = begotten
        return len(self.tokens) < before

    async def add_service_token(self, token: ServiceToken, digest: bytes, at: datetime.datetime) -> None:
        if token.api_token_id not in {one.id for one in self.tokens.values()}:
            raise InvalidClient
        self.service_tokens[digest] = token

    async def use_service_token(self, digest: bytes, at: datetime.datetime) -> ServiceToken | None:
        token = self.service_tokens.get(digest)
        if token is None or token.expires_at <= at or await self.api_token(token.api_token_id, at) is None:
            return None
        return token

    def _rows(self, domain_id: UUID) -> list[Identity]:
        machines = (
            Identity(
                one.id, "service-identity", one.domain_id, one.display_name, one.audience, one.subject, "", None,
                one.created_at, one.created_at,
            )
            for one in self.services
        )  # fmt: skip
        return sorted((row for row in (*self.people, *machines) if row.domain_id == domain_id), key=lambda row: row.id)

    async def identities(self, domain_id: UUID, kind: str, after: UUID, limit: int) -> list[Identity]:
        return [row for row in self._rows(domain_id) if kind in {"", row.kind} and row.id > after][:limit]

    async def identity(self, domain_id: UUID, identity_id: UUID) -> Identity | None:
        return next((row for row in self._rows(domain_id) if row.id == identity_id), None)

    async def add_service_identity(self, row: ServiceIdentity) -> None:
        if row.domain_id not in self.domains:
            raise NotFound
        once = (row.domain_id, row.federation_kind, row.subject, row.audience)
        if once in {(one.domain_id, one.federation_kind, one.subject, one.audience) for one in self.services}:
            raise AlreadyExists
        self.services.append(row)
        self.know(Owner("service", row.id, row.domain_id, row.federation_kind))

    async def delete_service_identity(self, domain_id: UUID, identity_id: UUID) -> list[Tuple] | None:
        owner = self.owners.get(("service", identity_id))
        if owner is None or owner.domain_id != domain_id:
            return None
        del self.owners["service", identity_id]
        self.services = [row for row in self.services if row.id != identity_id]
        for token in [token for token in self.tokens.values() if token.owner == owner]:
            await self.revoke_api_token(token.id)
        return [row for row in self.tuples if row.subject == owner.reference]
