"""A server that others start, over HTTP and over TLS: what it is sent, and how its answers end."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from manager.errors import ApiError, ClientDisconnected
from manager.relay import RemoteUpstream
from manager.relay.forward import Carriers
from manager.relay.response import Aborted, UpstreamError, UpstreamRefused, UpstreamTimeout
from tests.support.played_machine import in_a_thread
from tests.support.relayed import (
    CHAT,
    DONE,
    FIRST,
    SECOND,
    Relay,
    Relayed,
    chat,
    events,
    lockstep,
    read,
    seen_by,
    streamed,
)
from tests.support.servers import PATIENCE, FakeModel, RawServer
from tests.support.tls import Certificate, TlsFront, needs_openssl
from tests.support.upstreams import Eventually, Serve, post
from tests.support.upstreams import read as read_whole

KEY = "sk-of-a-provider"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture
def behind_tls(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[FakeModel | RawServer], TlsFront]]:
    """TLS in front of servers, of which the certificate is trusted."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate.bundle))
    fronts: list[TlsFront] = []

    def behind_tls(server: FakeModel | RawServer) -> TlsFront:
        fronts.append(TlsFront(certificate, server.port))
        return fronts[-1]

    yield behind_tls
    for front in fronts:
        front.close()


BehindTls = Callable[[FakeModel | RawServer], TlsFront]


@pytest.fixture
def to(relay: Relay) -> Callable[..., Relayed]:
    """A request to the server at an address."""

    def to(url: str, server: FakeModel | RawServer, **lease: Any) -> Relayed:
        one = relay(server, **lease)
        one.upstream.close()
        one.upstream = one.lease.upstream = RemoteUpstream(url, KEY, 4)
        return one

    return to


To = Callable[..., Relayed]


def headers_of(seen: dict[str, Any]) -> dict[str, str]:
    return {name.lower(): value for name, value in seen["headers"]}


# --- what it is sent ----------------------------------------------------------------------


def test_it_is_sent_its_own_key_and_none_of_the_client(to: To, model: FakeModel) -> None:
    one = to(f"http://127.0.0.1:{model.port}/v1", model)
    theirs = [("Authorization", "Bearer sk-llm-client"), ("X-Api-Key", "sk-llm-client")]
    read(one.send(chat(), *theirs, target=f"{CHAT}?a=b"))
    seen = seen_by(model)
    assert seen["path"] == f"{CHAT}?a=b"
    assert headers_of(seen)["authorization"] == f"Bearer {KEY}"
    assert headers_of(seen)["host"] == f"127.0.0.1:{model.port}"
    assert "sk-llm-client" not in json.dumps(seen)
    assert "x-api-key" not in headers_of(seen)


def test_a_server_of_anthropics_api_finds_its_key_where_that_has_it(
    to: To, model: FakeModel
) -> None:
    one = to(f"http://127.0.0.1:{model.port}", model)
    read(one.send(chat(), target="/v1/messages"))
    headers = headers_of(seen_by(model))
    assert (headers["x-api-key"], headers["authorization"]) == (KEY, f"Bearer {KEY}")


def test_a_server_on_loopback_is_sent_no_key(to_model: Relayed, model: FakeModel) -> None:
    read(to_model.send(chat()))
    assert not {"authorization", "x-api-key"} & headers_of(seen_by(model)).keys()


def test_a_redirect_is_the_answer_and_is_not_followed(
    to: To, serve: Serve, model: FakeModel
) -> None:
    before = len(model.stats()["requests"])
    elsewhere = f"http://127.0.0.1:{model.port}{CHAT}".encode()

    def script(peer: Any) -> None:
        peer.request()
        peer.send(b"HTTP/1.1 307 Go\r\nLocation: %b\r\nContent-Length: 0\r\n\r\n" % elsewhere)

    server = serve(script)
    answer = to(f"http://127.0.0.1:{server.port}", server).send(chat())
    read(answer)
    assert answer.status == "307 Go"
    assert len(model.stats()["requests"]) == before


def test_nothing_that_answers_is_said_with_the_address() -> None:
    with pytest.raises(
        UpstreamRefused, match=r"nothing answers at http://127\.0\.0\.1:9,"
    ) as caught:
        RemoteUpstream("http://127.0.0.1:9/v1", KEY, 1).send(post())
    assert KEY not in str(caught.value)


def test_requests_in_flight_can_be_cut_as_the_end_of_a_server_does(
    to: To, serve: Serve, eventually: Eventually
) -> None:
    script, go_on = lockstep(FIRST)
    server = serve(script)
    one = to(f"http://127.0.0.1:{server.port}", server)
    answer = in_a_thread(lambda: read(one.send(streamed())))
    go_on()
    eventually(lambda: one.counted() == 1)
    upstream: Any = one.upstream
    upstream.cut()
    first, error = events(answer.result(PATIENCE))
    assert first["choices"]
    assert error["error"]["code"] == "upstream_error"
    assert one.outcome.status == 502


# --- over TLS -------------------------------------------------------------------------------


@needs_openssl
def test_answers_come_over_tls_on_one_kept_connection(
    behind_tls: BehindTls, to: To, model: FakeModel
) -> None:
    front = behind_tls(model)
    one = to(f"{front.url}/v1", model)
    for number in range(3):
        one.outcomes.clear()
        assert json.loads(read(one.send(chat({"chunks": number + 1}))))["choices"]
        assert one.outcome.usage is not None
        assert one.outcome.usage.completion_tokens == number + 1
    assert headers_of(seen_by(model))["host"] == f"localhost:{front.port}"
    assert front.connections == 1


@needs_openssl
def test_a_large_body_and_a_large_answer_pass_through_tls(
    behind_tls: BehindTls, to: To, model: FakeModel
) -> None:
    one = to(behind_tls(model).url, model)
    answer = read(one.send(chat({"size": 5_000_000}, padding="x" * 5_000_000)))
    assert len(json.loads(answer)["padding"]) == 5_000_000


@needs_openssl
def test_each_piece_of_a_stream_comes_through_tls_at_once(
    behind_tls: BehindTls, to: To, serve: Serve
) -> None:
    script, go_on = lockstep(FIRST, SECOND, DONE)
    server = serve(script)
    answer = to(behind_tls(server).url, server).send(streamed())
    for piece in (FIRST, SECOND, DONE):
        go_on()
        assert next(answer) == piece
    answer.close()


@needs_openssl
def test_a_client_that_disconnects_ends_a_silent_answer_over_tls(
    behind_tls: BehindTls, to: To, model: FakeModel, eventually: Eventually
) -> None:
    one = to(behind_tls(model).url, model)
    before = model.stats()["aborted"]
    asked = in_a_thread(lambda: one.send(chat({"fail": "silent"})))
    eventually(lambda: model.stats()["open"] == 1)
    one.disconnect_client()
    assert isinstance(asked.exception(PATIENCE), ClientDisconnected)
    eventually(lambda: model.stats()["aborted"] == before + 1)
    assert one.is_over()


@needs_openssl
def test_silence_over_tls_is_a_timeout(behind_tls: BehindTls, to: To, model: FakeModel) -> None:
    one = to(behind_tls(model).url, model)
    body = json.dumps(chat({"fail": "silent"})).encode()
    with pytest.raises(UpstreamTimeout, match=r"silent for 0\.2 seconds"):
        one.upstream.send(post(body, timeout=0.2))
    assert read_whole(one.upstream, post(json.dumps(chat()).encode()))


@needs_openssl
def test_an_exchange_over_tls_that_was_aborted_before_it_began_sends_nothing(
    behind_tls: BehindTls, to: To, model: FakeModel
) -> None:
    one = to(behind_tls(model).url, model)
    before = len(model.stats()["requests"])
    exchange = post()
    exchange.abort()
    with pytest.raises(Aborted):
        one.upstream.send(exchange)
    assert len(model.stats()["requests"]) == before


@needs_openssl
def test_a_certificate_that_nobody_trusts_is_an_error_that_says_what_to_do(
    behind_tls: BehindTls, model: FakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    front = behind_tls(model)
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    with pytest.raises(UpstreamError, match=r"not trusted: self-signed.*REQUESTS_CA_BUNDLE"):
        RemoteUpstream(front.url, KEY, 1).send(post())


@needs_openssl
def test_a_certificate_of_another_host_is_not_taken(
    behind_tls: BehindTls, model: FakeModel
) -> None:
    url = behind_tls(model).url.replace("localhost", "127.0.0.1")
    with pytest.raises(UpstreamError, match="not trusted: IP address mismatch"):
        RemoteUpstream(url, KEY, 1).send(post())


def test_certificates_that_cannot_be_read_are_an_error_that_names_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere/bundle.pem")
    with pytest.raises(UpstreamError, match=r"certificates in /nowhere/bundle\.pem cannot be read"):
        RemoteUpstream("https://localhost", KEY, 1)


@needs_openssl
@pytest.mark.parametrize("body", [chat(), streamed()])
def test_an_answer_over_tls_is_never_handed_to_a_relay_process_and_holds_a_thread(
    behind_tls: BehindTls, to: To, model: FakeModel, body: dict[str, Any]
) -> None:
    one = to(behind_tls(model).url, model)
    may_wait = threading.Event()
    nobody: Any = None
    carriers = Carriers(nobody, nobody, may_wait.is_set, nobody)
    with pytest.raises(ApiError) as caught:
        one.send(body, carriers=carriers)
    assert (caught.value.status, caught.value.code) == (503, "busy")
    assert caught.value.retry_after
    may_wait.set()
    assert read(one.send(body, carriers=carriers))
    assert one.outcome.status == 200
