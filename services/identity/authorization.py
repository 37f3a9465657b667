"""Relations as people ask about them and give them.

Who may ask about others: who manages or audits the object, and for lists of what somebody may, his Domain as well.
Anybody else is answered as for something that does not exist. Roles are given by who manages the object and the project
that is named; every other relation follows from what its object is, and is nobody's to give.
"""

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from libs.access_policy import Strength
from libs.clock import parse_rfc3339
from libs.cursor import Cursors
from libs.decision import OUT_OF_SCOPE, Decision
from libs.errors import (
    CaveatInvalid,
    Forbidden,
    NotFound,
    RelationNotAllowed,
    RelationObjectNotFound,
    RelationOfSecret,
    RelationStructural,
    RelationSubjectNotFound,
    RelationTupleNotFound,
)
from libs.step_up import IN_PERSON
from services.identity.access_policies import asked_to_give
from services.identity.authority import Act, Gate
from services.identity.model import Caller, Place, Tuple, TupleRow
from services.identity.ports import AccessPolicyStore, Oracle, TupleDirectory
from services.identity.schema import PLATFORM, ROLES, SUBJECTS, is_object, require_askable, require_storable

MOST_FOUND = 500
NIL = UUID(int=0)
OVERSIGHT = ("manage", "audit")
# What a caveat's parameters look like, and which of them a relation fixes.
PARAMETERS: dict[str, Callable[[str], object]] = {
    "now": parse_rfc3339,
    "until": parse_rfc3339,
    "client_ip": ipaddress.ip_address,
    "network": ipaddress.ip_network,
}
FIXED = {"expires": {"until"}, "from_network": {"network"}}


@dataclass(frozen=True)
class Authorization:
    """Checks, lookups, and roles that are given, changed and taken away."""

    oracle: Oracle
    store: TupleDirectory
    gate: Gate
    policies: AccessPolicyStore
    cursors: Cursors

    async def check(
        self, caller: Caller, subject: str, permission: str, resource: str, context: Mapping[str, Any]
    ) -> Decision:
        """Answer a check; about others only for who oversees the object."""
        known = conditions(context)
        require_askable(permission, _kind(resource))
        if subject != caller.reference and not (await self._oversees(caller, [resource]))[0]:
            return Decision("out_of_scope")
        return await self.oracle.decide(subject, permission, resource, known)

    async def lookup_resources(
        self, caller: Caller, subject: str, permission: str, kind: str, context: Mapping[str, Any]
    ) -> list[str]:
        """Return what a subject has a permission on; of others only what the caller oversees."""
        known = conditions(context)
        require_askable(permission, kind)
        own = subject == caller.reference
        if not own and not await self._oversees_person(caller, subject):
            return []
        found = await self.oracle.resources(subject, permission, kind, known, MOST_FOUND)
        names = [name for name in sorted(f"{kind}:{identifier}" for identifier in found) if is_object(name)]
        seen = [True] * len(names) if own else await self._oversees(caller, names)
        return [name for name, visible in zip(names, seen, strict=True) if visible]

    async def lookup_subjects(
        self, caller: Caller, kind: str, permission: str, resource: str, context: Mapping[str, Any]
    ) -> list[str]:
        """Return who has a permission on an object that the caller oversees."""
        known = conditions(context)
        require_askable(permission, _kind(resource))
        if not (await self._oversees(caller, [resource]))[0]:
            return []
        found = await self.oracle.subjects_with(kind, permission, resource, known, MOST_FOUND)
        return [name for name in sorted(f"{kind}:{identifier}" for identifier in found) if is_object(name)]

    async def page(self, caller: Caller, project_id: UUID, cursor: str, limit: int) -> tuple[list[TupleRow], str]:
        """Return a page of a project's roles; of its Domain's and the platform's, where the caller manages them."""
        this, name = f"project:{project_id}", f"tuples:{project_id}"
        await self.gate.read(caller, "manage", this)
        place = await self._place(this)
        wanted = [this, f"domain:{place.domain_id}", PLATFORM]
        decisions = await self.oracle.decide_all([(caller.reference, "manage", one) for one in wanted])
        _, domain, platform = (decision.granted for decision in decisions)
        after = UUID(self.cursors.open(name, caller.reference, cursor)["after"]) if cursor else NIL
        rows = await self.store.tuples(project_id, after, limit, domain=domain, platform=platform)
        more = len(rows) == limit
        return rows, self.cursors.seal(name, caller.reference, {"after": str(rows[-1].id)}) if more else ""

    async def create(self, caller: Caller, project_id: UUID, wanted: Tuple) -> TupleRow:
        """Give a role; what is given already stays as it is."""
        this = f"project:{project_id}"
        place = await self.store.place(this)
        # The project is what the request names, so it is asked about first; a Domain or the platform as well.
        above = [wanted.resource] if _kind(wanted.resource) in {"domain", "platform"} else []
        act = Act(
            "relation.create", wanted.resource, _chain(place, wanted), _names(wanted), in_person=True,
            required=await self._asked_to_give(caller, place),
        )  # fmt: skip
        await self.gate.write_all(caller, "manage", [this, *above], act)
        if place is None:
            raise NotFound
        require_role(wanted)
        target = await self._place(wanted.resource)
        if not above and target.project_id != project_id:
            raise RelationObjectNotFound
        await self._placed(wanted, place)
        row = await self.store.add_tuple(wanted)
        await self.oracle.deliver()
        return row

    async def update(self, caller: Caller, tuple_id: UUID, wanted: Tuple) -> TupleRow:
        """Replace a role by another one of the same Domain; no check finds the first once it has returned."""
        before = await self._owned(caller, tuple_id, "relation.update", wanted)
        require_role(wanted)
        place = await self._place(before.row.resource)
        await self._placed(wanted, place)
        row = await self.store.replace_tuple(tuple_id, wanted)
        if row is None:
            raise RelationTupleNotFound
        await self.oracle.revoke([before.row, wanted])
        return row

    async def delete(self, caller: Caller, tuple_id: UUID) -> None:
        """Take a role away; no check finds it once it has returned."""
        before = await self._owned(caller, tuple_id, "relation.delete")
        if not await self.store.remove_tuple(tuple_id):
            raise RelationTupleNotFound
        await self.oracle.revoke([before.row])

    async def _asked_to_give(self, caller: Caller, place: Place | None) -> tuple[Strength, ...]:
        domain_id = place.domain_id if place and place.domain_id else NIL
        return asked_to_give(caller, await self.policies.in_force(domain_id, UUID(caller.subject)))

    async def _oversees(self, caller: Caller, resources: list[str]) -> list[bool]:
        if not resources:
            return []
        asked = [(caller.reference, permission, one) for one in resources for permission in OVERSIGHT]
        granted = [decision.granted for decision in await self.oracle.decide_all(asked)]
        return [any(pair) for pair in zip(granted[::2], granted[1::2], strict=True)]

    async def _oversees_person(self, caller: Caller, subject: str) -> bool:
        home = await self.store.home(subject)
        if home is None:
            return False
        return (await self._oversees(caller, [f"domain:{home.domain_id}" if home.domain_id else PLATFORM]))[0]

    async def _place(self, resource: str) -> Place:
        place = await self.store.place(resource)
        if place is None:
            raise RelationObjectNotFound
        return place

    async def _placed(self, wanted: Tuple, place: Place) -> None:
        """Raise unless object and subject are of the same Domain; people of the platform are of every one."""
        target = await self._place(wanted.resource)
        if _kind(wanted.resource) != "platform" and target.domain_id != place.domain_id:
            raise RelationObjectNotFound
        home = await self.store.home(wanted.subject)
        # Who signs in at a Domain's provider never gets the platform: that provider would hold every other Domain.
        if home is None or home.domain_id not in {None, target.domain_id}:
            raise RelationSubjectNotFound

    async def _owned(self, caller: Caller, tuple_id: UUID, action: str, wanted: Tuple | None = None) -> TupleRow:
        """Return a tuple that the caller manages, with its row recorded; to who is not bound to it, it is not there."""
        stored, asked = await self.store.tuple(tuple_id), f"relation_tuple:{tuple_id}"
        if stored is None:
            await self.gate.record(caller, "manage", Act(action, asked, caller.domain_id), OUT_OF_SCOPE)
            raise RelationTupleNotFound
        place = await self.store.place(stored.row.resource)
        names = {"tuple": [str(tuple_id)], **_names(wanted or stored.row)}
        act = Act(
            action, stored.row.resource, _chain(place, stored.row), names, in_person=True, asked=asked,
            required=await self._asked_to_give(caller, place) if wanted else (IN_PERSON,),
        )  # fmt: skip
        targets = [stored.row.resource]
        if wanted is not None and wanted.resource != stored.row.resource:
            targets.append(wanted.resource)
        try:
            await self.gate.write_all(caller, "manage", targets, act)
        except Forbidden as refused:
            if refused.extra["reason"] == OUT_OF_SCOPE:
                raise RelationTupleNotFound from None
            raise
        return stored


def require_role(wanted: Tuple) -> None:
    """Raise unless a relation is a role, its object and subject fit, and its caveat is whole."""
    key = (_kind(wanted.resource), wanted.relation)
    if key[0] == "secret":
        raise RelationOfSecret
    if key not in ROLES:
        raise RelationStructural if key in SUBJECTS else RelationNotAllowed
    if wanted.caveat is not None:
        if set(wanted.caveat.context) != FIXED.get(wanted.caveat.name):
            raise CaveatInvalid
        conditions(wanted.caveat.context)
    require_storable(wanted)


def conditions(context: Mapping[str, Any]) -> dict[str, str]:
    """Return what of a context caveats ask for; raises CaveatInvalid for a value that they could not read."""
    known = {name: value for name, value in context.items() if name in PARAMETERS}
    for name, value in known.items():
        try:
            PARAMETERS[name](value if isinstance(value, str) else "")
        except ValueError:
            raise CaveatInvalid(f"{name} is not valid") from None
    return known


def _kind(name: str) -> str:
    return name.partition(":")[0]


def _chain(place: Place | None, row: Tuple) -> str:
    """Return whose chain has the row: the Domain's, or the platform's for its own roles."""
    of_domain = place is not None and place.domain_id is not None and row.resource != PLATFORM
    return str(place.domain_id) if place is not None and of_domain else ""


def _names(row: Tuple) -> dict[str, list[str]]:
    return {
        "relation": [row.relation],
        "subject": [row.subject],
        **({"caveat": [row.caveat.name]} if row.caveat else {}),
    }
