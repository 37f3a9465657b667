"""The peppers, in OpenBao KV: made by check-and-set at first use, kept in memory in a redacted type."""

import asyncio
import base64
import os

from libs.bao import Bao, BaoRefused
from libs.custody import Secret
from libs.errors import OpenbaoUnavailable

PEPPER_BYTES = 32
MISSING = 404


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
