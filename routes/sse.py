"""Server-sent events to a page: each holds a thread until the page disconnects."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from flask import Response, g, request

from manager.errors import ApiError
from routes.auth import Caller, is_still_authorized
from routes.services import Services


class _Stream:
    """A WSGI iterable that releases what it holds when it is closed, also before it began."""

    def __init__(self, pieces: Iterator[bytes], close: Callable[[], None]) -> None:
        self._pieces = pieces
        self._close: Callable[[], None] | None = close

    def __iter__(self) -> _Stream:
        return self

    def __next__(self) -> bytes:
        return next(self._pieces)

    def close(self) -> None:
        if self._close is not None:
            self._close()
            self._close = None


def stream_response(
    services: Services, pieces: Iterator[bytes], stop: Callable[[], None]
) -> Response:
    """Streams the pieces; ``stop`` is called when the client disconnects or is signed out or the
    program shuts down, to wake whatever makes them, and at the end. Raises ApiError 503 where no
    thread is left."""
    try:
        release = services.slots.acquire_stream()
    except ApiError:
        stop()  # releases what was to be streamed
        raise
    client_disconnected = request.environ["waitress.client_disconnected"]
    caller: Caller = g.caller

    def is_over() -> bool:
        return (
            client_disconnected()
            or services.closing.is_set()
            or not is_still_authorized(services, caller)
        )

    token = services.watch.add(is_over, stop)

    def close() -> None:
        services.watch.remove(token)
        stop()
        release()

    return Response(
        _Stream(pieces, close),
        mimetype="text/event-stream",
        # nginx would collect a stream until its buffer is full.
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        direct_passthrough=True,
    )
