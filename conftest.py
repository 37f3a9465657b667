import structlog
from hypothesis import settings

from libs.telemetry import bare_traceback, redact

pytest_plugins = ["tests.stack"]

# Times mean nothing on shared machines.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")

# As in production, a traceback of a log has no locals: they could hold a secret, and to draw them takes a second.
structlog.configure(
    processors=[
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        bare_traceback,
        redact,
        structlog.processors.JSONRenderer(),
    ]
)
