"""Principal assertions: who the caller is, signed by identity and verified by every service itself.

A JWT (RFC 7519) signed with Ed25519 (RFC 8032), at most 60 s, for one audience and one presenter. The signer's
certificate travels in `x5c` (RFC 7515, 4.1.6) and must chain to our CA with a SAN of its own, so that no table which a
DBA could change decides who may assert.
"""

import base64
import datetime
import hashlib
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc import jws, jwt
from joserfc.errors import JoseError
from joserfc.jwk import OKPKey
from joserfc.jws import JWSRegistry

from libs.access_policy import SecretLimits
from libs.clock import Clock
from libs.errors import Unauthenticated
from libs.ids import uuid7

ISSUER = "plexsphere-identity"
SIGNER_URI = "spiffe://plexsphere/identity/assertion"
TYPE = "plexsphere-principal+jwt"
ALGORITHM = "Ed25519"
LIFETIME_S = 60
SKEW_S = 5
LONGEST = 8192
# Assertions whose signature is known to be right; the gateway sends one again for some seconds.
MOST_KNOWN = 1024
LIMITS = "secret_limits"


class Registry(JWSRegistry):
    """The one algorithm, and room in the header for the signer's certificate."""

    max_header_length = LONGEST


REGISTRY = Registry(algorithms=[ALGORITHM])


@dataclass(frozen=True)
class Principal:
    """Who is behind a call, as identity verified it a moment ago; times are Unix seconds."""

    subject: str
    kind: str
    credential: str
    domain_id: str = ""
    audience: str = ""
    azp: str = ""
    acr: str = ""
    amr: tuple[str, ...] = ()
    auth_time: int | None = None
    node_id: str = ""
    project_id: str = ""
    nsk_kid: str = ""
    nsk_digest: str = ""
    session_id: str = ""
    # Of a node: what its Domain's access policy says.
    secret_limits: SecretLimits = field(default_factory=SecretLimits)
    # What the credential is for at most (libs/scope.py); None is all that its owner may.
    scope: tuple[str, ...] | None = None
    jti: str = ""
    issued_at: int = 0
    expires_at: int = 0

    @property
    def reference(self) -> str:
        """The subject as relations name it, e.g. `user:<uuid>`."""
        return f"{self.kind}:{self.subject}"


CLAIMS = {
    "sub": "subject", "kind": "kind", "cred": "credential", "domain_id": "domain_id", "aud": "audience", "azp": "azp",
    "acr": "acr", "node_id": "node_id", "project_id": "project_id", "nsk_kid": "nsk_kid", "nsk_digest": "nsk_digest",
    "sid": "session_id", "jti": "jti",
}  # fmt: skip


@dataclass(frozen=True)
class AssertionSigner:
    """Signs assertions with identity's own assertion certificate."""

    certificate_file: Path
    key_file: Path
    clock: Clock
    _read: dict[tuple[int, ...], tuple[dict[str, Any], OKPKey]] = field(default_factory=dict, repr=False)

    def sign(self, principal: Principal, audience: str, azp: str = "gateway") -> tuple[str, datetime.datetime]:
        """Return an assertion for one audience and when it expires; files that were replaced are read anew."""
        now = self.clock.now()
        expires = now + datetime.timedelta(seconds=LIFETIME_S)
        claims: dict[str, Any] = {name: getattr(principal, field) for name, field in CLAIMS.items()}
        claims |= {"iss": ISSUER, "aud": audience, "azp": azp, "jti": str(uuid7()), "amr": list(principal.amr)}
        claims |= {"iat": int(now.timestamp()), "exp": int(expires.timestamp())}
        if principal.auth_time is not None:
            claims["auth_time"] = principal.auth_time
        if principal.scope is not None:
            claims["scope"] = " ".join(principal.scope)
        claims[LIMITS] = {name: most for name, most in asdict(principal.secret_limits).items() if most is not None}
        header, key = self._own()
        return jwt.encode(header, claims, key, algorithms=[ALGORITHM]), expires

    def _own(self) -> tuple[dict[str, Any], OKPKey]:
        stats = [path.stat() for path in (self.certificate_file, self.key_file)]
        seen = tuple(part for stat in stats for part in (stat.st_ino, stat.st_mtime_ns, stat.st_size))
        if seen not in self._read:
            try:
                fresh = self._load()
            except (OSError, ValueError):
                # One of the two is just being replaced: the old pair signs until they fit.
                if not self._read:
                    raise
                return next(iter(self._read.values()))
            self._read.clear()
            self._read[seen] = fresh
        return self._read[seen]

    def _load(self) -> tuple[dict[str, Any], OKPKey]:
        certificate = x509.load_pem_x509_certificate(self.certificate_file.read_bytes())
        leaf = base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()
        key = OKPKey.import_key(self.key_file.read_bytes())
        if key.thumbprint() != OKPKey.import_key(_public(certificate)).thumbprint():
            raise ValueError("the assertion certificate is not of its key")
        return {"alg": ALGORITHM, "typ": TYPE, "x5c": [leaf]}, key


def _public(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


class AssertionVerifier:
    """Verifies assertions for one audience; knows the last signer that it has checked, and what came lately."""

    def __init__(self, ca_file: Path, audience: str, clock: Clock) -> None:
        self._ca_file = ca_file
        self._audience = audience
        self._clock = clock
        self._checked: tuple[tuple[str, int], x509.Certificate, OKPKey] | None = None
        # By the digest of the whole: the signer's certificate, and what it signed.
        self._known: dict[bytes, tuple[Any, dict[str, Any]]] = {}

    def verify(self, token: str, peer: str) -> Principal:
        """Return who is behind the call; raises Unauthenticated with the reason for anything that is not right."""
        if not token or len(token) > LONGEST:
            raise Unauthenticated("no principal assertion" if not token else "the principal assertion is too long")
        digest = hashlib.sha256(token.encode(errors="surrogatepass")).digest()
        # The same bytes have the same signature; who signed, when and for whom is looked at each time.
        if (known := self._known.get(digest)) is None:
            known = self._opened(token)
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            self._known[digest] = known
        chain, claims = known
        self._signer(chain)
        return self._principal(claims, peer)

    def _opened(self, token: str) -> tuple[Any, dict[str, Any]]:
        try:
            header = jws.extract_compact(token.encode(), registry=REGISTRY).headers()
            if header.get("alg") != ALGORITHM or header.get("typ") != TYPE or "crit" in header:
                raise Unauthenticated("not a principal assertion")
            chain = header.get("x5c")
            return chain, jwt.decode(token, self._signer(chain), registry=REGISTRY).claims
        except (JoseError, ValueError, TypeError, RecursionError) as error:
            raise Unauthenticated(f"the principal assertion does not verify: {type(error).__name__}") from None

    def _signer(self, chain: Any) -> OKPKey:
        if not isinstance(chain, list) or len(chain) != 1 or not isinstance(chain[0], str):
            raise Unauthenticated("the principal assertion names no signer")
        # A CA that was replaced must not live on in what was checked against it.
        seen = (chain[0], self._ca_file.stat().st_mtime_ns)
        if self._checked is None or self._checked[0] != seen:
            leaf = x509.load_der_x509_certificate(base64.b64decode(chain[0], validate=True))
            self._check_leaf(leaf)
            key = leaf.public_key()
            if not isinstance(key, Ed25519PublicKey):
                raise Unauthenticated("the signer's key is not Ed25519")
            public = base64.urlsafe_b64encode(key.public_bytes_raw()).decode().rstrip("=")
            self._checked = (seen, leaf, OKPKey.import_key({"kty": "OKP", "crv": "Ed25519", "x": public}))
        _, leaf, jwk = self._checked
        if not leaf.not_valid_before_utc <= self._clock.now() <= leaf.not_valid_after_utc:
            raise Unauthenticated("the signer's certificate is not valid now")
        return jwk

    def _check_leaf(self, leaf: x509.Certificate) -> None:
        authorities = x509.load_pem_x509_certificates(self._ca_file.read_bytes())
        if not any(self._issued(leaf, authority) for authority in authorities):
            raise Unauthenticated("the signer's certificate is not from our CA")
        try:
            names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            names = x509.SubjectAlternativeName([])
        if names.get_values_for_type(x509.UniformResourceIdentifier) != [SIGNER_URI]:
            raise Unauthenticated("the signer's certificate is for something else")

    @staticmethod
    def _issued(leaf: x509.Certificate, authority: x509.Certificate) -> bool:
        try:
            leaf.verify_directly_issued_by(authority)
        except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
            return False
        return True

    def _principal(self, claims: dict[str, Any], peer: str) -> Principal:
        now = self._clock.now().timestamp()
        issued, expires = claims.get("iat"), claims.get("exp")
        if not isinstance(issued, int) or not isinstance(expires, int) or expires - issued > LIFETIME_S:
            raise Unauthenticated("the principal assertion has no proper lifetime")
        if now >= expires or issued > now + SKEW_S:
            raise Unauthenticated("the principal assertion is not valid now")
        if claims.get("iss") != ISSUER or claims.get("aud") != self._audience:
            raise Unauthenticated("the principal assertion is for somebody else")
        if claims.get("azp") != peer:
            raise Unauthenticated("the principal assertion was made for another presenter")
        limits = claims.get(LIMITS, {})
        return Principal(
            **{field: claims.get(name, "") for name, field in CLAIMS.items()},
            amr=tuple(claims.get("amr", ())),
            auth_time=claims.get("auth_time"),
            scope=tuple(str(claims["scope"]).split()) if "scope" in claims else None,
            secret_limits=SecretLimits(**{each.name: limits.get(each.name) for each in fields(SecretLimits)}),
            issued_at=issued,
            expires_at=expires,
        )
