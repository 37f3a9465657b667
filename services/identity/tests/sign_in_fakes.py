"""One fake a port of signing in, in memory, and a provider that signs real id_tokens with keys of its own."""

import asyncio
import datetime
import hashlib
import json
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

from joserfc import jws
from joserfc.jwk import OKPKey

from libs.clock import FixedClock
from libs.counted import Counted
from libs.custody import Secret
from libs.errors import BindingConflict, SignInRefused, Unauthenticated
from libs.ids import uuid7
from services.identity.devices import Devices
from services.identity.logout import Logout
from services.identity.model import Tuple
from services.identity.sign_in import Opened, SignIn, Started
from services.identity.sign_in_model import Binding, Callback, Device, NodeKey, Pending, Person, Session, Wanted
from services.identity.sign_in_ports import ExchangeRefused
from services.identity.tests.fakes import NOW, FakeAudit, FakeAuthority

ISSUER, CLIENT = "https://op.example", "plexsphere"


def a_binding(domain_id: UUID | None = None, issuer: str = ISSUER, **more: Any) -> Binding:
    """Return a binding that asks for nothing special."""
    reference = f"kv/idp/{domain_id or 'platform'}/op"
    plain = Binding(
        id=uuid7(), domain_id=domain_id, issuer=issuer, client_id=CLIENT, client_secret_ref=reference,
        discovery_url=f"{issuer}/.well-known/openid-configuration", claim_mappings={}, required_acr=(),
        required_amr=(), jit_policy="allow", status="active", alias="op", primary=True, created_at=NOW, updated_at=NOW,
    )  # fmt: skip
    return replace(plain, **more)


@dataclass
class FakeSignInStore:
    """Bindings, people, sessions, devices."""

    trace: list[str]
    binding_rows: dict[UUID, Binding] = field(default_factory=dict)
    pending: dict[bytes, Pending] = field(default_factory=dict)
    people: dict[tuple[UUID, str], Person] = field(default_factory=dict)
    sessions: dict[bytes, Session] = field(default_factory=dict)
    seen: dict[bytes, datetime.datetime] = field(default_factory=dict)
    devices: dict[UUID, Device] = field(default_factory=dict)
    codes: dict[bytes, UUID] = field(default_factory=dict)
    approvers: dict[UUID, UUID] = field(default_factory=dict)
    tokens: dict[bytes, Session] = field(default_factory=dict)
    node_key_rows: list[NodeKey] = field(default_factory=list)
    made_admins: set[UUID] = field(default_factory=set)
    # Bindings that are gone when somebody is let in.
    deleted: set[UUID] = field(default_factory=set)

    async def add_binding(self, binding: Binding) -> None:
        for row in self.binding_rows.values():
            if row.domain_id == binding.domain_id and (row.issuer == binding.issuer or row.primary & binding.primary):
                raise BindingConflict
        self.binding_rows[binding.id] = binding

    async def ensure_binding(self, binding: Binding) -> None:
        self.trace.append("ensure_binding")
        known = next((one for one in self.binding_rows.values() if one.issuer == binding.issuer), binding)
        self.binding_rows[known.id] = replace(binding, id=known.id)

    async def binding(self, binding_id: UUID) -> Binding | None:
        return self.binding_rows.get(binding_id)

    async def bindings(self, domain_id: UUID | None) -> list[Binding]:
        rows = (row for row in self.binding_rows.values() if row.domain_id == domain_id)
        return sorted(rows, key=lambda row: (not row.primary, row.id))

    async def change_binding(self, before: Binding, after: Binding) -> None:
        others = [row for row in await self.bindings(after.domain_id) if row.id != after.id]
        if self.binding_rows.get(before.id) != before or after.primary & any(row.primary for row in others):
            raise BindingConflict
        self.binding_rows[after.id] = after

    async def set_binding_status(self, binding_id: UUID, status: str, at: datetime.datetime) -> Binding | None:
        self.trace.append("status")
        before = self.binding_rows.get(binding_id)
        if before is None:
            return None
        self.binding_rows[binding_id] = replace(before, status=status, updated_at=at)
        if status != "active":
            self._end_people(binding_id)
        return self.binding_rows[binding_id]

    async def remove_binding(self, binding_id: UUID) -> list[Tuple] | None:
        self.trace.append("remove")
        if self.binding_rows.pop(binding_id, None) is None:
            return None
        gone = self._end_people(binding_id)
        self.people = {key: person for key, person in self.people.items() if person.id not in gone}
        return [Tuple("platform:main", "admin", f"user:{person_id}") for person_id in sorted(gone)]

    def _end_people(self, binding_id: UUID) -> set[UUID]:
        people = {person.id for (bound, _), person in self.people.items() if bound == binding_id}
        self._end(lambda _, session: session.person.id in people)
        self.tokens = {digest: token for digest, token in self.tokens.items() if token.person.id not in people}
        return people

    async def start(self, state_digest: bytes, pending: Pending) -> None:
        self.pending[state_digest] = pending

    async def finish(self, state_digest: bytes, at: datetime.datetime) -> Pending | None:
        pending = self.pending.get(state_digest)
        if pending is not None:
            self.pending[state_digest] = replace(pending, used=True)
        return pending

    async def person(self, binding: Binding, subject: str) -> Person | None:
        return self.people.get((binding.id, subject))

    async def admit(self, binding: Binding, person: Person, subject: str, at: datetime.datetime) -> Person:
        self.trace.append("admit")
        if binding.id in self.deleted:
            raise SignInRefused
        known = self.people.get((binding.id, subject))
        self.people[binding.id, subject] = replace(person, id=known.id if known else person.id)
        return self.people[binding.id, subject]

    async def was_made_admin(self, person_id: UUID) -> bool:
        return person_id in self.made_admins

    async def open_session(self, session: Session, digest: bytes, at: datetime.datetime, ended: bytes | None) -> None:
        self.trace.append("open_session")
        if ended is not None:
            self._keep_tokens(ended, session)
            self._end(lambda found, _: found == ended)
        self.sessions[digest], self.seen[digest] = session, at

    async def use_session(self, digest: bytes, at: datetime.datetime, idle_since: datetime.datetime) -> Session | None:
        session = self.sessions.get(digest)
        if session is None or session.expires_at <= at or self.seen[digest] <= idle_since:
            return None
        self.seen[digest] = at
        return session

    async def end_session(self, session_id: UUID) -> None:
        self._end(lambda _, session: session.id == session_id)

    async def end_sessions(self, person_id: UUID) -> int:
        ended = self._end(lambda _, session: session.person.id == person_id)
        self.tokens = {digest: token for digest, token in self.tokens.items() if token.person.id != person_id}
        return ended

    def _end(self, matches: Any) -> int:
        gone = {digest: session for digest, session in self.sessions.items() if matches(digest, session)}
        for digest, session in gone.items():
            del self.sessions[digest]
            for device_id in [device_id for device_id, by in self.approvers.items() if by == session.id]:
                self.devices.pop(device_id, None)
                self.tokens = {digest: token for digest, token in self.tokens.items() if token.id != device_id}
        return len(gone)

    def _keep_tokens(self, ended: bytes, session: Session) -> None:
        before = self.sessions.get(ended)
        for token in self.tokens.values():
            if before and self.approvers[token.id] == before.id and token.person.id == session.person.id:
                self.approvers[token.id] = session.id

    async def start_device(self, device: Device, device_digest: bytes, user_code_digest: bytes) -> None:
        self.devices[device.id] = device
        self.codes[device_digest] = self.codes[user_code_digest] = device.id

    async def device_by_user_code(self, user_code_digest: bytes) -> Device | None:
        return self.devices.get(self.codes.get(user_code_digest, UUID(int=0)))

    async def domain_name(self, domain_id: UUID) -> str:
        return f"Domain {domain_id}"

    async def approve_device(self, device_id: UUID, session: Session) -> bool:
        self.trace.append("approve_device")
        if session.id not in {live.id for live in self.sessions.values()}:
            raise Unauthenticated
        device = self.devices[device_id]
        if device.person_id is not None or device.denied:
            return False
        self.devices[device_id] = replace(device, person_id=session.person.id, login=session.login)
        self.approvers[device_id] = session.id
        return True

    async def deny_device(self, device_id: UUID) -> bool:
        device = self.devices[device_id]
        if device.person_id is not None or device.denied:
            return False
        self.devices[device_id] = replace(device, denied=True)
        return True

    async def poll_device(self, device_digest: bytes, client_id: str, at: datetime.datetime) -> Device | None:
        before = self.devices.get(self.codes.get(device_digest, UUID(int=0)))
        if before is None or before.client_id != client_id:
            return None
        self.devices[before.id] = replace(before, polled_at=at)
        return before

    async def issue_token(
        self, device: Device, digest: bytes, at: datetime.datetime, expires_at: datetime.datetime
    ) -> bool:
        self.trace.append("issue_token")
        approved = self.devices.pop(device.id, None)
        if approved is None or approved.person_id is None:
            return False
        self.tokens[digest] = Session(device.id, Person(approved.person_id, None), approved.login, expires_at)
        return True

    async def use_token(self, digest: bytes, at: datetime.datetime) -> Session | None:
        token = self.tokens.get(digest)
        return token if token and token.expires_at > at else None

    async def end_token(self, token_id: UUID) -> None:
        self.tokens = {digest: token for digest, token in self.tokens.items() if token.id != token_id}

    async def node_keys(self, node_id: UUID, at: datetime.datetime) -> list[NodeKey]:
        return [key for key in self.node_key_rows if key.node_id == node_id]

    async def email(self, person_id: UUID) -> str:
        return next((person.email for person in self.people.values() if person.id == person_id), "")

    async def provider_of(self, person_id: UUID) -> UUID | None:
        return next((binding for (binding, _), person in self.people.items() if person.id == person_id), None)


@dataclass
class FakeLogoutStore:
    """What a provider's logout ends, in the memory of a sign-in store."""

    sign_ins: FakeSignInStore
    jtis: set[tuple[UUID, bytes]] = field(default_factory=set)
    ended: list[tuple[UUID, str, str]] = field(default_factory=list)

    async def whose(self, binding_id: UUID, subject: str, sid: str) -> UUID | None:
        people = {key: person.id for key, person in self.sign_ins.people.items() if key[0] == binding_id}
        signed_in = [one.person.id for one in self.sign_ins.sessions.values() if sid in {"", one.sid}]
        found = {person for (_, name), person in people.items() if subject in {"", name} and person in signed_in}
        return found.pop() if len(found) == 1 else None

    async def believing(self, issuer: str) -> list[Binding]:
        # As a database would, which takes no lone surrogate.
        issuer.encode()
        return [row for row in self.sign_ins.binding_rows.values() if row.issuer == issuer]

    async def known(self, binding_id: UUID, jti_digest: bytes) -> bool:
        return (binding_id, jti_digest) in self.jtis

    async def log_out(
        self,
        binding_id: UUID,
        subject: str,
        sid: str,
        jti_digest: bytes,
        at: datetime.datetime,
        until: datetime.datetime,
    ) -> bool:
        self.sign_ins.trace.append("log_out")
        if await self.known(binding_id, jti_digest):
            return False
        self.jtis.add((binding_id, jti_digest))
        self.ended.append((binding_id, subject, sid))
        return True


@dataclass
class FakeProvider:
    """An OpenID provider: gives a code for each authorization URL and a signed id_token for each code."""

    clock: FixedClock
    key: OKPKey = field(default_factory=lambda: OKPKey.generate_key("Ed25519"))
    claims: dict[str, Any] = field(default_factory=dict)
    document: dict[str, Any] = field(default_factory=dict)
    asked: dict[str, dict[str, str]] = field(default_factory=dict)
    exchanged: list[dict[str, str]] = field(default_factory=list)
    refusal: Exception | None = None
    given: dict[str, Any] = field(default_factory=dict)
    known: dict[str, Any] = field(default_factory=dict)
    userinfo_asked: list[str] = field(default_factory=list)
    slow: set[UUID] = field(default_factory=set)

    async def metadata(self, binding: Binding) -> dict[str, Any]:
        if self.refusal:
            raise self.refusal
        plain = {"authorization_endpoint": f"{binding.issuer}/auth", "issuer": binding.issuer}
        return plain | {"authorization_response_iss_parameter_supported": True} | self.document

    async def keys(self, binding: Binding, kid: str, purpose: str = "sign_in") -> list[dict[str, Any]]:
        if self.refusal:
            raise self.refusal
        if binding.id in self.slow:
            await asyncio.Event().wait()
        return [{**self.key.as_dict(private=False), "kid": "k1", "use": "sig"}]

    def authorize(self, url: str) -> str:
        """Sign somebody in; returns the code."""
        code = f"code-{len(self.asked)}"
        self.asked[code] = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
        return code

    async def exchange(self, binding: Binding, secret: Secret, form: dict[str, str]) -> dict[str, Any]:
        assert bytes(secret.reveal()) == b"client-secret"
        if self.refusal:
            raise self.refusal
        self.exchanged.append(form)
        asked = self.asked.pop(form["code"], None)
        if asked is None:
            raise ExchangeRefused("code_refused")
        now = int(self.clock.now().timestamp())
        claims = {
            "iss": binding.issuer, "aud": CLIENT, "sub": "alice", "iat": now, "exp": now + 300, "auth_time": now - 5,
            "nonce": asked["nonce"], "email": "alice@op.example", "name": "Alice",
        } | self.claims  # fmt: skip
        header = {"alg": "Ed25519", "kid": "k1"}
        payload = json.dumps(claims).encode()
        token = jws.serialize_compact(header, payload, self.key, algorithms=["Ed25519"])
        return {"access_token": "at", "id_token": token} | self.given

    async def userinfo(self, binding: Binding, access_token: str) -> dict[str, Any]:
        self.userinfo_asked.append(access_token)
        return self.known


@dataclass
class FakeClientSecrets:
    """One secret; remembers the object, to see that it was wiped."""

    handed_out: list[Secret] = field(default_factory=list)

    async def client_secret(self, reference: str) -> Secret:
        self.handed_out.append(Secret(b"client-secret"))
        return self.handed_out[-1]


@dataclass
class FakeRefreshVault:
    """Ciphertext that only its own session opens."""

    kept: dict[str, tuple[UUID | None, UUID, bytes]] = field(default_factory=dict)

    async def wrap_refresh(self, domain_id: UUID | None, session_id: UUID, token: Secret) -> str:
        ciphertext = f"vault:v1:{len(self.kept)}"
        self.kept[ciphertext] = (domain_id, session_id, bytes(token.reveal()))
        return ciphertext

    async def unwrap_refresh(self, domain_id: UUID | None, session_id: UUID, ciphertext: str) -> Secret:
        bound_domain, bound_session, token = self.kept[ciphertext]
        assert (bound_domain, bound_session) == (domain_id, session_id)
        return Secret(token)


@dataclass
class FakeAdmins:
    """Who was made an administrator."""

    trace: list[str]
    granted: list[UUID] = field(default_factory=list)

    async def grant_platform_admin(self, person_id: UUID) -> None:
        self.trace.append("grant")
        self.granted.append(person_id)


class SignInWorld:
    """A Domain's binding and the platform's, and the rules on top of fakes."""

    def __init__(self, **binding: Any) -> None:
        self.trace: list[str] = []
        self.clock = FixedClock(NOW)
        self.authority = FakeAuthority(self.trace)
        self.store, self.audit, self.admins = FakeSignInStore(self.trace), FakeAudit(self.trace), FakeAdmins(self.trace)
        self.provider, self.secrets = FakeProvider(self.clock), FakeClientSecrets()
        self.vault = FakeRefreshVault()
        self.platform = a_binding(None, "https://platform.example", alias="platform")
        self.domain_id = uuid7()
        self.binding = a_binding(self.domain_id, **binding)
        self.store.binding_rows = {row.id: row for row in (self.platform, self.binding)}
        self.sign_in = SignIn(
            store=self.store, provider=self.provider, secrets=self.secrets, vault=self.vault,
            audit=Counted(self.audit, self.clock), admins=self.admins, clock=self.clock, pkce_key=Secret(b"p" * 32),
            csrf_key=Secret(b"c" * 32), redirect_uri="https://edge/v1/auth/callback",
            bootstrap_issuer=self.platform.issuer, platform_admins=("operator",), return_paths=("/", "/device"),
        )  # fmt: skip
        self.logouts = FakeLogoutStore(self.store)
        self.logout = Logout(self.logouts, self.provider, self.sign_in.audit, self.clock)
        self.devices = Devices(self.store, self.audit, self.clock, "dev")

    async def walk(self, domain_id: UUID | None = None, wanted: Wanted | None = None, previous: str = "") -> Opened:
        """Sign in from the first click to the session."""
        started = await self.sign_in.start(domain_id, None, "", "", wanted or Wanted(), previous)
        code = self.provider.authorize(started.authorization_url)
        issuer = (self.binding if domain_id else self.platform).issuer
        return await self.sign_in.complete(replace(self.back(started, code), issuer=issuer))

    def back(self, started: Started, code: str) -> Callback:
        """Return what the browser that started brings back from the Domain's provider."""
        return Callback(started.state, code, self.binding.issuer, handle=started.handle)


def sha256(text: str) -> bytes:
    """Return what a store has of a credential."""
    return hashlib.sha256(text.encode()).digest()
