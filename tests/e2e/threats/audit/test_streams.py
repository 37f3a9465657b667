"""What is streamed of the record, to who asks for nonsense, leaves in the middle, or may not read it any longer."""

import asyncio
import json
import uuid
from urllib.parse import quote

import asyncpg
import pytest
from aiohttp import ClientPayloadError, ClientResponse
from google.protobuf.timestamp_pb2 import Timestamp

from plexsphere.audit.v1 import audit_pb2 as pb
from plexsphere.audit.v1 import audit_pb2_grpc as stubs
from services.audit.service import ASK_AGAIN
from tests.e2e.attacker import eventually, peer
from tests.e2e.conftest import Scene
from tests.e2e.ledger import HEAD, Ledger, new_chain
from tests.e2e.outside import Login
from tests.e2e.sessions import Person

pytestmark = pytest.mark.e2e

HUGE = 2**63 - 1
NUMBERS = ["-1", str(2**63), str(2**64), "1e3", "0x1", "\u0661", " 1", "1_0", "1.0", "+1", "nan", "null", "true", "[1]"]
# In JSON.
WHOLE = ["1e3", " 1", "1.0"]
QUERIES = ["export?from={}", "export?to={}", "proof?size=1&seq={}", "proof?seq=1&size={}", "consistency?from=1&to={}"]
# More than the buffers between audit and a client that does not read.
CALLS, EACH, PADDING = 64, 64, 32
BUSY = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'audit' AND state LIKE 'idle in transaction%'"


@pytest.fixture
async def ledger(scene: Scene) -> Ledger:
    dba: asyncpg.Connection = await scene.story.world.superuser()
    return await new_chain(scene.story.world, scene.operator, dba)


async def test_a_number_that_is_none_is_refused_and_leaves_no_row(ledger: Ledger) -> None:
    await ledger.fill(3)
    head, found = await ledger.head(), {}
    for number in NUMBERS:
        for query in QUERIES:
            found[query.format(number)] = str(await ledger.ask(query.format(quote(number))))
        for operation in ("verify", "verify/stream") if number not in WHOLE else ():
            body = f'{{"from_seq": {number}}}'.encode()
            answer = await ledger.auditor.call(
                "POST", f"{ledger.path}/{operation}", body, headers={"Content-Type": "application/json"}
            )
            found[f"{operation} {number}"] = str(answer)
    assert {name: said for name, said in found.items() if not said.startswith("400 invalid_")} == {}
    assert await ledger.head() == head


async def test_a_segment_far_beyond_the_end_is_empty_or_refused_and_a_row(ledger: Ledger) -> None:
    await ledger.fill(3)
    head = await ledger.head()
    first, last = (await ledger.ask(f"export?from={HUGE}&to={HUGE}")).body.splitlines()
    assert (json.loads(first)["from"], json.loads(first)["to"], json.loads(last)) == (HUGE, head, {"end": 0})
    for operation in ("verify", "verify/stream"):
        answer = await ledger.auditor.call("POST", f"{ledger.path}/{operation}", {"from_seq": HUGE})
        assert str(answer) == "400 invalid_body"
    assert str(await ledger.ask(f"entries/{HUGE}")) == "404 not_found"
    assert str(await ledger.ask(f"proof?seq={HUGE}&size={HUGE}")) == "404 checkpoint_not_found"
    assert str(await ledger.ask("entries?cursor=altered")) == "400 invalid_cursor"
    assert await ledger.head() == head + 6
    assert (await ledger.verify())["ok"] is True


async def padded(scene: Scene, chain: str) -> None:
    """Have a chain that no buffer takes whole."""
    occurred_at = Timestamp()
    occurred_at.GetCurrentTime()
    padding = {"padding": pb.CaveatNames(names=["x" * 128] * PADDING)}
    async with peer(scene.story.world, "audit", "identity") as opened:
        for _ in range(CALLS):
            decisions = [
                pb.AppendRequest(
                    domain_id=chain, idempotency_key=str(uuid.uuid4()), occurred_at=occurred_at, action="stream.tried",
                    subject_kind="anonymous", relation="read", object_type="stream", object_id="stream",
                    reason=pb.REASON_GRANTED, caveat_context=padding,
                )
                for _ in range(EACH)
            ]  # fmt: skip
            await stubs.AuditAppendServiceStub(opened).AppendAll(pb.AppendAllRequest(decisions=decisions), timeout=30)


async def lines(answer: ClientResponse) -> list[bytes]:
    """Read all that comes."""
    assert answer.status == 200
    return (await answer.read()).splitlines()


async def test_an_export_is_cut_off_when_its_auditor_is_one_no_longer(scene: Scene) -> None:
    story, outside = scene.story, scene.outside
    person = await Person.of(outside, story.domain_id, Login("auditor-for-a-while"))
    operator = await outside.sign_in(Login("operator", acr="urn:plexsphere:acr:mfa", amr=("pwd", "otp")))
    path = f"/v1/domains/{story.domain_id}/audit/export"
    assert (await person.edge.call("GET", path)).status == 403
    role = {"subject": f"user:{person.subject}", "relation": "auditor", "resource": f"domain:{story.domain_id}"}
    given = await operator.call("POST", f"/v1/authz/relation-tuples?project_id={story.project_id}", role)
    assert given.status == 201, given.body
    await padded(scene, story.domain_id)
    url, headers, http = outside.url + path, person.edge.caller, outside.http
    async with http.get(url, headers=headers) as kept, http.get(url, headers=headers) as cut:
        # Both have begun; who reads at once has all of it.
        assert json.loads(await cut.content.readline())["from"] == 1
        assert b'{"end":' in (await lines(kept))[-1]
        removed = await operator.call("DELETE", f"/v1/authz/relation-tuples/{given.json['id']}")
        assert removed.status == 204, removed.body
        await asyncio.sleep(ASK_AGAIN.total_seconds())
        with pytest.raises(ClientPayloadError):
            await lines(cut)
    assert (await person.edge.call("GET", path)).status == 403


async def test_who_leaves_in_the_middle_leaves_nothing_open(scene: Scene) -> None:
    story, dba = scene.story, await scene.story.world.superuser()
    await padded(scene, story.domain_id)
    path, head = f"/v1/domains/{story.domain_id}/audit", await dba.fetchval(HEAD, story.domain_id)
    for _ in range(5):
        async with scene.outside.http.get(
            story.outside.url + path + "/export", headers=scene.operator.caller
        ) as answer:
            await answer.content.readline()
            answer.close()
    assert await dba.fetchval(HEAD, story.domain_id) == head + 5

    async def quiet() -> bool:
        return not await dba.fetchval(BUSY)

    await eventually(quiet)
    # A process with streams that nobody ended would wait for them when it stops.
    await story.world.restart("audit", story.world.config("audit"))
    assert (await scene.operator.call("POST", f"{path}/verify", {})).json["ok"] is True
    await dba.close()
