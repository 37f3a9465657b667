"""JSON as Go writes it: held to Python's own reader as an oracle, and to its own rules."""

import contextlib
import json
import time
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.canon import DEEPEST, NotJson, compact, decode, encode, jcs, members

pytestmark = pytest.mark.unit

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=6
)
PIECES = [
    "{", "}", "[", "]", ",", ":", '"', '""', '"a"', "[1]", '{"a":1}', "\\", "\\u", "\\ud800", "\\u00e9",
    "a", "é", "'", "<", "//",
    "0", "1", "-0", "01", "1.", ".5", "1e5", "1E+2", "-", "true", "false", "null", "nul", "NaN", "Infinity",
    " ", "\t", "\n", "\r", "\x0b", "\x00", "\u2028", "\ufeff", "\u00a0",
]  # fmt: skip
LIMIT_S = 1.0
MEGA = 1_000_000


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _is_json(text: str) -> bool:
    try:
        json.loads(text, parse_constant=_refuse, parse_int=str)
    except ValueError:
        return False
    return True


def _html_safe(text: str) -> str:
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_it_takes_exactly_what_is_json(text: str) -> None:
    try:
        compact(text.encode())
    except NotJson:
        assert not _is_json(text)
    else:
        assert _is_json(text)


@given(VALUES, st.sampled_from([None, 0, 3, "\t", "\r\n "]))
def test_compact_drops_whitespace_and_keeps_the_rest(value: Any, indent: int | str | None) -> None:
    written = json.dumps(value, ensure_ascii=False, indent=indent)
    plain = _html_safe(json.dumps(value, ensure_ascii=False, separators=(",", ":")))
    assert compact(written.encode(errors="surrogatepass")) == plain.encode(errors="surrogatepass")
    assert compact(plain.encode(errors="surrogatepass")) == plain.encode(errors="surrogatepass")


@given(st.binary(max_size=64))
def test_no_bytes_raise_anything_but_the_refusal(text: bytes) -> None:
    for read in (compact, members):
        try:
            read(text)
        except NotJson:
            continue


@given(st.text())
def test_a_string_comes_back(text: str) -> None:
    assert decode(encode(text)) == text
    assert decode(json.dumps(text).encode()) == text


@given(st.dictionaries(st.text(), VALUES))
def test_members_are_those_of_the_object_in_order(value: dict[str, Any]) -> None:
    found = members(json.dumps(value, indent=1).encode())
    assert [name for name, _ in found] == list(value)
    assert all(json.loads(text) == value[name] for name, text in found)


def test_members_keeps_duplicates_and_refuses_other_values() -> None:
    assert members(b' {"a" : [1, {"b":2}], "\\u0061":null} ') == [("a", b'[1,{"b":2}]'), ("a", b"null")]
    assert members(b"{}") == []
    for other in (b"[]", b'"a"', b"1", b"null", b'["a",1]'):
        with pytest.raises(NotJson):
            members(other)


@pytest.mark.parametrize(
    ("token", "text"),
    [
        (rb'"\ud83d\ude00"', "\U0001f600"),
        (rb'"\ud800\ud83d\ude00"', "\ufffd\U0001f600"),
        (rb'"\ude00\ud83d"', "\ufffd\ufffd"),
        (rb'"\ud83dX\ude00"', "\ufffdX\ufffd"),
        (b'"\xed\xa0\x80"', "\ufffd\ufffd\ufffd"),
        (b'"\xf0\x9f\x98"', "\ufffd\ufffd\ufffd"),
        (b'"\xc0\xafa"', "\ufffd\ufffda"),
        (b'"\xe2\x80A"', "\ufffd\ufffdA"),
        (rb'"\/\b\f\n\r\t\"\\\u0000"', '/\b\f\n\r\t"\\\0'),
    ],
)
def test_what_is_not_unicode_is_replaced_as_go_does(token: bytes, text: str) -> None:
    assert decode(token) == text


def test_escapes_are_those_of_go() -> None:
    assert (
        encode('\x00\x1f\b\f\n\r\t"\\/<>&\u2028\u2029')
        == rb'"\u0000\u001f\b\f\n\r\t\"\\/\u003c\u003e\u0026\u2028\u2029"'
    )
    assert encode("\x7fé\U0001f600") == '"\x7fé\U0001f600"'.encode()
    with pytest.raises(NotJson):
        encode("\ud800")


@pytest.mark.parametrize("text", [b"1E400", b"-0", b"1.500", b"9" * 5000, b'"\\ud800"', b'"\xff"', b'{"a":1,"a":2}'])
def test_text_survives(text: bytes) -> None:
    assert compact(text) == text


@pytest.mark.parametrize(("start", "end"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_depth_has_the_limit_of_go(start: bytes, end: bytes) -> None:
    compact(start * (DEEPEST - 1) + b"[]" + end * (DEEPEST - 1))
    with pytest.raises(NotJson):
        compact(start * DEEPEST + b"[]" + end * DEEPEST)


@pytest.mark.parametrize(
    "unit",
    [b"[],", b"1,", b'{"":0},', b'"a",', b"[[[[[[]]]]]],", b"[", b'{"a":', b'"\\"', b'\\"', b'"', b" ", b"9",
     b'"\xff",', b'"\\ud800",', b'"<",', b"-", b"1.", b"\x00"],
)  # fmt: skip
def test_a_megabyte_of_anything_costs_less_than_a_second(unit: bytes) -> None:
    many = unit * (MEGA // len(unit))
    for text in (b"[" + many + b"0]", b'{"a":[' + many + b"0]}", b'{"a":"' + many + b'"}'):
        started = time.process_time()
        with contextlib.suppress(NotJson):
            members(text)
        assert time.process_time() - started < LIMIT_S


def test_rfc_8785_example() -> None:
    """RFC 8785, 3.2.4."""
    value = {
        "numbers": [333333333.33333329, 1e30, 4.50, 2e-3, 0.000000000000000000000000001],
        "string": "\u20ac$\u000f\u000aA'\u0042\u0022\u005c\\\"/",
        "literals": [None, True, False],
    }
    assert (
        jcs(value)
        == (
            '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
            '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
        ).encode()
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**53, "\ud800", {1: 2}, object(), {"\udc00": 1}])
def test_what_has_no_canonical_form_is_refused(value: Any) -> None:
    with pytest.raises(NotJson):
        jcs(value)
