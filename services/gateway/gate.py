"""The five-port gate in front of a node's events: all five, or 501; never half on.

A port is absent when the deployment does not provide it. One that is provided but cannot be reached is not absent: its
methods raise Unavailable, which is 503, because published agents stop for good or slow down on anything else.
"""

import asyncio
import hashlib
import re
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from libs import envelope
from libs.envelope import Envelope, EnvelopeRefused, Trust
from libs.errors import BusNotProvisioned, Forbidden, NotFound
from libs.ids import parse_uuid
from libs.telemetry import VERIFIED
from services.gateway.patience import Patience
from services.gateway.ports import (
    EventStream,
    Message,
    NodeRepo,
    NonceStore,
    Place,
    Ports,
    Published,
    RelationChecker,
    Seen,
    SignatureVerifier,
    Verdict,
)

SUBJECT = re.compile(r"events\.([0-9a-f-]{36})\.(node|project|domain)\.([0-9a-f-]{36})\.([a-z][a-z0-9_]{0,63})")
SCOPE = re.compile(r"(node|project|domain):([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")
PENDING_EVERY_S = 0.02
# Work on messages goes on for so long, and then others have so long a turn: an attacker's can take 40 ms each.
SPELL_S, REST_S = 0.02, 0.005
# So much work (of the processor) goes into reading some messages; what was published among the others is in the log.
READ_S = 0.5
# So many gaps are asked about one by one; a flood of forgeries makes hundreds, and costs one question.
MOST_HOLES = 50
# What mesh has published at its place may still be refused for these: it came too late, or its key went since.
LATE = frozenset({"stale", "unknown_key"})


@dataclass(frozen=True)
class Gate:
    """All five ports."""

    event_stream: EventStream
    nonce_store: NonceStore
    signature_verifier: SignatureVerifier
    relation_checker: RelationChecker
    node_repo: NodeRepo
    patience: Patience = field(default_factory=Patience)

    async def node(self, node_id: UUID) -> Place:
        """Return where a node stands that may receive; raises Forbidden, and then NotFound."""
        if not await self.relation_checker.agent(node_id):
            raise Forbidden
        place = await self.node_repo.place(node_id)
        if place is None:
            raise NotFound
        return place

    async def admit(self, messages: Sequence[Message], after: int, now_ns: int, until: int = 0) -> "Passage":
        """Return the events that may be delivered, in order, and why the others may not.

        Cheap checks first: form, Domain and scope against the subject, age, key, signature, and the nonce last. Each
        envelope is checked once, however many nodes it is for. What was published from `after` on, and up to `until`,
        and is not among them comes from mesh's log.
        """
        passage = Passage([], [], {}, after)
        read, unread = await self._read(messages, now_ns, passage)
        if unread:
            until = max(until, min(unread[-1].sequence, await self.nonce_store.highest()))
        signed = await self._signed(read, now_ns, passage)
        # Only what is signed stands for its place: what was published there may have been replaced.
        gaps = holes(after, [one.sequence for one in signed], until)
        await self._published(signed, gaps, now_ns, passage)
        passage.reached = max(passage.reached, until)
        return passage

    async def _read(
        self, messages: Sequence[Message], now_ns: int, passage: "Passage"
    ) -> "tuple[list[Admitted], Sequence[Message]]":
        """Return what is right in its form, and what there was no time for."""
        read, spell = list[Admitted](), Spell()
        for turn, message in enumerate(messages):
            if spell.work_s() > READ_S:
                unread = messages[turn:]
                passage.refused += [Refusal(one.sequence, named(one), "unread") for one in unread]
                return read, unread
            if one := _read(message, now_ns, passage.refused):
                read.append(one)
            await spell.rest()
        return read, ()

    async def late(self, refused: "Sequence[Refusal]") -> "set[Admitted]":
        """Return those that mesh did publish, at their place and with their bytes: they are late, and no attack."""
        asked = [one.late for one in refused if one.late is not None]
        if not asked:
            return set()
        verdicts, _ = await self.nonce_store.check([one.seen for one in asked], ())
        return {one for one, verdict in zip(asked, verdicts, strict=True) if verdict is Verdict.PUBLISHED}

    async def _signed(self, candidates: "list[Admitted]", now_ns: int, passage: "Passage") -> "list[Admitted]":
        if not candidates:
            return []
        trusted = await self.signature_verifier.trust({one.domain_id for one in candidates})
        passage.trusted.update({domain_id: frozenset(keys) for domain_id, keys in trusted.items()})
        passed, spell = [], Spell()
        for one in candidates:
            await spell.rest()
            trust = trusted.get(one.domain_id, {}).get(one.envelope.key_id, Trust("", b""))
            try:
                if trust.key or trust.previous_key:
                    VERIFIED.inc()
                envelope.authenticate(one.envelope, trust, now_ns)
            except EnvelopeRefused as error:
                passage.refused.append(_refusal(one, error.reason))
            else:
                passed.append(one)
        return passed

    async def _published(
        self, candidates: "list[Admitted]", gaps: Sequence[tuple[int, int]], now_ns: int, passage: "Passage"
    ) -> None:
        if not candidates and not gaps:
            return
        seen = [one.seen for one in candidates]
        verdicts, missing = await self.nonce_store.check(seen, gaps)
        verdicts = await self._settled(seen, verdicts)
        for one, verdict in zip(candidates, verdicts, strict=True):
            if verdict is Verdict.PUBLISHED:
                passage.admitted.append(one)
            else:
                passage.refused.append(_refusal(one, verdict.value))
        filled_at = {row.sequence for row in missing}
        passage.refused[:] = [one for one in passage.refused if one.reason != "unread" or one.sequence not in filled_at]
        there = {one.sequence for one in passage.admitted}
        if missing := [row for row in missing if row.sequence not in there]:
            # What the log brings back is believed no more than what the stream brings.
            filled = [entry for row in missing if (entry := _read(_message(row), now_ns, passage.refused))]
            passage.admitted.extend(await self._signed(filled, now_ns, passage))
        # In the order of the log, in whatever order they were brought.
        passage.admitted.sort(key=lambda one: one.sequence)
        passage.reached = max(passage.reached, *there, *(row.sequence for row in missing), 0)

    async def _settled(self, seen: list[Seen], verdicts: list[Verdict]) -> list[Verdict]:
        """Wait for those that are logged and whose sequence is not noted yet; it comes within moments or never."""
        clock = asyncio.get_running_loop().time
        began = ended = clock()
        until = [began + self.patience.wait_s(one.id, began) for one in seen]
        while waiting := [
            turn for turn, verdict in enumerate(verdicts) if verdict is Verdict.PENDING and clock() < until[turn]
        ]:
            await asyncio.sleep(PENDING_EVERY_S)
            # Also those whose time is over: one that is noted with what stands behind it must not be passed over.
            asked = [turn for turn, verdict in enumerate(verdicts) if verdict is Verdict.PENDING]
            answers, _ = await self.nonce_store.check([seen[turn] for turn in asked], ())
            for turn, verdict in zip(asked, answers, strict=True):
                verdicts[turn] = verdict
            if any(seen[turn].id in self.patience.given_up for turn in waiting):
                ended = clock()
        self.patience.spend(began, ended)
        self.patience.give_up(one.id for one, verdict in zip(seen, verdicts, strict=True) if verdict is Verdict.PENDING)
        return verdicts


@dataclass(frozen=True)
class Admitted:
    """An event on its way through the gate, and past it."""

    sequence: int
    domain_id: UUID
    id: UUID
    envelope: Envelope
    data: bytes

    @property
    def seen(self) -> Seen:
        """What the nonce store is asked about it."""
        return Seen(self.sequence, self.id, hashlib.sha256(self.data).digest())


@dataclass(frozen=True)
class Refusal:
    """An envelope that is dropped: where, in whose name (None when the subject names nobody), and why.

    `envelope` is what was refused where mesh may publish it all the same, or may have.
    """

    sequence: int
    domain_id: UUID | None
    reason: str
    envelope: Admitted | None = None

    @property
    def late(self) -> Admitted | None:
        """The envelope, where mesh may have published it already."""
        return self.envelope if self.reason in LATE else None


@dataclass
class Passage:
    """What came of some messages; `trusted` holds the key ids that verify now, of the Domains that were asked for.

    Up to `reached`, which only mesh's log can move, nothing that was published is missing.
    """

    admitted: list[Admitted]
    refused: list[Refusal]
    trusted: dict[UUID, frozenset[str]]
    reached: int


class Spell:
    """Lets others have their turn once work has gone on for a while."""

    def __init__(self) -> None:
        self._since = time.thread_time()
        self._work_s = 0.0

    def work_s(self) -> float:
        """Return how long was worked."""
        return self._work_s + time.thread_time() - self._since

    async def rest(self) -> None:
        """Pause when it is time to."""
        if (worked := time.thread_time() - self._since) > SPELL_S:
            self._work_s += worked
            await asyncio.sleep(REST_S)
            self._since = time.thread_time()


def holes(after: int, there: Collection[int], until: int) -> list[tuple[int, int]]:
    """Return the ranges of sequences from `after` to `until`, or to the last that is there, that are not there."""
    found = []
    for sequence in sorted([*there, max(after, until, *there) + 1]):
        if sequence > after + 1:
            found.append((after + 1, sequence - 1))
        after = max(after, sequence)
    return found if len(found) <= MOST_HOLES else [(found[0][0], found[-1][1])]


def open_gate(ports: Ports) -> Gate:
    """Return the gate when all five ports are provided; raises BusNotProvisioned for each of the other 31 cases."""
    stream, nonces, verifier = ports.event_stream, ports.nonce_store, ports.signature_verifier
    relations, nodes = ports.relation_checker, ports.node_repo
    if stream is None or nonces is None or verifier is None or relations is None or nodes is None:
        raise BusNotProvisioned
    return Gate(stream, nonces, verifier, relations, nodes)


def _read(message: Message, now_ns: int, refused: list[Refusal]) -> Admitted | None:
    """Return a message whose form, subject and age are right; notes the refusal of any other."""
    subject, domain_id = SUBJECT.fullmatch(message.subject), named(message)
    if subject is None or domain_id is None:
        refused.append(Refusal(message.sequence, None, "subject"))
        return None
    if len(message.data) > envelope.LARGEST:
        refused.append(Refusal(message.sequence, domain_id, "too_long"))
        return None
    try:
        parsed = envelope.parse(message.data)
    except EnvelopeRefused as error:
        refused.append(Refusal(message.sequence, domain_id, error.reason))
        return None
    scope, nonce = SCOPE.fullmatch(parsed.scope), canonical_uuid(parsed.id)
    if nonce is None:
        refused.append(Refusal(message.sequence, domain_id, "nonce_form"))
        return None
    one = Admitted(message.sequence, domain_id, nonce, parsed, message.data)
    if abs(now_ns - parsed.issued_ns) > envelope.WINDOW_NS:
        reason = "stale" if now_ns > parsed.issued_ns else "future"
    elif scope is None or (scope[1] == "domain" and scope[2] != subject[1]):
        reason = "scope"
    elif (scope[1], scope[2], parsed.type) != (subject[2], subject[3], subject[4]):
        reason = "subject_mismatch"
    else:
        return one
    refused.append(_refusal(one, reason))
    return None


def named(message: Message) -> UUID | None:
    """Return the Domain that a message's subject names; None when it is no subject of an event."""
    subject = SUBJECT.fullmatch(message.subject)
    return canonical_uuid(subject[1]) if subject else None


def _refusal(one: Admitted, reason: str) -> Refusal:
    return Refusal(one.sequence, one.domain_id, reason, one)


def canonical_uuid(text: str) -> UUID | None:
    """Return a UUID in its one canonical spelling; None for anything else."""
    try:
        return parse_uuid(text)
    except ValueError:
        return None


def _message(row: Published) -> Message:
    """Return a row of the log as if the stream had delivered it, under the subject that its envelope implies."""
    try:
        found = envelope.parse(row.data)
    except EnvelopeRefused:
        return Message(row.sequence, "", row.data)
    subject = f"events.{row.domain_id}.{found.scope.replace(':', '.')}.{found.type}"
    return Message(row.sequence, subject, row.data)
