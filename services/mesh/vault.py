"""Event keys in OpenBao's transit engine."""

import base64
from dataclasses import dataclass
from uuid import UUID

from libs.bao import MISSING, Bao, BaoRefused
from libs.errors import OpenbaoUnavailable, SigningUnavailable
from services.mesh.model import PublicHalf

MOUNT = "transit-mesh"


@dataclass(frozen=True)
class BaoVault:
    """One Ed25519 key a Domain, `evk-<domain>`; it cannot be exported or backed up."""

    bao: Bao

    async def current(self, domain_id: UUID) -> PublicHalf | None:
        """Return the newest version of a Domain's key; None when it has no key."""
        try:
            answer = await self.bao.request("GET", f"{MOUNT}/keys/evk-{domain_id}")
        except BaoRefused as refused:
            if refused.status == MISSING:
                return None
            raise SigningUnavailable(str(refused)) from refused
        except OpenbaoUnavailable as error:
            raise SigningUnavailable("no answer") from error
        data = answer["data"]
        version = int(data["latest_version"])
        if data["type"] != "ed25519" or data["exportable"] or data["allow_plaintext_backup"]:
            raise SigningUnavailable("the key is not what we made")
        return PublicHalf(base64.b64decode(data["keys"][str(version)]["public_key"], validate=True), version)

    async def create(self, domain_id: UUID) -> PublicHalf:
        """Make a Domain's key; making one that is there changes nothing."""
        try:
            await self.bao.request("POST", f"{MOUNT}/keys/evk-{domain_id}", {"type": "ed25519"})
        except (BaoRefused, OpenbaoUnavailable) as error:
            raise SigningUnavailable("the key was not made") from error
        half = await self.current(domain_id)
        if half is None:
            raise SigningUnavailable("the key that was made is not there")
        return half
