"""Node keys on the real PostgreSQL and OpenBao: what is at rest, and which of them count."""

import asyncio
import re
import secrets
from collections import Counter
from dataclasses import replace
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from devstack import openbao
from devstack.layout import State
from libs.bao import Bao, BaoRefused
from libs.custody import Secret
from libs.ids import uuid7
from services.identity.tests.conftest import Pools
from services.identity.tests.replicas import Replica, code, count, fresh_key
from services.identity.vault import BaoVault, bound_to

pytestmark = pytest.mark.integration


async def test_the_key_at_rest_is_ciphertext_bound_to_domain_node_and_kid(
    replicas: tuple[Replica, Replica], pools: Pools, backends: State
) -> None:
    one, _ = replicas
    _, enrolled = await one.node(await one.project(await one.domain()))
    node_id = enrolled.node.node_id
    row = await pools[0].fetchrow(
        "SELECT wrapped, domain_id, kid FROM identity.node_secret_keys WHERE node_id = $1", node_id
    )
    assert row is not None
    kid, domain_id = row["kid"], row["domain_id"]
    operator = openbao.client(backends, "operator")

    async def opened(context: UUID, *bound: Any) -> bool:
        unwrapped = await operator.unwrap("transit-identity", "nsk", context.bytes, bound_to(*bound), row["wrapped"])
        return unwrapped.matches(enrolled.key)

    try:
        assert await opened(domain_id, domain_id, node_id, kid)
        for context, *bound in (
            (uuid7(), domain_id, node_id, kid),
            (domain_id, uuid7(), node_id, kid),
            (domain_id, domain_id, uuid7(), kid),
            (domain_id, domain_id, node_id, f"nsk_{uuid7().hex}"),
        ):
            with pytest.raises(BaoRefused):
                await opened(context, *bound)
    finally:
        await operator.close()


async def test_identity_can_wrap_a_node_key_and_not_unwrap_it(bao: Bao) -> None:
    domain_id, node_id, kid = uuid7(), uuid7(), f"nsk_{uuid7().hex}"
    wrapped = await BaoVault(bao).wrap(domain_id, node_id, kid, Secret(secrets.token_bytes(32)))
    assert re.fullmatch("vault:v[0-9]+:[A-Za-z0-9+/]{80}", wrapped)
    with pytest.raises(BaoRefused) as refused:
        await bao.unwrap("transit-identity", "nsk", domain_id.bytes, bound_to(domain_id, node_id, kid), wrapped)
    assert refused.value.status == 403


async def test_no_two_nodes_of_a_domain_have_one_mesh_key(replicas: tuple[Replica, Replica], pools: Pools) -> None:
    one, other = replicas
    project = await one.project(await one.domain())
    names = [str((await one.resource(project)).id) for _ in range(8)]
    key = fresh_key()
    wishes = [replace(await one.wish(project, name), public_key=key) for name in names]
    answers = await asyncio.gather(*(code(replicas[n % 2].enrolment.register(w)) for n, w in enumerate(wishes)))
    assert Counter(answers) == {"ok": 1, "public_key_invalid": 7}
    loser = wishes[answers.index("public_key_invalid")]
    # The token of who was refused is still good, and another Domain may have the key.
    assert await code(other.enrolment.register(replace(loser, public_key=fresh_key()))) == "ok"
    elsewhere = await one.project(await one.domain())
    wanted = await one.wish(elsewhere, str((await one.resource(elsewhere)).id))
    assert await code(one.enrolment.register(replace(wanted, public_key=key))) == "ok"
    assert await count(pools[0], "nodes", "project_id = $1", project.id) == 2


async def test_plaintext_keys_and_their_deletion_are_refused_by_the_database(pools: Pools) -> None:
    insert = """
    INSERT INTO identity.node_secret_keys (kid, node_id, domain_id, wrapped, fingerprint, created_at)
    VALUES ($1, $2, $3, $4, $5, now())
    """
    valid = [f"nsk_{uuid7().hex}", uuid7(), uuid7(), "vault:v1:" + "A" * 80, secrets.token_bytes(32)]
    wraps = [secrets.token_urlsafe(32), *("vault:v1:" + text for text in (secrets.token_hex(32), "A" * 79, "A" * 81))]
    for column, wrong in [(0, "nsk_1"), (4, b"short"), *((3, wrapped) for wrapped in wraps)]:
        with pytest.raises(asyncpg.CheckViolationError):
            await pools[0].execute(insert, *(wrong if n == column else value for n, value in enumerate(valid)))
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await pools[0].execute("DELETE FROM identity.node_secret_keys")
