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

from libs.custody import Secret
from services.access.model import PublicHalf, Session
from services.access.token import Seals, assembled, claims_of, login_in, signing_input

pytestmark = pytest.mark.unit

AT = datetime.datetime(2026, 5, 1, 12, tzinfo=datetime.UTC)
IDS = [UUID(int=number) for number in range(1, 8)]
SESSION = Session(
    *(IDS[0], IDS[1], IDS[2], IDS[3], IDS[4], IDS[5]), (IDS[6],), "tcp", {"tcp": {"port": 22, "host": "db"}}, AT,
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


STORED = replace(SESSION, claims=CLAIMS)
LOGIN = ("urn:acr:mfa", ("pwd", "otp"), 1_777_000_000)


@pytest.mark.parametrize(
    "altered",
    [
        replace(STORED, identity_id=IDS[0]),
        replace(STORED, node_id=IDS[0]),
        replace(STORED, kind="ssh"),
        replace(STORED, target={"tcp": {"host": "db", "port": 23}}),
        replace(STORED, expires_at=AT + datetime.timedelta(seconds=901)),
        replace(STORED, claims=CLAIMS.replace("edge.test", "edge.evil")),
    ],
)
def test_claims_that_were_changed_are_not_the_sessions(altered: Session) -> None:
    assert login_in(STORED, "https://edge.test") == LOGIN
    assert login_in(altered, "https://edge.test") is None


@pytest.mark.parametrize(
    "claims",
    [
        "{}", CLAIMS.replace('"acr":', '"admin":true,"acr":'), CLAIMS + " ", '{"iss":[]}', "[]", "", "{", "null",
        '{"acr":"a","amr":null,"auth_time":1}', '{"acr":"a","amr":[],"auth_time":NaN}', "[" * 100_000,
    ],
    ids=range(11),
)  # fmt: skip
def test_claims_that_hold_more_or_less_are_not_signed_again(claims: str) -> None:
    assert login_in(replace(SESSION, claims=claims), "https://edge.test") is None


def test_a_seal_is_of_these_claims_under_this_key_by_who_has_the_secret() -> None:
    seals = Seals(Secret(b"k" * 32))
    sealed = replace(STORED, kid="sek_1", seal=seals.of(CLAIMS, "sek_1"))
    assert seals.fits(sealed)
    for other in (
        replace(sealed, claims=CLAIMS.replace("mfa", "phr")),
        replace(sealed, kid="sek_2"),
        replace(sealed, seal=b""),
        replace(sealed, seal=Seals(Secret(b"l" * 32)).of(CLAIMS, "sek_1")),
    ):
        assert not seals.fits(other)
