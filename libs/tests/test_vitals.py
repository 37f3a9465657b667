"""What each process tells of itself, and by whose fault a call failed."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from libs.errors import AuditUnavailable, DatastoreUnavailable, NotFound, NotProvisioned, Unavailable, fault, of_peer
from libs.rpc.channel import connect
from libs.telemetry import count_call
from libs.tests.doors import ASKED, Relations, door, runtime
from libs.tests.pki import Authority
from libs.vitals import LOOK_S, certificates, expires_at, watch_certificates, watched_loop
from plexsphere.identity.v1 import relations_pb2_grpc as stubs

pytestmark = pytest.mark.unit

CHECK = "/plexsphere.identity.v1.RelationsService/Check"


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


# Whose fault ----------------------------------------------------------------------------------------------------------


def raised(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "whose"),
    [
        (NotFound(), ""),
        (NotProvisioned(), ""),
        (DatastoreUnavailable(), "own"),
        (RuntimeError(), "own"),
        (of_peer(Unavailable()), "peer"),
        (raised(AuditUnavailable(), of_peer(Unavailable())), "peer"),
        (raised(AuditUnavailable(), TimeoutError()), "own"),
    ],
)
def test_a_failure_is_whose_it_is(error: Exception, whose: str) -> None:
    assert fault(error) == whose


def test_a_failure_is_counted_and_the_other_cause_stands_at_nothing() -> None:
    count_call("M", "ok", "", 0.1)
    assert REGISTRY.get_sample_value("plexsphere_rpc_failures_total", {"method": "M", "cause": "own"}) == 0
    count_call("M", "datastore_unavailable", "own", None)
    assert value("plexsphere_rpc_failures_total", method="M", cause="own") == 1
    assert value("plexsphere_rpc_failures_total", method="M", cause="peer") == 0
    assert value("plexsphere_rpc_seconds_count", method="M") == 1


async def test_what_a_peer_answers_is_the_peers(authority: Authority) -> None:
    before = value("plexsphere_rpc_failures_total", method=CHECK, cause="own")
    async with (
        door(authority, Relations(raises=DatastoreUnavailable())) as peer,
        connect(peer, authority.issue("gateway")) as channel,
    ):
        stub: Any = stubs.RelationsServiceStub(channel)
        with pytest.raises(DatastoreUnavailable) as caught:
            await stub.Check(ASKED)
    assert fault(caught.value) == "peer"
    assert value("plexsphere_rpc_failures_total", method=CHECK, cause="own") == before + 1


# Vitals ---------------------------------------------------------------------------------------------------------------


def test_certificates_are_told_as_their_files_are(authority: Authority) -> None:
    settings = runtime(authority.issue("identity", valid_for=1))
    assert {name for name, _ in certificates(settings)} == {"tls", "ca"}
    watch_certificates(settings)

    def left_s() -> float:
        return value("plexsphere_certificate_expires_timestamp_seconds", certificate="tls") - time.time()

    assert 0 < left_s() <= 3600
    authority.issue("identity", valid_for=10)
    assert left_s() > 9 * 3600
    settings.tls.certificate_file.unlink()
    assert left_s() < 0


def test_a_file_without_a_certificate_has_ended(tmp_path: Path) -> None:
    broken = tmp_path / "broken.crt"
    broken.write_text("-----BEGIN CERTIFICATE-----")
    assert expires_at(broken) == 0
    assert expires_at(tmp_path / "none.crt") == 0


async def test_a_loop_that_is_held_up_is_told() -> None:
    async with watched_loop():
        await asyncio.sleep(0)
        before = value("plexsphere_event_loop_lag_seconds_sum")
        time.sleep(LOOK_S + 0.3)  # noqa: ASYNC251 — what must be noticed
        await asyncio.sleep(0.05)
    assert value("plexsphere_event_loop_lag_seconds_sum") - before > 0.25
