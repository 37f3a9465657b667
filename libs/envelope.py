"""The signed event envelope: its canonical bytes, and a strict verifier.

Signed are six members in a fixed order as Go's encoder writes them; Ed25519 (RFC 8032) through libsodium, which refuses
keys and signatures of small order and malleable ones. Where the published agent is lenient (duplicate members, names in
another case, loose base64), this refuses.
"""

import base64
import datetime
import re
import string
from dataclasses import dataclass

from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

from libs.canon import DEEPEST, NotJson, compact, decode, encode, members

SIGNED = ("id", "type", "scope", "key_id", "issued_at", "payload")
FORM = b'{"id":%b,"type":%b,"scope":%b,"key_id":%b,"issued_at":%b,"payload":%b}'
KNOWN = frozenset({*SIGNED, "signature"})
WINDOW_NS = 5 * 60 * 1_000_000_000
# The published agent's line buffer ends at 65,535 bytes, and it would loop for ever on a longer line.
LARGEST = 60_000
KEY_BYTES = 32
SIGNATURE_BYTES = 64
SIGNATURE = re.compile(r"[A-Za-z0-9+/]{85}[AQgw]==")
TIME = re.compile(r"((\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d))(?:\.(\d+))?(?:Z|([+-])(\d\d):(\d\d))", re.ASCII)
EPOCH_DAY = datetime.date(1970, 1, 1).toordinal()
# Go's zero time, which its decoder leaves when there is none.
ZERO_NS = (1 - EPOCH_DAY) * 86_400 * 1_000_000_000
# As Go folds names: the letters of ASCII, the long s and the Kelvin sign, and no more ("ß" is not "ss").
FOLD = str.maketrans(string.ascii_uppercase + "\u017f\u212a", string.ascii_lowercase + "sk")
# Go 1.22 and later sign them as short escapes, older ones do not: never to be signed.
UNSTABLE = ("\b", "\f")


class EnvelopeRefused(Exception):
    """An envelope that is not believed; `reason` is a label, `canonical` what was built before the refusal."""

    def __init__(self, reason: str, canonical: bytes | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.canonical = canonical


@dataclass(frozen=True)
class Envelope:
    """A parsed envelope; `payload` is compact JSON text, `issued_ns` nanoseconds since 1970."""

    id: str
    type: str
    scope: str
    key_id: str
    issued_at: str
    issued_ns: int
    payload: bytes
    signature: str

    def canonical(self) -> bytes:
        """Return the signed bytes."""
        return canonical(self.id, self.type, self.scope, self.key_id, self.issued_at, self.payload)


@dataclass(frozen=True)
class Trust:
    """The keys of a Domain; the previous one counts strictly before its transition ends."""

    key_id: str
    key: bytes
    previous_key_id: str = ""
    previous_key: bytes = b""
    transition_expires_ns: int = 0

    def pick(self, key_id: str, now_ns: int) -> bytes:
        """Return the key with this id that is valid now; nothing when there is none."""
        if key_id and key_id == self.key_id:
            return self.key
        if key_id and key_id == self.previous_key_id and now_ns < self.transition_expires_ns:
            return self.previous_key
        return b""


def canonical(identifier: str, kind: str, scope: str, key_id: str, issued_at: str, payload: bytes) -> bytes:
    """Return the bytes that are signed, from members as they go into them; `payload` is compact JSON text."""
    values = (encode(identifier), encode(kind), encode(scope), encode(key_id), encode(issued_at), payload)
    return FORM % values


def build(identifier: str, kind: str, scope: str, key_id: str, issued_at: str, payload: bytes) -> bytes:
    """Return the bytes to sign for a new event; raises EnvelopeRefused for what a strict receiver may refuse."""
    texts = (identifier, kind, scope, key_id)
    if not (identifier and kind and key_id):
        raise EnvelopeRefused("missing_member")
    if any(char in text for text in texts for char in UNSTABLE):
        raise EnvelopeRefused("unstable_member")
    try:
        issued_ns, written = instant(issued_at)
    except ValueError:
        raise EnvelopeRefused("issued_at") from None
    if written != issued_at or not written.endswith("Z") or issued_ns == ZERO_NS:
        raise EnvelopeRefused("issued_at")
    try:
        payload.decode()
        # One level is the envelope's own.
        value = compact(payload, DEEPEST - 1)
    except (NotJson, UnicodeDecodeError):
        raise EnvelopeRefused("payload") from None
    try:
        return canonical(*texts, issued_at, value)
    except NotJson:
        raise EnvelopeRefused("member_text") from None


def assemble(signed: bytes, signature: bytes) -> bytes:
    """Return an envelope's wire text; raises EnvelopeRefused over 60,000 bytes."""
    if len(signature) != SIGNATURE_BYTES:
        raise EnvelopeRefused("signature_form")
    wire = signed[:-1] + b',"signature":"' + base64.b64encode(signature) + b'"}'
    if len(wire) > LARGEST:
        raise EnvelopeRefused("too_long")
    return wire


def instant(text: str) -> tuple[int, str]:
    """Return nanoseconds since 1970 and the canonical text of a time (RFC 3339, 5.6); raises ValueError.

    As Go writes it: at most nine fraction digits, trailing zeros trimmed, a zero offset as Z and others kept.
    """
    match = TIME.fullmatch(text)
    if match is None:
        raise ValueError("not an RFC 3339 time")
    whole, year, month, day, hour, minute, second, fraction, sign, off_hour, off_minute = match.groups()
    # The constructors hold the fields to their ranges; none knows hour 24 or a leap second.
    clock = datetime.time(int(hour), int(minute), int(second))
    off = datetime.time(int(off_hour or 0), int(off_minute or 0))
    offset = (off.hour * 60 + off.minute) * (-60 if sign == "-" else 60)
    days = datetime.date(int(year), int(month), int(day)).toordinal() - EPOCH_DAY
    seconds = days * 86_400 + (clock.hour * 60 + clock.minute) * 60 + clock.second - offset
    digits = (fraction or "")[:9]
    trimmed = digits.rstrip("0")
    zone = f"{sign}{off_hour}:{off_minute}" if offset else "Z"
    return seconds * 1_000_000_000 + int(digits.ljust(9, "0")), whole + (f".{trimmed}" if trimmed else "") + zone


def parse(wire: bytes) -> Envelope:
    """Read an envelope strictly; unknown members are ignored and never acted on. Raises EnvelopeRefused."""
    try:
        pairs = members(wire)
    except NotJson:
        raise EnvelopeRefused("parse") from None
    found: dict[str, bytes] = {}
    for name, value in pairs:
        if name in found:
            raise EnvelopeRefused("duplicate_member")
        if name not in KNOWN and name.translate(FOLD) in KNOWN:
            raise EnvelopeRefused("folded_member")
        found[name] = value
    texts = {name: _text(found.get(name, b"null")) for name in ("id", "type", "scope", "key_id", "signature")}
    if not texts["id"] or not texts["type"]:
        raise EnvelopeRefused("missing_member")
    if not texts["signature"]:
        raise EnvelopeRefused("missing_signature")
    issued_ns, issued_at = _issued(found.get("issued_at", b"null"))
    payload = found.get("payload", b"null")
    return Envelope(**texts, issued_at=issued_at, issued_ns=issued_ns, payload=payload)


def _text(value: bytes) -> str:
    if value == b"null":
        return ""
    if not value.startswith(b'"'):
        raise EnvelopeRefused("member_type")
    return decode(value)


def _issued(value: bytes) -> tuple[int, str]:
    if value == b"null":
        raise EnvelopeRefused("missing_issued_at")
    try:
        # Read as it is written: an escape inside a time is refused.
        issued_ns, issued_at = instant(value[1:-1].decode("ascii") if value.startswith(b'"') else "")
    except ValueError:
        raise EnvelopeRefused("issued_at") from None
    if issued_ns == ZERO_NS:
        raise EnvelopeRefused("missing_issued_at")
    return issued_ns, issued_at


def verify(wire: bytes, trust: Trust, now_ns: int) -> Envelope:
    """Return the envelope when it is fresh and signed by a valid key; raises EnvelopeRefused with the reason.

    Cheap checks first: form, age, key, and the signature last.
    """
    return authenticate(parse(wire), trust, now_ns)


def authenticate(envelope: Envelope, trust: Trust, now_ns: int) -> Envelope:
    """Return a parsed envelope when it is fresh and signed by a valid key; raises EnvelopeRefused with the reason."""
    signed = envelope.canonical()
    age = now_ns - envelope.issued_ns
    if abs(age) > WINDOW_NS:
        raise EnvelopeRefused("stale" if age > 0 else "future", signed)
    key = trust.pick(envelope.key_id, now_ns)
    if len(key) != KEY_BYTES:
        raise EnvelopeRefused("unknown_key", signed)
    if not SIGNATURE.fullmatch(envelope.signature):
        raise EnvelopeRefused("signature_form", signed)
    try:
        VerifyKey(key).verify(signed, base64.b64decode(envelope.signature))
    except BadSignatureError:
        raise EnvelopeRefused("signature", signed) from None
    return envelope
