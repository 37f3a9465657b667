"""The rules of who is in a Domain: who may look, what is personal, and what it takes to make and end a machine."""

import re
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

import pytest

from libs.clock import FixedClock
from libs.cursor import Cursors
from libs.custody import Secret
from libs.errors import AlreadyExists, AuditUnavailable, CursorBindingMismatch, Forbidden, InvalidCursor, NotFound
from libs.ids import uuid7
from services.identity.authority import Gate
from services.identity.model import Caller, Tuple
from services.identity.people import People
from services.identity.tests.fakes import NOW, FakeAudit, FakeAuthority, signed_in
from services.identity.tests.token_fakes import FakeTokenStore
from services.identity.token_model import Identity, ServiceIdentity

pytestmark = pytest.mark.unit


class NoNodes:
    """A place without nodes."""

    async def registered(self, node_id: UUID) -> bool:
        return False


@dataclass
class Desk:
    """A Domain with three people, and the rules on top of fakes."""

    trace: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.authority, self.audit = FakeAuthority(self.trace), FakeAudit(self.trace)
        self.domain, self.caller = uuid7(), signed_in(str(uuid7()))
        self.store = FakeTokenStore(domains={self.domain})
        self.store.people = [self.a_person(name) for name in ("ada", "bob", "cid")]
        gate = Gate(self.authority, self.audit, NoNodes())
        self.people = People(self.store, gate, Cursors(Secret(b"c" * 32)), FixedClock(NOW), Secret(b"p" * 32))

    def a_person(self, subject: str, domain: UUID | None = None) -> Identity:
        domain, email = domain or self.domain, f"{subject}@op.example"
        return Identity(uuid7(), "user", domain, subject, "https://idp.example", subject, email, NOW, NOW, NOW)

    def a_machine(self, **more: Any) -> ServiceIdentity:
        return replace(ServiceIdentity(UUID(int=0), self.domain, "CI", "ci", "plexsphere", "api_token", NOW), **more)

    def may(self, permission: str, caller: Caller | None = None) -> None:
        self.authority.granted.add(((caller or self.caller).reference, permission, f"domain:{self.domain}"))

    @property
    def rows(self) -> list[tuple[str, str, str, dict[str, list[str]]]]:
        return [(row.action, row.reason, row.domain_id, row.context) for row in self.audit.rows]


@pytest.fixture
def desk() -> Desk:
    return Desk()


async def test_pages_hold_everybody_once_and_the_cursor_is_the_callers_own(desk: Desk) -> None:
    desk.may("read")
    desk.store.people.append(desk.a_person("elsewhere", uuid7()))
    first, cursor = await desk.people.list(desk.caller, desk.domain, "user", "", 2)
    second, end = await desk.people.list(desk.caller, desk.domain, "user", cursor, 2)
    assert [*first, *second] == sorted(desk.store.people[:3], key=lambda row: row.id)
    assert end == ""
    assert (await desk.people.list(desk.caller, desk.domain, "", "", 3))[1] == "", "a full page may be the last"
    assert await desk.people.list(desk.caller, desk.domain, "service-identity", "", 2) == ([], "")
    with pytest.raises(InvalidCursor):
        await desk.people.list(desk.caller, desk.domain, "", cursor, 2)
    other = signed_in()
    desk.may("read", other)
    with pytest.raises(CursorBindingMismatch):
        await desk.people.list(other, desk.domain, "user", cursor, 2)


async def test_who_may_not_read_the_domain_learns_nothing(desk: Desk) -> None:
    ada = desk.store.people[0]
    desk.may("manage")  # A permission says nothing of another one.
    for attempt in (
        desk.people.list(desk.caller, desk.domain, "", "", 1),
        desk.people.get(desk.caller, desk.domain, ada.id),
        desk.people.get(desk.caller, desk.domain, uuid7()),
    ):
        with pytest.raises(Forbidden):
            await attempt


async def test_what_is_personal_is_for_who_manages(desk: Desk) -> None:
    ada = desk.store.people[0]
    desk.may("read")
    assert await desk.people.get(desk.caller, desk.domain, ada.id) == (ada, False)
    desk.may("manage")
    assert await desk.people.get(desk.caller, desk.domain, ada.id) == (ada, True)
    elsewhere = desk.a_person("elsewhere", uuid7())
    desk.store.people.append(elsewhere)
    for identity_id in (elsewhere.id, uuid7()):
        with pytest.raises(NotFound):
            await desk.people.get(desk.caller, desk.domain, identity_id)


def test_a_pseudonym_is_of_one_domain_one_provider_and_one_key(desk: Desk) -> None:
    ada = desk.store.people[0]
    others = [replace(ada, domain_id=uuid7()), replace(ada, issuer="https://b.example"), replace(ada, subject="bob"),
              replace(ada, kind="service-identity")]  # fmt: skip
    found = {desk.people.pseudonym(row) for row in (ada, *others)}
    found.add(replace(desk.people, pseudonym_key=Secret(b"q" * 32)).pseudonym(ada))
    assert len(found) == 6
    assert all(re.fullmatch("[0-9a-f]{64}", one) for one in found)
    same = replace(ada, id=uuid7(), display_name="Ada", email="", last_sign_in_at=None)
    assert desk.people.pseudonym(same) == desk.people.pseudonym(ada)


async def test_a_machine_is_made_after_its_row_and_shown_like_the_others(desk: Desk) -> None:
    desk.may("manage")
    desk.may("read")
    made = await desk.people.create(desk.caller, desk.a_machine())
    assert desk.rows == [("service_identity.create", "granted", str(desk.domain), {})]
    assert desk.audit.rows[0].object_id == str(made.id)
    assert made.created_at == NOW
    assert await desk.people.list(desk.caller, desk.domain, "service-identity", "", 9) == ([made], "")
    with pytest.raises(AlreadyExists):
        await desk.people.create(desk.caller, desk.a_machine())
    desk.audit.refusal = AuditUnavailable()
    with pytest.raises(AuditUnavailable):
        await desk.people.create(desk.caller, desk.a_machine(subject="another"))
    assert [row.subject for row in desk.store.services] == ["ci"]


async def test_a_machines_relations_are_gone_when_its_deletion_returns(desk: Desk) -> None:
    desk.may("manage")
    machine = await desk.people.create(desk.caller, desk.a_machine())
    kept, gone = (Tuple(f"domain:{desk.domain}", "member", f"service:{one}") for one in (uuid7(), machine.id))
    desk.store.tuples = [kept, gone]
    desk.trace.clear()
    await desk.people.delete(desk.caller, desk.domain, machine.id)
    assert desk.authority.revoked == [gone]
    assert desk.trace == ["relation", "audit", "revoke"]
    with pytest.raises(NotFound):
        await desk.people.delete(desk.caller, desk.domain, machine.id)
    assert [action for action, *_ in desk.rows] == ["service_identity.create", *["service_identity.delete"] * 2]


@pytest.mark.parametrize("credential", ["api_token", "service_token", "node_key", ""])
async def test_no_token_makes_or_ends_a_machine(desk: Desk, credential: str) -> None:
    desk.may("manage")
    machine = await desk.people.create(desk.caller, desk.a_machine())
    by, before = replace(desk.caller, credential=credential), list(desk.store.services)
    for attempt in (
        desk.people.create(by, desk.a_machine(subject="mine")),
        desk.people.delete(by, desk.domain, machine.id),
    ):
        with pytest.raises(Forbidden) as refused:
            await attempt
        assert refused.value.extra["reason"] == "caveat_violation"
        assert desk.audit.rows[-1].context == {"token": ["credential"]}
    assert desk.store.services == before


async def test_who_does_not_manage_is_refused_with_a_row_and_a_made_up_domain_gets_no_chain(desk: Desk) -> None:
    for domain_id in (desk.domain, uuid7()):
        for attempt in (
            desk.people.create(desk.caller, desk.a_machine(domain_id=domain_id)),
            desk.people.delete(desk.caller, domain_id, uuid7()),
        ):
            with pytest.raises(Forbidden):
                await attempt
            assert desk.rows[-1][1:3] == ("out_of_scope", desk.caller.domain_id)
    assert desk.store.services == []
