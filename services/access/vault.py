"""Session keys in OpenBao's transit engine."""

import base64
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from libs.bao import MISSING, Bao, BaoRefused
from libs.errors import OpenbaoUnavailable, SigningUnavailable
from libs.together import Each, Together
from services.access.model import PublicHalf

MOUNT = "transit-access"


@dataclass(frozen=True)
class BaoVault:
    """One Ed25519 key a Domain, `sek-<domain>`; it cannot be exported or backed up."""

    bao: Bao

    async def halves(self, domain_id: UUID) -> list[PublicHalf]:
        """Return all versions of a Domain's key, oldest first; none when it has no key."""
        try:
            answer = await self.bao.request("GET", f"{MOUNT}/keys/sek-{domain_id}")
        except BaoRefused as refused:
            if refused.status == MISSING:
                return []
            raise SigningUnavailable(str(refused)) from refused
        except OpenbaoUnavailable as error:
            raise SigningUnavailable("no answer") from error
        data = answer["data"]
        if data["type"] != "ed25519" or data["exportable"] or data["allow_plaintext_backup"]:
            raise SigningUnavailable("the key is not what we made")
        versions = sorted((int(version), half["public_key"]) for version, half in data["keys"].items())
        return [PublicHalf(base64.b64decode(key, validate=True), version) for version, key in versions]

    async def create(self, domain_id: UUID) -> PublicHalf:
        """Make a Domain's key; making one that is there changes nothing."""
        await self._ask(f"{MOUNT}/keys/sek-{domain_id}", {"type": "ed25519"})
        return await self._newest(domain_id)

    async def rotate(self, domain_id: UUID) -> PublicHalf:
        """Make one more version of a Domain's key and return the newest."""
        await self._ask(f"{MOUNT}/keys/sek-{domain_id}/rotate", {})
        return await self._newest(domain_id)

    async def sign(self, domain_id: UUID, version: int, message: bytes) -> bytes:
        """Return the Ed25519 signature (RFC 8032) of the exact bytes under one version."""
        return await self._signing[domain_id, version].ask(message)

    @functools.cached_property
    def _signing(self) -> Each[tuple[UUID, int], Together[bytes, bytes]]:
        return Each(lambda at: Together(functools.partial(self._sign, *at)))

    async def _sign(self, domain_id: UUID, version: int, messages: list[bytes]) -> Sequence[bytes]:
        # The version stands beside the batch: one inside an item would be ignored without a word.
        inputs = [{"input": base64.b64encode(message).decode()} for message in messages]
        answer = await self._ask(f"{MOUNT}/sign/sek-{domain_id}", {"batch_input": inputs, "key_version": version})
        results = answer["data"]["batch_results"]
        # The call succeeds also when an item of it failed.
        if len(results) != len(messages) or any(result.get("error") for result in results):
            raise SigningUnavailable("not everything was signed")
        return [base64.b64decode(result["signature"].rsplit(":", 1)[1]) for result in results]

    async def _ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        try:
            return await self.bao.request("POST", path, body)
        except (BaoRefused, OpenbaoUnavailable) as error:
            raise SigningUnavailable(str(error)) from error

    async def _newest(self, domain_id: UUID) -> PublicHalf:
        found = await self.halves(domain_id)
        if not found:
            raise SigningUnavailable("the key that was made is not there")
        return found[-1]
