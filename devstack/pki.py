"""The development CA and its leaves, made at the first start. Nothing of it is part of a deployment."""

import datetime
import ipaddress
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from devstack.layout import SERVICES, State, write_private

SERVERS = ("postgres", "nats", "openbao", "spicedb", "oidc-a", "oidc-b")
CLIENTS = ("migrator", "operator", "probe")
LIFETIME = datetime.timedelta(days=365)
Key = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def prepare(state: State, more: Sequence[str] = ()) -> None:
    """Make what is missing: the CA, a leaf for every process and for `more`, and identity's assertion signer."""
    _issue(state, (*SERVICES, *SERVERS, *CLIENTS, *more))


def renew(state: State) -> None:
    """Replace the certificates of the six processes and identity's assertion signer, with new keys."""
    _issue(state, SERVICES, anew=True)


def _issue(state: State, names: Sequence[str], *, anew: bool = False) -> None:
    authority_key, authority = _authority(state)
    for name in names:
        _leaf(
            state,
            name,
            f"spiffe://plexsphere/{name}",
            ec.generate_private_key(ec.SECP256R1()),
            authority_key,
            authority,
            anew=anew,
        )
    signer = ed25519.Ed25519PrivateKey.generate()
    uri = "spiffe://plexsphere/identity/assertion"
    _leaf(state, "assertion", uri, signer, authority_key, authority, tls=False, anew=anew)


def _authority(state: State) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key_file, certificate_file = state / "pki/ca.key", state / "pki/ca.crt"
    if key_file.exists() and certificate_file.exists():
        key = load_pem_private_key(key_file.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return key, x509.load_pem_x509_certificate(certificate_file.read_bytes())
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Plexsphere development CA")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    write_private(key_file, _pem(key))
    certificate_file.write_bytes(certificate.public_bytes(Encoding.PEM))
    return key, certificate


def _leaf(
    state: State,
    name: str,
    uri: str,
    key: Key,
    authority_key: ec.EllipticCurvePrivateKey,
    authority: x509.Certificate,
    *,
    tls: bool = True,
    anew: bool,
) -> None:
    certificate_file = state / f"pki/{name}.crt"
    if certificate_file.exists() and not anew:
        return
    now = datetime.datetime.now(datetime.UTC)
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri)]
    if tls:
        loopback = x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))
        names += [x509.DNSName(name), x509.DNSName("localhost"), loopback]
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
    )
    if tls:
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    write_private(state / f"pki/{name}.key", _pem(key))
    write_private(certificate_file, builder.sign(authority_key, hashes.SHA256()).public_bytes(Encoding.PEM))


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(key: Key) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
