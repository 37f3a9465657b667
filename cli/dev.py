"""`plexctl dev`: the embedded stack, every backend and every process real, on 127.0.0.1."""

import asyncio
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from cli.edge import EXIT_REFUSED, EXIT_USAGE, fail, say
from cli.output import emit
from devstack.layout import BACKENDS, ROOT, SERVICES, StackError, State

app = typer.Typer(no_args_is_help=True, help="The embedded stack: real backends and the six processes, no containers.")

StateOption = Annotated[
    Path, typer.Option("--state", envvar="PLEX_STATE", help="Folder of this stack; several run side by side.")
]
DEFAULT_STATE = ROOT / ".state"
START_WITHIN_S = 90.0

console = Console(stderr=True, highlight=False)


def ask(state: State, **what: str) -> Coroutine[Any, Any, Any]:
    """Ask a running stack's supervisor."""
    # What runs a stack takes half a second to load; commands that only talk to an edge do not wait for it.
    from devstack import supervisor  # noqa: PLC0415

    return supervisor.ask(state, **what)


def _do(work: Coroutine[Any, Any, Any]) -> Any:
    try:
        return asyncio.run(work)
    except StackError as error:
        fail(str(error), EXIT_REFUSED)


def _running(state: State) -> dict[str, Any] | None:
    try:
        answer: dict[str, Any] = asyncio.run(ask(state, do="status"))
    except StackError:
        return None
    return answer


@app.command()
def up(
    folder: StateOption = DEFAULT_STATE,
    detach: Annotated[bool, typer.Option("--detach", help="Return when it is healthy; it runs on.")] = False,
    backends_only: Annotated[bool, typer.Option("--backends-only", help="Without the six processes.")] = False,
) -> None:
    """Start the stack and wait for health; Ctrl-C ends it. On a running one, start what is down."""
    from devstack.supervisor import supervise  # noqa: PLC0415 — as in ask

    state = State(folder.resolve())
    if _running(state) is not None:
        _do(ask(state, do="up"))
        _tell(state)
        return
    if detach:
        _detach(state, backends_only=backends_only)
        return
    names = [*BACKENDS, *(() if backends_only else ("migrations", *SERVICES))]
    missing = dict.fromkeys(names)
    with console.status("starting …") as status:

        def report(name: str) -> None:
            missing.pop(name, None)
            console.print(f" [green]ready[/] {name}")
            status.update("waiting for " + ", ".join(missing) if missing else "")

        def ready() -> None:
            status.stop()
            _tell(state)
            say("Ctrl-C stops it")

        _do(supervise(state, backends_only=backends_only, report=report, ready=ready))


def _detach(state: State, *, backends_only: bool) -> None:
    (state / "log").mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "devstack.supervisor", "--state", str(state.folder)]
    with (state / "log/supervisor.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 — our own module, by our own interpreter
            [*command, *(["--backends-only"] if backends_only else [])],
            cwd=ROOT, start_new_session=True, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    deadline = time.monotonic() + START_WITHIN_S
    with console.status("starting …") as status:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                fail((state / "log/supervisor.log").read_text().strip(), EXIT_REFUSED)
            seen = _running(state)
            if seen is not None and seen["healthy"]:
                _tell(state)
                return
            ready = (state / "log/supervisor.log").read_text().split("\n")
            status.update(f"starting … {sum(line.startswith('ready') for line in ready)} ready")
            time.sleep(0.1)
    process.terminate()
    fail(f"not healthy after {START_WITHIN_S:.0f} s; the logs are in {state / 'log'}", EXIT_REFUSED)


def _tell(state: State) -> None:
    say(f"the edge is at {state.edge_url}\nthe state is in {state.folder}")


@app.command()
def status(
    folder: StateOption = DEFAULT_STATE, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False
) -> None:
    """Say what runs, and where."""
    answer = _do(ask(State(folder.resolve()), do="status"))
    emit(answer if as_json else answer["processes"], as_json=as_json, columns=("name", "up", "port", "pid"))


@app.command()
def kill(service: str, folder: StateOption = DEFAULT_STATE) -> None:
    """SIGKILL a process or backend; it stays down until `plexctl dev start`."""
    _do(ask(State(folder.resolve()), do="kill", name=service))


@app.command()
def start(service: str, folder: StateOption = DEFAULT_STATE) -> None:
    """Start a process or backend that is down, and wait until it is ready."""
    _do(ask(State(folder.resolve()), do="start", name=service))


@app.command()
def down(folder: StateOption = DEFAULT_STATE) -> None:
    """Stop the stack; its state stays for the next start."""
    state = State(folder.resolve())
    _do(ask(state, do="down"))
    deadline = time.monotonic() + 30
    while state.control.exists() and time.monotonic() < deadline:
        time.sleep(0.05)


@app.command()
def reset(folder: StateOption = DEFAULT_STATE) -> None:
    """Stop the stack if it runs, and remove its state."""
    state = State(folder.resolve())
    if _running(state) is not None:
        down(folder)
    if state.folder.exists() and not (state / "ports.json").exists() and any(state.folder.iterdir()):
        fail(f"{state.folder} is not the state of a stack; it is left alone", EXIT_REFUSED)
    shutil.rmtree(state.folder, ignore_errors=True)


@app.command()
def env(folder: StateOption = DEFAULT_STATE) -> None:
    """Print shell exports: the edge, the CA, and every backend's superuser connection.

    Example: eval "$(plexctl dev env)"
    """
    state = State(folder.resolve())
    if not (state / "ports.json").exists():
        fail(f"no stack was ever started in {state.folder}", EXIT_REFUSED)
    for name, value in state.exports().items():
        print(f"export {name}={shlex.quote(value)}")


@app.command()
def rotate(
    thing: Annotated[
        str,
        typer.Argument(
            help="certificates, wrapping-key, checkpoint-key, spicedb-key, cursor-key, csrf-key or pkce-key.",
        ),
    ],
    folder: StateOption = DEFAULT_STATE,
) -> None:
    """Replace certificates or a key of a running stack; the processes use the next one without a restart.

    Example: plexctl dev rotate certificates
    """
    from devstack import rotate as rotation  # noqa: PLC0415 — as in ask

    if thing not in rotation.THINGS:
        fail(f"{thing} is not rotated; what is: {', '.join(rotation.THINGS)}", EXIT_USAGE)
    state = State(folder.resolve())
    _do(ask(state, do="status"))
    _do(rotation.rotate(state, thing))


@app.command("idp-secret")
def idp_secret(
    domain_id: str,
    provider: Annotated[str, typer.Option(help="oidc-a or oidc-b.")] = "oidc-b",
    folder: StateOption = DEFAULT_STATE,
) -> None:
    """Put a provider's client secret into OpenBao for a Domain, and print the reference that its binding may name.

    Example: plexctl dev idp-secret "$DOMAIN"
    """
    from devstack.openbao import PROVIDERS, lend_client_secret  # noqa: PLC0415 — as in ask

    if provider not in PROVIDERS:
        fail(f"there is no provider {provider}", EXIT_USAGE)
    state = State(folder.resolve())
    _do(ask(state, do="status"))
    print(_do(lend_client_secret(state, provider, domain_id)))


@app.command()
def login(
    subject: Annotated[str, typer.Option(help="Who signs in.")],
    folder: StateOption = DEFAULT_STATE,
    acr: Annotated[str, typer.Option(help="Authentication class that the provider states.")] = "",
    amr: Annotated[str, typer.Option(help="Authentication methods, separated by spaces.")] = "",
    auth_age: Annotated[int, typer.Option(min=0, help="Seconds since the login at the provider.")] = 0,
    domain_id: Annotated[str, typer.Option("--domain", help="Sign in at this Domain's provider.")] = "",
) -> None:
    """Sign in at the real provider by plain HTTP and print an operator's access token.

    Example: plexctl dev login --subject operator > token
    """
    from devstack.login import access_token  # noqa: PLC0415 — as in ask

    state = State(folder.resolve())
    _do(ask(state, do="status"))
    who = {"subject": subject, "acr": acr, "amr": amr, "auth_age": str(auth_age)}
    print(_do(access_token(state.edge_url, state / "pki/ca.crt", who, domain_id)))
