"""The main job, as steps that `make demo` shows and the e2e tests assert; `main_job_events` goes on from here."""

import asyncio
import base64
import datetime
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from tests.e2e.outside import JSON, Answer, Edge, Login, Node, Outside, entry_hash, random_secret
from tests.e2e.world import World

SECRET_NAME = "db-password"
BURST = 40


@dataclass
class Story:
    """What the steps hand on to each other: every secret that must never be found at rest, and what a step shows."""

    world: World
    outside: Outside
    operator: Edge
    domain_id: str = ""
    project_id: str = ""
    node_a: Node = field(default_factory=lambda: Node("edge-a"))
    node_b: Node = field(default_factory=lambda: Node("edge-b"))
    bootstrap: list[str] = field(default_factory=list)
    value: bytes = field(default_factory=random_secret)
    planted: dict[str, bytes] = field(default_factory=dict)
    shown: list[str] = field(default_factory=list)
    # Who asks for a privileged session, how that was refused first, and the session.
    person: Any = None
    refused: Any = None
    session_id: str = ""
    # Audit's settings before they were hastened.
    audit_config: str = ""


Run = Callable[[Story], Awaitable[str]]


@dataclass(frozen=True)
class Step:
    """One step: what it does, what must be seen, and the code that looks; `run` returns what it saw."""

    name: str
    expected: str
    run: Run


STEPS: list[Step] = []


def step(name: str, expected: str) -> Callable[[Run], Run]:
    """Add a step to the story."""

    def add(run: Run) -> Run:
        STEPS.append(Step(name, expected, run))
        return run

    return add


def now() -> str:
    """The client's clock, RFC 3339."""
    return datetime.datetime.now(datetime.UTC).isoformat().replace("+00:00", "Z")


@step("sign in at the OpenID provider", "session cookie; whoami says user")
async def sign_in(story: Story) -> str:
    story.operator = await story.outside.sign_in(Login("operator", acr="urn:plexsphere:acr:mfa", amr=("pwd", "otp")))
    story.planted["session cookie"] = story.operator.cookies["plexsphere_session"].encode()
    who = await story.operator.call("GET", "/v1/auth/whoami")
    return f"session cookie; whoami says {who.json.get('principal_type', who)}"


@step("create a Domain with its IdP binding, a project, two resources", "201 201 201 201 201")
async def create(story: Story) -> str:
    env, operator, tag = story.world.env, story.operator, uuid.uuid4().hex[:8]
    # Ranges of Domains do not overlap; a test run makes dozens of them.
    octets = f"{int(tag[:2], 16)}.{int(tag[2:4], 16)}"
    domain = await operator.call(
        "POST", "/v1/domains", {"name": "Acme", "slug": f"acme-{tag}", "mesh_cidr": f"10.{octets}.0/24"}
    )
    story.domain_id = domain.json.get("id", "")
    issuer = env["PLEX_OIDC_B_ISSUER"]
    binding = await operator.call(
        "POST",
        "/v1/admin/idp",
        {
            "domain_id": story.domain_id,
            "issuer": issuer,
            "client_id": env["PLEX_OIDC_B_CLIENT_ID"],
            "client_secret_ref": await story.world.lend_client_secret(story.domain_id),
            "discovery_url": issuer + "/.well-known/openid-configuration",
            "jit_policy": "allow",
            "primary": True,
        },
    )
    project = await operator.call(
        "POST", "/v1/projects", {"domain_id": story.domain_id, "name": "Web", "slug": f"web-{tag}"}
    )
    story.project_id = project.json.get("id", "")
    seen = [domain, binding, project]
    for node in (story.node_a, story.node_b):
        body = {"origin": "adopted", "kind": "server", "external_ref": node.handle}
        seen.append(await operator.call("POST", f"/v1/projects/{story.project_id}/resources", body))
    return " ".join(str(answer) for answer in seen)


@step("issue bootstrap tokens", "201 201")
async def issue_tokens(story: Story) -> str:
    seen = []
    for _ in range(2):
        body = {"kind": "node", "env_prefix": "dev", "ttl_seconds": 900}
        issued = await story.operator.call("POST", f"/v1/projects/{story.project_id}/bootstrap-tokens", body)
        seen.append(str(issued))
        story.bootstrap.append(issued.json.get("token", ""))
        story.planted[f"bootstrap token {len(seen)}"] = issued.json.get("token", "").rsplit("_", 1)[-1].encode()
    return " ".join(seen)


@step("two nodes register and get their node key once", "201 201; same token again 403 token_consumed")
async def register(story: Story) -> str:
    seen = []
    for node, token in zip((story.node_a, story.node_b), story.bootstrap, strict=True):
        seen.append(str(await node.register(story.operator, story.project_id, token)))
        story.planted[f"node key of {node.handle}"] = node.key
    again = await Node("edge-b").register(story.operator, story.project_id, story.bootstrap[0])
    return f"{' '.join(seen)}; same token again {again}"


@step("nodes send heartbeats", "200 200")
async def heartbeat(story: Story) -> str:
    nodes = (story.node_a, story.node_b)
    return " ".join([str(await node.heartbeat(story.operator, now())) for node in nodes])


@step("the operator stores a secret and grants it to node A", "201 204; no way to read it back")
async def put_secret(story: Story) -> str:
    path = f"/v1/projects/{story.project_id}/secrets/{SECRET_NAME}"
    story.planted["secret value"] = story.value
    headers = {"If-Match": "0", "Content-Type": "application/octet-stream"}
    put = await story.operator.call("PUT", path, story.value, headers=headers)
    grant = await story.operator.call("PUT", f"{path}/readers/{story.node_a.node_id}")
    back = await story.operator.call("GET", path)
    way = "no way to read it back" if back.status in {404, 405} and story.value not in back.body else f"GET {back}"
    return f"{put} {grant}; {way}"


@step("node A reads it and decrypts it", "200, version 1, KID nsk_…, no-store, value opens")
async def read(story: Story) -> str:
    answer = await story.node_a.read(story.operator, SECRET_NAME)
    if answer.status != 200:
        return f"{answer} {answer.body!r}"
    opens = story.node_a.open(answer.body) == story.value
    kid = answer.headers["X-Plexsphere-Secret-KID"]
    return (
        f"{answer.status}, version {answer.headers['X-Plexsphere-Secret-Version']}, "
        f"KID {'nsk_…' if kid.startswith('nsk_') and len(kid) == 36 else kid}, "
        f"{answer.headers['Cache-Control']}, value {'opens' if opens else 'does not open'}"
    )


@step(
    "node B asks for the same secret", "403 permission_denied, insufficient_relation; as node A: 403 node_id_mismatch"
)
async def cross_node(story: Story) -> str:
    own = await story.node_b.read(story.operator, SECRET_NAME)
    as_a = await story.node_b.read(story.operator, SECRET_NAME, story.node_a.node_id)
    return f"{own}, {own.json.get('reason')}; as node A: {as_a}"


@step("a burst of reads", "some 200, the rest 429 with Retry-After; nothing else")
async def burst(story: Story) -> str:
    answers = await asyncio.gather(*(story.node_a.read(story.operator, SECRET_NAME) for _ in range(BURST)))
    refused = [answer for answer in answers if answer.status == 429]
    explained = all(int(answer.headers.get("Retry-After", "0")) >= 1 for answer in refused)
    others = sorted({str(answer) for answer in answers if answer.status not in {200, 429}})
    if not refused or len(refused) == BURST or not explained or others:
        return f"{len(refused)} refused of {BURST}, explained: {explained}, others: {others}"
    return "some 200, the rest 429 with Retry-After; nothing else"


async def patient_read(story: Story) -> Answer:
    """Read as node A, waiting as long as the limiter says, so that no step is refused for the burst before it."""
    answer = await story.node_a.read(story.operator, SECRET_NAME)
    while answer.status == 429:
        await asyncio.sleep(int(answer.headers["Retry-After"]))
        answer = await story.node_a.read(story.operator, SECRET_NAME)
    return answer


@step("with the audit service killed, the same read", "503 audit_unavailable, no byte of the secret")
async def no_audit(story: Story) -> str:
    await story.world.kill("audit")
    answer = await patient_read(story)
    empty = (
        "application/problem+json" in answer.headers["Content-Type"] and "X-Plexsphere-Secret-KID" not in answer.headers
    )
    return f"{answer}, {'no byte of the secret' if empty else 'bytes!'}"


@step("after its restart", "200")
async def audit_back(story: Story) -> str:
    await story.world.start("audit")
    return str(await patient_read(story))


@step("the grant is revoked: the very next read", "204, then 403 permission_denied")
async def revoke(story: Story) -> str:
    path = f"/v1/projects/{story.project_id}/secrets/{SECRET_NAME}/readers/{story.node_a.node_id}"
    revoked = await story.operator.call("DELETE", path)
    return f"{revoked}, then {await patient_read(story)}"


async def entries(story: Story) -> list[JSON]:
    """All entries of the Domain's chain, newest first, page by page."""
    return [entry async for entry in _entries(story)]


async def _entries(story: Story) -> AsyncIterator[JSON]:
    cursor = ""
    while True:
        query = "?limit=100" + (f"&cursor={cursor}" if cursor else "")
        page = await story.operator.call("GET", f"/v1/domains/{story.domain_id}/audit/entries{query}")
        assert page.status == 200, f"audit list: {page} {page.body!r}"
        for entry in page.json["items"]:
            yield entry
        cursor = page.json.get("next_cursor", "")
        if not cursor:
            return


def action(entry: JSON) -> str:
    """The verb of an entry."""
    return str((entry["decision"]["caveat_context"].get("action") or [""])[0])


@step("the chain lists the decisions", "secret.read granted and refused; ok true")
async def list_chain(story: Story) -> str:
    reads = [entry for entry in await entries(story) if action(entry) == "secret.read"]
    seen = {entry["reason"] for entry in reads}
    verdict = await verify(story)
    listed = "granted and refused" if {"granted", "insufficient_relation"} <= seen else str(seen)
    return f"secret.read {listed}; ok {str(verdict['ok']).lower()}"


async def verify(story: Story) -> JSON:
    """Ask the audit service to recompute the Domain's chain."""
    answer = await story.operator.call("POST", f"/v1/domains/{story.domain_id}/audit/verify", {})
    assert answer.status == 200, f"verify: {answer} {answer.body!r}"
    return answer.json


@step("an entry's proof is recomputed by the client", "hash matches")
async def prove(story: Story) -> str:
    entry = (await entries(story))[0]
    answer = await story.operator.call("GET", f"/v1/domains/{story.domain_id}/audit/entries/{entry['seq']}")
    proof = answer.json["proof"]
    own = entry_hash(proof["prev_hash"], base64.b64decode(proof["canonical_bytes"]))
    return (
        "hash matches" if own == proof["entry_hash"] == entry["entry_hash"] else f"{own} is not {entry['entry_hash']}"
    )


@step("a row is rewritten in PostgreSQL as superuser", "ok false at its sequence; put back: ok true")
async def rewrite(story: Story) -> str:
    seq = next(entry["seq"] for entry in await entries(story) if entry["reason"] == "insufficient_relation")
    dba = await story.world.superuser()
    try:
        # Triggers refuse an update (0A000); a hostile superuser turns them off.
        await dba.execute("SET session_replication_role = replica")
        where = "WHERE chain = $1 AND seq = $2"
        before = await dba.fetchval(f"SELECT canonical FROM audit.entries {where}", story.domain_id, seq)
        forged = before.replace(b'"insufficient_relation"', b'"granted"')
        assert forged != before
        await dba.execute(f"UPDATE audit.entries SET canonical = $3 {where}", story.domain_id, seq, forged)
        broken = await verify(story)
        await dba.execute(f"UPDATE audit.entries SET canonical = $3 {where}", story.domain_id, seq, before)
    finally:
        await dba.close()
    at = "at its sequence" if broken.get("divergent_seq") == seq else f"at {broken.get('divergent_seq')}, not {seq}"
    healed = await verify(story)
    return f"ok {str(broken['ok']).lower()} {at}; put back: ok {str(healed['ok']).lower()}"
