"""Asks a process for its own health: `python -m libs.probe --config SETTINGS ready|live`; status 0 is yes.

For probes of containers, which have no certificate to show. It shows the process's own, which each caller list admits.
"""

import argparse
import sys
import tomllib
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

WITHIN_S = 3.0
LIVE = "live"


def ask(config: Path, service: str) -> bool:
    """Say whether the process with these settings serves: "" stands for all that it needs, "live" for its loop."""
    # Read as it is, because the model of each service is the service's own.
    settings = tomllib.loads(config.read_text())
    names = ("ca_file", "key_file", "certificate_file")
    authority, key, certificate = (Path(settings["tls"][name]).read_bytes() for name in names)
    credentials = grpc.ssl_channel_credentials(authority, key, certificate)
    options = [("grpc.ssl_target_name_override", settings["service"])]
    address = f"127.0.0.1:{settings['listen']['port']}"
    with grpc.secure_channel(address, credentials, options=options) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=WITHIN_S)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def main() -> None:
    """End with status 0 when the answer is yes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("what", choices=["ready", LIVE])
    asked = parser.parse_args()
    sys.exit(0 if ask(asked.config, LIVE if asked.what == LIVE else "") else 1)


if __name__ == "__main__":
    main()
