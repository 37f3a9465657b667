"""Domains and projects."""

from aiohttp import web
from google.protobuf.duration_pb2 import Duration

from libs import errors
from libs.rpc.channel import Peer
from plexsphere.identity.v1 import directory_pb2 as pb
from plexsphere.identity.v1 import directory_pb2_grpc as stubs
from plexsphere.identity.v1 import enrolment_pb2
from services.gateway import durations
from services.gateway.answers import JSON, created, given, nothing, page, reply, when
from services.gateway.edge import Asked, Route

POLICY = ("heartbeat_interval", "stale_after", "unreachable_after")


class Tenancy:
    """Handlers of the operations on Domains and projects."""

    def __init__(self, identity: Peer) -> None:
        self._stub = stubs.DirectoryServiceStub(identity)

    def routes(self) -> dict[str, Route]:
        """Return the handlers by operation."""
        return {
            "CreateDomain": Route(self.create_domain),
            "ListDomains": Route(self.list_domains),
            "GetDomain": Route(self.get_domain),
            "PatchDomain": Route(self.update_domain),
            "DeleteDomain": Route(self.delete_domain),
            "CreateProject": Route(self.create_project),
            "ListProjects": Route(self.list_projects),
            "GetProject": Route(self.get_project),
            "PatchProject": Route(self.update_project),
            "DeleteProject": Route(self.delete_project),
        }

    async def create_domain(self, asked: Asked) -> web.Response:
        """Create a Domain."""
        body = asked.body
        request = pb.CreateDomainRequest(
            name=body["name"],
            slug=body["slug"],
            description=body.get("description", ""),
            region=body.get("region", ""),
            mesh_cidr=body["mesh_cidr"],
            reachability=policy_of(body),
        )
        answer = await self._stub.CreateDomain(request, metadata=asked.metadata)
        return created(domain(answer.domain), f"/v1/domains/{answer.domain.id}")

    async def list_domains(self, asked: Asked) -> web.Response:
        """List Domains."""
        request = pb.ListDomainsRequest(cursor=asked.query.get("cursor", ""), limit=asked.query["limit"])
        answer = await self._stub.ListDomains(request, metadata=asked.metadata)
        return page([domain(row) for row in answer.domains], answer.next_cursor, answer.empty_reason)

    async def get_domain(self, asked: Asked) -> web.Response:
        """Get a Domain."""
        answer = await self._stub.GetDomain(pb.GetDomainRequest(domain_id=asked.path["id"]), metadata=asked.metadata)
        return reply(domain(answer.domain))

    async def update_domain(self, asked: Asked) -> web.Response:
        """Change a Domain."""
        body = asked.body
        request = pb.UpdateDomainRequest(
            domain_id=asked.path["id"],
            name=body.get("name"),
            description=body.get("description"),
            region=body.get("region"),
            mesh_cidr=body.get("mesh_cidr"),
            reachability=policy_of(body),
        )
        answer = await self._stub.UpdateDomain(request, metadata=asked.metadata)
        return reply(domain(answer.domain))

    async def delete_domain(self, asked: Asked) -> web.Response:
        """Delete a Domain."""
        await self._stub.DeleteDomain(pb.DeleteDomainRequest(domain_id=asked.path["id"]), metadata=asked.metadata)
        return nothing()

    async def create_project(self, asked: Asked) -> web.Response:
        """Create a project."""
        body = asked.body
        request = pb.CreateProjectRequest(
            domain_id=body["domain_id"].lower(),
            name=body["name"],
            slug=body["slug"],
            description=body.get("description", ""),
            sub_range_cidr=body.get("sub_range_cidr", ""),
        )
        answer = await self._stub.CreateProject(request, metadata=asked.metadata)
        return created(project(answer.project), f"/v1/projects/{answer.project.id}")

    async def list_projects(self, asked: Asked) -> web.Response:
        """List projects."""
        query = asked.query
        request = pb.ListProjectsRequest(
            domain_id=query.get("domain_id", ""), cursor=query.get("cursor", ""), limit=query["limit"]
        )
        answer = await self._stub.ListProjects(request, metadata=asked.metadata)
        return page([project(row) for row in answer.projects], answer.next_cursor, answer.empty_reason)

    async def get_project(self, asked: Asked) -> web.Response:
        """Get a project."""
        request = pb.GetProjectRequest(project_id=asked.path["id"])
        answer = await self._stub.GetProject(request, metadata=asked.metadata)
        return reply(project(answer.project))

    async def update_project(self, asked: Asked) -> web.Response:
        """Change a project."""
        body = asked.body
        request = pb.UpdateProjectRequest(
            project_id=asked.path["id"],
            name=body.get("name"),
            description=body.get("description"),
            sub_range_cidr=body.get("sub_range_cidr"),
            release_sub_range=body.get("release_sub_range", False),
        )
        answer = await self._stub.UpdateProject(request, metadata=asked.metadata)
        return reply(project(answer.project))

    async def delete_project(self, asked: Asked) -> web.Response:
        """Delete a project."""
        await self._stub.DeleteProject(pb.DeleteProjectRequest(project_id=asked.path["id"]), metadata=asked.metadata)
        return nothing()


def policy_of(body: JSON) -> enrolment_pb2.ReachabilityPolicy | None:
    """Read a reachability policy; raises InvalidReachabilityPolicy unless all three durations are there."""
    if "reachability" not in body:
        return None
    policy = enrolment_pb2.ReachabilityPolicy()
    for name in POLICY:
        try:
            nanoseconds = durations.parse(body["reachability"][name])
        except ValueError:
            raise errors.InvalidReachabilityPolicy(f"{name} is not a duration") from None
        getattr(policy, name).FromNanoseconds(nanoseconds)
    return policy


def duration(value: Duration) -> str:
    """Write a duration."""
    return durations.write(value.ToNanoseconds())


def domain(row: pb.Domain) -> JSON:
    """Write a Domain."""
    return {
        "id": row.id,
        "name": row.name,
        "slug": row.slug,
        **given(description=row.description, region=row.region),
        "mesh_cidr": row.mesh_cidr,
        "reachability": {name: duration(getattr(row.reachability, name)) for name in POLICY},
        "created_at": when(row.created_at),
        "updated_at": when(row.updated_at),
    }


def project(row: pb.Project) -> JSON:
    """Write a project."""
    return {
        "id": row.id,
        "domain_id": row.domain_id,
        "name": row.name,
        "slug": row.slug,
        **given(description=row.description, sub_range_cidr=row.sub_range_cidr),
        "created_at": when(row.created_at),
        "updated_at": when(row.updated_at),
    }
