"""Relations: identity's own tuple table is the truth, SpiceDB answers from it, and a doubt is never a denial."""

import asyncio
import functools
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import structlog

from libs.clock import Clock, SystemClock, rfc3339
from libs.decision import Decision
from libs.errors import AuthzUnavailable, PlexError, Unavailable
from libs.rpc.context import current_call
from libs.scope import beyond
from libs.telemetry import DELIVERED_AT
from libs.together import Together
from services.identity.model import Tuple
from services.identity.schema import HIDDEN, require_askable

EVERY_S = 1.0
# Far more than a caller who does not read the whole platform can see at once.
MOST_VISIBLE = 50_000
LONGEST_FEED = 1000
# Permissions of nodes, and the one relation that grants each. A node that is denied gives up for good.
GRANTING = {("node", "node-agent"): "agent", ("secret", "read"): "reader"}

log = structlog.get_logger()


class SentinelMissing(AuthzUnavailable):
    """SpiceDB answers, but was emptied: what it does not find says nothing."""


class TupleRefused(AuthzUnavailable):
    """SpiceDB will never take one of these tuples: its schema has no place for it."""


class Question(NamedTuple):
    """Whether a subject has a permission on an object; without a context, what a caveat allows is left open."""

    subject: str
    permission: str
    resource: str
    context: Mapping[str, Any] = {}


class Checker(Protocol):
    """SpiceDB: its answers are fully consistent, and given while the sentinel is there. Raises AuthzUnavailable."""

    async def check(self, questions: list[Question]) -> list[bool | None]:
        """Answer from one snapshot, None where a caveat's context decides; raises SentinelMissing."""

    async def resources(self, question: Question, most: int) -> list[str]:
        """Return the ids of objects, of the type that is the resource; raises LookupTooLarge above `most`."""

    async def subjects(self, question: Question, most: int) -> list[str]:
        """Return the ids of subjects, of the type that is the subject; raises LookupTooLarge above `most`."""

    async def read_all(self) -> list[Tuple]:
        """Return every tuple but sentinels and marks."""

    async def touch(self, rows: list[Tuple]) -> None:
        """Write tuples; checks find them once it has returned. Idempotent; raises TupleRefused and writes none."""

    async def delete(self, rows: list[Tuple]) -> None:
        """Remove tuples; no check finds them once it has returned. Idempotent; raises TupleRefused as above."""

    async def write_schema(self) -> None:
        """Write the schema."""


class TupleStore(Protocol):
    """The tuple table. Raises DatastoreUnavailable."""

    async def add(self, rows: list[Tuple]) -> None:
        """Add tuples as pending; those that exist stay."""

    async def mark(self, resource: str, relation: str, subject: str) -> list[Tuple]:
        """Mark tuples as removing, empty arguments matching all, and tell the feed; returns them."""

    async def subjects(self, resource: str, relation: str) -> list[str]:
        """Return the subjects of a relation, those whose grant has not arrived yet among them."""

    async def held(self, rows: list[Tuple]) -> set[Tuple]:
        """Return which of these tuples are there and not being removed, delivered or not."""

    async def retry_refused(self) -> None:
        """Try what SpiceDB refused once more: a new schema may have a place for it."""

    async def deliver(self, checker: Checker) -> int:
        """Bring pending tuples to SpiceDB and finish removals, waiting for whoever is at it; returns how many."""

    async def finish(self, checker: Checker, rows: list[Tuple]) -> None:
        """Bring these tuples to SpiceDB as the table has them now; those that are gone are gone there too."""

    async def refill(self, checker: Checker) -> int:
        """Bring every tuple that is not being removed to SpiceDB, and return how many there are."""


@dataclass(frozen=True)
class Revocation:
    """What must no longer be believed: relations, nodes, credentials, identities, Domains' limits; empty for a beat."""

    kind: str = ""
    value: str = ""
    relation: Tuple | None = None


class Feed:
    """Hands revocations to every stream of this process.

    A stream ends when it could have missed one, because it is too slow or because the feed is closed: its listener then
    believes nothing that it remembers.
    """

    def __init__(self) -> None:
        self._queues: set[asyncio.Queue[Revocation | None]] = set()
        self._open = False

    def open(self) -> None:
        """Begin: from now on every revocation is published."""
        self._open = True

    def close(self) -> None:
        """End every stream, and begin none."""
        self._open = False
        for queue in list(self._queues):
            self._end(queue)

    def publish(self, revocation: Revocation) -> None:
        """Hand one on."""
        for queue in list(self._queues):
            if queue.full():
                self._end(queue)
            else:
                queue.put_nowait(revocation)

    def _end(self, queue: "asyncio.Queue[Revocation | None]") -> None:
        self._queues.discard(queue)
        if queue.full():
            queue.get_nowait()
        queue.put_nowait(None)

    def beat(self) -> None:
        """Say that nothing was missed; to be called when that has just been seen."""
        self.publish(Revocation())

    async def listen(self) -> AsyncIterator[Revocation]:
        """Yield revocations and beats; raises Unavailable when the feed is closed."""
        if not self._open:
            raise Unavailable("the feed is closed")
        queue: asyncio.Queue[Revocation | None] = asyncio.Queue(LONGEST_FEED)
        self._queues.add(queue)
        try:
            while (revocation := await queue.get()) is not None:
                yield revocation
        finally:
            self._queues.discard(queue)


@dataclass(frozen=True)
class Relations:
    """Checks, grants and revokes."""

    checker: Checker
    tuples: TupleStore
    sentinel: Tuple
    clock: Clock = field(default_factory=SystemClock)

    async def decide(
        self, subject: str, permission: str, resource: str, context: Mapping[str, Any] | None = None
    ) -> Decision:
        """Answer one check, and why not; `context` is what a caveat is asked with beyond the time and the address."""
        (decision,) = await self.decide_all([(subject, permission, resource)], context)
        return decision

    async def decide_all(
        self, questions: list[tuple[str, str, str]], context: Mapping[str, Any] | None = None
    ) -> list[Decision]:
        """Answer `(subject, permission, resource)` questions in one round trip; raises UnknownPermission."""
        return _known(await self._decided(questions, [self.context(context)] * len(questions)))

    async def decide_each(self, questions: list[tuple[str, str, str]]) -> list[Decision | None]:
        """Answer questions of several callers in one round trip; None where a grant is on its way."""
        return await self._decided(questions, [self.context()] * len(questions))

    async def decide_from(self, questions: list[tuple[str, str, str]], addresses: list[str]) -> list[Decision]:
        """Answer questions of several callers in one round trip, each from its own address."""
        contexts = [self.context({"client_ip": one} if one else {}) for one in addresses]
        return _known(await self._decided(questions, contexts))

    async def _decided(
        self, questions: list[tuple[str, str, str]], contexts: list[Mapping[str, Any]]
    ) -> list[Decision | None]:
        asked = []
        for (subject, permission, resource), known in zip(questions, contexts, strict=True):
            require_askable(permission, resource.partition(":")[0])
            # A binding counts whatever its caveat says, so that is left open.
            asked += [
                Question(subject, permission.replace("-", "_"), resource, known),
                Question(subject, HIDDEN, resource),
            ]
        answers = await self.checker.check(asked)
        denied = [question for question, granted in zip(questions, answers[::2], strict=True) if not granted]
        granting = _granting(denied)
        # Granted, and SpiceDB has not heard of it yet: nobody can say.
        held = await self.tuples.held(list(granting.values())) if granting else set()
        # Narrowed last, so that what a scoped token may not still says whether there is a binding at all.
        allowed = [
            granted and not beyond(*question[:2]) for question, granted in zip(questions, answers[::2], strict=True)
        ]
        why = {True: "insufficient_relation", None: "caveat_violation", False: "out_of_scope"}
        return [
            None
            if granting.get(question) in held
            else Decision("granted" if granted else why[bound], conditional=answer is None)
            for question, granted, answer, bound in zip(questions, allowed, answers[::2], answers[1::2], strict=True)
        ]

    async def unconditional(self, questions: list[tuple[str, str, str]]) -> bool:
        """Whether all of these are granted whatever the time and the caller's address are."""
        asked = [Question(subject, name.replace("-", "_"), resource) for subject, name, resource in questions]
        return all(await self.checker.check(asked))

    def context(self, given: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """Return what caveats are asked with: the time and the caller's address, unless something else is given."""
        known = {"now": rfc3339(self.clock.now())}
        if address := current_call().client_ip:
            known["client_ip"] = address
        return {**known, **(given or {})}

    async def visible(self, subject: str, permission: str, kind: str, scope: str) -> list[str] | None:
        """Return the ids of a type on which a subject has a permission; None for everything below `scope`.

        What it costs grows with what the subject may see, never with what there is.
        """
        if beyond(subject, permission):
            return []
        asked = Question(subject, permission.replace("-", "_"), scope, self.context())
        (all_of_it,) = await self.checker.check([asked])
        return None if all_of_it else await self.resources(subject, permission, kind, {}, MOST_VISIBLE)

    async def resources(
        self, subject: str, permission: str, kind: str, context: Mapping[str, Any], most: int
    ) -> list[str]:
        """Return the ids of objects of a type on which a subject has a permission; raises LookupTooLarge."""
        if beyond(subject, permission):
            return []
        known = self.context(context)
        return await self.checker.resources(Question(subject, permission.replace("-", "_"), kind, known), most)

    async def subjects_with(
        self, kind: str, permission: str, resource: str, context: Mapping[str, Any], most: int
    ) -> list[str]:
        """Return the ids of subjects of a type that have a permission on an object; raises LookupTooLarge."""
        known = self.context(context)
        return await self.checker.subjects(Question(kind, permission.replace("-", "_"), resource, known), most)

    async def subjects(self, resource: str, relation: str) -> list[str]:
        """Return the subjects of a relation as the tuple table, which is the truth, has them."""
        return await self.tuples.subjects(resource, relation)

    async def grant(self, row: Tuple) -> None:
        """Add a tuple and bring it to SpiceDB; the grant may lag when SpiceDB is away."""
        await self.tuples.add([row])
        await self.deliver()

    async def remove(self, resource: str, relation: str, subject: str) -> int:
        """Remove tuples; no check finds them once it has returned. Returns how many there were."""
        rows = await self.tuples.mark(resource, relation, subject)
        await self.revoke(rows)
        return len(rows)

    async def revoke(self, rows: list[Tuple]) -> None:
        """Finish the removal of tuples that are marked; raises AuthzUnavailable, and then they stay marked."""
        await self.tuples.finish(self.checker, rows)

    @functools.cached_property
    def _delivering(self) -> Together[None, None]:
        # One delivery brings everybody's: who comes while one is under way shares the next.
        async def deliver(askers: list[None]) -> list[None]:
            await self.tuples.deliver(self.checker)
            return askers

        return Together(deliver)

    async def deliver(self) -> None:
        """Bring what was committed to SpiceDB now; what fails is brought by the background task."""
        try:
            await self._delivering.ask(None)
        except PlexError as error:
            log.warning("relations.delivery_postponed", reason=error.code)

    async def refill(self) -> None:
        """Write schema and all tuples to an empty SpiceDB, the sentinel last."""
        await self.checker.write_schema()
        count = await self.tuples.refill(self.checker)
        await self.checker.touch([self.sentinel])
        log.info("relations.refilled", tuples=count)

    async def run(self) -> None:
        """Keep SpiceDB in step while the process lives: the schema first, refills, what was left undelivered."""
        current = False
        while True:
            try:
                if not current:
                    await self.checker.write_schema()
                    await self.tuples.retry_refused()
                    current = True
                await self._keep_up()
            except PlexError as error:
                log.warning("relations.background_failed", code=error.code, reason=str(error))
            await asyncio.sleep(EVERY_S)

    async def _keep_up(self) -> None:
        try:
            await self.checker.check([])
        except SentinelMissing:
            await self.refill()
        await self.tuples.deliver(self.checker)
        DELIVERED_AT.set_to_current_time()

    async def ready(self) -> None:
        """Raise AuthzUnavailable unless checks can be answered."""
        await self.checker.check([])


def _known(decisions: list[Decision | None]) -> list[Decision]:
    known = [decision for decision in decisions if decision is not None]
    if len(known) < len(decisions):
        raise AuthzUnavailable("a grant is on its way")
    return known


def _granting(questions: list[tuple[str, str, str]]) -> dict[tuple[str, str, str], Tuple]:
    """Return the tuples that would grant nodes what they ask for, by question."""
    return {
        (subject, permission, resource): Tuple(resource, relation, subject)
        for subject, permission, resource in questions
        if (relation := GRANTING.get((resource.partition(":")[0], permission)))
    }
