"""Which limits hold: what the Domain says, else the default, and never more than the platform allows."""

from pathlib import Path

import pytest

from libs.access_policy import HIGHEST_LIMITS, SecretLimits
from libs.settings import SettingsError, load
from services.secrets.limits import in_force
from services.secrets.settings import Limits, SecretsSettings

pytestmark = pytest.mark.unit

SHIPPED = Path(__file__).resolve().parents[3] / "deploy/config/secrets.toml"
DEFAULT = Limits(node_rate_per_minute=60, node_burst=10, domain_rate_per_minute=6000, domain_burst=600)
MOST = Limits(node_rate_per_minute=100, node_burst=20, domain_rate_per_minute=9000, domain_burst=900)


@pytest.mark.parametrize(
    ("said", "holds"),
    [
        (SecretLimits(), DEFAULT),
        (SecretLimits(1, 2, 3, 4), Limits(**dict(zip(HIGHEST_LIMITS, (1, 2, 3, 4), strict=True)))),
        (SecretLimits(node_rate_per_minute=90), DEFAULT.model_copy(update={"node_rate_per_minute": 90})),
        (SecretLimits(domain_burst=1), DEFAULT.model_copy(update={"domain_burst": 1})),
        (SecretLimits(600, 100, 60_000, 6_000), MOST),
    ],
)
def test_a_domain_says_its_limits_within_the_platforms(said: SecretLimits, holds: Limits) -> None:
    assert in_force(said, DEFAULT, MOST) == holds


def test_what_identity_lets_a_domain_say_the_shipped_process_grants() -> None:
    settings = load(SHIPPED, SecretsSettings)
    assert settings.limits_at_most.model_dump() == HIGHEST_LIMITS
    assert in_force(SecretLimits(**HIGHEST_LIMITS), settings.limits, settings.limits_at_most).model_dump() == (
        HIGHEST_LIMITS
    )


def test_a_default_above_the_most_stops_the_start(tmp_path: Path) -> None:
    file = tmp_path / "secrets.toml"
    file.write_text(SHIPPED.read_text().replace("node_burst = 10\n", "node_burst = 101\n"))
    with pytest.raises(SettingsError, match="above limits_at_most: node_burst"):
        load(file, SecretsSettings)
