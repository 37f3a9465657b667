"""Session tokens: the contract's claims, the same bytes for the same session, and verified by others' code."""

import base64
import datetime
import warnings
from dataclasses import replace
from uuid import UUID

import pytest
from joserfc import jwt
from joserfc.jwk import OKPKey
from nacl.signing import SigningKey

from services.access.model import PublicHalf, Session
from services.access.token import assembled, claims_of, says, signing_input

pytestmark = pytest.mark.unit

AT = datetime.datetime(2026, 5, 1, 12, tzinfo=datetime.UTC)
IDS = [UUID(int=number) for number in range(1, 8)]
SESSION = Session(
    *(IDS[0], IDS[1], IDS[2], IDS[3], IDS[4], IDS[5], IDS[6]), "tcp", {"tcp": {"port": 22, "host": "db"}}, AT,
    AT + datetime.timedelta(seconds=900), AT,
)  # fmt: skip
CLAIMS = claims_of(SESSION, "https://edge.test", "urn:acr:mfa", ("pwd", "otp"), 1_777_000_000)
PAIR = SigningKey(bytes(range(32)))


def token() -> str:
    half = PublicHalf(bytes(PAIR.verify_key), 1)
    signed = signing_input(CLAIMS, half.kid)
    return assembled(signed, PAIR.sign(signed).signature)


def test_anothers_library_verifies_it_with_the_published_key() -> None:
    half = PublicHalf(bytes(PAIR.verify_key), 1)
    x = base64.urlsafe_b64encode(half.public_key).decode().rstrip("=")
    published = {"kty": "OKP", "crv": "Ed25519", "x": x, "kid": half.kid, "alg": "EdDSA"}
    # The published clients' name of the algorithm, which the library warns of since RFC 9864.
    with warnings.catch_warnings(action="ignore"):
        found = jwt.decode(token(), OKPKey.import_key(dict(published)), algorithms=["EdDSA"])
    assert found.header == {"alg": "EdDSA", "typ": "plexsphere-session+jwt", "kid": half.kid}
    assert found.claims == {
        "iss": "https://edge.test",
        "sub": str(IDS[5]),
        "aud": f"node:{IDS[4]}",
        "jti": str(IDS[0]),
        "iat": int(AT.timestamp()),
        "nbf": int(AT.timestamp()),
        "exp": int(AT.timestamp()) + 900,
        "domain_id": str(IDS[1]),
        "project_id": str(IDS[2]),
        "resource_id": str(IDS[3]),
        "kind": "tcp",
        "target": {"tcp": {"host": "db", "port": 22}},
        "acr": "urn:acr:mfa",
        "amr": ["pwd", "otp"],
        "auth_time": 1_777_000_000,
    }


def test_the_same_session_has_the_same_bytes_whatever_the_order_of_its_parts() -> None:
    again = replace(SESSION, target={"tcp": {"host": "db", "port": 22}})
    assert claims_of(again, "https://edge.test", "urn:acr:mfa", ("pwd", "otp"), 1_777_000_000) == CLAIMS
    assert token() == token()


@pytest.mark.parametrize(
    "altered",
    [
        replace(SESSION, identity_id=IDS[0]),
        replace(SESSION, node_id=IDS[0]),
        replace(SESSION, kind="ssh"),
        replace(SESSION, target={"tcp": {"host": "db", "port": 23}}),
        replace(SESSION, expires_at=AT + datetime.timedelta(seconds=901)),
    ],
)
def test_claims_that_were_changed_are_not_the_sessions(altered: Session) -> None:
    assert says(CLAIMS, SESSION)
    assert not says(CLAIMS, altered)


@pytest.mark.parametrize("claims", ["{}", CLAIMS.replace('"acr":', '"admin":true,"acr":'), CLAIMS + " ", '{"iss":[]}'])
def test_claims_that_hold_more_or_less_are_not_signed_again(claims: str) -> None:
    assert not says(claims, SESSION)
