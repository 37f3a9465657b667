"""Cross-site request forgery: what a state-changing request with the session cookie must show besides it."""

import hmac
from collections.abc import Collection

from libs.errors import CsrfOriginMismatch, CsrfOriginNotConfigured, CsrfTokenMismatch

SAFE_METHODS = frozenset({"GET", "HEAD"})


def require_same_site(
    method: str,
    *,
    header: str,
    cookie: str,
    origin: str,
    fetch_site: str,
    allowed_origins: Collection[str],
) -> None:
    """Pass a safe method, or one whose token and origin match; raises the refusal of the first that does not.

    Double submit of the token (header equal to cookie), then the Origin header, or Fetch Metadata where a browser
    sends none.
    """
    if method in SAFE_METHODS:
        return
    if not cookie or not hmac.compare_digest(header.encode(errors="replace"), cookie.encode(errors="replace")):
        raise CsrfTokenMismatch
    if not allowed_origins:
        raise CsrfOriginNotConfigured
    if origin not in allowed_origins and fetch_site != "same-origin":
        raise CsrfOriginMismatch
