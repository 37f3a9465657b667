"""How a decision becomes bytes and a hash, and how a stored row is held against them."""

import hashlib
import hmac
import json
import os
from collections.abc import Iterable

import rfc8785

from libs.chain import entry_hash
from libs.clock import rfc3339
from libs.custody import Secret
from services.audit.model import Decision, Draft, Head, Row, Stored

VERSION = 1
SALT_BYTES = 16


def pseudonym(pepper: Secret, kind: str, subject_id: str) -> str:
    """Return the subject's pseudonym: HMAC-SHA256 (RFC 2104) under the Domain's pepper."""
    return hmac.digest(pepper.reveal(), f"{kind}:{subject_id}".encode(), hashlib.sha256).hex()


def personal(subject_id: str, kind: str, ip: str, user_agent: str) -> bytes:
    """Return the canonical bytes of a personal record (RFC 8785)."""
    return rfc8785.dumps({"ip": ip, "kind": kind, "subject_id": subject_id, "user_agent": user_agent})


def commitment(salt: bytes, record: bytes) -> str:
    """Return what the chain holds of a personal record: a salted SHA-256, nothing without the salt."""
    return hashlib.sha256(salt + record).hexdigest()


def draft(decision: Decision, pepper: Secret) -> Draft:
    """Do all of an entry that does not depend on its place."""
    salt = os.urandom(SALT_BYTES)
    record = personal(decision.subject_id, decision.subject_kind, decision.client_ip, decision.user_agent)
    name = pseudonym(pepper, decision.subject_kind, decision.subject_id)
    return Draft(decision, name, salt, commitment(salt, record))


def canonical(entry: Draft, seq: int) -> bytes:
    """Return the bytes that are hashed (RFC 8785); they hold no personal data."""
    decision = entry.decision
    return rfc8785.dumps(
        {
            "chain": decision.chain,
            "commitment": entry.commitment,
            "correlation_id": decision.correlation_id,
            "decision": {"caveat_context": decision.context, "result": decision.reason},
            "object": {"id": decision.object_id, "type": decision.object_type},
            "occurred_at": rfc3339(decision.occurred_at),
            "reason": decision.reason,
            "relation": decision.relation,
            "seq": seq,
            "subject": {"pseudonym": entry.pseudonym},
            "v": VERSION,
        }
    )


def link(drafts: Iterable[Draft], head: Head) -> list[Row]:
    """Chain drafts onto a head."""
    rows = []
    for entry in drafts:
        content = canonical(entry, head.seq + 1)
        head_after = Head(head.seq + 1, entry_hash(head.entry_hash, hashlib.sha256(content).digest()))
        rows.append(Row(entry, head_after.seq, head.entry_hash, head_after.entry_hash, content))
        head = head_after
    return rows


def agrees(row: Stored) -> bool:
    """Say whether the columns of a row, and its personal record unless it was erased, match its canonical bytes."""
    try:
        content = json.loads(row.canonical)
    except (ValueError, RecursionError):
        return False
    if not isinstance(content, dict):
        return False
    shown = {
        "chain": row.chain,
        "commitment": content.get("commitment"),
        "correlation_id": row.correlation_id,
        "decision": {"caveat_context": row.context, "result": row.reason},
        "object": {"id": row.object_id, "type": row.object_type},
        "occurred_at": rfc3339(row.occurred_at),
        "reason": row.reason,
        "relation": row.relation,
        "seq": row.seq,
        "subject": {"pseudonym": row.pseudonym},
        "v": VERSION,
    }
    if shown != content:
        return False
    if row.salt is None:
        return row.erased
    record = personal(row.subject_id, row.subject_kind, row.client_ip, row.user_agent)
    return commitment(row.salt, record) == str(content["commitment"])
