"""What a client of Ollama's gets of a model's answer: status, headers, body."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from manager.relay import RelayResponse, ollama
from manager.relay.ollama import translate
from manager.relay.request import TruncatedResponse

FORM = ollama.Form(ollama.Kind.CHAT, "m", 0.0, 0.0, 0.0)
ANSWER = {"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}]}
EVENT = b'data: {"choices": [{"delta": {"content": "Hi"}, "finish_reason": "stop"}]}\n\n'


class Played:
    """A model's answer, and whether it was closed."""

    def __init__(self, pieces: Iterable[bytes], status: str = "200 OK", **headers: str) -> None:
        given = [(name.replace("_", "-"), value) for name, value in headers.items()]
        self.is_closed = False
        self.answer = RelayResponse(status, given, iter(pieces), self.close)

    def close(self) -> None:
        self.is_closed = True

    def translated(self, *, asks_for_stream: bool = False) -> RelayResponse:
        return ollama.translated(self.answer, FORM, lambda: 1.0, asks_for_stream=asks_for_stream)


def body_of(answer: RelayResponse) -> Any:
    return json.loads(b"".join(answer))


def test_an_answer_has_its_new_length_and_type_and_the_servers_other_headers() -> None:
    played = Played([json.dumps(ANSWER).encode()], Content_Length="7", X_Own="1")
    answer = played.translated()
    body = b"".join(answer)
    assert answer.status == "200 OK"
    assert sorted(answer.headers) == [
        ("Content-Length", str(len(body))),
        ("Content-Type", "application/json"),
        ("X-Own", "1"),
    ]
    assert not played.is_closed
    answer.close()
    assert played.is_closed


def test_a_stream_is_passed_on_piece_by_piece() -> None:
    taken = []

    def pieces() -> Iterator[bytes]:
        for piece in (EVENT, b": ping\n\n", b"data: [DONE]\n\n"):
            taken.append(piece)
            yield piece

    kind = "text/event-stream; charset=utf-8"
    played = Played(pieces(), Content_Type=kind, X_Accel_Buffering="no")
    answer = played.translated(asks_for_stream=True)
    assert dict(answer.headers) == {
        "Content-Type": "application/x-ndjson",
        "X-Accel-Buffering": "no",
    }
    assert json.loads(next(answer))["message"]["content"] == "Hi"
    assert taken == [EVENT]
    assert body_of(answer)["done"] is True
    answer.close()
    assert played.is_closed


def test_a_server_that_answers_a_stream_with_json_ends_it_with_the_first_line() -> None:
    answer = Played([json.dumps(ANSWER).encode()]).translated(asks_for_stream=True)
    assert dict(answer.headers)["Content-Type"] == "application/x-ndjson"
    assert body_of(answer)["done"] is True


@pytest.mark.parametrize("status", ["400 Bad Request", "429 Slow Down", "529 Overloaded"])
def test_a_refusal_keeps_its_status_and_says_why(status: str) -> None:
    error = {"error": {"message": "too much", "code": None}}
    answer = Played([json.dumps(error).encode()], status, Retry_After="3").translated()
    assert answer.status.split()[0] == status.split()[0]
    assert ("Retry-After", "3") in answer.headers
    assert body_of(answer) == {"error": "too much"}


def test_an_answer_that_breaks_off_is_an_error() -> None:
    def pieces() -> Iterator[bytes]:
        yield b'{"choices": ['
        raise TruncatedResponse("the server has gone")

    answer = Played(pieces()).translated()
    assert answer.status == "502 Bad Gateway"
    assert body_of(answer) == {"error": "the server has gone"}


def test_an_answer_that_is_too_large_is_read_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(translate, "_MAX_WHOLE", 2 << 20)
    pieces = iter([b" " * (1 << 20)] * 5)
    answer = Played(pieces).translated()
    assert answer.status == "502 Bad Gateway"
    assert body_of(answer) == {"error": "the model's answer is larger than 2 MB"}
    assert len(list(pieces)) == 2


def test_whatever_else_happens_the_answer_is_closed() -> None:
    def pieces() -> Iterator[bytes]:
        yield b"{"
        raise KeyboardInterrupt

    played = Played(pieces())
    with pytest.raises(KeyboardInterrupt):
        played.translated()
    assert played.is_closed
