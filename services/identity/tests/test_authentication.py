"""Which credential is believed as what, for how long, and what its assertion says."""

import datetime
import hashlib
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from libs.access_policy import SecretLimits
from libs.custody import Secret
from libs.errors import AuthzUnavailable, NodeUnauthorized, NskInvalid, NskRevoked, PlexError, Unauthenticated
from libs.ids import uuid7
from libs.nsk import format_bearer
from libs.principal import SIGNER_URI, AssertionSigner, AssertionVerifier, Principal
from services.identity.authentication import Authentication
from services.identity.sign_in_model import NodeKey, Wanted
from services.identity.tests.fakes import NOW
from services.identity.tests.sign_in_fakes import SignInWorld, sha256
from services.identity.tests.token_fakes import FakeTokenStore
from services.identity.token_model import API_TOKEN, SERVICE_TOKEN, ApiToken, Owner, ServiceToken, new_text

pytestmark = pytest.mark.unit

KEY = bytes(range(32))


@dataclass
class Scene:
    """The verifier of credentials, and what a service makes of its assertions."""

    world: SignInWorld
    tokens: FakeTokenStore
    authentication: Authentication
    verifier: AssertionVerifier

    async def who(self, kind: str, value: str) -> Principal:
        assertion, _ = await getattr(self.authentication, kind)(value, "secrets")
        return self.verifier.verify(assertion, "gateway")


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    world, key = SignInWorld(), Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "assertion")])
    day = datetime.timedelta(days=1)
    signer = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(NOW - day).not_valid_after(NOW + day)
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(SIGNER_URI)]), critical=False)
        .sign(key, None)
    )  # fmt: skip
    assert signer.fingerprint(hashes.SHA256())
    (tmp_path / "c.pem").write_bytes(signer.public_bytes(Encoding.PEM))
    (tmp_path / "k.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    tokens, signs = FakeTokenStore(), AssertionSigner(tmp_path / "c.pem", tmp_path / "k.pem", world.clock)
    authentication = Authentication(world.store, tokens, world.authority, signs, world.clock)
    return Scene(world, tokens, authentication, AssertionVerifier(tmp_path / "c.pem", "secrets", world.clock))


async def token_of(world: SignInWorld) -> str:
    session = (await world.walk()).session
    _, device_code, user_code = await world.devices.start(None, "cli", Wanted())
    await world.devices.approve(session, user_code)
    return (await world.devices.poll(device_code, "cli"))[0]


async def test_a_cookie_says_who_and_how(scene: Scene) -> None:
    scene.world.provider.claims = {"acr": "urn:mfa", "amr": ["pwd", "otp"]}
    opened = await scene.world.walk(scene.world.domain_id)
    who = await scene.who("session_cookie", opened.cookie)
    assert (who.kind, who.credential, who.domain_id) == ("user", "session", str(scene.world.domain_id))
    assert (who.acr, who.amr, who.auth_time) == ("urn:mfa", ("pwd", "otp"), int(NOW.timestamp()) - 5)
    assert (who.subject, who.session_id) == (str(opened.session.person.id), str(opened.session.id))


@pytest.mark.parametrize("steps_s", [[1799, 1799], [1700] * 25])
async def test_a_session_that_is_used_lives_on(scene: Scene, steps_s: list[int]) -> None:
    opened = await scene.world.walk()
    for step in steps_s:
        scene.world.clock.advance(step)
        await scene.authentication.session_cookie(opened.cookie, "secrets")


@pytest.mark.parametrize("steps_s", [[1800], [1799, 1800], [1700] * 25 + [700]])
async def test_a_session_ends_when_idle_and_at_its_end(scene: Scene, steps_s: list[int]) -> None:
    opened = await scene.world.walk()
    *used, last = steps_s
    for step in used:
        scene.world.clock.advance(step)
        await scene.authentication.session_cookie(opened.cookie, "secrets")
    scene.world.clock.advance(last)
    with pytest.raises(Unauthenticated):
        await scene.authentication.session_cookie(opened.cookie, "secrets")


async def test_an_access_token_lives_fifteen_minutes(scene: Scene) -> None:
    token = await token_of(scene.world)
    scene.world.clock.advance(899)
    assert (await scene.who("operator_bearer", token)).credential == "access_token"
    scene.world.clock.advance(1)
    with pytest.raises(Unauthenticated):
        await scene.authentication.operator_bearer(token, "secrets")


async def test_tokens_say_whose_they_are_and_never_how_strongly(scene: Scene) -> None:
    person, machine = Owner("user", uuid7(), uuid7()), Owner("service", uuid7(), uuid7(), "api_token")
    psk, pst, wide = new_text(API_TOKEN, "dev"), new_text(SERVICE_TOKEN, "dev"), new_text(API_TOKEN, "dev")
    ends = NOW + datetime.timedelta(hours=1)
    of_person = ApiToken(uuid7(), person, "dev", ("read", "node-operate"), person.id, NOW, ends)
    of_machine = ApiToken(uuid7(), machine, "dev", None, person.id, NOW, ends)
    begotten = ServiceToken(uuid7(), of_machine.id, machine, ("read",), NOW + datetime.timedelta(minutes=15))
    scene.tokens.tokens = {sha256(psk): of_person, sha256(wide): of_machine}
    scene.tokens.service_tokens = {sha256(pst): begotten}
    for text, credential, owner, scope in (
        (psk, "api_token", person, ("read", "node-operate")),
        (wide, "api_token", machine, None),
        (pst, "service_token", machine, ("read",)),
    ):
        who = await scene.who("operator_bearer", text)
        assert (who.reference, who.credential, who.domain_id) == (owner.reference, credential, str(owner.domain_id))
        assert (who.scope, who.acr, who.amr, who.auth_time) == (scope, "", (), None)
        for kind in ("session_cookie", "node_bearer"):
            with pytest.raises(Unauthenticated):
                await getattr(scene.authentication, kind)(text, "secrets")
    scene.world.clock.advance(3600)
    for text in (psk, pst, wide):
        with pytest.raises(Unauthenticated):
            await scene.authentication.operator_bearer(text, "secrets")


async def test_a_node_bearer_says_which_node_and_which_key(scene: Scene) -> None:
    node_id, project_id, domain_id = uuid7(), uuid7(), uuid7()
    digest = hashes.Hash(hashes.SHA256())
    digest.update(KEY)
    fingerprint = digest.finalize()
    limits = SecretLimits(node_burst=3)
    known = NodeKey(node_id, project_id, domain_id, "nsk_1", fingerprint, live=True, secret_limits=limits)
    scene.world.store.node_key_rows = [known]
    bearer = format_bearer("dev", node_id, Secret(KEY))
    who = await scene.who("node_bearer", bearer)
    assert (who.kind, who.node_id, who.project_id, who.domain_id) == (
        "node", str(node_id), str(project_id), str(domain_id),
    )  # fmt: skip
    assert (who.nsk_kid, who.nsk_digest, who.acr, who.auth_time) == ("nsk_1", fingerprint.hex(), "", None)
    assert who.secret_limits == limits
    refused: dict[type[PlexError], tuple[list[NodeKey], str]] = {
        NskInvalid: ([known], format_bearer("dev", uuid7(), Secret(KEY))),
        NskRevoked: ([NodeKey(node_id, project_id, domain_id, "nsk_1", fingerprint, live=False)], bearer),
        NodeUnauthorized: ([known], bearer[:-1]),
    }
    for refusal, (keys, text) in refused.items():
        scene.world.store.node_key_rows = keys
        with pytest.raises(refusal):
            await scene.authentication.node_bearer(text, "secrets")
    # A key whose node was deregistered.
    scene.world.store.node_key_rows = [NodeKey(node_id, None, domain_id, "nsk_1", fingerprint, live=True)]
    with pytest.raises(NskRevoked):
        await scene.authentication.node_bearer(bearer, "secrets")
    with pytest.raises(NskInvalid):
        await scene.authentication.node_bearer(format_bearer("dev", node_id, Secret(bytes(32))), "secrets")


async def test_where_a_node_stands_comes_with_its_bearer_and_a_doubt_is_no_denial(scene: Scene) -> None:
    node_id, project_id, domain_id = uuid7(), uuid7(), uuid7()
    fingerprint = hashlib.sha256(KEY).digest()
    scene.world.store.node_key_rows = [NodeKey(node_id, project_id, domain_id, "nsk_1", fingerprint, live=True)]
    bearer, this = format_bearer("dev", node_id, Secret(KEY)), f"node:{node_id}"
    _, node, agent = await scene.authentication.node_with_standing(bearer, "identity")
    assert (node.node_id, node.project_id, node.domain_id, agent) == (
        str(node_id), str(project_id), str(domain_id), False,
    )  # fmt: skip
    scene.world.authority.granted = {(this, "node-agent", this)}
    assert (await scene.authentication.node_with_standing(bearer, "identity"))[2] is True
    scene.world.authority.refusal = AuthzUnavailable()
    with pytest.raises(AuthzUnavailable):
        await scene.authentication.node_with_standing(bearer, "identity")


async def test_no_credential_is_believed_as_another_kind(scene: Scene) -> None:
    cookie, token = (await scene.world.walk()).cookie, await token_of(scene.world)
    bearer = format_bearer("dev", uuid7(), Secret(KEY))
    assert sha256(cookie) in scene.world.store.sessions
    wrong = {"session_cookie": (token, bearer), "operator_bearer": (cookie, bearer), "node_bearer": (cookie, token)}
    for kind, values in wrong.items():
        for value in (*values, "", "x", cookie + "\n", token + "\n"):
            with pytest.raises(Unauthenticated):
                await getattr(scene.authentication, kind)(value, "secrets")


async def test_what_was_signed_out_is_nobody_at_once(scene: Scene) -> None:
    cookie, token = (await scene.world.walk()).cookie, await token_of(scene.world)
    person_id = scene.world.store.sessions[sha256(cookie)].person.id
    assert await scene.world.store.end_sessions(person_id) == 2
    for kind, value in (("session_cookie", cookie), ("operator_bearer", token)):
        with pytest.raises(Unauthenticated):
            await getattr(scene.authentication, kind)(value, "secrets")
