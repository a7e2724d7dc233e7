"""Forms: read out of a file, in pieces of any size, and changed in place."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from multipart import MultipartParser
from werkzeug.formparser import MultiPartParser

from manager.errors import ApiError
from manager.relay import Form
from manager.relay.form import MAX_PARTS, MAX_TEXT

BOUNDARY = "----b0undary"
Part = tuple[str, str | None, bytes]  # its name, its file's name, its content

names = st.text("ab[]-_é", min_size=1, max_size=8)
texts = st.text(max_size=40).map(lambda text: text.encode())
contents = st.binary(max_size=60) | st.sampled_from([b"\r\n", b"\r\n-", b"--", b"\r\n--", b"\n"])
parts_of_a_form = st.lists(
    st.tuples(names, st.none(), texts)
    | st.tuples(names, st.text("ab. ", min_size=1, max_size=8), contents),
    min_size=1,
    max_size=8,
)
values = st.text(max_size=20) | st.booleans() | st.integers() | st.lists(st.integers(), max_size=3)
fields = st.dictionaries(names, values, max_size=4)


class Slow(io.BytesIO):
    """A file of which so many bytes are read at a time."""

    def __init__(self, content: bytes, size: int) -> None:
        super().__init__(content)
        self._at_most = size

    def read(self, size: int | None = -1) -> bytes:
        wanted = self._at_most if size is None or size < 0 else min(size, self._at_most)
        return super().read(wanted)


def written(parts: list[Part], boundary: str = BOUNDARY, end: bytes = b"\r\n") -> bytes:
    delimiter = f"--{boundary}".encode()
    body = b""
    for name, filename, content in parts:
        file = "" if filename is None else f'; filename="{filename}"'
        head = f'\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode()
        body += delimiter + head + content + b"\r\n"
    return body + delimiter + b"--" + end


def form_of(*parts: Part) -> Form:
    return Form(io.BytesIO(written(list(parts))), BOUNDARY)


def sent(form: Form, **changes: Any) -> bytes:
    spooled = form.with_changes(changes)
    body = b"".join(spooled)
    assert len(body) == len(spooled)
    return body


def read(body: bytes, boundary: str = BOUNDARY) -> list[Part]:
    """As the library reads it, and as werkzeug does."""
    found = [
        (part.name, part.filename, part.raw)
        for part in MultipartParser(io.BytesIO(body), boundary, strict=False)
    ]
    fields, files = MultiPartParser().parse(io.BytesIO(body), boundary.encode(), len(body))
    for name in {name for name, _, _ in found}:
        of_name = [(filename, raw) for one, filename, raw in found if one == name]
        raws = [raw for filename, raw in of_name if filename is None]
        assert [text.encode() for text in fields.getlist(name)] == raws
        uploads = [(file.filename, file.read()) for file in files.getlist(name)]
        assert uploads == [one for one in of_name if one[0] is not None]
    return found


def refused(make: Callable[[], object]) -> str:
    with pytest.raises(ApiError) as caught:
        make()
    assert (caught.value.status, caught.value.code) == (400, "invalid_form")
    return caught.value.message


@given(
    parts_of_a_form,
    st.sampled_from(["x", "-", "--", BOUNDARY, "a b'c"]),
    st.integers(1, 300),
    st.sampled_from([b"", b"\r\n", b"\r\nbehind it"]),
    st.sampled_from([b"", b"\r\n", b"before it\r\n"]),
)
def test_a_form_that_is_not_changed_goes_on_byte_for_byte(
    parts: list[Part], boundary: str, size: int, end: bytes, start: bytes
) -> None:
    assume(len([name for name, _, _ in parts if name == "model"]) < 2)
    delimiter = f"--{boundary}".encode()
    body = written(parts, boundary, end)
    assume(body.count(delimiter) == len(parts) + 1 == body.count(b"\r\n" + delimiter) + 1)
    body = start + body
    form = Form(Slow(body, size), boundary)
    assert form.changed((), {}, {}) is form
    assert sent(form) == body
    assert form.fields == {
        name: content.decode() for name, filename, content in parts if filename is None
    }


@given(parts_of_a_form, st.sets(names, max_size=3), fields, fields, fields, st.integers(1, 300))
def test_fields_are_changed_and_all_else_is_as_it_was(
    parts: list[Part],
    strip: set[str],
    default: dict[str, Any],
    fixed: dict[str, Any],
    changes: dict[str, Any],
    size: int,
) -> None:
    body = written(parts)
    assume(body.count(f"--{BOUNDARY}".encode()) == len(parts) + 1)
    changed = Form(Slow(body, size), BOUNDARY).changed(strip, default, fixed)
    found = read(sent(changed, **changes))

    left = {name for name, _, _ in parts} - (strip - fixed.keys())
    expected = {name: value for name, value in default.items() if name not in left}
    expected |= fixed | changes
    untouched = [part for part in parts if part[0] in left and part[0] not in expected]
    assert [part for part in found if part[0] not in expected] == untouched
    for name, value in expected.items():
        text = value if isinstance(value, str) else json.dumps(value)
        assert [part for part in found if part[0] == name] == [(name, None, text.encode())]


def test_the_model_may_come_last_and_is_replaced_where_it_is() -> None:
    form = form_of(("file", "a.wav", b"RIFF\r\n--x"), ("model", None, b"mine"))
    assert form.fields["model"] == "mine"
    assert read(sent(form, model="theirs")) == [
        ("file", "a.wav", b"RIFF\r\n--x"),
        ("model", None, b"theirs"),
    ]


def test_a_field_that_is_given_more_than_once_is_left_as_it_is() -> None:
    parts: list[Part] = [("kinds[]", None, b"word"), ("kinds[]", None, b"segment")]
    form = form_of(*parts)
    assert form.fields == {"kinds[]": "segment"}
    assert read(sent(form.changed((), {"kinds[]": "x"}, {}))) == parts
    assert read(sent(form.changed((), {}, {"kinds[]": "segment"}))) == [parts[1]]


def test_files_are_stripped_and_replaced_by_their_names_too() -> None:
    form = form_of(("mask", "m.png", b"1"), ("image", "i.png", b"2"))
    assert read(sent(form.changed(["mask"], {}, {}))) == [("image", "i.png", b"2")]
    assert read(sent(form.changed([], {}, {"mask": "none"})))[0] == ("mask", None, b"none")


def test_a_form_of_which_all_is_stripped_is_still_one() -> None:
    assert sent(form_of(("a", None, b"1")).changed(["a"], {}, {})) == b"--%b--\r\n" % (
        BOUNDARY.encode()
    )


def test_what_is_no_text_is_written_as_in_json() -> None:
    form = form_of(("a", None, b"1")).changed([], {}, {"x": True, "y": 0.5, "z": ["é", None]})
    assert form.fields == {"a": "1", "x": "true", "y": "0.5", "z": '["é", null]'}


def test_what_is_so_already_changes_nothing() -> None:
    form = form_of(("n", None, b"2"), ("stream", None, b"true"))
    assert form.changed(["x"], {"n": 3}, {"stream": True}) is form
    assert form.changed(["stream"], {}, {"stream": True}) is form


@pytest.mark.parametrize("value", [f"--{BOUNDARY}--", f"x\r\n--{BOUNDARY}\r\n", f"\n--{BOUNDARY}"])
def test_a_value_cannot_end_its_field(value: str) -> None:
    form = form_of(("a", None, b"1"))
    assert "field b" in refused(lambda: form.changed([], {}, {"b": value}))
    assert "field b" in refused(lambda: form.with_changes({"b": value}))


@pytest.mark.parametrize("line_end", [b"\n", b"\r", b"", b"x"])
def test_what_another_reader_could_take_for_a_part_is_refused(line_end: bytes) -> None:
    """Some servers take a line that ends in LF for a delimiter's."""
    hidden = b"%b--%b\nContent-Disposition: form-data; name=model\n\nother" % (
        line_end,
        BOUNDARY.encode(),
    )
    form = written([("model", None, b"mine"), ("file", "a", b"x" + hidden)])
    assert "boundary" in refused(lambda: Form(io.BytesIO(form), BOUNDARY))
    behind = written([("model", None, b"mine")]) + hidden
    assert "boundary" in refused(lambda: Form(io.BytesIO(behind), BOUNDARY))


def test_a_form_that_names_two_models_is_refused() -> None:
    message = refused(lambda: form_of(("model", None, b"a"), ("model", "f", b"b")))
    assert "model is there twice" in message


def test_long_texts_and_what_is_no_utf8_go_on_unread() -> None:
    parts: list[Part] = [
        ("long", None, b"x" * (MAX_TEXT + 1)),
        ("most", None, b"x" * MAX_TEXT),
        ("latin", None, b"\xe9"),
    ]
    form = form_of(*parts)
    assert form.fields == {"most": "x" * MAX_TEXT}
    defaults = {"long": "1", "latin": "2"}
    assert form.changed((), defaults, {}) is form
    assert sent(form) == written(parts)


def test_a_form_has_a_bounded_number_of_parts() -> None:
    parts: list[Part] = [("a", None, b"")] * MAX_PARTS
    form_of(*parts)
    refused(lambda: form_of(*parts, parts[0]))
    hidden = written([("a", "file", b"--%b" % BOUNDARY.encode() * MAX_PARTS * 2)])
    assert "more than" in refused(lambda: Form(io.BytesIO(hidden), BOUNDARY))


@pytest.mark.parametrize(
    ("body", "boundary", "why"),
    [
        (b"", BOUNDARY, "end of multipart stream"),
        (b"{}", BOUNDARY, "end of multipart stream"),
        (written([("a", None, b"1")])[:-6], BOUNDARY, "end of multipart stream"),
        (written([("a", None, b"1")]), "other", "end of multipart stream"),
        (b"x" + written([("a", None, b"1")]), BOUNDARY, "in front of first boundary"),
        (b"--b\r\nX: y\r\n\r\n1\r\n--b--", "b", "Content-Disposition"),
        (
            b"--b" + b"\r\nContent-Disposition: form-data; name=a" * 2 + b"\r\n\r\n1\r\n--b--",
            "b",
            "two names",
        ),
        *(
            (b"--b\r\nContent-Disposition: form-data; " + names + b"\r\n\r\n1\r\n--b--", "b", "two")
            for names in (
                b'name="language"; name="x"',
                b"name=\"x\"; name*=UTF-8''language",
                b"name*=UTF-8''language",
                b'name="x"; name*0="lang"; name*1="uage"',
            )
        ),
        (b"--b\r\nno header\r\n\r\n1\r\n--b--", "b", "segment header"),
        (written([]), "", "no boundary"),
        (written([]), "a\nb", "no boundary"),
        (written([]), "é", "no boundary"),
        (written([]), "x" * 300, "no boundary"),
    ],
)
def test_what_is_no_form_is_refused_with_the_reason(body: bytes, boundary: str, why: str) -> None:
    assert why in refused(lambda: Form(io.BytesIO(body), boundary))
