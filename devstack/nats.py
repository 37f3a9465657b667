"""NATS with JetStream on disk and users by certificate."""

from devstack.layout import ROOT, State, program
from devstack.process import Spec, port_open

TEMPLATE = ROOT / "deploy/nats/nats.conf"
# For attack scripts and tests only; no deployment has it.
SUPERUSER = '{ user: "spiffe://plexsphere/operator", permissions { publish: ">", subscribe: ">" } }'


def prepare(state: State) -> None:
    """Write the configuration."""
    (state / "nats").mkdir(exist_ok=True)
    text = TEMPLATE.read_text()
    for name, value in {
        "NAME": "plexsphere",
        "LISTEN": f"127.0.0.1:{state.port('nats')}",
        "STORE": str(state / "nats"),
        "TLS": str(state / "pki"),
        "SUPERUSER": SUPERUSER,
    }.items():
        text = text.replace(f"@{name}@", value)
    (state / "config/nats.conf").write_text(text)


def spec(state: State) -> Spec:
    """Return the server's process."""
    binary = program("nats-server")

    async def ready() -> None:
        await port_open(state.port("nats"))

    return Spec("nats", [binary, "-c", str(state / "config/nats.conf")], ready)
