"""Heads of answers, as far as they have come."""

from __future__ import annotations

import pytest

from manager.streams import NotHttp, read_head

EARLY = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"


def test_interim_answers_need_not_be_kept() -> None:
    assert read_head(EARLY * 3) == (None, len(EARLY) * 3)
    assert read_head(EARLY * 3 + OK[:20]) == (None, len(EARLY) * 3)
    head, at = read_head(EARLY * 20_000 + OK + b"{}")  # more bytes than a head may have
    assert head is not None
    assert (head.status, at) == (200, len(EARLY) * 20_000 + len(OK))


@pytest.mark.parametrize("end", [b"", b"\r\n\r\n"], ids=["without an end", "whole"])
@pytest.mark.parametrize("before", [b"", EARLY])
def test_a_head_is_bounded(before: bytes, end: bytes) -> None:
    with pytest.raises(NotHttp, match="longer than 256 KB"):
        read_head(before + b"HTTP/1.1 200 OK\r\nX: " + b"x" * (1 << 18) + end)


@pytest.mark.parametrize("began", [b"", b"H", b"HTTP/1.1 200 OK\r\nX: y\r\n"])
def test_more_may_come(began: bytes) -> None:
    assert read_head(began) == (None, 0)


@pytest.mark.parametrize("sent", [b"X", b"HTTP/2", b"HTTP/1.1 OK\r\n\r\n"])
def test_what_is_no_answer_is_rejected(sent: bytes) -> None:
    with pytest.raises(NotHttp):
        read_head(sent)
