"""What a ready server is asked where it may no longer serve. I/O, never under a lock."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass

from manager.config import loader
from manager.interfaces import Interface, error_in
from manager.models.health import Stage
from manager.models.server import ModelDependencies, Server
from manager.relay import Exchange, Upstream, UpstreamError, encoded_form

log = logging.getLogger(__name__)

HEALTH_TIMEOUT_SECONDS = 5.0
MAX_QUOTED_BYTES = 300  # of an answer, in a reason
MAX_ANSWER_BYTES = 1 << 20  # that are read of any other answer
_MAX_HEALTH_BYTES = 1 << 16  # that are read: a provider may list hundreds of models


@dataclass(frozen=True)
class ProbeRequest:
    """What a server is asked: ``content_type`` is that of the body, where there is one."""

    method: str
    path: str
    content_type: str = ""
    body: bytes = b""

    def exchange(self, timeout: float) -> Exchange:
        headers = [("Content-Type", self.content_type)] if self.body else []
        return Exchange(self.method, self.path, headers, self.body, timeout=timeout)


def one_token_request(interface: Interface, settings: loader.Model) -> ProbeRequest | None:
    """The smallest real request to a model of this mode; None where none is small."""
    probe = interface.probe(settings.served_model_name or settings.name)
    if probe is None:
        return None
    path, fields = probe
    if interface.endpoint(path).is_form:
        body, content_type = encoded_form(fields)
    else:
        body, content_type = json.dumps(fields).encode(), "application/json"
    return ProbeRequest("POST", path, content_type, body)


def is_well(status: int) -> bool:
    """401 and 403 are the answers of a server that wants a key even for its health."""
    return status < 400 or status in (401, 403)


def health_path_after(path: str, status: int) -> str | None:
    """The path to ask instead, where a server has none of that name."""
    return "/v1/models" if path == "/health" and status in (404, 405, 501) else None


def find_fault(
    asked: Stage,
    server: Server,
    shared: ModelDependencies,
    timeout: float,
    is_over: Callable[[], bool],
) -> str | None:
    """What is wrong with the server's health, or with its answer to a request for one token
    within ``timeout`` seconds; None where nothing is.

    Once ``is_over``, which is polled meanwhile, nobody wants to know any more, and it returns.
    """
    probe = _Probe(server, shared, is_over)
    try:
        return probe.health() if asked is Stage.HEALTH else probe.token(timeout)
    except Exception:
        # A fault of ours, or of a plugin's probe: no reason to stop a server.
        log.exception("checking %s failed", server.settings.name)
        return None


class _Probe:
    def __init__(
        self, server: Server, shared: ModelDependencies, is_over: Callable[[], bool]
    ) -> None:
        self._server = server
        self._shared = shared
        self._is_over = is_over

    def health(self) -> str | None:
        path: str | None = "/health"
        status = 0
        while path is not None:
            asked = path
            try:
                status, _ = self._ask(
                    ProbeRequest("GET", asked), HEALTH_TIMEOUT_SECONDS, _MAX_HEALTH_BYTES
                )
            except UpstreamError as error:
                return f"{asked}: {error}"
            if is_well(status):
                return None
            path = health_path_after(asked, status)
        if self._server.launched is None and status < 500:
            return None  # a provider answers, and need not have either path
        return f"{asked} answered {status}"

    def token(self, timeout: float) -> str | None:
        request = one_token_request(self._server.interface, self._server.settings)
        if request is None:
            return self.health()
        try:
            status, answer = self._ask(request, timeout)
        except UpstreamError as error:
            return f"a one-token request to {request.path}: {error}"
        inner = error_in(answer) if status < 300 else None
        if (inner.status if inner else status) < 500:
            return None  # a 4xx is an answer, too
        return f"a one-token request to {request.path} got {status}: {answer[:MAX_QUOTED_BYTES]!r}"

    def _ask(
        self, request: ProbeRequest, timeout: float, most: int = MAX_ANSWER_BYTES
    ) -> tuple[int, bytes]:
        return ask(self._server.upstream, self._shared, request, timeout, self._is_over, most)


def ask(
    upstream: Upstream,
    shared: ModelDependencies,
    request: ProbeRequest,
    timeout: float,
    is_over: Callable[[], bool],
    most: int = MAX_ANSWER_BYTES,
) -> tuple[int, bytes]:
    """Status and body of an answer that is whole within ``timeout`` seconds, of one that has more
    than ``most`` bytes its beginning. Once ``is_over``, which is polled, nobody wants it any more.
    Raises UpstreamError."""
    exchange = request.exchange(timeout)
    # Silence ends at the time-out; so does an answer that comes byte by byte.
    now = shared.clock.monotonic
    deadline = now() + timeout
    token = shared.watch.add(lambda: is_over() or now() > deadline, exchange.abort)
    try:
        response = upstream.send(exchange)
        answer = bytearray()
        for piece in response.iter_bytes():
            answer += piece
            if len(answer) > most:
                response.discard()
                break
        return response.status, bytes(answer)
    except UpstreamError as error:
        if exchange.aborted:
            raise UpstreamError(f"no whole answer within {timeout:g} seconds") from error
        raise
    finally:
        shared.watch.remove(token)
