"""Who gets into PostgreSQL, and what they may do there."""

import ssl
from collections.abc import Callable

import asyncpg
import pytest

from devstack.layout import State

pytestmark = pytest.mark.integration

Shown = Callable[[str], ssl.SSLContext]
ROLES = ("identity", "access", "secrets", "mesh", "audit", "migrator")
REFUSED = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.PostgresConnectionError,
    ConnectionError,
    ssl.SSLError,
)


async def connect(stack: State, user: str, context: ssl.SSLContext | None) -> asyncpg.Connection:
    return await asyncpg.connect(
        host="127.0.0.1", port=stack.port("postgres"), user=user, database="plexsphere", ssl=context or False
    )


@pytest.mark.parametrize("role", ROLES)
async def test_a_service_gets_in_with_its_own_certificate(stack: State, shown: Shown, role: str) -> None:
    connection = await connect(stack, role, shown(role))
    try:
        assert await connection.fetchval("SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()") == "TLSv1.3"
    finally:
        await connection.close()


@pytest.mark.parametrize("shows", ["secrets", "gateway", "operator", "postgres", ""])
async def test_nobody_gets_in_as_audit_without_its_certificate(stack: State, shown: Shown, shows: str) -> None:
    with pytest.raises(REFUSED):
        await connect(stack, "audit", shown(shows))


async def test_nobody_gets_in_without_tls(stack: State) -> None:
    with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError, match="no encryption"):
        await connect(stack, "audit", None)


async def test_nobody_gets_in_with_an_older_tls(stack: State, shown: Shown) -> None:
    old = shown("audit")
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        await connect(stack, "audit", old)


async def test_the_superuser_is_not_on_the_network(stack: State, shown: Shown) -> None:
    with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError):
        await connect(stack, "postgres", shown("postgres"))


@pytest.mark.parametrize("attempt", [
    "CREATE TABLE secrets.mine (a int)",
    "CREATE TABLE public.mine (a int)",
    "CREATE TEMPORARY TABLE mine (a int)",
    "CREATE SCHEMA mine",
    "CREATE TABLE audit.mine (a int)",
    "SET ROLE audit",
    "COPY (SELECT 1) TO PROGRAM 'true'",
])  # fmt: skip
async def test_a_service_creates_nothing(stack: State, shown: Shown, attempt: str) -> None:
    connection = await connect(stack, "secrets", shown("secrets"))
    try:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(attempt)
    finally:
        await connection.close()


async def test_what_is_acknowledged_is_on_disk(stack: State) -> None:
    connection = await asyncpg.connect(stack.superuser_url)
    try:
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            assert await connection.fetchval("SELECT current_setting($1)", setting) == "on"
    finally:
        await connection.close()
