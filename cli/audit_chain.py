"""What the commands of `plexctl audit` share: which chain, and whose signature is believed."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cli.audit_memory import Remembered
from cli.edge import EXIT_DIVERGED, EXIT_USAGE, fail
from libs.tlog.checkpoint import Checkpoint, open_checkpoint
from libs.tlog.note import VerifierKey, parse_key
from libs.tlog.verify import NotProven

PLATFORM = "platform"
SHOWN_EVERY = 500

Domain = Annotated[str, typer.Option("--domain", help="The Domain; without it the platform's chain.")]
Key = Annotated[str, typer.Option("--key", help="The key that signs its checkpoints (NAME+ID+KEY), from elsewhere.")]
CheckpointFile = Annotated[
    Path | None, typer.Option("--checkpoint", exists=True, dir_okay=False, help="A signed checkpoint that was kept.")
]


def path_of(domain_id: str) -> str:
    """Return where the edge has a chain."""
    return f"/v1/domains/{domain_id}/audit" if domain_id else "/v1/platform/audit"


def given_key(text: str, chain: str) -> VerifierKey:
    """Read a key that somebody gave; ends the program when it is none of the chain's."""
    try:
        key = parse_key(text)
    except NotProven as error:
        fail(f"that is no key: {error}", EXIT_USAGE)
    if key.name.rpartition("/")[2] != chain:
        fail(f"the key is {key.name}'s, and the chain is {chain}", EXIT_USAGE)
    return key


def trusted(given: str, remembered: Remembered | None, shown: str, chain: str) -> tuple[VerifierKey, str]:
    """Return the key that is believed, and where it is from: what was given, else remembered, else shown first."""
    if given:
        return given_key(given, chain), "given"
    if remembered:
        if shown and shown != str(remembered.key):
            alarm(
                f"the key has changed: remembered is {remembered.key}, shown is {shown}; if it was renewed, "
                "get the new one from who runs the log and give it with --key"
            )
        return remembered.key, "remembered"
    try:
        key = parse_key(shown)
    except NotProven as error:
        alarm(f"the key that is shown is none: {error}")
    if key.name.rpartition("/")[2] != chain:
        alarm(f"the key that is shown is {key.name}'s, and the chain is {chain}")
    return key, "shown"


def opened(note: str, key: VerifierKey) -> Checkpoint:
    """Return a checkpoint that the key signed; anything else is an alarm."""
    try:
        return open_checkpoint(note, key.name, [key])
    except NotProven as error:
        alarm(f"the checkpoint is not believed: {error} ({key})")


def alarm(message: str) -> NoReturn:
    """End as a verification that found something does."""
    fail(message, EXIT_DIVERGED)


@contextlib.contextmanager
def shown_progress(what: str, total: int, begin: int = 0) -> Iterator[Callable[[int], object]]:
    """Show on a terminal how far it is, for the block."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(what, total=total)

        def looked(at: int) -> None:
            if at % SHOWN_EVERY == 0:
                progress.update(task, completed=at - begin)

        yield looked
