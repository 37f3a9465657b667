"""The main job's second half: events, the attacks on them, and a last look at what is at rest."""

import asyncio
import base64
import contextlib
import json
import os
import tempfile
import uuid
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.e2e.attacker import Broker, eventually, signed, wire
from tests.e2e.listener import Listener, publish
from tests.e2e.outside import Node
from tests.e2e.scan import search
from tests.e2e.seen import SEEN
from tests.e2e.stories.main_job import Story, entries, step
from tests.e2e.stories.main_job_sessions import STEPS
from tests.e2e.world import PLEXCTL

__all__ = ["STEPS"]


def scopes_of(story: Story) -> dict[str, str]:
    """Who can be told something."""
    return {
        "Domain": f"domain:{story.domain_id}",
        "project": f"project:{story.project_id}",
        "node A": f"node:{story.node_a.node_id}",
        "node B": f"node:{story.node_b.node_id}",
    }


class Tail:
    """`plexctl events tail` as a node runs it, and the lines that it has printed."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.lines: list[str] = []

    async def until(self, text: str) -> None:
        """Read on until a line holds a text; what it prints meanwhile is kept."""
        assert self.process.stdout is not None
        async with asyncio.timeout(30):
            while not any(text in line for line in self.lines):
                line = (await self.process.stdout.readline()).decode().rstrip()
                if not line:
                    _, why = await self.process.communicate()
                    raise AssertionError(f"plexctl ended before it printed {text}: {why.decode()}")
                self.lines.append(line)

    @property
    def verdicts(self) -> list[str]:
        """What it said of each envelope."""
        return [line.split()[1] for line in self.lines]


@contextlib.asynccontextmanager
async def tail_of(story: Story, node: Node, after: int) -> AsyncIterator[Tail]:
    """Run `plexctl events tail` as a node, from a sequence on; what it printed is shown with the step."""
    kept = {
        "node_id": node.node_id,
        "nsk": base64.b64encode(node.key).decode(),
        "signing_key_id": node.signing_key_id,
        "signing_public_key": base64.b64encode(node.signing_public_key).decode(),
    }
    env = {**os.environ, **{name: story.world.env[name] for name in ("PLEX_EDGE_URL", "PLEX_CA_FILE")}}
    with tempfile.TemporaryDirectory() as folder:
        key_file = Path(folder) / "node.key"
        key_file.write_text(json.dumps(kept))
        command = ["events", "tail", "--key-file", str(key_file), "--last-event-id", str(after)]
        process = await asyncio.create_subprocess_exec(*PLEXCTL, *command, stdout=PIPE, stderr=PIPE, env=env)
        tail = Tail(process)
        try:
            yield tail
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()
            story.shown += tail.lines


@step("nodes A and B hold streams; the operator publishes to all and to each", "A heard 3, B heard 3; verdicts ok")
async def hear(story: Story) -> str:
    async with Listener(story.operator, story.node_a) as a, Listener(story.operator, story.node_b) as b:
        sent = {
            name: await publish(story.operator, story.domain_id, scope, to=name)
            for name, scope in scopes_of(story).items()
        }
        last = await a.until(sent["node A"])
        await b.until(sent["node B"])
    async with tail_of(story, story.node_a, last.sequence - 3) as tail:
        await tail.until("node A")
    others = sent["node B"] in a.ids or sent["node A"] in b.ids
    verdicts = sorted({heard.verdict for heard in a.heard + b.heard} | set(tail.verdicts))
    counts = [sum(identifier in listener.ids for identifier in sent.values()) for listener in (a, b)]
    return f"A heard {counts[0]}, B heard {counts[1]}; verdicts {', '.join(verdicts)}{'; not only its own' * others}"


FORGED = {
    "forged under a key of the attacker's": "unknown_key",
    "altered payload": "signature",
    "sent to another scope": "subject_mismatch",
    "replayed": "nonce_replayed",
}
NOT_HEARD = ", ".join(f"{what}: {reason}" for what, reason in FORGED.items())


@step("envelopes are forged, altered and replayed straight in JetStream", f"none delivered; in the chain: {NOT_HEARD}")
async def forge(story: Story) -> str:
    async with Broker(story.world) as broker, Listener(story.operator, story.node_a) as node:
        scopes = scopes_of(story)
        genuine = await publish(story.operator, story.domain_id, scopes["Domain"], do="reboot")
        heard = await node.until(genuine)
        _, subject, data = await broker.find(genuine)
        envelope = json.loads(data)
        own_key = {**envelope, "id": str(uuid.uuid4()), "key_id": "evk_" + uuid.uuid4().hex}
        async with tail_of(story, story.node_a, heard.sequence - 1) as tail:
            await tail.until("reboot")
            places = [
                await broker.put(subject, forged)
                for forged in (
                    signed(own_key, Ed25519PrivateKey.generate()),
                    wire({**envelope, "payload": {"do": "wipe"}}),
                    wire({**envelope, "scope": scopes["node A"]}),
                    data,
                )
            ]
            last = await publish(story.operator, story.domain_id, scopes["Domain"], do="nothing")
            await node.until(last)
            await tail.until("nothing")
    delivered = [one for one in node.heard if one.sequence in places]
    if delivered or len(node.ids) != len(tail.lines):
        return f"{len(delivered)} delivered, {node.ids}, {tail.lines}"
    found: set[str] = set()

    async def audited() -> bool:
        for entry in await entries(story):
            found.update(entry["decision"]["caveat_context"].get("mesh", []))
        return found >= set(FORGED.values())

    with contextlib.suppress(TimeoutError):
        await eventually(audited)
    return f"none delivered; in the chain: {', '.join(f'{k}: {v}' for k, v in FORGED.items() if v in found)}"


UNDER_LOAD = "all events of 4 publishers heard in order by whom they are for, each scope under two keys, verdicts ok"


@step("the signing key is rotated while four publishers go on", UNDER_LOAD)
async def rotate_signing_key(story: Story) -> str:
    scopes, under_way, rotated = scopes_of(story), asyncio.Event(), asyncio.Event()
    sent: dict[str, list[str]] = {name: [] for name in scopes}

    async def go_on(name: str) -> None:
        left = 10
        while left:
            left -= rotated.is_set()
            number = len(sent[name])
            sent[name].append(await publish(story.operator, story.domain_id, scopes[name], to=name, number=number))
            if all(len(ids) >= 10 for ids in sent.values()):
                under_way.set()

    async with Listener(story.operator, story.node_a) as a, Listener(story.operator, story.node_b) as b:
        async with asyncio.TaskGroup() as publishers:
            for name in scopes:
                publishers.create_task(go_on(name))
            await under_way.wait()
            path = f"/v1/domains/{story.domain_id}/signing-keys/rotate"
            answer = await story.operator.call("POST", path, {"transition_seconds": 60})
            rotated.set()
        hearers = {"node A": [a], "node B": [b]}
        for name, ids in sent.items():
            for listener in hearers.get(name, [a, b]):
                await listener.until(ids[-1])
    if answer.status != 200:
        return f"{answer} {answer.body!r}"
    wrong = []
    for name, ids in sent.items():
        for listener in hearers.get(name, [a, b]):
            mine = [one for one in listener.heard if one.envelope["scope"] == scopes[name] and one.id in ids]
            keys = {one.envelope["key_id"] for one in mine}
            if [one.id for one in mine] != ids or len(keys) != 2:
                wrong.append(f"{len(mine)} of {len(ids)} for {name} under {len(keys)} keys")
    verdicts = sorted({one.verdict for one in a.heard + b.heard})
    announced = await a.hears("signing_key_rotated")
    async with tail_of(story, story.node_a, announced.sequence - 5) as tail:
        await tail.until(f'"number": {len(sent["node A"]) - 1}}}')
    turn = next(at for at, line in enumerate(tail.lines) if "signing_key_rotated" in line)
    story.shown[:] = [*tail.lines[max(0, turn - 2) : turn + 3], f"… and {len(tail.lines) - turn - 3} more"]
    if wrong or verdicts != ["ok"] or set(tail.verdicts) != {"ok"}:
        return f"{wrong}, verdicts {verdicts}, plexctl's {sorted(set(tail.verdicts))}"
    return UNDER_LOAD


PORTS = ("event_stream", "nonce_store", "signature_verifier", "relation_checker", "node_repo")


@step(
    "the gateway is restarted without each of the five ports",
    "501 signed_event_bus_not_provisioned five times; with all: 200",
)
async def without_ports(story: Story) -> str:
    seen = []
    path, bearer = f"/v1/nodes/{story.node_a.node_id}/events", story.node_a.bearer
    shipped = story.world.config("gateway")
    for port in PORTS:
        await story.world.restart("gateway", shipped.replace(f'"{port}"', "").replace("[, ", "[").replace(", ,", ","))
        seen.append(str(await story.operator.as_bearer(bearer).call("GET", path)))
    await story.world.restart("gateway", shipped)
    async with Listener(story.operator, story.node_a) as node:
        seen.append(node.statuses[-1])
    if seen[:5] != ["501 signed_event_bus_not_provisioned"] * 5:
        return ", ".join(seen)
    return f"{seen[0]} five times; with all: {seen[5]}"


@step("a dump of the database and all logs are searched for every secret of this story", "none found")
async def search_dump(story: Story) -> str:
    found = await search(story.world, SEEN | {value: name for name, value in story.planted.items()})
    return ", ".join(found) or "none found"
