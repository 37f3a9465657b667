"""`plexctl events`: what a node hears, verified, and what operators tell; with `domain keys` and what goes with it."""

import asyncio
import base64
import contextlib
import json
import ssl
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import typer

from cli.edge import EXIT_USAGE, EdgeClient, Refusal, edge, end, fail, refusal_of, say
from cli.nodes import KeyFile, as_node, keep
from cli.output import Json, emit
from cli.tenancy import domain_app
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
    key_file: Path
    trust: Trust
    show: Callable[[str, str, Any], None]
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
            # A line without an end is a ValueError.
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
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
            frame: dict[bytes, bytes] = {}
            async for raw in answer.content:
                line = raw.rstrip(b"\n")
                if not line and b"data" in frame:
                    self._take(frame.get(b"id", b"").decode(errors="replace"), frame[b"data"])
                    if self.left == 0:
                        return True
                name, _, value = line.partition(b": ")
                frame = {**frame, name: value} if line else {}
        return False

    def _take(self, sequence: str, data: bytes) -> None:
        if sequence.isdecimal():
            self.cursor = sequence
        self.left -= 1
        verdict, found = self._judge(data), data.decode(errors="replace")
        with contextlib.suppress(ValueError, RecursionError):
            found = json.loads(found)
        self.show(sequence, verdict, found)

    def _judge(self, data: bytes) -> str:
        try:
            believed = envelope.verify(data, self.trust, time.time_ns())
        except EnvelopeRefused as refused:
            return f"refused: {refused.reason}"
        # Signed for another node, it was brought here by whoever stands between.
        if believed.scope.startswith("node:") and believed.scope != f"node:{self.node_id}":
            return "refused: scope"
        if believed.id in self.seen:
            return "seen before"
        self.seen.add(believed.id)
        if believed.type == "signing_key_rotated":
            self._follow(believed.key_id, json.loads(believed.payload))
        return "ok"

    def _follow(self, signer: str, payload: dict[str, str]) -> None:
        # It is repeated until the transition ends, for nodes that were away; from then on it says nothing new.
        if not payload["previous_key_id"] == signer == self.trust.key_id:
            return
        old = {"key_id": signer, "public_key": base64.b64encode(self.trust.key).decode()}
        kept = keep(
            self.key_file,
            signing_key_id=payload["key_id"],
            signing_public_key=payload["public_key"],
            previous_signing_key=old | {"transition_expires": payload["transition_expires"]},
        )
        self.trust = trust_of(kept)
        say(f"the Domain's key is now {self.trust.key_id}; kept in {self.key_file}")


def trust_of(kept: dict[str, Any]) -> Trust:
    """Return the event keys that a key file holds."""
    key_id, key = kept["signing_key_id"], base64.b64decode(kept["signing_public_key"])
    previous = kept.get("previous_signing_key")
    if previous is None:
        return Trust(key_id, key)
    ends, _ = envelope.instant(previous["transition_expires"])
    return Trust(key_id, key, previous["key_id"], base64.b64decode(previous["public_key"]), ends)


@events_app.command("tail")
def tail(
    key_file: KeyFile,
    last_event_id: Annotated[str, typer.Option(help="Begin after this sequence.")] = "",
    count: Annotated[int, typer.Option(min=0, help="End after so many events; 0 never ends.")] = 0,
    as_json: Json = False,
) -> None:
    """Listen to a node's events and say of each whether it verifies; a new key of the Domain is kept in the key file.

    Example: plexctl events tail --key-file node.key
    """
    node_id, key, client, kept = as_node(key_file)
    key.wipe()
    if "signing_key_id" not in kept:
        fail(f"{key_file} has no signing key: it was written by an older plexctl; register again", EXIT_USAGE)

    def show(sequence: str, verdict: str, found: Any) -> None:
        if verdict == "refused: unknown_key":
            say("not a key that this node was told of; if the Domain's key was revoked, register again")
        if as_json:
            print(json.dumps({"sequence": number(sequence), "verdict": verdict, "envelope": found}), flush=True)
            return
        kind, payload = (found.get("type", ""), found.get("payload")) if isinstance(found, dict) else ("", found)
        text = json.dumps(payload)
        short = text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
        print(f"{number(sequence)!s:>8}  {verdict:<12}  {json.dumps(kind)[1:-1]:<22} {short}", flush=True)

    try:
        asyncio.run(Tail(client, node_id, key_file, trust_of(kept), show, last_event_id, count or -1).run())
    except Refusal as refusal:
        end(refusal)
    except KeyboardInterrupt:
        return


def number(sequence: str) -> int | None:
    """Return a frame's sequence; None for one that is no number, which only a forger sends."""
    return int(sequence) if sequence.isdecimal() else None


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
    transition: Annotated[
        int | None, typer.Option(min=1, help="Seconds for which the old key still verifies; a week by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Give a Domain a new event key; nodes are told under the old one."""
    body = {"transition_seconds": transition} if transition else None
    emit(edge().call("POST", f"/v1/domains/{domain_id}/signing-keys/rotate", body).json, as_json=as_json)


@domain_app.command("revoke-key")
def revoke_key(domain_id: str, key_id: str, as_json: Json = False) -> None:
    """Revoke an event key at once; nodes that know no other must register again."""
    emit(edge().call("POST", f"/v1/domains/{domain_id}/signing-keys/{key_id}/revoke").json, as_json=as_json)
