"""What the first start makes in the state folder, and what the next one keeps."""

import json
import re
import socket
import stat
import tomllib
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from devstack import pki, services
from devstack.layout import PORT_RANGE, PORTS, RANDOM_FILES, SERVICES, StackError, State

pytestmark = pytest.mark.unit

SHIPPED = (*SERVICES, "migrate")
IN_CLUSTER = re.compile(r"/run/plexsphere|\.internal\b|\b(?!127\.0\.0\.1)[a-z][a-z.-]*:\d{4,5}\b|0\.0\.0\.0")


@pytest.fixture
def state(tmp_path: Path) -> State:
    made = State(tmp_path)
    made.prepare()
    return made


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def ports(state: State) -> dict[str, int]:
    return dict(json.loads((state / "ports.json").read_text()))


def test_every_process_has_a_port_of_its_own(state: State) -> None:
    assert set(ports(state)) == set(PORTS)
    assert len(set(ports(state).values())) == len(PORTS)
    assert all(port in PORT_RANGE for port in ports(state).values())


def test_the_next_start_finds_ports_and_secrets_as_they_were(state: State) -> None:
    before = {name: state.secret(name) for name in RANDOM_FILES} | ports(state)
    state.prepare()
    assert {name: state.secret(name) for name in RANDOM_FILES} | ports(state) == before


def test_only_a_port_that_someone_took_is_replaced(state: State) -> None:
    before = ports(state)
    with socket.create_server(("127.0.0.1", before["nats"])):
        state.prepare()
    after = ports(state)
    assert {name for name in PORTS if after[name] != before[name]} == {"nats"}


def test_secrets_and_keys_are_for_their_owner_only(state: State) -> None:
    pki.prepare(state)
    private = [*(state / "secrets").iterdir(), *(state / "pki").glob("*.key")]
    assert len(private) > len(RANDOM_FILES)
    assert {mode(path) for path in private} == {0o600}
    assert {mode(state / name) for name in ("secrets", "pki")} == {0o700}


def test_a_folder_too_deep_for_a_unix_socket_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="too long a path"):
        State(tmp_path / ("deep" * 30)).prepare()


@pytest.mark.parametrize("name", SHIPPED)
def test_no_address_or_path_of_a_cluster_is_left_in_a_rendered_file(state: State, name: str) -> None:
    services.render(state, name)
    text = (state / f"config/{name}.toml").read_text()
    rendered = tomllib.loads(text)
    without_callers = json.dumps({key: value for key, value in rendered.items() if key != "callers"})
    assert IN_CLUSTER.findall(without_callers) == []
    assert {"postgres", "nats", "openbao", "spicedb"}.isdisjoint(
        table.get("host") for table in rendered.values() if isinstance(table, dict)
    )


def leaf(state: State, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((state / f"pki/{name}.crt").read_bytes())


def test_a_leaf_names_its_process_and_nothing_else(state: State) -> None:
    pki.prepare(state)
    authority = leaf(state, "ca")
    for name in (*SERVICES, *pki.SERVERS, *pki.CLIENTS):
        certificate = leaf(state, name)
        certificate.verify_directly_issued_by(authority)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.UniformResourceIdentifier) == [f"spiffe://plexsphere/{name}"]
        assert names.get_values_for_type(x509.DNSName) == [name, "localhost"]
        assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)


def test_the_assertion_signer_is_no_tls_identity(state: State) -> None:
    pki.prepare(state)
    certificate = leaf(state, "assertion")
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == ["spiffe://plexsphere/identity/assertion"]
    assert isinstance(certificate.public_key(), ed25519.Ed25519PublicKey)
    with pytest.raises(x509.ExtensionNotFound):
        certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage)


def test_certificates_are_made_once(state: State) -> None:
    pki.prepare(state)
    before = {path.name: path.read_bytes() for path in (state / "pki").iterdir()}
    pki.prepare(state)
    assert {path.name: path.read_bytes() for path in (state / "pki").iterdir()} == before
