import asyncio
import ipaddress
from collections import Counter, OrderedDict

import pytest

from libs.errors import NskInvalid, TooMany
from plexsphere.identity.v1 import sign_in_pb2 as pb
from services.gateway import durations
from services.gateway.credentials import AssertionCache, Kept, Key
from services.gateway.limits import AddressLimit, client_address, site
from services.gateway.tests.fakes import assertion

pytestmark = pytest.mark.unit
KEY = Key(pb.CREDENTIAL_KIND_SESSION_COOKIE, "d", "audit")


class Time:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_then_the_steady_rate() -> None:
    time = Time()
    limit = AddressLimit(60, 3, time)
    for _ in range(3):
        limit.take("192.0.2.1")
    with pytest.raises(TooMany) as refused:
        limit.take("192.0.2.1")
    assert refused.value.extra["retry_after_s"] == 1
    limit.take("192.0.2.2")
    time.now += 1
    limit.take("192.0.2.1")
    with pytest.raises(TooMany):
        limit.check("192.0.2.1")


async def attempt(limit: AddressLimit, seen: list[str], *, good: bool) -> None:
    try:
        async with limit.guess("192.0.2.1"):
            seen.append("asked")
            await asyncio.sleep(0.01)
            if not good:
                raise NskInvalid  # noqa: TRY301 — as the block of a handler does
    except (NskInvalid, TooMany) as error:
        seen.append(error.code)


async def test_guessing_in_parallel_gains_nothing() -> None:
    limit, seen = AddressLimit(1, 3, Time()), list[str]()
    await asyncio.gather(*(attempt(limit, seen, good=False) for _ in range(50)))
    assert Counter(seen) == {"asked": 3, "nsk_invalid": 3, "rate_limited": 47}
    assert limit._turns == {}


async def test_many_with_good_credentials_behind_one_address_lose_nothing() -> None:
    limit, seen = AddressLimit(1, 3, Time()), list[str]()
    await asyncio.gather(*(attempt(limit, seen, good=number != 7) for number in range(50)))
    assert Counter(seen) == {"asked": 50, "nsk_invalid": 1}
    assert limit._turns == {}


async def test_who_gives_up_waiting_keeps_nobody_waiting() -> None:
    limit, seen = AddressLimit(1, 1, Time()), list[str]()
    tasks = [asyncio.create_task(attempt(limit, seen, good=True)) for _ in range(3)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert seen == ["asked", "asked"]
    assert limit._turns == {}


PROXIES = [ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8")]


@pytest.mark.parametrize(
    ("remote", "forwarded", "client"),
    [
        ("192.0.2.1", "", "192.0.2.1"),
        ("192.0.2.1", "198.51.100.7", "192.0.2.1"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.7", "198.51.100.7"),
        ("10.0.0.1", "203.0.113.9, 198.51.100.7", "198.51.100.7"),
        ("10.0.0.1", "198.51.100.7, 10.0.0.2,fd00::2", "198.51.100.7"),
        ("::ffff:10.0.0.1", "::ffff:198.51.100.7", "198.51.100.7"),
        ("10.0.0.1", "10.0.0.3", "10.0.0.3"),
        ("10.0.0.1", "198.51.100.7, unknown", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.7:443", "10.0.0.1"),
        ("", "198.51.100.7", ""),
    ],
)
def test_only_a_proxy_of_ours_says_who_is_behind_it(remote: str, forwarded: str, client: str) -> None:
    assert client_address(remote, forwarded, PROXIES) == client


def test_an_ipv6_site_is_one_address() -> None:
    assert site("2001:db8::1") == site("2001:db8::ffff") != site("2001:db8:0:1::1")


def test_what_is_kept_ends_with_time_silence_and_revocation() -> None:
    time = Time()
    cache = AssertionCache(time)
    text = assertion(sub="u")
    cache.put(KEY, text, cache.generation)
    assert cache.get(KEY) is None, "nothing is kept before the feed was heard"
    cache.heard()
    cache.put(KEY, text, cache.generation)
    assert cache.get(KEY) == text
    assert cache.get(KEY._replace(audience="identity")) is None
    time.now += 0.79
    assert cache.get(KEY) == text
    time.now += 0.02
    assert cache.get(KEY) is None, "the feed is silent"
    cache.heard()
    assert cache.get(KEY) == text
    time.now += 4.2
    cache.heard()
    assert cache.get(KEY) is None, "older than five seconds"
    cache.put(KEY, text, cache.generation)
    cache.forget(lambda kept: "u" in kept.subjects)
    assert cache.get(KEY) is None


def test_a_revocation_while_asking_keeps_the_answer_out() -> None:
    cache = AssertionCache(Time())
    cache.heard()
    before = cache.generation
    cache.forget(lambda _: False)
    cache.put(KEY, assertion(sub="u"), before)
    assert cache.get(KEY) is None


def test_no_credential_is_in_a_repr() -> None:
    assert "secret" not in repr(Kept("secret", "d", frozenset(), "", 0.0))
    assert isinstance(AssertionCache()._kept, OrderedDict)


@pytest.mark.parametrize(
    ("text", "seconds", "written"),
    [("30s", 30, "30s"), ("90s", 90, "1m30s"), ("5m", 300, "5m0s"), ("1h", 3600, "1h0m0s"), ("1.5s", 1.5, "1.5s")],
)
def test_durations_are_go_durations(text: str, seconds: float, written: str) -> None:
    assert durations.parse(text) == seconds * 1_000_000_000
    assert durations.write(durations.parse(text)) == written


@pytest.mark.parametrize("text", ["", "30", "-30s", "0s", "s", "30x", "30s ", "9" * 30 + "h", "1d"])
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        durations.parse(text)
