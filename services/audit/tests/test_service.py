"""The rules of audit."""

import datetime
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from libs.clock import FixedClock
from libs.cursor import Cursors
from libs.custody import Secret
from libs.decision import Decision as Verdict
from libs.errors import (
    AuditDiverged,
    AuditUnavailable,
    AuthzUnavailable,
    Forbidden,
    InvalidCursor,
    InvalidRequest,
    NotFound,
    PlexError,
)
from libs.principal import Principal
from services.audit.checkpoints import Checkpoints
from services.audit.entry import draft, link
from services.audit.model import PLATFORM, Decision, Draft, Filter, Head
from services.audit.proofs import Proofs
from services.audit.service import ASK_AGAIN, Audit, Request
from services.audit.tests.fakes import FakeAnchors, FakeChains, FakePeppers, FakeRelations, FakeSigner, FakeTrees
from services.audit.verification import PIECE

pytestmark = pytest.mark.unit

CHAIN = "01990000-0000-7000-8000-000000000001"
NOW = datetime.datetime(2026, 4, 15, 10, 30, tzinfo=datetime.UTC)
AUDITOR = Request(Principal("01990000-0000-7000-8000-00000000000a", "user", "session"), "corr")
OTHER = Request(Principal("01990000-0000-7000-8000-00000000000b", "user", "session"), "corr")


def decision(number: int = 0, **changed: Any) -> Decision:
    made = Decision(
        CHAIN, uuid.UUID(int=number + 1), NOW, "secret.read", "01990000-0000-7000-8000-0000000000ff", "node", "read",
        "secret", f"s-{number}", "granted", {"action": ["secret.read"]}, f"c-{number}", "10.0.0.1", "agent",
    )  # fmt: skip
    return replace(made, **changed)


@pytest.fixture
def chains() -> FakeChains:
    return FakeChains()


@pytest.fixture
def audit(chains: FakeChains) -> Audit:
    relations = FakeRelations({("audit", f"domain:{CHAIN}"), ("manage", f"domain:{CHAIN}")})
    cursors = Cursors(Secret(b"k" * 32))
    clock = FixedClock(NOW)
    checkpoints = Checkpoints("log", chains, FakeTrees(chains), FakeAnchors(), FakeSigner(), clock)
    return Audit(chains, chains, FakePeppers(), relations, Proofs(checkpoints), cursors, clock)


async def fill(audit: Audit, count: int) -> None:
    for number in range(count):
        await audit.append(decision(number))


async def test_the_same_key_is_one_row(audit: Audit) -> None:
    assert [await audit.append(decision(1)), await audit.append(decision(1)), await audit.append(decision(2))] == [
        1,
        1,
        2,
    ]


@pytest.mark.parametrize(
    "changed",
    [{name: "a\0b"} for name in ("relation", "object_id", "correlation_id", "client_ip", "user_agent")]
    + [{"context": {"a\0b": ["name"]}}, {"context": {"group": ["a\0b"]}}],
)
async def test_what_cannot_be_stored_is_refused_before_it_fails_a_batch(
    audit: Audit, chains: FakeChains, changed: dict[str, Any]
) -> None:
    with pytest.raises(InvalidRequest):
        await audit.append(decision(**changed))
    assert not chains.rows


async def test_paging_ends_although_each_page_is_recorded(audit: Audit, chains: FakeChains) -> None:
    await fill(audit, 25)
    seen, cursor, pages = [], "", 0
    while True:
        page = await audit.list(AUDITOR, CHAIN, Filter(), cursor, 10)
        seen += [row.seq for row in page.rows]
        cursor, pages = page.next_cursor, pages + 1
        if not cursor:
            break
    assert seen == list(range(25, 0, -1))
    assert pages == 3
    assert len(chains.rows[CHAIN]) == 25 + pages


async def test_a_cursor_of_another_chain_or_caller_is_invalid(audit: Audit) -> None:
    await fill(audit, 3)
    cursor = (await audit.list(AUDITOR, CHAIN, Filter(), "", 1)).next_cursor
    foreign = Request(replace(AUDITOR.principal, subject=OTHER.principal.subject))
    for request, chain, text in ((foreign, CHAIN, cursor), (AUDITOR, CHAIN, cursor[:-2] + "xx")):
        with pytest.raises(InvalidCursor):
            await audit.list(request, chain, Filter(), text, 1)


async def test_a_read_that_is_admitted_and_then_wrong_is_recorded_once(audit: Audit, chains: FakeChains) -> None:
    await fill(audit, 3)
    with pytest.raises(InvalidCursor):
        await audit.list(AUDITOR, CHAIN, Filter(), "altered", 1)
    for refused in (audit.verify(AUDITOR, CHAIN, 50, 0), audit.verify(AUDITOR, CHAIN, 3, 2)):
        with pytest.raises(InvalidRequest):
            await refused
    assert [row.context["action"][0] for row in chains.rows[CHAIN]][3:] == [
        "audit.list",
        "audit.verify",
        "audit.verify",
    ]


@dataclass
class Taken(FakeRelations):
    """Relations that are taken away, or cannot be asked, when they were asked so often."""

    asked: int = 0
    refusal: PlexError | None = None

    async def check(self, subject: str, permission: str, resource: str) -> Verdict:
        self.asked += 1
        if self.asked < 3:
            return await super().check(subject, permission, resource)
        if self.refusal:
            raise self.refusal
        return Verdict("insufficient_relation")


async def read(audit: Audit, kind: str, seen: list[object]) -> None:
    """Read a stream, between whose parts some seconds pass."""
    assert isinstance(audit.clock, FixedClock)
    stream: AsyncIterator[object] = audit.verify_stream(AUDITOR, CHAIN, 0, 0)
    if kind == "export":
        stream = (await audit.export(AUDITOR, CHAIN, 0, 0)).pieces
    async for part in stream:
        seen.append(part)
        audit.clock.advance(ASK_AGAIN.total_seconds())


@pytest.mark.parametrize("refusal", [None, AuthzUnavailable()])
@pytest.mark.parametrize("kind", ["export", "verify"])
async def test_a_stream_ends_when_its_reader_may_not_read_any_longer(
    audit: Audit, chains: FakeChains, kind: str, refusal: PlexError | None
) -> None:
    await fill(audit, 3 * PIECE)
    relations = Taken({("audit", f"domain:{CHAIN}")}, refusal=refusal)
    seen, audit = list[object](), replace(audit, relations=relations)
    with pytest.raises(AuthzUnavailable if refusal else Forbidden):
        await read(audit, kind, seen)
    # Asked when it began and once between its parts, the second time of which was too late.
    assert (len(seen), relations.asked) == (2, 3)
    assert [row.reason for row in chains.rows[CHAIN]][3 * PIECE :] == ["granted"]


async def test_a_denied_read_is_recorded_and_refused(audit: Audit, chains: FakeChains) -> None:
    await fill(audit, 1)
    bare = replace(audit, relations=FakeRelations())
    with pytest.raises(Forbidden):
        await bare.list(OTHER, CHAIN, Filter(), "", 10)
    assert [row.reason for row in chains.rows[CHAIN]] == ["granted", "out_of_scope"]


@dataclass
class Refusing(FakeChains):
    """Chains some of which may not be appended to."""

    refused: set[str] = field(default_factory=set)

    async def append(self, entry: Draft) -> int:
        if entry.decision.chain in self.refused:
            raise AuditDiverged
        return await super().append(entry)


async def test_reads_of_a_refused_chain_are_recorded_in_the_platforms(audit: Audit) -> None:
    await fill(audit, 3)
    chains = Refusing(refused={CHAIN})
    audit = replace(audit, appender=chains)
    await audit.list(AUDITOR, CHAIN, Filter(), "", 10)
    await audit.get(AUDITOR, CHAIN, 2)
    assert (await audit.verify(AUDITOR, CHAIN, 0, 0)).divergent_seq == 0
    rows = [(row.context["action"], row.object_id) for row in chains.rows[PLATFORM]]
    assert rows == [(["audit.list"], CHAIN), (["audit.get"], f"{CHAIN}/2"), (["audit.verify"], CHAIN)]
    # What takes effect, and what can be recorded nowhere, waits until the chain is what it was.
    with pytest.raises(AuditUnavailable):
        await audit.erase(AUDITOR, CHAIN, uuid.uuid4())
    chains.refused.add(PLATFORM)
    with pytest.raises(AuditUnavailable):
        await audit.list(AUDITOR, CHAIN, Filter(), "", 10)


async def test_a_domain_that_is_none_gets_no_chain(audit: Audit, chains: FakeChains) -> None:
    made_up = str(uuid.uuid4())
    with pytest.raises(Forbidden):
        await audit.list(OTHER, made_up, Filter(), "", 10)
    assert [(row.reason, row.object_id) for row in chains.rows[PLATFORM]] == [("out_of_scope", made_up)]
    assert not chains.rows[made_up]


async def test_a_missing_relation_and_a_missing_entry_answer_the_same(audit: Audit) -> None:
    await fill(audit, 1)
    with pytest.raises(NotFound) as unknown:
        await audit.get(AUDITOR, CHAIN, 99)
    with pytest.raises(NotFound) as denied:
        await replace(audit, relations=FakeRelations()).get(OTHER, CHAIN, 1)
    assert str(unknown.value) == str(denied.value)


MUTATIONS: dict[str, dict[str, Any]] = {
    "relation": {"relation": "write"},
    "object": {"object_id": "other"},
    "reason": {"reason": "unknown"},
    "time": {"occurred_at": NOW + datetime.timedelta(seconds=1)},
    "pseudonym": {"pseudonym": "0" * 64},
    "context": {"context": {}},
    "correlation": {"correlation_id": "other"},
    "canonical": {"canonical": b"{}"},
    "entry hash": {"entry_hash": bytes(32)},
    "previous hash": {"prev_hash": bytes(range(32))},
    "subject": {"subject_id": "framed"},
    "address": {"client_ip": "10.9.9.9"},
    "personal record": {"salt": None, "subject_id": "", "subject_kind": "", "client_ip": "", "user_agent": ""},
}


@pytest.mark.parametrize("name", MUTATIONS)
async def test_any_altered_part_of_a_row_is_found_at_its_sequence(audit: Audit, chains: FakeChains, name: str) -> None:
    await fill(audit, 9)
    chains.rows[CHAIN][4] = replace(chains.rows[CHAIN][4], **MUTATIONS[name])
    verdict = await audit.verify(AUDITOR, CHAIN, 0, 0)
    assert verdict.divergent_seq == 5
    assert len(verdict.expected_hash) == len(verdict.observed_hash) == 64


async def test_what_is_personal_is_in_no_repr(audit: Audit, chains: FakeChains) -> None:
    await fill(audit, 1)
    made = draft(decision(), Secret(b"p" * 32))
    request = Request(AUDITOR.principal, "corr", decision().client_ip, decision().user_agent)
    shown = f"{made} {link([made], Head(0, bytes(32)))} {chains.rows[CHAIN]} {request}"
    stored = chains.rows[CHAIN][0]
    for value in (stored.subject_id, stored.client_ip, stored.user_agent, stored.salt, made.salt):
        assert str(value) not in shown


async def test_a_deleted_and_a_truncated_row_are_found(audit: Audit, chains: FakeChains) -> None:
    await fill(audit, 9)
    head = await chains.head(CHAIN)
    del chains.rows[CHAIN][4]
    assert (await audit.verify(AUDITOR, CHAIN, 0, 0)).divergent_seq == 5
    del chains.rows[CHAIN][4:]

    class Truncated(FakeChains):
        async def head(self, chain: str) -> Any:
            return head

    # A copy, as the verification leaves a row of its own.
    short = Truncated({CHAIN: list(chains.rows[CHAIN])})
    assert (await replace(audit, store=short).verify(AUDITOR, CHAIN, 0, 0)).divergent_seq == 5


@pytest.mark.parametrize(("first", "last"), [(0, 0), (1, 5), (3, 3), (4, 99)])
async def test_an_untouched_segment_diverges_nowhere(audit: Audit, first: int, last: int) -> None:
    await fill(audit, 9)
    verdict = await audit.verify(AUDITOR, CHAIN, first, last)
    assert verdict.divergent_seq == 0
    assert 1 <= verdict.segment_from <= verdict.segment_to <= 9


async def test_an_empty_chain_is_whole_and_a_segment_beyond_the_end_is_refused(audit: Audit) -> None:
    empty = await audit.verify(AUDITOR, CHAIN, 0, 0)
    assert (empty.divergent_seq, empty.segment_from, empty.segment_to) == (0, 1, 1)
    with pytest.raises(InvalidRequest):
        await audit.verify(AUDITOR, CHAIN, 50, 0)


async def test_erasing_removes_the_person_and_leaves_the_chain_whole(audit: Audit, chains: FakeChains) -> None:
    await fill(audit, 3)
    subject = uuid.UUID(decision().subject_id)
    pseudonym, erased_at = await audit.erase(AUDITOR, CHAIN, subject)
    assert len(pseudonym) == 64
    assert all(row.subject_id != str(subject) for row in chains.rows[CHAIN])
    assert (await audit.verify(AUDITOR, CHAIN, 0, 0)).divergent_seq == 0
    again = await audit.erase(AUDITOR, CHAIN, subject)
    assert again == (pseudonym, erased_at)
    assert [row.context["action"] for row in chains.rows[CHAIN]].count(["audit.erase-identity"]) == 2
