"""What a token is for at most: permissions that were named when it was issued.

Whoever asks for a relation goes through here, so no service can forget it; the relation still has to be there.
"""

from libs.decision import GRANTED
from libs.rpc.context import current_call

PERMISSIONS = ("read", "observe", "deploy", "act", "node-operate", "manage", "audit")


def beyond(subject: str, permission: str) -> bool:
    """Whether the caller's own credential is not for this permission; of anybody else it says nothing."""
    caller = current_call().principal
    if caller is None or caller.scope is None or caller.reference != subject:
        return False
    return permission not in caller.scope


def named(subject: str, permission: str, reason: str) -> dict[str, list[str]]:
    """Return what a row says of this control: its name where it was what refused."""
    refused = reason != GRANTED and permission in PERMISSIONS and beyond(subject, permission)
    return {"token": ["scope"]} if refused else {}
