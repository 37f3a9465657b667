"""A-1 over the wire: a DBA changes a column of a row or of its personal record, and every one of them tells.

The columns are those that the database has, so that a new one is tried by itself.
"""

import pytest

from tests.e2e.ledger import Ledger

pytestmark = pytest.mark.e2e

SEQ = 4
ZEROS = "0" * 64
WHERE = "WHERE chain = $1 AND seq = $2"
COLUMNS = """
SELECT attname, format_type(atttypid, atttypmod) AS type FROM pg_attribute
WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped
"""
CHANGES = {
    "text": "CASE WHEN {0} ~ '^[0-9a-f]{{64}}$' THEN translate({0}, '0123456789abcdef', '123456789abcdef0') "
    "ELSE {0} || 'x' END",
    "bytea": "set_byte({0}, 0, get_byte({0}, 0) # 1)",
    "bigint": "{0} + 1000",
    "timestamp with time zone": "{0} + interval '1 microsecond'",
    "jsonb": """{0} || '{{"added": ["name"]}}'""",
}
FEW = {"reason": "CASE {0} WHEN 'granted' THEN 'unknown' ELSE 'granted' END"}
# What the hashes are made of; another column is held against the bytes, and what is observed then has no hash.
HASHED = {"chain", "seq", "prev_hash", "entry_hash", "canonical"}


async def columns(ledger: Ledger, table: str) -> dict[str, str]:
    """Return the columns of a table, each with what it is changed to."""
    rows = await ledger.dba.fetch(COLUMNS, table)
    return {row["attname"]: FEW.get(row["attname"], CHANGES[row["type"]]).format(row["attname"]) for row in rows}


@pytest.mark.parametrize("table", ["audit.entries", "audit.personal"])
async def test_a_rewritten_column_is_found_at_its_sequence(ledger: Ledger, table: str) -> None:
    found = {}
    for column, change in (await columns(ledger, table)).items():
        before = await ledger.dba.fetchval(f"SELECT {column} FROM {table} {WHERE}", ledger.chain, SEQ)
        place = await ledger.dba.fetchval(
            f"UPDATE {table} SET {column} = {change} {WHERE} RETURNING ctid", ledger.chain, SEQ
        )
        verdict = await ledger.verify()
        await ledger.dba.execute(f"UPDATE {table} SET {column} = $1 WHERE ctid = $2", before, place)
        found[column] = (verdict.get("divergent_seq"), verdict.get("observed_hash") == ZEROS)
    hashed = HASHED if table == "audit.entries" else set()
    assert found == {column: (SEQ, column not in hashed) for column in found}
    assert (await ledger.verify())["ok"] is True


DEEP = "repeat('[', 100000) || repeat(']', 100000)"
REHASH = ", entry_hash = sha256(prev_hash || sha256({0}))"
UNREADABLE = {
    "a time before all times": "occurred_at = '0044-03-15 BC'",
    "a time after all times": "occurred_at = 'infinity'",
    "names that are a list": "context = '[]'",
    "names that are a number of many digits": "context = repeat('9', 10000)::jsonb",
    "names that are nested deep": "context = (repeat('[', 5000) || repeat(']', 5000))::jsonb",
    "bytes that are a list": "canonical = '[]'" + REHASH.format("'[]'"),
    "bytes that are no JSON": "canonical = '\\xff'" + REHASH.format("'\\xff'"),
    "bytes that are nested deep": f"canonical = ({DEEP})::bytea" + REHASH.format(f"({DEEP})::bytea"),
}


@pytest.mark.parametrize("name", UNREADABLE)
async def test_what_cannot_be_read_is_found_at_its_sequence(ledger: Ledger, name: str) -> None:
    await ledger.dba.execute(f"UPDATE audit.entries SET {UNREADABLE[name]} {WHERE}", ledger.chain, SEQ)
    verdict = await ledger.verify()
    assert (verdict["ok"], verdict["divergent_seq"]) == (False, SEQ)


async def test_a_personal_record_that_nobody_erased_is_missed(ledger: Ledger) -> None:
    await ledger.dba.execute(f"DELETE FROM audit.personal {WHERE}", ledger.chain, SEQ)
    verdict = await ledger.verify()
    assert (verdict["ok"], verdict["divergent_seq"], verdict["observed_hash"]) == (False, SEQ, ZEROS)
    # The residual risk, pinned: who notes an erasure as well has destroyed what names the subject. The pseudonym is in
    # the chain all the same, and the chain has no row of that erasure.
    forge = f"INSERT INTO audit.erasures SELECT chain, pseudonym, now() FROM audit.entries {WHERE}"
    await ledger.dba.execute(forge, ledger.chain, SEQ)
    assert (await ledger.verify())["ok"] is True


async def test_a_personal_record_that_was_erased_is_not_missed(ledger: Ledger) -> None:
    subject = await ledger.dba.fetchval(f"SELECT subject_id FROM audit.personal {WHERE}", ledger.chain, SEQ)
    erased = await ledger.auditor.call("POST", f"{ledger.path}/erase-identity", {"identity_id": subject})
    assert erased.status == 200, erased.body
    assert not await ledger.dba.fetchval(f"SELECT count(*) FROM audit.personal {WHERE}", ledger.chain, SEQ)
    assert (await ledger.verify())["ok"] is True
