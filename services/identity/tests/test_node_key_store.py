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
from libs.clock import SystemClock
from libs.custody import Secret
from libs.errors import PlexError
from libs.ids import uuid7
from libs.nsk import format_bearer
from libs.principal import Principal
from services.identity.authentication import Authentication
from services.identity.enrolment import Enrolled
from services.identity.node_key_store import PgNodeKeyStore
from services.identity.sign_in_store import PgSignInStore
from services.identity.store import PgStore
from services.identity.tests.conftest import Pools
from services.identity.tests.fakes import node_principal
from services.identity.tests.replicas import Replica, code, count, fresh_key
from services.identity.vault import BaoVault, bound_to

pytestmark = pytest.mark.integration

UNUSED: Any = None


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


async def authenticated(pools: Pools, node_id: UUID, key: Secret) -> str:
    authentication = Authentication(PgSignInStore(pools[0]), UNUSED, UNUSED, UNUSED, SystemClock())
    try:
        return (await authentication.node(format_bearer("dev", node_id, key))).nsk_kid
    except PlexError as error:
        return error.code


def as_node(enrolled: Enrolled, domain_id: UUID, kid: str) -> Principal:
    return replace(node_principal(enrolled.node.node_id, domain_id), nsk_kid=kid)


async def test_a_renewed_key_counts_beside_the_old_one_until_the_grace_is_over(
    replicas: tuple[Replica, Replica], pools: Pools
) -> None:
    one, other = replicas
    project = await one.project(await one.domain())
    _, enrolled = await one.node(project)
    node_id = enrolled.node.node_id
    kid = await authenticated(pools, node_id, enrolled.key)
    me = as_node(enrolled, project.domain_id, kid)
    lost = await one.keys.rotate(me, str(node_id))
    renewed = await other.keys.rotate(me, str(node_id))
    assert renewed.previous_valid_until == lost.previous_valid_until
    assert await authenticated(pools, node_id, enrolled.key) == kid
    assert await authenticated(pools, node_id, lost.key) == "nsk_revoked"
    assert await authenticated(pools, node_id, renewed.key) == renewed.kid
    # Whoever asks where the node stands sees it once, with both.
    (place,) = await PgStore(pools[0]).places([node_id])
    assert (place.kid, place.old_kid) == (renewed.kid, kid)
    # Time passes: the old key counts no longer, at first by its time alone and then for good.
    sql = "UPDATE identity.node_secret_keys SET valid_until = now() WHERE kid = $1"
    await pools[0].execute(sql, kid)
    assert await authenticated(pools, node_id, enrolled.key) == "nsk_revoked"
    assert await code(one.keys.rotate(me, str(node_id))) == "nsk_revoked"
    await PgNodeKeyStore(pools[0]).retire(SystemClock().now())
    assert await count(pools[0], "node_secret_keys", "node_id = $1 AND revoked_at IS NULL", node_id) == 1
    (place,) = await PgStore(pools[0]).places([node_id])
    assert (place.kid, place.old_kid) == (renewed.kid, "")


async def test_many_renewals_at_once_leave_one_current_key_and_one_that_it_superseded(
    replicas: tuple[Replica, Replica], pools: Pools
) -> None:
    one, _ = replicas
    project = await one.project(await one.domain())
    _, enrolled = await one.node(project)
    node_id = enrolled.node.node_id
    me = as_node(enrolled, project.domain_id, await authenticated(pools, node_id, enrolled.key))
    answers = await asyncio.gather(*(code(replicas[n % 2].keys.rotate(me, str(node_id))) for n in range(8)))
    assert Counter(answers) == {"ok": 8}
    live = "node_id = $1 AND revoked_at IS NULL AND valid_until IS"
    assert await count(pools[0], "node_secret_keys", f"{live} NULL", node_id) == 1
    assert await count(pools[0], "node_secret_keys", f"{live} NOT NULL", node_id) == 1


async def test_a_node_whose_keys_were_revoked_is_registered_again_and_no_other_way(
    replicas: tuple[Replica, Replica], pools: Pools
) -> None:
    one, other = replicas
    project = await one.project(await one.domain())
    resource = await one.resource(project)
    first = await one.wish(project, str(resource.id))
    enrolled = await one.enrolment.register(first)
    node_id = enrolled.node.node_id
    again = await one.wish(project, str(resource.id))
    assert await code(one.enrolment.register(again)) == "resource_not_found"
    await one.keys.revoke(one.admin, node_id)
    assert await authenticated(pools, node_id, enrolled.key) == "nsk_revoked"
    # What was sent with the first token, and may have been recorded, brings nothing back.
    assert await code(one.enrolment.register(first)) == "token_consumed"
    back = await other.enrolment.register(again)
    assert (back.node.node_id, back.node.mesh_ip) == (node_id, enrolled.node.mesh_ip)
    assert await authenticated(pools, node_id, enrolled.key) == "nsk_revoked"
    assert (await authenticated(pools, node_id, back.key)).startswith("nsk_01")
    assert await code(one.enrolment.register(first)) == "token_consumed"
    assert (await one.enrolment.register(again)).node.node_id == node_id
    stored = await pools[0].fetchval("SELECT public_key FROM identity.nodes WHERE id = $1", node_id)
    assert stored == again.public_key
    sql = "SELECT type FROM identity.event_outbox WHERE domain_id = $1 ORDER BY position"
    assert [row["type"] for row in await pools[0].fetch(sql, project.domain_id)] == ["peer_added", "peer_key_rotated"]
    this = f"node:{node_id}"
    assert (await one.relations.decide(this, "node-agent", this)).granted


async def test_two_tokens_for_a_node_without_keys_register_it_once(
    replicas: tuple[Replica, Replica], pools: Pools
) -> None:
    one, _ = replicas
    project = await one.project(await one.domain())
    resource, enrolled = await one.node(project)
    await one.keys.revoke(one.admin, enrolled.node.node_id)
    wishes = [await one.wish(project, str(resource.id)) for _ in range(6)]
    answers = await asyncio.gather(*(code(replicas[n % 2].enrolment.register(w)) for n, w in enumerate(wishes)))
    assert Counter(answers) == {"ok": 1, "resource_not_found": 5}
    used = "project_id = $1 AND consumed_at IS NOT NULL"
    assert await count(pools[0], "bootstrap_tokens", used, project.id) == 2
