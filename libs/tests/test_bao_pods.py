"""Logging in to a real OpenBao by the token of a pod: whose pod it is decides, and a renewed token is used.

OpenBao's own `kubernetes` authentication, with a stand-in for the one thing that it asks of a cluster, the TokenReview.
Its `jwt` authentication would need none, but deployments are told to use this one.
"""

import asyncio
import base64
import contextlib
import datetime
import json
import secrets
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from devstack.layout import State
from devstack.openbao import client
from libs.bao import Bao, BaoRefused, open_bao
from libs.errors import OpenbaoUnavailable
from libs.settings import KubernetesLogin
from libs.tests.pki import Authority

pytestmark = pytest.mark.integration

AUDIENCE = "openbao"


def encoded(part: dict[str, object]) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")


@dataclass
class Cluster:
    """Knows the tokens that it gave to pods, and reviews them for whoever asks."""

    given: dict[str, dict[str, object]] = field(default_factory=dict)

    def token(self, account: str, namespace: str = "plexsphere", audience: str = AUDIENCE) -> str:
        """Return a token of a pod; its signature is nobody's, because only the review counts."""
        now = int(datetime.datetime.now(datetime.UTC).timestamp())
        who = {"name": account, "uid": f"uid-of-{account}"}
        claims: dict[str, object] = {
            "iss": "https://kubernetes.default.svc", "aud": [audience], "iat": now, "nbf": now, "exp": now + 600,
            "sub": f"system:serviceaccount:{namespace}:{account}",
            "kubernetes.io": {"namespace": namespace, "serviceaccount": who}, "jti": secrets.token_hex(8),
        }  # fmt: skip
        token = ".".join((encoded({"alg": "RS256", "kid": "one"}), encoded(claims), secrets.token_urlsafe(32)))
        user = {"username": claims["sub"], "uid": who["uid"], "groups": ["system:serviceaccounts"]}
        self.given[token] = {"authenticated": True, "user": user, "audiences": [audience]}
        return token

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = next(line for line in head.lower().split("\r\n") if line.startswith("content-length:"))
                asked = json.loads(await reader.readexactly(int(length.partition(":")[2])))
                status = self.given.get(asked["spec"]["token"], {"authenticated": False})
                body = json.dumps(asked | {"status": status}).encode()
                kind = b"Content-Type: application/json\r\n"
                writer.write(b"HTTP/1.1 201 Created\r\n%sContent-Length: %d\r\n\r\n%s" % (kind, len(body), body))
        writer.close()


@dataclass
class Pods:
    """The cluster, the file that the kubelet keeps, and the way in that a deployment has set up."""

    cluster: Cluster
    login: KubernetesLogin
    stack: State

    def hold(self, token: str) -> None:
        self.login.token_file.write_text(token)

    def open(self, role: str = "secrets") -> contextlib.AbstractAsyncContextManager[Bao]:
        ours = client(self.stack, "secrets")
        return open_bao(ours.settings.model_copy(update={"role": role, "kubernetes": self.login}), ours.identity)


@pytest.fixture
async def pods(backends: State, authority: Authority, tmp_path: Path) -> AsyncIterator[Pods]:
    own, cluster, mount = authority.issue("kubernetes"), Cluster(), f"kubernetes-{secrets.token_hex(4)}"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own.certificate_file, own.key_file)
    server = await asyncio.start_server(cluster.serve, "127.0.0.1", 0, ssl=context)
    operator = client(backends, "operator")
    await operator.request("POST", f"sys/auth/{mount}", {"type": "kubernetes"})
    await operator.request("POST", f"auth/{mount}/config", {
        "kubernetes_host": f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}",
        "kubernetes_ca_cert": own.ca_file.read_text(), "disable_local_ca_jwt": True,
        "token_reviewer_jwt": cluster.token("bao"),
    })  # fmt: skip
    for name in ("secrets", "audit"):
        await operator.request("POST", f"auth/{mount}/role/{name}", {
            "bound_service_account_names": [f"plexsphere-{name}"], "bound_service_account_namespaces": ["plexsphere"],
            "audience": AUDIENCE, "token_policies": [name], "token_ttl": "15m", "token_max_ttl": "15m",
            "token_no_default_policy": True,
        })  # fmt: skip
    yield Pods(cluster, KubernetesLogin(token_file=tmp_path / "token", mount=mount), backends)
    await operator.request("DELETE", f"sys/auth/{mount}")
    await operator.close()
    server.close()


async def test_a_pod_has_the_policy_of_its_service_and_no_other(pods: Pods) -> None:
    pods.hold(pods.cluster.token("plexsphere-secrets"))
    path = f"secrets/{secrets.token_hex(4)}/{secrets.token_hex(4)}"
    async with pods.open() as bao:
        assert await bao.write_kv(path, {"value": "eA=="}, cas=0) == 1
        assert await bao.read_kv(path) == ({"value": "eA=="}, 1)
        with pytest.raises(BaoRefused) as refused:
            await bao.read_kv("idp/platform/oidc-a")
    assert refused.value.status == 403


@pytest.mark.parametrize(("account", "namespace", "audience"), [
    ("plexsphere-mesh", "plexsphere", AUDIENCE),
    ("default", "plexsphere", AUDIENCE),
    ("plexsphere-secrets", "elsewhere", AUDIENCE),
    ("plexsphere-secrets", "plexsphere", "https://kubernetes.default.svc"),
])  # fmt: skip
async def test_who_runs_as_another_is_refused(pods: Pods, account: str, namespace: str, audience: str) -> None:
    pods.hold(pods.cluster.token(account, namespace, audience))
    async with pods.open() as bao:
        with pytest.raises(BaoRefused):
            await bao.ping()


async def test_another_services_role_is_not_to_be_had(pods: Pods) -> None:
    pods.hold(pods.cluster.token("plexsphere-secrets"))
    async with pods.open("audit") as bao:
        with pytest.raises(BaoRefused):
            await bao.ping()


async def test_a_token_that_the_cluster_took_back_opens_nothing(pods: Pods) -> None:
    token = pods.cluster.token("plexsphere-secrets")
    pods.hold(token)
    async with pods.open() as bao:
        await bao.ping()
        del pods.cluster.given[token]
        bao.forget_token()
        with pytest.raises(BaoRefused):
            await bao.ping()
        # What the kubelet puts there next is used without a restart.
        pods.hold(pods.cluster.token("plexsphere-secrets") + "\n")
        await bao.ping()


async def test_without_the_file_openbao_is_not_there_and_nothing_else_is_tried(pods: Pods) -> None:
    async with pods.open() as bao:
        with pytest.raises(OpenbaoUnavailable) as refused:
            await bao.ping()
    assert str(refused.value) == "FileNotFoundError"


async def test_the_certificate_alone_is_not_enough_where_pods_log_in(pods: Pods) -> None:
    pods.hold("x.y.z")
    async with pods.open() as bao:
        with pytest.raises(BaoRefused) as refused:
            await bao.ping()
    assert "x.y.z" not in str(refused.value)
