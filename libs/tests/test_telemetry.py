"""Logs without a secret in them, whichever way one gets there; spans that carry names only."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from libs.custody import Secret
from libs.settings import Runtime, SettingsError
from libs.telemetry import FileExporter, bare_traceback, collector, redact
from libs.tests.doors import runtime
from libs.tests.pki import Authority

pytestmark = pytest.mark.unit

PLANTED = "planted-7f1c9e"
CREDENTIALS = {
    "an API token": "psk_prod_0123456789abcdef",
    "a bootstrap token": "psb_dev_abcdefgh_node_abcdefghijklmnopqrst",
    "a node bearer": "nsk_stage_AZkAAAAAcACAAAAAAAAAAAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f",
    "one with a tag of the node's own": "nsk_Prod1_AZkAAAAAcACAAAAAAAAAAAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhsc",
    "one with a stranger tag": "nsk_eu-w.1:x(2)_AZkAAAAAcACAAAAAAAAAAAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhsc",
    "an API token in base62": "psk_dev_7hQ2ZKq9XvB3nT5wY8aCdEfGhJkLmNpQrStUvWx012",
    "an access token": "pat_dev_0123456789abcdefghijklmnopqrstuvwxyzABCDEFG",
    "a JWT": "eyJhbGciOiJFZDI1NTE5In0.eyJzdWIiOiJ4In0.c2lnbmF0dXJl",
    "half a JWT": "eyJhbGciOiJFZDI1NTE5In0",
    "a token of the vault": "s.0123456789abcdefghijklmn",
    "a batch token of the vault": "hvb.AAAAAQJ0123456789abcdefghijklmn",
    "another token of the vault": "hvs.CAESIJ0123456789abcdefghijklmn",
}


def logged(**event: Any) -> str:
    return json.dumps(redact(None, "info", event))


@pytest.mark.parametrize("kind", CREDENTIALS)
def test_a_credential_is_cut_from_any_text(kind: str) -> None:
    value = CREDENTIALS[kind]
    for event in (
        {"event": f"got {value}, and went on"},
        {"reason": f"x={value}"},
        {"detail": [f"({value})"]},
        {"headers": {"x": {"y": (value,)}}},
        {"seen": {value: 1}},
        {"seen": f"x_{value}"},
    ):
        line = logged(**event)
        assert value not in line
        assert "***" in line


def test_a_cookie_is_cut_by_its_name() -> None:
    line = logged(event="plexsphere_session=q1w2e3r4t5; plexsphere_csrf=z9x8c7v6 x", plexsphere_session="q1w2e3r4t5")
    assert "q1w2" not in line
    assert "z9x8" not in line


@pytest.mark.parametrize(
    "name",
    [
        "bearer",
        "csrf",
        "user_code",
        "client_secret",
        "api_token",
        "Authorization",
        "set_cookie",
        "nsk",
        "pkce_verifier",
        "private_key",
        "pepper",
    ],
)
def test_what_a_key_calls_secret_is_not_shown_however_deep(name: str) -> None:
    for event in ({name: PLANTED}, {"outer": {name: PLANTED}}, {"outer": [{name: [PLANTED]}]}, {name: {"x": PLANTED}}):
        assert PLANTED not in logged(**event)


@pytest.mark.parametrize(
    "value", [PLANTED.encode(), bytearray(PLANTED.encode()), ValueError(PLANTED), [PLANTED.encode()]]
)
def test_bytes_and_exceptions_are_never_shown(value: Any) -> None:
    assert PLANTED not in logged(value=value)


def test_a_secret_is_not_shown() -> None:
    assert PLANTED not in str(redact(None, "info", {"value": Secret(PLANTED.encode())}))


def test_ids_and_reasons_stay_readable() -> None:
    event = {"event": "secret.read", "secret_id": "01990000", "nsk_kid": "nsk_" + "0" * 32, "reason": "out_of_scope"}
    assert logged(**event) == json.dumps(event)


def test_a_traceback_has_frames_and_no_message() -> None:
    try:
        int(PLANTED)
    except ValueError as error:
        for given in (error, True, (type(error), error, error.__traceback__)):
            event = bare_traceback(None, "error", {"event": "x", "exc_info": given})
            assert event["error"] == "ValueError"
            assert event["frames"][-1].startswith("test_telemetry.py:")
            assert PLANTED not in str(event)


LEAKS = {
    "an exception nobody caught": "raise ValueError(value)",
    "one in a thread": "import threading; t = threading.Thread(target=lambda: int(value)); t.start(); t.join()",
    "one in a destructor": "type('X', (), {'__del__': lambda self: int(value)})()",
    "one in a callback of the loop": (
        "import asyncio\n"
        "async def run():\n"
        "    loop = asyncio.get_running_loop(); loop.set_exception_handler(telemetry.log_loop_error)\n"
        "    loop.call_soon(int, value); await asyncio.sleep(0.01)\n"
        "asyncio.run(run())"
    ),
    "one in a task nobody awaited": (
        "import asyncio, gc\n"
        "async def fail():\n    raise ValueError(value)\n"
        "async def run():\n"
        "    asyncio.get_running_loop().set_exception_handler(telemetry.log_loop_error)\n"
        "    asyncio.create_task(fail()); await asyncio.sleep(0.01); gc.collect()\n"
        "asyncio.run(run())"
    ),
    "one that a library logs": (
        "import logging\ntry:\n    int(value)\nexcept ValueError:\n    logging.getLogger('lib').exception('failed')"
    ),
    "one that we log": (
        "import structlog\ntry:\n    int(value)\nexcept ValueError:\n    structlog.get_logger().exception('x')"
    ),
    "a chain of them": "try:\n    int(value)\nexcept ValueError as error:\n    raise KeyError(value) from error",
}


@pytest.mark.parametrize("leak", LEAKS)
def test_a_process_says_what_failed_and_never_with_what(leak: str) -> None:
    setup = f"from libs import telemetry; telemetry.set_up_logs('test', 'info'); value = '{PLANTED}'\n"
    ran = subprocess.run([sys.executable, "-c", setup + LEAKS[leak]], check=False, capture_output=True, text=True)
    assert PLANTED not in ran.stdout + ran.stderr
    line = json.loads(ran.stdout.splitlines()[0])
    assert line["error"] in {"ValueError", "KeyError"}
    assert {"ts", "level", "service", "event"} <= set(line)
    assert ran.stderr == ""


def test_spans_are_lines_with_names(tmp_path: Path) -> None:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(FileExporter(tmp_path / "spans.jsonl")))
    tracer = provider.get_tracer("test")
    with tracer.start_as_current_span("outer"), tracer.start_as_current_span("inner"):
        pass
    provider.shutdown()
    inner, outer = (json.loads(line) for line in (tmp_path / "spans.jsonl").read_text().splitlines())
    assert (inner["name"], outer["name"]) == ("inner", "outer")
    assert (inner["trace"], inner["parent"]) == (outer["trace"], outer["span"])


@pytest.mark.parametrize("endpoint", ["http://collector:4317", "collector:4317"])
def test_a_collector_without_tls_is_refused(endpoint: str, authority: Authority) -> None:
    settings = runtime(authority.issue("identity"))
    telemetry = settings.telemetry.model_copy(update={"otlp_endpoint": endpoint})
    refused: Runtime = settings.model_copy(update={"telemetry": telemetry})
    with pytest.raises(SettingsError, match="otlp_endpoint"):
        collector(refused)
