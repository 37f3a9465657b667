"""The promises of the ports, on the fake and on the real backend alike, and what OpenBao refuses to mesh."""

import asyncio
import os
from typing import Any

import asyncpg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from libs.bao import FORBIDDEN, Bao, BaoRefused
from libs.columns import guard_columns
from libs.ids import uuid7
from services.mesh.columns import COLUMNS
from services.mesh.model import PublicHalf
from services.mesh.ports import Store, Vault
from services.mesh.service import SigningKeys
from services.mesh.store import PgStore
from services.mesh.tests.fakes import FakeAudit, FakeStore, FakeVault
from services.mesh.vault import MOUNT, BaoVault

pytestmark = pytest.mark.integration

Pools = tuple[asyncpg.Pool, asyncpg.Pool]


@pytest.fixture(params=["fake", "OpenBao"])
def vault(request: pytest.FixtureRequest, bao: Bao) -> Vault:
    return FakeVault() if request.param == "fake" else BaoVault(bao)


@pytest.fixture(params=["fake", "PostgreSQL"])
def store(request: pytest.FixtureRequest, pools: Pools) -> Store:
    return FakeStore() if request.param == "fake" else PgStore(pools[0])


async def test_a_domain_has_no_key_until_one_is_made_and_then_keeps_it(vault: Vault) -> None:
    domain = uuid7()
    assert await vault.current(domain) is None
    made = await asyncio.gather(*(vault.create(domain) for _ in range(10)))
    assert len(set(made)) == 1
    assert made[0].version == 1
    assert await vault.create(domain) == await vault.current(domain) == made[0]
    Ed25519PublicKey.from_public_bytes(made[0].public_key)
    assert await vault.current(uuid7()) is None


async def test_a_half_is_remembered_once(store: Store) -> None:
    domain, half = uuid7(), PublicHalf(os.urandom(32), 1)
    rows = await asyncio.gather(*(store.remember(domain, half) for _ in range(10)))
    assert len(set(rows)) == 1
    assert (rows[0].domain_id, rows[0].kid, rows[0].public_key) == (domain, half.kid, half.public_key)
    # Another half for the same version does not replace it: the rules see the difference and refuse.
    assert await store.remember(domain, PublicHalf(os.urandom(32), 1)) == rows[0]


async def test_replicas_agree_on_a_key_that_they_make_at_the_same_time(pools: Pools, bao: Bao) -> None:
    domain = uuid7()
    replicas = [SigningKeys(BaoVault(bao), PgStore(pool), FakeAudit()) for pool in pools]
    keys = await asyncio.gather(*(replicas[n % 2].ensure(domain) for n in range(20)))
    assert len(set(keys)) == 1


FORBIDDEN_TO_MESH: list[tuple[str, str, dict[str, Any] | None]] = [
    ("POST", "keys/evk-{id}", {"type": "ed25519", "exportable": True}),
    ("POST", "keys/evk-{id}", {"type": "ed25519", "allow_plaintext_backup": True}),
    ("POST", "keys/evk-{id}/config", {"exportable": True}),
    ("GET", "export/signing-key/evk-{id}", None),
    ("GET", "backup/evk-{id}", None),
    ("DELETE", "keys/evk-{id}", None),
]


@pytest.mark.parametrize(("method", "path", "body"), FORBIDDEN_TO_MESH)
async def test_no_private_half_gets_out(bao: Bao, method: str, path: str, body: dict[str, Any] | None) -> None:
    domain = uuid7()
    await BaoVault(bao).create(domain)
    with pytest.raises(BaoRefused) as refused:
        await bao.request(method, f"{MOUNT}/{path.format(id=domain)}", body)
    assert refused.value.status == FORBIDDEN


async def test_the_columns_are_the_declared_ones(pools: Pools) -> None:
    await guard_columns(pools[0], "mesh", COLUMNS)
