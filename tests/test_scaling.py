"""docs/scaling.md is current, its arithmetic is right, and what it says of the chart holds."""

import re

import pytest
import yaml

from tools.scaling import PAGE, ROOT, TEXT, Costs, Measured, Plan, memory, n, page, size

pytestmark = pytest.mark.unit

TYPED = re.compile(r"\d[\d,.]* ?(?:ms|KiB|MiB|GiB|TiB|cores)\b")
DAY = 86_400


def test_the_page_is_current() -> None:
    assert PAGE.read_text() == page(), "run `make docs`"


def test_no_measured_figure_is_typed_into_the_text() -> None:
    assert TYPED.findall(TEXT.read_text()) == []


def test_calls_a_second_follow_from_what_is_assumed() -> None:
    plan = Plan(domains=10, nodes=DAY, heartbeat_s=60, stream_s=30, reads=2, states=3, sessions=DAY, fleet_days=5)
    assert plan.loads() == {
        "heartbeat": 10 * DAY / 60,
        "stream opened": 10 * DAY / 30,
        "secret read": 20,
        "state": 30,
        "publish": plan.published,
        "registration": 2,
        "session issued": 10,
        "checkpoint": 10 / 60,
    }


def test_an_event_of_a_domain_goes_to_each_of_its_nodes() -> None:
    nobody_joins = Plan(domains=1, nodes=100, events=0, moves=DAY, fleet_days=1e12)
    assert nobody_joins.delivered == pytest.approx(100 * 100)
    assert Plan(domains=1, nodes=100, events=0, moves=0, fleet_days=1 / DAY).delivered == pytest.approx(100 * 50)


def test_rows_of_the_record_are_reads_registrations_and_what_people_do() -> None:
    plan = Plan(domains=2, nodes=50, reads=24, fleet_days=10, sessions=3, writes=4)
    assert plan.rows == 100 * 24 + 10 + 2 * (2 * 3 + 4)


def test_cores_are_calls_a_second_times_their_processor_time() -> None:
    one = {"1/s": 5.0, "p50 ms": 9.0, "gateway": 2.0, "postgres": 1.0}
    calls = ("heartbeat", "stream opened", "secret read", "publish", "registration")
    other = dict(one, gateway=50.0)
    measured: dict[str, Costs] = {
        f"{call}, {level} in flight": cost for call in calls for level, cost in ((16, other), (64, one))
    }
    measured |= {"state, 10,000 nodes of a Domain": one, "checkpoint, 1,000 chains": one}
    found = Measured(measured, session={"access": 3.0}, quiet={}, streams={"gateway MiB": 5000.0}, deliveries=100.0)
    plan = Plan(domains=1, nodes=30_000, heartbeat_s=30, sessions=DAY)
    cores = found.cores(plan)
    assert cores["heartbeat"]["gateway"] == 2
    assert cores["heartbeat"]["postgres"] == 1
    assert cores["heartbeat"]["nats"] == 0
    assert cores["session issued"]["access"] == pytest.approx(0.003)
    # What every gateway takes is no sum over all of them.
    assert cores["publish"]["gateway"] == 0
    assert cores["events delivered"]["gateway"] == pytest.approx(plan.delivered / 100)
    assert found.stream_bytes == 2**20


def test_a_gateway_holds_the_streams_that_it_is_scaled_by_and_those_of_one_that_went() -> None:
    values = yaml.safe_load((ROOT / "deploy/helm/plexsphere/values.yaml").read_text())
    streams = int(values["services"]["gateway"]["autoscaling"]["metric"]["averageValue"])
    assert 2 * streams * Measured.read().stream_bytes < memory("gateway")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.0004, "~0"),
        (0.0123, "0.012"),
        (0.5, "0.50"),
        (1.234, "1.2"),
        (12.34, "12"),
        (1234, "1,200"),
        (98_765, "99,000"),
    ],
)
def test_a_figure_has_two_digits(value: float, text: str) -> None:
    assert n(value) == text


@pytest.mark.parametrize(("value", "text"), [(10, "10 B"), (512 * 2**20, "512 MiB"), (3.2 * 2**40, "3.2 TiB")])
def test_bytes_have_their_unit(value: float, text: str) -> None:
    assert size(value) == text
