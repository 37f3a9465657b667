"""Two Domains with everything in them, and who speaks for one of them."""

import uuid
from dataclasses import dataclass, field

from tests.e2e.attacker import eventually
from tests.e2e.conftest import Scene
from tests.e2e.enrolling import Desk
from tests.e2e.outside import JSON, Edge, Login, Node, random_secret
from tests.e2e.threats.identity.test_bindings import GRANT

TUPLES = "/v1/authz/relation-tuples"
PASSWORD = "urn:plexsphere:acr:pwd"


@dataclass
class Tenant:
    """A Domain: its ids by kind, what must not be seen of it elsewhere, and its callers."""

    ids: dict[str, str]
    node: Node
    value: bytes
    marks: set[str] = field(default_factory=set)
    # A credential for each caller: the scheme, and what is sent.
    callers: dict[str, tuple[str, dict[str, str], dict[str, str]]] = field(default_factory=dict)

    def speak(self, edge: Edge, name: str) -> Edge:
        """Return the edge as one of the Domain's callers sees it."""
        _, headers, cookies = self.callers[name]
        return Edge(edge.url, edge.http, headers, cookies)


async def made(edge: Edge, path: str, body: JSON, status: int = 201) -> JSON:
    """Create something."""
    answer = await edge.call("POST", path, body)
    assert answer.status == status, f"{path}: {answer} {answer.body!r}"
    return answer.json


async def found(edge: Edge, path: str) -> JSON:
    """Look at something."""
    answer = await edge.call("GET", path)
    assert answer.status == 200, f"{path}: {answer} {answer.body!r}"
    return answer.json


async def tenant(scene: Scene) -> Tenant:
    """Make a Domain with a project, a node, a secret, people, a machine, tokens, roles and a provider."""
    operator, world, tag = scene.operator, scene.story.world, uuid.uuid4().hex[:12]
    desk = await Desk.open(operator)
    domain, project = f"/v1/domains/{desk.domain_id}", f"/v1/projects/{desk.project_id}"
    resource, reference = await desk.resource(), await world.lend_client_secret(desk.domain_id)
    node, value, secret = Node(resource["id"]), random_secret(), f"secret-{tag}"
    registered = await node.register(scene.edge, desk.project_id, (await desk.token())["token"])
    assert registered.status == 201, registered.body
    issuer = world.env["PLEX_OIDC_B_ISSUER"]
    binding = await made(operator, "/v1/admin/idp", {
        "domain_id": desk.domain_id, "issuer": issuer, "client_id": "plexsphere", "client_secret_ref": reference,
        "discovery_url": f"{issuer}/.well-known/openid-configuration", "jit_policy": "allow", "primary": True,
    })  # fmt: skip
    headers = {"If-Match": "0", "Content-Type": "application/octet-stream"}
    put = await operator.call("PUT", f"{project}/secrets/{secret}", value, headers=headers)
    grant = await operator.call("PUT", f"{project}/secrets/{secret}/readers/{node.node_id}")
    assert (put.status, grant.status) == (201, 204)
    service = await made(operator, f"{domain}/service-identities", {
        "display_name": f"machine-{tag}", "subject": f"subject-{tag}", "audience": "a", "federation_kind": "api_token",
    })  # fmt: skip
    wanted = {"identity_ref": f"service:{service['id']}", "env_prefix": "dev"}
    spare, issued = await desk.token(), await desk.token()
    one = Tenant(
        {
            "domain": desk.domain_id, "parent_domain": desk.domain_id, "project": desk.project_id,
            "parent": desk.project_id, "node": node.node_id, "resource": resource["id"], "binding": binding["id"],
            "reference": reference, "secret": secret, "service": service["id"],
            "token": (await made(operator, "/v1/admin/tokens", wanted))["id"],
            "bootstrap_token": spare["token_id"], "issued": issued["token"], "public_key": Node("").public_key,
            "key": (await found(operator, f"{domain}/signing-keys"))["items"][0]["key_id"],
            "user_code": (await made(
                scene.edge, "/v1/auth/device-code", {"client_id": "cli", "domain_id": desk.domain_id}, 200
            ))["user_code"],
            "new_resource": (await desk.resource())["id"],
        },
        node, value,
    )  # fmt: skip
    await _people(scene, one, tag)
    # Its administrator holds a session.
    policy = await operator.call("PUT", f"{domain}/access-policy", {"required_acr": [PASSWORD]})
    assert policy.status == 200, policy.body
    wish = {"resource_id": one.ids["resource"], "kind": "ssh", "target": {"ssh": {"user": tag}}}
    boss = one.speak(scene.edge, "administrator")
    one.ids["session"] = (await made(boss, f"{project}/sessions", wish))["session_id"]
    one.ids["tuple"] = (
        await made(operator, f"{TUPLES}?project_id={desk.project_id}", {
            "subject": f"user:{one.ids['person']}", "relation": "viewer", "resource": f"project:{desk.project_id}",
        })
    )["id"]  # fmt: skip
    await _marks(operator, one, tag)
    return one


async def _people(scene: Scene, one: Tenant, tag: str) -> None:
    """Let an administrator and a member sign in, and give them all that they are."""
    domain = one.ids["domain"]
    dba = await scene.story.world.superuser()
    for kind, role in (("administrator", "admin"), ("person", "member")):
        browser = await scene.outside.sign_in(Login(f"{kind}-{tag}", acr=PASSWORD), domain)
        one.ids[kind] = (await browser.call("GET", "/v1/auth/whoami")).json["subject"]
        await dba.execute(GRANT, domain, one.ids[kind], role)
        bearer = {"Authorization": f"Bearer {await scene.outside.access_token(browser, domain_id=domain)}"}
        one.callers[kind] = ("operatorBearer", bearer, {})
        if role == "admin":
            one.callers["browser"] = ("sessionCookie", {}, browser.cookies)
    await dba.close()
    boss = one.speak(scene.edge, "administrator")

    async def administers() -> bool:
        answer = await boss.call("GET", f"/v1/admin/idp?domain_id={domain}")
        return answer.status == 200

    await eventually(administers)
    own = {"identity_ref": f"user:{one.ids['administrator']}", "env_prefix": "dev"}
    text = (await made(boss, "/v1/auth/tokens", own))["plaintext"]
    one.ids["plaintext"] = text
    one.callers["API token"] = ("operatorBearer", {"Authorization": f"Bearer {text}"}, {})
    one.callers["node"] = ("nskBearer", {"Authorization": f"Bearer {one.node.bearer}"}, {})


async def _marks(operator: Edge, one: Tenant, tag: str) -> None:
    """Note what of a Domain is its own alone."""
    ids = one.ids
    domain = await found(operator, f"/v1/domains/{ids['domain']}")
    project = await found(operator, f"/v1/projects/{ids['project']}")
    resource = await found(operator, f"/v1/resources/{ids['resource']}")
    one.marks = {
        tag, domain["slug"], domain["mesh_cidr"], project["slug"], resource["external_ref"], one.value.decode(),
        one.node.public_key, one.node.signing_key_id,
    }  # fmt: skip
