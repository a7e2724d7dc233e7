"""One request through the relay, with a lease that is not of the fleet."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from manager.interfaces import Chat, Endpoint, Interface
from manager.relay.body import RawBody
from manager.relay.forward import forward
from manager.relay.payload import Payload
from manager.relay.request import Outcome, RelayRequest, RelayResponse
from manager.relay.upstream import Upstream
from manager.relay.watcher import Watcher
from manager.streams import EventStream
from tests.support.servers import PATIENCE, FakeModel, Peer

CHAT = "/v1/chat/completions"
EVENT_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)
LARGE = 5_000_000


@dataclass
class FakeLease:
    """The relay's whole view of the fleet."""

    upstream: Upstream
    interface: Interface = field(default_factory=Chat)
    served_model_name: str | None = None
    ask_usage: bool = True
    upstream_timeout: float = PATIENCE
    produced: bool = False
    releases: int = 0
    outcome: Outcome | None = None  # as it was released with

    def release(self, outcome: Outcome | None = None) -> None:
        self.outcome = outcome
        self.releases += 1


class Relayed:
    """One request through the relay, and all that the relay does with it."""

    def __init__(self, port: int, **lease: Any) -> None:
        self.upstream = Upstream(port, 4)
        self.lease = FakeLease(self.upstream, **lease)
        self.watch = Watcher()
        self.outcomes: list[Outcome] = []
        self.polls = 0
        self.is_disconnected = False
        self.stream: EventStream | None = None
        self.on_end: Callable[[Outcome], None] = lambda _: None

    def send(
        self,
        body: dict[str, Any] | bytes,
        *headers: tuple[str, str],
        target: str = CHAT,
        **lent: Any,
    ) -> RelayResponse:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        endpoint = self.lease.interface.endpoint(target.partition("?")[0])
        request = RelayRequest(endpoint, target, list(headers), Payload(raw))
        return self.forward(request, **lent)

    def get(
        self, *headers: tuple[str, str], method: str = "GET", target: str = "/page"
    ) -> RelayResponse:
        """As what is asked for below /upstream."""
        return self.forward(
            RelayRequest(
                Endpoint("/upstream"),
                target,
                list(headers),
                RawBody(b""),
                method=method,
                base="/upstream/Mine",
            )
        )

    def forward(self, request: RelayRequest, **lent: Any) -> RelayResponse:
        self.answer = forward(
            self.lease,
            request,
            watch=self.watch,
            client_disconnected=self._disconnected,
            on_end=self._on_end,
            on_answer=self._on_answer,
            **lent,
        )
        return self.answer

    def disconnect_client(self) -> None:
        self.is_disconnected = True
        self.watch.poll()

    def counted(self) -> int:
        """The chunks of its stream so far, as pages show them."""
        return self.stream.chunks if self.stream is not None else 0

    @property
    def outcome(self) -> Outcome:
        """The one outcome of it."""
        assert len(self.outcomes) == 1
        return self.outcomes[0]

    def is_over(self) -> bool:
        """Reported once, released once, and polled no longer."""
        before = self.polls
        self.watch.poll()
        assert self.polls == before
        return len(self.outcomes) == self.lease.releases == 1

    def _disconnected(self) -> bool:
        self.polls += 1
        return self.is_disconnected

    def _on_answer(self, stream: EventStream | None) -> None:
        self.stream = stream

    def _on_end(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self.on_end(outcome)


Relay = Callable[..., Relayed]


def chat(fake: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    return {"model": "mine", "messages": [], "fake": fake or {}, **fields}


def streamed(fake: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    return chat(fake, stream=True, **fields)


def read(answer: RelayResponse) -> bytes:
    """All of the answer, as the server takes it: piece by piece, and closed at the end."""
    try:
        return b"".join(answer)
    finally:
        answer.close()


def header(answer: RelayResponse, name: str) -> list[str]:
    return [value for key, value in answer.headers if key.lower() == name.lower()]


def events(body: bytes) -> list[Any]:
    """The data of each event; every one of them is whole."""
    assert body.endswith(b"\n\n")
    lines = [event.removeprefix(b"data: ") for event in body.split(b"\n\n")[:-1]]
    return ["[DONE]" if line == b"[DONE]" else json.loads(line) for line in lines]


def seen_by(model: FakeModel) -> dict[str, Any]:
    """The latest request that reached the fake upstream."""
    latest: dict[str, Any] = model.stats()["requests"][-1]
    return latest


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def lockstep(*pieces: bytes) -> tuple[Callable[[Peer], None], Callable[[], None]]:
    """A script that sends each piece as a chunk of a stream when it may."""
    may_send = threading.Semaphore(0)

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(EVENT_HEAD)
        for piece in pieces:
            assert may_send.acquire(timeout=PATIENCE)
            peer.send(chunk(piece))
        peer.sees_close()

    return script, may_send.release


FIRST = b'data: {"choices": [{"delta": {"content": "Hel"}}]}\n\n'
SECOND = b'data: {"choices": [{"delta": {"content": "lo"}}]}\n\n'
USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}\n\n'
DONE = b"data: [DONE]\n\n"
