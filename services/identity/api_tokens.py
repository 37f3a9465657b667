"""The rules of API tokens: shown once, narrowed by scope, never strong, and never begotten by another token."""

import datetime
from dataclasses import dataclass, replace
from uuid import UUID

from libs.clock import Clock
from libs.errors import FederationKindMismatch, Forbidden, InvalidRequest, NotFound
from libs.ids import uuid7
from libs.principal import Principal
from libs.step_up import BY_PERSON, IN_PERSON, challenge, lacking, login_of
from services.identity.authority import Act, Gate, caller_of
from services.identity.bindings import resource_of
from services.identity.sign_in_model import digest
from services.identity.token_model import API_TOKEN, ApiToken, Owner, new_text
from services.identity.token_ports import TokenStore

DEFAULT_TTL_S = 90 * 24 * 3600
OVERLAP = datetime.timedelta(hours=24)
OWN = "own"


@dataclass(frozen=True)
class ApiTokens:
    """Issues, lists, rotates and revokes, for oneself or as who manages the owner's Domain."""

    store: TokenStore
    gate: Gate
    clock: Clock
    environment: str

    async def issue(
        self,
        principal: Principal,
        reference: str,
        env_prefix: str,
        ttl_s: int,
        scope: tuple[str, ...] | None,
        *,
        as_admin: bool,
    ) -> tuple[ApiToken, str]:
        """Issue a token to `user:<id>` or `service:<id>` and return its text, which is nowhere else."""
        if env_prefix != self.environment:
            raise InvalidRequest(f"env_prefix must be {self.environment}, which this deployment is")
        owner, token_id = await self._owner(reference), uuid7()
        act = Act("api_token.issue", f"api_token:{token_id}", chain_of(owner), in_person=True)
        await self._begetting(principal, act)
        if as_admin:
            await self._manages(principal, owner, act)
        else:
            await self._owns(principal, reference == principal.reference, act, Forbidden)
        if owner is None:
            raise NotFound
        if owner.federation_kind not in {"", "api_token"}:
            raise FederationKindMismatch
        now = self.clock.now()
        expires_at = now + datetime.timedelta(seconds=ttl_s or DEFAULT_TTL_S)
        token = ApiToken(token_id, owner, env_prefix, scope, UUID(principal.subject), now, expires_at)
        text = new_text(API_TOKEN, self.environment)
        await self.store.add_api_token(token, digest(text))
        return token, text

    async def list(self, principal: Principal, reference: str) -> list[ApiToken]:
        """Return the live tokens of an identity whose Domain the caller manages, or with "" the caller's own."""
        owner = await self._owner(reference or principal.reference)
        if reference:
            await self.gate.read(caller_of(principal), "manage", managed_by(owner))
        return await self.store.api_tokens(owner, self.clock.now()) if owner else []

    async def revoke(self, principal: Principal, token_id: UUID, *, as_admin: bool) -> None:
        """End a token at once; by itself a token ends no other."""
        token = await self.store.api_token(token_id, self.clock.now())
        act = Act("api_token.revoke", f"api_token:{token_id}", chain_of(token.owner if token else None))
        if principal.session_id != str(token_id):
            await self._by_person(principal, act)
        await self._authorize(principal, token, act, as_admin=as_admin)
        if not await self.store.revoke_api_token(token_id):
            raise NotFound

    async def rotate(
        self, principal: Principal, token_id: UUID, *, as_admin: bool
    ) -> tuple[ApiToken, str, datetime.datetime]:
        """Return a successor with the same scope and lifetime, its text, and when the old token ends."""
        now = self.clock.now()
        token = await self.store.api_token(token_id, now)
        successor_id = uuid7()
        context = {"successor": [str(successor_id)]}
        chain = chain_of(token.owner if token else None)
        act = Act("api_token.rotate", f"api_token:{token_id}", chain, context, in_person=True)
        await self._begetting(principal, act)
        old = await self._authorize(principal, token, act, as_admin=as_admin)
        successor = replace(
            old, id=successor_id, issued_by=UUID(principal.subject), created_at=now,
            expires_at=now + (old.expires_at - old.created_at), last_used_at=None, rotated_at=None,
        )  # fmt: skip
        text = new_text(API_TOKEN, self.environment)
        deadline = await self.store.rotate_api_token(token_id, successor, digest(text), now + OVERLAP)
        if deadline is None:
            raise NotFound
        return successor, text, deadline

    async def _owner(self, reference: str) -> Owner | None:
        kind, _, identifier = reference.partition(":")
        return await self.store.owner(kind, UUID(identifier))

    async def _authorize(self, principal: Principal, token: ApiToken | None, act: Act, *, as_admin: bool) -> ApiToken:
        if as_admin:
            await self._manages(principal, token.owner if token else None, act)
        else:
            owns = token is not None and token.owner.reference == principal.reference
            await self._owns(principal, owns, act, NotFound)
        if token is None:
            raise NotFound
        return token

    async def _begetting(self, principal: Principal, act: Act) -> None:
        await self._by_person(principal, act)
        # What is begotten lasts up to a year, so a login that somebody found lying about must not suffice.
        if lacks := lacking(IN_PERSON, login_of(principal), self.clock.now().timestamp()):
            await self._refused(principal, act, "step_up", *lacks.missing)
            raise challenge(lacks)

    async def _by_person(self, principal: Principal, act: Act) -> None:
        # A token that leaked must not outlive itself, nor end those that would replace it.
        if principal.credential not in BY_PERSON:
            await self._refused(principal, act, "token", "credential")
            raise Forbidden("a token may not do this; sign in", reason="caveat_violation", relation_path=[])

    async def _refused(self, principal: Principal, act: Act, control: str, *names: str) -> None:
        refused = replace(act, domain_id=principal.domain_id, context=act.context | {control: list(names)})
        await self.gate.record(caller_of(principal), OWN, refused, "caveat_violation")

    async def _manages(self, principal: Principal, owner: Owner | None, act: Act) -> None:
        await self.gate.write(caller_of(principal), "manage", managed_by(owner), act)

    async def _owns(self, principal: Principal, owns: bool, act: Act, refusal: type[Forbidden | NotFound]) -> None:  # noqa: FBT001 — read beside its name
        own = replace(act, domain_id=principal.domain_id)
        await self.gate.record(caller_of(principal), OWN, own, "granted" if owns else "out_of_scope")
        if not owns:
            raise refusal(reason="out_of_scope", relation_path=[])


def managed_by(owner: Owner | None) -> str:
    """Return the object whose `manage` decides; what does not exist belongs to the platform."""
    return resource_of(owner.domain_id if owner else None)


def chain_of(owner: Owner | None) -> str:
    """Return whose chain records it."""
    return str(owner.domain_id or "") if owner else ""
