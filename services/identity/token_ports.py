"""What the rules of tokens and identities need from outside; each docstring is the promise."""

import datetime
from typing import Protocol
from uuid import UUID

from services.identity.model import Tuple
from services.identity.token_model import ApiToken, Identity, Owner, ServiceIdentity, ServiceToken


class TokenStore(Protocol):
    """API tokens and what they beget; a method is a transaction, and texts arrive as digests only."""

    async def owner(self, kind: str, identity_id: UUID) -> Owner | None:
        """Return a person or service identity as an owner of tokens."""

    async def add_api_token(self, token: ApiToken, digest: bytes) -> None:
        """Store a token; raises ApiTokenLimit, and NotFound when its owner is gone."""

    async def api_tokens(self, owner: Owner, at: datetime.datetime) -> list[ApiToken]:
        """Return the owner's live tokens, newest first."""

    async def api_token(self, token_id: UUID, at: datetime.datetime) -> ApiToken | None:
        """Return a live token."""

    async def use_api_token(self, digest: bytes, at: datetime.datetime) -> ApiToken | None:
        """Return a live token whose owner may come in, and note its use at most once a minute."""

    async def rotate_api_token(
        self, token_id: UUID, successor: ApiToken, digest: bytes, deadline: datetime.datetime
    ) -> datetime.datetime | None:
        """Store the successor, and end the old token at the deadline or at its own end; returns when that is.

        None when there is no such live token; raises ApiTokenRotated for all but the first of concurrent callers.
        """

    async def revoke_api_token(self, token_id: UUID) -> bool:
        """End a token and all that it begot, for every replica when this returns; False when there is none."""

    async def add_service_token(self, token: ServiceToken, digest: bytes, at: datetime.datetime) -> None:
        """Store a service token; raises InvalidClient when its API token is gone."""

    async def use_service_token(self, digest: bytes, at: datetime.datetime) -> ServiceToken | None:
        """Return a live service token whose API token lives."""


class IdentityStore(Protocol):
    """People and service identities of a Domain; a method is a transaction."""

    async def identities(self, domain_id: UUID, kind: str, after: UUID, limit: int) -> list[Identity]:
        """Return identities by id, beyond `after`; an empty kind for all."""

    async def identity(self, domain_id: UUID, identity_id: UUID) -> Identity | None:
        """Return one of the Domain's."""

    async def add_service_identity(self, row: ServiceIdentity) -> None:
        """Raise AlreadyExists for the same subject, audience and federation; NotFound when the Domain is gone."""

    async def delete_service_identity(self, domain_id: UUID, identity_id: UUID) -> list[Tuple] | None:
        """Delete it with its tokens and mark its tuples as removing; None when there is none."""
