"""What the edge says of itself: health, version, its document, its page, its posture."""

import importlib.metadata
import json

from aiohttp import web

from services.gateway.answers import reply
from services.gateway.document import JSON
from services.gateway.edge import Asked, Route
from services.gateway.health import Health
from services.gateway.page import POLICY, render
from services.gateway.ports import Ports
from services.gateway.posture import ledger
from services.gateway.settings import Build

OPERATIONS = frozenset({"GetHealth", "GetVersion", "GetOpenAPI", "GetDocs", "GetPlatformPosture"})
DOWN = 503


def version() -> str:
    """Return the version of this build."""
    return importlib.metadata.version("plexsphere-security-core")


class Platform:
    """Handlers of the operations that need no service behind them."""

    def __init__(self, document: JSON, health: Health, ports: Ports, build: Build) -> None:
        self._document = json.dumps(document, separators=(",", ":")).encode()
        self._page = render(document)
        self._health = health
        self._ports = ports
        self._build = build

    def routes(self) -> dict[str, Route]:
        """Return the handlers by operation."""
        return {
            "GetHealth": Route(self.health),
            "GetVersion": Route(self.version),
            "GetOpenAPI": Route(self.openapi),
            "GetDocs": Route(self.docs),
            "GetPlatformPosture": Route(self.posture),
        }

    async def health(self, _: Asked) -> web.Response:
        """Say which services answer; 503 only when the edge could not serve anybody."""
        checks = [
            {"name": name, "status": "ok" if up else "down", "detail": "serving" if up else "not serving"}
            for name, up in sorted(self._health.up.items())
        ]
        status = self._health.status
        return reply({"status": status, "checks": checks}, DOWN if status == "down" else 200)

    async def version(self, _: Asked) -> web.Response:
        """Say which build this is."""
        return reply({"version": version(), "commit": self._build.commit, "date": self._build.date})

    async def openapi(self, _: Asked) -> web.Response:
        """Serve the document."""
        return web.Response(body=self._document, content_type="application/json")

    async def docs(self, _: Asked) -> web.Response:
        """Serve the page."""
        headers = {"Content-Security-Policy": POLICY}
        return web.Response(text=self._page, content_type="text/html", headers=headers)

    async def posture(self, _: Asked) -> web.Response:
        """Say how this deployment runs each row of the ledger."""
        rows = [
            {"id": row.id, "title": row.title, "posture": row.posture, "missing": list(row.missing)}
            for row in ledger(self._ports)
        ]
        return reply({"rows": rows})
