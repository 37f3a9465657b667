"""Bindings: whose secrets they name, what they may ask for, who may change them, and what goes with them."""

from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from libs.clock import SystemClock
from libs.errors import (
    AuditUnavailable,
    BindingConflict,
    EmptyPatch,
    Forbidden,
    InvalidRequest,
    NotFound,
    PlexError,
    ProviderFailed,
)
from libs.ids import uuid7
from services.identity.__main__ import platform_binding
from services.identity.authority import Gate
from services.identity.bindings import Bindings
from services.identity.settings import Bootstrap
from services.identity.sign_in_model import ALGORITHMS, SCOPES, Binding
from services.identity.tests.fakes import FakePolicyStore, FakeStore, signed_in
from services.identity.tests.sign_in_fakes import SignInWorld, a_binding

pytestmark = pytest.mark.unit

ADMIN = signed_in()


class World(SignInWorld):
    """An administrator of the first of two Domains, each with a binding."""

    def __init__(self, **binding: Any) -> None:
        super().__init__(**binding)
        self.other = a_binding(uuid7(), "https://other.example")
        self.store.binding_rows[self.other.id] = self.other
        self.authority.granted.add((ADMIN.reference, "manage", f"domain:{self.domain_id}"))
        gate = Gate(self.authority, self.audit, FakeStore(self.trace))
        self.bindings = Bindings(self.store, self.provider, gate, FakePolicyStore(self.trace), self.clock)

    @property
    def actions(self) -> list[tuple[str, str]]:
        return [(row.action, row.reason) for row in self.audit.rows]

    def wanted(self, **more: Any) -> Binding:
        plain: dict[str, Any] = {"issuer": "https://new.example", "primary": False}
        return a_binding(self.domain_id, **(plain | more))


REFERENCES = {
    "another Domain's": "kv/idp/{other}/op",
    "the platform's": "kv/idp/platform/op",
    "nobody's": "kv/idp/op",
    "by a way round": "kv/idp/{own}/../{other}/op",
    "by a longer way": "kv/idp/{own}/op/../../{other}/op",
    "with a query": "kv/idp/{own}/op?version=1",
    "in other letters": "kv/idp/{OWN}/op",
    "with a line end": "kv/idp/{own}/op\n",
    "elsewhere": "kv/data/{own}/op",
    "a secret itself": "hunter2",
}


@pytest.mark.parametrize("name", REFERENCES)
async def test_a_binding_names_only_its_owners_secrets(name: str) -> None:
    world = World()
    own = str(world.domain_id)
    reference = REFERENCES[name].format(own=own, OWN=own.upper(), other=world.other.domain_id)
    with pytest.raises(InvalidRequest):
        await world.bindings.create(ADMIN, world.wanted(client_secret_ref=reference))
    assert world.trace == []


async def test_the_platforms_binding_names_only_the_platforms() -> None:
    world = World()
    world.authority.granted.add((ADMIN.reference, "manage", "platform:main"))
    theirs = world.binding.client_secret_ref
    with pytest.raises(InvalidRequest):
        await world.bindings.create(ADMIN, a_binding(None, "https://new.example", client_secret_ref=theirs))
    made = await world.bindings.create(ADMIN, a_binding(None, "https://new.example", primary=False))
    assert made.client_secret_ref == "kv/idp/platform/op"


@pytest.mark.parametrize(
    "wrong",
    [
        {"issuer": "http://new.example"},
        {"issuer": "https://new.example?tenant=a"},
        {"issuer": "https://new.example#a"},
        {"issuer": "https://user:word@new.example"},
        {"client_id": ""},
        {"scopes": ("openid", "e mail")},
        {"scopes": ("",)},
        {"algorithms": ("RS256", "HS256")},
        {"algorithms": ("none",)},
        {"required_amr": ("otp",), "accepted_amr": ("pwd",)},
    ],
    ids=str,
)
async def test_what_no_binding_may_say(wrong: dict[str, Any]) -> None:
    world = World()
    with pytest.raises(InvalidRequest):
        await world.bindings.create(ADMIN, world.wanted(**wrong))
    assert world.trace == []


ELSEWHERE = [
    "https://evil.example/.well-known/openid-configuration",
    "https://new.example.evil.example/.well-known/openid-configuration",
    "https://new.example@evil.example/.well-known/openid-configuration",
    "https://new.example/upload/.well-known/openid-configuration",
    "https://new.example/.well-known/openid-configuration/../../upload",
    "https://new.example/.well-known/openid-configuration?redirect=https://evil.example",
    "https://new.example/.well-known/openid-configuration/",
    "https://new.example/.well-known/openid-configuration\n",
    "https://new.example//.well-known/openid-configuration",
    "https://NEW.example/.well-known/openid-configuration",
    "http://new.example/.well-known/openid-configuration",
    "https://new.example",
    "",
]


@pytest.mark.parametrize("url", ELSEWHERE)
async def test_a_discovery_document_is_where_its_issuer_has_it(url: str) -> None:
    world = World()
    with pytest.raises(InvalidRequest, match="discovery_url"):
        await world.bindings.create(ADMIN, world.wanted(discovery_url=url))
    made = await world.bindings.create(ADMIN, world.wanted())
    with pytest.raises(InvalidRequest, match="discovery_url"):
        await world.bindings.update(ADMIN, made.id, {"discovery_url": url}, None)
    assert world.store.binding_rows[made.id] == made
    same = await world.bindings.update(ADMIN, made.id, {"discovery_url": made.discovery_url}, None)
    assert same.discovery_url == made.discovery_url


async def test_the_slash_at_the_end_of_an_issuer_is_not_doubled() -> None:
    world = World()
    right, doubled = ("https://new.example" + path + "/.well-known/openid-configuration" for path in ("/a", "/a/"))
    with pytest.raises(InvalidRequest, match="discovery_url"):
        await world.bindings.create(ADMIN, world.wanted(issuer="https://new.example/a/", discovery_url=doubled))
    made = await world.bindings.create(ADMIN, world.wanted(issuer="https://new.example/a/", discovery_url=right))
    assert made.discovery_url == right


def test_the_file_cannot_lead_the_platform_elsewhere() -> None:
    plain = Bootstrap(
        issuer="https://op.example", client_id="c", client_secret_ref="kv/idp/platform/op", platform_admins=[],
        discovery_url="https://op.example/.well-known/openid-configuration",
    )  # fmt: skip
    assert platform_binding(plain, SystemClock()).discovery_url == plain.discovery_url
    with pytest.raises(InvalidRequest, match="discovery_url"):
        platform_binding(plain.model_copy(update={"discovery_url": "https://evil.example/d"}), SystemClock())


async def test_no_token_and_nobody_under_a_condition_decides_which_provider_is_believed() -> None:
    world = World()
    token, this = replace(ADMIN, credential="api_token"), world.binding.id
    for caller, control in ((token, {"token": ["credential"]}), (ADMIN, {"grant": ["conditional"]})):
        if caller is ADMIN:
            world.authority.conditional |= world.authority.granted
        for attempt in (
            world.bindings.create(caller, world.wanted()),
            world.bindings.update(caller, this, {"alias": "a"}, None),
            world.bindings.set_status(caller, this, "deactivated"),
            world.bindings.delete(caller, this),
        ):
            with pytest.raises(Forbidden) as refused:
                await attempt
            assert refused.value.extra["reason"] == world.audit.rows[-1].reason == "caveat_violation"
            assert control.items() <= world.audit.rows[-1].context.items()
    assert world.store.binding_rows[this] == world.binding
    assert len(world.audit.rows) == 8


async def test_openid_is_always_asked_for_and_both_names_of_a_curve_count() -> None:
    world = World()
    made = await world.bindings.create(ADMIN, world.wanted(scopes=("groups", "openid"), algorithms=("Ed25519",)))
    assert (made.scopes, set(made.algorithms)) == (("openid", "groups"), {"EdDSA", "Ed25519"})
    changed = await world.bindings.update(ADMIN, made.id, {"scopes": (), "algorithms": ()}, None)
    assert (changed.scopes, changed.algorithms) == (SCOPES, ALGORITHMS)


async def test_a_provider_is_asked_after_the_row_and_before_it_counts() -> None:
    world = World()
    world.provider.refusal = ProviderFailed("down")
    with pytest.raises(ProviderFailed):
        await world.bindings.create(ADMIN, world.wanted())
    assert world.actions == [("idp_binding.create", "granted")]
    assert len(world.store.binding_rows) == 3
    # A change cannot lead to another provider, so it is not held up by this one.
    await world.bindings.update(ADMIN, world.binding.id, {"alias": "new"}, None)


async def test_a_patch_changes_what_it_names_and_the_state_it_was_decided_on() -> None:
    world = World()
    before = world.binding
    changes = {"required_acr": ("urn:mfa",), "accepted_amr": ("otp",), "max_auth_age_s": 60, "leeway_s": 0}
    after = await world.bindings.update(ADMIN, before.id, changes, before.updated_at)
    assert {name: getattr(after, name) for name in changes} == changes
    assert (after.issuer, after.client_secret_ref, after.status) == (before.issuer, before.client_secret_ref, "active")
    assert after.updated_at > before.updated_at
    assert world.store.binding_rows[before.id] == after
    assert world.audit.rows[-1].context == {"changed": sorted(changes)}
    with pytest.raises(BindingConflict):
        await world.bindings.update(ADMIN, before.id, {"alias": "late"}, before.updated_at)
    assert world.store.binding_rows[before.id] == after


async def test_of_two_changes_at_once_one_counts() -> None:
    world = World()
    one = await world.bindings.update(ADMIN, world.binding.id, {"alias": "one"}, None)
    with pytest.raises(BindingConflict):
        await world.store.change_binding(world.binding, one)


async def test_a_patch_that_changes_nothing_or_too_much_is_refused() -> None:
    world = World()
    second = await world.bindings.create(ADMIN, world.wanted())
    with pytest.raises(EmptyPatch):
        await world.bindings.update(ADMIN, second.id, {}, second.updated_at)
    with pytest.raises(BindingConflict):
        await world.bindings.update(ADMIN, second.id, {"primary": True}, None)
    with pytest.raises(InvalidRequest):
        await world.bindings.update(ADMIN, second.id, {"algorithms": ("HS256",)}, None)
    assert world.store.binding_rows[second.id] == second


async def test_deactivating_ends_what_its_people_hold_after_the_row() -> None:
    world = World()
    await world.walk(world.domain_id)
    world.trace.clear()
    changed = await world.bindings.set_status(ADMIN, world.binding.id, "deactivated")
    assert (changed.status, world.store.sessions) == ("deactivated", {})
    assert world.trace == ["relation", "audit", "status"]
    await world.bindings.set_status(ADMIN, world.binding.id, "active")
    assert [action for action, _ in world.actions][-2:] == ["idp_binding.deactivate", "idp_binding.activate"]


async def test_deleting_takes_its_people_and_what_they_may_do() -> None:
    world = World()
    person = (await world.walk(world.domain_id)).session.person
    world.trace.clear()
    await world.bindings.delete(ADMIN, world.binding.id)
    assert world.trace == ["relation", "audit", "remove", "revoke"]
    assert [row.subject for row in world.authority.revoked] == [f"user:{person.id}"]
    assert (world.store.sessions, world.store.people) == ({}, {})
    assert world.binding.id not in world.store.binding_rows


async def deed(world: World, name: str, binding_id: UUID) -> None:
    if name == "update":
        await world.bindings.update(ADMIN, binding_id, {"alias": "mine"}, None)
    elif name == "delete":
        await world.bindings.delete(ADMIN, binding_id)
    else:
        await world.bindings.set_status(ADMIN, binding_id, "deactivated")


@pytest.mark.parametrize("name", ["update", "deactivate", "delete"])
async def test_another_domains_binding_and_none_are_refused_alike_with_a_row(name: str) -> None:
    world = World()
    for binding_id in (world.other.id, world.platform.id, uuid7()):
        with pytest.raises(Forbidden):
            await deed(world, name, binding_id)
    assert world.actions == [(f"idp_binding.{name}", "out_of_scope")] * 3
    assert world.store.binding_rows[world.other.id] == world.other
    world.authority.granted.add((ADMIN.reference, "manage", "platform:main"))
    with pytest.raises(NotFound):
        await deed(world, name, uuid7())


@pytest.mark.parametrize("name", ["update", "deactivate", "delete"])
async def test_without_its_row_nothing_happens(name: str) -> None:
    world = World()
    await world.walk(world.domain_id)
    world.audit.refusal = AuditUnavailable("down")
    sessions = dict(world.store.sessions)
    with pytest.raises(PlexError):
        await deed(world, name, world.binding.id)
    assert (world.store.binding_rows[world.binding.id], world.store.sessions) == (world.binding, sessions)


def test_the_smaller_age_counts() -> None:
    bound = a_binding(max_auth_age_s=60)
    assert [bound.max_age_s(asked) for asked in (None, 30, 300, 0)] == [60, 30, 60, 0]
    assert [a_binding().max_age_s(asked) for asked in (None, 30)] == [None, 30]


async def test_the_files_binding_has_a_row_before_it_changes_and_none_when_it_does_not() -> None:
    world = World()
    stated = replace(world.platform, id=uuid7(), client_id="new")
    world.audit.refusal = AuditUnavailable()
    with pytest.raises(AuditUnavailable):
        await world.bindings.ensure(stated)
    assert world.store.binding_rows[world.platform.id] == world.platform
    world.audit.refusal = None
    world.trace.clear()
    await world.bindings.ensure(stated)
    await world.bindings.ensure(replace(stated, id=uuid7(), scopes=("openid",)))
    await world.bindings.ensure(replace(stated, id=(second := uuid7()), issuer="https://second.example"))
    assert world.trace == ["audit", "ensure_binding"] * 2
    assert [(row.action, row.object_id, row.domain_id) for row in world.audit.rows] == [
        ("idp_binding.update", str(world.platform.id), ""), ("idp_binding.create", str(second), ""),
    ]  # fmt: skip
