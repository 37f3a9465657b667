"""identity.AuthenticationService, SignInService and SessionService: unpack, call the rule, pack."""

import datetime
from typing import Any, TypeAlias
from urllib.parse import urlsplit
from uuid import UUID

import grpc

from libs.decision import GRANTED, Record
from libs.errors import Forbidden, Unauthenticated
from libs.principal import Principal
from libs.rpc.context import current_call, current_principal
from libs.step_up import BY_PERSON
from plexsphere.identity.v1 import sign_in_pb2 as pb
from plexsphere.identity.v1 import sign_in_pb2_grpc
from services.identity import pack
from services.identity.authentication import Authentication
from services.identity.devices import Devices
from services.identity.logout import Logout
from services.identity.sign_in import SignIn
from services.identity.sign_in_model import Asker, Callback, Login, Person, Session, Wanted

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


def session_behind(principal: Principal) -> Session:
    """Return the session as the principal assertion states it; raises Unauthenticated for any other credential."""
    if principal.credential != "session":
        # A token must not beget tokens; the gateway refuses it too, and is not believed about it.
        raise Unauthenticated("a session is needed")
    person = Person(UUID(principal.subject), pack.optional_id(principal.domain_id))
    login = Login(principal.acr, principal.amr, principal.auth_time)
    return Session(UUID(principal.session_id), person, login, pack_expiry(principal))


def pack_expiry(principal: Principal) -> datetime.datetime:
    """Return when the assertion expires."""
    return datetime.datetime.fromtimestamp(principal.expires_at, datetime.UTC)


class AuthenticationApi(sign_in_pb2_grpc.AuthenticationServiceServicer):
    """Turns credentials into assertions."""

    def __init__(self, authentication: Authentication) -> None:
        self._authentication = authentication
        self._verifiers = {
            pb.CREDENTIAL_KIND_SESSION_COOKIE: authentication.session_cookie,
            pb.CREDENTIAL_KIND_OPERATOR_BEARER: authentication.operator_bearer,
            pb.CREDENTIAL_KIND_NODE_BEARER: authentication.node_bearer,
        }

    async def Authenticate(self, request: pb.AuthenticateRequest, context: Context) -> pb.AuthenticateResponse:
        if request.standing and request.kind == pb.CREDENTIAL_KIND_NODE_BEARER:
            signed, node, agent = await self._authentication.node_with_standing(request.credential, request.audience)
            standing = pb.NodeStanding(domain_id=node.domain_id, project_id=node.project_id, agent=agent)
            return pb.AuthenticateResponse(assertion=signed[0], expires_at=pack.timestamp(signed[1]), standing=standing)
        assertion, expires_at = await self._verifiers[request.kind](request.credential, request.audience)
        return pb.AuthenticateResponse(assertion=assertion, expires_at=pack.timestamp(expires_at))


class SignInApi(sign_in_pb2_grpc.SignInServiceServicer):
    """Brings people in."""

    def __init__(self, sign_in: SignIn, devices: Devices, logout: Logout) -> None:
        self._sign_in = sign_in
        self._devices = devices
        self._logout = logout

    async def ListSignInOptions(
        self, request: pb.ListSignInOptionsRequest, context: Context
    ) -> pb.ListSignInOptionsResponse:
        domain_id = None if request.scope == "platform" else pack.optional_id(request.domain_id)
        options = [
            pb.SignInOption(
                id=str(row.id), alias=row.alias, label=row.alias or urlsplit(row.issuer).hostname or "",
                issuer_host=urlsplit(row.issuer).netloc, primary=row.primary, platform_scoped=row.domain_id is None,
            )
            for row in await self._sign_in.options(domain_id)
        ]  # fmt: skip
        return pb.ListSignInOptionsResponse(options=options)

    async def StartSignIn(self, request: pb.StartSignInRequest, context: Context) -> pb.StartSignInResponse:
        wanted = Wanted(tuple(request.acr_values), request.max_age if request.HasField("max_age") else None)
        domain_id, binding_id = pack.optional_id(request.domain_id), pack.optional_id(request.idp_binding_id)
        started = await self._sign_in.start(
            domain_id, binding_id, request.return_to, request.prompt, wanted, request.previous_session
        )
        return pb.StartSignInResponse(
            authorization_url=started.authorization_url,
            state=started.state,
            code_verifier_handle=started.handle,
            nonce=started.nonce,
        )

    async def CompleteSignIn(self, request: pb.CompleteSignInRequest, context: Context) -> pb.CompleteSignInResponse:
        callback = Callback(
            state=request.state,
            code=request.code,
            issuer=request.issuer,
            error=request.error,
            handle=request.code_verifier_handle,
            binding_id=pack.optional_id(request.idp_binding_id),
        )
        opened = await self._sign_in.complete(callback)
        return pb.CompleteSignInResponse(
            session=opened.cookie,
            csrf_token=opened.csrf,
            expires_at=pack.timestamp(opened.session.expires_at),
            return_to=opened.return_to,
        )

    async def StartDevice(self, request: pb.StartDeviceRequest, context: Context) -> pb.StartDeviceResponse:
        wanted = Wanted(tuple(request.acr_values), request.max_age if request.HasField("max_age") else None)
        domain_id, binding_id = pack.optional_id(request.domain_id), pack.optional_id(request.idp_binding_id)
        call = current_call()
        device, device_code, user_code = await self._devices.start(
            domain_id, request.client_id, wanted, binding_id, request.idp_binding_alias,
            Asker(call.client_ip, call.user_agent),
        )  # fmt: skip
        return pb.StartDeviceResponse(
            device_code=device_code, user_code=user_code, expires_in_s=600, interval_s=device.interval_s
        )

    async def PollDevice(self, request: pb.PollDeviceRequest, context: Context) -> pb.PollDeviceResponse:
        token, lifetime_s = await self._devices.poll(request.device_code, request.client_id)
        return pb.PollDeviceResponse(access_token=token, expires_in_s=lifetime_s)

    async def LogOut(self, request: pb.LogOutRequest, context: Context) -> pb.LogOutResponse:
        await self._logout.accept(request.logout_token)
        return pb.LogOutResponse()


class SessionApi(sign_in_pb2_grpc.SessionServiceServicer):
    """What a signed-in person does with the own session."""

    def __init__(self, sign_in: SignIn, devices: Devices) -> None:
        self._sign_in = sign_in
        self._devices = devices

    async def GetWhoami(self, request: pb.GetWhoamiRequest, context: Context) -> pb.GetWhoamiResponse:
        principal = current_principal()
        cookie = principal.credential == "session"
        return pb.GetWhoamiResponse(
            principal_type=principal.kind,
            principal_scope="domain" if principal.domain_id else "platform",
            subject=principal.subject,
            domain_id=principal.domain_id,
            email=await self._sign_in.store.email(UUID(principal.subject)),
            acr=principal.acr,
            amr=principal.amr,
            csrf_token=self._sign_in.csrf_token(UUID(principal.session_id)) if cookie else "",
        )

    async def SignOut(self, request: pb.SignOutRequest, context: Context) -> pb.SignOutResponse:
        principal = current_principal()
        await self._record(principal, "session.sign_out")
        if principal.credential == "session":
            await self._sign_in.store.end_session(UUID(principal.session_id))
        elif principal.credential == "access_token":
            await self._sign_in.store.end_token(UUID(principal.session_id))
        return pb.SignOutResponse(logout_url=await self._sign_in.logout_url(UUID(principal.subject)))

    async def SignOutEverywhere(
        self, request: pb.SignOutEverywhereRequest, context: Context
    ) -> pb.SignOutEverywhereResponse:
        principal = current_principal()
        if principal.credential not in BY_PERSON:
            # A token that leaked must not lock its owner out.
            await self._record(principal, "session.sign_out_everywhere", "caveat_violation")
            raise Forbidden("a token may not do this; sign in", reason="caveat_violation", relation_path=[])
        await self._record(principal, "session.sign_out_everywhere")
        ended = await self._sign_in.store.end_sessions(UUID(principal.subject))
        url = await self._sign_in.logout_url(UUID(principal.subject))
        return pb.SignOutEverywhereResponse(ended=ended, logout_url=url)

    async def InspectDevice(self, request: pb.InspectDeviceRequest, context: Context) -> pb.InspectDeviceResponse:
        asking = await self._devices.inspect(session_behind(current_principal()), request.user_code)
        device = asking.device
        return pb.InspectDeviceResponse(
            client_id=device.client_id,
            client_ip=device.asker.client_ip,
            user_agent=device.asker.user_agent,
            asked_at=pack.timestamp(asking.asked_at),
            expires_at=pack.timestamp(device.expires_at),
            domain_name=asking.domain_name,
            acr_values=device.wanted.acr_values,
            max_age=device.wanted.max_age_s,
            step_up_needed=asking.step_up_needed,
        )

    async def ApproveDevice(self, request: pb.ApproveDeviceRequest, context: Context) -> pb.ApproveDeviceResponse:
        await self._devices.approve(session_behind(current_principal()), request.user_code)
        return pb.ApproveDeviceResponse()

    async def DenyDevice(self, request: pb.DenyDeviceRequest, context: Context) -> pb.DenyDeviceResponse:
        await self._devices.deny(session_behind(current_principal()), request.user_code)
        return pb.DenyDeviceResponse()

    async def _record(self, principal: Principal, action: str, reason: str = GRANTED) -> None:
        await self._sign_in.audit.record(
            Record(
                domain_id=principal.domain_id,
                action=action,
                relation="sign_out",
                object_type="session",
                object_id=principal.session_id or principal.subject,
                reason=reason,
                subject_id=principal.subject,
                subject_kind=principal.kind,
            )
        )
