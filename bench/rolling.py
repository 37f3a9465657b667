"""`make rolling`: each of the six services is rolled in turn, as Kubernetes does it, under the load of the story.

A new process starts behind the same address and is waited for until it is ready. Then the old one is taken from behind
the address, its `preStop` passes, it gets SIGTERM and drains. Meanwhile machines register, nodes read secrets, send
heartbeats and hold their streams, operators publish, step up to sessions and read the audit trail. Nothing may fail but
what its client may repeat, no stream may miss an event or get one twice, and each effect has its one audit row.
"""

import asyncio
import contextlib
import signal
import sys
import tomllib
from collections.abc import AsyncIterator, Awaitable, Iterable
from dataclasses import dataclass, field

from bench.deployment import Deployment, deployed
from bench.everybody import LISTENERS, Load, prepare
from bench.measure import Report, console
from bench.replica import Replica
from bench.soak import none
from bench.virtual import Virtual
from bench.work import calls
from devstack.layout import SERVICES
from libs.rpc.server import CONNECTION_AGE_S

# As the chart has it; how long others take to notice that a pod ends is a guess.
PRE_STOP_S, NOTICED_S, GRACE_S = 5.0, 1.0, 10.0
SETTLED_S = 2.0
SPREAD_S = 3 * CONNECTION_AGE_S


@dataclass
class Rollout:
    """The six services behind addresses of their own, and how each is replaced."""

    deployment: Deployment
    addresses: dict[str, Virtual]
    replicas: dict[str, Replica]
    pre_stop_s: float
    drain_s: float | None
    shipped: dict[str, str] = field(default_factory=dict)
    late: list[str] = field(default_factory=list)
    took_s: dict[str, float] = field(default_factory=dict)

    @classmethod
    @contextlib.asynccontextmanager
    async def of(
        cls, deployment: Deployment, pre_stop_s: float = PRE_STOP_S, drain_s: float | None = None
    ) -> AsyncIterator["Rollout"]:
        """Put the stack's services behind their own addresses for the block; then they are as they were."""
        state = deployment.state
        made = cls(deployment, {}, {}, pre_stop_s, drain_s)
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(made._back)
            for name in SERVICES:
                await deployment.kill(name)
                made.shipped[name] = (state / f"config/{name}.toml").read_text()
                if drain_s:
                    deployment.configure(name, r"(?m)^drain_s = .*$", f"drain_s = {drain_s}")
                first = made.replicas[name] = Replica.beside(state, name, 2)
                made.addresses[name] = await stack.enter_async_context(Virtual(state.port(name), [first.port]))
            await asyncio.gather(*(replica.start() for replica in made.replicas.values()))
            yield made

    async def _back(self) -> None:
        for replica in self.replicas.values():
            await replica.end()
        for name, text in self.shipped.items():
            (self.deployment.state / f"config/{name}.toml").write_text(text)
        await asyncio.gather(*(self.deployment.start(name) for name in SERVICES))

    async def roll(self, name: str) -> None:
        """Replace a service's process."""
        began = asyncio.get_running_loop().time()
        old, address = self.replicas[name], self.addresses[name]
        new = Replica.beside(self.deployment.state, name, old.number + 1)
        await new.start()
        self.replicas[name] = new
        address.behind = [old.port, new.port]
        await asyncio.sleep(SETTLED_S)
        asyncio.get_running_loop().call_later(min(NOTICED_S, self.pre_stop_s / 2), address.behind.remove, old.port)
        await asyncio.sleep(self.pre_stop_s)
        if not await old.end(signal.SIGTERM, self._drain_s(name) + GRACE_S):
            self.late.append(f"{old.name} had not ended")
        self.took_s[name] = asyncio.get_running_loop().time() - began

    def _drain_s(self, name: str) -> float:
        return float(tomllib.loads((self.deployment.state / f"config/{name}.toml").read_text())["drain_s"])

    async def all(self, load: Load) -> None:
        """Replace one after the other."""
        for name in SERVICES:
            load.rolling = name
            await self.roll(name)
            console.print(f"  {name}: {self.took_s[name]:.1f} s, {load.done.total()} done")
        load.rolling = "nothing"
        await asyncio.sleep(SETTLED_S)

    async def spread(self, report: Report) -> None:
        """Add a replica of each gRPC service, and report which share of the calls it gets in some time."""
        added = [Replica.beside(self.deployment.state, name, 100) for name in SERVICES if name != "gateway"]
        await asyncio.gather(*(one.start() for one in added))
        pairs = [(self.replicas[one.of], one) for one in added]
        before = [[await self._calls(one) for one in pair] for pair in pairs]
        for one in added:
            self.addresses[one.of].behind.append(one.port)
        await asyncio.sleep(SPREAD_S)
        shares: dict[str, float] = {}
        for pair, then in zip(pairs, before, strict=True):
            counts = [await self._calls(one) - known for one, known in zip(pair, then, strict=True)]
            shares[pair[0].of] = counts[1] / max(1, sum(counts))
        report.shares[f"of calls in {SPREAD_S:.0f} s, to a replica that was added"] = shares
        for one in added:
            self.addresses[one.of].behind.remove(one.port)
            await one.end(signal.SIGTERM, self._drain_s(one.of) + GRACE_S)

    def tell(self, report: Report) -> None:
        """Add whether all ended in time, and how long each roll took."""
        report.checks.append(none("processes that did not end in time", self.late))
        report.shares["s from its successor's start to its own end"] = dict(self.took_s)

    async def _calls(self, replica: Replica) -> int:
        return (await calls(Deployment(replica.beside_it, self.deployment.world), replica.of)).total()


async def under(load: Load, report: Report, doing: Iterable[Awaitable[None]]) -> None:
    """Do one thing after the other under load, then judge what was seen."""
    listening = [asyncio.ensure_future(agent.run()) for agent in load.agents]
    try:
        async with asyncio.timeout(30):
            for agent in load.agents:
                await agent.listening.wait()
        async with asyncio.TaskGroup() as group:
            for one in load.busy():
                group.create_task(one)
            await asyncio.sleep(SETTLED_S)
            for each in doing:
                await each
            load.stop.set()
        await load.heard()
    finally:
        for task in listening:
            task.cancel()
        await asyncio.gather(*listening, return_exceptions=True)
    await load.judge(report)


async def main() -> int:
    """Start a stack, roll its services, print; returns the exit status."""
    report = Report("rolling", {"settings": f"preStop {PRE_STOP_S:.0f} s, {LISTENERS} nodes listen"})
    async with deployed() as deployment, Rollout.of(deployment) as rollout, deployment.operator() as operator:
        load = await prepare(deployment, operator)
        await under(load, report, [rollout.spread(report)] if "--spread" in sys.argv else [rollout.all(load)])
        rollout.tell(report)
        report.notes += [f"{count} x in the logs: {error}" for error, count in deployment.errors().most_common(8)]
    return report.finish()


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
