"""What a handler may know of the call that it serves, without an argument for it in every signature."""

import contextlib
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass

from libs.errors import Unauthenticated
from libs.principal import Principal

PRINCIPAL_KEY = "x-plexsphere-principal"
CORRELATION_KEY = "x-plexsphere-correlation-id"
CLIENT_IP_KEY = "x-plexsphere-client-ip"
USER_AGENT_KEY = "x-plexsphere-user-agent"


@dataclass(frozen=True)
class Call:
    """One call as the guard let it in; `deadline` is on the monotonic clock, in seconds."""

    peer: str = ""
    correlation_id: str = ""
    client_ip: str = ""
    user_agent: str = ""
    principal: Principal | None = None
    deadline: float | None = None


NOBODY = Call()
_call: ContextVar[Call] = ContextVar("call", default=NOBODY)


def current_call() -> Call:
    """Return the call that is being served; an empty one outside of any."""
    return _call.get()


def current_principal() -> Principal:
    """Return who is behind the call; raises Unauthenticated where nobody was asserted."""
    principal = _call.get().principal
    if principal is None:
        raise Unauthenticated
    return principal


@contextlib.contextmanager
def bind(call: Call) -> Iterator[None]:
    """Serve a call within the block."""
    token = _call.set(call)
    try:
        yield
    finally:
        _call.reset(token)


def remaining_s(most: float) -> float:
    """Return how long an outgoing call may take: what is left of the incoming one, at most `most` seconds."""
    deadline = _call.get().deadline
    if deadline is None:
        return most
    return max(0.001, min(most, deadline - time.monotonic()))
