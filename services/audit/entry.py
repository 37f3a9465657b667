"""How a decision becomes bytes and a hash, and how a stored row is held against them.

Canonical bytes are RFC 8785. What is written here has members of known names, so it is written in their order and not
sorted each time; Python escapes strings as RFC 8785 3.2.2.2 does.
"""

import datetime
import functools
import hashlib
import hmac
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from json.encoder import encode_basestring as quoted

from libs.chain import entry_hash
from libs.clock import rfc3339
from libs.custody import Secret
from services.audit.model import Decision, Draft, Head, Piece, Row, Stored

VERSION = 1
SALT_BYTES, HEX = 16, 64
COMMITTED = b',"commitment":"'
# The columns of a piece that are of the personal record.
PERSONAL = slice(Piece._fields.index("salt"), None)


def pseudonym(pepper: Secret, kind: str, subject_id: str) -> str:
    """Return the subject's pseudonym: HMAC-SHA256 (RFC 2104) under the Domain's pepper."""
    return hmac.digest(pepper.reveal(), f"{kind}:{subject_id}".encode(), hashlib.sha256).hex()


def personal(subject_id: str, kind: str, ip: str, user_agent: str) -> bytes:
    """Return the canonical bytes of a personal record (RFC 8785)."""
    return (
        f'{{"ip":{quoted(ip)},"kind":{quoted(kind)},'
        f'"subject_id":{quoted(subject_id)},"user_agent":{quoted(user_agent)}}}'
    ).encode()


def commitment(salt: bytes, record: bytes) -> str:
    """Return what the chain holds of a personal record: a salted SHA-256, nothing without the salt."""
    return hashlib.sha256(salt + record).hexdigest()


def caveats(context: Mapping[str, Sequence[str]]) -> str:
    """Return the canonical text of a caveat context; raises TypeError for what is none."""
    # RFC 8785 3.2.3 sorts by UTF-16; names are ASCII nearly always.
    ascii_only = "".join(context).isascii()
    groups = sorted(context.items(), key=None if ascii_only else lambda group: group[0].encode("utf-16-be"))
    return "{" + ",".join(f"{quoted(name)}:{_list(names)}" for name, names in groups) + "}"


def _list(names: Sequence[str]) -> str:
    # What else has parts, such as a text, is stored by nobody but who altered it.
    if not isinstance(names, list):
        raise TypeError("a group is not a list")
    return f"[{','.join(map(quoted, names))}]"


def around(
    chain: str,
    occurred_at: datetime.datetime,
    name: str,
    relation: str,
    object_type: str,
    object_id: str,
    reason: str,
    correlation_id: str,
    context: str,
    committed: str,
) -> tuple[str, str]:
    """Return the canonical text before an entry's sequence and after it; it holds no personal data."""
    result = quoted(reason)
    return (
        f'{{"chain":{quoted(chain)},"commitment":"{committed}","correlation_id":{quoted(correlation_id)},'
        f'"decision":{{"caveat_context":{context},"result":{result}}},'
        f'"object":{{"id":{quoted(object_id)},"type":{quoted(object_type)}}},'
        f'"occurred_at":"{rfc3339(occurred_at)}","reason":{result},"relation":{quoted(relation)},"seq":'
    ), f',"subject":{{"pseudonym":"{name}"}},"v":{VERSION}}}'


def texts(decision: Decision) -> Iterator[str]:
    """Yield every text of a decision that somebody else chose."""
    yield from (decision.relation, decision.object_type, decision.object_id, decision.correlation_id)
    yield from (decision.subject_id, decision.client_ip, decision.user_agent)
    for group, names in decision.context.items():
        yield from (group, *names)


def draft(decision: Decision, pepper: Secret) -> Draft:
    """Do all of an entry that does not depend on its place."""
    salt = os.urandom(SALT_BYTES)
    record = personal(decision.subject_id, decision.subject_kind, decision.client_ip, decision.user_agent)
    name, context = pseudonym(pepper, decision.subject_kind, decision.subject_id), caveats(decision.context)
    before, after = around(
        decision.chain, decision.occurred_at, name, decision.relation, decision.object_type, decision.object_id,
        decision.reason, decision.correlation_id, context, commitment(salt, record),
    )  # fmt: skip
    return Draft(decision, name, salt, context, before.encode(), after.encode())


def link(drafts: Iterable[Draft], head: Head) -> list[Row]:
    """Chain drafts onto a head."""
    rows = []
    for entry in drafts:
        content = b"%b%d%b" % (entry.before_seq, head.seq + 1, entry.after_seq)
        head_after = Head(head.seq + 1, entry_hash(head.entry_hash, hashlib.sha256(content).digest()))
        rows.append(Row(entry, head_after.seq, head.entry_hash, head_after.entry_hash, content))
        head = head_after
    return rows


def _committed(piece: Piece) -> list[str]:
    """Return what entries say of their personal records: of those that are there, else what is said of erased ones."""
    return [
        commitment(salt, personal(subject_id, kind, ip, agent))
        if salt is not None
        else _said(content)
        if erased
        else ""
        for salt, subject_id, kind, ip, agent, erased, content in zip(*piece[PERSONAL], piece.canonical, strict=True)
    ]


def _said(content: bytes) -> str:
    begin = content.find(COMMITTED) + len(COMMITTED)
    return content[begin : begin + HEX].decode("latin-1")


@functools.lru_cache(maxsize=4096)
def canonical_context(text: str) -> str:
    """Return the canonical text of a context as the database has it; empty for what is none."""
    try:
        return caveats(json.loads(text))
    except (ValueError, TypeError, AttributeError, RecursionError):
        return ""


def agree(piece: Piece) -> bool:
    """Say whether the columns of rows, and their personal records unless they were erased, match their bytes."""
    texts = map(
        around, piece.chain, piece.occurred_at, piece.pseudonym, piece.relation, piece.object_type, piece.object_id,
        piece.reason, piece.correlation_id, map(canonical_context, piece.context), _committed(piece),
    )  # fmt: skip
    whole = [f"{before}{seq}{after}".encode() for (before, after), seq in zip(texts, piece.seq, strict=True)]
    return whole == list(piece.canonical)


def agrees(row: Stored) -> bool:
    """Say the same of one row."""
    return agree(Piece.of([row]))
