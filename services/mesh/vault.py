"""Event keys in OpenBao's transit engine."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from libs.bao import MISSING, Bao, BaoRefused
from libs.errors import OpenbaoUnavailable, SigningUnavailable
from services.mesh.model import PublicHalf
from services.mesh.pipeline import Pipeline

MOUNT = "transit-mesh"


@dataclass(frozen=True)
class BaoVault:
    """One Ed25519 key a Domain, `evk-<domain>`; it cannot be exported or backed up."""

    bao: Bao
    pipeline: Pipeline

    async def halves(self, domain_id: UUID) -> list[PublicHalf]:
        """Return all versions of a Domain's key, oldest first; none when it has no key."""
        try:
            answer = await self.bao.request("GET", f"{MOUNT}/keys/evk-{domain_id}")
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
        await self._change(f"{MOUNT}/keys/evk-{domain_id}", {"type": "ed25519"})
        return await self._newest(domain_id)

    async def rotate(self, domain_id: UUID) -> PublicHalf:
        """Make one more version of a Domain's key and return the newest."""
        await self._change(f"{MOUNT}/keys/evk-{domain_id}/rotate", {})
        return await self._newest(domain_id)

    async def sign(self, domain_id: UUID, version: int, messages: Sequence[bytes]) -> list[bytes]:
        """Return the Ed25519 signatures (RFC 8032) of the exact bytes under one version, in their order."""
        # The version stands beside the batch: one inside an item would be ignored without a word.
        body: dict[str, Any] = {
            "batch_input": [{"input": base64.b64encode(message).decode()} for message in messages],
            "key_version": version,
        }
        try:
            answer = await self.pipeline.post(f"{MOUNT}/sign/evk-{domain_id}", body)
        except (BaoRefused, OpenbaoUnavailable) as error:
            raise SigningUnavailable("nothing was signed") from error
        results = answer["data"]["batch_results"]
        # The call succeeds also when an item of it failed.
        if len(results) != len(messages) or any(result.get("error") for result in results):
            raise SigningUnavailable("not everything was signed")
        return [base64.b64decode(result["signature"].rsplit(":", 1)[1]) for result in results]

    async def _change(self, path: str, body: dict[str, Any]) -> None:
        try:
            await self.bao.request("POST", path, body)
        except (BaoRefused, OpenbaoUnavailable) as error:
            raise SigningUnavailable("the key was not made") from error

    async def _newest(self, domain_id: UUID) -> PublicHalf:
        found = await self.halves(domain_id)
        if not found:
            raise SigningUnavailable("the key that was made is not there")
        return found[-1]
