"""What the clients of a run have sent and got that is secret: each credential, code and value, noted as it passes."""

import base64
import binascii
import json
import re
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import aiohttp

# Value to where it was seen first; a worker of a test run has one stack, and so has one of these.
SEEN: dict[bytes, str] = {}

CARRIES = re.compile(
    r"(?i)^(nsk|code|state|nonce|plaintext|assertion|password|id_token_hint|(.*_)?(token|secret|cookie|csrf|verifier"
    r"|handle|device_code|user_code))$"
)
# Called like a secret and public by contract.
PUBLIC = {"resource_handle", "binding_handle"}
# Credentials by their shape: also those that no client of the run has seen.
SHAPES = re.compile(
    rb"(?:nsk|pat|psk|pst)_[!-^`-~]{1,20}_[A-Za-z0-9_-]{32,}|psb_[a-z]+_[a-z2-7]+_(?:node|bridge)_[a-z2-7]{20,}"
    rb"|eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{20,}"
    rb"|-----BEGIN [A-Z ]*PRIVATE KEY|(?<![A-Za-z0-9])(?:hv[sb]|s)\.[A-Za-z0-9_-]{24,}"
)
UUID = re.compile(rb"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
KEY_ID = re.compile(rb"(nsk|evk|sek)_[0-9a-f]{32}")
SHORTEST, DISTINCT, LONGEST = 8, 6, 64


def note(name: str, value: bytes | str) -> None:
    """Keep a value when it is random enough to be found without false alarms."""
    raw = value.encode() if isinstance(value, str) else value
    if UUID.fullmatch(raw) or KEY_ID.fullmatch(raw) or len(raw) < SHORTEST or len(set(raw)) < DISTINCT:
        return
    # The words of the contract ("unreachable", "signed_event_bus_not_provisioned") are no secrets.
    if re.fullmatch(rb"[a-z_. -]+", raw):
        return
    SEEN.setdefault(raw[:LONGEST] if len(raw) > 16 * LONGEST else raw, name)
    _note_parts(name, raw)


def _note_parts(name: str, raw: bytes) -> None:
    # What opens something is the random part; it may lie about without its prefix, or as the bytes that it writes.
    random_part = raw.rpartition(b".")[2] if raw.startswith(b"eyJ") else raw
    if re.match(rb"(nsk|pat|psk|pst)_", raw):
        random_part = raw.split(b"_", 2)[-1]
    elif raw.startswith(b"psb_"):
        random_part = raw.rpartition(b"_")[2]
    if len(set(random_part)) < DISTINCT:  # made up by a test: a letter, repeated
        return
    if len(random_part) >= 2 * SHORTEST:
        SEEN.setdefault(random_part, name)
    if re.fullmatch(rb"[A-Za-z0-9_+/-]{32,}={0,2}", random_part):
        try:
            decoded = base64.b64decode(random_part + b"=" * (-len(random_part) % 4), altchars=b"-_")
        except binascii.Error:
            return
        if len(decoded) >= 2 * SHORTEST and len(set(decoded)) >= DISTINCT:
            # Of a node bearer the key alone: the node's id before it is public.
            SEEN.setdefault(decoded[16:] if raw.startswith(b"nsk_") else decoded, name)


def note_text(name: str, text: bytes) -> None:
    """Keep what has the shape of a credential."""
    for found in SHAPES.findall(text):
        note(name, found)


def note_json(name: str, value: Any) -> None:
    """Keep what a JSON document's keys call secret."""
    if isinstance(value, list):
        for inner in value:
            note_json(name, inner)
    elif isinstance(value, dict):
        problem = "correlation_id" in value and "status" in value
        for key, inner in value.items():
            if isinstance(inner, str) and CARRIES.match(key) and key not in PUBLIC and not (problem and key == "code"):
                note(f"{key} of {name}", inner)
            else:
                note_json(name, inner)


def note_url(name: str, url: str) -> None:
    """Keep what a URL's query carries."""
    for key, value in parse_qsl(urlsplit(url).query):
        if CARRIES.match(key):
            note(f"{key} in the query of {name}", value)
        elif value.startswith("http"):
            note_url(name, value)


def note_body(name: str, content: bytes, kind: str) -> None:
    """Keep what a body carries: a secret's value whole, of JSON and forms what their keys call secret."""
    if kind == "application/octet-stream":
        note(f"value of {name}", content)
    elif kind == "application/x-www-form-urlencoded":
        note_json(name, dict(parse_qsl(content.decode(errors="replace"))))
    elif content[:1] in {b"{", b"["}:
        try:
            note_json(name, json.loads(content))
        except (ValueError, RecursionError):
            return
        for url in re.findall(rb'"(https?://[^"]*\?[^"]*)"', content):
            note_url(name, url.decode(errors="replace"))


def note_headers(name: str, headers: Any) -> None:
    """Keep bearers, cookies and CSRF tokens, sent or set."""
    for key, value in headers.items():
        match key.lower():
            case "authorization":
                note(f"bearer of {name}", value.partition(" ")[2])
            case "cookie":
                for pair in value.split("; "):
                    note(f"cookie of {name}", pair.partition("=")[2])
            case "set-cookie":
                note(f"cookie of {name}", value.partition(";")[0].partition("=")[2])
            case "x-plexsphere-csrf":
                note(f"CSRF token of {name}", value)
            case "location":
                note_url(name, value)


async def _started(_: Any, context: SimpleNamespace, request: aiohttp.TraceRequestStartParams) -> None:
    context.name = f"{request.method} {request.url.path}"
    context.kind = request.headers.get("Content-Type", "").partition(";")[0]
    note_headers(context.name, request.headers)
    note_url(context.name, str(request.url))


async def _sent(_: Any, context: SimpleNamespace, request: aiohttp.TraceRequestChunkSentParams) -> None:
    kind = context.kind or ("application/x-www-form-urlencoded" if b"=" in request.chunk[:64] else "")
    note_body(context.name, bytes(request.chunk), kind)


async def _received(_: Any, context: SimpleNamespace, answer: aiohttp.TraceResponseChunkReceivedParams) -> None:
    note_body(context.name, answer.chunk, "")


async def _ended(_: Any, context: SimpleNamespace, ended: aiohttp.TraceRequestEndParams) -> None:
    note_headers(context.name, ended.response.headers)


def recorder() -> aiohttp.TraceConfig:
    """Return what notes everything that passes a session."""
    config = aiohttp.TraceConfig()
    config.on_request_start.append(_started)
    config.on_request_chunk_sent.append(_sent)
    config.on_response_chunk_received.append(_received)
    config.on_request_end.append(_ended)
    return config
