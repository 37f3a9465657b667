"""`plexctl events`: what a node hears, verified, and what operators tell; with `domain keys` and what goes with it."""

import asyncio
import base64
import json
import ssl
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

import aiohttp
import typer

from cli.edge import EXIT_USAGE, EdgeClient, Refusal, edge, end, fail, refusal_of, say
from cli.nodes import KeyFile, as_node
from cli.output import emit
from cli.tenancy import Json, domain_app
from libs import envelope
from libs.envelope import EnvelopeRefused, Trust

events_app = typer.Typer(no_args_is_help=True, help="Signed events: listen as a node, publish as an operator.")

OK, UNAVAILABLE = 200, 503
BACK_OFF_S = (0.5, 8.0)
SILENT_S = 60
SHOWN = 100


@dataclass
class Tail:
    """A node's stream: its cursor, the keys that it trusts, and how many events are still wanted."""

    client: EdgeClient
    node_id: str
    keys: dict[str, Trust]
    show: Callable[[int, str, dict[str, Any]], None]
    cursor: str = ""
    left: int = 0
    seen: set[str] = field(default_factory=set)

    async def run(self) -> None:
        """Listen until enough was heard; what is temporary is tried again with a back-off."""
        wait = BACK_OFF_S[0]
        while True:
            try:
                if await self._once():
                    return
                wait = BACK_OFF_S[0]
            except Refusal as refusal:
                if refusal.status != UNAVAILABLE:
                    raise
                say(f"503 {refusal.code}; trying again in {wait:.1f} s")
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                say(f"the stream ended ({type(error).__name__}); trying again in {wait:.1f} s")
            await asyncio.sleep(wait)
            wait = min(wait * 2, BACK_OFF_S[1])

    async def _once(self) -> bool:
        trust = ssl.create_default_context(cafile=self.client.ca_file)
        headers = {"Authorization": f"Bearer {self.client.token}"}
        if self.cursor:
            headers["Last-Event-ID"] = self.cursor
        url = f"{self.client.url}/v1/nodes/{self.node_id}/events"
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=SILENT_S)
        async with (
            aiohttp.ClientSession(timeout=timeout) as http,
            http.get(url, headers=headers, ssl=trust) as answer,
        ):
            if answer.status != OK:
                raise refusal_of(answer.status, await answer.read())
            frame: dict[str, str] = {}
            async for raw in answer.content:
                line = raw.decode().rstrip("\n")
                if not line and "data" in frame:
                    self._take(frame)
                    if self.left == 0:
                        return True
                name, _, value = line.partition(": ")
                frame = {**frame, name: value} if line else {}
        return False

    def _take(self, frame: dict[str, str]) -> None:
        data = frame["data"].encode()
        verdict, found = "ok", json.loads(data)
        key = self.keys.get(str(found.get("key_id")), Trust("", b""))
        try:
            believed = envelope.verify(data, key, time.time_ns())
        except EnvelopeRefused as refused:
            verdict = f"refused: {refused.reason}"
        else:
            if believed.id in self.seen:
                verdict = "seen before"
            self.seen.add(believed.id)
            if believed.type == "signing_key_rotated":
                self._follow(json.loads(believed.payload))
        self.cursor = frame["id"]
        self.left -= 1
        self.show(int(frame["id"]), verdict, found)

    def _follow(self, payload: dict[str, str]) -> None:
        new, old = payload["key_id"], self.keys.get(payload["previous_key_id"])
        self.keys[new] = Trust(new, base64.b64decode(payload["public_key"]))
        if old is not None and old.key:
            ends, _ = envelope.instant(payload["transition_expires"])
            self.keys[old.key_id] = Trust("", b"", old.key_id, old.key, ends)


@events_app.command("tail")
def tail(
    key_file: KeyFile,
    last_event_id: Annotated[str, typer.Option(help="Begin after this sequence.")] = "",
    count: Annotated[int, typer.Option(min=0, help="End after so many events; 0 never ends.")] = 0,
    as_json: Json = False,
) -> None:
    """Listen to a node's events and say of each whether it verifies.

    Example: plexctl events tail --key-file node.key
    """
    node_id, key, client, kept = as_node(key_file)
    key.wipe()
    if "signing_key_id" not in kept:
        fail(f"{key_file} has no signing key: it was written by an older plexctl; register again", EXIT_USAGE)
    trusted = Trust(kept["signing_key_id"], base64.b64decode(kept["signing_public_key"]))

    def show(sequence: int, verdict: str, found: dict[str, Any]) -> None:
        if as_json:
            print(json.dumps({"sequence": sequence, "verdict": verdict, "envelope": found}), flush=True)
            return
        payload = json.dumps(found.get("payload"), ensure_ascii=False)
        short = payload if len(payload) <= SHOWN else payload[: SHOWN - 1] + "…"
        print(f"{sequence:>8}  {verdict:<12}  {found.get('type', ''):<22} {short}", flush=True)

    try:
        asyncio.run(Tail(client, node_id, {trusted.key_id: trusted}, show, last_event_id, count or -1).run())
    except Refusal as refusal:
        end(refusal)
    except KeyboardInterrupt:
        return


@events_app.command("publish")
def publish(
    domain_id: str,
    kind: Annotated[str, typer.Option("--type", help="Event type, such as action_request.")],
    scope: Annotated[str, typer.Option(help="domain:<id>, project:<id> or node:<id>; the Domain by default.")] = "",
    payload: Annotated[str, typer.Option(help="JSON object; - reads it from stdin.")] = "{}",
    as_json: Json = False,
) -> None:
    """Publish a signed event to nodes.

    Example: plexctl events publish 0190… --type action_request --payload '{"action": "reload"}'
    """
    try:
        content = json.loads(sys.stdin.read() if payload == "-" else payload)
    except ValueError:
        fail("--payload is not JSON", EXIT_USAGE)
    body = {"type": kind, "scope": scope or f"domain:{domain_id}", "payload": content}
    emit(edge().call("POST", f"/v1/domains/{domain_id}/events", body).json, as_json=as_json)


@domain_app.command("keys")
def keys(domain_id: str, as_json: Json = False) -> None:
    """List a Domain's event keys, newest first."""
    found = edge().call("GET", f"/v1/domains/{domain_id}/signing-keys").json
    emit(found, as_json=as_json, columns=("key_id", "status", "created_at", "transition_expires", "revoked_at"))


@domain_app.command("rotate-key")
def rotate_key(
    domain_id: str,
    transition: Annotated[int, typer.Option(min=1, help="Seconds for which the old key still verifies.")] = 604800,
    as_json: Json = False,
) -> None:
    """Give a Domain a new event key; nodes are told under the old one."""
    body = {"transition_seconds": transition}
    emit(edge().call("POST", f"/v1/domains/{domain_id}/signing-keys/rotate", body).json, as_json=as_json)


@domain_app.command("revoke-key")
def revoke_key(domain_id: str, key_id: str, as_json: Json = False) -> None:
    """Revoke an event key at once; nodes that know no other must register again."""
    emit(edge().call("POST", f"/v1/domains/{domain_id}/signing-keys/{key_id}/revoke").json, as_json=as_json)
