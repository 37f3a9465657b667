"""A Domain's event key: made once, recorded before it is made, and never another one than OpenBao's."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from uuid import UUID

import pytest

from libs.errors import AuditUnavailable, SigningUnavailable
from libs.ids import uuid7
from services.mesh.model import PublicHalf, SigningKey
from services.mesh.service import SigningKeys
from services.mesh.tests.fakes import FakeAudit, FakeStore, FakeVault

pytestmark = pytest.mark.unit

# SHA-256 of 32 zero bytes begins with these 16 bytes (FIPS 180-4).
KID_OF_ZEROS = "evk_66687aadf862bd776c8fc18b8e9f8e20"


def build() -> tuple[SigningKeys, FakeVault, FakeStore, FakeAudit]:
    vault, store, audit = FakeVault(), FakeStore(), FakeAudit()
    return SigningKeys(vault, store, audit), vault, store, audit


def test_the_id_is_made_from_the_key() -> None:
    assert PublicHalf(bytes(32), 1).kid == KID_OF_ZEROS
    assert PublicHalf(bytes(32), 2).kid == KID_OF_ZEROS


async def test_a_key_is_made_once_and_recorded_once() -> None:
    rules, vault, _, audit = build()
    domain = uuid7()
    first = await rules.ensure(domain)
    assert await rules.ensure(domain) == first
    assert first.public_key == vault.keys[domain].public_key
    assert audit.rows == [domain]


async def test_concurrent_callers_get_the_same_key() -> None:
    rules, vault, store, _ = build()
    domain = uuid7()
    keys = await asyncio.gather(*(rules.ensure(domain) for _ in range(20)))
    assert len({key.kid for key in keys}) == 1
    assert (len(vault.keys), len(store.rows)) == (1, 1)


async def test_each_domain_has_a_key_of_its_own() -> None:
    rules = build()[0]
    assert (await rules.ensure(uuid7())).public_key != (await rules.ensure(uuid7())).public_key


async def test_no_row_no_key() -> None:
    rules, vault, store, audit = build()
    audit.refusal = AuditUnavailable()
    with pytest.raises(AuditUnavailable):
        await rules.ensure(uuid7())
    assert (vault.keys, store.rows) == ({}, {})


async def test_without_openbao_the_recorded_half_is_not_believed() -> None:
    rules, vault, _, _ = build()
    domain = uuid7()
    await rules.ensure(domain)
    vault.refusal = SigningUnavailable()
    with pytest.raises(SigningUnavailable):
        await rules.ensure(domain)


FORGERIES: dict[str, Callable[[SigningKey, UUID], SigningKey]] = {
    "an attacker's public half": lambda key, _: replace(key, public_key=bytes(32)),
    "another id": lambda key, _: replace(key, kid=KID_OF_ZEROS),
    "another Domain's row": lambda key, other: replace(key, domain_id=other),
}


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES)
async def test_a_row_that_a_dba_changed_is_refused(forge: Callable[[SigningKey, UUID], SigningKey]) -> None:
    rules, _, store, _ = build()
    domain = uuid7()
    key = await rules.ensure(domain)
    store.rows[domain, 1] = forge(key, uuid7())
    with pytest.raises(SigningUnavailable):
        await rules.ensure(domain)
