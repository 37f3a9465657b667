"""The rules of signing in: authorization code with PKCE (RFC 7636), state, nonce and the issuer's answer (RFC 9207)."""

import base64
import datetime
import hashlib
import hmac
from dataclasses import dataclass
from urllib.parse import urlencode
from uuid import UUID

import structlog

from libs.clock import Clock
from libs.custody import Secret
from libs.decision import ANONYMOUS, Record
from libs.errors import IdpBindingNotFound, InvalidRequest, PlexError, SignInRefused, SignInStateInvalid
from libs.ids import uuid7
from libs.telemetry import REFUSALS
from services.identity.bindings import offered
from services.identity.id_token import Expected, TokenRefused, header_of, validate
from services.identity.ports import Recorder
from services.identity.sign_in_model import Binding, Login, Pending, Person, Session, Wanted, digest, random_text
from services.identity.sign_in_ports import Admins, ClientSecrets, Provider, SignInStore

PENDING_FOR = datetime.timedelta(minutes=10)
SESSION_FOR = datetime.timedelta(hours=12)

log = structlog.get_logger()


def _text(claim: object) -> str:
    # Characters that no database stores and no page shows are left out: NUL, lone surrogates, line ends.
    return "".join(filter(str.isprintable, claim))[:256] if isinstance(claim, str) else ""


@dataclass(frozen=True)
class Started:
    """Where the browser goes, and what the client may know of it."""

    authorization_url: str
    state: str
    handle: str
    nonce: str


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
    audit: Recorder
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
        self, domain_id: UUID | None, binding_id: UUID | None, return_to: str, prompt: str, wanted: Wanted
    ) -> Started:
        """Start a sign-in at a binding; PKCE verifier and nonce are derived from the state and never stored."""
        binding = await self._choose(domain_id, binding_id)
        if return_to and return_to not in self.return_paths:
            raise InvalidRequest("return_to is not allowed")
        document = await self.provider.metadata(binding)
        state = random_text()
        verifier, nonce = self._derive("verifier", state), self._derive("nonce", state)
        expires_at = self.clock.now() + PENDING_FOR
        await self.store.start(digest(state), Pending(binding.id, return_to or "/", wanted, expires_at))
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")
        query = {
            "response_type": "code",
            "client_id": binding.client_id,
            "redirect_uri": self.redirect_uri,
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
        query |= {"prompt": prompt} if prompt else {}
        endpoint = str(document["authorization_endpoint"])
        # It may have a query of its own (RFC 6749, 3.1).
        url = f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(query)}"
        return Started(url, state, self._derive("handle", state), nonce)

    async def _choose(self, domain_id: UUID | None, binding_id: UUID | None) -> Binding:
        for binding in await self.options(domain_id):
            if binding_id is None or binding.id == binding_id:
                return binding
        raise IdpBindingNotFound

    def _derive(self, use: str, state: str) -> str:
        tag = hmac.digest(self.pkce_key.reveal(), f"{use}:{state}".encode(), hashlib.sha256)
        return base64.urlsafe_b64encode(tag).decode().rstrip("=")

    def csrf_token(self, session_id: UUID) -> str:
        """Return the CSRF token of a session."""
        return hmac.digest(self.csrf_key.reveal(), session_id.bytes, hashlib.sha256).hex()

    async def complete(self, code: str, state: str, issuer: str, error: str, previous: str) -> Opened:
        """Finish a sign-in: the state is used up whatever happens, and every refusal has its row."""
        pending = await self.store.finish(digest(state), self.clock.now())
        binding = await self.store.binding(pending.binding_id) if pending else None
        if pending is None or binding is None:
            REFUSALS.labels("sign_in", "state").inc()
            raise SignInStateInvalid
        try:
            subject, claims, login = await self._verified(binding, pending, code, state, issuer, error)
            person = await self._person(binding, subject, claims)
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
        return await self._open(binding, person, subject, login, pending, previous)

    async def _refused(self, binding: Binding, reason: str) -> None:
        REFUSALS.labels("sign_in", reason).inc()
        log.info("sign_in.refused", binding=str(binding.id), reason=reason)
        await self.audit.record(
            Record(
                domain_id=str(binding.domain_id or ""),
                action="session.sign_in",
                relation="sign_in",
                object_type="idp_binding",
                object_id=str(binding.id),
                reason="caveat_violation",
                subject_kind=ANONYMOUS,
                context={"id_token": [reason]},
            )
        )

    async def _verified(
        self, binding: Binding, pending: Pending, code: str, state: str, issuer: str, error: str
    ) -> tuple[str, dict[str, object], Login]:
        if binding.status != "active":
            raise TokenRefused("binding_inactive")
        document = await self.provider.metadata(binding)
        if issuer != binding.issuer and (issuer or document.get("authorization_response_iss_parameter_supported")):
            raise TokenRefused("response_iss")
        if error or not code:
            raise TokenRefused("provider_error")
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self.redirect_uri,
            "code_verifier": self._derive("verifier", state),
        }
        with await self.secrets.client_secret(binding.client_secret_ref) as secret:
            answer = await self.provider.exchange(binding, secret, form)
        token = answer.get("id_token")
        if not isinstance(token, str):
            raise TokenRefused("id_token_missing")
        keys = await self.provider.keys(binding, str(header_of(token).get("kid", "")))
        expected = Expected(
            issuer=binding.issuer,
            client_id=binding.client_id,
            nonce=self._derive("nonce", state),
            now=self.clock.now().timestamp(),
            access_token=str(answer.get("access_token", "")),
            required_acr=binding.required_acr,
            asked_acr=pending.wanted.acr_values,
            required_amr=binding.required_amr,
            max_age_s=binding.max_age_s(pending.wanted.max_age_s),
            leeway_s=binding.leeway_s,
            accepted_amr=binding.accepted_amr,
            algorithms=binding.algorithms,
        )
        claims, login = validate(token, keys, expected)
        return claims["sub"], claims, login

    async def _person(self, binding: Binding, subject: str, claims: dict[str, object]) -> Person:
        known = await self.store.person(binding, subject)
        if known is None and binding.jit_policy != "allow":
            raise TokenRefused("unknown_person")
        names = {"email": "email", "display_name": "name"} | binding.claim_mappings
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

    async def _open(
        self, binding: Binding, person: Person, subject: str, login: Login, pending: Pending, previous: str
    ) -> Opened:
        now = self.clock.now()
        # Known before it is recorded: of two first sign-ins at once one id stays, and the row must name that one. It
        # opens nothing by itself.
        person = await self.store.admit(binding, person, subject, now)
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
        session = Session(uuid7(), person, login, now + SESSION_FOR)
        cookie = random_text()
        # The id changes at every sign-in, so that a session fixed before it is worth nothing (step-up included).
        await self.store.open_session(session, digest(cookie), now, digest(previous) if previous else None)
        return Opened(session, cookie, self.csrf_token(session.id), pending.return_to)
