"""Registrations in PostgreSQL: those of one Domain that wait together commit together, each whole or not at all.

Addresses of a Domain are given out by one transaction at a time, so registrations of one Domain that come at once would
queue for a lock each; here the first that gets it takes the others along.
"""

import datetime
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

import asyncpg

from libs.errors import (
    AllocatorContention,
    DatastoreUnavailable,
    NonceCollision,
    PlexError,
    PoolExhausted,
    PublicKeyInvalid,
    ResourceNotFound,
    SubrangeExhausted,
    TokenConsumed,
    TokenExpired,
    TokenRevoked,
)
from libs.pg import connection, transaction
from libs.together import Each, Together
from services.identity.model import BootstrapToken, Candidate, Peer, Registered, Resource, Snapshot, Tuple
from services.identity.node_key_store import add_keys
from services.identity.node_store import PEER, announce, peer_of, text_of
from services.identity.relation_store import add_tuples
from services.identity.store import LOCK_RANGES

MOST_TOGETHER = 32
# Everybody locks tokens in the order of their ids, so that nobody waits in a circle.
CONSUME = """
WITH found AS (SELECT id FROM identity.bootstrap_tokens WHERE id = ANY ($1::uuid[]) ORDER BY id FOR UPDATE)
UPDATE identity.bootstrap_tokens t
SET consumed_at = w.at, nonce = w.nonce, public_key = w.public_key, node_id = w.node_id
FROM found, unnest($1::uuid[], $2::timestamptz[], $3::uuid[], $4::bytea[], $5::uuid[])
    AS w (id, at, nonce, public_key, node_id)
WHERE t.id = found.id AND w.id = t.id
  AND t.consumed_at IS NULL AND t.revoked_at IS NULL AND t.expires_at > w.at
RETURNING t.id
"""
KEYED = "EXISTS (SELECT FROM identity.node_secret_keys k WHERE k.node_id = n.id AND k.revoked_at IS NULL)"
RANGES = f"""
SELECT w.resource_id, d.mesh_cidr, p.sub_range_cidr, n.id AS node_id, {KEYED} AS keyed
FROM unnest($1::uuid[], $2::uuid[]) AS w (project_id, resource_id)
JOIN identity.projects p ON p.id = w.project_id JOIN identity.domains d ON d.id = p.domain_id
LEFT JOIN identity.nodes n ON n.resource_id = w.resource_id
"""
BOUNDS = "bounds AS (SELECT host(network($2::cidr))::inet + 1 AS low, host(broadcast($2::cidr))::inet - 1 AS high)"
OTHERS = "others AS (SELECT sub_range_cidr AS cidr FROM identity.projects WHERE domain_id = $1 AND id <> $3)"
# Those above the highest that is taken, found by one look into the index: an address is used again as late as can be.
NEXT = f"""
WITH {BOUNDS}, {OTHERS}, taken AS (
    SELECT coalesce((SELECT max(mesh_ip) FROM identity.nodes WHERE domain_id = $1 AND mesh_ip BETWEEN low AND high),
                    low - 1) AS last
    FROM bounds
)
SELECT last + turn AS candidate FROM taken, bounds, generate_series(1, $4::int) AS turn
WHERE last + turn <= high AND NOT EXISTS (SELECT FROM others WHERE last + turn <<= cidr) ORDER BY turn
"""
# The lowest free host address outside other projects' ranges: the first one, or the one after a taken one or range.
LOWEST_FREE = f"""
WITH {BOUNDS}, {OTHERS}
SELECT candidate FROM (
    SELECT low AS candidate FROM bounds
    UNION ALL
    SELECT n.mesh_ip + 1 FROM identity.nodes n, bounds WHERE n.domain_id = $1 AND n.mesh_ip BETWEEN low AND high
    UNION ALL
    SELECT host(broadcast(cidr))::inet + 1 FROM others, bounds WHERE broadcast(cidr) < high
) free, bounds
WHERE candidate BETWEEN low AND high
  AND NOT EXISTS (SELECT FROM identity.nodes n WHERE n.domain_id = $1 AND n.mesh_ip = candidate)
  AND NOT EXISTS (SELECT FROM others WHERE candidate <<= cidr)
ORDER BY candidate LIMIT 1
"""
ADD_NODES = """
INSERT INTO identity.nodes (id, resource_id, project_id, domain_id, mesh_ip, public_key, created_at)
SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[], $5::inet[], $6::bytea[], $7::timestamptz[])
"""
# As text: an address made an object, and text again, takes longer than all the rest of its row.
PEERS = """
SELECT n.id, host(n.mesh_ip) AS mesh_ip, n.public_key, e.endpoint FROM identity.nodes n
LEFT JOIN identity.endpoints e ON e.node_id = n.id WHERE n.domain_id = $1 ORDER BY n.id
"""


class Registration(NamedTuple):
    """One registration."""

    token: BootstrapToken
    resource: Resource
    node: Candidate
    at: datetime.datetime


class Place(NamedTuple):
    """Where a node that registers belongs."""

    wanted: Registration
    mesh_cidr: str
    sub_range_cidr: str | None
    known: UUID | None

    @property
    def node_id(self) -> UUID:
        """Its node."""
        return self.wanted.node.node_id


async def snapshot_of(lent: asyncpg.Connection, domain_id: UUID) -> Snapshot:
    """Return a Domain's nodes by id."""
    return Snapshot([peer_of(row) for row in await lent.fetch(PEERS, domain_id)])


@dataclass(frozen=True)
class Registrations:
    """Registers nodes."""

    pool: asyncpg.Pool

    @functools.cached_property
    def _domains(self) -> Each[UUID, Together[Registration, Registered]]:
        return Each(lambda _: Together(self._register, MOST_TOGETHER))

    async def register(self, wanted: Registration) -> Registered:
        """Consume the token and create all that a node is, in one transaction, or nothing."""
        return await self._domains[wanted.resource.domain_id].ask(wanted)

    async def _register(self, wanted: list[Registration]) -> Sequence[Registered | Exception]:
        domain_id = wanted[0].resource.domain_id
        try:
            async with transaction(self.pool, "register") as lent:
                placed = await self._commit(lent, domain_id, wanted)
        except DatastoreUnavailable:
            raise
        except (PlexError, asyncpg.UniqueViolationError, asyncpg.ForeignKeyViolationError) as error:
            if len(wanted) == 1:
                return [refusal_of(error)]
            # Nothing of them was committed; who cannot be registered must not keep the others from it.
            return [answer for one in wanted for answer in await self._register([one])]
        # After the commit, so that nobody waits for it: who registers meanwhile is in it, and is announced as well.
        async with connection(self.pool, "peers") as lent:
            snapshot = await snapshot_of(lent, domain_id)
        return [Registered(peer.node_id, peer.mesh_ip, snapshot, mesh_cidr) for peer, mesh_cidr in placed]

    async def _commit(
        self, lent: asyncpg.Connection, domain_id: UUID, wanted: list[Registration]
    ) -> list[tuple[Peer, str]]:
        rows = [(one.token.id, one.at, one.node.nonce, one.node.public_key, one.node.node_id) for one in wanted]
        consumed = {row["id"] for row in await lent.fetch(CONSUME, *zip(*rows, strict=True))}
        for one in wanted:
            if one.token.id not in consumed:
                raise await self._lost(lent, one)
        # One allocation of a Domain at a time; the UNIQUE constraint stays the judge.
        await lent.execute(LOCK_RANGES, str(domain_id))
        places = await self._places(lent, wanted)
        peers = await self._add(lent, domain_id, [place for place in places if place.known is None])
        for place in places:
            if place.known is not None:
                peers[place.known] = await self._again(lent, place.wanted)
        await add_keys(lent, [(one.node.node_id, one.node.key) for one in wanted], wanted[0].at)
        await add_tuples(lent, [row for one in wanted for row in tuples_of(one)])
        told = [("peer_added" if place.known is None else "peer_key_rotated", peers[place.node_id]) for place in places]
        await announce(lent, domain_id, told, wanted[0].at)
        return [(peers[place.node_id], place.mesh_cidr) for place in places]

    async def _lost(self, lent: asyncpg.Connection, wanted: Registration) -> PlexError:
        """Say why the token could not be consumed a moment after it looked as if it could."""
        sql = "SELECT consumed_at, revoked_at, nonce, public_key FROM identity.bootstrap_tokens WHERE id = $1"
        row = await lent.fetchrow(sql, wanted.token.id)
        if row is None or row["revoked_at"] is not None:
            return TokenRevoked()
        if row["consumed_at"] is None:
            return TokenExpired()
        # The same request twice at once: whoever lost the race is told to come back, and then gets its key.
        same = (row["nonce"], row["public_key"]) == (wanted.node.nonce, wanted.node.public_key)
        return AllocatorContention() if same else TokenConsumed()

    async def _places(self, lent: asyncpg.Connection, wanted: list[Registration]) -> list[Place]:
        projects, resources = [one.resource.project_id for one in wanted], [one.resource.id for one in wanted]
        found = {row["resource_id"]: row for row in await lent.fetch(RANGES, projects, resources)}
        places = []
        for one in wanted:
            row = found.get(one.resource.id)
            if row is None:
                raise ResourceNotFound
            if row["keyed"] or row["node_id"] not in {None, one.node.node_id}:
                raise ResourceNotFound("the resource is registered already")
            sub_range = row["sub_range_cidr"]
            places.append(
                Place(one, str(row["mesh_cidr"]), None if sub_range is None else str(sub_range), row["node_id"])
            )
        return places

    async def _add(self, lent: asyncpg.Connection, domain_id: UUID, places: list[Place]) -> dict[UUID, Peer]:
        by_project: dict[UUID, list[Place]] = {}
        for place in places:
            by_project.setdefault(place.wanted.resource.project_id, []).append(place)
        rows, peers = [], {}
        for project_id, those in by_project.items():
            for place, address in zip(those, await self._addresses(lent, domain_id, project_id, those), strict=True):
                _, resource, node, at = place.wanted
                peers[node.node_id] = Peer(node.node_id, text_of(address), node.public_key)
                rows.append((node.node_id, resource.id, project_id, domain_id, address, node.public_key, at))
        if rows:
            await lent.execute(ADD_NODES, *zip(*rows, strict=True))
        return peers

    async def _addresses(
        self, lent: asyncpg.Connection, domain_id: UUID, project_id: UUID, places: list[Place]
    ) -> list[object]:
        sub_range = places[0].sub_range_cidr
        within = sub_range or places[0].mesh_cidr
        rows = await lent.fetch(NEXT, domain_id, within, project_id, len(places))
        if len(rows) == len(places):
            return [row["candidate"] for row in rows]
        # Towards its end a range is filled one by one.
        address = await lent.fetchval(LOWEST_FREE, domain_id, within, project_id) if len(places) == 1 else None
        if address is None:
            raise SubrangeExhausted if sub_range else PoolExhausted
        return [address]

    async def _again(self, lent: asyncpg.Connection, wanted: Registration) -> Peer:
        """Give a node that is there its new mesh key."""
        node = wanted.node
        await lent.execute("UPDATE identity.nodes SET public_key = $2 WHERE id = $1", node.node_id, node.public_key)
        (row,) = await lent.fetch(PEER, node.node_id)
        return peer_of(row)


def tuples_of(wanted: Registration) -> list[Tuple]:
    """Return the relations that make a node the agent of what it runs."""
    this, project = f"node:{wanted.node.node_id}", f"project:{wanted.resource.project_id}"
    return [
        Tuple(this, "project", project),
        Tuple(this, "agent", this),
        Tuple(project, "agent", this),
        Tuple(f"resource:{wanted.resource.id}", "agent", this),
    ]


def refusal_of(error: Exception) -> Exception:
    """Return what a registration that broke a constraint is refused with."""
    if isinstance(error, asyncpg.ForeignKeyViolationError):
        return ResourceNotFound()
    if isinstance(error, asyncpg.UniqueViolationError):
        match error.constraint_name:
            case "nonce_once":
                return NonceCollision()
            case "one_node_a_mesh_key":
                return PublicKeyInvalid("another node has this key")
            case _:
                return AllocatorContention()
    return error
