"""Settings of audit."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from libs.settings import OpenBao, Peer, Postgres, Runtime, Seconds, Settings
from libs.tlog.note import parse_key
from libs.tlog.verify import NotProven


class Peers(Settings):
    """Whom audit's read side asks."""

    identity: Peer


class Checkpoints(Settings):
    """The name of the logs, which no other deployment should have, and when a chain's next checkpoint is due."""

    log: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9./-]{0,199}$")] = "plexsphere/audit"
    every_s: Seconds = 60.0
    every_entries: Annotated[int, Field(ge=1)] = 1000


class Archive(Settings):
    """Where segments of the chains are copied to, `file:///…` or `s3://…`, empty for nowhere; and when."""

    url: Annotated[str, Field(pattern=r"^((file|s3)://.+)?$")] = ""
    every_s: Seconds = 900.0
    every_entries: Annotated[int, Field(ge=1)] = 1000
    compare_every_s: Annotated[float, Field(gt=0, le=604_800)] = 86_400.0


def _verifier_key(text: str) -> str:
    try:
        parse_key(text)
    except NotProven as error:
        raise ValueError(str(error)) from None
    return text


class Restore(Settings):
    """Whose signed word lets chains go on from a restored database: verifier keys of signed notes; none for nobody."""

    acknowledged_by: tuple[Annotated[str, AfterValidator(_verifier_key)], ...] = ()


class AuditSettings(Runtime):
    """deploy/config/audit.toml."""

    postgres: Postgres
    openbao: OpenBao
    peers: Peers
    cursor_key_file: Path
    checkpoints: Checkpoints = Checkpoints()
    archive: Archive = Archive()
    restore: Restore = Restore()
