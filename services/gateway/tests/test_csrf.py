import pytest

from libs.errors import CsrfOriginMismatch, CsrfOriginNotConfigured, CsrfTokenMismatch, PlexError
from services.gateway.csrf import require_same_site

pytestmark = pytest.mark.unit

OURS, OTHER = "https://edge.test", "https://evil.test"


def ask(
    method: str = "POST",
    header: str = "t",
    cookie: str = "t",
    origin: str = OURS,
    fetch_site: str = "",
    allowed: tuple[str, ...] = (OURS,),
) -> None:
    require_same_site(
        method, header=header, cookie=cookie, origin=origin, fetch_site=fetch_site, allowed_origins=allowed
    )


@pytest.mark.parametrize(
    ("case", "refusal"),
    [
        ({"header": ""}, CsrfTokenMismatch),
        ({"cookie": ""}, CsrfTokenMismatch),
        ({"header": "", "cookie": ""}, CsrfTokenMismatch),
        ({"header": "u"}, CsrfTokenMismatch),
        ({"header": "\udc80"}, CsrfTokenMismatch),
        ({"origin": OTHER}, CsrfOriginMismatch),
        ({"origin": ""}, CsrfOriginMismatch),
        ({"origin": "null"}, CsrfOriginMismatch),
        ({"origin": OURS + ".evil.test"}, CsrfOriginMismatch),
        ({"origin": "", "fetch_site": "same-site"}, CsrfOriginMismatch),
        ({"origin": "", "fetch_site": "cross-site"}, CsrfOriginMismatch),
        ({"allowed": ()}, CsrfOriginNotConfigured),
        ({"allowed": (), "origin": "", "fetch_site": "same-origin"}, CsrfOriginNotConfigured),
    ],
)
def test_refused(case: dict[str, str], refusal: type[PlexError]) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        with pytest.raises(refusal):
            ask(method, **case)  # type: ignore[arg-type]  # the table mixes texts and tuples


@pytest.mark.parametrize(
    "case",
    [
        {},
        {"origin": "", "fetch_site": "same-origin"},
        {"method": "GET", "header": "", "cookie": "", "origin": OTHER},
        {"method": "HEAD", "header": "", "allowed": ()},
    ],
)
def test_passes(case: dict[str, str]) -> None:
    ask(**case)  # type: ignore[arg-type]  # as above
