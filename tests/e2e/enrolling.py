"""A Domain of a test's own with projects, resources and bootstrap tokens, and registrations as a machine sends them."""

import uuid
from dataclasses import dataclass

from tests.e2e.outside import JSON, Answer, Edge, Node


def fresh_cidr(prefix: int) -> str:
    """Return a range that hardly any other test has: from RFC 6598, which no story uses."""
    number = uuid.uuid4().int
    return f"100.{64 + number % 64}.{(number >> 8) % 16 * 16}.0/{prefix}"


@dataclass
class Desk:
    """Where an operator prepares and machines register."""

    operator: Edge
    domain_id: str = ""
    project_id: str = ""
    cidr: str = ""

    @classmethod
    async def open(cls, operator: Edge, prefix: int = 20) -> "Desk":
        """Create a Domain and a project."""
        desk = cls(operator)
        for _ in range(5):
            slug, cidr = f"desk-{uuid.uuid4().hex[:12]}", fresh_cidr(prefix)
            created = await operator.call("POST", "/v1/domains", {"name": "Desk", "slug": slug, "mesh_cidr": cidr})
            if created.code != "mesh_cidr_overlap":
                break
        desk.domain_id, desk.cidr = created.json["id"], cidr
        desk.project_id = await desk.project()
        return desk

    async def project(self, sub_range: str = "") -> str:
        """Create a project."""
        body = {"domain_id": self.domain_id, "name": "P", "slug": f"p-{uuid.uuid4().hex[:12]}"}
        answer = await self.operator.call(
            "POST", "/v1/projects", body | ({"sub_range_cidr": sub_range} if sub_range else {})
        )
        assert answer.status == 201, answer.body
        return str(answer.json["id"])

    async def resource(self, kind: str = "server", project_id: str = "") -> JSON:
        """Adopt a resource."""
        body = {"origin": "adopted", "kind": kind, "external_ref": f"r-{uuid.uuid4().hex[:12]}"}
        path = f"/v1/projects/{project_id or self.project_id}/resources"
        answer = await self.operator.call("POST", path, body)
        assert answer.status == 201, answer.body
        return answer.json

    async def token(self, kind: str = "node", project_id: str = "") -> JSON:
        """Issue a bootstrap token."""
        path = f"/v1/projects/{project_id or self.project_id}/bootstrap-tokens"
        body = {"kind": kind, "env_prefix": "dev", "ttl_seconds": 900}
        answer = await self.operator.call("POST", path, body)
        assert answer.status == 201, answer.body
        return answer.json

    async def wish(self, project_id: str = "") -> JSON:
        """Return a registration that would be granted: a resource and a token for it, a nonce, a key."""
        adopted = await self.resource(project_id=project_id)
        issued = await self.token(project_id=project_id)
        return {
            "project_id": project_id or self.project_id,
            "resource_handle": adopted["id"],
            "bootstrap_token": issued["token"],
            "nonce": str(uuid.uuid4()),
            "public_key": Node("").public_key,
        }

    async def register(self, wish: JSON, edge: Edge | None = None) -> Answer:
        """Send a registration, from another address when an edge is given."""
        return await (edge or self.operator).anonymous().call("POST", "/v1/register", wish)
