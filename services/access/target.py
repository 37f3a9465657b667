"""What a session may be for: exactly one variant, that of its kind, without anything a node could misread."""

import ipaddress
import re
from collections.abc import Callable, Mapping
from typing import Any

from libs.errors import InvalidTarget

JSON = dict[str, Any]
MOST_COMMANDS, MOST_GROUPS, LONGEST_COMMAND, LONGEST_NAME = 64, 32, 1024, 256
# What a login name may be on the systems that we know; no dash in front, where it would be read as an option.
LOGIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@\\-]{0,63}\$?")
LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
LONGEST_HOST, HIGHEST_PORT = 253, 65_535


def checked(kind: str, target: Mapping[str, Any]) -> JSON:
    """Return a target in the contract's form; raises InvalidTarget for any other than the kind's own variant."""
    if set(target) != {kind} or kind not in CHECKS:
        raise InvalidTarget
    return {kind: CHECKS[kind](target[kind])}


def _ssh(variant: Mapping[str, Any]) -> JSON:
    user, commands = variant.get("user", ""), list(variant.get("allowed_commands", ()))
    if not LOGIN.fullmatch(user):
        raise InvalidTarget("user is not a login name")
    if len(commands) > MOST_COMMANDS or not all(_plain(command, LONGEST_COMMAND) for command in commands):
        raise InvalidTarget("a command is empty, too long or has a control character, or there are too many")
    return {"user": user, "allowed_commands": commands}


def _k8s(variant: Mapping[str, Any]) -> JSON:
    user, groups = variant.get("user", ""), list(variant.get("impersonate_groups", ()))
    if not _plain(user, LONGEST_NAME):
        raise InvalidTarget("user is empty, too long or has a control character")
    if len(groups) > MOST_GROUPS or not all(_plain(group, LONGEST_NAME) for group in groups):
        raise InvalidTarget("a group is empty, too long or has a control character, or there are too many")
    return {"user": user, "impersonate_groups": groups}


def _tcp(variant: Mapping[str, Any]) -> JSON:
    host, port = variant.get("host", ""), variant.get("port", 0)
    if not _host(host):
        raise InvalidTarget("host is neither a host name nor an address that a node may connect to")
    if not 1 <= port <= HIGHEST_PORT:
        raise InvalidTarget("port is out of range")
    return {"host": host, "port": port}


def _plain(text: str, longest: int) -> bool:
    return 0 < len(text) <= longest and text.isprintable() and not text.isspace()


def _host(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        labels = text.removesuffix(".").split(".")
        # A name whose last label is a number is an address in disguise (WHATWG URL, 3.5), such as 0x7f.1 or 2130706433.
        numeric = re.fullmatch(r"[0-9]+|0[xX][0-9a-fA-F]*", labels[-1])
        return len(text) <= LONGEST_HOST and all(map(LABEL.fullmatch, labels)) and not numeric
    # Loopback is the node itself, which is what a session is often for. Link-local is where clouds hand out their keys.
    mapped = getattr(address, "ipv4_mapped", None) or address
    if "%" in text:
        return False
    return not (mapped.is_unspecified or mapped.is_multicast or mapped.is_link_local)


CHECKS: Mapping[str, Callable[[Mapping[str, Any]], JSON]] = {"ssh": _ssh, "k8s": _k8s, "tcp": _tcp}
