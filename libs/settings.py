"""Strict settings: one TOML file a process; an unknown or missing key stops the start with its name.

Environment variables are not read: Kubernetes injects `<SERVICE>_PORT`, and a misspelt variable would be silent.
"""

import difflib
import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=3600)]


class StartRefused(Exception):
    """The process must not run like this; the message names what is wrong and holds no secret."""


class SettingsError(StartRefused):
    """A settings file that must not be started with; the message names the file and the key."""


class Settings(BaseModel):
    """A table of settings: unknown keys are refused, values are not coerced."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Tls(Settings):
    """A TLS identity: files in PEM, read again when they change."""

    certificate_file: Path
    key_file: Path
    ca_file: Path


class Listen(Settings):
    """Where a server listens."""

    host: str
    port: Port


class Peer(Settings):
    """Another process: where it is and whose certificate it must show."""

    address: str
    name: str


class Postgres(Settings):
    """The service's own role on PostgreSQL."""

    host: str
    port: Port
    database: str
    user: str
    min_size: Annotated[int, Field(ge=1)] = 2
    max_size: Annotated[int, Field(ge=1)] = 10
    timeout_s: Seconds = 5.0


class KubernetesLogin(Settings):
    """The pod's service account token, and where OpenBao takes it: a mount of `kubernetes` or `jwt`."""

    token_file: Path
    mount: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")] = "kubernetes"


class OpenBao(Settings):
    """The service's own role on OpenBao: by its certificate, or by its pod where `kubernetes` is set."""

    address: str
    role: str
    timeout_s: Seconds = 5.0
    kubernetes: KubernetesLogin | None = None


class Nats(Settings):
    """The event bus; the user is the URI SAN of the service's certificate."""

    address: Annotated[str, Field(pattern=r"^tls://")]
    timeout_s: Seconds = 2.0


class Telemetry(Settings):
    """Logs to stdout, metrics over HTTP, spans to a collector or a file when one is named."""

    metrics_host: str
    metrics_port: Port
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    otlp_endpoint: str = ""
    trace_file: str = ""


class Runtime(Settings):
    """What every process has."""

    service: str
    environment: Literal["dev", "stage", "prod"]
    listen: Listen
    tls: Tls
    telemetry: Telemetry
    callers: dict[str, list[str]] = {}
    drain_s: Seconds = 10.0


Model = TypeVar("Model", bound=Settings)


def load(path: Path, model: type[Model]) -> Model:
    """Read a settings file; raises SettingsError naming every key that is unknown, missing or wrong."""
    try:
        with path.open("rb") as file:
            raw = tomllib.load(file)
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path}: {error}") from None
    try:
        # As JSON, because strict validation of Python objects would want a Path where TOML has only text.
        return model.model_validate_json(json.dumps(raw, default=str), strict=True)
    except ValidationError as error:
        problems = [_explain(problem, model) for problem in error.errors(include_input=False, include_url=False)]
        raise SettingsError(f"{path}: " + "; ".join(problems)) from None


def _explain(problem: Any, model: type[Settings]) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, _keys(model), n=1)
        return f"unknown setting {key}" + (f"; did you mean {near[0]}?" if near else "")
    if problem["type"] == "missing":
        return f"missing setting {key}"
    return f"setting {key}: {problem['msg']}"


def _keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    found = []
    for name, field in model.model_fields.items():
        found.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += _keys(field.annotation, f"{prefix}{name}.")
    return found
