"""The ledger as this deployment runs it: each row of docs/security-model.md, and what it still lacks.

What depends on how the deployment is put together is read from there; the rest says what this version does not have.
"""

from dataclasses import dataclass

from services.gateway.ports import Ports

ACTIVE, PARTIAL = "active", "partial"


@dataclass(frozen=True)
class Row:
    """One threat: active when nothing of its control is missing."""

    id: str
    title: str
    missing: tuple[str, ...] = ()

    @property
    def posture(self) -> str:
        """`active` or `partial`."""
        return PARTIAL if self.missing else ACTIVE


def ledger(ports: Ports) -> tuple[Row, ...]:
    """Return all rows."""
    bus = tuple(f"port {name.replace('_', ' ')}" for name in ports.missing)
    return (
        Row("F-1", "forged or replayed mesh events", bus),
        Row("F-2", "secrets exfiltrated without a trace or in bulk"),
        Row("F-3", "stolen or forged id_token"),
        Row("F-4", "privilege without fresh strong authentication"),
        Row("F-5", "the same, replayed over the wire"),
        Row("F-6", "another node's secret"),
        Row("S-1", "the database is read"),
        Row("A-1", "a hostile DBA rewrites a row or the chain"),
        Row("A-2", "a crash dump is read"),
        Row("A-3", "a backup is substituted at restore"),
        Row("A-4", "the archive mirror is altered"),
        Row("A-5", "retention is bypassed by migration or deletion"),
    )
