"""A request's body: read once, and changed in one place without touching the rest."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from manager.errors import ApiError
from manager.relay.payload import Payload

ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
SPACE = st.text(" \t\n\r", max_size=3)
KEYS = st.sampled_from(["model", "stream", "stream_options", "messages", "é", 'a"b', ""])


@st.composite
def written(draw: st.DrawFn) -> tuple[str, list[tuple[str, Any]]]:
    """A JSON object as some client may have written it, and its fields, repeated ones too."""
    fields = draw(st.lists(st.tuples(KEYS | st.text(max_size=5), ANY_JSON), max_size=5))
    ascii_only = draw(st.booleans())
    parts = []
    for key, value in fields:
        name, content = (json.dumps(part, ensure_ascii=ascii_only) for part in (key, value))
        spaces = [draw(SPACE) for _ in range(4)]
        parts.append(f"{spaces[0]}{name}{spaces[1]}:{spaces[2]}{content}{spaces[3]}")
    inside = ",".join(parts) or draw(SPACE)
    return f"{draw(SPACE)}{{{inside}}}{draw(SPACE)}", fields


CHANGES = st.dictionaries(KEYS, ANY_JSON, max_size=3)


# --- reading ----------------------------------------------------------------------------


@given(written())
def test_fields_are_those_of_the_json(body: tuple[str, list[tuple[str, Any]]]) -> None:
    text, _ = body
    assert Payload(text.encode()).fields == json.loads(text)


@given(st.binary(max_size=80) | st.text('{}[]":,0 a\\\n', max_size=40).map(str.encode))
@example(b'{"a":1}{')
@example(b'{"a":1,}')
@example(b"{,}")
@example(b'{"a" 1}')
@example(b"{1:2}")
def test_what_python_reads_as_an_object_is_taken_and_all_else_is_refused(body: bytes) -> None:
    try:
        expected = json.loads(body.decode("utf-8"))
    except ValueError:
        expected = None
    if isinstance(expected, dict):
        assert repr(Payload(body).fields) == repr(expected)  # repr: NaN is not equal to itself
    else:
        with pytest.raises(ApiError, match="not a JSON object"):
            Payload(body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"   ",
        b"hello",
        b"[]",
        b'"model"',
        b"null",
        b"{",
        b'{"model": "a"',
        b'{"model": "a"} x',
        b"{'model': 'a'}",
        b'{"model": "\xff"}',
        b'{"n": ' + b"9" * 10_000 + b"}",
        b'{"n": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    ],
)
def test_what_is_not_a_json_object_is_the_clients_error(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        Payload(body)
    assert (caught.value.status, caught.value.code) == (400, "invalid_json")
    assert len(caught.value.message) < 500


def test_a_byte_order_mark_is_read_over_and_goes_no_further() -> None:
    marked = b'\xef\xbb\xbf{"model": "a"}'
    assert Payload(marked).fields == {"model": "a"}
    assert Payload(marked).with_changes({}) == b'{"model": "a"}'
    assert Payload(marked).with_changes({"model": "b"}) == b'{"model": "b"}'
    with pytest.raises(ApiError):
        Payload(b"\xef\xbb\xbf" + marked)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ('{"model": "a"}'.encode("utf-16"), "it is in UTF-16, and JSON is sent in UTF-8"),
        ('{"model": "a"}'.encode("utf-16-le"), "it is in UTF-16, and"),
        ('{"model": "a"}'.encode("utf-32"), "it is in UTF-32, and"),
        (b"\x1f\x8b\x08 compressed", "Content-Encoding: gzip has to say"),
        (b"\x28\xb5\x2f\xfd compressed", "Content-Encoding: zstd has to say"),
        ('{"model": "\xe9"}'.encode("latin-1"), "it is not UTF-8: invalid continuation byte at"),
    ],
)
def test_of_what_is_no_text_in_utf_8_the_error_says_what_it_is(body: bytes, why: str) -> None:
    with pytest.raises(ApiError) as caught:
        Payload(body)
    assert caught.value.code == "invalid_json"
    assert why in caught.value.message


def test_the_last_of_a_repeated_key_counts_as_everywhere() -> None:
    assert Payload(b'{"model": "a", "model": "b"}').fields == {"model": "b"}


# --- changing ---------------------------------------------------------------------------


@given(written())
def test_a_body_that_is_not_changed_is_the_same_bytes(
    body: tuple[str, list[tuple[str, Any]]],
) -> None:
    text, _ = body
    assert Payload(text.encode()).with_changes({}) == text.encode()


@given(written(), CHANGES)
def test_a_changed_body_means_the_same_but_for_the_changes(
    body: tuple[str, list[tuple[str, Any]]], changes: dict[str, Any]
) -> None:
    text, _ = body
    assert json.loads(Payload(text.encode()).with_changes(changes)) == json.loads(text) | changes


@given(written(), CHANGES)
def test_every_byte_outside_of_the_changed_values_stays(
    body: tuple[str, list[tuple[str, Any]]], changes: dict[str, Any]
) -> None:
    """Changed values are taken out of the text before and after: what is left is the same,
    but for the fields that were not there before."""
    text, fields = body
    old = {key for key, _ in fields}
    changed = Payload(text.encode()).with_changes(changes).decode()
    added = {key: value for key, value in changes.items() if key not in old}
    end = text.rstrip(" \t\n\r")[:-1]
    closing = text[len(end) :]
    assert changed.endswith(closing)
    rest = changed[: -len(closing)]
    if added:
        tail = ", ".join(f"{json.dumps(key)}: {json.dumps(val)}" for key, val in added.items())
        tail = f", {tail}" if fields else tail
        assert rest.endswith(tail)
        rest = rest[: -len(tail)]
    kept = Payload((rest + closing).encode())
    undone = kept.with_changes({key: None for key in changes if key in old})
    as_before = Payload(text.encode()).with_changes({key: None for key in changes if key in old})
    assert undone == as_before


@given(written())
def test_a_change_to_what_is_there_already_changes_no_meaning(
    body: tuple[str, list[tuple[str, Any]]],
) -> None:
    text, fields = body
    assume(fields)
    payload = Payload(text.encode())
    assert json.loads(payload.with_changes(payload.fields)) == payload.fields


def test_the_models_name_changes_and_numbers_spacing_and_order_stay() -> None:
    body = '{ "seed":1e2,\n\t"model" : "mine", "ünï": "\\u00e9é", "top_p":0.10 }'
    changed = Payload(body.encode()).with_changes({"model": "theirs"})
    assert changed.decode() == body.replace('"mine"', '"theirs"')


def test_each_of_a_repeated_key_changes_for_a_server_may_read_the_first() -> None:
    changed = Payload(b'{"model": "a", "model": "b"}').with_changes({"model": "c"})
    assert changed == b'{"model": "c", "model": "c"}'


def test_only_the_outermost_field_of_that_name_changes() -> None:
    body = b'{"tools": [{"model": "a"}], "model": "b", "text": "\\"model\\": 1"}'
    assert Payload(body).with_changes({"model": "c"}) == body.replace(b'"b"', b'"c"')


def test_a_missing_field_is_added_at_the_end() -> None:
    assert Payload(b'{"a":1 }').with_changes({"b": 2}) == b'{"a":1 , "b": 2}'
    assert Payload(b" {} ").with_changes({"b": 2}) == b' {"b": 2} '


# --- what a config changes --------------------------------------------------------------


@given(written(), st.lists(KEYS, max_size=3), CHANGES, CHANGES)
def test_fields_are_stripped_then_added_where_they_lack_then_fixed(
    body: tuple[str, list[tuple[str, Any]]],
    strip: list[str],
    default: dict[str, Any],
    fixed: dict[str, Any],
) -> None:
    text, _ = body
    before = json.loads(text)
    changed = Payload(text.encode()).changed(strip, default, fixed)
    left = {name: value for name, value in before.items() if name not in strip}
    expected = {**default, **left, **fixed}
    assert changed.fields == expected == json.loads(changed.with_changes({}))


@given(written(), st.lists(KEYS, max_size=3), CHANGES)
def test_where_nothing_is_to_be_changed_the_bytes_are_the_same(
    body: tuple[str, list[tuple[str, Any]]], strip: list[str], default: dict[str, Any]
) -> None:
    text, _ = body
    payload = Payload(text.encode())
    absent = [name for name in strip if name not in payload.fields]
    present = {name: value for name, value in default.items() if name in payload.fields}
    assert payload.changed(absent, present, payload.fields) is payload


@given(written(), st.lists(KEYS, max_size=3))
def test_what_is_left_of_a_stripped_body_is_as_it_was_written(
    body: tuple[str, list[tuple[str, Any]]], strip: list[str]
) -> None:
    text, fields = body
    left = Payload(text.encode()).changed(strip, {}, {}).with_changes({}).decode()
    for ascii_only in (False, True):
        kept = [
            json.dumps(value, ensure_ascii=ascii_only) for key, value in fields if key not in strip
        ]
        if all(value in text for value in kept):
            assert all(value in left for value in kept)


def test_true_is_not_one() -> None:
    assert Payload(b'{"n": 1}').changed((), {}, {"n": True}).with_changes({}) == b'{"n": true}'


def test_a_stripped_field_takes_its_separator_along() -> None:
    body = b'{ "a" : 1 , "b":2,\n "c": 3 }'
    without = {name: Payload(body).changed([name], {}, {}).with_changes({}) for name in "abc"}
    assert without == {
        "a": b'{ "b":2,\n "c": 3 }',
        "b": b'{ "a" : 1,\n "c": 3 }',
        "c": b'{ "a" : 1 , "b":2 }',
    }
