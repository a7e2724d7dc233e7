"""Chunked framing: taken off whatever has arrived."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.streams.chunked import ChunkedDecoder, NotChunked

END = b"0\r\n\r\n"


def encoded(chunks: list[bytes], extension: bytes = b"", trailers: bytes = b"") -> bytes:
    framed = [b"%x%b\r\n%b\r\n" % (len(chunk), extension, chunk) for chunk in chunks if chunk]
    return b"".join(framed) + b"0" + extension + b"\r\n" + trailers + b"\r\n"


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """The data in pieces, which may be empty."""
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def decoded(pieces: list[bytes]) -> tuple[bytes, ChunkedDecoder]:
    decoder = ChunkedDecoder()
    return b"".join(decoder.feed(piece) for piece in pieces), decoder


def outcome(pieces: list[bytes]) -> tuple[bytes, bytes | None] | None:
    """The body and what came behind it, None while it has no end; or None if it is refused."""
    decoder = ChunkedDecoder()
    body = b""
    for number, piece in enumerate(pieces, 1):
        try:
            body += decoder.feed(piece)
        except NotChunked:
            return None
        if decoder.finished:
            return body, decoder.rest + b"".join(pieces[number:])
    return body, None


CHUNKS = st.lists(st.binary(max_size=60) | st.just(b"0\r\n\r\n") | st.just(b"\r\n"), max_size=8)
PLACES = st.lists(st.integers(0, 2**16), max_size=30)
EXTENSION = st.sampled_from([b"", b";a", b'; name="value"', b" ", b"\t;x=1"])
TRAILERS = st.sampled_from([b"", b"X-A: 1\r\n", b"X-A: 1\r\nX-B: 2\r\n"])


@given(CHUNKS, EXTENSION, TRAILERS, PLACES)
def test_however_the_bytes_are_cut_the_body_is_the_same(
    chunks: list[bytes], extension: bytes, trailers: bytes, places: list[int]
) -> None:
    body, decoder = decoded(cut(encoded(chunks, extension, trailers), places))
    assert body == b"".join(chunks)
    assert decoder.finished
    assert decoder.rest == b""


@given(CHUNKS, TRAILERS)
def test_byte_by_byte_is_the_same_too(chunks: list[bytes], trailers: bytes) -> None:
    data = encoded(chunks, trailers=trailers)
    body, decoder = decoded([data[at : at + 1] for at in range(len(data))])
    assert body == b"".join(chunks)
    assert decoder.finished


@given(CHUNKS, st.binary(max_size=20))
def test_what_comes_behind_the_body_is_not_part_of_it(chunks: list[bytes], behind: bytes) -> None:
    body, decoder = decoded([encoded(chunks) + behind])
    assert body == b"".join(chunks)
    assert decoder.finished
    assert decoder.rest == behind


@given(CHUNKS, TRAILERS, st.data())
def test_a_body_that_is_cut_short_is_never_taken_for_a_whole_one(
    chunks: list[bytes], trailers: bytes, data: st.DataObject
) -> None:
    whole = encoded(chunks, trailers=trailers)
    end = data.draw(st.integers(0, len(whole) - 1))
    body, decoder = decoded([whole[:end]])
    assert not decoder.finished
    assert b"".join(chunks).startswith(body)


def test_data_is_returned_before_its_chunk_is_complete() -> None:
    decoder = ChunkedDecoder()
    assert decoder.feed(b"a\r\n01234") == b"01234"
    assert decoder.feed(b"56") == b"56"


def test_many_chunks_that_arrived_together_are_returned_as_one() -> None:
    assert ChunkedDecoder().feed(b"1\r\na\r\n" * 500) == b"a" * 500


def test_sizes_may_be_written_in_capitals_and_with_zeros_before_them() -> None:
    body, decoder = decoded([b"0A\r\n0123456789\r\n" + b"0" * 8 + b"\r\n\r\n"])
    assert body == b"0123456789"
    assert decoder.finished


@pytest.mark.parametrize(
    "data",
    [
        b"hello\r\n",
        b"-5\r\nhello\r\n",
        b"0x5\r\nhello\r\n",
        b"\r\nhello\r\n",
        b"5\nhello\n0\n\n",  # bare line ends: what another server would read otherwise
        b"5\r\nhello world\r\n",  # longer than it said
        b"5\r\nhello w0\r\n\r\n",
        b"5\r\nhello\n0\r\n\r\n",
        b"5\r\nhel\r\n0\r\n\r\n",  # shorter than it said
        b"f" * 16 + b"\r\n",
        b"5;" + b"x" * 5000,
        b"0\r\n" + b"X: y\r\n" * 20_000,
    ],
)
def test_what_is_not_chunked_is_rejected(data: bytes) -> None:
    with pytest.raises(NotChunked):
        decoded([data])
    with pytest.raises(NotChunked):
        decoded([data[at : at + 7] for at in range(0, len(data), 7)])


def test_what_came_whole_before_a_malformed_chunk_is_not_lost() -> None:
    decoder = ChunkedDecoder()
    assert decoder.feed(b"3\r\none\r\n3\r\nt") == b"onet"
    with pytest.raises(NotChunked) as caught:
        decoder.feed(b"wo\r\n5\r\nthree\r\nZZ\r\n")
    assert caught.value.data == b"wothree"


@given(
    st.lists(
        st.sampled_from([b"5\r\nhello\r\n", b"0\r\n", b"\r\n", b"\n", b"\r", b"a", b"5", b";"])
        | st.binary(max_size=3),
        max_size=12,
    ).map(b"".join),
    PLACES,
)
def test_bytes_of_any_kind_fare_the_same_however_they_are_cut(
    data: bytes, places: list[int]
) -> None:
    assert outcome(cut(data, places)) == outcome([data])
