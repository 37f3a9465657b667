"""JSON text as Go's encoder writes it, and canonical JSON (RFC 8785).

The envelope is signed over Go's compact, HTML-safe form of text that was written by somebody else, so numbers, key
order and escapes of a payload must survive untouched: this works on the bytes, in one pass and without recursion.
"""

import codecs
import json
import re
from typing import Any

import rfc8785

# As Go's decoder: the outermost object counts as one.
DEEPEST = 10_000
WHITESPACE = b" \t\r\n"
GOOD = (
    rb'"(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+"'
    rb"|-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?"
    rb"|true|false|null|[{}\[\]:,]|[ \t\r\n]++"
)
WHOLE = re.compile(GOOD)
# What is no token swallows the rest: to go on after it would make an unclosed string cost a scan for each quote in it.
TOKEN = re.compile(GOOD + rb"|(?s:.+)")
UNSAFE = (
    (b"<", rb"\u003c"),
    (b">", rb"\u003e"),
    (b"&", rb"\u0026"),
    (b"\xe2\x80\xa8", rb"\u2028"),
    (b"\xe2\x80\xa9", rb"\u2029"),
)
SURROGATE = re.compile("[\ud800-\udfff]")
REPLACEMENT = "\ufffd"

# What may follow what: from each state, the state after a token by its first byte; closing returns to the state that
# the opening one pushed.
NAME, VALUE, CLOSE = b'"', b'"{[-0123456789tfn', b"}]"
NEXT: dict[str, dict[int, str]] = {
    "top": dict.fromkeys(VALUE, "end"),
    "end": {},
    "object": dict.fromkeys(NAME, "name") | {b"}"[0]: ""},
    "name": {b":"[0]: "colon"},
    "colon": dict.fromkeys(VALUE, "member"),
    "member": {b","[0]: "next member", b"}"[0]: ""},
    "next member": dict.fromkeys(NAME, "name"),
    "array": dict.fromkeys(VALUE, "item") | {b"]"[0]: ""},
    "item": {b","[0]: "next item", b"]"[0]: ""},
    "next item": dict.fromkeys(VALUE, "item"),
}
OPEN = {b"{"[0]: "object", b"["[0]: "array"}


class NotJson(ValueError):
    """Text that is not one JSON value (RFC 8259), or that has no canonical form."""


# Go replaces each byte that is not UTF-8 by itself; Python's own handler would replace runs of them.
codecs.register_error("each-byte", lambda error: (REPLACEMENT, error.start + 1))  # type: ignore[attr-defined]


def _tokens(text: bytes) -> list[bytes]:
    """Return the tokens without whitespace; raises NotJson for what is none."""
    found: list[bytes] = TOKEN.findall(text)
    if not found or not WHOLE.fullmatch(found[-1]):
        raise NotJson("not a token")
    return [token for token in found if token[0] not in WHITESPACE]


def _check(tokens: list[bytes], deepest: int) -> list[int]:
    """Hold tokens to the grammar; returns where the outermost value has its colons, commas and end. Raises NotJson."""
    state, outer, marks = "top", list[str](), list[int]()
    for at, token in enumerate(tokens):
        first = token[0]
        follows = NEXT[state].get(first)
        if follows is None:
            raise NotJson("a token where it may not be")
        if first in OPEN:
            outer.append(follows)
            if len(outer) > deepest:
                raise NotJson("nested too deep")
            state = OPEN[first]
            continue
        if len(outer) == 1 and first in b":,}]":
            marks.append(at)
        state = outer.pop() if first in CLOSE else follows
    if state != "end":
        raise NotJson("the text ends too early")
    return marks


def compact(text: bytes, deepest: int = DEEPEST) -> bytes:
    """Return a JSON value without whitespace and HTML-safe, otherwise as it was written; raises NotJson."""
    tokens = _tokens(text)
    _check(tokens, deepest)
    return html_safe(b"".join(tokens))


def html_safe(text: bytes) -> bytes:
    """Escape what Go's encoder escapes inside strings: <, >, &, U+2028 and U+2029; none may stand outside of them."""
    for raw, escaped in UNSAFE:
        text = text.replace(raw, escaped)
    return text


def members(text: bytes) -> list[tuple[str, bytes]]:
    """Return the members of a JSON object in order, values as `compact` writes them; raises NotJson for others."""
    tokens = _tokens(text)
    marks = _check(tokens, DEEPEST)
    if tokens[0] != b"{":
        raise NotJson("not an object")
    return [
        (decode(tokens[colon - 1]), html_safe(b"".join(tokens[colon + 1 : end])))
        for colon, end in zip(marks[::2], marks[1::2], strict=False)  # `{}` has only its end
    ]


def decode(token: bytes) -> str:
    """Return the text of a JSON string as Go decodes it: what is not Unicode becomes U+FFFD."""
    text: str = json.loads(token.decode(errors="each-byte"))
    return SURROGATE.sub(REPLACEMENT, text)


def encode(text: str) -> bytes:
    """Return a JSON string as Go's encoder (1.22 and later) writes it; raises NotJson for a lone surrogate."""
    try:
        return html_safe(json.dumps(text, ensure_ascii=False).encode())
    except UnicodeEncodeError:
        raise NotJson("not Unicode") from None


def jcs(value: Any) -> bytes:
    """Return canonical JSON (RFC 8785); raises NotJson for what has none: NaN, integers beyond 2^53, other types."""
    try:
        return rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, UnicodeError, RecursionError) as error:
        raise NotJson(type(error).__name__) from None
