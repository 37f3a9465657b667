"""A throw-away CA for one test, and leaves of every wrong kind."""

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from libs.settings import Tls

HOUR = datetime.timedelta(hours=1)
SIGNER = "spiffe://plexsphere/identity/assertion"
Key = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


@dataclass(frozen=True)
class Authority:
    """Issues certificates into a folder."""

    folder: Path
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def ca_file(self) -> Path:
        return self.folder / "ca.crt"

    def issue(
        self,
        name: str,
        *,
        uris: tuple[str, ...] | None = None,
        others: tuple[x509.GeneralName, ...] = (),
        key: Key | None = None,
        valid_for: float = 1,
    ) -> Tls:
        """Write a leaf and its key; `valid_for` is in hours, negative for one that has expired."""
        own = key or ec.generate_private_key(ec.SECP256R1())
        wanted = (f"spiffe://plexsphere/{name}",) if uris is None else uris
        names: list[x509.GeneralName] = [*(x509.UniformResourceIdentifier(uri) for uri in wanted), *others]
        local = [x509.DNSName(name), x509.DNSName("localhost"), x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))]
        sans = [*names, *local] if isinstance(own, ec.EllipticCurvePrivateKey) else names
        leaf = _certificate(name, own, valid_for).issuer_name(self.certificate.subject)
        leaf = leaf.add_extension(x509.SubjectAlternativeName(sans), critical=False)
        identity = Tls(
            certificate_file=self.folder / f"{name}.crt", key_file=self.folder / f"{name}.key", ca_file=self.ca_file
        )
        write(identity, own, leaf.sign(self.key, hashes.SHA256()))
        return identity

    def signer(self, name: str = "assertion", *, uri: str = SIGNER, valid_for: float = 1) -> Tls:
        """Write a leaf that signs assertions, or one that is almost like it."""
        return self.issue(name, uris=(uri,), key=ed25519.Ed25519PrivateKey.generate(), valid_for=valid_for)


def make_authority(folder: Path, name: str = "test CA") -> Authority:
    """Make a CA in a folder."""
    folder.mkdir(exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _certificate(name, key, 24)
    builder = builder.issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    authority = Authority(folder, key, builder.sign(key, hashes.SHA256()))
    authority.ca_file.write_bytes(authority.certificate.public_bytes(Encoding.PEM))
    return authority


def self_signed(folder: Path) -> Tls:
    """Write a signer of assertions that signed its own certificate."""
    key = ed25519.Ed25519PrivateKey.generate()
    builder = _certificate("assertion", key, 1)
    builder = builder.issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "assertion")]))
    builder = builder.add_extension(
        x509.SubjectAlternativeName([x509.UniformResourceIdentifier(SIGNER)]), critical=False
    )
    own = Tls(certificate_file=folder / "own.crt", key_file=folder / "own.key", ca_file=folder / "ca.crt")
    write(own, key, builder.sign(key, None))
    return own


def write(identity: Tls, key: Key, certificate: x509.Certificate) -> None:
    """Write a key and its certificate."""
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    identity.key_file.write_bytes(pem)
    identity.certificate_file.write_bytes(certificate.public_bytes(Encoding.PEM))


def _certificate(name: str, key: Key, valid_for: float) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 48 * HOUR)
        .not_valid_after(now + valid_for * HOUR)
    )
