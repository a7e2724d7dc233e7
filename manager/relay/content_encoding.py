"""A request's body without the codings that its Content-Encoding header names (RFC 9110, 8.4).

Pure: bytes in, bytes out. The result and each stage on the way to it are bounded, so that a few
kilobytes cannot become more memory than a plain body may take.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable
from typing import Protocol

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

from manager.errors import ApiError

_ACCEPTED = "gzip, deflate, zstd and identity"
_MAX_CODINGS = 4  # one after the other
# A gzip or zstd body may be several in a row; millions of empty ones would only burn time.
_MAX_MEMBERS = 1000
_PIECE = 1 << 16  # bytes of the body that are decoded at a time
_ZSTD_OPTIONS = {int(zstd.DecompressionParameter.window_log_max): 23}  # 8 MB, as in RFC 9659


class _Decoder(Protocol):
    """Of one member. All of its input is used unless there is more output than ``max_length``."""

    def decompress(self, data: memoryview, max_length: int, /) -> bytes: ...
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...


def decode(body: bytes, codings: str, limit: int) -> bytes:
    """The body as it was before ``codings``, the value of a Content-Encoding header, which names
    them in the order in which they were applied. ``limit`` is the most bytes that it may have.

    Raises ApiError 415 ``unsupported_encoding``, 400 ``invalid_encoding`` for a body that is cut or
    damaged, and 413 ``body_too_large``.
    """
    names = [name.strip().lower() for name in codings.split(",")]
    wanted = [name.removeprefix("x-") for name in names if name not in ("", "identity")]
    unknown = [name for name in wanted if name not in _DECODERS]
    if unknown or len(wanted) > _MAX_CODINGS:
        what = f"{unknown[0][:40]!r}" if unknown else f"more than {_MAX_CODINGS} in a row"
        raise ApiError(
            415,
            "unsupported_encoding",
            f"The Content-Encoding of the request is {what}; accepted are {_ACCEPTED}",
        )
    for name in reversed(wanted):
        body = _decoded(body, name, limit)
    return body


def _decoded(body: bytes, name: str, limit: int) -> bytes:
    view = memoryview(body)
    pieces: list[bytes] = []
    at, left = 0, limit
    try:
        for _ in range(_MAX_MEMBERS):
            decoder = _DECODERS[name](body)
            while not decoder.eof:
                piece = view[at : at + _PIECE]
                if not piece:
                    raise _invalid(name, "it breaks off before its end")
                at += len(piece)
                # One byte more than there may be shows that there is more.
                decoded = decoder.decompress(piece, left + 1)
                left -= len(decoded)
                if left < 0:
                    raise ApiError(
                        413,
                        "body_too_large",
                        "The request's body, decoded, is larger than max_body_mb allows"
                        f" ({limit >> 20} MB)",
                    )
                pieces.append(decoded)
            at -= len(decoder.unused_data)
            if at == len(body):
                return b"".join(pieces)
            if name == "deflate":  # of which there is one alone
                raise _invalid(name, "there is more behind its end")
    except (zlib.error, zstd.ZstdError) as error:
        raise _invalid(name, str(error)) from None
    raise _invalid(name, f"it is more than {_MAX_MEMBERS} in a row")


def _invalid(name: str, why: str) -> ApiError:
    return ApiError(
        400,
        "invalid_encoding",
        f"The request's body is not the {name} that its Content-Encoding says: {why}",
    )


def _gzip(_body: bytes) -> _Decoder:
    return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)


def _deflate(body: bytes) -> _Decoder:
    """By the standard in zlib's wrapping; some send it bare. A header of zlib's is a multiple of 31
    and says 8, with which no bare one begins whose padding is zero."""
    is_wrapped = len(body) > 1 and body[0] & 15 == 8 and (body[0] << 8 | body[1]) % 31 == 0
    return zlib.decompressobj(wbits=zlib.MAX_WBITS if is_wrapped else -zlib.MAX_WBITS)


def _zstd(_body: bytes) -> _Decoder:
    decoder: _Decoder = zstd.ZstdDecompressor(options=_ZSTD_OPTIONS)
    return decoder


_DECODERS: dict[str, Callable[[bytes], _Decoder]] = {
    "gzip": _gzip,
    "deflate": _deflate,
    "zstd": _zstd,
}
