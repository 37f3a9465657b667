"""OpenBao as identity uses it: node keys are wrapped there, client secrets read from there."""

from dataclasses import dataclass
from uuid import UUID

from libs.bao import Bao, BaoRefused
from libs.custody import Secret
from libs.errors import OpenbaoUnavailable

MOUNT, KEY = "transit-identity", "nsk"


def bound_to(domain_id: UUID, node_id: UUID, kid: str) -> bytes:
    """Return the associated data of a node key: a blob that is moved to another row does not open."""
    return domain_id.bytes + node_id.bytes + kid.encode()


@dataclass(frozen=True)
class BaoVault:
    """Wraps under the Domain's derivation of one transit key; whose key it is and which is bound as associated data."""

    bao: Bao

    async def wrap(self, domain_id: UUID, node_id: UUID, kid: str, key: Secret) -> str:
        """Return ciphertext bound to Domain, node and KID."""
        try:
            return await self.bao.wrap(MOUNT, KEY, domain_id.bytes, bound_to(domain_id, node_id, kid), key)
        except BaoRefused as refused:
            raise OpenbaoUnavailable(str(refused)) from refused

    async def client_secret(self, reference: str) -> Secret:
        """Return the client secret behind a binding's reference."""
        try:
            data, _ = await self.bao.read_kv(reference.removeprefix("kv/"))
        except BaoRefused as refused:
            raise OpenbaoUnavailable(str(refused)) from refused
        if not isinstance(found := data.get("client_secret"), str):
            raise OpenbaoUnavailable(f"{reference} has no client_secret")
        return Secret(found.encode())
