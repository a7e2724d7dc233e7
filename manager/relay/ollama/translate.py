"""The answer to one of Ollama's clients, made of that which a model's server sends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from http.client import BAD_GATEWAY, responses

from manager.relay.ollama.answer import Form, LineStream, error_line, refusal
from manager.relay.request import RelayResponse, TruncatedResponse

_LINES, _JSON = "application/x-ndjson", "application/json"
_STREAM = "text/event-stream"
_OF_THE_BODY = ("content-type", "content-length")
_MAX_WHOLE = 1 << 28  # bytes of an answer that is held: some thousand vectors


def translated(
    answer: RelayResponse, form: Form, monotonic: Callable[[], float], *, asks_for_stream: bool
) -> RelayResponse:
    """The answer of the endpoint that the request was translated for, as Ollama's clients expect
    it. One that is no stream is read here."""
    kind = next((value for name, value in answer.headers if name.lower() == "content-type"), "")
    if kind.lower().startswith(_STREAM):
        headers = [one for one in answer.headers if one[0].lower() != "content-type"]
        headers.append(("Content-Type", _LINES))
        return RelayResponse(answer.status, headers, _lines(answer, form, monotonic), answer.close)
    status = int(answer.status.split()[0])
    try:
        body = _read(answer)
    except TruncatedResponse as error:
        status, body = BAD_GATEWAY, error_line(str(error))
    except BaseException:
        answer.close()
        raise
    else:
        if status >= 300:
            body = refusal(body)
        elif len(body) > _MAX_WHOLE:
            status = BAD_GATEWAY
            body = error_line(f"the model's answer is larger than {_MAX_WHOLE >> 20} MB")
        else:
            status, body = form.whole(body, monotonic())
    return replaced(answer, body, status, as_line=asks_for_stream and status < 300)


def replaced(
    answer: RelayResponse, body: bytes, status: int = 200, *, as_line: bool = False
) -> RelayResponse:
    """The answer with this body in place of its own; ``as_line``: it is the only one of a
    stream."""
    headers = [one for one in answer.headers if one[0].lower() not in _OF_THE_BODY]
    headers += [("Content-Type", _LINES if as_line else _JSON), ("Content-Length", str(len(body)))]
    status_line = f"{int(status)} {responses.get(status, 'Error')}"
    return RelayResponse(status_line, headers, iter([body]), answer.close)


def _lines(answer: RelayResponse, form: Form, monotonic: Callable[[], float]) -> Iterator[bytes]:
    stream = LineStream(form)
    for piece in answer:
        if lines := stream.feed(piece, monotonic()):
            yield lines
    if lines := stream.close(monotonic()):
        yield lines


def _read(answer: RelayResponse) -> bytes:
    """The body, or as much of it as is too much. Raises TruncatedResponse."""
    pieces, size = [], 0
    for piece in answer:
        pieces.append(piece)
        size += len(piece)
        if size > _MAX_WHOLE:
            break
    return b"".join(pieces)
