"""The gateway process: its parts, and how they fit."""

from collections.abc import Mapping

from aiohttp import web

from libs.process import main
from libs.rpc.channel import Peer, connect
from libs.rpc.server import until_told
from services.gateway import platform
from services.gateway.audit import Audit
from services.gateway.credentials import AssertionCache, Authenticator
from services.gateway.document import load, operations
from services.gateway.edge import Edge, Route, build
from services.gateway.fleet import Fleet
from services.gateway.gate import Ports
from services.gateway.health import Health
from services.gateway.limits import AddressLimit
from services.gateway.nodes import Nodes
from services.gateway.platform import Platform
from services.gateway.revocations import follow_revocations
from services.gateway.secrets import Secrets
from services.gateway.server import follow_certificate, listening, tls_context
from services.gateway.settings import GatewaySettings, Rate
from services.gateway.sign_in import SignIn
from services.gateway.tenancy import Tenancy
from services.gateway.validation import compile_rules


def limit(rate: Rate) -> AddressLimit:
    """Return a limit per client address."""
    return AddressLimit(rate.per_minute, rate.burst)


def application(
    settings: GatewaySettings, peers: Mapping[str, Peer], cache: AssertionCache, health: Health, ports: Ports
) -> web.Application:
    """Return the edge: the document, the handlers, and the way to them."""
    identity = peers["identity"]
    routes: dict[str, Route] = {
        **SignIn(identity, settings.public_url).routes(),
        **Tenancy(identity).routes(),
        **Fleet(identity).routes(),
        **Nodes(identity, ports).routes(),
        **Secrets(peers["secrets"]).routes(),
        **Audit(peers["audit"]).routes(),
    }
    document = load(settings.public_url, routes.keys() | platform.OPERATIONS, platform.version())
    routes |= Platform(document, health, ports, settings.build).routes()
    limits = {
        "PostRegister": limit(settings.limits.registration),
        "PostAuthSignIn": limit(settings.limits.sign_in),
        "PostAuthDeviceCode": limit(settings.limits.device_code),
    }
    authenticator = Authenticator(identity, cache, limit(settings.limits.bad_bearer))
    edge = Edge(authenticator, limits, frozenset(settings.allowed_origins), settings.request_timeout_s)
    return build(edge, [compile_rules(document, one) for one in operations(document)], routes)


async def run(settings: GatewaySettings) -> None:
    """Serve the edge until told to stop."""
    wanted = settings.peers
    async with (
        connect(wanted.identity, settings.tls) as identity,
        connect(wanted.access, settings.tls) as access,
        connect(wanted.secrets, settings.tls) as secrets,
        connect(wanted.mesh, settings.tls) as mesh,
        connect(wanted.audit, settings.tls) as audit,
    ):
        peers = {"identity": identity, "access": access, "secrets": secrets, "mesh": mesh, "audit": audit}
        cache, health = AssertionCache(), Health(peers)
        # The five ports of the signed event bus are not provided by this version.
        app = application(settings, peers, cache, health, Ports())
        context = tls_context(settings.certificate)
        async with listening(app, settings.listen, context, settings.drain_s):
            await until_told(
                [
                    follow_revocations(identity, cache),
                    follow_certificate(settings.certificate, context),
                    health.watch(),
                ]
            )
            health.draining = True


if __name__ == "__main__":
    main(GatewaySettings, run)
