"""A server that lives and no longer serves is started again; a busy or slow one never is. Real
servers and requests, a manual clock; no process."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from manager.clock import Clock
from manager.config.settings import Model as Settings
from manager.config.settings import Program
from manager.errors import ApiError, ClientDisconnected
from manager.interfaces import Chat
from manager.models import facts, probe
from manager.models import model as model_module
from manager.models.model import Model, State
from manager.models.server import Server, StartFailedError
from manager.relay.upstream import Upstream
from tests.support.played_machine import in_a_thread, played_server, real_model
from tests.support.relayed import EVENT_HEAD, FIRST, Relayed, chat, chunk, read
from tests.support.servers import PATIENCE, FakeModel, Peer, RawServer
from tests.support.upstreams import Eventually, Serve, sized

SILENCE = 0.3  # seconds after which a request times out
TEN_MINUTES = 600.0
Served = FakeModel | RawServer | StartFailedError


class Launched:
    """A model, its clock, and the servers that its starts lead to, one after the other."""

    def __init__(self, *servers: Served, **settings: Any) -> None:
        self.now = 1000.0
        self.settings = Settings("Sick", **settings)
        self.model: Model = real_model(self.settings, clock=Clock(lambda: self.now))
        self.watch = self.model._shared.watch
        self.stops: list[str] = []
        self._servers = list(servers)
        self._upstreams: list[Upstream] = []
        self.watch.start()

    def is_patient_for(self, seconds: float) -> None:
        """The ``upstream_timeout`` of requests from now on; at first it is ten minutes."""
        self.model.program = Program(upstream_timeout=seconds)

    def bring_up(self, *_arguments: Any) -> Server | StartFailedError:
        """In place of a launch."""
        server = self._servers.pop(0) if self._servers else StartFailedError("not expected")
        if isinstance(server, StartFailedError):
            return server
        self._upstreams.append(Upstream(server.port, 20))
        return played_server(self.settings, Chat(), self._upstreams[-1])

    def bring_down(self, *arguments: Any) -> None:
        self.stops.append(arguments[-1])

    def ask(self, fake: dict[str, Any] | None = None, **fields: Any) -> int:
        """The status of a request, 0 where its answer is not whole."""
        one = Relayed(0)
        try:
            lease: Any = self.model.lease(lambda: one.is_disconnected)
        except ApiError as error:
            return error.status
        one.lease = lease
        try:
            with lease:
                read(one.send(chat(fake, **fields)))
        except ApiError as error:
            return error.status
        except OSError:
            return 0
        return one.outcome.status

    def begin(self, fake: dict[str, Any], **fields: Any) -> tuple[Relayed, Future[bytes]]:
        """A request on its way; its client disconnects where the test says so."""
        one = Relayed(0)
        lease: Any = self.model.lease(lambda: False)
        one.lease, one.watch = lease, self.watch
        return one, in_a_thread(lambda: read(one.send(chat(fake, **fields))))

    def fails(self, times: int = 3, fake: dict[str, Any] | None = None) -> None:
        """So many failures, the last of them six seconds after the first."""
        for number in range(times):
            if number == times - 1:
                self.now += 6
            assert self.ask(fake) >= 500

    def settle(self) -> dict[str, Any]:
        """What is seen of it once nothing is done for it."""
        self.model.wait_idle(PATIENCE)
        return self.model.to_json()

    def close(self) -> None:
        self.model.close("the test has ended", lambda: ApiError(503, "shutting_down", "ended"))
        self.model.join()
        self.watch.stop()
        for upstream in self._upstreams:
            upstream.close()


Launch = Callable[..., Launched]


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Launch]:
    launched: list[Launched] = []

    def launch(*servers: Served, **settings: Any) -> Launched:
        one = Launched(*servers, **settings)
        launched.append(one)
        monkeypatch.setattr(model_module, "bring_up", one.bring_up)
        monkeypatch.setattr(model_module, "bring_down", one.bring_down)
        monkeypatch.setattr(facts, "learn", lambda *_: facts.ServerFacts())
        one.model.start()
        one.model.wait_idle(PATIENCE)
        return one

    yield launch
    for one in launched:
        one.close()


NewModel = Callable[..., FakeModel]


def probes(model: FakeModel) -> int:
    """How many one-token requests have reached it."""
    bodies = [json.loads(seen["body"]) for seen in model.stats()["requests"]]
    return sum(body.get("max_tokens") == 1 for body in bodies)


# --- servers that no longer serve -------------------------------------------------------


@pytest.mark.parametrize("how", ["errors", "posts", "silent"])
def test_a_server_that_no_longer_serves_is_started_again_and_its_reason_is_seen(
    launch: Launch,
    model: NewModel,
    how: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(probe, "HEALTH_TIMEOUT_SECONDS", SILENCE)
    sick, well = model(), model()
    one = launch(sick, well)
    assert one.ask() == 200
    sick.breaks(how)
    one.is_patient_for(SILENCE)
    one.fails()
    shown = one.settle()
    one.is_patient_for(TEN_MINUTES)
    assert one.ask() == 200
    assert (shown["state"], one.model.restarts, len(one.stops)) == ("ready", 1, 1)
    assert "3 requests in a row failed" in shown["last_error"]
    assert "a one-token request" in shown["last_error"]
    assert ("/health" in shown["last_error"]) is (how != "posts")
    assert "Sick is restarted: it no longer served" in caplog.text
    assert len(well.stats()["requests"]) == 1


def test_a_server_whose_port_is_closed_is_started_again(launch: Launch, model: NewModel) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        nobody: Any = SimpleNamespace(port=listener.getsockname()[1])
    one = launch(nobody, model())
    one.fails()
    assert "nothing answers on port" in one.settle()["last_error"]
    assert one.ask() == 200


def test_a_server_that_resets_each_answer_in_its_middle_is_started_again(
    launch: Launch, serve: Serve, model: NewModel
) -> None:
    def script(peer: Peer) -> None:
        if peer.request():
            peer.send(EVENT_HEAD + chunk(FIRST))
            peer.reset()

    one = launch(serve(script), model())
    for wait in (0, 3, 3):
        one.now += wait
        one.ask(stream=True)
    assert one.settle()["last_error"]
    assert one.model.restarts == 1
    assert one.ask() == 200


def test_there_is_no_second_restart_within_five_minutes_and_last_error_says_so(
    launch: Launch, model: NewModel, caplog: pytest.LogCaptureFixture
) -> None:
    first, second, third = model(), model(), model()
    first.breaks("errors")
    second.breaks("errors")
    one = launch(first, second, third)
    one.fails()
    one.settle()
    one.fails(9)
    shown = one.settle()
    assert (one.model.restarts, shown["state"]) == (1, "ready")
    assert "not restarted more than once in 300 seconds" in shown["last_error"]
    assert caplog.text.count("not restarted more than once") == 1
    one.now += 300
    assert one.ask() == 500
    one.settle()
    assert one.ask() == 200
    assert one.model.restarts == 2


def test_a_restart_whose_start_fails_leaves_the_model_failed_as_any_start(
    launch: Launch, model: NewModel
) -> None:
    sick = model()
    sick.breaks("errors")
    one = launch(sick, StartFailedError("its script ended with exit code 1"), model())
    one.fails()
    shown = one.settle()
    assert (shown["state"], shown["last_error"]) == ("failed", "its script ended with exit code 1")
    assert one.ask() == 200
    assert one.settle()["last_error"] is None


def test_of_a_server_that_is_sent_no_token_the_health_alone_decides(
    launch: Launch, model: NewModel
) -> None:
    sick, well = model(), model()
    one = launch(sick, well, probe=False)
    sick.breaks("posts")
    one.fails()
    assert (one.settle()["state"], one.model.restarts, probes(sick)) == ("ready", 0, 0)
    sick.breaks("errors")
    one.fails()
    shown = one.settle()
    assert (shown["state"], one.model.restarts, probes(sick), probes(well)) == ("ready", 1, 0, 0)
    assert "/health answered 503" in shown["last_error"]


# --- servers that do --------------------------------------------------------------------


def test_bad_requests_are_never_counted(launch: Launch, model: NewModel) -> None:
    fine = model()
    one = launch(fine)
    for _ in range(9):
        one.now += 3
        assert one.ask({"status": 400}) == 400
    assert (one.settle()["last_error"], one.model.restarts, probes(fine)) == (None, 0, 0)


def test_clients_that_disconnect_are_never_counted(
    launch: Launch, model: NewModel, eventually: Eventually
) -> None:
    fine = model()
    one = launch(fine)
    for _ in range(4):
        one.now += 3
        relayed, asked = one.begin({"fail": "silent"})
        eventually(lambda: fine.stats()["open"] == 1)
        relayed.is_disconnected = True
        assert isinstance(asked.exception(PATIENCE), ClientDisconnected)
        eventually(lambda: fine.stats()["open"] == 0)
    assert (one.settle()["last_error"], one.model.restarts, probes(fine)) == (None, 0, 0)


def test_a_server_that_fails_on_some_requests_and_serves_others_is_not_restarted(
    launch: Launch, model: NewModel
) -> None:
    fine = model()
    one = launch(fine)
    for _ in range(9):
        one.now += 3
        assert one.ask({"status": 500}) == 500
        one.settle()
    assert (one.model.restarts, probes(fine)) == (0, 3)
    for _ in range(9):
        one.now += 3
        assert [one.ask({"status": 500}), one.ask()] == [500, 200]
    assert (one.model.restarts, probes(fine)) == (0, 3)


def test_a_one_slot_server_under_a_long_stream_is_not_even_checked(
    launch: Launch, model: NewModel, caplog: pytest.LogCaptureFixture, eventually: Eventually
) -> None:
    """Its other requests time out, and its health says that it has no slot."""
    busy = model(slots=1)
    one = launch(busy)
    relayed, stream = one.begin({"chunks": 5000, "interval": 0.01}, stream=True)
    eventually(lambda: busy.stats()["open"] == 1)
    one.is_patient_for(SILENCE)
    one.fails(6)
    one.is_patient_for(TEN_MINUTES)
    relayed.is_disconnected = True
    stream.result(PATIENCE)
    assert one.ask() == 200
    assert "is checked" not in caplog.text
    assert (one.settle()["last_error"], one.model.restarts, probes(busy)) == (None, 0, 0)


def test_a_one_slot_server_under_a_long_silent_generation_is_not_restarted(
    launch: Launch, model: NewModel, tmp_path: Path, eventually: Eventually
) -> None:
    """Its other requests time out, and its health says that it has no slot."""
    busy = model(slots=1)
    one = launch(busy)
    _, long = one.begin({"until": str(tmp_path / "gate")})
    eventually(lambda: busy.stats()["open"] == 1)
    one.is_patient_for(SILENCE)
    one.fails()
    eventually(lambda: one.model._check.holds_leases)
    one.is_patient_for(TEN_MINUTES)
    later = in_a_thread(one.ask)
    eventually(lambda: one.model.to_json()["waiting"] == 1)
    (tmp_path / "gate").touch()
    assert long.result(PATIENCE)
    assert later.result(PATIENCE) == 200
    assert (one.settle()["last_error"], one.model.restarts, probes(busy)) == (None, 0, 0)


# --- during a check ---------------------------------------------------------------------


class Scripted:
    """A server whose answers are said by what is asked: health, token, good or bad (a request).
    Each is a status, "silent", "half", or "gated", which is 200 once ``may_answer`` is set."""

    def __init__(self, **answers: object) -> None:
        self.answers = {"health": 200, "token": 500, "good": 200, "bad": 500, **answers}
        self.asked: list[str] = []
        self.may_answer = threading.Event()
        self.body = b"{}"

    def __call__(self, peer: Peer) -> None:
        while request := peer.request():
            kind = "health" if request.startswith(b"GET") else "bad"
            kind = "token" if b'"max_tokens": 1' in request else kind
            kind = "good" if b'"good"' in request else kind
            self.asked.append(kind)
            status = self.answers[kind]
            if status == "gated":
                assert self.may_answer.wait(PATIENCE)
                status = 200
            if status == "half":
                peer.send(sized(b"{", length=2))
            if status in ("half", "silent"):
                peer.sees_close()
                return
            peer.send(sized(self.body).replace(b"200 OK", f"{status} As said".encode()))


def test_requests_go_on_while_the_health_is_asked_and_a_good_answer_ends_the_check(
    launch: Launch, serve: Serve, eventually: Eventually
) -> None:
    script = Scripted(health="gated")
    one = launch(serve(script))
    one.fails()
    eventually(lambda: "health" in script.asked)
    assert [one.ask(), one.ask({"good": 1})] == [500, 200]
    script.may_answer.set()
    assert (one.settle()["state"], one.model.restarts) == ("ready", 0)
    assert "token" not in script.asked


def test_requests_that_come_while_a_token_is_asked_for_are_queued_and_go_on_after_it(
    launch: Launch, serve: Serve, eventually: Eventually
) -> None:
    script = Scripted(token="gated")
    one = launch(serve(script))
    one.fails()
    eventually(lambda: "token" in script.asked)
    late = [in_a_thread(lambda: one.ask({"good": 1})) for _ in range(20)]
    eventually(lambda: one.model.to_json()["waiting"] == 20)
    script.may_answer.set()
    assert [each.result(PATIENCE) for each in late] == [200] * 20
    assert (one.settle()["state"], one.model.restarts) == ("ready", 0)


def test_the_token_waits_for_requests_that_began_during_the_check(
    launch: Launch, serve: Serve, eventually: Eventually
) -> None:
    script = Scripted(health="gated", good="gated", token=500)
    one = launch(serve(script), serve(Scripted()))
    one.fails()
    eventually(lambda: "health" in script.asked)
    slow = in_a_thread(lambda: one.ask({"good": 1}))
    eventually(lambda: "good" in script.asked)
    script.may_answer.set()
    assert slow.result(PATIENCE) == 200
    assert (one.settle()["state"], one.model.restarts) == ("ready", 0)
    assert "token" not in script.asked


def test_under_steady_load_those_that_time_out_are_followed_by_a_restart_that_serves_the_others(
    launch: Launch, serve: Serve
) -> None:
    """A server that says it is well and answers nothing: something would always be in flight."""
    script = Scripted(bad="silent", token="silent")
    one = launch(serve(script), serve(Scripted(bad=200)))
    one.is_patient_for(SILENCE)
    seen: list[int] = []

    def load() -> None:
        while seen.count(200) < 8:
            one.now += 1
            seen.append(one.ask())

    clients = [in_a_thread(load) for _ in range(8)]
    for client in clients:
        client.result(PATIENCE)
    assert set(seen) == {200, 504}
    assert one.settle()["state"] == "ready"
    assert one.model.restarts == 1


def test_a_byte_of_an_answer_in_flight_ends_a_check_and_the_queue_goes_on(
    launch: Launch, serve: Serve, eventually: Eventually
) -> None:
    scripted = Scripted(health=503)
    goes_on = threading.Event()

    def script(peer: Peer) -> None:
        if peer.number > 1:
            scripted(peer)
            return
        peer.request()
        peer.send(EVENT_HEAD)
        assert goes_on.wait(PATIENCE)
        peer.send(chunk(FIRST))
        peer.sees_close()

    server = serve(script)
    one = launch(server)
    relayed, stream = one.begin({}, stream=True)
    eventually(lambda: server.connections == 1)
    one.fails()
    eventually(lambda: one.model._check.holds_leases)
    late = in_a_thread(lambda: one.ask({"good": 1}))
    eventually(lambda: one.model.to_json()["waiting"] == 1)
    goes_on.set()
    assert late.result(PATIENCE) == 200
    relayed.is_disconnected = True
    assert b"Hel" in stream.result(PATIENCE)
    assert one.model.restarts == 0


@pytest.mark.parametrize("stage", ["health", "token"])
def test_a_stop_ends_a_check_that_gets_no_answer(
    launch: Launch, serve: Serve, eventually: Eventually, stage: str
) -> None:
    script = Scripted(**{stage: "silent"})
    one = launch(serve(script))
    one.fails()
    eventually(lambda: stage in script.asked)
    one.model.stop()
    shown = one.settle()
    assert (shown["state"], one.stops, one.model.restarts) == ("stopped", ["stopped manually"], 0)


def test_a_token_that_never_comes_whole_is_not_waited_for_beyond_the_time_out(
    launch: Launch, serve: Serve, eventually: Eventually
) -> None:
    script = Scripted(token="half")
    one = launch(serve(script), serve(Scripted(bad=200)))
    one.fails()
    eventually(lambda: "token" in script.asked)
    one.now += 601
    assert "no whole answer within 600 seconds" in one.settle()["last_error"]
    assert one.model.restarts == 1


def test_an_error_as_the_answer_to_a_token_is_none_whatever_its_status(
    launch: Launch, serve: Serve
) -> None:
    script = Scripted(token=200)
    script.body = b'{"error": {"message": "CUDA error", "code": 500}}'
    one = launch(serve(script), serve(Scripted()))
    one.fails()
    assert "CUDA error" in one.settle()["last_error"]
    assert one.model.restarts == 1


@pytest.mark.parametrize("status", [400, 404, 429])
def test_a_bad_request_as_the_answer_to_a_token_restarts_nothing(
    launch: Launch, serve: Serve, status: int
) -> None:
    one = launch(serve(Scripted(token=status)))
    one.fails()
    assert (one.settle()["state"], one.model.restarts) == ("ready", 0)


@pytest.mark.parametrize(("how", "restarts"), [("errors", 1), ("posts", 0)])
def test_where_no_request_is_small_a_servers_health_decides(
    launch: Launch, model: NewModel, monkeypatch: pytest.MonkeyPatch, how: str, restarts: int
) -> None:
    monkeypatch.setattr(Chat, "probe", lambda *_: None)
    sick, well = model(), model()
    one = launch(sick, well)
    sick.breaks(how)
    one.fails()
    assert (one.settle()["state"], one.model.restarts) == ("ready", restarts)
    assert probes(sick) == probes(well) == 0


def test_a_fault_of_our_own_in_a_check_restarts_nothing(
    launch: Launch, serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one = launch(serve(Scripted()))
    monkeypatch.setattr(Chat, "probe", lambda *_: {}["no such thing"])
    one.fails()
    assert (one.settle()["state"], one.model.restarts) == ("ready", 0)
    assert "checking Sick failed" in caplog.text
    assert one.ask({"good": 1}) == 200


def test_an_eviction_ends_a_check_and_nothing_is_started_again(
    launch: Launch, serve: Serve, eventually: Eventually
) -> None:
    script = Scripted(token="silent")
    one = launch(serve(script))
    one.fails()
    eventually(lambda: "token" in script.asked)
    assert one.model.begin_eviction()
    one.model.evict("for another")
    assert (one.settle()["state"], one.stops) == ("stopped", ["for another"])
    assert one.model.state is State.STOPPED
