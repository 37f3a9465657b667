"""The rules of signing in: authorization code with PKCE (RFC 7636), state, nonce and the issuer's answer (RFC 9207)."""

import base64
import datetime
import hashlib
import hmac
from dataclasses import dataclass, field, replace
from urllib.parse import urlencode, urljoin
from uuid import UUID, uuid5

import structlog

from libs.clock import Clock
from libs.counted import SPACE, Counted
from libs.custody import Secret
from libs.decision import ANONYMOUS, Record
from libs.errors import IdpBindingNotFound, InvalidRequest, PlexError, SignInRefused, SignInStateInvalid
from libs.ids import uuid7
from libs.telemetry import REFUSALS
from services.identity.bindings import offered
from services.identity.id_token import Expected, TokenRefused, credential, header_of, validate
from services.identity.refresh import ASK_EVERY, BELIEVED_FOR
from services.identity.sign_in_model import (
    Binding,
    Callback,
    Grant,
    Login,
    Pending,
    Person,
    Session,
    Wanted,
    digest,
    random_text,
)
from services.identity.sign_in_ports import Admins, ClientSecrets, Provider, RefreshVault, SignInStore

PENDING_FOR = datetime.timedelta(minutes=10)
SESSION_FOR = datetime.timedelta(hours=12)

log = structlog.get_logger()


def _text(claim: object) -> str:
    # Characters that no database stores and no page shows are left out: NUL, lone surrogates, line ends.
    return "".join(filter(str.isprintable, claim))[:256] if isinstance(claim, str) else ""


def _names(binding: Binding) -> dict[str, str]:
    return {"email": "email", "display_name": "name"} | binding.claim_mappings


def _with_query(endpoint: str, query: dict[str, str]) -> str:
    # An endpoint may have a query of its own (RFC 6749, 3.1).
    return f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(query)}"


def _refusal(binding: Binding | None, reason: str) -> Record:
    return Record(
        domain_id=str(binding.domain_id or "") if binding else "",
        action="session.sign_in",
        relation="sign_in",
        object_type="idp_binding" if binding else "platform",
        object_id=str(binding.id) if binding else "main",
        reason="caveat_violation",
        subject_kind=ANONYMOUS,
        context={"id_token": [reason]},
    )


@dataclass(frozen=True)
class Started:
    """Where the browser goes, and what the client may know of it."""

    authorization_url: str
    state: str
    handle: str
    nonce: str


@dataclass(frozen=True)
class Proved:
    """What the provider has proved of a person, and what it may be asked more with."""

    claims: dict[str, object]
    login: Login
    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)

    @property
    def sid(self) -> str:
        """The provider's name of its session, or nothing."""
        return str(self.claims.get("sid", ""))


@dataclass(frozen=True)
class Opened:
    """A new session; `cookie` and `csrf` are nowhere else."""

    session: Session
    cookie: str
    csrf: str
    return_to: str


@dataclass(frozen=True)
class SignIn:
    """Starts and finishes sign-ins."""

    store: SignInStore
    provider: Provider
    secrets: ClientSecrets
    vault: RefreshVault
    audit: Counted
    admins: Admins
    clock: Clock
    pkce_key: Secret
    csrf_key: Secret
    redirect_uri: str
    bootstrap_issuer: str
    platform_admins: tuple[str, ...]
    return_paths: tuple[str, ...] = ("/",)

    async def options(self, domain_id: UUID | None) -> list[Binding]:
        """Return through which bindings somebody may sign in; an unknown Domain answers as one without any."""
        return await offered(self.store, domain_id)

    async def start(
        self,
        domain_id: UUID | None,
        binding_id: UUID | None,
        return_to: str,
        prompt: str,
        wanted: Wanted,
        previous: str = "",
    ) -> Started:
        """Start a sign-in at a binding; PKCE verifier and nonce are derived from the state and never stored.

        `previous` is the session that the browser has now: the callback comes from another site, without it.
        """
        binding = await self._choose(domain_id, binding_id)
        if return_to and return_to not in self.return_paths:
            raise InvalidRequest("return_to is not allowed")
        document = await self.provider.metadata(binding)
        state = random_text()
        verifier, nonce = self._derive("verifier", state), self._derive("nonce", state)
        expires_at = self.clock.now() + PENDING_FOR
        replaced = digest(previous) if previous else None
        await self.store.start(digest(state), Pending(binding.id, return_to or "/", wanted, expires_at, replaced))
        named = document.get("authorization_response_iss_parameter_supported") is True
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")
        query = {
            "response_type": "code",
            "client_id": binding.client_id,
            "redirect_uri": self._redirect_uri(None if named else binding.id),
            "scope": " ".join(binding.scopes),
            "state": state,
            "nonce": nonce,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        acr_values = wanted.acr_values or binding.required_acr
        query |= {"acr_values": " ".join(acr_values)} if acr_values else {}
        max_age_s = binding.max_age_s(wanted.max_age_s)
        query |= {"max_age": str(max_age_s)} if max_age_s is not None else {}
        if "offline_access" in binding.scopes and prompt != "none":
            # A provider gives none without it (OpenID Connect Core 1.0, 11).
            prompt = " ".join(dict.fromkeys([*prompt.split(), "consent"]))
        query |= {"prompt": prompt} if prompt else {}
        url = _with_query(str(document["authorization_endpoint"]), query)
        return Started(url, state, self._derive("handle", state), nonce)

    async def _choose(self, domain_id: UUID | None, binding_id: UUID | None) -> Binding:
        for binding in await self.options(domain_id):
            if binding_id is None or binding.id == binding_id:
                return binding
        raise IdpBindingNotFound

    def _derive(self, use: str, state: str) -> str:
        tag = hmac.digest(self.pkce_key.reveal(), f"{use}:{state}".encode(), hashlib.sha256)
        return base64.urlsafe_b64encode(tag).decode().rstrip("=")

    async def logout_url(self, person_id: UUID) -> str:
        """Return where a person signs out of the provider, if there (OpenID Connect RP-Initiated Logout 1.0, 2)."""
        binding_id = await self.store.provider_of(person_id)
        binding = await self.store.binding(binding_id) if binding_id else None
        try:
            document = await self.provider.metadata(binding) if binding else {}
        except PlexError as error:
            # The session here is over, whatever the provider says.
            log.warning("sign_out.provider_unknown", code=error.code)
            return ""
        endpoint = str(document.get("end_session_endpoint", ""))
        # It goes into a header: no line end, and nothing that a browser would read in its own way.
        if binding is None or not (endpoint.startswith("https://") and endpoint.isascii() and endpoint.isprintable()):
            return ""
        home = urljoin(self.redirect_uri, "/")
        return _with_query(endpoint, {"client_id": binding.client_id, "post_logout_redirect_uri": home})

    def csrf_token(self, session_id: UUID) -> str:
        """Return the CSRF token of a session."""
        return hmac.digest(self.csrf_key.reveal(), session_id.bytes, hashlib.sha256).hex()

    def _redirect_uri(self, binding_id: UUID | None) -> str:
        # A provider that does not name itself in its answer gets a way back of its own (RFC 9700, 4.4.2.2).
        return f"{self.redirect_uri}/{binding_id}" if binding_id else self.redirect_uri

    async def complete(self, callback: Callback) -> Opened:
        """Finish a sign-in: the state is used up whatever happens, and every refusal has its row."""
        pending = await self.store.finish(digest(callback.state), self.clock.now())
        binding = await self.store.binding(pending.binding_id) if pending else None
        if pending is None or binding is None:
            await self.audit.count(_refusal(None, "state_unknown"))
            raise SignInStateInvalid
        if reason := self._state_refusal(pending, callback):
            # One row for a state and reason, however often it comes back.
            key = uuid5(SPACE, f"{digest(callback.state).hex()}/{reason}")
            await self._refused(binding, reason, key)
            raise SignInStateInvalid
        try:
            proved = await self._verified(binding, pending, callback)
            person = await self._person(binding, await self._completed(binding, proved))
            session_id = uuid7()
            grant = await self._grant(binding, session_id, proved, callback)
        except TokenRefused as refused:
            await self._refused(binding, refused.reason)
            raise SignInRefused from None
        except PlexError as refusal:
            await self._refused(binding, getattr(refusal, "reason", refusal.code))
            raise
        except Exception:
            # A bug on the way refuses too, and no refusal is without its row.
            await self._refused(binding, "internal")
            raise
        session = Session(session_id, person, proved.login, self.clock.now() + SESSION_FOR, proved.sid, grant)
        return await self._open(binding, session, str(proved.claims["sub"]), pending)

    def _state_refusal(self, pending: Pending, callback: Callback) -> str:
        if pending.used:
            return "state_replayed"
        if pending.expires_at <= self.clock.now():
            return "state_expired"
        # Whoever brings the answer must be who asked: else a person is signed in as somebody else (login CSRF).
        handle = self._derive("handle", callback.state)
        return "" if hmac.compare_digest(handle.encode(), callback.handle.encode()) else "state_foreign"

    async def _refused(self, binding: Binding, reason: str, key: UUID | None = None) -> None:
        REFUSALS.labels("sign_in", reason).inc()
        log.info("sign_in.refused", binding=str(binding.id), reason=reason)
        await self.audit.record(replace(_refusal(binding, reason), idempotency_key=key or uuid7()))

    async def _verified(self, binding: Binding, pending: Pending, callback: Callback) -> Proved:
        if binding.status != "active":
            raise TokenRefused("binding_inactive")
        if callback.binding_id not in {None, binding.id}:
            raise TokenRefused("response_binding")
        if callback.issuer != binding.issuer and (callback.issuer or callback.binding_id is None):
            raise TokenRefused("response_iss")
        if callback.error:
            raise TokenRefused("provider_error")
        if not callback.code:
            raise TokenRefused("code_missing")
        form = {
            "grant_type": "authorization_code",
            "code": callback.code,
            "redirect_uri": self._redirect_uri(callback.binding_id),
            "code_verifier": self._derive("verifier", callback.state),
        }
        with await self.secrets.client_secret(binding.client_secret_ref) as secret:
            answer = await self.provider.exchange(binding, secret, form)
        access_token, refresh_token = credential(answer, "access_token"), credential(answer, "refresh_token")
        token = answer.get("id_token")
        if not isinstance(token, str):
            raise TokenRefused("id_token_missing")
        keys = await self.provider.keys(binding, str(header_of(token).get("kid", "")))
        expected = Expected(
            issuer=binding.issuer,
            client_id=binding.client_id,
            nonce=self._derive("nonce", callback.state),
            now=self.clock.now().timestamp(),
            access_token=access_token,
            required_acr=binding.required_acr,
            asked_acr=pending.wanted.acr_values,
            required_amr=binding.required_amr,
            # Zero means now: not before this sign-in began, which no clock that ticks can say as an age.
            max_age_s=binding.max_age_s(pending.wanted.max_age_s) or None,
            leeway_s=binding.leeway_s,
            accepted_amr=binding.accepted_amr,
            algorithms=binding.algorithms,
        )
        claims, login = validate(token, keys, expected)
        began_s = int((pending.expires_at - PENDING_FOR).timestamp())
        if pending.wanted.max_age_s == 0:
            if login.auth_time is None:
                raise TokenRefused("auth_time_missing")
            if login.auth_time < began_s:
                raise TokenRefused("auth_time")
        return Proved(claims, login, access_token, refresh_token)

    async def _completed(self, binding: Binding, proved: Proved) -> dict[str, object]:
        """Return the claims, with the names that only the userinfo endpoint has (OpenID Connect Core 1.0, 5.3)."""
        missing = set(_names(binding).values()) - proved.claims.keys()
        if not missing or not proved.access_token:
            return proved.claims
        if "userinfo_endpoint" not in await self.provider.metadata(binding):
            return proved.claims
        found = await self.provider.userinfo(binding, proved.access_token)
        # Else it is about somebody else (5.3.2).
        if found.get("sub") != proved.claims["sub"]:
            raise TokenRefused("userinfo_sub")
        return proved.claims | {name: found[name] for name in missing & found.keys()}

    async def _grant(self, binding: Binding, session_id: UUID, proved: Proved, callback: Callback) -> Grant | None:
        if not proved.refresh_token:
            return None
        with Secret(proved.refresh_token.encode()) as token:
            wrapped = await self.vault.wrap_refresh(binding.domain_id, session_id, token)
        now = self.clock.now()
        nonce = digest(self._derive("nonce", callback.state))
        return Grant(wrapped, nonce, now + ASK_EVERY, now + BELIEVED_FOR)

    async def _person(self, binding: Binding, claims: dict[str, object]) -> Person:
        known = await self.store.person(binding, str(claims["sub"]))
        if known is None and binding.jit_policy != "allow":
            raise TokenRefused("unknown_person")
        names = _names(binding)
        return Person(
            id=known.id if known else uuid7(),
            domain_id=binding.domain_id,
            display_name=_text(claims.get(names["display_name"])),
            email=_text(claims.get(names["email"])),
        )

    def _administers(self, binding: Binding, subject: str) -> bool:
        # A subject is somebody at one issuer only: at another provider of the platform the name is anybody's.
        ours = binding.domain_id is None and binding.issuer == self.bootstrap_issuer
        return ours and subject in self.platform_admins

    async def _open(self, binding: Binding, session: Session, subject: str, pending: Pending) -> Opened:
        now = self.clock.now()
        # Known before it is recorded: of two first sign-ins at once one id stays, and the row must name that one. It
        # opens nothing by itself.
        try:
            person = await self.store.admit(binding, session.person, subject, now)
        except SignInRefused:
            # Deleted since it was looked at.
            await self._refused(binding, "binding_gone")
            raise
        admin = self._administers(binding, subject) and not await self.store.was_made_admin(person.id)
        await self.audit.record(
            Record(
                domain_id=str(binding.domain_id or ""),
                action="session.sign_in",
                relation="sign_in",
                object_type="idp_binding",
                object_id=str(binding.id),
                subject_id=str(person.id),
                subject_kind="user",
                # One row a request, so the grant that comes with it is named in it.
                context={"relation": ["platform_admin"]} if admin else {},
            )
        )
        if admin:
            await self.admins.grant_platform_admin(person.id)
        session = replace(session, person=person)
        cookie = random_text()
        # The id changes at every sign-in, so that a session fixed before it is worth nothing (step-up included).
        await self.store.open_session(session, digest(cookie), now, pending.previous)
        return Opened(session, cookie, self.csrf_token(session.id), pending.return_to)
