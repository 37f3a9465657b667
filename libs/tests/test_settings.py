"""Settings: what is misspelt, missing, coerced or absent stops the start, by its name and without its value."""

from pathlib import Path

import pytest

from libs.migrations import Migrate
from libs.settings import Runtime, Settings, SettingsError, load
from services.access.settings import AccessSettings
from services.audit.settings import AuditSettings
from services.gateway.settings import GatewaySettings
from services.identity.settings import IdentitySettings
from services.mesh.settings import MeshSettings
from services.secrets.settings import SecretsSettings

pytestmark = pytest.mark.unit

SHIPPED = Path(__file__).resolve().parents[2] / "deploy/config"
MODELS: dict[str, type[Settings]] = {
    "access": AccessSettings, "audit": AuditSettings, "gateway": GatewaySettings, "identity": IdentitySettings,
    "mesh": MeshSettings, "migrate": Migrate, "secrets": SecretsSettings,
}  # fmt: skip
PLANTED = "planted-7f1c9e"
RIGHT = """
service = "identity"
environment = "dev"

[listen]
host = "127.0.0.1"
port = 8443

[tls]
certificate_file = "/run/tls/identity.crt"
key_file = "/run/tls/identity.key"
ca_file = "/run/tls/ca.crt"

[telemetry]
metrics_host = "127.0.0.1"
metrics_port = 9464

[callers]
"grpc.health.v1.Health" = ["probe"]
"""

WRONG = {
    "a misspelt key": ("metrics_port = 9464", "metric_port = 9464", r"unknown setting telemetry\.metric_port"),
    "what it may have meant": ("metrics_port = 9464", "metric_port = 9464", r"did you mean telemetry\.metrics_port\?"),
    "an unknown key": ('service = "identity"', f'service = "x"\nzzz = "{PLANTED}"', "unknown setting zzz$"),
    "an unknown table": ("[callers]", '[caller]\nx = ["y"]\n[callers]', "unknown setting caller; did you mean callers"),
    "a missing key": ("metrics_port = 9464", "", r"missing setting telemetry\.metrics_port"),
    "a missing table": ("[listen]", "", "missing setting listen"),
    "a text for a number": ("port = 8443", 'port = "8443"', r"setting listen\.port"),
    "a fraction for a number": ("port = 8443", "port = 8443.5", r"setting listen\.port"),
    "a number for a text": ('host = "127.0.0.1"\nport', "host = 1\nport", r"setting listen\.host"),
    "a number out of range": ("port = 8443", "port = 65536", r"setting listen\.port"),
    "a word that is not one of the list": ('"dev"', f'"{PLANTED}"', "setting environment"),
    "a text for a list": ('["probe"]', f'"{PLANTED}"', r"setting callers\.grpc\.health\.v1\.Health"),
    "text that is not TOML": ("[listen]", "[listen", "runtime.toml"),
    "the same key twice": ('service = "identity"', 'service = "a"\nservice = "b"', "runtime.toml"),
}


def written(folder: Path, text: str) -> Path:
    path = folder / "runtime.toml"
    path.write_text(text)
    return path


def test_what_is_right_is_loaded(tmp_path: Path) -> None:
    settings = load(written(tmp_path, RIGHT), Runtime)
    assert settings.listen.port == 8443
    assert settings.tls.ca_file == Path("/run/tls/ca.crt")
    assert settings.drain_s == 10


@pytest.mark.parametrize("case", WRONG)
def test_it_stops_the_start_by_name(case: str, tmp_path: Path) -> None:
    old, new, says = WRONG[case]
    assert RIGHT.count(old) == 1, old
    with pytest.raises(SettingsError, match=says) as refused:
        load(written(tmp_path, RIGHT.replace(old, new)), Runtime)
    assert str(refused.value).startswith(f"{tmp_path}/runtime.toml: ")
    assert PLANTED not in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"gone\.toml: No such file"):
        load(tmp_path / "gone.toml", Runtime)


def test_settings_cannot_be_changed_later(tmp_path: Path) -> None:
    settings = load(written(tmp_path, RIGHT), Runtime)
    with pytest.raises(ValueError, match="frozen"):
        settings.service = "access"  # type: ignore[misc]  # what is tested


def test_every_file_that_ships_has_its_model() -> None:
    assert {path.stem for path in SHIPPED.glob("*.toml")} == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_every_file_that_ships_is_loaded(name: str) -> None:
    settings = load(SHIPPED / f"{name}.toml", MODELS[name])
    if isinstance(settings, Runtime):
        assert settings.service == name
        assert settings.environment == "prod"
