"""A compressed body: read as it was before, never to more bytes than a plain one may have."""

from __future__ import annotations

import contextlib
import gzip
import sys
import tracemalloc
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.errors import ApiError
from manager.relay import content_encoding

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MB = 1 << 20


def bare(body: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(body) + compressor.flush()


CODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "Deflate": bare,
    "zstd": zstd.compress,
    "identity": lambda body: body,
}
CODINGS = st.lists(st.sampled_from(sorted(CODERS)), max_size=4)
COMPRESSED = pytest.mark.parametrize(
    ("name", "encode"), [pair for pair in CODERS.items() if pair[0] != "identity"]
)


def refusal(body: bytes, codings: str, limit: int = MB) -> ApiError:
    with pytest.raises(ApiError) as caught:
        content_encoding.decode(body, codings, limit)
    return caught.value


@given(st.binary(max_size=2000), CODINGS)
def test_codings_are_taken_off_in_the_order_opposite_to_the_headers(
    body: bytes, codings: list[str]
) -> None:
    encoded = body
    for name in codings:
        encoded = CODERS[name](encoded)
    assert content_encoding.decode(encoded, ", ".join(codings), MB) == body


@COMPRESSED
@given(body=st.binary(max_size=300), data=st.data())
def test_a_body_that_breaks_off_anywhere_is_the_clients_error(
    name: str, encode: Callable[[bytes], bytes], body: bytes, data: st.DataObject
) -> None:
    encoded = encode(body)
    cut = encoded[: data.draw(st.integers(0, len(encoded) - 1))]
    error = refusal(cut, name)
    assert (error.status, error.code) == (400, "invalid_encoding")


@COMPRESSED
@given(body=st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(
    name: str, encode: Callable[[bytes], bytes], body: bytes
) -> None:
    del encode
    with contextlib.suppress(ApiError):
        assert len(content_encoding.decode(body, name, MB)) <= MB


@COMPRESSED
def test_a_body_may_have_as_many_bytes_as_allowed_and_not_one_more(
    name: str, encode: Callable[[bytes], bytes]
) -> None:
    assert len(content_encoding.decode(encode(b" " * MB), name, MB)) == MB
    error = refusal(encode(b" " * (MB + 1)), name)
    assert (error.status, error.code) == (413, "body_too_large")
    assert "max_body_mb" in error.message
    assert "1 MB" in error.message


@COMPRESSED
def test_a_bomb_takes_no_more_memory_than_a_body_may_have(
    name: str, encode: Callable[[bytes], bytes]
) -> None:
    bomb = encode(encode(b"\0" * (64 * MB)))
    tracemalloc.start()
    try:
        assert refusal(bomb, f"{name}, {name}").status == 413
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 8 * MB


@pytest.mark.parametrize("name", ["gzip", "zstd"])
def test_several_in_a_row_are_one_body(name: str) -> None:
    encode = CODERS[name]
    assert content_encoding.decode(encode(b'{"a":') + encode(b"") + encode(b"1}"), name, MB) == (
        b'{"a":1}'
    )


@pytest.mark.parametrize("name", ["gzip", "zstd"])
def test_of_endless_empty_ones_in_a_row_a_few_are_read(name: str) -> None:
    assert "in a row" in refusal(CODERS[name](b"") * 1001, name).message


@COMPRESSED
def test_what_is_behind_the_end_is_refused(name: str, encode: Callable[[bytes], bytes]) -> None:
    assert refusal(encode(b"{}") + b"\x01more", name).code == "invalid_encoding"


@pytest.mark.parametrize("codings", ["br", "gzip, br", "gzip;q=1", "*", "compress", "x" * 5000])
def test_an_unknown_coding_is_refused_with_those_that_are_known(codings: str) -> None:
    error = refusal(b"", codings)
    assert (error.status, error.code) == (415, "unsupported_encoding")
    assert "gzip, deflate, zstd and identity" in error.message
    assert len(error.message) < 200


def test_a_few_codings_on_top_of_each_other_are_enough() -> None:
    assert refusal(b"", ", ".join(["gzip"] * 5)).status == 415
