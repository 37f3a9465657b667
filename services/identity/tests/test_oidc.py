"""Signing in at the real provider, with the secret from the real OpenBao; and at providers that answer crookedly."""

import contextlib
import ipaddress
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from uuid import UUID

import aiohttp
import pytest

from devstack.layout import CLIENT_ID, State
from devstack.login import authorize
from libs import tls as contexts
from libs.bao import Bao
from libs.clock import SystemClock
from libs.counted import Counted
from libs.custody import Secret, read_secret_file
from libs.errors import SignInRefused
from services.identity.oidc import HttpProvider
from services.identity.sign_in import Opened, SignIn
from services.identity.sign_in_model import Callback, Wanted
from services.identity.tests.fakes import FakeAudit
from services.identity.tests.sign_in_fakes import FakeAdmins, FakeSignInStore, a_binding
from services.identity.vault import BaoVault

pytestmark = pytest.mark.integration

NEAR = [ipaddress.ip_network("127.0.0.1/32")]
MFA, PWD = "urn:plexsphere:acr:mfa", "urn:plexsphere:acr:pwd"


@dataclass
class Party:
    """The rules, a browser, and the real provider behind them."""

    state: State
    http: aiohttp.ClientSession
    provider: HttpProvider
    sign_in: SignIn
    store: FakeSignInStore
    audit: FakeAudit
    domain_id: UUID | None = None

    @property
    def reasons(self) -> list[str]:
        return [reason for row in self.audit.rows for reason in row.context.get("id_token", [])]

    async def walk(self, who: dict[str, str], wanted: Wanted | None = None) -> Opened:
        started = await self.sign_in.start(None, None, "", "", wanted or Wanted())
        edge = self.sign_in.redirect_uri.removesuffix("/v1/auth/callback")
        back = await authorize(self.http, started.authorization_url, edge, who, {})
        answer = dict(parse_qsl(urlsplit(back).query))
        return await self.sign_in.complete(
            Callback(answer["state"], answer["code"], answer["iss"], handle=started.handle)
        )


@contextlib.asynccontextmanager
async def party(state: State, bao: Bao, name: str, **binding: Any) -> AsyncIterator[Party]:
    """Bind one of the stack's providers; `binding` overrides what the binding says."""
    ca_file, issuer = state / "pki/ca.crt", state.issuer(name)
    store, audit, provider = FakeSignInStore([]), FakeAudit([]), HttpProvider(ca_file, NEAR, SystemClock())
    bound = a_binding(None, issuer, client_id=CLIENT_ID, client_secret_ref=f"kv/idp/platform/{name}", **binding)
    store.binding_rows[bound.id] = bound
    sign_in = SignIn(
        store=store, provider=provider, secrets=BaoVault(bao), vault=BaoVault(bao),
        audit=Counted(audit, SystemClock()), admins=FakeAdmins([]), clock=SystemClock(),
        pkce_key=read_secret_file(state / "secrets/pkce.key"), csrf_key=Secret(b"c" * 32),
        redirect_uri=f"{state.edge_url}/v1/auth/callback", bootstrap_issuer=issuer, platform_admins=(),
    )  # fmt: skip
    connector = aiohttp.TCPConnector(ssl=contexts.trusting(ca_file))
    async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as http:
        try:
            yield Party(state, http, provider, sign_in, store, audit)
        finally:
            await provider.close()


async def test_a_login_at_the_real_provider_opens_a_session(backends: State, bao: Bao) -> None:
    async with party(backends, bao, "oidc-a", required_acr=(MFA,), required_amr=("otp",)) as one:
        opened = await one.walk({"subject": "ada", "acr": MFA, "amr": "pwd otp", "auth_age": "30"})
        login, person = opened.session.login, opened.session.person
        assert (login.acr, login.amr, person.email) == (MFA, ("pwd", "otp"), "ada@example.test")
        assert login.auth_time is not None
        assert 29 <= SystemClock().now().timestamp() - login.auth_time <= 40
        again = await one.walk({"subject": "ada", "acr": MFA, "amr": "pwd otp"})
        assert again.session.person.id == person.id


@pytest.mark.parametrize(
    ("who", "wanted", "reason"),
    [
        ({"acr": PWD, "amr": "pwd otp"}, Wanted(), "acr"),
        ({"acr": PWD, "amr": "pwd otp"}, Wanted((PWD,)), "acr"),
        ({"acr": MFA, "amr": "pwd"}, Wanted(), "amr"),
        ({"amr": "pwd otp"}, Wanted(), "acr_missing"),
    ],
    ids=["another class", "asked for less than demanded", "a method short", "no class"],
)
async def test_a_login_below_the_floor_opens_none(
    backends: State, bao: Bao, who: dict[str, str], wanted: Wanted, reason: str
) -> None:
    async with party(backends, bao, "oidc-a", required_acr=(MFA,), required_amr=("otp",)) as one:
        with pytest.raises(SignInRefused):
            await one.walk({"subject": "ada"} | who, wanted)
        assert (one.reasons, one.store.sessions) == ([reason], {})


async def test_a_new_key_is_fetched_at_once_also_right_after_another(backends: State, bao: Bao) -> None:
    async with party(backends, bao, "oidc-b") as one:

        async def rotate() -> None:
            url = f"{backends.issuer('oidc-b')}/development/rotate-keys"
            async with one.http.post(url, data={"forget": "1"}) as answer:
                assert answer.status == 204

        await one.walk({"subject": "ada"})
        await rotate()
        await one.walk({"subject": "ada"})
        await rotate()
        await one.walk({"subject": "ada"})
        assert one.reasons == []
