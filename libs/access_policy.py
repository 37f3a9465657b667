"""A Domain's access policy: how strongly and how freshly people must have signed in for a privileged session.

Identity keeps it with the Domain, access decides with it. No I/O here.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from libs.errors import InvalidRequest

KINDS = ("ssh", "k8s", "tcp")
# What a quoted-string of a challenge can carry, one of several (RFC 9470, 3): no space, quote or backslash.
VALUE = re.compile(r"[!#-\[\]-~]{1,256}")
MOST_VALUES = 16
LONGEST_AGE_S, LONGEST_TTL_S, MOST_SESSIONS, HIGHEST_RATE = 86_400, 43_200, 10_000, 10_000
# What the platform lets a Domain say; what the secrets process is set to holds where it says nothing.
HIGHEST_LIMITS = {
    "node_rate_per_minute": 600, "node_burst": 100, "domain_rate_per_minute": 60_000, "domain_burst": 6_000,
}  # fmt: skip


@dataclass(frozen=True)
class Strength:
    """What a login must be: any one of `required_acr`, all of `required_amr`, at most `max_auth_age_s` old."""

    required_acr: tuple[str, ...] = ()
    required_amr: tuple[str, ...] = ()
    max_auth_age_s: int = 300

    def within(self, other: "Strength") -> bool:
        """Whether no login satisfies this that does not satisfy the other; without values of `acr` none does."""
        return (
            set(self.required_acr) <= set(other.required_acr)
            and set(self.required_amr) >= set(other.required_amr)
            and self.max_auth_age_s <= other.max_auth_age_s
        )


@dataclass(frozen=True)
class Override:
    """What a kind of session asks for beyond its Domain's policy; empty and None ask for nothing."""

    required_acr: tuple[str, ...] = ()
    required_amr: tuple[str, ...] = ()
    max_auth_age_s: int | None = None


@dataclass(frozen=True)
class SecretLimits:
    """How often a node, and all of a Domain's together, may read secrets; None is what the platform says."""

    node_rate_per_minute: int | None = None
    node_burst: int | None = None
    domain_rate_per_minute: int | None = None
    domain_burst: int | None = None


@dataclass(frozen=True)
class AccessPolicy:
    """A Domain's; as it stands here it is the platform's default."""

    strength: Strength = field(default_factory=Strength)
    kinds: Mapping[str, Override] = field(default_factory=dict)
    default_ttl_s: int = 900
    max_ttl_s: int = 3600
    max_active_per_identity: int = 10
    max_active_per_node: int = 50
    issue_rate_per_minute: int = 30
    secret_limits: SecretLimits = field(default_factory=SecretLimits)

    def required(self, kind: str, binding_acr: tuple[str, ...]) -> Strength:
        """Return what a kind of session asks for; without values of its own, those of the caller's binding count.

        An override only narrows, whatever it says: no value of `acr` that the policy does not take comes in by it, and
        where nothing is required at all nothing satisfies.
        """
        base, override = self.strength, self.kinds.get(kind, Override())
        acr = base.required_acr or binding_acr
        if override.required_acr:
            acr = tuple(value for value in acr if value in override.required_acr)
        age = base.max_auth_age_s if override.max_auth_age_s is None else override.max_auth_age_s
        return Strength(
            acr, tuple(dict.fromkeys(base.required_amr + override.required_amr)), min(age, base.max_auth_age_s)
        )

    def ttl_s(self, requested_s: int) -> int:
        """Return how long a session may last; 0 asks for the default."""
        return min(requested_s or self.default_ttl_s, self.max_ttl_s)


def checked(policy: AccessPolicy) -> AccessPolicy:
    """Return a policy that can be kept; raises InvalidRequest for one out of bounds, or whose kinds are laxer."""
    base = policy.strength
    bounds = {
        "max_auth_age_seconds": (base.max_auth_age_s, LONGEST_AGE_S),
        "max_ttl_seconds": (policy.max_ttl_s, LONGEST_TTL_S),
        "default_ttl_seconds": (policy.default_ttl_s, policy.max_ttl_s),
        "max_active_per_identity": (policy.max_active_per_identity, MOST_SESSIONS),
        "max_active_per_node": (policy.max_active_per_node, MOST_SESSIONS),
        "issue_rate_per_minute": (policy.issue_rate_per_minute, HIGHEST_RATE),
    }
    limits = asdict(policy.secret_limits)
    bounds |= {name: (value, HIGHEST_LIMITS[name]) for name, value in limits.items() if value is not None}
    for name, (value, most) in bounds.items():
        if not 1 <= value <= most:
            raise InvalidRequest(f"{name} must be from 1 to {most}")
    _check_values(base)
    for kind, override in policy.kinds.items():
        if kind not in KINDS:
            raise InvalidRequest(f"kinds are {', '.join(KINDS)}")
        _check_values(override)
        if base.required_acr and not set(override.required_acr) <= set(base.required_acr):
            raise InvalidRequest(f"kinds.{kind}.required_acr has a value that the Domain's does not have")
        if override.max_auth_age_s is not None and not 1 <= override.max_auth_age_s <= base.max_auth_age_s:
            raise InvalidRequest(f"kinds.{kind}.max_auth_age_seconds must not be above the Domain's")
    return policy


def _check_values(wanted: Strength | Override) -> None:
    for name in ("required_acr", "required_amr"):
        values = getattr(wanted, name)
        if len(values) > MOST_VALUES or not all(map(VALUE.fullmatch, values)):
            raise InvalidRequest(f"{name} has a value that no provider could give, or more than {MOST_VALUES}")
