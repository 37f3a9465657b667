"""Validation of an id_token against the bare library decoding the same token, in this process."""

import json
import time
from collections.abc import Callable

from joserfc import jws, jwt
from joserfc.jwk import ECKey, OKPKey, RSAKey

from bench.measure import Bar, Figures, Report, alternate, column
from services.identity.id_token import Expected, validate

SECONDS = 1.0
AT_ONCE = 50
FLOOR, AIM = 0.7, 0.9
ISSUER, CLIENT, NONCE = "https://idp.example", "plexsphere", "n" * 43
NOW = 1_790_000_000
# What most providers send; the others' checks cost more, so that ours weighs less.
KEYS: dict[str, Callable[[], RSAKey | ECKey | OKPKey]] = {
    "RS256": lambda: RSAKey.generate_key(2048, {"kid": "one"}),
    "ES256": lambda: ECKey.generate_key("P-256", {"kid": "one"}),
    "Ed25519": lambda: OKPKey.generate_key("Ed25519", {"kid": "one"}),
}


def token_of(algorithm: str, key: RSAKey | ECKey | OKPKey) -> str:
    """Return an id_token as providers send it."""
    claims = {
        "iss": ISSUER, "sub": "248289761001", "aud": CLIENT, "exp": NOW + 300, "iat": NOW, "auth_time": NOW - 5,
        "nonce": NONCE, "acr": "urn:plexsphere:acr:mfa", "amr": ["pwd", "otp"], "email": "jane@example.com",
        "name": "Jane Doe",
    }  # fmt: skip
    header = {"alg": algorithm, "kid": "one", "typ": "JWT"}
    return jws.serialize_compact(header, json.dumps(claims).encode(), key, algorithms=[algorithm])


def rate(once: Callable[[], object]) -> Figures:
    """Return calls a second of this process's own time: both sides do nothing but compute."""
    started, calls = time.process_time(), 0
    while (elapsed := time.process_time() - started) < SECONDS:
        for _ in range(AT_ONCE):
            once()
        calls += AT_ONCE
    return {"rate": calls / elapsed}


async def measure(report: Report) -> None:
    """Add a bar for each algorithm."""
    for algorithm, generate in KEYS.items():
        key = generate()
        token = token_of(algorithm, key)
        keys = [key.as_dict(private=False)]
        expected = Expected(issuer=ISSUER, client_id=CLIENT, nonce=NONCE, now=NOW + 1)
        # The library's own key object, as whoever uses it alone would keep it.
        public = type(key).import_key(keys[0])
        validate(token, keys, expected)

        async def ours() -> Figures:
            return rate(lambda: validate(token, keys, expected))  # noqa: B023 — awaited in this turn

        async def bare() -> Figures:
            return rate(lambda: jwt.decode(token, public, algorithms=[algorithm]))  # noqa: B023 — as above

        a, b = await alternate(ours, bare)
        name = f"id_token validation, {algorithm}"
        report.bars.append(Bar(name, "tokens/cpu s", column(a, "rate"), column(b, "rate"), FLOOR, AIM))
