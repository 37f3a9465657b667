"""What plexctl prints: a table for people, JSON with --json; data on stdout only."""

import json
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

Row = dict[str, Any]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Cursor = Annotated[str, typer.Option(help="Continue after the page before.")]
Limit = Annotated[int, typer.Option(min=1, max=200, help="Rows a page.")]


def page(cursor: str, limit: int, **more: str) -> dict[str, str]:
    """Return the query of a list, without what is empty."""
    query = {"limit": str(limit), "cursor": cursor, **more}
    return {name: value for name, value in query.items() if value}


def emit(value: Any, *, as_json: bool, columns: tuple[str, ...] = ()) -> None:
    """Print a value: JSON as it is, else rows as a table and one object as lines of name and value."""
    if as_json:
        print(json.dumps(value, indent=2, ensure_ascii=False))
        return
    rows = value.get("items") if isinstance(value, dict) else value
    if isinstance(rows, list):
        _table(rows, columns)
        if isinstance(value, dict) and value.get("next_cursor"):
            print(f"more: --cursor {value['next_cursor']}", file=sys.stderr)
        return
    for name, field in value.items():
        print(f"{name}: {_cell(field)}")


def _table(rows: list[Row], columns: tuple[str, ...]) -> None:
    names = columns or tuple(rows[0] if rows else ())
    table = Table(*names, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(_cell(_dig(row, name)) for name in names))
    # A pipe gets whole values; only a terminal may fold them.
    width = None if sys.stdout.isatty() else 4096
    Console(file=sys.stdout, width=width, soft_wrap=True).print(table)


def _dig(row: Row, name: str) -> Any:
    value: Any = row
    for part in name.split("."):
        value = value.get(part, "") if isinstance(value, dict) else ""
    return value


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    return json.dumps(value, ensure_ascii=False)
