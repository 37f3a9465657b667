import json
from typing import Any

import pytest
from aiohttp import web

from libs import errors
from libs.errors import BY_CODE, PlexError
from services.gateway.edge import plain, refusal_of
from services.gateway.problems import answer, challenge, describe

pytestmark = pytest.mark.unit

SEVEN = {"type", "title", "status", "detail", "instance", "code", "correlation_id"}


@pytest.mark.parametrize("code", sorted(BY_CODE))
def test_every_row_of_the_table_becomes_a_whole_problem(code: str) -> None:
    response = answer(BY_CODE[code](), "/v1/x", "id")
    body = json.loads(bytes(response.body))  # type: ignore[arg-type]  # a bytes body
    assert set(body) >= SEVEN
    assert (body["status"], body["code"]) == (response.status, code)
    assert response.content_type == "application/problem+json"
    assert response.headers["X-Correlation-Id"] == "id"
    assert (response.status == 401) == ("WWW-Authenticate" in response.headers)
    assert ("reason" in body) == (response.status == 403)


def test_a_refusal_of_a_relation_says_why() -> None:
    error = errors.Forbidden(reason="insufficient_relation", relation_path=["a"])
    assert describe(error, "/", "i")["reason"] == "insufficient_relation"
    assert describe(error, "/", "i")["relation_path"] == ["a"]
    assert "reason" not in describe(error, "/", "i", "PostRegister")


@pytest.mark.parametrize(
    ("error", "headers"),
    [
        (errors.TooMany(retry_after_s=7), {"Retry-After": "7"}),
        (errors.SessionLimitExceeded(), {}),
        (errors.AuditUnavailable(), {"Retry-After": "1"}),
        (
            errors.StepUpRequired(acr_values=["urn:mfa", 'a"b\r\n']),
            {"WWW-Authenticate": 'Bearer error="insufficient_user_authentication", acr_values="urn:mfa ab"'},
        ),
        (
            errors.StepUpRequired(max_age_s=300),
            {"WWW-Authenticate": 'Bearer error="insufficient_user_authentication", max_age="300"'},
        ),
        (errors.StepUpRequired(), {"WWW-Authenticate": 'Bearer error="insufficient_user_authentication"'}),
    ],
)
def test_challenges(error: PlexError, headers: dict[str, str]) -> None:
    assert challenge(error) == headers


@pytest.mark.parametrize(
    ("raised", "status", "code"),
    [
        (web.HTTPNotFound(), 404, "not_found"),
        (web.HTTPMethodNotAllowed("X", ["GET"]), 405, "method_not_allowed"),
        (web.HTTPRequestEntityTooLarge(1, 2), 413, "request_body_too_large"),
        (web.HTTPBadRequest(), 400, "invalid_body"),
        (TimeoutError(), 503, "unavailable"),
        (ZeroDivisionError("a secret"), 500, "internal"),
    ],
)
def test_whatever_is_raised_becomes_one_of_ours(raised: Exception, status: int, code: str) -> None:
    error = refusal_of(raised)
    assert (error.http, error.code) == (status, code)
    assert "secret" not in json.dumps(describe(error, "/", "i"))


def test_counts_travel_in_the_problem() -> None:
    counts: dict[str, Any] = {"projects": 1}
    assert describe(errors.DomainNotEmpty(child_counts=counts), "/", "i")["child_counts"] == counts


def test_header_texts_become_printable_ascii() -> None:
    assert plain("a\r\nb\udc80c", 512) == "a??b?c"
    assert len(plain("x" * 1000, 512)) == 512
