"""JSON text as Go's encoder writes it: compact, HTML-safe, everything else kept as it was written.

The envelope is signed over such text, so numbers, key order and escapes of a payload must survive untouched. This works
on bytes, in one pass and without recursion.
"""

import codecs
import re
from collections.abc import Iterator

DEEPEST = 10_000
TOKEN = re.compile(
    rb"""[ \t\r\n]*+(?:
    (?P<string>"(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+")
    |(?P<scalar>-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?|true|false|null)
    |(?P<punctuation>[{}\[\]:,])
    |(?P<end>\Z)
    )""",
    re.VERBOSE,
)
ESCAPE = re.compile(rb'\\(?:u([0-9a-fA-F]{4})|(["\\/bfnrt]))')
SHORT = {b"b": "\b", b"f": "\f", b"n": "\n", b"r": "\r", b"t": "\t", b'"': '"', b"\\": "\\", b"/": "/"}
UNSAFE = re.compile(rb"[<>&]|\xe2\x80[\xa8\xa9]")
SAFE = {
    b"<": b"\\u003c",
    b">": b"\\u003e",
    b"&": b"\\u0026",
    b"\xe2\x80\xa8": b"\\u2028",
    b"\xe2\x80\xa9": b"\\u2029",
}
WRITTEN = {
    **{chr(code): f"\\u{code:04x}" for code in range(0x20)},
    "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", '"': '\\"', "\\": "\\\\",
    "<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029",
}  # fmt: skip
WRITE = str.maketrans(WRITTEN)
REPLACEMENT = "\ufffd"


class NotJson(ValueError):
    """Text that is not one JSON value (RFC 8259)."""


# Go replaces each byte that is not UTF-8 by itself; Python's own handler would replace runs of them.
codecs.register_error("each-byte", lambda error: (REPLACEMENT, error.start + 1))  # type: ignore[attr-defined]


def tokens(text: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield kind and text of each token, the grammar checked, whitespace dropped; raises NotJson."""
    at, stack, want = 0, bytearray(), "value"
    while True:
        match = TOKEN.match(text, at)
        if match is None:
            raise NotJson("not a token")
        at = match.end()
        kind, token = match.lastgroup or "", match[match.lastgroup or 0]
        if kind == "end":
            if want != "end":
                raise NotJson("the text ends too early")
            return
        want = _step(kind, token, stack, want)
        yield kind, token


def _step(kind: str, token: bytes, stack: bytearray, want: str) -> str:
    """Return what may follow a token, given what was wanted and what is open."""
    if kind != "punctuation":
        if want in {"name", "name or }"} and kind == "string":
            return ":"
        if want in {"value", "value or ]"}:
            return _after(stack)
    elif token in b"{[":
        if want in {"value", "value or ]"}:
            stack += token
            if len(stack) > DEEPEST:
                raise NotJson("nested too deep")
            return "name or }" if token == b"{" else "value or ]"
    elif token in b"}]":
        fits = want in ({"name or }", "more"} if token == b"}" else {"value or ]", "more"})
        if fits and stack and bytes(stack[-1:]) == (b"{" if token == b"}" else b"["):
            stack.pop()
            return _after(stack)
    elif token == b":" and want == ":":
        return "value"
    elif token == b"," and want == "more":
        return "name" if stack[-1:] == b"{" else "value"
    raise NotJson("a token where it may not be")


def _after(stack: bytearray) -> str:
    return "more" if stack else "end"


def compact(text: bytes) -> bytes:
    """Return a JSON value without whitespace and HTML-safe, otherwise as it was written; raises NotJson."""
    return b"".join(html_safe(token) if kind == "string" else token for kind, token in tokens(text))


def html_safe(token: bytes) -> bytes:
    """Escape what Go's encoder escapes inside a string: <, >, &, U+2028 and U+2029."""
    return UNSAFE.sub(lambda match: SAFE[match[0]], token)


def members(text: bytes) -> list[tuple[str, bytes]]:
    """Return the members of a JSON object in order, values compact; raises NotJson for anything else."""
    found: list[tuple[str, bytes]] = []
    depth, name, value = 0, None, bytearray()
    for kind, token in tokens(text):
        if depth == 0:
            if token != b"{":
                raise NotJson("not an object")
            depth = 1
            continue
        if depth == 1 and token in {b",", b"}"} and name is not None:
            found.append((name, bytes(value)))
            name, value = None, bytearray()
        elif depth == 1 and name is None and kind == "string":
            name = decode(token)
            continue
        elif depth > 1 or token != b":":
            value += html_safe(token) if kind == "string" else token
        if kind == "punctuation":
            depth += (token in b"{[") - (token in b"}]")
    return found


def decode(token: bytes) -> str:
    """Return the text of a JSON string as Go decodes it: what is not Unicode becomes U+FFFD."""
    parts: list[str] = []
    at = 0
    units: list[int] = []

    def flush() -> None:
        if units:
            raw = b"".join(unit.to_bytes(2, "big") for unit in units)
            parts.append(raw.decode("utf-16-be", errors="surrogatepass"))
            units.clear()

    body = token[1:-1]
    for match in ESCAPE.finditer(body):
        if match.start() > at:
            flush()
            parts.append(body[at : match.start()].decode("utf-8", errors="each-byte"))
        if match[1]:
            units.append(int(match[1], 16))
        else:
            flush()
            parts.append(SHORT[match[2]])
        at = match.end()
    flush()
    parts.append(body[at:].decode("utf-8", errors="each-byte"))
    return "".join(REPLACEMENT if "\ud800" <= char <= "\udfff" else char for part in parts for char in part)


def encode(text: str) -> bytes:
    """Return a JSON string as Go's encoder writes it."""
    return b'"' + text.translate(WRITE).encode() + b'"'
