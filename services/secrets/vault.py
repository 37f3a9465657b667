"""Values of secrets in OpenBao's KV version 2."""

import base64
import binascii
import json
from dataclasses import dataclass

from libs.bao import BAD, JSON, MISSING, Bao, BaoRefused
from libs.custody import Secret, take
from libs.errors import OpenbaoUnavailable, PreconditionFailed, SecretVersionNotFound
from services.secrets.model import SecretRow

VALUE = b'"value":"'


@dataclass(frozen=True)
class BaoVault:
    """The `kv` mount, below `secrets/<domain>/<secret>`."""

    bao: Bao

    async def read(self, row: SecretRow, version: int) -> Secret:
        """Return exactly one version."""
        try:
            answer = await self.bao.fetch("GET", f"kv/data/{row.reference}?version={version}")
        except BaoRefused as refused:
            if refused.status == MISSING:
                raise SecretVersionNotFound from None
            raise OpenbaoUnavailable(str(refused)) from refused
        try:
            with answer, cut(answer.reveal(), version) as text:
                return take(binascii.a2b_base64(text.reveal(), strict_mode=True))
        except (ValueError, LookupError, TypeError):
            # The error would quote the answer.
            raise OpenbaoUnavailable("not the answer to a read") from None

    async def write(self, row: SecretRow, value: Secret, expected_version: int) -> int:
        """Write a version when the current one is the expected."""
        data = {"value": base64.b64encode(value.reveal()).decode()}
        try:
            return await self.bao.write_kv(row.reference, data, expected_version)
        except BaoRefused as refused:
            # 400 is what a failed check-and-set answers, and nothing else that our own path and body could cause.
            if refused.status == BAD:
                raise PreconditionFailed from None
            raise OpenbaoUnavailable(str(refused)) from refused

    async def current_version(self, row: SecretRow) -> int:
        """Return the newest version ever written; 0 when there is none."""
        try:
            answer = await self.bao.request("GET", f"kv/metadata/{row.reference}")
        except BaoRefused as refused:
            if refused.status == MISSING:
                return 0
            raise OpenbaoUnavailable(str(refused)) from refused
        return int(answer["data"]["current_version"])

    async def destroy_version(self, row: SecretRow, version: int) -> None:
        """Destroy one version for good."""
        await self._ask("PUT", f"kv/destroy/{row.reference}", {"versions": [version]})

    async def destroy(self, row: SecretRow) -> None:
        """Destroy every version for good."""
        await self._ask("DELETE", f"kv/metadata/{row.reference}", None)

    async def _ask(self, method: str, path: str, body: dict[str, list[int]] | None) -> None:
        try:
            await self.bao.request(method, path, body)
        except BaoRefused as refused:
            if refused.status != MISSING:
                raise OpenbaoUnavailable(str(refused)) from refused


def cut(raw: bytearray, version: int) -> Secret:
    """Cut the value, in base64, out of the answer to a read; raises ValueError, LookupError or TypeError otherwise.

    A JSON reader would make text of it, which cannot be wiped.
    """
    start = raw.index(VALUE) + len(VALUE)
    end = raw.index(b'"', start)
    with memoryview(raw) as view:
        text = Secret(view[start:end])
    raw[start:end] = b" " * len(text)
    rest: JSON = json.loads(raw)["data"]
    # What is blank now is what was cut out, and stood where a value stands.
    if rest["data"]["value"].strip() or rest["metadata"]["version"] != version:
        text.wipe()
        raise ValueError("another value")
    return text
