"""The documentation page: one self-contained HTML file rendered from the document, without a script."""

import base64
import hashlib
from html import escape
from typing import Any

from services.gateway.document import JSON, METHODS

STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1f24}"
    "code{font:14px ui-monospace,monospace}summary{cursor:pointer;padding:.3rem 0}"
    "b{display:inline-block;width:4.5rem}i{color:#57606a}table{border-collapse:collapse}"
    "td{padding:.1rem 1rem .1rem 0;vertical-align:top}"
    "@media(prefers-color-scheme:dark){body{background:#0d1117;color:#e6edf3}i{color:#9198a1}}"
)
STYLE_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
NOWHERE = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
POLICY = f"default-src 'none'; style-src 'sha256-{STYLE_HASH}'; {NOWHERE}"


def render(document: JSON) -> str:
    """Return the page."""
    title = escape(document["info"]["title"])
    sections = [
        section(path, method, methods[method])
        for path, methods in sorted(document["paths"].items())
        for method in METHODS
        if method in methods
    ]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width">'
        f"<style>{STYLE}</style><h1>{title}</h1>"
        '<p>The machine-readable form is <a href="/v1/openapi.json">/v1/openapi.json</a>.</p>'
        f"{''.join(sections)}</html>"
    )


def section(path: str, method: str, operation: JSON) -> str:
    """Return one operation."""
    own = " <i>extension</i>" if operation.get("x-extension") else ""
    rows = [("Operation", operation["operationId"])]
    if "summary" in operation:
        rows.append(("Purpose", operation["summary"]))
    rows += [("Body", f"{kind}: {name(content)}") for kind, content in _content(operation.get("requestBody"))]
    for status, response in sorted(operation["responses"].items()):
        kinds = ", ".join(f"{kind}: {name(content)}" for kind, content in _content(response))
        rows.append((status, kinds or response.get("description", "")))
    table = "".join(f"<tr><td>{escape(left)}<td><code>{escape(right)}</code>" for left, right in rows)
    head = f"<b>{method.upper()}</b><code>{escape(path)}</code>{own}"
    return f"<details><summary>{head}</summary><table>{table}</table></details>"


def name(content: JSON) -> str:
    """Return the name of a schema, or what kind of value it is."""
    schema = content["schema"]
    return str(schema["$ref"]).rsplit("/", 1)[-1] if "$ref" in schema else str(schema.get("type", "any"))


def _content(holder: Any) -> list[tuple[str, JSON]]:
    return list((holder or {}).get("content", {}).items())
