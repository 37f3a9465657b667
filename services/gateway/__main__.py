"""The gateway process: its parts, and how they fit."""

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack, nullcontext

from aiohttp import web

from libs.audit import AuditClient
from libs.clock import SystemClock
from libs.nats import Bus, open_bus
from libs.process import main
from libs.rpc.channel import Peer, connect
from libs.rpc.context import PRINCIPAL_KEY, current_call
from libs.rpc.server import until_told
from libs.telemetry import EVENTS_UP, READY, RING
from services.gateway import platform
from services.gateway.access_policy import AccessPolicies
from services.gateway.audit import Audit
from services.gateway.authorization import Authorization
from services.gateway.bindings import Bindings
from services.gateway.bus import JetStreamEvents
from services.gateway.credentials import AssertionCache, Authenticator
from services.gateway.denials import Denials
from services.gateway.document import load, operations
from services.gateway.edge import Asked, Edge, Route, build
from services.gateway.events import Events
from services.gateway.fleet import Fleet
from services.gateway.gate import open_gate
from services.gateway.health import Health
from services.gateway.heap import keep_settled
from services.gateway.hub import Hub
from services.gateway.limits import AddressLimit
from services.gateway.mesh import MeshKeys, MeshNonces, Reconciler
from services.gateway.nodes import Nodes
from services.gateway.people import People
from services.gateway.platform import Platform
from services.gateway.ports import Ports
from services.gateway.refusals import RefusedEnvelopes
from services.gateway.revocations import follow_revocations
from services.gateway.secrets import Secrets
from services.gateway.server import follow_certificate, listening, tls_context
from services.gateway.sessions import Sessions
from services.gateway.settings import GatewaySettings, Rate
from services.gateway.sign_in import SignIn
from services.gateway.signing_keys import Mesh
from services.gateway.standings import IdentityStandings
from services.gateway.tenancy import Tenancy
from services.gateway.tokens import Tokens
from services.gateway.validation import compile_rules


def limit(rate: Rate) -> AddressLimit:
    """Return a limit per client address."""
    return AddressLimit(rate.per_minute, rate.burst)


def application(
    settings: GatewaySettings,
    peers: Mapping[str, Peer],
    cache: AssertionCache,
    health: Health,
    ports: Ports,
    hub: Hub | None,
) -> web.Application:
    """Return the edge: the document, the handlers, and the way to them."""
    identity, denials = peers["identity"], Denials(AuditClient(peers["audit"]), SystemClock())
    authenticator = Authenticator(identity, cache, limit(settings.limits.bad_bearer))

    async def vouch(asked: Asked, audience: str) -> tuple[tuple[str, str], ...]:
        if asked.credential is None:
            return ()
        address = current_call().client_ip
        return ((PRINCIPAL_KEY, await authenticator.assertion(asked.credential, audience, address)),)

    routes: dict[str, Route] = {
        **SignIn(identity, settings.public_url).routes(),
        **Tenancy(identity).routes(),
        **Bindings(identity).routes(),
        **AccessPolicies(identity).routes(),
        **Authorization(identity).routes(),
        **Tokens(identity).routes(),
        **People(identity).routes(),
        **Fleet(identity).routes(),
        **Nodes(identity).routes(),
        **Events(ports, hub, cache, Reconciler(peers["mesh"]), denials).routes(),
        **Mesh(peers["mesh"], peers["access"], vouch).routes(),
        **Sessions(peers["access"]).routes(),
        **Secrets(peers.get("secrets")).routes(),
        **Audit(peers["audit"]).routes(),
    }
    provisioned = {operation for operation, route in routes.items() if route.provisioned}
    document = load(settings.public_url, provisioned | platform.OPERATIONS, platform.version())
    routes |= Platform(document, health, ports, settings.build).routes()
    limits = {
        "PostRegister": limit(settings.limits.registration),
        "PostAuthSignIn": limit(settings.limits.sign_in),
        "PostAuthDeviceCode": limit(settings.limits.device_code),
        "PostAuthServiceToken": limit(settings.limits.service_token),
        "PostAuthBackchannelLogout": limit(settings.limits.sign_in),
    }
    origins = frozenset(settings.allowed_origins)
    edge = Edge(authenticator, denials, limits, origins, settings.request_timeout_s, settings.trusted_proxies)
    return build(edge, compile_rules(document, operations(document)), routes)


def provided(settings: GatewaySettings, peers: Mapping[str, Peer], cache: AssertionCache, bus: Bus) -> Ports:
    """Return the ports that this deployment provides."""
    mesh, standings = peers["mesh"], IdentityStandings(peers["identity"], cache)
    return Ports(
        event_stream=JetStreamEvents(bus, mesh) if "event_stream" in settings.ports else None,
        nonce_store=MeshNonces(mesh) if "nonce_store" in settings.ports else None,
        signature_verifier=MeshKeys(mesh) if "signature_verifier" in settings.ports else None,
        relation_checker=standings if "relation_checker" in settings.ports else None,
        node_repo=standings if "node_repo" in settings.ports else None,
    )


async def run(settings: GatewaySettings) -> None:
    """Serve the edge until told to stop."""
    wanted = settings.peers
    async with (
        connect(wanted.identity, settings.tls) as identity,
        connect(wanted.access, settings.tls) as access,
        connect(wanted.secrets, settings.tls) if wanted.secrets else nullcontext() as secrets,
        connect(wanted.mesh, settings.tls) as mesh,
        connect(wanted.audit, settings.tls) as audit,
        open_bus(settings.nats, settings.tls, settings.service) as bus,
    ):
        peers = {"identity": identity, "access": access, "mesh": mesh, "audit": audit}
        if secrets is not None:
            peers["secrets"] = secrets
        cache, health = AssertionCache(), Health(peers)
        ports = provided(settings, peers, cache, bus)
        refusals = RefusedEnvelopes(AuditClient(audit), ports.signature_verifier, SystemClock())
        hub = None if ports.missing else Hub(open_gate(ports), refusals, Reconciler(mesh).request)
        app = application(settings, peers, cache, health, ports, hub)
        context = tls_context(settings.certificate)
        background = [
            follow_revocations(identity, cache, hub),
            follow_certificate(settings.certificate, context),
            health.watch(),
        ]
        READY.labels("nats").set_function(lambda: bus.connected)
        if hub is not None:
            EVENTS_UP.set_function(lambda: hub.ready)
            RING.set_function(lambda: hub.held)
            background += [hub.run(), hub.beat(), hub.pulse(), hub.probe(), refusals.run()]
            background.append(keep_settled(lambda: hub.opened, lambda: hub.held))
        half_s = settings.drain_s / 2
        async with AsyncExitStack() as door:
            leave = await door.enter_async_context(listening(app, settings.listen, context, half_s))

            async def drain() -> None:
                health.draining = True
                # Whoever still comes is answered, and told to come by another connection from then on.
                await asyncio.gather(leave(), *([hub.drain(half_s)] if hub else []))
                await door.aclose()

            await until_told(background, drain)


if __name__ == "__main__":
    main(GatewaySettings, run)
