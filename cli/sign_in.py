"""`plexctl login`, `logout` and `whoami`: the device authorization grant (RFC 8628)."""

import os
import re
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.edge import EXIT_REFUSED, EXIT_USAGE, EdgeClient, Refusal, Reply, credentials_file, edge, end, fail, save, say
from cli.output import Json, emit

CLIENT_ID = "plexctl"
STEP_UP = "step_up_required"


def login(
    url: Annotated[str, typer.Option("--edge", envvar="PLEX_EDGE_URL", help="URL of the edge.")] = "",
    ca_file: Annotated[
        Path | None, typer.Option("--ca-file", envvar="PLEX_CA_FILE", help="CA to trust; by default the system's.")
    ] = None,
    domain_id: Annotated[str, typer.Option("--domain", help="Sign in at this Domain's provider.")] = "",
    acr: Annotated[list[str] | None, typer.Option("--acr", help="Ask for this authentication class.")] = None,
    max_age: Annotated[int, typer.Option(min=-1, help="Ask for a login at most this many seconds old.")] = -1,
) -> None:
    """Sign in: approve a code in the browser, and the access token is kept for the next commands."""
    if not url:
        fail("which edge? use --edge URL or PLEX_EDGE_URL", EXIT_USAGE)
    token = device_flow(EdgeClient(url, ca_file), domain_id, acr or [], max_age)
    say(f"signed in; the token is in {save(url, ca_file, token)}")


def device_flow(client: EdgeClient, domain_id: str, acr: list[str], max_age: int) -> str:
    """Return an access token once a person has approved a code; a `max_age` below zero asks for no age."""
    wanted: dict[str, object] = {"client_id": CLIENT_ID}
    if domain_id:
        wanted["domain_id"] = domain_id
    if acr:
        wanted["acr_values"] = acr
    if max_age >= 0:
        wanted["max_age"] = max_age
    codes = client.call("POST", "/v1/auth/device-code", wanted).json
    say(f"Open {codes['verification_uri_complete']}\nand approve the code {codes['user_code']}")
    return _poll(client, str(codes["device_code"]), int(codes["interval"]), int(codes["expires_in"]))


def stepped_up(client: EdgeClient, refusal: Refusal) -> EdgeClient:
    """Follow a step-up challenge (RFC 9470) through the device flow; ends the program where nothing would help."""
    acr, age = (re.search(rf'{name}="([^"]*)"', refusal.challenge) for name in ("acr_values", "max_age"))
    if refusal.code != STEP_UP or not (acr or age):
        end(refusal)
    who = client.call("GET", "/v1/auth/whoami").json
    say("This needs a fresh, stronger sign-in.")
    wanted = (acr[1].split() if acr else [], int(age[1]) if age else -1)
    token = device_flow(EdgeClient(client.url, client.ca_file), str(who.get("domain_id", "")), *wanted)
    if not os.environ.get("PLEX_TOKEN_FILE"):
        save(client.url, client.ca_file, token)
    return EdgeClient(client.url, client.ca_file, token)


def stepping_up(method: str, path: str, body: Any = None, *, params: dict[str, str] | None = None) -> Reply:
    """Send one request, and once more as somebody who signed in anew when that is what is asked for."""
    client = edge()
    try:
        return client.attempt(method, path, body, params=params)
    except Refusal as refusal:
        return stepped_up(client, refusal).call(method, path, body, params=params)


def _poll(client: EdgeClient, device_code: str, interval_s: int, lifetime_s: int) -> str:
    until = time.monotonic() + lifetime_s
    while True:
        if time.monotonic() >= until:
            fail("the code expired before it was approved; run `plexctl login` again", EXIT_REFUSED)
        time.sleep(interval_s)
        try:
            body = {"device_code": device_code, "client_id": CLIENT_ID}
            return str(client.attempt("POST", "/v1/auth/device-token", body).json["access_token"])
        except Refusal as refusal:
            if refusal.code == "slow_down":
                interval_s += 5  # RFC 8628, 3.5
            elif refusal.code != "authorization_pending":
                end(refusal)


def logout() -> None:
    """End the session at the edge and forget the access token."""
    path = credentials_file()
    if path.exists() or os.environ.get("PLEX_TOKEN_FILE"):
        edge().call("DELETE", "/v1/auth/whoami")
    path.unlink(missing_ok=True)


def whoami(as_json: Json = False) -> None:
    """Say who you are, and how you signed in."""
    emit(edge().call("GET", "/v1/auth/whoami").json, as_json=as_json)
