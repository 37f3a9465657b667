"""Prometheus of the profile `observability`: it sees the six as the rules' jobs, and has the shipped rules."""

from typing import Any

import aiohttp
import pytest
import yaml

from devstack.layout import SERVICES
from tests.compose.containers import Containers, Inside
from tests.compose.engine import ROOT
from tests.e2e.attacker import eventually, tls_of

pytestmark = pytest.mark.compose


async def asked(containers: Containers, what: str) -> Any:
    """Ask its API, from its network and with a certificate."""
    connector = aiohttp.TCPConnector(ssl=tls_of(containers, "grafana"), resolver=Inside())
    async with (
        aiohttp.ClientSession(connector=connector) as http,
        http.get(f"https://prometheus:9090/api/v1/{what}") as answer,
    ):
        assert answer.status == 200
        return (await answer.json())["data"]


async def test_it_scrapes_the_six(containers: Containers) -> None:
    async def seen() -> bool:
        targets = (await asked(containers, "targets"))["activeTargets"]
        return {one["labels"]["job"] for one in targets if one["health"] == "up"} == set(SERVICES)

    await eventually(seen, 60)


async def test_it_has_every_shipped_rule_and_none_is_broken(containers: Containers) -> None:
    shipped = [yaml.safe_load(path.read_text()) for path in (ROOT / "deploy/observability/rules").glob("*.yaml")]
    wanted = {group["name"]: len(group["rules"]) for one in shipped for group in one["groups"]}
    loaded = (await asked(containers, "rules"))["groups"]
    assert {group["name"]: len(group["rules"]) for group in loaded} == wanted
    assert not [rule["name"] for group in loaded for rule in group["rules"] if rule["health"] == "err"]
