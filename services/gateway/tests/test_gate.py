import itertools
from typing import Any, cast

import pytest

from libs.errors import BusNotProvisioned
from services.gateway.gate import Gate, Ports, open_gate

pytestmark = pytest.mark.unit

NAMES = ("event_stream", "nonce_store", "signature_verifier", "relation_checker", "node_repo")
COMBINATIONS = list(itertools.product((False, True), repeat=5))


def ports(provided: tuple[bool, ...]) -> Ports:
    return Ports(
        **{name: cast("Any", object()) if there else None for name, there in zip(NAMES, provided, strict=True)}
    )


@pytest.mark.parametrize("provided", [one for one in COMBINATIONS if not all(one)])
def test_every_incomplete_combination_is_refused(provided: tuple[bool, ...]) -> None:
    with pytest.raises(BusNotProvisioned) as refused:
        open_gate(ports(provided))
    assert (refused.value.http, refused.value.code) == (501, "signed_event_bus_not_provisioned")


def test_all_five_open_the_gate() -> None:
    full = ports((True,) * 5)
    assert isinstance(open_gate(full), Gate)
    assert full.missing == ()


def test_missing_names_what_is_not_there() -> None:
    assert Ports().missing == NAMES
    assert ports((True, True, False, True, True)).missing == ("signature_verifier",)
