"""Identity's rules on the real backends, twice, and short words for what tests do with them."""

import ipaddress
import itertools
import secrets
from dataclasses import dataclass, replace
from uuid import uuid4

import asyncpg
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from libs.bao import Bao
from libs.clock import SystemClock
from libs.cursor import Cursors
from libs.custody import Secret
from libs.errors import PlexError
from services.identity.authority import Gate
from services.identity.enrolment import Enrolled, Enrolment, Wish
from services.identity.enrolment_store import PgEnrolmentStore
from services.identity.model import Caller, Domain, Project, Reachability, Resource
from services.identity.node_key_store import PgNodeKeyStore
from services.identity.node_keys import NodeKeys
from services.identity.registration_store import Registrations
from services.identity.relation_store import PgTupleStore
from services.identity.relations import Relations
from services.identity.service import Identity
from services.identity.store import PgStore
from services.identity.tests.fakes import FakeAudit, FakeSigningKeys
from services.identity.vault import BaoVault


def fresh_key() -> bytes:
    return X25519PrivateKey.generate().public_key().public_bytes_raw()


BITS = itertools.count(secrets.randbelow(2**20) << 4)


def fresh_cidr(prefix: int = 64) -> str:
    """Return a range that no other test has."""
    return str(ipaddress.ip_network((0xFD00 << 112 | next(BITS) << 64, prefix)))


@dataclass(frozen=True)
class Replica:
    """One process's rules; all share the backends."""

    identity: Identity
    enrolment: Enrolment
    keys: NodeKeys
    relations: Relations
    admin: Caller

    async def domain(self, cidr: str = "") -> Domain:
        slug = f"d-{uuid4().hex}"
        return await self.identity.create_domain(self.admin, "D", slug, "", "", cidr or fresh_cidr(), Reachability())

    async def project(self, domain: Domain, sub_range: str = "") -> Project:
        return await self.identity.create_project(self.admin, domain.id, "P", f"p-{uuid4().hex}", "", sub_range)

    async def resource(self, project: Project, name: str = "") -> Resource:
        return await self.identity.create_resource(self.admin, project.id, "adopted", "server", name)

    async def wish(self, project: Project, handle: str) -> Wish:
        _, token = await self.identity.issue_token(self.admin, project.id, "node", "dev", 300)
        return Wish(str(project.id), handle, token, str(uuid4()), fresh_key())

    async def node(self, project: Project) -> tuple[Resource, Enrolled]:
        resource = await self.resource(project)
        return resource, await self.enrolment.register(await self.wish(project, str(resource.id)))


def replica(pool: asyncpg.Pool, relations: Relations, bao: Bao, admin: Caller) -> Replica:
    relations = replace(relations, tuples=PgTupleStore(pool))
    store, keys, clock = PgStore(pool), FakeSigningKeys([]), SystemClock()
    gate = Gate(relations, FakeAudit([]), store)
    identity = Identity(store, gate, keys, Cursors(Secret(b"k" * 32)), clock)
    enrolment = Enrolment(PgEnrolmentStore(pool, Registrations(pool)), gate, keys, BaoVault(bao), clock)
    node_keys = NodeKeys(PgNodeKeyStore(pool), gate, BaoVault(bao), clock)
    return Replica(identity, enrolment, node_keys, relations, admin)


async def code(attempt: object) -> str:
    try:
        await attempt  # type: ignore[misc]  # coroutines of many kinds
    except PlexError as error:
        return error.code
    return "ok"


async def count(pool: asyncpg.Pool, table: str, where: str, *arguments: object) -> int:
    return int(await pool.fetchval(f"SELECT count(*) FROM identity.{table} WHERE {where}", *arguments))
