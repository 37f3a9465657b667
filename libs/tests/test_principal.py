"""Principal assertions: what identity signs is understood, and every forgery is refused before a claim is used."""

import datetime
import os
from dataclasses import replace

import pytest
from joserfc import jws

from libs.access_policy import SecretLimits
from libs.clock import FixedClock, SystemClock
from libs.errors import Unauthenticated
from libs.principal import REGISTRY, AssertionSigner, AssertionVerifier, Principal
from libs.tests.forge import ATTACKS, SUBJECT, Forge
from libs.tests.pki import Authority, make_authority

pytestmark = pytest.mark.unit

NODE = Principal(
    subject=SUBJECT, kind="node", credential="node_key", domain_id=SUBJECT, node_id=SUBJECT, project_id=SUBJECT,
    nsk_kid="nsk_" + "0" * 32, nsk_digest="ab" * 32, acr="gold", amr=("pwd", "otp"), auth_time=1_700_000_000,
    secret_limits=SecretLimits(node_burst=3, domain_rate_per_minute=40),
)  # fmt: skip


@pytest.fixture
def verifier(authority: Authority) -> AssertionVerifier:
    return AssertionVerifier(authority.ca_file, "identity", SystemClock())


def test_what_is_signed_is_what_is_understood(authority: Authority, verifier: AssertionVerifier) -> None:
    own = authority.signer()
    signer = AssertionSigner(own.certificate_file, own.key_file, SystemClock())
    token, expires = signer.sign(NODE, "identity")
    found = verifier.verify(token, "gateway")
    same = replace(
        NODE, audience="identity", azp="gateway", jti=found.jti, issued_at=found.issued_at, expires_at=found.expires_at
    )
    assert found == same
    assert found.expires_at - found.issued_at == 60
    assert found.expires_at == int(expires.timestamp())
    assert found.reference == f"node:{SUBJECT}"


@pytest.mark.parametrize("scope", [None, (), ("read",), ("read", "node-operate")])
def test_a_scope_arrives_as_it_is_and_none_is_not_empty(
    authority: Authority, verifier: AssertionVerifier, scope: tuple[str, ...] | None
) -> None:
    own = authority.signer()
    signer = AssertionSigner(own.certificate_file, own.key_file, SystemClock())
    token, _ = signer.sign(Principal(SUBJECT, "user", "api_token", scope=scope), "identity")
    assert verifier.verify(token, "gateway").scope == scope


def test_a_certificate_that_was_renewed_signs_at_once(authority: Authority, verifier: AssertionVerifier) -> None:
    own = authority.signer()
    signer = AssertionSigner(own.certificate_file, own.key_file, SystemClock())
    before, _ = signer.sign(NODE, "identity")
    assert authority.signer() == own
    after, _ = signer.sign(NODE, "identity")
    assert verifier.verify(after, "gateway").subject == SUBJECT
    assert leaf_of(before) != leaf_of(after)


@pytest.mark.parametrize("left", ["certificate_file", "key_file"])
@pytest.mark.parametrize("kept", [0.5, 1])
def test_a_pair_that_does_not_fit_yet_signs_nothing(
    authority: Authority, verifier: AssertionVerifier, left: str, kept: float
) -> None:
    own = authority.signer()
    signer = AssertionSigner(own.certificate_file, own.key_file, SystemClock())
    before, _ = signer.sign(NODE, "identity")
    path = getattr(own, left)
    old = path.read_bytes()
    authority.signer()
    path.write_bytes(old[: int(len(old) * kept)])
    assert leaf_of(signer.sign(NODE, "identity")[0]) == leaf_of(before)
    assert verifier.verify(signer.sign(NODE, "identity")[0], "gateway").subject == SUBJECT
    with pytest.raises(ValueError, match=r"."):
        AssertionSigner(own.certificate_file, own.key_file, SystemClock()).sign(NODE, "identity")


def leaf_of(token: str) -> object:
    return jws.extract_compact(token.encode(), registry=REGISTRY).headers()["x5c"]


def test_the_forge_makes_what_is_accepted(authority: Authority, verifier: AssertionVerifier) -> None:
    # Else each attack below could be refused for a reason of its own.
    assert verifier.verify(Forge(authority).sign(), "gateway").subject == SUBJECT


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_assertion_is_refused(attack: str, authority: Authority, verifier: AssertionVerifier) -> None:
    forge = Forge(authority)
    for _ in range(2):
        # The second time with the genuine signer in the cache.
        with pytest.raises(Unauthenticated):
            verifier.verify(ATTACKS[attack](forge), "gateway")
        verifier.verify(forge.sign(), "gateway")


def test_a_presenter_cannot_use_what_was_made_for_another(authority: Authority, verifier: AssertionVerifier) -> None:
    token = Forge(authority).sign()
    for _ in range(2):
        with pytest.raises(Unauthenticated):
            verifier.verify(token, "mesh")
        # The second time it is known, from who may present it.
        verifier.verify(token, "gateway")


def test_what_came_before_is_refused_when_its_time_is_over(authority: Authority) -> None:
    clock = FixedClock(datetime.datetime.now(datetime.UTC))
    verifier = AssertionVerifier(authority.ca_file, "identity", clock)
    token = Forge(authority).sign()
    assert verifier.verify(token, "gateway") == verifier.verify(token, "gateway")
    clock.advance(61)
    with pytest.raises(Unauthenticated):
        verifier.verify(token, "gateway")


def test_what_came_before_does_not_vouch_for_what_shares_a_part_with_it(
    authority: Authority, verifier: AssertionVerifier
) -> None:
    head, claims, signature = Forge(authority).sign().split(".")
    verifier.verify(f"{head}.{claims}.{signature}", "gateway")
    other = Forge(authority).sign(sub=SUBJECT.replace("0", "1")).split(".")
    for parts in ((head, other[1], signature), (head, claims, other[2]), (head, claims, "")):
        with pytest.raises(Unauthenticated):
            verifier.verify(".".join(parts), "gateway")


def test_a_ca_that_was_replaced_does_not_live_on_in_the_cache(
    authority: Authority, verifier: AssertionVerifier
) -> None:
    token = Forge(authority).sign()
    verifier.verify(token, "gateway")
    authority.ca_file.write_bytes(make_authority(authority.folder / "next").ca_file.read_bytes())
    os.utime(authority.ca_file, (0, 0))
    with pytest.raises(Unauthenticated):
        verifier.verify(token, "gateway")


def test_while_the_ca_changes_both_are_trusted(authority: Authority, verifier: AssertionVerifier) -> None:
    newer = make_authority(authority.folder / "next")
    token = Forge(authority).sign()
    authority.ca_file.write_bytes(newer.ca_file.read_bytes() + authority.ca_file.read_bytes())
    assert verifier.verify(token, "gateway").subject == SUBJECT
    assert verifier.verify(Forge(newer).sign(), "gateway").subject == SUBJECT
