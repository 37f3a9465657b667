"""The column guard: a service runs only on a schema whose columns are what it declared them to be.

Every text, bytea, json and jsonb column has a class; what is ciphertext or a hash has a CHECK on its form, so that
plaintext cannot be stored there even by a mistaken migration.
"""

from collections.abc import Mapping
from enum import StrEnum

import asyncpg

from libs.pg import connection
from libs.settings import StartRefused


class ColumnClass(StrEnum):
    """What a column may hold."""

    IDENTIFIER = "identifier"
    METADATA = "metadata"
    REFERENCE = "reference"
    PUBLIC_KEY = "public_key"
    CIPHERTEXT = "ciphertext"
    HASH = "hash"
    PERSONAL = "personal"


Declared = Mapping[str, Mapping[str, ColumnClass]]
CHECKED = frozenset({ColumnClass.CIPHERTEXT, ColumnClass.HASH})

CLASSED_COLUMNS = """
SELECT c.relname AS table, a.attname AS column,
       EXISTS (SELECT FROM pg_constraint k
               WHERE k.conrelid = c.oid AND k.contype = 'c' AND a.attnum = ANY (k.conkey)) AS checked
FROM pg_attribute a
JOIN pg_class c ON c.oid = a.attrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_type e ON e.oid = t.typelem AND t.typcategory = 'A'
WHERE n.nspname = $1 AND c.relkind IN ('r', 'p') AND NOT c.relispartition AND a.attnum > 0 AND NOT a.attisdropped
  AND c.relname <> 'alembic_version'
  AND (coalesce(e.typname, t.typname) IN ('text', 'varchar', 'bpchar', 'bytea', 'json', 'jsonb', 'xml', 'name', 'char')
       OR coalesce(e.typtype, t.typtype) NOT IN ('b'))
ORDER BY 1, 2
"""


class ColumnMismatch(StartRefused):
    """The schema is not the declared one."""


def compare(found: Mapping[tuple[str, str], bool], declared: Declared) -> list[str]:
    """Return what is wrong: undeclared and missing columns, and ciphertext or hashes without a CHECK."""
    wanted = {(table, column): kind for table, columns in declared.items() for column, kind in columns.items()}
    wrong = [f"{table}.{column} has no class" for table, column in sorted(found.keys() - wanted.keys())]
    wrong += [
        f"{table}.{column} is declared and does not exist" for table, column in sorted(wanted.keys() - found.keys())
    ]
    wrong += [
        f"{table}.{column} is {wanted[table, column]} and has no CHECK on its form"
        for (table, column), checked in sorted(found.items())
        if not checked and wanted.get((table, column)) in CHECKED
    ]
    return wrong


async def guard_columns(pool: asyncpg.Pool, schema: str, declared: Declared) -> None:
    """Raise ColumnMismatch, naming the columns, when the schema is not the declared one."""
    async with connection(pool, "guard_columns") as lent:
        rows = await lent.fetch(CLASSED_COLUMNS, schema)
    wrong = compare({(row["table"], row["column"]): row["checked"] for row in rows}, declared)
    if wrong:
        raise ColumnMismatch(f"schema {schema}: " + "; ".join(wrong))
