"""Who keeps being refused fills no chain, his own or another Domain's, and hides nobody else's rows."""

import asyncio
import uuid
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from tests.e2e.conftest import Scene
from tests.e2e.outside import Edge, Login, Outside, own_browser
from tests.e2e.sessions import SHELL, Person, resource_of
from tests.e2e.threats.identity.test_bindings import IDP, Bound, a_domain, bind
from tests.e2e.world import World

pytestmark = pytest.mark.e2e

TIMES = 120
SAME, MOST = 10, 60


async def bound_domain(scene: Scene) -> Bound:
    """Make a Domain with the real provider."""
    domain_id, world = await a_domain(scene), scene.story.world
    reference = await world.lend_client_secret(domain_id)
    made = await bind(scene, domain_id, world.env["PLEX_OIDC_B_ISSUER"], reference)
    return Bound(scene, domain_id, made.json)


async def rows(world: World, *chains: str) -> Counter[tuple[str, str, str]]:
    """Count the rows of chains by chain, verb and object, as a DBA sees them."""
    sql = "SELECT chain, context -> 'action' ->> 0 AS action, object_id FROM audit.entries WHERE chain = ANY($1)"
    dba = await world.superuser()
    try:
        return Counter((row["chain"], row["action"], row["object_id"]) for row in await dba.fetch(sql, chains))
    finally:
        await dba.close()


async def flood(caller: Edge, method: str, paths: list[str], status: int, body: Any = None, **headers: str) -> None:
    """Send requests, some at once, that are all refused."""
    turn = asyncio.Semaphore(16)

    async def send(path: str) -> None:
        async with turn:
            answer = await caller.call(method, path, body, headers=headers)
            assert answer.status == status, (path, answer.body)

    await asyncio.gather(*map(send, paths))


async def test_who_is_refused_again_and_again_has_few_rows_in_his_own_chain_only(scene: Scene) -> None:
    bound = await bound_domain(scene)
    world, home, theirs = scene.story.world, scene.story.domain_id, bound.domain_id
    stranger = await scene.outside.sign_in(Login("flooder"), home)
    before = await rows(world, home, theirs)
    await flood(stranger, "DELETE", [bound.path] * TIMES, 403)
    new = await rows(world, home, theirs) - before
    # Twice the bound where the minute ended meanwhile.
    assert SAME <= new.pop((home, "idp_binding.delete", bound.binding["id"])) <= 2 * SAME
    assert not {key for key in new if key[0] == theirs or key[1].startswith("idp_binding")}
    # Another deed, and another object, have a row of their own.
    other = f"{IDP}/{uuid.uuid4()}"
    for method, path, body in (("PATCH", bound.path, {"alias": "mine"}), ("DELETE", other, None)):
        assert (await stranger.call(method, path, body)).status == 403
    new = await rows(world, home, theirs) - before
    assert new[home, "idp_binding.update", bound.binding["id"]] == 1
    assert new[home, "idp_binding.delete", other.rpartition("/")[2]] == 1


async def test_made_up_ids_end_at_the_bound_and_hide_nobody_else(scene: Scene) -> None:
    world, home = scene.story.world, scene.story.domain_id
    stranger = await scene.outside.sign_in(Login("flooder"), home)
    before = await rows(world, home)
    await flood(stranger, "DELETE", [f"/v1/projects/{uuid.uuid4()}" for _ in range(3 * TIMES)], 403)
    new = [key for key in (await rows(world, home) - before) if key[1] == "project.delete"]
    assert MOST <= len(new) <= 2 * MOST
    neighbour = await scene.outside.sign_in(Login("neighbour"), home)
    mine = str(uuid.uuid4())
    assert (await neighbour.call("DELETE", f"/v1/projects/{mine}")).status == 403
    assert (await rows(world, home))[home, "project.delete", mine] == 1


async def test_strangers_fill_no_chain_by_sessions_keys_events_and_secrets(scene: Scene) -> None:
    story, bound = replace(scene.story, operator=scene.operator), await bound_domain(scene)
    stranger, theirs = (await Person.of(scene.outside, bound.domain_id, Login("flooder"))).edge, story.domain_id
    project, domain = f"/v1/projects/{story.project_id}", f"/v1/domains/{theirs}"
    shell = {"resource_id": await resource_of(story, story.node_a.handle), "kind": "ssh", "target": SHELL}
    event = {"type": "action_request", "scope": f"domain:{theirs}", "payload": {}}
    deeds: dict[str, tuple[str, str, Any]] = {
        "session.issue": ("POST", f"{project}/sessions", shell),
        "session.revoke": ("POST", f"{project}/sessions/{uuid.uuid4()}/revoke", {"revoke_reason": "operator_request"}),
        "session_key.rotate": ("POST", f"{domain}/signing-keys/rotate", {"use": "session", "transition_seconds": 600}),
        "signing_key.rotate": ("POST", f"{domain}/signing-keys/rotate", {"transition_seconds": 600}),
        "event.publish": ("POST", f"{domain}/events", event),
        "secret.put": ("PUT", f"{project}/secrets/flood", b"x"),
        "secret.list": ("GET", f"{project}/secrets", None),
    }
    before = await rows(story.world, bound.domain_id, theirs)
    for method, path, body in deeds.values():
        kind = {"If-Match": "0", "Content-Type": "application/octet-stream"} if isinstance(body, bytes) else {}
        await flood(stranger, method, [path] * (TIMES // 4), 403, body, **kind)
    new = await rows(story.world, bound.domain_id, theirs) - before
    written = {action: count for (chain, action, _), count in new.items() if chain == bound.domain_id}
    assert {action: SAME <= written.get(action, 0) <= 2 * SAME for action in deeds} == dict.fromkeys(deeds, True)
    assert not {action for chain, action, _ in new if chain == theirs and action in deeds}


@pytest.mark.parametrize("reason", ["provider_error", "state_foreign"])
async def test_strangers_do_not_fill_a_domains_chain_with_sign_ins_that_fail(scene: Scene, reason: str) -> None:
    world, bound = scene.story.world, await bound_domain(scene)
    before = await rows(world, bound.domain_id)

    async def attack(address: str) -> None:
        async with Outside(world.edge_url, world.ca_file, local=address) as stranger:
            for _ in range(TIMES // 6):
                started = await stranger.edge().call("POST", "/v1/auth/sign-in", {"domain_id": bound.domain_id})
                assert started.status == 200, started.body
                query = f"state={started.json['state']}&error=access_denied&iss={bound.binding['issuer']}"
                headers = own_browser(started) if reason == "provider_error" else {}
                back = await stranger.edge().call("GET", f"/v1/auth/callback?{query}", headers=headers)
                assert back.status == 400, back.body

    # From many addresses: each has a limit of its own.
    await asyncio.gather(*(attack(f"127.0.{8 if reason == 'provider_error' else 9}.{one + 1}") for one in range(12)))
    new = (await rows(world, bound.domain_id) - before)[bound.domain_id, "session.sign_in", bound.binding["id"]]
    assert MOST <= new <= 2 * MOST
    browser = await bound.sign_in(Login("ada"))
    assert (await browser.call("GET", "/v1/auth/whoami")).status == 200
