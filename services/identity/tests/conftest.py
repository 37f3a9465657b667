"""Identity's own doors to the real backends, twice: two replicas see the same state."""

from collections.abc import AsyncIterator
from dataclasses import replace

import asyncpg
import pytest

from devstack.layout import State
from libs.bao import Bao, open_bao
from libs.ids import uuid7
from libs.pg import create_pool
from libs.settings import OpenBao, Postgres, Tls
from services.identity.model import Tuple
from services.identity.relation_store import PgTupleStore
from services.identity.relations import Relations
from services.identity.schema import PLATFORM
from services.identity.spicedb import SENTINEL, SpiceDb
from services.identity.tests.fakes import signed_in
from services.identity.tests.replicas import Replica, replica

Pools = tuple[asyncpg.Pool, asyncpg.Pool]


@pytest.fixture
def tls(backends: State) -> Tls:
    pki = backends / "pki"
    return Tls(certificate_file=pki / "identity.crt", key_file=pki / "identity.key", ca_file=pki / "ca.crt")


@pytest.fixture
def postgres(backends: State) -> Postgres:
    port = backends.port("postgres")
    return Postgres(host="127.0.0.1", port=port, database="plexsphere", user="identity", max_size=20, timeout_s=30.0)


@pytest.fixture
async def pools(postgres: Postgres, tls: Tls) -> AsyncIterator[Pools]:
    async with create_pool(postgres, tls) as one, create_pool(postgres, tls) as other:
        yield one, other


@pytest.fixture
async def bao(backends: State, tls: Tls) -> AsyncIterator[Bao]:
    address = f"https://127.0.0.1:{backends.port('openbao')}"
    async with open_bao(OpenBao(address=address, role="identity"), tls) as opened:
        yield opened


@pytest.fixture
def sentinel() -> Tuple:
    """A sentinel of this test's own, which a stack that is running beside it does not put back."""
    return replace(SENTINEL, resource=f"platform:{uuid7()}")


@pytest.fixture
async def spicedb(backends: State, tls: Tls, sentinel: Tuple) -> SpiceDb:
    address, key_file = f"127.0.0.1:{backends.port('spicedb')}", backends / "secrets/spicedb.key"
    checker = SpiceDb(address, "spicedb", key_file, tls.ca_file, sentinel)
    await checker.write_schema()
    await checker.touch([sentinel])
    return checker


@pytest.fixture
async def relations(pools: Pools, spicedb: SpiceDb, sentinel: Tuple) -> Relations:
    return Relations(spicedb, PgTupleStore(pools[0]), sentinel)


@pytest.fixture
async def replicas(pools: Pools, relations: Relations, bao: Bao) -> tuple[Replica, Replica]:
    admin = signed_in()
    await relations.grant(Tuple(PLATFORM, "admin", admin.reference))
    one, other = (replica(pool, relations, bao, admin) for pool in pools)
    return one, other
