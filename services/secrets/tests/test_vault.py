"""A value is cut out of OpenBao's answer as it came, and only from where a value stands."""

import base64

import pytest

from services.secrets.vault import cut

pytestmark = pytest.mark.unit

VALUE = b"planted\0value"
TEXT = base64.b64encode(VALUE).decode()
ANSWER = (
    '{"request_id":"r","data":{"data":{"value":"%s"},"metadata":{"custom_metadata":null,"version":%d}},"auth":null}\n'
)


@pytest.mark.parametrize("text", [TEXT, ""], ids=["a value", "an empty one"])
def test_a_value_is_cut_out_and_nothing_of_it_is_left(text: str) -> None:
    raw = bytearray((ANSWER % (text, 3)).encode())
    before = len(raw)
    assert cut(raw, 3).reveal() == text.encode()
    assert TEXT.encode() not in raw
    assert len(raw) == before


@pytest.mark.parametrize(
    "answer",
    [
        ANSWER % (TEXT, 2),
        ANSWER.replace('"data":{"value"', '"other":{"value"') % (TEXT, 3),
        '{"custom":{"value":"eA=="},' + ANSWER[1:] % (TEXT, 3),
        '{"data":{"data":{"value":"eA==',
        '{"data":{"data":null,"metadata":{"version":3}}}',
        "",
    ],
    ids=["another version", "another place", "an earlier one", "cut off", "destroyed", "empty"],
)
def test_what_is_not_the_answer_to_a_read_is_refused(answer: str) -> None:
    with pytest.raises((ValueError, LookupError, TypeError)):
        cut(bytearray(answer.encode()), 3)
