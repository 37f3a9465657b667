"""Callers of one Domain on every operation with another's ids: refused, and told no more than of ids that nobody has.

Every operation of the served document is in REQUESTS or NOT_TRIED, so that a new one cannot be forgotten. A request is
tried with all of its ids from elsewhere, and with each one alone, the others being the caller's own.
"""

import asyncio
import json
import re
import secrets
import uuid
from dataclasses import dataclass, replace
from typing import Any

import pytest

from services.gateway.document import Operation, operations
from tests.e2e.conftest import Scene, operator_token
from tests.e2e.outside import JSON, Answer, Edge, Outside
from tests.e2e.stories.main_job import Story, entries, now
from tests.e2e.threats.identity.carried import HEADERS, NOT_TRIED, REQUESTS, Request
from tests.e2e.threats.identity.tenants import Tenant, tenant
from tests.e2e.world import World

pytestmark = pytest.mark.e2e

CALLERS = ("administrator", "browser", "person", "API token", "node")
# What is the caller's own in every request: credentials, and what says nothing of a Domain.
ALWAYS_OWN = {"issued", "plaintext", "public_key", "fresh", "now", "new_resource"}
# Where something else than 403 or 404 is right, by what is from elsewhere: the status, and why it says nothing.
ANY = "any of it"
DATA = (200, "a decision or a list is data: denied, or empty")
NODES_ONLY = (401, "an operator is never the node")
COOKIE_ONLY = (401, "a device is approved by a session alone")
FORM = (400, "a reference and its Domain must fit, whoever asks")
SCOPE = (422, "another Domain is out of scope, whichever it is")
OTHERWISE = {
    ("PostAuthzCheck", ANY): DATA,
    ("PostAuthzLookupResources", ANY): DATA,
    ("PostAuthzLookupSubjects", ANY): DATA,
    ("ListProjects", ANY): DATA,
    ("ListNodes", ANY): DATA,
    ("GetNodeEvents", ANY): NODES_ONLY,
    ("GetNodeState", ANY): NODES_ONLY,
    ("PostAuthDeviceInspect", ANY): COOKIE_ONLY,
    ("PostAuthDeviceApprove", ANY): COOKIE_ONLY,
    ("PostAuthDeviceDeny", ANY): COOKIE_ONLY,
    ("PostAuthServiceToken", ANY): (401, "the secret is another one's"),
    ("PostAdminIdP", "domain"): FORM,
    ("PostAdminIdP", "reference"): FORM,
    ("PostAdminPlatformIdP", ANY): FORM,
    ("ListSessions", "person"): (200, "a filter that nothing fits"),
    ("PutProjectSecret", "secret"): (412, "a name is the project's own: there is no version to replace"),
    ("PublishDomainEvent", "parent_domain"): SCOPE,
    ("PublishDomainEvent", "domain"): SCOPE,
    ("EraseIdentityFromAudit", "person"): (200, "of somebody who is not in the chain nothing is erased"),
}
# Filters of the own chain, a name from outside, and what provisioned resources would have, which nobody creates.
NO_IDS = {"external_ref", "object_id", "correlation_id", "blueprint_version_id", "cloud_credential_id"}
# Differ from answer to answer: these headers, pseudonyms, times.
PASSING = {"Date", "X-Correlation-Id", "Content-Length"}
VARYING = re.compile(r"[0-9a-f]{64}|\d{4}-\d\d-\d\dT[\d:.]+Z")
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
PLACE = re.compile(r"\{(\w+)\}")
AT_ONCE = 8


@pytest.fixture(scope="module")
def tenants(set_scene: Story) -> tuple[Tenant, Tenant]:
    async def make() -> tuple[Tenant, Tenant]:
        world = set_scene.world
        async with Outside(world.edge_url, world.ca_file) as outside:
            scene = Scene(set_scene, await operator_token(outside), outside)
            return await tenant(scene), await tenant(scene)

    return asyncio.run(make())


@pytest.fixture
async def document(scene: Scene) -> JSON:
    return (await scene.edge.call("GET", "/v1/openapi.json")).json


@pytest.fixture
def served(document: JSON) -> dict[str, Operation]:
    return {operation.id: operation for operation in operations(document)}


def nobodys(ids: dict[str, str]) -> dict[str, str]:
    """Return what has the form of a Domain's ids, and is nobody's."""
    made = {kind: str(uuid.uuid4()) for kind in ids}
    code = "".join(secrets.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567") for _ in range(8))
    return made | {
        "secret": f"secret-{uuid.uuid4().hex[:12]}", "key": f"evk_{uuid.uuid4().hex}",
        "user_code": f"{code[:4]}-{code[4:]}", "reference": f"kv/idp/{made['domain']}/oidc-b",
        "parent": made["project"], "parent_domain": made["domain"],
    }  # fmt: skip


def kinds(request: Request) -> tuple[str, ...]:
    """Return which ids a request carries."""
    body = "" if isinstance(request.body, bytes) else json.dumps(request.body)
    return tuple(dict.fromkeys(kind for kind in PLACE.findall(request.path + body) if kind not in ALWAYS_OWN))


def choices(request: Request, caller: str) -> list[tuple[str, ...]]:
    """Return which ids are from elsewhere: all; and each alone, where the caller's own rights open the others."""
    carried = kinds(request)
    alone = caller in {"administrator", "node"} and len(carried) > 1
    return [carried, *((kind,) for kind in carried if alone)]


async def send(caller: Edge, operation: Operation, request: Request, ids: dict[str, str]) -> Answer:
    filled = {**ids, "fresh": str(uuid.uuid4()), "now": now()}

    def fill(text: str) -> str:
        return PLACE.sub(lambda match: filled[match[1]], text)

    body: Any = request.body
    if body is not None and not isinstance(body, bytes):
        body = json.loads(fill(json.dumps(body)))
    return await caller.call(operation.method, fill(request.path), body, headers=HEADERS.get(operation.id))


@dataclass
class Try:
    """An answer about ids of the other Domain, or of nobody, and what was sent."""

    answer: Answer
    ids: dict[str, str]
    foreign: tuple[str, ...]

    @property
    def correlation_id(self) -> str:
        return self.answer.headers["X-Correlation-Id"]

    def blank(self, text: str) -> str:
        """Return a text without what it repeats of the request, and without what is different each time."""
        for kind in self.foreign:
            text = text.replace(self.ids[kind], f"<{kind}>")
        return VARYING.sub("<varying>", text.replace(self.correlation_id, "<correlation>"))

    @property
    def bare(self) -> tuple[int, dict[str, str], str]:
        """What a caller can compare."""
        headers = {name: self.blank(value) for name, value in self.answer.headers.items() if name not in PASSING}
        return self.answer.status, headers, self.blank(self.answer.body.decode())

    def rows(self, chain: list[JSON]) -> list[str]:
        """Return what a chain says of it."""
        # What is counted has one row a minute, whatever it was about.
        about = [
            row
            for row in chain
            if row["correlation_id"] == self.correlation_id and "minute" not in row["decision"]["caveat_context"]
        ]
        said = (json.dumps([row["relation"], row["reason"], row["object"], row["decision"]]) for row in about)
        return [UUID.sub("<id>", self.blank(text)) for text in said]


def right(answer: Answer, operation: Operation, scheme: str, foreign: tuple[str, ...]) -> bool:
    """Whether an answer is a refusal that the contract knows."""
    # What is not provisioned says so in the document, and to everybody.
    absent = {501} & operation.statuses
    if operation.security and scheme not in operation.security:
        return answer.status in {401} | absent
    names = "+".join(foreign)
    other = {OTHERWISE[key][0] for key in ((operation.id, names), (operation.id, ANY)) if key in OTHERWISE}
    if answer.status == 200 and 200 in other:
        return answer.json.get("decision", "denied") == "denied" and not answer.json.get("items")
    return answer.status in {403, 404} | other | absent


def tells(answer: Answer, other: Tenant, foreign: tuple[str, ...]) -> set[str]:
    """Return what an answer tells of another Domain that was not in the request."""
    text = answer.body.decode() + str(answer.headers)
    sent = {other.ids[kind] for kind in foreign}
    unknown = {value for kind, value in other.ids.items() if kind not in ALWAYS_OWN} | other.marks
    return {mark for mark in unknown if mark in text and not any(mark in one for one in sent)}


@pytest.mark.parametrize("name", CALLERS)
async def test_another_domain_is_as_nothing(
    world: World, scene: Scene, tenants: tuple[Tenant, Tenant], served: dict[str, Operation], name: str
) -> None:
    own, other = tenants
    caller, scheme = own.speak(scene.edge, name), own.callers[name][0]
    before, turn = await rows(world, other), asyncio.Semaphore(AT_ONCE)
    pairs: list[tuple[str, Try, Try]] = []

    async def attempt(request: Request, foreign: tuple[str, ...]) -> str:
        operation = served[request.operation]
        there, nowhere = (
            own.ids | {kind: ids[kind] for kind in foreign} for ids in (other.ids, nobodys(own.ids))
        )  # fmt: skip
        async with turn:
            real = Try(await send(caller, operation, request, there), there, foreign)
            made_up = Try(await send(caller, operation, request, nowhere), nowhere, foreign)
        what, told = f"{operation.id} {'+'.join(foreign)}", tells(real.answer, other, foreign)
        pairs.append((what, real, made_up))
        if real.bare == made_up.bare and not told and right(real.answer, operation, scheme, foreign):
            return ""
        return f"{what}: {real.answer} {real.answer.body!r}, nobody's: {made_up.answer.body!r}, told: {told}"

    tried = [(request, foreign) for request in REQUESTS for foreign in choices(request, name)]
    wrong = [found for found in await asyncio.gather(*(attempt(*one) for one in tried)) if found]
    assert not wrong, "\n".join(wrong)
    # What the caller did is in his own chain either way, or in neither.
    chain = await entries(replace(scene.story, operator=scene.operator, domain_id=own.ids["domain"]))
    wrong = [
        f"{what}: {real.rows(chain)}, nobody's: {made_up.rows(chain)}"
        for what, real, made_up in pairs
        if real.rows(chain) != made_up.rows(chain)
    ]
    assert not wrong, "\n".join(wrong)
    assert not await chains(world, [made_up.ids["domain"] for _, _, made_up in pairs if "domain" in made_up.foreign])
    after = await rows(world, other)
    assert after == before, {table for table in before if after[table] != before[table]}
    opened = await other.node.read(scene.edge, other.ids["secret"])
    assert (opened.headers["X-Plexsphere-Secret-Version"], other.node.open(opened.body)) == ("1", other.value)


async def rows(world: World, other: Tenant) -> dict[str, list[str]]:
    """Return every row about a Domain with the transaction that wrote it, as a DBA sees them."""
    tables = "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname = ANY($1)"
    wanted = "|".join(value for kind, value in other.ids.items() if kind not in ALWAYS_OWN)
    dba, found = await world.superuser(), {}
    try:
        for (table,) in await dba.fetch(tables, ["identity", "mesh", "secrets", "access"]):
            query = f"SELECT xmin::text || t::text FROM {table} t WHERE t::text ~ $1 ORDER BY 1"
            found[table] = [row for (row,) in await dba.fetch(query, wanted)]
    finally:
        await dba.close()
    return found


async def chains(world: World, domains: list[str]) -> int:
    """Count the chains of Domains: whoever is refused could fill the database with those of made-up ones."""
    dba = await world.superuser()
    try:
        return int(await dba.fetchval("SELECT count(*) FROM audit.chains WHERE chain = ANY($1)", domains))
    finally:
        await dba.close()


async def test_lists_know_nothing_of_another_domain(scene: Scene, tenants: tuple[Tenant, Tenant]) -> None:
    own, other = tenants
    boss = own.speak(scene.edge, "administrator")
    for path in ("/v1/domains", "/v1/projects", "/v1/nodes", "/v1/auth/tokens"):
        answer = await boss.call("GET", path)
        assert answer.status == 200, answer.body
        assert not tells(answer, other, ()), path


async def test_no_operation_and_no_id_is_forgotten(document: JSON, served: dict[str, Operation]) -> None:
    tried = {request.operation for request in REQUESTS}
    assert not tried & set(NOT_TRIED)
    assert tried | set(NOT_TRIED) == set(served)
    for request in REQUESTS:
        shape = re.sub(r"\{(seq|version)\}", "1", served[request.operation].path)
        assert re.fullmatch(PLACE.sub("[^/]+", shape), request.path.partition("?")[0]), request
        assert kinds(request), request
    for name in tried:
        text = repr([request for request in REQUESTS if request.operation == name])
        named = {parameter["name"] for parameter in served[name].parameters if parameter["in"] == "query"}
        members = {one for one in named | members_of(document, served[name]) if one.endswith(("_id", "_ref"))}
        assert not {one for one in members - NO_IDS if one not in text}, name


def members_of(document: JSON, operation: Operation) -> set[str]:
    """Return the members of an operation's JSON body."""
    schema = operation.body[operation.media]["schema"] if operation.body else {}
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return set(schema.get("properties", ()))
