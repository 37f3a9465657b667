"""How every rule of identity asks and records: relation first, audit before effect."""

from dataclasses import dataclass, field, replace
from uuid import UUID

from libs.access_policy import Strength
from libs.clock import Clock, SystemClock
from libs.decision import GRANTED, OUT_OF_SCOPE, Decision, Record, Recorder
from libs.errors import NodeIdMismatch, NskRevoked
from libs.principal import Principal
from libs.step_up import BY_PERSON, IN_PERSON, challenge, lacking, login_of
from services.identity.model import Caller
from services.identity.ports import Authority, Domains


@dataclass(frozen=True)
class Gate:
    """Asks for a permission and records the decision before its effect."""

    authority: Authority
    audit: Recorder
    domains: Domains
    clock: Clock = field(default_factory=SystemClock)

    async def read(self, caller: Caller, permission: str, resource: str) -> None:
        """Raise Forbidden unless the caller has the permission; reads leave no row when they are allowed."""
        decision = await self.authority.decide(caller.reference, permission, resource)
        decision.require()

    async def write(self, caller: Caller, permission: str, resource: str, act: "Act") -> None:
        """Record the decision, granted or not, and raise Forbidden unless the caller has the permission."""
        await self.write_all(caller, permission, [resource], act)

    async def write_all(self, caller: Caller, permission: str, resources: list[str], act: "Act") -> None:
        """Record one decision for several objects, and raise Forbidden unless the caller has the permission on each."""
        questions = [(caller.reference, permission, one) for one in resources]
        decisions = await self.authority.decide_all(questions)
        decision = next((one for one in decisions if not one.granted), decisions[0])
        if decision.granted and act.in_person:
            if doubt := await self._doubt(caller, questions):
                decision, act = Decision("caveat_violation"), replace(act, context=act.context | doubt)
            else:
                await self._require_login(caller, permission, act)
        if decision.reason == OUT_OF_SCOPE:
            # Whoever has no binding fills no other Domain's chain, and learns from his own only what he asked for.
            act = Act(act.action, act.asked or act.target, caller.domain_id, {} if act.asked else act.context)
        await self.record(caller, permission, act, decision.reason)
        decision.require()

    async def _doubt(self, caller: Caller, questions: list[tuple[str, str, str]]) -> dict[str, list[str]]:
        """Return what is wrong with deciding in person: the credential, or a grant that holds under a condition only.

        Either could make itself last: by a provider or a person of its own, or by a role without the condition.
        """
        if caller.credential not in BY_PERSON:
            return {"token": ["credential"]}
        return {} if await self.authority.unconditional(questions) else {"grant": ["conditional"]}

    async def _require_login(self, caller: Caller, permission: str, act: "Act") -> None:
        """Raise StepUpRequired, with a row, unless the login is as fresh and as strong as the act asks for."""
        now = self.clock.now().timestamp()
        for required in act.required:
            if lacks := lacking(required, caller.login, now):
                refused = replace(act, context=act.context | {"step_up": list(lacks.missing)})
                await self.record(caller, permission, refused, "caveat_violation")
                raise challenge(lacks)

    async def own(self, principal: Principal, node_id: str, action: str) -> None:
        """Raise NodeIdMismatch, with a row, when a node asks for another one's."""
        if principal.node_id != node_id:
            context = {action.rpartition(".")[2]: [NodeIdMismatch.code]}
            act = Act(action, f"node:{node_id}", principal.domain_id, context)
            await self.record(caller_of(principal), "node-agent", act, "insufficient_relation")
            raise NodeIdMismatch

    async def agent(self, principal: Principal, node_id: str, action: str) -> None:
        """Raise Forbidden, with a row, unless a node asks for its own and is its agent; what is allowed leaves none.

        Raises NskRevoked, with a row too, when the node is no more.
        """
        await self.own(principal, node_id, action)
        this = f"node:{node_id}"
        decision = await self.authority.decide(principal.reference, "node-agent", this)
        if not decision.granted:
            act = Act(action, this, principal.domain_id)
            await self.record(caller_of(principal), "node-agent", act, decision.reason)
            if not await self.domains.registered(UUID(node_id)):
                # Deregistered since the bearer was believed: 403 stops an agent for good, 401 makes it register again.
                raise NskRevoked(domain_id=principal.domain_id)
        decision.require()

    async def record(self, caller: Caller, permission: str, act: "Act", reason: str = GRANTED) -> None:
        """Record one decision."""
        kind, _, identifier = act.target.partition(":")
        await self.audit.record(
            Record(
                domain_id=act.domain_id,
                action=act.action,
                relation=permission,
                object_type=kind,
                object_id=identifier,
                reason=reason,
                subject_id=caller.subject,
                subject_kind=caller.kind,
                context=act.context,
            )
        )


def caller_of(principal: Principal) -> Caller:
    """Return who is behind a call, as rows and relations name it."""
    return Caller(principal.kind, principal.subject, principal.credential, principal.domain_id, login_of(principal))


@dataclass(frozen=True)
class Act:
    """What is about to be done: its verb, its object as `<type>:<id>`, and whose chain records it.

    `in_person` is for what decides who is believed, or who may what, and `required` what the login must be for it.
    `asked` is how the caller named the object, where that is another way.
    """

    action: str
    target: str
    domain_id: str = ""
    context: dict[str, list[str]] = field(default_factory=dict)
    in_person: bool = False
    asked: str = ""
    required: tuple[Strength, ...] = (IN_PERSON,)
