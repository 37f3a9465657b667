"""Logs, traces and metrics, without a value in any of them.

Logs are JSON lines on stdout; spans go to an OTLP collector or a file when one is configured, and carry names only;
metrics are served over mTLS for Prometheus.
"""

import asyncio
import json
import logging
import re
import sys
import threading
import traceback
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import structlog
from opentelemetry import context as otel_context
from opentelemetry import propagate, trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON
from prometheus_client import Counter, Gauge, Histogram, start_http_server
from structlog.typing import Processor

from libs import tls
from libs.settings import Runtime, SettingsError

CALLS = Counter("plexsphere_rpc_calls_total", "Calls served, by method and outcome.", ["method", "code"])
LATENCY = Histogram("plexsphere_rpc_seconds", "Seconds a call took.", ["method"])
REFUSALS = Counter("plexsphere_refusals_total", "Refusals by control and reason.", ["control", "reason"])
FOLDED = Counter("plexsphere_refusals_folded_total", "Refusals without a row of their own.", ["action", "reason"])
VERIFIED = Counter("plexsphere_envelopes_verified_total", "Signatures of envelopes that were verified.")
DELIVERED = Counter("plexsphere_events_delivered_total", "Events written to event streams.")
STREAMS = Gauge("plexsphere_event_streams", "Event streams that are open.")
STREAMS_ENDED = Counter("plexsphere_event_streams_ended_total", "Event streams that ended, by cause.", ["cause"])
OUTBOX = Gauge("plexsphere_outbox_oldest_seconds", "Age of the oldest event that waits to be published.", ["schema"])
DRIFT = Gauge("plexsphere_relation_drift", "Tuples that differ between SpiceDB and identity's table.", ["kind"])
REFUSED_CHAINS = Gauge("plexsphere_audit_chains_refused", "Chains that do not go on from their anchor.")
READY = Gauge("plexsphere_ready", "1 when a dependency is reachable.", ["dependency"])
FAILURES = Counter("plexsphere_rpc_failures_total", "Calls that failed on our side.", ["method", "cause"])
SKEW = Gauge("plexsphere_clock_skew_seconds", "By how much another clock is ahead of ours.", ["clock"])
POOL = Gauge("plexsphere_pool_connections", "Connections to PostgreSQL; `most` is the limit.", ["state"])
EXPIRES = Gauge("plexsphere_certificate_expires_timestamp_seconds", "When it ends; 0: cannot be read.", ["certificate"])
LAG = Histogram(
    "plexsphere_event_loop_lag_seconds", "How late the event loop was.", buckets=(0.01, 0.05, 0.1, 0.5, 1, 5)
)
ROUND_OVERDUE = Gauge("plexsphere_round_overdue_seconds", "How long the chain waits that waits longest.", ["round"])
CHAINS_DIVERGED = Gauge("plexsphere_chains_diverged", "Chains that a round found altered.", ["round"])
QUEUE = Gauge("plexsphere_append_queue_length", "Appends that wait to be written.")
GROUP = Histogram("plexsphere_append_group_size", "Appends a transaction.", buckets=(1, 4, 16, 64, 256, 512))
DELIVERED_AT = Gauge("plexsphere_relations_delivered_timestamp_seconds", "When SpiceDB last had all relations.")
KEPT_AT = Gauge("plexsphere_event_stream_kept_timestamp_seconds", "When the stream was last found, or made, right.")
RING = Gauge("plexsphere_event_ring_events", "Events that are held for streams that resume.")
EVENTS_UP = Gauge("plexsphere_events_up", "1 while the bus is read to its end and mesh answers.")

SENSITIVE = re.compile(
    r"(?i)(secret|token|passw|authorization|bearer|credential|cookie|csrf|plexsphere_session|nsk|assertion|verifier"
    r"|pepper|private|user_code|device_code)"
)
# Whatever tag stands between the underscores: a node chooses its own (libs.nsk). A key's id has no second underscore.
CREDENTIAL = re.compile(
    r"(?:psk|psb|nsk|pat)_[!-^`-~]+_[A-Za-z0-9_-]{8,}|eyJ[A-Za-z0-9_-]{10,}[A-Za-z0-9_.-]*"
    r"|(?<![A-Za-z0-9])(?:hv[sbr]|[sbr])\.[\w-]{20,}|(?<=plexsphere_session=)[^\s;]+|(?<=plexsphere_csrf=)[^\s;]+"
)
Event = MutableMapping[str, Any]
NOTHING = nullcontext()
_collected = False
SAFE_NAMES = frozenset({"token_id", "secret_id", "nsk_kid", "reason"})


def redact(_: Any, __: str, event: Event) -> Event:
    """Replace what a key or a shape says is secret, however deep."""
    for name, value in event.items():
        event[name] = _redacted(name, value)
    return event


def _redacted(name: str, value: Any) -> Any:
    if isinstance(value, (bytes, bytearray, memoryview)) or (SENSITIVE.search(name) and name not in SAFE_NAMES):
        return "***"
    if isinstance(value, str):
        return CREDENTIAL.sub("***", value)
    if isinstance(value, BaseException):
        # Its message may quote what it was given.
        return type(value).__name__
    if isinstance(value, Mapping):
        return {CREDENTIAL.sub("***", str(key)): _redacted(str(key), inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_redacted("", inner) for inner in value]
    return value


def bare_traceback(_: Any, __: str, event: Event) -> Event:
    """Replace an exception with its type and its frames: no message and no locals, which could hold a value."""
    error = event.pop("exc_info", None)
    if error is True:
        error = sys.exc_info()[1]
    if isinstance(error, tuple):
        error = error[1]
    if isinstance(error, BaseException):
        event["error"] = type(error).__name__
        frames = traceback.extract_tb(error.__traceback__)
        event["frames"] = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]
        if isinstance(error, BaseExceptionGroup):
            event["inner"] = [type(inner).__name__ for inner in error.exceptions]
    return event


def add_trace_id(_: Any, __: str, event: Event) -> Event:
    """Add the id of the current trace."""
    span = trace.get_current_span().get_span_context()
    if span.is_valid:
        event["trace_id"] = trace.format_trace_id(span.trace_id)
    return event


def set_up_logs(service: str, level: str) -> None:
    """Send every log of the process, ours and the libraries', to stdout as redacted JSON."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", key="ts"),
        add_trace_id,
        bare_traceback,
        redact,
    ]

    def name_service(_: Any, __: str, event: Event) -> Event:
        return {"service": service, **event}

    structlog.configure(
        processors=[name_service, *shared, structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stdout),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processor=structlog.processors.JSONRenderer(), foreign_pre_chain=[name_service, *shared]
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    sys.excepthook = log_crash
    threading.excepthook = lambda crashed: log_lost("thread.crashed", crashed.exc_value)
    sys.unraisablehook = lambda crashed: log_lost("destructor.crashed", crashed.exc_value)


def log_crash(kind: type[BaseException], error: BaseException, trace_back: TracebackType | None) -> None:
    """Log an unhandled exception as type and frames; never its message."""
    structlog.get_logger().error("process.crashed", exc_info=error.with_traceback(trace_back), kind=kind.__name__)


def log_lost(event: str, error: BaseException | None) -> None:
    """Log an exception that nobody could catch as type and frames; never its message."""
    structlog.get_logger().error(event, exc_info=error)


def log_loop_error(_: asyncio.AbstractEventLoop, lost: dict[str, Any]) -> None:
    """Log what an event loop could not deliver; its own text would hold the exception's message."""
    log_lost("loop.error", lost.get("exception"))


class FileExporter(SpanExporter):
    """Appends spans as JSON lines to a file; for tests and the embedded stack."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Write the spans."""
        for span in spans:
            at = span.get_span_context()
            row = {
                "trace": trace.format_trace_id(at.trace_id) if at else "",
                "span": trace.format_span_id(at.span_id) if at else "",
                "parent": trace.format_span_id(span.parent.span_id) if span.parent else "",
                "service": span.resource.attributes.get("service.name"),
                "name": span.name,
                "start": span.start_time,
                "end": span.end_time,
                "attributes": dict(span.attributes or {}),
            }
            self._file.write(json.dumps(row) + "\n")
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Close the file."""
        self._file.close()


class CollectorExporter(SpanExporter):
    """Sends spans to the collector, with the certificate files as they are then."""

    def __init__(self, settings: Runtime) -> None:
        self._settings = settings
        self._seen = tls.changed_at(settings.tls)
        self._exporter = collector(settings)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send the spans."""
        with suppress(OSError):
            if (now := tls.changed_at(self._settings.tls)) != self._seen:
                old, self._exporter, self._seen = self._exporter, collector(self._settings), now
                old.shutdown()
        return self._exporter.export(spans)

    def shutdown(self) -> None:
        """Close the connection."""
        self._exporter.shutdown()


def set_up(settings: Runtime) -> None:
    """Set up logs, spans and the metrics port of a process."""
    telemetry = settings.telemetry
    set_up_logs(settings.service, telemetry.log_level)
    # Where nobody collects spans none is recorded; trace ids are made and handed on all the same.
    global _collected  # noqa: PLW0603 — set once, before anything else of the process runs
    _collected = bool(telemetry.otlp_endpoint or telemetry.trace_file)
    sampler = ALWAYS_ON if _collected else ALWAYS_OFF
    provider = TracerProvider(sampler=sampler, resource=Resource.create({"service.name": settings.service}))
    if telemetry.otlp_endpoint:
        provider.add_span_processor(BatchSpanProcessor(CollectorExporter(settings)))
    if telemetry.trace_file:
        provider.add_span_processor(SimpleSpanProcessor(FileExporter(Path(telemetry.trace_file))))
    trace.set_tracer_provider(provider)
    serve_metrics(settings)


def serve_metrics(settings: Runtime) -> None:
    """Serve metrics from a thread of their own, with the certificate files as they are then."""
    server, _ = start_http_server(
        settings.telemetry.metrics_port,
        addr=settings.telemetry.metrics_host,
        certfile=str(settings.tls.certificate_file),
        keyfile=str(settings.tls.key_file),
        client_cafile=str(settings.tls.ca_file),
        client_auth_required=True,
    )
    listener: Any = server.socket
    # What that thread does between two requests.
    server.service_actions = tls.follow(settings.tls, listener.context)  # type: ignore[method-assign]


def count_call(method: str, code: str, failed: str, seconds: float | None) -> None:
    """Count a call, by whose fault it failed where it did; a stream, which lasts, has no `seconds`."""
    CALLS.labels(method, code).inc()
    for cause in ("own", "peer"):
        # Both are there from the first call on: what begins at 1 has not risen.
        FAILURES.labels(method, cause).inc(cause == failed)
    if seconds is not None:
        LATENCY.labels(method).observe(seconds)


def collector(settings: Runtime) -> SpanExporter:
    """Return an exporter to the OTLP collector, over mTLS like every hop."""
    import grpc  # noqa: PLC0415 — with the next, 0.2 s that only who exports pays
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415

    endpoint = settings.telemetry.otlp_endpoint
    if not endpoint.startswith("https://"):
        raise SettingsError("setting telemetry.otlp_endpoint must start with https://")
    files = (settings.tls.ca_file, settings.tls.key_file, settings.tls.certificate_file)
    return OTLPSpanExporter(
        endpoint=endpoint, credentials=grpc.ssl_channel_credentials(*(path.read_bytes() for path in files))
    )


def hop(tracer: trace.Tracer, name: str, kind: trace.SpanKind = trace.SpanKind.INTERNAL) -> AbstractContextManager[Any]:
    """Record a call to something else as a span for the block; where nobody collects spans it costs nothing."""
    if not _collected:
        return NOTHING
    return tracer.start_as_current_span(name, kind=kind, record_exception=False, set_status_on_exception=False)


def extract(metadata: Iterable[tuple[str, Any]]) -> otel_context.Context:
    """Return the trace context that a caller sent (W3C Trace Context)."""
    return propagate.extract({name: value for name, value in metadata if isinstance(value, str)})


def inject(metadata: list[tuple[str, str]]) -> None:
    """Add the current trace context to outgoing metadata."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    metadata.extend(carrier.items())
