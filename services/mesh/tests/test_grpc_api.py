"""What the wire gets: keys and verdicts as the contract has them, and what services may not publish."""

import contextlib
import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from libs.errors import EventBusUnavailable, EventTypeReserved
from libs.ids import uuid7
from libs.rpc import context
from libs.rpc.guard import REFLECTION
from libs.rpc.server import HEALTH
from libs.settings import load
from plexsphere.mesh.v1 import mesh_pb2 as pb
from services.mesh.delivery import Delivery
from services.mesh.grpc_api import DeliveryApi, MeshAdminApi, PublishApi, SigningKeysApi, pack
from services.mesh.model import ROTATED, SigningKey
from services.mesh.settings import MeshSettings
from services.mesh.tests.desk import OPERATOR, Desk, opened

pytestmark = pytest.mark.unit

SHIPPED = Path(__file__).resolve().parents[3] / "deploy/config/mesh.toml"
NO_CONTEXT: Any = None


@contextlib.contextmanager
def operator() -> Iterator[None]:
    with context.bind(context.Call(principal=OPERATOR)):
        yield


def request(desk: Desk, **changes: str) -> pb.PublishRequest:
    wanted = {"domain_id": str(desk.domain), "id": str(uuid7()), "type": "rotate_keys", "payload_json": "{}"}
    return pb.PublishRequest(**{"scope": f"domain:{desk.domain}", **wanted, **changes})


async def test_a_key_is_answered() -> None:
    api = SigningKeysApi(Desk().signing)
    answer = await api.EnsureSigningKey(pb.EnsureSigningKeyRequest(domain_id=str(uuid7())), NO_CONTEXT)
    assert answer.key.kid.startswith("evk_")
    assert len(answer.key.public_key) == 32
    assert not answer.key.HasField("expires_at")


def test_a_key_says_until_when_and_since_when_not() -> None:
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    packed = pack(
        SigningKey("evk_0", uuid7(), bytes(32), 1, now, now + timedelta(days=7), revoked_at=now + timedelta(1))
    )
    assert packed.created_at.ToDatetime(UTC) == now
    assert packed.expires_at.ToDatetime(UTC) == now + timedelta(days=7)
    assert packed.revoked_at.ToDatetime(UTC) == now + timedelta(days=1)


async def test_services_publish_anything_but_a_new_key() -> None:
    async with opened() as desk:
        api = PublishApi(desk.publisher)
        assert (await api.Publish(request(desk), NO_CONTEXT)).sequence == 1
        with pytest.raises(EventTypeReserved):
            await api.Publish(request(desk, type=ROTATED), NO_CONTEXT)
        assert desk.stream.last == 1


async def test_gateways_get_trust_verdicts_and_what_they_missed() -> None:
    async with opened() as desk:
        api = DeliveryApi(desk.signing, Delivery(desk.log, desk.clock), desk.stream)
        event = desk.event()
        await desk.publisher.publish(event)
        trust = await api.GetTrust(pb.GetTrustRequest(domain_ids=[str(desk.domain), str(uuid7())]), NO_CONTEXT)
        assert [len(domain.keys) for domain in trust.domains] == [1, 0]
        digest = hashlib.sha256(desk.stream.messages[1][1]).digest()
        seen = [
            pb.SeenEnvelope(sequence=1, id=str(event.id), digest=digest),
            pb.SeenEnvelope(sequence=7, id=str(event.id), digest=digest),
            pb.SeenEnvelope(sequence=8, id=str(uuid7()), digest=digest),
        ]
        asked = pb.CheckPublishedRequest(seen=seen, gaps=[pb.SequenceGap(first=1, last=3)])
        answer = await api.CheckPublished(asked, NO_CONTEXT)
        assert list(answer.publications) == [
            pb.PUBLICATION_PUBLISHED, pb.PUBLICATION_REPLAYED, pb.PUBLICATION_UNKNOWN,
        ]  # fmt: skip
        assert [(row.sequence, row.envelope) for row in answer.missing] == [(1, desk.stream.messages[1][1])]
        opened_at = await api.OpenConsumer(pb.OpenConsumerRequest(start_sequence=1), NO_CONTEXT)
        assert (opened_at.last_sequence, opened_at.pending) == (1, 1)
        desk.stream.gone = True
        with pytest.raises(EventBusUnavailable):
            await api.OpenConsumer(pb.OpenConsumerRequest(), NO_CONTEXT)


async def test_gateways_hear_how_far_the_log_is_and_where_to_begin() -> None:
    async with opened() as desk:
        api = DeliveryApi(desk.signing, Delivery(desk.log, desk.clock), desk.stream)
        await desk.publisher.publish(desk.event())
        desk.clock.advance(240)
        await desk.publisher.publish(desk.event())
        answer = await api.CheckPublished(pb.CheckPublishedRequest(), NO_CONTEXT)
        assert (answer.highest, list(answer.missing)) == (2, [])
        # A quarter of a minute early: what is about to be too old is better not promised.
        for seconds, floor in ((44, 0), (2, 1), (240, 2)):
            desk.clock.advance(seconds)
            begun = await api.OpenConsumer(pb.OpenConsumerRequest(back_seconds=300), NO_CONTEXT)
            assert begun.floor == floor
        assert (await api.OpenConsumer(pb.OpenConsumerRequest(start_sequence=2), NO_CONTEXT)).floor == 0


async def test_operators_rotate_list_revoke_and_publish() -> None:
    async with opened() as desk:
        api, domain = MeshAdminApi(desk.signing, desk.operators), str(desk.domain)
        with operator():
            rotated = await api.RotateSigningKey(
                pb.RotateSigningKeyRequest(domain_id=domain, transition_seconds=60), NO_CONTEXT
            )
            listed = (await api.ListSigningKeys(pb.ListSigningKeysRequest(domain_id=domain), NO_CONTEXT)).keys
            assert listed[0].kid == rotated.key.kid
            assert listed[1].HasField("expires_at")
            revoked = await api.RevokeSigningKey(
                pb.RevokeSigningKeyRequest(domain_id=domain, kid=listed[1].kid), NO_CONTEXT
            )
            assert (revoked.revoked.kid, revoked.current.kid) == (listed[1].kid, rotated.key.kid)
            published = await api.PublishEvent(
                pb.PublishEventRequest(
                    domain_id=domain, type="policy_updated", scope=f"domain:{domain}", payload_json="{}"
                ),
                NO_CONTEXT,
            )
            assert published.sequence == 2


def test_the_shipped_settings_name_exactly_the_services_that_exist() -> None:
    settings = load(SHIPPED, MeshSettings)
    assert settings.service == "mesh"
    served = {service.full_name for service in pb.DESCRIPTOR.services_by_name.values()}
    assert set(settings.callers) == served | {HEALTH, REFLECTION}
