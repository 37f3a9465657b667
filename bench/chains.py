"""Decisions as a fleet makes them, and chains of a million rows that were not appended one by one."""

import asyncio
import random
import uuid
from collections.abc import Sequence
from typing import Any, cast

import asyncpg

from libs.clock import SystemClock
from libs.custody import Secret
from libs.ids import uuid7
from libs.tlog.tree import Node, Run
from services.audit.entry import draft, link
from services.audit.model import Decision, Head, Row
from services.audit.writer import columns

# How many nodes read how many secrets.
NODES = [str(uuid.UUID(int=number)) for number in range(1, 1001)]
SECRETS = [str(uuid.UUID(int=number)) for number in range(1001, 2001)]
AT_ONCE = 20_000
clock = SystemClock()


def decision(chain: str) -> Decision:
    """Return a granted read of a secret, as the secrets service has it recorded."""
    node = random.choice(NODES)
    return Decision(
        chain, uuid7(), clock.now(), "secret.read", node, "node", "read", "secret", random.choice(SECRETS), "granted",
        {"action": ["secret.read"], "version": ["1"], "kid": [f"nsk_{node.replace('-', '')}"], "limiter": ["within"]},
        str(uuid7()), "10.20.30.40", "plexd/1.4.2 (linux; amd64)",
    )  # fmt: skip


async def plant(dba: asyncpg.Connection, url: str, chain: str, pepper: Secret, count: int) -> None:
    """Write a chain with its tree by COPY as superuser: appending a million rows would take an hour."""
    head, run = Head(0, bytes(32)), Run()
    lanes = [await asyncpg.connect(url) for _ in range(4)]
    try:
        while head.seq < count:
            wanted = min(AT_ONCE, count - head.seq)
            rows = link((draft(decision(chain), pepper) for _ in range(wanted)), head)
            nodes = [node for row in rows for node in run.push(row.entry_hash)]
            await _copy(lanes, rows, nodes)
            head = Head(rows[-1].seq, rows[-1].entry_hash)
    finally:
        for lane in lanes:
            await lane.close()
    await dba.execute(
        "INSERT INTO audit.chains (chain, seq, entry_hash) VALUES ($1, $2, $3)", chain, *vars(head).values()
    )
    await dba.execute("ANALYZE")


async def _copy(lanes: Sequence[asyncpg.Connection], rows: list[Row], nodes: list[tuple[Node, bytes]]) -> None:
    filled = cast("list[list[Any]]", columns(rows)[:19])
    chain, places, personal = filled[0], filled[:2], [*filled[:2], filled[6], *filled[14:]]
    tables = {
        "entries": zip(*filled[:13], strict=True),
        "idempotency": zip(filled[13], *places, strict=True),
        "personal": zip(*personal, strict=True),
        "tree": ((chain[0], *node, value) for node, value in nodes),
    }
    copies = (
        lane.copy_records_to_table(table, schema_name="audit", records=records)
        for lane, (table, records) in zip(lanes, tables.items(), strict=True)
    )
    await asyncio.gather(*copies)
