"""The column guard: no service runs on, and no job commits, a schema whose columns are not what its service declared.

A column whose type can hold a secret has a class, and the class a form that a CHECK of this column alone enforces, so
that plaintext cannot be stored there even by a mistaken migration. A name that speaks of a secret needs such a class.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Column:
    """A column as the catalog has it; `checks` are the CHECKs that read no other column, as PostgreSQL prints them."""

    schema: str
    table: str
    name: str
    type: str
    checks: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.schema}.{self.table}.{self.name}"


Declared = Mapping[str, Mapping[str, ColumnClass]]

# Too small for a secret, or unable to hold one; every other type needs a class, arrays and domains too.
HARMLESS_TYPES = frozenset(
    {
        "boolean", "smallint", "integer", "bigint", "real", "double precision", "uuid", "inet", "cidr", "date",
        "interval", "timestamp with time zone",
    }
)  # fmt: skip

SPEAKS = re.compile(
    r"secret|token|key|passw|passphrase|bearer|credential|private|cookie|verifier|assertion|pepper|nsk|plain"
    r"|(?<![a-z])(?:code|pin|otp|jwt|pat|psk|psb|csrf|seed|pwd)s?(?![a-z])",
    re.IGNORECASE,
)
GUARDED = frozenset({ColumnClass.CIPHERTEXT, ColumnClass.HASH, ColumnClass.REFERENCE})
# Names that speak of a secret and hold none: a column's name, or schema.table.column, and why.
ALLOWED = {
    "refused_code": "a stable code of libs/errors.py",
    "audit.idempotency.key": "names a request once and opens nothing",
}

SHORTEST_CIPHERTEXT = 80  # base64 of nonce, tag and 32 bytes; hex of a plaintext key has 64 characters
_BYTES = r"CHECK \(\((?:octet_)?length\({name}\) = 32\)\)"
# The whole of what PostgreSQL prints: NOT VALID, NOT ENFORCED and a second condition are other text.
FORMS: Mapping[ColumnClass, Mapping[str, str]] = {
    ColumnClass.CIPHERTEXT: {
        "text": r"CHECK \(\({name} ~ '\^vault:v\[0-9\]\+:\[A-Za-z0-9\+/\]"
        r"\{{(?P<least>\d+)(?:,\d*)?\}}=?\*?\$'::text\)\)"
    },
    ColumnClass.HASH: {"bytea": _BYTES, "text": r"CHECK \(\({name} ~ '\^\[0-9a-f\]\{{64\}}\$'::text\)\)"},
    ColumnClass.PUBLIC_KEY: {"bytea": _BYTES},
    # A fixed path, then characters of listed kinds: `.` and the start of any other text do not fit.
    ColumnClass.REFERENCE: {
        "text": r"CHECK \(\({name} ~ '\^(?:[a-z]+/)+(?:\[[a-z0-9-]+\](?:\{{[0-9,]+\}})?/?)+\$'::text\)\)"
    },
}

# Indexes, sequences and types hold no value of their own; partitions have the columns and CHECKs of their parent.
FIND_COLUMNS = """
SELECT n.nspname AS schema, c.relname AS table, a.attname AS name, format_type(a.atttypid, NULL) AS type,
       ARRAY(SELECT pg_get_constraintdef(k.oid) FROM pg_constraint k
             WHERE k.conrelid = c.oid AND k.contype = 'c' AND k.conkey = ARRAY[a.attnum]) AS checks
FROM pg_attribute a
JOIN pg_class c ON c.oid = a.attrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND ($1::text IS NULL OR n.nspname = $1)
  AND c.relkind IN ('r', 'p', 'v', 'm', 'f') AND NOT c.relispartition AND a.attnum > 0 AND NOT a.attisdropped
  AND NOT EXISTS (SELECT FROM pg_depend d
                  WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
  AND NOT (c.relname = 'alembic_version' AND a.attname = 'version_num')
ORDER BY 1, 2, 3
"""
LARGE_OBJECTS = "SELECT count(*) FROM pg_largeobject_metadata"


class ColumnMismatch(StartRefused):
    """The schema is not the declared one."""


def compare(found: Iterable[Column], declared: Declared, *, complete: bool = True) -> list[str]:
    """Return what is wrong with the columns of one schema; unless `complete`, columns and forms may be missing."""
    wanted = {(table, name): kind for table, columns in declared.items() for name, kind in columns.items()}
    wrong: list[str] = []
    for column in found:
        wrong += _faults(column, wanted.pop((column.table, column.name), None), complete=complete)
    if complete:
        wrong += [f"{table}.{name} is declared and does not exist" for table, name in sorted(wanted)]
    return wrong


def _faults(column: Column, kind: ColumnClass | None, *, complete: bool) -> Iterator[str]:
    if kind is None and column.type not in HARMLESS_TYPES:
        yield f"{column} ({column.type}) has no class: declare it in services/{column.schema}/columns.py"
    if _speaks(column) and kind not in GUARDED and not (kind is ColumnClass.PUBLIC_KEY and "public" in column.name):
        yield f"{column} speaks of a secret and is {kind or 'plaintext'}: it must be {', '.join(sorted(GUARDED))}"
    if complete and kind and kind in FORMS and not _has_form(column, FORMS[kind]):
        yield f"{column} is {kind} and has no CHECK on its form that reads only this column (see libs.columns.FORMS)"


def _speaks(column: Column) -> bool:
    # A number is too short for a secret, but a random UUID has been used as one; an id of something is none.
    if column.type in HARMLESS_TYPES and (column.type != "uuid" or column.name.endswith("_id")):
        return False
    return bool(SPEAKS.search(column.name)) and not {column.name, str(column)} & ALLOWED.keys()


def _has_form(column: Column, forms: Mapping[str, str]) -> bool:
    wanted = forms.get(column.type, "(?!)").format(name=f'"?{re.escape(column.name)}"?')
    matches = [match for check in column.checks if (match := re.fullmatch(wanted, check))]
    return any(int(match.groupdict().get("least", SHORTEST_CIPHERTEXT)) >= SHORTEST_CIPHERTEXT for match in matches)


async def guard_columns(pool: asyncpg.Pool, schema: str, declared: Declared) -> None:
    """Raise ColumnMismatch, naming the columns, when the schema is not the declared one."""
    async with connection(pool, "guard_columns") as lent:
        found = await find_columns(lent, schema)
    if wrong := compare(found, declared):
        raise ColumnMismatch(f"schema {schema}: " + "; ".join(wrong))


async def guard_database(lent: asyncpg.Connection, declared: Mapping[str, Declared], complete: Collection[str]) -> None:
    """Raise ColumnMismatch for all schemas at once, for one that no service owns, and for large objects.

    `complete` names the schemas that stand at their newest revision.
    """
    found = await find_columns(lent)
    wrong = [f"{column}: no service owns schema {column.schema}" for column in found if column.schema not in declared]
    for schema, tables in declared.items():
        wrong += compare((one for one in found if one.schema == schema), tables, complete=schema in complete)
    if await lent.fetchval(LARGE_OBJECTS):
        wrong.append("the database holds large objects, which no CHECK can bind")
    if wrong:
        raise ColumnMismatch("; ".join(wrong))


async def find_columns(lent: asyncpg.Connection, schema: str | None = None) -> list[Column]:
    """Return the columns of one schema, or of all that are not PostgreSQL's own."""
    rows = await lent.fetch(FIND_COLUMNS, schema)
    return [Column(row["schema"], row["table"], row["name"], row["type"], tuple(row["checks"])) for row in rows]
