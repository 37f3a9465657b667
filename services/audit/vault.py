"""What audit keeps in OpenBao: peppers, made at first use, the anchors of checkpoints, and the key that signs them."""

import asyncio
import base64
import os
from dataclasses import dataclass

from libs.bao import BAD, JSON, MISSING, Bao, BaoRefused
from libs.custody import Secret
from libs.errors import OpenbaoUnavailable, SigningUnavailable
from services.audit.model import Anchor

PEPPER_BYTES = 32
MOUNT, KEY = "transit-audit", "acp"


class BaoPeppers:
    """Peppers by chain."""

    def __init__(self, bao: Bao) -> None:
        self._bao = bao
        self._known: dict[str, Secret] = {}
        self._making = asyncio.Lock()

    async def pepper(self, chain: str) -> Secret:
        """Return the chain's pepper, made at its first use and the same for every replica ever after."""
        if chain not in self._known:
            async with self._making:
                if chain not in self._known:
                    self._known[chain] = await self._read_or_make(f"audit/{chain}/pepper")
        return self._known[chain]

    async def _read_or_make(self, path: str) -> Secret:
        for _ in range(2):
            try:
                data, _ = await self._bao.read_kv(path)
                return Secret(base64.b64decode(data["pepper"]))
            except BaoRefused as refused:
                if refused.status != MISSING:
                    raise OpenbaoUnavailable(str(refused)) from refused
            try:
                await self._bao.write_kv(path, {"pepper": base64.b64encode(os.urandom(PEPPER_BYTES)).decode()}, cas=0)
            except BaoRefused:
                continue  # Another replica was first: read what it wrote.
        data, _ = await self._bao.read_kv(path)
        return Secret(base64.b64decode(data["pepper"]))


@dataclass(frozen=True)
class BaoAnchors:
    """Anchors by chain, in KV; only check-and-set moves them."""

    bao: Bao

    async def read(self, chain: str) -> Anchor | None:
        """Return the anchor as it is now, never from memory."""
        found = await self._read(f"audit/{chain}/anchor")
        if found is None:
            return None
        data, version = found
        return Anchor(str(data["note"]), version, int(data.get("epoch", 0)))

    async def move(self, chain: str, note: str, before: Anchor | None, epoch: int = 0) -> bool:
        """Replace an anchor, None for none yet; returns whether it was still that one. Durable."""
        data = {"note": note} | ({"epoch": epoch} if epoch else {})
        return await self._write(f"audit/{chain}/anchor", data, before.version if before else 0)

    async def chains(self) -> list[str]:
        """Return the chains that may have an anchor."""
        try:
            names = (await self.bao.request("GET", "kv/metadata/audit/?list=true"))["data"]["keys"]
        except BaoRefused as refused:
            if refused.status == MISSING:
                return []
            raise OpenbaoUnavailable(str(refused)) from refused
        return [str(name).removesuffix("/") for name in names]

    async def storage(self, chain: str) -> str:
        """Return the name of the storage in which a chain was last found to be whole, empty for none."""
        found = await self._read(f"audit/{chain}/storage")
        return str(found[0]["storage"]) if found else ""

    async def found_whole(self, chain: str, storage: str) -> None:
        """Note that name. Durable."""
        path = f"audit/{chain}/storage"
        found = await self._read(path)
        # Of two replicas one is enough.
        await self._write(path, {"storage": storage}, found[1] if found else 0)

    async def _read(self, path: str) -> tuple[JSON, int] | None:
        try:
            return await self.bao.read_kv(path)
        except BaoRefused as refused:
            if refused.status == MISSING:
                return None
            raise OpenbaoUnavailable(str(refused)) from refused

    async def _write(self, path: str, data: JSON, version: int) -> bool:
        try:
            await self.bao.write_kv(path, data, cas=version)
        except BaoRefused as refused:
            if refused.status == BAD:
                return False
            raise OpenbaoUnavailable(str(refused)) from refused
        return True


@dataclass(frozen=True)
class BaoSigner:
    """The checkpoint key, in transit: made when OpenBao is set up, and audit can neither make nor rotate it."""

    bao: Bao

    async def keys(self) -> list[bytes]:
        """Return the public halves, the one that signs last."""
        try:
            data = (await self.bao.request("GET", f"{MOUNT}/keys/{KEY}"))["data"]
        except (BaoRefused, OpenbaoUnavailable) as error:
            raise SigningUnavailable("no answer about the checkpoint key") from error
        if data["type"] != "ed25519" or data["exportable"] or data["allow_plaintext_backup"]:
            raise SigningUnavailable("the checkpoint key is not as it was made")
        versions = sorted((int(version), half["public_key"]) for version, half in data["keys"].items())
        return [base64.b64decode(key, validate=True) for _, key in versions]

    async def sign(self, text: bytes) -> bytes:
        """Return the Ed25519 signature (RFC 8032) of the exact bytes."""
        try:
            return await self.bao.sign(MOUNT, KEY, text)
        except (BaoRefused, OpenbaoUnavailable) as error:
            raise SigningUnavailable("the checkpoint was not signed") from error
