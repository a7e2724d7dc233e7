"""What a ready server is asked where it may no longer serve. I/O, never under a lock."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass

from manager.config import NO_HEALTH, loader
from manager.interfaces import Interface, error_in
from manager.models import ports
from manager.models.health import Stage
from manager.models.server import ModelDependencies, Server
from manager.relay import Exchange, Upstream, UpstreamError, UpstreamRefused, encoded_form

log = logging.getLogger(__name__)

HEALTH_TIMEOUT_SECONDS = 5.0
MAX_QUOTED_BYTES = 300  # of an answer, in a reason
MAX_ANSWER_BYTES = 1 << 20  # that are read of any other answer
_HEALTH_PATHS = ("/health", "/v1/models")
_NO_SUCH_PATH = (404, 405, 501)  # statuses
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
    """The smallest real request to a model of this mode; None where none is small, or the config
    wants none."""
    if not settings.probe:
        return None
    probe = interface.probe(settings.served_model_name or settings.name)
    if probe is None:
        return None
    path, fields = probe
    if interface.endpoint(path).is_form:
        body, content_type = encoded_form(fields)
    else:
        body, content_type = json.dumps(fields).encode(), "application/json"
    return ProbeRequest("POST", path, content_type, body)


class HealthQuestion:
    """Whether a server is well, by the model's ``health``: it alone knows what is asked.

    Without that key it is ``/health``, and ``/v1/models`` from when the server has said that it has
    no such path.
    """

    def __init__(self, settings: loader.Model, upstream: Upstream) -> None:
        self._upstream = upstream
        self._is_remote = settings.url is not None
        self._is_written = settings.health is not None
        self._connects_only = settings.health == NO_HEALTH
        self._path = settings.health or _HEALTH_PATHS[0]

    @property
    def subject(self) -> str:
        """What is asked, as a reason says it."""
        return "its port" if self._connects_only else self._path

    def ask(self, send: Callable[[ProbeRequest], tuple[int, bytes]]) -> str | None:
        """What is wrong with the answer; None where nothing is. Raises what ``send`` raises, and
        UpstreamRefused."""
        if self._connects_only:
            self._connect()
            return None
        status, _ = send(ProbeRequest("GET", self._path))
        is_missing = status in _NO_SUCH_PATH
        if is_missing and not self._is_written and self._path == _HEALTH_PATHS[0]:
            self._path = _HEALTH_PATHS[1]
            return self.ask(send)
        # 401 and 403 are the answers of a server that wants a key even for its health.
        if status < 400 or status in (401, 403):
            return None
        if is_missing and self._is_written:
            return (
                f"{self._path} answered {status}: its server has no such path, which is what the"
                " model's health names; correct that, or take it out"
            )
        if self._is_remote and status < 500:
            return None  # a provider answers, and need not have either path
        return f"{self._path} answered {status}"

    def _connect(self) -> None:
        upstream = self._upstream
        try:
            ports.connect(upstream.host, upstream.port, HEALTH_TIMEOUT_SECONDS)
        except OSError as error:
            raise UpstreamRefused(
                f"nothing takes connections {upstream.where}, where the model's server should be:"
                f" {error}"
            ) from None


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
        question = HealthQuestion(self._server.settings, self._server.upstream)
        try:
            return question.ask(
                lambda request: self._ask(request, HEALTH_TIMEOUT_SECONDS, _MAX_HEALTH_BYTES)
            )
        except UpstreamError as error:
            return f"{question.subject}: {error}"

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
