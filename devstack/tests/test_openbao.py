"""What each process may do in OpenBao, and above all what it may not."""

import base64
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack

import pytest

from devstack import openbao
from devstack.layout import State
from libs.bao import Bao, BaoRefused
from libs.custody import Secret
from libs.errors import OpenbaoUnavailable
from libs.settings import OpenBao, Tls

pytestmark = pytest.mark.integration

As = Callable[[str], Bao]
FORBIDDEN = 403


@pytest.fixture
async def acting(stack: State) -> AsyncIterator[As]:
    """A client with the certificate and role of the named process."""
    async with AsyncExitStack() as opened:

        def client(name: str) -> Bao:
            bao = openbao.client(stack, name)
            opened.push_async_callback(bao.close)
            return bao

        yield client


async def status(bao: Bao, method: str, path: str, body: Mapping[str, object] | None = None) -> int:
    try:
        await bao.request(method, path, dict(body) if body else None)
    except BaoRefused as refused:
        return refused.status
    return 200


@pytest.fixture
async def event_key(acting: As) -> str:
    """An event key of mesh's own."""
    name = f"evk-{secrets.token_hex(8)}"
    await acting("mesh").request("POST", f"transit-mesh/keys/{name}", {"type": "ed25519"})
    return name


async def test_identity_wraps_node_keys_and_unwraps_none(acting: As) -> None:
    identity, operator, key = acting("identity"), acting("operator"), secrets.token_bytes(32)
    wrapped = await identity.wrap("transit-identity", "nsk", b"domain", b"node", Secret(key))
    assert bytes((await operator.unwrap("transit-identity", "nsk", b"domain", b"node", wrapped)).reveal()) == key
    for context, bound_to in ((b"another", b"node"), (b"domain", b"another")):
        with pytest.raises(BaoRefused):
            await operator.unwrap("transit-identity", "nsk", context, bound_to, wrapped)
    with pytest.raises(BaoRefused) as refused:
        await identity.unwrap("transit-identity", "nsk", b"domain", b"node", wrapped)
    assert refused.value.status == FORBIDDEN


async def test_identity_reads_the_client_secrets_that_the_first_start_wrote(acting: As, stack: State) -> None:
    for provider in ("oidc-a", "oidc-b"):
        data, _ = await acting("identity").read_kv(f"idp/platform/{provider}")
        assert data["client_secret"] == stack.secret(f"{provider}.secret")


async def test_mesh_creates_rotates_and_signs(acting: As, event_key: str) -> None:
    mesh = acting("mesh")
    await mesh.request("POST", f"transit-mesh/keys/{event_key}/rotate", {})
    assert len(await mesh.sign("transit-mesh", event_key, b"exact bytes")) == 64
    assert (await mesh.request("GET", f"transit-mesh/keys/{event_key}"))["data"]["exportable"] is False


async def test_audit_signs_checkpoints_and_keeps_its_pepper(acting: As) -> None:
    audit, chain = acting("audit"), secrets.token_hex(8)
    assert len(await audit.sign("transit-audit", "acp", b"checkpoint")) == 64
    assert await audit.write_kv(f"audit/{chain}/pepper", {"pepper": "cGVwcGVy"}, cas=0) == 1
    with pytest.raises(BaoRefused):
        await audit.write_kv(f"audit/{chain}/pepper", {"pepper": "b3RoZXI="}, cas=0)


@pytest.mark.parametrize("wish", ["exportable", "allow_plaintext_backup"])
@pytest.mark.parametrize("service", ["mesh", "access"])
async def test_no_key_is_created_that_could_leave(acting: As, service: str, wish: str) -> None:
    path = f"transit-{service}/keys/{secrets.token_hex(8)}"
    assert await status(acting(service), "POST", path, {"type": "ed25519", wish: True}) == FORBIDDEN


@pytest.mark.parametrize(("method", "path"), [
    ("POST", "transit-mesh/keys/{key}/config"),
    ("POST", "transit-mesh/keys/{key}/trim"),
    ("POST", "transit-mesh/keys/{key}/import"),
    ("POST", "transit-mesh/keys/{key}/soft-delete"),
    ("DELETE", "transit-mesh/keys/{key}"),
    ("GET", "transit-mesh/export/signing-key/{key}"),
    ("GET", "transit-mesh/backup/{key}"),
    ("POST", "transit-mesh/restore/{key}"),
])  # fmt: skip
async def test_an_event_key_cannot_be_changed_taken_out_or_put_in(
    acting: As, event_key: str, method: str, path: str
) -> None:
    body = {"exportable": True} if method == "POST" else None
    assert await status(acting("mesh"), method, path.format(key=event_key), body) == FORBIDDEN


@pytest.mark.parametrize(("service", "method", "path"), [
    ("identity", "GET", "transit-identity/export/encryption-key/nsk"),
    ("identity", "GET", "transit-identity/backup/nsk"),
    ("identity", "POST", "transit-identity/keys/nsk/config"),
    ("identity", "POST", "transit-identity/keys/nsk/rotate"),
    ("identity", "POST", "transit-identity/decrypt/nsk"),
    ("identity", "POST", "transit-identity/rewrap/nsk"),
    ("identity", "GET", "transit-identity/keys/nsk"),
    ("identity", "POST", "kv/data/idp/platform/oidc-a"),
    ("identity", "GET", "kv/data/secrets/any/any"),
    ("secrets", "POST", "transit-identity/decrypt/nsk"),
    ("secrets", "GET", "kv/data/idp/platform/oidc-a"),
    ("secrets", "GET", "kv/data/audit/any/pepper"),
    ("mesh", "POST", "transit-access/sign/sek-any"),
    ("mesh", "GET", "kv/data/idp/platform/oidc-a"),
    ("access", "POST", "transit-mesh/sign/evk-any"),
    ("audit", "POST", "transit-mesh/sign/evk-any"),
    ("audit", "GET", "kv/data/secrets/any/any"),
    ("audit", "POST", "transit-audit/keys/acp/rotate"),
    ("identity", "GET", "sys/policies/acl/identity"),
    ("secrets", "POST", "auth/token/create"),
])  # fmt: skip
async def test_what_is_not_a_services_own_is_refused(acting: As, service: str, method: str, path: str) -> None:
    body = {"input": base64.b64encode(b"x").decode(), "data": {}} if method == "POST" else None
    assert await status(acting(service), method, path, body) == FORBIDDEN


@pytest.mark.parametrize("service", ["gateway", "probe"])
async def test_who_has_no_role_cannot_log_in(acting: As, service: str) -> None:
    with pytest.raises(BaoRefused):
        await acting(service).ping()


async def test_a_certificate_does_not_log_in_to_the_role_of_another(stack: State) -> None:
    pki = stack / "pki"
    shown = Tls(certificate_file=pki / "mesh.crt", key_file=pki / "mesh.key", ca_file=pki / "ca.crt")
    bao = Bao(OpenBao(address=f"https://127.0.0.1:{stack.port('openbao')}", role="identity"), shown)
    try:
        with pytest.raises((BaoRefused, OpenbaoUnavailable)):
            await bao.ping()
    finally:
        await bao.close()
