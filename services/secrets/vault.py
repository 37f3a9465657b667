"""Values of secrets in OpenBao's KV version 2."""

import base64
from dataclasses import dataclass

from libs.bao import BAD, MISSING, Bao, BaoRefused
from libs.custody import Secret
from libs.errors import OpenbaoUnavailable, PreconditionFailed, SecretVersionNotFound
from services.secrets.model import SecretRow


@dataclass(frozen=True)
class BaoVault:
    """The `kv` mount, below `secrets/<domain>/<secret>`."""

    bao: Bao

    async def read(self, row: SecretRow, version: int) -> Secret:
        """Return exactly one version."""
        try:
            data, served = await self.bao.read_kv(row.reference, version)
        except BaoRefused as refused:
            if refused.status == MISSING:
                raise SecretVersionNotFound from None
            raise OpenbaoUnavailable(str(refused)) from refused
        if served != version:
            raise OpenbaoUnavailable("another version was served")
        return Secret(base64.b64decode(data["value"], validate=True))

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
