"""Writes docs/scaling.md: its text is tools/scaling.md, its figures come from bench/results and what is assumed here.

`python -m tools.scaling`. No figure is typed into the page: a braced name in the text is a figure or a table of these.
"""

import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from libs.access_policy import HIGHEST_LIMITS
from libs.outbox import AT_ONCE
from services.audit.writer import LARGEST_BATCH, LONGEST_QUEUE
from services.gateway.ring import KEPT_S, MOST_BYTES
from services.identity.model import Reachability
from services.identity.reconcile import MEASURE_EVERY_S
from services.mesh.bus import SETTINGS

ROOT = Path(__file__).resolve().parent.parent
RESULTS, TEXT, PAGE = ROOT / "bench/results", ROOT / "tools/scaling.md", ROOT / "docs/scaling.md"
HEADER = (
    "<!-- Written by `make docs` from tools/scaling.md and bench/results; `make bench-scaling` measures anew. -->\n\n"
)
DAY, KIB, MIB, GIB, TIB = 86_400, 2**10, 2**20, 2**30, 2**40
UNITS = ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB"))
# Nothing below is a figure to plan with.
LEAST = 0.005
PROCESSES = (
    "gateway", "identity", "secrets", "access", "mesh", "audit", "postgres", "openbao", "spicedb", "nats",
)  # fmt: skip
OURS = PROCESSES[:6]
LEVELS = (1, 4, 16, 64)
BUSY = LEVELS[2:]
CURVES = ("secret read", "heartbeat", "stream opened", "registration", "publish", "append")
Costs = Mapping[str, float]


@dataclass(frozen=True)
class Plan:
    """What is assumed; each with why, in the page."""

    domains: int = 1000
    nodes: int = 10_000
    heartbeat_s: float = Reachability().heartbeat_interval_s
    stream_s: float = 30.0
    reads: float = 24.0
    secrets: int = 5
    events: float = 1.0
    moves: float = 0.1
    states: float = 1.0
    sessions: float = 1000.0
    writes: float = 1000.0
    fleet_days: float = 30.0
    busy: float = 0.5

    @property
    def fleet(self) -> int:
        """All nodes."""
        return self.domains * self.nodes

    @property
    def rows(self) -> float:
        """Rows of the record a day."""
        people = self.domains * (2 * self.sessions + self.writes)
        return self.fleet * (self.reads + 1 / self.fleet_days) + people

    @property
    def published(self) -> float:
        """Envelopes a second: what nodes are told, what their Domain is told of them, sessions."""
        of_nodes = self.fleet * (self.events + self.moves + 1 / self.fleet_days)
        return (of_nodes + self.domains * self.sessions) / DAY

    @property
    def delivered(self) -> float:
        """Writes to streams a second: an event of a whole Domain goes to each of its nodes, which may still be few."""
        joined = self.fleet / self.fleet_days * self.nodes / 2
        return (self.fleet * self.events + self.fleet * self.moves * self.nodes + joined) / DAY

    def loads(self) -> dict[str, float]:
        """Return the calls a second."""
        return {
            "heartbeat": self.fleet / self.heartbeat_s,
            "stream opened": self.fleet / self.stream_s,
            "secret read": self.fleet * self.reads / DAY,
            "state": self.fleet * self.states / DAY,
            "publish": self.published,
            "registration": self.fleet / self.fleet_days / DAY,
            "session issued": self.domains * self.sessions / DAY,
            "checkpoint": self.domains / 60,
        }


def memory(service: str) -> float:
    """Return the bytes of memory that the chart lets a pod of a service have."""
    values = yaml.safe_load((ROOT / "deploy/helm/plexsphere/values.yaml").read_text())
    resources = values["services"][service].get("resources", values["defaults"]["resources"])
    text = resources["limits"]["memory"]
    return float(text[:-2]) * {"Mi": MIB, "Gi": GIB}[text[-2:]]


def shares(name: str) -> dict[str, Costs]:
    """Return what a benchmark noted."""
    found: dict[str, Costs] = json.loads((RESULTS / f"{name}.json").read_text())["shares"]
    return found


def bar(name: str, starts: str, side: str = "ours") -> float:
    """Return the median of a bar's side."""
    content = json.loads((RESULTS / f"{name}.json").read_text())
    return float(median(next(one[side] for one in content["bars"] if one["name"].startswith(starts))))


@dataclass(frozen=True)
class Measured:
    """What the page is made of."""

    scaling: dict[str, Costs]
    session: Costs
    quiet: Costs
    streams: Costs
    deliveries: float

    @classmethod
    def read(cls) -> "Measured":
        """Read the results."""
        held = shares("mesh-work-held")["5000 streams"]
        session = shares("access")["processor of a session, ms"]
        quiet = shares("secrets")["processor of a read, ms"]
        return cls(shares("scaling"), session, quiet, held, bar("mesh-fan-out", "verified fan-out to 1000 streams"))

    def cost(self, call: str) -> Costs:
        """Return each process's milliseconds of a call when many are in flight."""
        if call == "session issued":
            return self.session
        sized = {"state": "state, 10,000 nodes of a Domain", "checkpoint": "checkpoint, 1,000 chains"}
        if call in sized:
            return self.scaling[sized[call]]
        # Whatever else the machine did in those seconds fell on one of them.
        return min((self.scaling[f"{call}, {level} in flight"] for level in BUSY), key=total)

    @property
    def quiet_read(self) -> float:
        """A read's milliseconds as another benchmark saw them, with bearers that the edge remembers."""
        return total(self.quiet)

    @property
    def stream_bytes(self) -> float:
        """Memory of the gateway for a stream."""
        return self.streams["gateway MiB"] * MIB / 5000

    @property
    def row_bytes(self) -> float:
        """Bytes of a row in PostgreSQL, with its indexes."""
        found = self.scaling["bytes of a row"]
        return sum(found[name] for name in ("entries", "idempotency", "personal", "tree"))

    @property
    def comparison(self) -> Costs:
        """The comparison of the tuples."""
        return next(value for name, value in self.scaling.items() if name.startswith("comparison of"))

    def cores(self, plan: Plan) -> dict[str, dict[str, float]]:
        """Return the processor seconds a second of each process, by call; every gateway takes every envelope."""
        found: dict[str, dict[str, float]] = {}
        for call, rate in plan.loads().items():
            cost = self.cost(call)
            found[call] = {name: rate * cost.get(name, 0.0) / 1000 for name in PROCESSES}
        found["publish"]["gateway"] = 0.0
        found["events delivered"] = dict.fromkeys(PROCESSES, 0.0) | {"gateway": plan.delivered / self.deliveries}
        return found


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table, names to the left and figures to the right."""
    columns = list(zip(*rows, strict=True))
    lines = [head, ["---:" if any(cell.strip("*~")[:1].isdigit() for cell in one) else "---" for one in columns], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def n(value: float) -> str:
    """Return a figure as people read it: two digits, or all before the point."""
    if abs(value) < LEAST:
        return "0" if value == 0 else "~0"
    digits = 1 - math.floor(math.log10(abs(value)))
    return f"{round(value, digits):,.{min(max(digits, 0), 3)}f}"


def size(value: float) -> str:
    """Return bytes as people read them."""
    unit, name = next((one for one in UNITS if value >= one[0]), (1, "B"))
    exact = value / unit
    return f"{exact:.0f} {name}" if exact == round(exact) else f"{n(exact)} {name}"


def total(figures: Costs) -> float:
    """Return the milliseconds of all processes."""
    return sum(figures.get(name, 0.0) for name in PROCESSES)


def costs(found: Measured) -> str:
    """What a call takes in each process."""
    calls = [*Plan().loads(), "append"]
    rows = [[call, *(n(round(found.cost(call).get(name, 0.0), 2)) for name in PROCESSES)] for call in calls]
    return table(["ms a call", *PROCESSES], rows)


def curves(found: Measured) -> str:
    """How calls go with many in flight."""
    rows = []
    for call in CURVES:
        at = [found.scaling[f"{call}, {level} in flight"] for level in LEVELS]
        rows.append([call, *(n(one["1/s"]) for one in at), *(n(total(one)) for one in at)])
    head = ["call", *(f"1/s, {level}" for level in LEVELS), *(f"ms, {level}" for level in LEVELS)]
    return table(head, rows)


def grown(found: Measured) -> str:
    """What a call takes by how much is there."""
    sized = [name for name in found.scaling if name.endswith((" nodes", " Domains", "of a Domain"))]
    rows = [
        [name.replace(", 1 Domains", ", 1 Domain"), n(found.scaling[name]["1/s"]), n(total(found.scaling[name]))]
        for name in sized
    ]
    return table(["call, by what is there", "1/s", "ms in all processes"], rows)


def demand(found: Measured, plan: Plan) -> str:
    """What a plan takes of each process."""
    cores, loads = found.cores(plan), plan.loads() | {"events delivered": plan.delivered}
    rows = [[call, n(loads[call]), *(n(used[name]) for name in PROCESSES)] for call, used in cores.items()]
    sums = [sum(used[name] for used in cores.values()) for name in PROCESSES]
    rows.append(["**all, cores**", "", *(f"**{n(one)}**" for one in sums)])
    rows.append(
        [f"**cores to have, {plan.busy:.0%} busy**", "", *(f"**{n(math.ceil(one / plan.busy))}**" for one in sums)]
    )
    return table(["call", "1/s", *PROCESSES], rows)


def replicas(found: Measured, plan: Plan) -> dict[str, int]:
    """Return how many processes of each service a plan needs: each has one event loop, so one core."""
    sums = {name: sum(used[name] for used in found.cores(plan).values()) for name in OURS}
    return {name: max(2, math.ceil(used / plan.busy)) for name, used in sums.items()}


def connections(found: Measured, plan: Plan) -> dict[str, int]:
    """Return PostgreSQL connections, as the settings that ship have them."""
    opened = {}
    for name, count in replicas(found, plan).items():
        settings = tomllib.loads((ROOT / f"deploy/config/{name}.toml").read_text()).get("postgres")
        if settings is not None:
            opened[name] = count * settings.get("max_size", 10)
    return opened


def stored(found: Measured, plan: Plan) -> str:
    """What a plan keeps."""
    node, event, row = (found.scaling[f"bytes of {what}"] for what in ("a node", "an event", "a row"))
    tuples, tuple_bytes = plan.fleet * (4 + plan.secrets), found.comparison["bytes a tuple"]
    kept_s, log_s = SETTINGS["max_age"] / 1e9, 8 * DAY
    rows = [
        ["audit rows a day", n(plan.rows), f"{size(found.row_bytes)} a row", size(plan.rows * found.row_bytes)],
        ["the same in the archive", n(plan.rows), f"{size(row['archive'])} a row", size(plan.rows * row["archive"])],
        ["audit rows a year", n(plan.rows * 365), "", size(plan.rows * 365 * found.row_bytes)],
        ["nodes in identity", n(plan.fleet), f"{size(node['rows'])} a node", size(plan.fleet * node["rows"])],
        ["tuples in SpiceDB", n(tuples), f"{4 + plan.secrets} a node", ""],
        ["all tuples, in each identity", n(tuples), f"{size(tuple_bytes)} a tuple", size(tuples * tuple_bytes)],
        ["mesh's log, eight days", n(plan.published * log_s), f"{size(event['log'])} an event",
         size(plan.published * log_s * event["log"])],
        ["stream `EVENTS`, 15 minutes", n(plan.published * kept_s), f"{size(event['stream'])} an event",
         size(plan.published * kept_s * event["stream"])],
        ["streams open at the gateways", n(plan.fleet), f"{size(found.stream_bytes)} a stream",
         size(plan.fleet * found.stream_bytes)],
    ]  # fmt: skip
    return table(["what", "how many", "each", "all"], rows)


def bounds(found: Measured, plan: Plan) -> dict[str, float]:
    """Return up to where the code as it is goes, in its own unit."""
    compared, checkpoint = found.comparison, found.cost("checkpoint")
    tuple_s = (compared["µs a tuple: identity"] + compared["µs a tuple: spicedb"]) / 1e6
    event, in_turn = found.scaling["bytes of an event"], ("audit", "postgres", "openbao")
    append = found.scaling["append, 1,000 Domains"]
    return {
        "compared_memory_nodes": memory("identity") / compared["bytes a tuple"] / (4 + plan.secrets),
        "compared_s": plan.fleet * (4 + plan.secrets) * tuple_s,
        "checkpoint_domains": 60_000 / sum(checkpoint.get(name, 0.0) for name in in_turn),
        "gateway_events": 1000 * plan.busy / max(found.cost("publish").get("gateway", 0.0), 1e-3),
        "ring_events": MOST_BYTES / event["stream"] / KEPT_S,
        "stream_events": SETTINGS["max_bytes"] / event["stream"] / 300,
        "writer_rows": 1000 / append["audit"],
        "primary_rows": 1000 / append["postgres"],
    }


def assumed(plan: Plan) -> str:
    """What is assumed."""
    rows = [
        ["Domains, nodes of each", f"{plan.domains:,}, {plan.nodes:,}", "the size that the page is asked about"],
        ["a heartbeat", f"every {plan.heartbeat_s:.0f} s", "`heartbeat_interval`, unless a Domain says otherwise"],
        ["an event stream lasts", f"{plan.stream_s:.0f} s", "the published agent reconnects then, with TLS anew"],
        ["secret reads of a node a day", f"{plan.reads:g}", "one an hour"],
        ["secrets that a node may read", str(plan.secrets), "each is a tuple, beside the four of a registration"],
        ["events for one node a day", f"{plan.events:g}", "secrets, sessions, actions, rotations of its keys"],
        ["moves of a node a day", f"{plan.moves:g}", "`peer_endpoint_changed` goes to its whole Domain"],
        ["pulls of `/state` a node a day", f"{plan.states:g}", "after an absence or a reconciliation"],
        ["sessions, operator writes a Domain a day", f"{n(plan.sessions)}, {n(plan.writes)}", "people and pipelines"],
        ["the fleet registers within", f"{plan.fleet_days:.0f} days", "once; then a few a second stay"],
        ["processors are busy", f"{plan.busy:.0%}", "the rest is for bursts and for a zone that is lost"],
    ]  # fmt: skip
    return table(["what", "how much", "why"], rows)


def figures(found: Measured, plan: Plan, cell: Plan) -> dict[str, Any]:
    """Return all that the text names."""
    limits, whole, part = bounds(found, plan), replicas(found, plan), replicas(found, cell)
    loads, cores = plan.loads(), found.cores(plan)
    used = {name: sum(row[name] for row in cores.values()) for name in PROCESSES}
    agents = sum(sum(cores[call].values()) for call in ("heartbeat", "stream opened"))
    return {
        "assumed": assumed(plan), "costs": costs(found), "curves": curves(found), "grown": grown(found),
        "demand": demand(found, plan), "stored": stored(found, plan),
        "cell_demand": demand(found, cell), "cell_stored": stored(found, cell),
        **{name: n(value) for name, value in limits.items()},
        **{f"{name}_replicas": f"{count:,}" for name, count in whole.items()},
        **{f"{name}_cell_replicas": f"{count:,}" for name, count in part.items()},
        **{f"{name}_cores": n(value) for name, value in used.items()},
        "connections": n(sum(connections(found, plan).values())),
        "cell_connections": n(sum(connections(found, cell).values())),
        "fleet": n(plan.fleet), "cell_fleet": n(cell.fleet), "cell_domains": n(cell.domains),
        "cells": n(plan.domains / cell.domains), "agents_share": f"{agents / sum(used.values()):.0%}",
        "published": n(plan.published), "cell_published": n(cell.published),
        "rows_s": n(plan.rows / DAY), "cell_rows_s": n(cell.rows / DAY), "rows_day": n(plan.rows),
        "row_day_bytes": size(plan.rows * found.row_bytes), "heartbeats": n(loads["heartbeat"]),
        "compared_bytes": size(plan.fleet * (4 + plan.secrets) * found.comparison["bytes a tuple"]),
        "compare_every_s": n(MEASURE_EVERY_S), "queue": f"{LONGEST_QUEUE:,}",
        "batch": str(LARGEST_BATCH), "chain_rows": n(bar("audit", "chained appends to 1,000,000")),
        "append_growth": n(bar("audit", "an append to 10^6") / bar("audit", "an append to 10^6", "theirs")),
        "stream_bytes": size(found.stream_bytes),
        "nodes_of_18": f"{2**14 - 2:,}", "domains_of_18": f"{2**24 // 2**14:,}",
        "default_memory": size(memory("identity")), "gateway_memory": size(memory("gateway")),
        "streams_of_default": n(memory("identity") / found.stream_bytes),
        "streams_of_gateway": n(memory("gateway") / found.stream_bytes),
        "ring_bytes": size(MOST_BYTES), "events_bytes": size(SETTINGS["max_bytes"]), "relayed": str(AT_ONCE),
        "domain_reads": f"{HIGHEST_LIMITS['domain_rate_per_minute']:,}",
        "streams_bytes": size(plan.fleet * found.stream_bytes), "opened_s": n(found.streams["opened/s"]),
        "resumed_s": n(found.streams["resumed within s"]), "deliveries": n(found.deliveries),
        "domain_joins": n(plan.nodes**2 / 2), "checkpoints_s": n(plan.domains / 60),
        "checkpoint_minute": n(60 * found.cost("checkpoint")["1/s"]),
        "gateway_envelope_ms": n(found.cost("publish").get("gateway", 0.0)),
        "idle_ms": n(sum(found.scaling["idle, processor ms a second"].values())),
        "read_ms": n(total(found.cost("secret read"))), "quiet_read_ms": n(found.quiet_read),
        "state_ms": n(total(found.cost("state"))),
        "state_small_ms": n(total(found.scaling["state, 1,000 nodes of a Domain"])),
        "refill_s": n(found.scaling["bytes of a node"]["refill, s for the last"]),
        "machine": json.loads((RESULTS / "scaling.json").read_text())["machine_versions_settings"]["machine"],
    }  # fmt: skip


def page() -> str:
    """Return the page."""
    plan = Plan()
    return HEADER + TEXT.read_text().format_map(figures(Measured.read(), plan, replace(plan, domains=50)))


if __name__ == "__main__":
    PAGE.write_text(page())
