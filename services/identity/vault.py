"""OpenBao as identity uses it: node keys are wrapped there, client secrets read from there."""

import functools
from dataclasses import dataclass
from uuid import UUID

from libs.bao import Bao, BaoRefused
from libs.custody import Secret
from libs.errors import OpenbaoUnavailable
from libs.together import Together

MOUNT, KEY, REFRESH = "transit-identity", "nsk", "refresh"
# The derivation of whoever belongs to no Domain.
PLATFORM = UUID(int=0)
SHORTEST = 64


def bound_to(domain_id: UUID, node_id: UUID, kid: str) -> bytes:
    """Return the associated data of a node key: a blob that is moved to another row does not open."""
    return domain_id.bytes + node_id.bytes + kid.encode()


@dataclass(frozen=True)
class BaoVault:
    """Wraps under the Domain's derivation of one transit key; whose key it is and which is bound as associated data."""

    bao: Bao

    @functools.cached_property
    def _wrapping(self) -> Together[tuple[bytes, bytes, Secret], str]:
        return Together(functools.partial(self.bao.wrap_all, MOUNT, KEY))

    async def wrap(self, domain_id: UUID, node_id: UUID, kid: str, key: Secret) -> str:
        """Return ciphertext bound to Domain, node and KID."""
        try:
            return await self._wrapping.ask((domain_id.bytes, bound_to(domain_id, node_id, kid), key))
        except BaoRefused as refused:
            raise OpenbaoUnavailable(str(refused)) from refused

    async def wrap_refresh(self, domain_id: UUID | None, session_id: UUID, token: Secret) -> str:
        """Return ciphertext bound to Domain and session."""
        context = (domain_id or PLATFORM).bytes
        try:
            # Padded: a short token is still as long as what the database takes for ciphertext.
            with Secret(bytes(token.reveal()).ljust(SHORTEST, b"\0")) as padded:
                return await self.bao.wrap(MOUNT, REFRESH, context, session_id.bytes, padded)
        except BaoRefused as refused:
            raise OpenbaoUnavailable(str(refused)) from refused

    async def unwrap_refresh(self, domain_id: UUID | None, session_id: UUID, ciphertext: str) -> Secret:
        """Return the token; the caller wipes it."""
        context = (domain_id or PLATFORM).bytes
        try:
            with await self.bao.unwrap(MOUNT, REFRESH, context, session_id.bytes, ciphertext) as padded:
                return Secret(bytes(padded.reveal()).rstrip(b"\0"))
        except BaoRefused as refused:
            raise OpenbaoUnavailable(str(refused)) from refused

    async def client_secret(self, reference: str) -> Secret:
        """Return the client secret behind a binding's reference."""
        try:
            data, _ = await self.bao.read_kv(reference.removeprefix("kv/"))
        except BaoRefused as refused:
            raise OpenbaoUnavailable(str(refused)) from refused
        found = data.get("client_secret")
        # A lone surrogate is valid JSON, and nothing that can be sent.
        if not isinstance(found, str) or not found.isprintable():
            raise OpenbaoUnavailable(f"{reference} has no client_secret that can be sent")
        return Secret(found.encode())
