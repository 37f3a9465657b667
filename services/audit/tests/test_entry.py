"""Canonical bytes are those of RFC 8785, whatever a decision says, and a row agrees with no others."""

import datetime
import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from libs.clock import rfc3339
from libs.custody import Secret
from services.audit.entry import agrees, caveats, draft, link, personal
from services.audit.model import Decision, Head, Stored
from services.audit.tests.test_service import decision

pytestmark = pytest.mark.unit

ERASED: dict[str, Any] = {
    "salt": None, "subject_id": "", "subject_kind": "", "client_ip": "", "user_agent": "", "erased": True
}  # fmt: skip
OTHERS: tuple[dict[str, Any], ...] = (
    {}, {"action": "secret.read"}, {"action": {"secret.read": 1}}, {"action": ["secret.read", 1]}, {"action": 1}
)  # fmt: skip
PEPPER = Secret(b"p" * 32)
# All of Unicode, with what JSON escapes and what sorts otherwise in UTF-16 as often as letters.
TEXT = st.text(
    st.one_of(st.sampled_from('"\\/\b\f\n\r\t\0\x1f\x7f\u2028\ue000\uffff😀é'), st.characters(codec="utf-8"))
)
CONTEXT = st.dictionaries(TEXT, st.lists(TEXT, max_size=3), max_size=4)
TIMES = st.datetimes(timezones=st.just(datetime.UTC))
DECISIONS = st.builds(
    decision, st.integers(0, 9), chain=TEXT, object_id=TEXT, object_type=TEXT, relation=TEXT, reason=TEXT,
    correlation_id=TEXT, context=CONTEXT, occurred_at=TIMES,
    subject_id=TEXT, subject_kind=TEXT, client_ip=TEXT, user_agent=TEXT,
)  # fmt: skip


@given(DECISIONS, st.integers(1, 2**53 - 1))
def test_the_bytes_of_an_entry_are_canonical(made: Decision, seq: int) -> None:
    entry = draft(made, PEPPER)
    record = rfc8785.dumps(
        {"ip": made.client_ip, "kind": made.subject_kind, "subject_id": made.subject_id, "user_agent": made.user_agent}
    )
    assert personal(made.subject_id, made.subject_kind, made.client_ip, made.user_agent) == record
    assert json.loads(entry.context) == made.context
    (row,) = link([entry], Head(seq - 1, bytes(32)))
    assert row.canonical == rfc8785.dumps(
        {
            "chain": made.chain,
            "commitment": hashlib.sha256(entry.salt + record).hexdigest(),
            "correlation_id": made.correlation_id,
            "decision": {"caveat_context": made.context, "result": made.reason},
            "object": {"id": made.object_id, "type": made.object_type},
            "occurred_at": rfc3339(made.occurred_at),
            "reason": made.reason,
            "relation": made.relation,
            "seq": seq,
            "subject": {"pseudonym": entry.pseudonym},
            "v": 1,
        }
    )


@given(CONTEXT)
def test_a_context_is_canonical(context: dict[str, list[str]]) -> None:
    assert caveats(context).encode() == rfc8785.dumps(context)


def stored(made: Decision) -> Stored:
    (row,) = link([draft(made, PEPPER)], Head(6, bytes(32)))
    entry = row.draft
    return Stored(
        made.chain, row.seq, row.prev_hash, row.entry_hash, row.canonical, made.occurred_at, entry.pseudonym,
        made.relation, made.object_type, made.object_id, made.reason, made.correlation_id, made.context, entry.salt,
        made.subject_id, made.subject_kind, made.client_ip, made.user_agent,
    )  # fmt: skip


@given(DECISIONS)
def test_a_row_agrees_with_its_bytes_and_still_does_once_its_subject_is_erased(made: Decision) -> None:
    row = stored(made)
    assert agrees(row)
    assert agrees(replace(row, **ERASED))
    assert not agrees(replace(row, **(ERASED | {"erased": False})))


@pytest.mark.parametrize("erased", [False, True])
@pytest.mark.parametrize(
    "changed",
    [
        {"seq": 8}, {"chain": "other"}, {"relation": "x"}, {"object_type": "x"}, {"object_id": "x"}, {"reason": "x"},
        {"correlation_id": "x"}, *({"context": context} for context in OTHERS), {"pseudonym": "0" * 64},
        {"occurred_at": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)}, {"canonical": b"{}"}, {"canonical": b""},
        {"object_id": 's-0","x":"'},
    ],
)  # fmt: skip
def test_a_changed_column_does_not_agree(changed: dict[str, Any], erased: bool) -> None:  # noqa: FBT001 — a parameter
    row = stored(decision())
    if erased:
        row = replace(row, **ERASED)
    assert agrees(row)
    assert not agrees(replace(row, **changed))


@pytest.mark.parametrize(
    "changed", [{"subject_id": "x"}, {"subject_kind": "x"}, {"client_ip": "x"}, {"user_agent": "x"}]
)
def test_a_changed_personal_record_does_not_agree(changed: dict[str, Any]) -> None:
    assert not agrees(replace(stored(decision()), **changed))
    assert not agrees(replace(stored(decision()), salt=b"s" * 16))
