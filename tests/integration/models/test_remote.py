"""A server that others start: ready while it answers, failed with the reason while it does not.
Real servers and requests, a manual clock; no process."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from manager.clock import Clock
from manager.config.settings import Config, Program, Scheme
from manager.config.settings import Model as Settings
from manager.devices import Monitor
from manager.errors import ApiError
from manager.events import Events
from manager.interfaces import BUILT_IN
from manager.models import Fleet, SchemeMemory
from manager.relay.watcher import Watcher
from manager.storage.store import Store
from tests.support.played_machine import in_a_thread
from tests.support.relayed import Relayed, chat, read, seen_by
from tests.support.servers import PATIENCE, FakeModel, Peer
from tests.support.upstreams import Eventually, Serve, sized

KEY = "sk-of-a-provider"


class Provider:
    """A program with one model, whose server is elsewhere."""

    def __init__(self, folder: Path, url: str, **settings: Any) -> None:
        self.now = 1000.0
        self.watch = Watcher()
        self.watch.start()
        self.settings = Settings("Far", url=url, api_key=KEY, **settings)
        clock = Clock(lambda: self.now)
        self.interfaces = {cls.mode: cls() for cls in BUILT_IN}
        self.placement = SimpleNamespace(wake=lambda: None, configure=lambda _program: None)
        self.store = Store(folder / "usage.db")
        shared: Any = SimpleNamespace(
            store=self.store,
            clock=clock,
            events=Events(),
            watch=self.watch,
            placement=self.placement,
            memory=SchemeMemory(self.store, clock, Monitor([], clock, list, lambda: False)),
            connections=4,
        )
        self.fleet = Fleet(self.config(self.settings), self.interfaces, shared)

    def config(self, *models: Settings) -> Config:
        return Config(Path("config.yaml"), Program(), {model.name: model for model in models})

    @property
    def model(self) -> Any:
        return self.fleet.find("Far")

    def reload(self, **changes: Any) -> None:
        self.settings = replace(self.settings, **changes)
        self.fleet.apply(self.config(self.settings))

    def looked_at(self) -> dict[str, Any]:
        """What is seen of it once the program has asked how it is."""
        self.fleet.watch_remote()
        return self.settled()

    def settled(self) -> dict[str, Any]:
        self.model.wait_idle(PATIENCE)
        shown: dict[str, Any] = self.model.to_json()
        return shown

    def leased(self) -> Relayed:
        """A request that may be sent now."""
        one = Relayed(0)
        lease: Any = self.model.lease(lambda: False)
        one.lease = lease
        return one

    def ask(self, fake: dict[str, Any] | None = None) -> int:
        """The status of a request."""
        try:
            one = self.leased()
            read(one.send(chat(fake)))
        except ApiError as error:
            return error.status
        return one.outcome.status

    def fails(self) -> None:
        """Three failures, the last of them six seconds after the first."""
        for wait in (0, 0, 6):
            self.now += wait
            assert self.ask() >= 500

    def close(self) -> None:
        self.fleet.close()
        self.watch.stop()
        self.store.close()


@pytest.fixture
def provider(tmp_path: Path) -> Iterator[Callable[..., Provider]]:
    with contextlib.ExitStack() as stack:

        def provider(server: Any, path: str = "/v1", **settings: Any) -> Provider:
            one = Provider(tmp_path, f"http://127.0.0.1:{server.port}{path}", **settings)
            stack.callback(one.close)
            return one

        yield provider


NewProvider = Callable[..., Provider]
NewModel = Callable[..., FakeModel]


def answering(status: dict[str, int], asked: list[str]) -> Callable[[Peer], None]:
    """A server that answers each path with a status, of those that it does not know with 404."""

    def script(peer: Peer) -> None:
        while request := peer.request():
            path = request.split()[1].decode()
            asked.append(path)
            peer.send(sized(b"{}").replace(b"200 OK", b"%d Said" % status.get(path, 404)))

    return script


# --- while it answers -----------------------------------------------------------------------


def test_it_is_ready_without_a_request_that_would_cost_money(
    provider: NewProvider, model: NewModel
) -> None:
    far = model()
    one = provider(far)
    shown = one.looked_at()
    assert (shown["state"], shown["last_error"]) == ("ready", None)
    assert (shown["url"], shown["scheme"], shown["pid"], shown["port"]) == (
        one.settings.url,
        None,
        None,
        None,
    )
    assert far.stats()["requests"] == []
    assert KEY not in json.dumps(shown)


def test_the_first_request_is_served_though_nobody_has_asked_before(
    provider: NewProvider, model: NewModel
) -> None:
    far = model()
    one = provider(far, served_model_name="gpt-far")
    assert one.model.to_json()["state"] == "stopped"
    assert one.ask({"echo": True}) == 200
    seen = seen_by(far)
    assert json.loads(seen["body"])["model"] == "gpt-far"
    assert ["Authorization", f"Bearer {KEY}"] in [list(pair) for pair in seen["headers"]]


@pytest.mark.parametrize(
    ("answers", "paths"),
    [
        ({"/llm/health": 200}, ["/llm/health"]),
        ({"/llm/health": 401}, ["/llm/health"]),
        ({"/llm/health": 403}, ["/llm/health"]),
        ({"/llm/health": 429}, ["/llm/health"]),
        ({"/llm/v1/models": 200}, ["/llm/health", "/llm/v1/models"]),
        ({"/llm/v1/models": 401}, ["/llm/health", "/llm/v1/models"]),
        ({}, ["/llm/health", "/llm/v1/models"]),
    ],
)
def test_whatever_is_no_fault_of_the_server_is_an_answer(
    provider: NewProvider, serve: Serve, answers: dict[str, int], paths: list[str]
) -> None:
    asked: list[str] = []
    one = provider(serve(answering(answers, asked)), "/llm")
    assert one.looked_at()["state"] == "ready"
    assert asked[: len(paths)] == paths
    assert set(asked) <= {f"/llm{path}" for path in ("/health", "/v1/models", "/props")}


def test_its_health_is_asked_at_the_path_of_the_config_below_that_of_the_url(
    provider: NewProvider, serve: Serve
) -> None:
    asked: list[str] = []
    server = serve(answering({"/llm/ready": 200, "/llm/v1/models": 503}, asked))
    one = provider(server, "/llm/v1", health="/ready")
    assert one.looked_at()["state"] == "ready"
    assert asked[0] == "/llm/ready"


def test_a_path_of_the_config_that_it_does_not_have_is_named_until_a_reload_corrects_it(
    provider: NewProvider, serve: Serve
) -> None:
    one = provider(serve(answering({}, [])), health="/raedy")
    shown = one.looked_at()
    assert shown["state"] == "failed"
    assert "/raedy answered 404: its server has no such path" in shown["last_error"]
    one.reload(health=None)
    assert one.looked_at()["state"] == "ready"


def test_one_of_which_the_port_is_enough_is_asked_for_no_health(
    provider: NewProvider, model: NewModel
) -> None:
    far = model()
    far.breaks("errors")
    one = provider(far, health="none")
    assert one.looked_at()["state"] == "ready"
    far.close()
    shown = one.looked_at()
    assert shown["state"] == "failed"
    assert "its port: nothing takes connections at http://127.0.0.1" in shown["last_error"]


def test_of_a_long_list_of_models_only_the_beginning_is_read(
    provider: NewProvider, serve: Serve, eventually: Eventually
) -> None:
    lists: list[Peer] = []
    closed: list[bool] = []

    def script(peer: Peer) -> None:
        while request := peer.request():
            if b"GET /v1/models" in request and not lists:
                lists.append(peer)
                peer.send(sized(b" " * 100_000, length=1 << 30))
                closed.append(peer.sees_close())
                return
            peer.send(sized(b"").replace(b"200 OK", b"404 Not Found"))

    one = provider(serve(script))
    assert one.looked_at()["state"] == "ready"
    assert eventually(lambda: closed) == [True]


def test_it_is_never_idle_and_never_stopped(provider: NewProvider, model: NewModel) -> None:
    one = provider(model(), alive_time=1)
    assert one.ask() == 200
    one.now += 3600
    one.fleet.stop_idle()
    one.fleet.stop_all()
    with pytest.raises(ApiError) as caught:
        one.model.stop()
    assert (caught.value.status, caught.value.code) == (409, "not_started_here")
    shown = one.settled()
    assert (shown["state"], shown["idle_stop_at"]) == ("ready", None)


def test_a_start_of_one_that_is_ready_does_nothing(provider: NewProvider, model: NewModel) -> None:
    far = model()
    one = provider(far)
    one.looked_at()
    before = far.stats()["connections"]
    one.model.start()
    assert one.settled()["state"] == "ready"
    assert far.stats()["connections"] == before
    assert one.model.starts == 0


def test_only_so_many_requests_are_under_way_at_once(
    provider: NewProvider, model: NewModel, tmp_path: Path, eventually: Eventually
) -> None:
    far = model()
    one = provider(far, max_concurrency=1)
    first = in_a_thread(lambda: one.ask({"until": str(tmp_path / "gate")}))
    eventually(lambda: far.stats()["open"] == 1)
    second = in_a_thread(one.ask)
    eventually(lambda: one.model.to_json()["waiting"] == 1)
    (tmp_path / "gate").touch()
    assert [first.result(PATIENCE), second.result(PATIENCE)] == [200, 200]
    assert far.stats()["peak"] == 1


# --- while it does not ----------------------------------------------------------------------


def test_it_is_failed_with_the_reason_and_a_request_gets_that_at_once(
    provider: NewProvider, caplog: pytest.LogCaptureFixture
) -> None:
    one = provider(SimpleNamespace(port=9))
    for _ in range(4):
        shown = one.looked_at()
    assert shown["state"] == "failed"
    assert "nothing answers at http://127.0.0.1:9" in shown["last_error"]
    with pytest.raises(ApiError) as caught:
        one.leased()
    assert (caught.value.status, caught.value.code) == (502, "upstream_error")
    assert "Far does not answer: " in caught.value.message
    assert "nothing answers at http://127.0.0.1:9" in caught.value.message
    assert caplog.text.count("Far does not answer") == 1
    assert (one.model.failed_starts, one.model.restarts) == (0, 0)
    assert KEY not in caplog.text + json.dumps(shown)


def test_a_request_is_served_as_soon_as_it_is_back_however_often_it_failed(
    provider: NewProvider, model: NewModel
) -> None:
    far = model()
    far.breaks("errors")
    one = provider(far)
    for _ in range(9):
        assert one.ask() == 502
    assert one.settled()["state"] == "failed"
    far.breaks("")
    assert one.ask() == 200
    shown = one.settled()
    assert (shown["state"], shown["last_error"]) == ("ready", None)


def test_it_is_ready_again_without_a_request(provider: NewProvider, model: NewModel) -> None:
    far = model()
    far.breaks("errors")
    one = provider(far)
    assert "/health answered 503" in one.looked_at()["last_error"]
    far.breaks("")
    assert one.looked_at()["state"] == "ready"


def test_one_that_goes_away_between_requests_is_seen_to_be_failed(
    provider: NewProvider, model: NewModel
) -> None:
    far = model()
    one = provider(far)
    assert one.ask() == 200
    assert one.looked_at()["state"] == "ready"
    far.breaks("errors")
    shown = one.looked_at()
    assert shown["state"] == "failed"
    assert shown["last_error"] == "it does not answer: /health answered 503"


def test_one_whose_requests_fail_and_that_is_not_well_is_failed_and_not_restarted(
    provider: NewProvider, model: NewModel, caplog: pytest.LogCaptureFixture
) -> None:
    far = model()
    one = provider(far)
    assert one.ask() == 200
    far.breaks("errors")
    one.fails()
    shown = one.settled()
    assert shown["state"] == "failed"
    assert "3 requests in a row failed" in shown["last_error"]
    assert "/health answered 503" in shown["last_error"]
    assert one.model.restarts == 0
    assert "restarted" not in caplog.text
    far.breaks("")
    assert one.ask() == 200


def test_one_whose_requests_fail_and_that_is_well_stays_ready_and_is_asked_for_no_token(
    provider: NewProvider, model: NewModel
) -> None:
    far = model()
    one = provider(far)
    assert one.ask() == 200
    far.breaks("posts")
    before = len(far.stats()["requests"])
    one.fails()
    one.fails()
    shown = one.settled()
    assert (shown["state"], shown["last_error"], one.model.restarts) == ("ready", None, 0)
    assert len(far.stats()["requests"]) == before + 6


def test_an_answer_that_goes_on_survives_the_moment_in_which_it_counts_as_failed(
    provider: NewProvider, model: NewModel, tmp_path: Path, eventually: Eventually
) -> None:
    far = model()
    one = provider(far)
    slow = in_a_thread(lambda: one.ask({"until": str(tmp_path / "gate")}))
    eventually(lambda: far.stats()["open"] == 1)
    far.breaks("errors")
    one.fails()
    eventually(lambda: one.model.to_json()["state"] == "failed")
    (tmp_path / "gate").touch()
    far.breaks("")
    assert slow.result(PATIENCE) == 200


def test_a_start_by_hand_asks_again(provider: NewProvider, model: NewModel) -> None:
    far = model()
    far.breaks("errors")
    one = provider(far)
    assert one.looked_at()["state"] == "failed"
    assert one.model.preview()["action"] == "start"
    far.breaks("")
    one.model.start()
    assert one.settled()["state"] == "ready"


# --- a config that changes --------------------------------------------------------------------


def test_a_reload_takes_effect_at_once_and_what_is_under_way_goes_on(
    provider: NewProvider, model: NewModel, tmp_path: Path, eventually: Eventually
) -> None:
    far, other = model(), model()
    one = provider(far)
    slow = in_a_thread(lambda: one.ask({"until": str(tmp_path / "gate")}))
    eventually(lambda: far.stats()["open"] == 1)
    one.reload(url=f"http://127.0.0.1:{other.port}", api_key="sk-other")
    assert one.ask() == 200
    assert ["Authorization", "Bearer sk-other"] in [list(h) for h in seen_by(other)["headers"]]
    (tmp_path / "gate").touch()
    assert slow.result(PATIENCE) == 200
    assert len(far.stats()["requests"]) == 1


def test_a_request_that_is_about_to_be_sent_when_a_reload_comes_goes_where_it_was_to_go(
    provider: NewProvider, model: NewModel
) -> None:
    far, other = model(), model()
    one = provider(far)
    late = one.leased()
    one.reload(url=f"http://127.0.0.1:{other.port}")
    assert one.ask() == 200
    assert json.loads(read(late.send(chat())))["choices"]
    assert (len(far.stats()["requests"]), len(other.stats()["requests"])) == (1, 1)


def test_a_model_that_gets_schemes_instead_is_not_started_by_that(
    provider: NewProvider, model: NewModel
) -> None:
    one = provider(model())
    assert one.ask() == 200
    scheme = Scheme("Default", (), None, ("server",), {}, {}, Path())
    one.reload(url=None, api_key=None, schemes=(scheme,))
    shown = one.settled()
    assert (shown["state"], shown["url"]) == ("stopped", None)


@pytest.mark.parametrize("meanwhile", ["nothing", "a reload", "a failure"])
def test_the_end_of_the_program_ends_an_answer_that_would_go_on(
    provider: NewProvider, model: NewModel, eventually: Eventually, meanwhile: str
) -> None:
    far = model()
    one = provider(far, stop_timeout=0.05)
    endless = one.leased()
    body = chat({"chunks": 5000, "interval": 0.01}, stream=True)
    answer = in_a_thread(lambda: read(endless.send(body)))
    eventually(endless.counted)
    if meanwhile == "a reload":
        one.reload(api_key="sk-other")
    elif meanwhile == "a failure":
        far.breaks("errors")
        one.model.stop(start_again=True)
    assert one.settled()["state"] == ("failed" if meanwhile == "a failure" else "ready")
    one.fleet.close()
    assert b'"error"' in answer.result(PATIENCE)
    assert endless.outcome.status == 502
    eventually(lambda: far.stats()["open"] == 0)


def test_a_server_that_an_earlier_program_left_of_that_name_is_not_taken_over(
    provider: NewProvider, model: NewModel
) -> None:
    one = provider(model())
    released: list[object] = []
    one.placement.__dict__.update(reserve_running=lambda *_: "held", release=released.append)
    run: Any = SimpleNamespace(scheme="Default", memory_mb={})
    process: Any = SimpleNamespace(pids=set)
    assert one.model.adopt(run, process) is False
    assert released == ["held"]
