"""Whether those who hold sessions still may: whose relation, sign-in or key is gone loses them.

Identity's feed says when to look, and every look is at all there is: what was missed while this process or the feed was
away is found by the next one.
"""

import asyncio
import contextlib
from dataclasses import dataclass
from uuid import UUID, uuid5

import structlog

from libs.clock import Clock
from libs.decision import Record
from libs.errors import PlexError
from services.access.events import revoked_payload
from services.access.model import POLICY_VIOLATION, Doubt, Session
from services.access.ports import Audit, Authority, Directory, Store

# A look asks about every session, so while the feed would tell it is seldom made without a reason.
LOOK_EVERY_S = 60.0
LOOK_UNHEARD_EVERY_S = 5.0
# Between looks that the feed asks for.
PAUSE_S = 0.1
AT_ONCE = 250
NIL = UUID(int=0)

log = structlog.get_logger()


@dataclass(frozen=True)
class Standing:
    """Revokes the sessions of those who may not have them any more."""

    store: Store
    directory: Directory
    authority: Authority
    audit: Audit
    clock: Clock
    doubt: Doubt

    async def run(self) -> None:
        """Look at once, then when something was revoked, and every while, for as long as the process lives."""
        while True:
            self.doubt.roused.clear()
            looked = await self._looked()
            await asyncio.sleep(PAUSE_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S if looked and self.doubt.following else LOOK_UNHEARD_EVERY_S):
                    await self.doubt.roused.wait()

    async def _looked(self) -> bool:
        try:
            await self.look()
        except PlexError as error:
            log.warning("standing.postponed", code=error.code)
            return False
        except Exception:
            # One look that goes wrong must not be the last.
            log.exception("standing.bug")
            return False
        return True

    async def look(self) -> int:
        """Revoke what must not be any more; returns how many sessions that were."""
        after, fallen, failed = NIL, 0, None
        while page := await self.store.unrevoked(after, AT_ONCE, self.clock.now()):
            for session, control, name in await self._fallen(page):
                try:
                    await self._revoke(session, control, name)
                    fallen += 1
                except PlexError as error:
                    # One Domain whose chain cannot be written must not keep the sessions of the others alive.
                    failed = error
            after = page[-1].id
        if failed is not None:
            raise failed
        return fallen

    async def _fallen(self, page: list[Session]) -> list[tuple[Session, str, str]]:
        asked = {one.id: (f"user:{one.identity_id}", "act", f"resource:{one.resource_id}") for one in page}
        questions = list(dict.fromkeys(asked.values()))
        ended, decisions = await asyncio.gather(
            self.directory.ended(list({sign_in for one in page for sign_in in one.sign_in_ids})),
            self.authority.check_all(questions),
        )
        # A condition that its subject's absence leaves open ends nothing; one that does not hold any more does.
        lost = {
            one
            for one, decision in zip(questions, decisions, strict=True)
            if not decision.granted and not decision.conditional
        }
        found = []
        for one in page:
            if one.revoked_at is not None:
                found.append((one, "key", "revoked"))
            elif not ended.isdisjoint(one.sign_in_ids):
                found.append((one, "sign_in", "ended"))
            elif asked[one.id] in lost:
                found.append((one, "relation", "gone"))
        return found

    async def _revoke(self, session: Session, control: str, name: str) -> None:
        await self.audit.record(
            Record(
                str(session.domain_id), "session.revoke", "act", "session", str(session.id),
                context={"revoked": [POLICY_VIOLATION], control: [name]},
                # Replicas look at the same time, and mean the same.
                idempotency_key=uuid5(session.id, f"{control}/{name}"),
            )
        )  # fmt: skip
        now = self.clock.now()
        await self.store.revoke(session, POLICY_VIOLATION, revoked_payload(session, POLICY_VIOLATION, now), now)
