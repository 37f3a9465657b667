"""What is watched of one service alone: its security counters, its own saturation, what it keeps up with."""

from collections.abc import Callable, Iterator

from services.audit.writer import LONGEST_QUEUE
from tools.alerts import Alert, Rules, Service, grew
from tools.alerts_shared import BY_ALL, MINUTES, MISSED, records, shared

AUDIT = Service("audit", "@plexsphere/audit", ("postgres", "openbao"), 99.95, 0.25)
IDENTITY = Service("identity", "@plexsphere/identity", ("postgres", "openbao", "spicedb"), 99.95, 0.5)
ACCESS = Service("access", "@plexsphere/access", ("postgres", "openbao"), 99.9, 0.5)
SECRETS = Service("secrets", "@plexsphere/secrets", ("postgres", "openbao"), 99.9, 0.5)
MESH = Service("mesh", "@plexsphere/mesh", ("postgres", "openbao", "nats"), 99.9, 0.5)
GATEWAY = Service("gateway", "@plexsphere/edge", ("nats",), 99.9, 1.0)
SERVICES = (IDENTITY, ACCESS, SECRETS, MESH, AUDIT, GATEWAY)
# The backends that several services share, and who runs them.
BACKENDS = '{dependency=~"postgres|openbao|nats"}'
PLATFORM, PLATFORM_OWNER = "platform", "@plexsphere/platform"


def refused(job: str, control: str, reason: str) -> str:
    """Return a counter of refusals as a selector."""
    return f'plexsphere_refusals_total{{job="{job}",control="{control}",reason=~"{reason}"}}'


def counted(job: str, control: str, reason: str) -> str:
    """Return the series of a counter of refusals."""
    return f'plexsphere_refusals_total{{job="{job}",control="{control}",reason="{reason}"}}'


def above(name: str, series: str, expr: str, holds: str, severity: str, summary: str, bad: str, good: str) -> Alert:
    """Return an alert of one series, with the value that it fires at and one that it does not."""
    return Alert(name, expr, holds, severity, summary, {series: bad + MINUTES}, {series: good + MINUTES})


def late(name: str, series: str, most_s: int, severity: str, summary: str, unless: str = "") -> Alert:
    """Return an alert of something that was last so at a time; at the start of a test it is the epoch."""
    expr = f"time() - max({series}) > {most_s}{unless}"
    return above(name, series, expr, "1m", severity, summary, "0", "2400")


def outbox(service: Service, severity: str = "ticket") -> Alert:
    """Return the alert of events that wait; while mesh is down that is mesh's to know."""
    series = f'plexsphere_outbox_oldest_seconds{{job="{service.name}",schema="{service.name}"}}'
    unless = "" if service is MESH else ' unless on () absent(up{job="mesh"} == 1)'
    there = {} if service is MESH else {'up{job="mesh"}': f"1{MINUTES}"}
    return Alert(
        f"{service.title}OutboxOld", f"max({series}) > 120{unless}", "5m", severity,
        f"Events of {service.name} have waited for two minutes to be published.",
        {series: f"300{MINUTES}", **there}, {series: f"10{MINUTES}", **there},
    )  # fmt: skip


def audit() -> Iterator[Alert]:
    """Yield audit's own."""
    chains = 'plexsphere_audit_chains_refused{job="audit"}'
    yield above(
        "AuditRestoreRefused", chains, f"max({chains}) > 0", "1m", "page",
        "A chain does not go on from its anchor: the database is not what was there.", "1", "0",
    )  # fmt: skip
    checkpoints = 'plexsphere_chains_diverged{job="audit",round="checkpoint"}'
    yield above(
        "AuditChainDiverged", checkpoints, f"max({checkpoints}) > 0", "1m", "page",
        "A chain, its tree or its checkpoints were altered.", "1", "0",
    )  # fmt: skip
    archive = 'plexsphere_chains_diverged{job="audit",round=~"archive.*"}'
    yield above(
        "AuditArchiveDiverged", archive.replace('=~"archive.*"', '="archive_comparison"'), f"max({archive}) > 0", "1m",
        "page", "The archive and the database are not the same.", "1", "0",
    )  # fmt: skip
    waits = 'plexsphere_round_overdue_seconds{job="audit",round="checkpoint"}'
    yield above(
        "AuditCheckpointLate", waits, f"max({waits}) > 600", "1m", "page",
        "A chain has had no checkpoint for ten minutes: what it got since is vouched for by the database alone.",
        "700", "60",
    )  # fmt: skip
    mirror = 'plexsphere_round_overdue_seconds{job="audit",round="archive"}'
    yield above(
        "AuditArchiveLate", mirror, f"max({mirror}) > 7200", "5m", "ticket",
        "A chain has not been archived for two hours.", "8000", "900",
    )  # fmt: skip
    compared = 'plexsphere_round_overdue_seconds{job="audit",round="archive_comparison"}'
    yield above(
        "AuditComparisonLate", compared, f"max({compared}) > 90000", "5m", "ticket",
        "A chain has not been compared with its archive for a day longer than it should.", "100000", "3600",
    )  # fmt: skip
    append = 'job="audit",method=~"/plexsphere.audit.v1.AuditAppendService/.*"'
    failed, calls = (
        f'plexsphere_rpc_failures_total{{{append},cause="own"}}[5m]',
        f"plexsphere_rpc_calls_total{{{append}}}[5m]",
    )
    one = 'job="audit",method="/plexsphere.audit.v1.AuditAppendService/AppendAll"'
    ok, no = f'plexsphere_rpc_calls_total{{{one},code="ok"}}', f'plexsphere_rpc_failures_total{{{one},cause="own"}}'
    yield Alert(
        "AuditRefusesAppends", f"sum(rate({failed})) / sum(rate({calls})) > 0.05", "2m", "page",
        "One append in twenty is refused, and with it whatever had to be recorded.",
        {ok: f"0+90{MINUTES}", no: f"0+10{MINUTES}"}, {ok: f"0+99{MINUTES}", no: f"0+1{MINUTES}"},
    )  # fmt: skip
    queue = 'plexsphere_append_queue_length{job="audit"}'
    yield above(
        "AuditQueueLong", queue, f"max({queue}) > {LONGEST_QUEUE // 2}", "1m", "ticket",
        "Half of the places of those who wait to append are taken.", str(LONGEST_QUEUE), "100",
    )  # fmt: skip


def secrets() -> Iterator[Alert]:
    """Yield the own alerts of secrets."""
    limiter = counted("secrets", "secret_limits", "unavailable")
    ready = 'plexsphere_ready{job="secrets",dependency="postgres"}'
    yield Alert(
        "SecretsLimiterDown", f"sum(rate({limiter}[5m])) > 0 and on () max({ready}) == 1", "2m", "page",
        "Reads are refused because their limits cannot be charged, and PostgreSQL answers.",
        {limiter: f"0+10{MINUTES}", ready: f"1{MINUTES}"}, {limiter: f"10{MINUTES}", ready: f"1{MINUTES}"},
    )  # fmt: skip
    bulk = counted("secrets", "secret_limits", "node")
    yield above(
        "SecretsBulkReads", bulk, f'sum(rate({refused("secrets", "secret_limits", "node|domain")}[5m])) > 1', "5m",
        "page", "Secrets are read far above their limits: somebody empties a store, or loops.", "0+600", "0+6",
    )  # fmt: skip
    yield outbox(SECRETS)


def access() -> Iterator[Alert]:
    """Yield access's own."""
    yield signing("access", ACCESS)
    yield outbox(ACCESS)


def signing(name: str, service: Service) -> Alert:
    """Return the alert of signatures that fail while OpenBao answers."""
    calls = f'plexsphere_rpc_calls_total{{job="{name}",code="signing_unavailable"'
    ready = f'plexsphere_ready{{job="{name}",dependency="openbao"}}'
    series = calls + ',method="/one/Method"}'
    return Alert(
        f"{service.title}CannotSign", f"sum(rate({calls}}}[5m])) > 0 and on () max({ready}) == 1", "2m", "page",
        f"Signatures of {name} fail though OpenBao answers: a key is not the one that was recorded.",
        {series: f"0+5{MINUTES}", ready: f"1{MINUTES}"}, {series: f"5{MINUTES}", ready: f"1{MINUTES}"},
    )  # fmt: skip


def identity() -> Iterator[Alert]:
    """Yield identity's own."""
    drift = 'plexsphere_relation_drift{job="identity",kind="surplus"}'
    kinds = 'plexsphere_relation_drift{job="identity",kind=~"surplus|missing|altered"}'
    yield above(
        "IdentityRelationDrift", drift, f"max({kinds}) > 0", "1m", "page",
        "SpiceDB has relations that nobody granted, or lacks some: somebody else writes to it.", "1", "0",
    )  # fmt: skip
    row = 'plexsphere_relation_drift{job="identity",kind="refused"}'
    yield above(
        "IdentityRelationsRefused", row, f"max({row}) > 0", "5m", "ticket",
        "SpiceDB will never take some relations of the table.", "1", "0",
    )  # fmt: skip
    series = 'plexsphere_relations_delivered_timestamp_seconds{job="identity"}'
    ready = 'plexsphere_ready{job="identity",dependency=~"spicedb|postgres"}'
    yield late(
        "IdentityRelationsLate", series, 120, "page", "Grants and removals have not reached SpiceDB for two minutes.",
        f" unless on () min({ready}) == 0",
    )  # fmt: skip
    forged = counted("identity", "sign_in", "signature")
    reasons = refused(
        "identity", "sign_in", "signature|alg.*|kid.*|key.*|iss|aud.*|azp.*|nonce|crit|typ|cty|jku|jwk|x5.*"
    )
    yield Alert(
        "IdentityForgedTokens", grew(reasons, "15m"), "1m", "page",
        "A sign-in brought a token that does not verify.", {forged: "_x30 1x30"}, {forged: f"1{MINUTES}"},
    )  # fmt: skip
    yield outbox(IDENTITY)


def mesh() -> Iterator[Alert]:
    """Yield mesh's own."""
    series = 'plexsphere_event_stream_kept_timestamp_seconds{job="mesh"}'
    ready = 'plexsphere_ready{job="mesh",dependency=~"nats|postgres"}'
    yield late(
        "MeshStreamNotKept", series, 120, "page",
        "The stream has not been right for two minutes: what is published is not vouched for.",
        f" unless on () min({ready}) == 0",
    )  # fmt: skip
    yield signing("mesh", MESH)
    yield outbox(MESH, "page")


def gateway() -> Iterator[Alert]:
    """Yield the gateway's own."""
    peers = 'plexsphere_ready{job="gateway",dependency=~"identity|access|secrets|mesh|audit"}'
    itself = 'label_replace(min by (job) (plexsphere_ready) == 0 or up == 0, "dependency", "$1", "job", "(.*)")'
    peer, up, own = (
        'plexsphere_ready{job="gateway",dependency="audit"}',
        'up{job="audit"}',
        'plexsphere_ready{job="audit",dependency="postgres"}',
    )
    yield Alert(
        "GatewayPeerUnreachable", f"max by (dependency) ({peers}) == 0 unless on (dependency) ({itself})", "2m", "page",
        "The gateway cannot reach a service that finds itself well.",
        {peer: f"0{MINUTES}", up: f"1{MINUTES}", own: f"1{MINUTES}"},
        {peer: f"0{MINUTES}", up: f"1{MINUTES}", own: f"0{MINUTES}"}, {"dependency": "audit"},
    )  # fmt: skip
    events, ready = 'plexsphere_events_up{job="gateway"}', 'plexsphere_ready{job="gateway",dependency="mesh"}'
    yield Alert(
        "GatewayEventsDown", f'max({events}) == 0 unless on () min(plexsphere_ready{{job="gateway"}}) == 0', "2m",
        "page", "No node gets events, though all that they need answers.",
        {events: f"0{MINUTES}", ready: f"1{MINUTES}"}, {events: f"0{MINUTES}", ready: f"0{MINUTES}"},
    )  # fmt: skip
    forged = counted("gateway", "mesh", "bad_signature")
    yield Alert(
        "GatewayForgedEvents", grew(refused("gateway", "mesh", ".+"), "15m"), "1m", "page",
        "Envelopes were refused at the gate: somebody else writes to the bus.",
        {forged: "_x30 1x30"}, {forged: f"1{MINUTES}"},
    )  # fmt: skip
    slow = 'plexsphere_event_streams_ended_total{job="gateway",cause="slow"}'
    yield above(
        "GatewaySlowReaders", slow, f"sum(rate({slow}[5m])) > 0.1", "10m", "ticket",
        "Clients or proxies do not read the streams that they opened.", "0+60", "0+1",
    )  # fmt: skip
    bad = counted("gateway", "edge.credential_refused", "unauthorized")
    control = 'plexsphere_refusals_total{job="gateway",control="edge.credential_refused"}'
    yield above(
        "GatewayBadCredentials", bad, f"sum(rate({control}[5m])) > 5", "5m", "ticket",
        "Somebody tries credentials by the hundred.", "0+1200", "0+60",
    )  # fmt: skip


def platform() -> Iterator[Alert]:
    """Yield the alerts of what several services share."""
    one, other = (f'plexsphere_ready{{job="{job}",dependency="postgres"}}' for job in ("audit", "mesh"))
    yield Alert(
        "BackendDown", f"{MISSED} > 1",
        "1m", "page", "Several services cannot use a backend.",
        {one: f"0{MINUTES}", other: f"0{MINUTES}"}, {one: f"0{MINUTES}", other: f"1{MINUTES}"},
        {"dependency": "postgres"},
    )  # fmt: skip


OWN: dict[str, Callable[[], Iterator[Alert]]] = {
    "identity": identity,
    "access": access,
    "secrets": secrets,
    "mesh": mesh,
    "audit": audit,
    "gateway": gateway,
}


def all_rules() -> list[Rules]:
    """Return the rules of every service, and of what they share."""
    found = [Rules(one.name, one.owner, records(one), [*shared(one), *OWN[one.name]()]) for one in SERVICES]
    return [*found, Rules(PLATFORM, PLATFORM_OWNER, {MISSED: BY_ALL.format(BACKENDS)}, list(platform()), shared=True)]
