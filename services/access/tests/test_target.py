"""Targets: the kind's own variant, and nothing in it that a node could misread."""

from typing import Any

import pytest

from libs.errors import InvalidTarget
from services.access.target import checked

pytestmark = pytest.mark.unit

USERS = ("", "-oProxyCommand=x", "a b", "a\n", "a\0", "a:b", "a" * 66, "ä")
COMMANDS = ("", " ", "a\x1b[2J", "a\u202eb", "x" * 1025)
HOSTS = (
    "", ".", "a..b", "-a", "a-", "a b", "a\n", "a/b", "user@host", "a:1", "[::1]", "0x7f.1", "2130706433", "1.2.3",
    "0.0.0.0", "::", "224.0.0.1", "ff02::1", "169.254.169.254", "fe80::1", "fe80::1%eth0", "::ffff:169.254.169.254",
    "x" * 64, ".".join(["abcd"] * 52),
)  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "given", "kept"),
    [
        ("ssh", {"user": "root"}, {"user": "root", "allowed_commands": []}),
        ("ssh", {"user": "CORP\\anna$", "allowed_commands": ["uptime", "df -h /"]}, None),
        ("k8s", {"user": "admin@example.test"}, {"user": "admin@example.test", "impersonate_groups": []}),
        ("k8s", {"user": "a", "impersonate_groups": ["system:masters"]}, None),
        ("tcp", {"host": "db.internal", "port": 5432}, None),
        ("tcp", {"host": "db.internal.", "port": 1}, None),
        ("tcp", {"host": "127.0.0.1", "port": 65535}, None),
        ("tcp", {"host": "::1", "port": 22}, None),
        ("tcp", {"host": "2001:db8::7", "port": 22}, None),
    ],
)
def test_a_target_is_kept_in_the_contracts_form(kind: str, given: Any, kept: Any) -> None:
    assert checked(kind, {kind: given}) == {kind: kept or given}


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        ("ssh", {}),
        ("ssh", {"tcp": {"host": "a", "port": 1}}),
        ("ssh", {"ssh": {"user": "root"}, "tcp": {"host": "a", "port": 1}}),
        ("rdp", {"rdp": {"user": "root"}}),
        *(("ssh", {"ssh": {"user": user}}) for user in USERS),
        *(("ssh", {"ssh": {"user": "root", "allowed_commands": [command]}}) for command in COMMANDS),
        ("ssh", {"ssh": {"user": "root", "allowed_commands": ["x"] * 65}}),
        *(("k8s", {"k8s": {"user": user}}) for user in ("", "\t", "a\rb", "x" * 257)),
        ("k8s", {"k8s": {"user": "a", "impersonate_groups": [""]}}),
        ("k8s", {"k8s": {"user": "a", "impersonate_groups": ["g"] * 33}}),
        *(("tcp", {"tcp": {"host": host, "port": 22}}) for host in HOSTS),
        ("tcp", {"tcp": {"host": "a", "port": 0}}),
        ("tcp", {"tcp": {"host": "a", "port": 65536}}),
        ("tcp", {"tcp": {"host": "a"}}),
    ],
)  # fmt: skip
def test_a_target_that_is_refused(kind: str, target: Any) -> None:
    with pytest.raises(InvalidTarget):
        checked(kind, target)
