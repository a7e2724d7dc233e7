"""What sends the answer to one request on a client's connection, in waitress or beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from waitress.channel import ClientDisconnected
from waitress.task import ErrorTask, WSGITask
from waitress.utilities import build_http_date

from manager.errors import ApiError
from manager.interfaces import error_body
from manager.relay import ClientHead, Headers
from routes.http.client import SANDBOX, cors_headers, may_use_models
from routes.http.request_parser import MAX_HEADERS

if TYPE_CHECKING:
    from routes.http.channel import Channel

MAX_HEADER_BYTES = 1 << 16
_CODES = {
    408: "request_timeout",
    413: "body_too_large",
    431: "headers_too_large",
    500: "internal_error",
    507: "body_not_stored",
}


class Answer(Protocol):
    """An answer's body; ``close`` releases what it holds."""

    def __iter__(self) -> Iterator[bytes]: ...
    def close(self) -> None: ...


class RefusedRequest(ErrorTask):
    """What waitress refuses by itself, in the shape of all other errors."""

    def execute(self) -> None:
        # Before the loop can come to close what this one sends.
        self.channel.refused = True
        fault = self.request.error
        limit = self.channel.adj.max_request_body_size - 1
        messages = {
            413: f"The request's body is larger than max_body_mb allows ({limit >> 20} MB)",
            431: f"The request's headers are larger than {MAX_HEADER_BYTES >> 10} KB, or more than"
            f" {MAX_HEADERS}",
            408: fault.body,
            507: fault.body,
            500: "An internal error; the program's log has more",
        }
        code = _CODES.get(fault.code, "bad_request")
        error = ApiError(
            fault.code, code, messages.get(fault.code, f"{fault.reason}: {fault.body}")
        )
        body = json.dumps(error_body(self.request.path_and_origin()[0], error)).encode()
        self.status = f"{fault.code} {fault.reason}"
        self.response_headers.append(("Content-Type", "application/json"))
        self.response_headers.append(("Content-Security-Policy", SANDBOX))
        self.response_headers.extend(self._cors_headers())
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)

    def _cors_headers(self) -> list[tuple[str, str]]:
        """A browser hides a response without them from its page, which then only knows that the
        network has failed."""
        path, origin = self.request.path_and_origin()
        allowed = self.channel.server.cors_origins()
        if origin is None or not may_use_models(path, origin, allowed):
            return []
        return [*cors_headers(origin).items(), ("Vary", "Origin")]


class Answering(WSGITask):
    """waitress's task with fewer, larger writes: each system call releases the GIL, for which
    hundreds of threads then wait. Its connection can be lent to a relay process."""

    channel: Channel
    resumed: Callable[[], Answer] | None = None  # the answer, after a wait for it
    response_headers: Headers

    def get_environment(self) -> dict[str, Any]:
        environ: dict[str, Any] = super().get_environment()
        environ["llm_manager.lend_client"] = self._lend
        return environ

    def _lend(self) -> LentConnection:
        return LentConnection(self.channel, self)

    def execute(self) -> None:
        if self.resumed is None:
            if not self.channel.connected:
                raise ClientDisconnected  # before the application does anything for it
            super().execute()
            return
        # Also for a client that has disconnected: what the request holds is released there.
        answer = self.resumed()
        try:
            for piece in answer:
                self.write(piece)
        finally:
            answer.close()

    def client_head(self) -> ClientHead:
        """What is known of the head of an answer that another writes."""
        connection = self.request.headers.get("CONNECTION", "").lower()
        is_new = self.version == "1.1"
        headers = [
            *self._own_headers(),
            ("Server", self.channel.adj.ident),
            ("Date", build_http_date(self.start_time)),
        ]
        keeps_alive = connection != "close" if is_new else connection == "keep-alive"
        return ClientHead(int(is_new), keeps_alive, headers)

    def _own_headers(self) -> Headers:
        """Flask's type of what it takes for an empty page is none of ours."""
        return [one for one in self.response_headers if one[0].lower() != "content-type"]

    def set_head(self, status: str, headers: Headers) -> None:
        self.status = status
        self.response_headers = [*headers, *self._own_headers()]
        lengths = [int(value) for name, value in headers if name.lower() == "content-length"]
        self.content_length = lengths[0] if lengths else None

    def set_close_on_finish(self) -> None:
        """waitress closes after every answer of unknown length; one in chunks says itself where it
        ends."""
        if not self.chunked_response:
            super().set_close_on_finish()

    def finish(self) -> None:
        if not self.wrote_header:
            self.write(b"")
        if self.request.command == "HEAD":
            self.chunked_response = False  # only its head: no chunk comes, not the last one either
        super().finish()

    def write(self, data: bytes) -> None:
        if not data:
            super().write(data)
        elif not self.wrote_header:
            # The head goes out together with the first bytes of the body.
            self.channel.hold()
            try:
                super().write(data)
            finally:
                self.channel.send_held()
        elif self.chunked_response:
            self.channel.write_soon(b"%X\r\n%b\r\n" % (len(data), data))
        else:
            super().write(data)


class LentConnection:
    """A client's connection while another writes the answer to it; see ClientConnection.

    Raises ClientDisconnected."""

    def __init__(self, channel: Channel, task: Answering) -> None:
        self.socket = channel.leave_loop()
        self._channel = channel
        self._task = task

    @property
    def head(self) -> ClientHead:
        return self._task.client_head()

    def take_back(self, goes_on: bool, data: bytes) -> None:
        self._channel.enter_loop(data)
        self._channel.end_request(close=not goes_on)

    def keep(self) -> None:
        self._channel.enter_loop()

    def set_head(self, status: str, headers: Headers) -> None:
        self._task.set_head(status, headers)

    def go_on(self, make: Callable[[], Answer], data: bytes) -> None:
        self._channel.enter_loop(data)
        self._task.resumed = make
        self._channel.server.add_task(_Resumed(self._channel, self._task))


class _Resumed:
    """A request whose answer was waited for, as the thread pool takes it."""

    def __init__(self, channel: Channel, task: Answering) -> None:
        self._channel = channel
        self._task = task

    def service(self) -> None:
        self._channel.serve_by(self._task)

    def cancel(self) -> None:
        assert self._task.resumed is not None
        self._task.resumed().close()  # which ends what it holds
        self._channel.cancel()
