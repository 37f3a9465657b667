"""Signing in and out: authorization code and device flow, whoami, bindings for the sign-in page."""

import datetime as dt
from urllib.parse import urlencode

import structlog
from aiohttp import web

from libs import errors
from libs.errors import PlexError
from libs.rpc.channel import Peer
from plexsphere.identity.v1 import sign_in_pb2 as pb
from plexsphere.identity.v1 import sign_in_pb2_grpc as stubs
from services.gateway.answers import given, nothing, reply, when
from services.gateway.credentials import CSRF_COOKIE, SESSION_COOKIE
from services.gateway.edge import Asked, Route

PROVIDER_S = 15.0
SEE_OTHER = 303
# Says which browser started a sign-in. Its prefix keeps other sites of the same domain from planting one.
SIGN_IN_COOKIE = "__Host-plexsphere_sign_in"
SIGN_IN_S = 600
LONGEST_COOKIE = 512

log = structlog.get_logger()


class SignIn:
    """Handlers of the sign-in operations; `public_url` is where people reach the edge."""

    def __init__(self, identity: Peer, public_url: str) -> None:
        self._flows = stubs.SignInServiceStub(identity)
        self._sessions = stubs.SessionServiceStub(identity)
        self._public_url = public_url

    def routes(self) -> dict[str, Route]:
        """Return the handlers by operation."""
        return {
            "PostAuthSignIn": Route(self.start),
            "GetAuthIdPBindings": Route(self.options),
            "GetAuthCallback": Route(self.complete),
            "GetAuthBindingCallback": Route(self.complete),
            "PostAuthDeviceCode": Route(self.start_device),
            "PostAuthDeviceToken": Route(self.poll_device),
            "PostAuthDeviceInspect": Route(self.inspect_device),
            "PostAuthDeviceApprove": Route(self.approve_device),
            "PostAuthDeviceDeny": Route(self.deny_device),
            "PostAuthBackchannelLogout": Route(self.log_out),
            "GetAuthWhoami": Route(self.whoami),
            "DeleteAuthSession": Route(self.sign_out),
            "PostAuthSignOutGlobal": Route(self.sign_out_everywhere),
        }

    async def start(self, asked: Asked) -> web.Response:
        """Start an authorization code flow."""
        body = asked.body
        request = pb.StartSignInRequest(
            domain_id=body.get("domain_id", ""),
            idp_binding_id=body.get("idp_binding_id", ""),
            return_to=body.get("return_to", ""),
            prompt=body.get("prompt", ""),
            acr_values=body.get("acr_values", ()),
            max_age=body.get("max_age"),
            # The callback comes from the provider's site, and a strict cookie stays at home then.
            previous_session=cookie(asked, SESSION_COOKIE),
        )
        answer = await self._flows.StartSignIn(request, timeout=PROVIDER_S)
        response = reply(
            {
                "authorization_url": answer.authorization_url,
                "state": answer.state,
                "code_verifier_handle": answer.code_verifier_handle,
                "nonce": answer.nonce,
            }
        )
        response.set_cookie(
            SIGN_IN_COOKIE, answer.code_verifier_handle, max_age=SIGN_IN_S, secure=True, httponly=True, samesite="Lax"
        )
        return response

    async def options(self, asked: Asked) -> web.Response:
        """List the bindings through which somebody may sign in."""
        query = asked.query
        request = pb.ListSignInOptionsRequest(domain_id=query.get("domain_id", ""), scope=query.get("scope", ""))
        answer = await self._flows.ListSignInOptions(request)
        return reply(
            [
                {
                    "id": option.id,
                    **given(alias=option.alias),
                    "label": option.label,
                    "issuer_host": option.issuer_host,
                    "primary": option.primary,
                    "platform_scoped": option.platform_scoped,
                }
                for option in answer.options
            ]
        )

    async def complete(self, asked: Asked) -> web.Response:
        """Finish a flow: cookies and a redirect; a browser is told of a failure by redirect as well."""
        query = asked.query
        request = pb.CompleteSignInRequest(
            code=query.get("code", ""),
            state=query.get("state", ""),
            issuer=query.get("iss", ""),
            error=query.get("error", ""),
            code_verifier_handle=cookie(asked, SIGN_IN_COOKIE),
            idp_binding_id=asked.path.get("binding_id", ""),
        )
        try:
            answer = await self._flows.CompleteSignIn(request, timeout=PROVIDER_S)
        except PlexError as error:
            if "text/html" not in asked.http.headers.get("Accept", ""):
                raise
            return see_other(failure(error))
        response = see_other(local(answer.return_to))
        lifetime = answer.expires_at.ToDatetime(dt.UTC) - dt.datetime.now(dt.UTC)
        set_cookies(response, answer.session, answer.csrf_token, max(0, int(lifetime.total_seconds())))
        response.del_cookie(SIGN_IN_COOKIE, secure=True, httponly=True, samesite="Lax")
        return response

    async def start_device(self, asked: Asked) -> web.Response:
        """Start a device authorization."""
        body = asked.body
        request = pb.StartDeviceRequest(
            domain_id=body.get("domain_id", ""),
            idp_binding_id=body.get("idp_binding_id", ""),
            idp_binding_alias=body.get("idp_binding_alias", ""),
            client_id=body.get("client_id", ""),
            acr_values=body.get("acr_values", ()),
            max_age=body.get("max_age"),
        )
        answer = await self._flows.StartDevice(request)
        uri = f"{self._public_url}/device"
        return reply(
            {
                "device_code": answer.device_code,
                "user_code": answer.user_code,
                "verification_uri": uri,
                "verification_uri_complete": f"{uri}?{urlencode({'user_code': answer.user_code})}",
                "expires_in": answer.expires_in_s,
                "interval": answer.interval_s,
            }
        )

    async def poll_device(self, asked: Asked) -> web.Response:
        """Poll for the token of an approved device."""
        body = asked.body
        request = pb.PollDeviceRequest(device_code=body["device_code"], client_id=body.get("client_id", ""))
        answer = await self._flows.PollDevice(request)
        return reply({"access_token": answer.access_token, "token_type": "Bearer", "expires_in": answer.expires_in_s})

    async def inspect_device(self, asked: Asked) -> web.Response:
        """Say who shows a user code, to whoever may approve it."""
        request = pb.InspectDeviceRequest(user_code=asked.body["user_code"])
        require_session(asked)
        answer = await self._sessions.InspectDevice(request, metadata=asked.metadata)
        members = given(
            client_ip=answer.client_ip,
            user_agent=answer.user_agent,
            domain_name=answer.domain_name,
            acr_values=list(answer.acr_values),
        )
        if answer.HasField("max_age"):
            members["max_age"] = answer.max_age
        return reply(
            {
                "client_id": answer.client_id,
                "asked_at": when(answer.asked_at),
                "expires_at": when(answer.expires_at),
                "step_up_needed": answer.step_up_needed,
                **members,
            }
        )

    async def approve_device(self, asked: Asked) -> web.Response:
        """Approve a device's user code."""
        request = pb.ApproveDeviceRequest(user_code=asked.body["user_code"])
        require_session(asked)
        await self._sessions.ApproveDevice(request, metadata=asked.metadata)
        return reply({"status": "approved"})

    async def deny_device(self, asked: Asked) -> web.Response:
        """Deny a device's user code."""
        require_session(asked)
        await self._sessions.DenyDevice(
            pb.DenyDeviceRequest(user_code=asked.body["user_code"]), metadata=asked.metadata
        )
        return nothing()

    async def log_out(self, asked: Asked) -> web.Response:
        """Take a provider's word that somebody signed out there."""
        await self._flows.LogOut(pb.LogOutRequest(logout_token=asked.body["logout_token"]), timeout=PROVIDER_S)
        return web.Response()

    async def whoami(self, asked: Asked) -> web.Response:
        """Say who the caller is."""
        answer = await self._sessions.GetWhoami(pb.GetWhoamiRequest(), metadata=asked.metadata)
        members = given(
            principal_scope=answer.principal_scope,
            domain_id=answer.domain_id,
            email=answer.email,
            acr=answer.acr,
            amr=list(answer.amr),
        )
        return reply({"principal_type": answer.principal_type, "subject": answer.subject, **members})

    async def sign_out(self, asked: Asked) -> web.Response:
        """End the session that was presented, if any; the cookies go in any case, and so says the answer."""
        response = clear_cookies(nothing())
        if asked.metadata:
            try:
                answer = await self._sessions.SignOut(pb.SignOutRequest(), metadata=asked.metadata, timeout=PROVIDER_S)
            except PlexError as error:
                log.warning("sign_out.failed", code=error.code)
                return response
            add_logout_url(response, answer.logout_url)
        return response

    async def sign_out_everywhere(self, asked: Asked) -> web.Response:
        """End every session of the caller."""
        request = pb.SignOutEverywhereRequest()
        answer = await self._sessions.SignOutEverywhere(request, metadata=asked.metadata, timeout=PROVIDER_S)
        response = clear_cookies(nothing())
        add_logout_url(response, answer.logout_url)
        return response


def require_session(asked: Asked) -> None:
    """Raise Unauthenticated unless a browser's session asks: a token must not beget tokens."""
    if not asked.credential or not asked.credential.by_cookie:
        raise errors.Unauthenticated("a session is needed")


def cookie(asked: Asked, name: str) -> str:
    """Return a cookie, or nothing for one that is not there or longer than ours are."""
    value = asked.http.cookies.get(name, "")
    return value if len(value) <= LONGEST_COOKIE else ""


def add_logout_url(response: web.Response, url: str) -> None:
    """Say where the person signs out of the provider as well, when it has such a place."""
    if url:
        response.headers["X-Plexsphere-Logout-Url"] = url


def see_other(location: str) -> web.Response:
    """Return a redirect that is fetched with GET."""
    return web.Response(status=SEE_OTHER, headers={"Location": location})


def failure(error: PlexError) -> str:
    """Return where a browser goes whose sign-in failed."""
    told = {"auth_error_kind": error.code, "auth_error_status": error.http, "auth_error_detail": error.detail}
    return f"/?{urlencode(told)}"


def local(path: str) -> str:
    """Return the path when it stays on this site, else the root; identity allow-lists, this is the second look."""
    stays = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable()
    return path if stays else "/"


def set_cookies(response: web.Response, session: str, csrf: str, max_age_s: int) -> None:
    """Give the browser its session and the token that its pages repeat."""
    response.set_cookie(
        SESSION_COOKIE, session, max_age=max_age_s, path="/v1/", secure=True, httponly=True, samesite="Strict"
    )
    response.set_cookie(CSRF_COOKIE, csrf, max_age=max_age_s, path="/", secure=True, samesite="Strict")


def clear_cookies(response: web.Response) -> web.Response:
    """Take both cookies back."""
    response.del_cookie(SESSION_COOKIE, path="/v1/", secure=True, httponly=True, samesite="Strict")
    response.del_cookie(CSRF_COOKIE, path="/", secure=True, samesite="Strict")
    return response
