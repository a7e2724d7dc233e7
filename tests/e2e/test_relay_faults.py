"""Model servers that misbehave and clients that disconnect: each gets its error, and no slot of
the program stays held. What the bytes between them may be is in integration/relay."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.fixtures import Launch
from tests.support.program import (
    CHAT,
    FEW_THREADS,
    PATIENCE,
    PLACES,
    Program,
    background,
    chat,
    error_of,
    events_of,
    eventually,
    fake,
    frozen,
    gated,
    raw_post,
    reset,
    text_of,
)

ENDLESS = {"chunks": 5000, "interval": 0.05}
SILENT = {"fail": "silent"}
UPSTREAM_TIMEOUT = 3  # seconds
ENDINGS = ("close", "reset")


@pytest.fixture(scope="module")
def gates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gates")


@pytest.fixture(scope="module")
def shared(launch_once: Launch, gates: Path) -> Program:
    gated_models = {f"Gated {how}": fake(prefix=gated(gates / how)) for how in ENDINGS}
    models = {"Model": fake(), "Cold": fake(), "Single": fake(max_concurrency=1), **gated_models}
    # With so few threads a slot that is not released shows at once.
    return launch_once(models, threads=FEW_THREADS, upstream_timeout=UPSTREAM_TIMEOUT)


@pytest.fixture
def program(shared: Program) -> Iterator[Program]:
    """The shared program, in which no test may leave a slot held."""
    yield shared
    nothing_is_held(shared)


def nothing_is_held(program: Program) -> None:
    """Nothing is in flight, and as many requests as ever get a slot at once."""

    def is_idle() -> bool:
        models = program.get("/api/models").json()["models"]
        return all(view["in_flight"] == view["waiting"] == 0 for view in models)

    assert eventually(is_idle)
    assert eventually(lambda: program.ask("Model").status_code == 200)
    with ExitStack() as held:
        for _ in range(PLACES):
            held.enter_context(program.held("Model"))
        program.becomes("Model", in_flight=PLACES)
    program.becomes("Model", in_flight=0)


def broken_stream(program: Program, behaviour: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The text of a stream that breaks off, and the error with which it ends."""
    with program.ask("Model", behaviour, stream=True) as answer:
        assert answer.status_code == 200
        *events, last = events_of(answer)
    assert list(last) == ["error"]
    error: dict[str, Any] = last["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return text_of(events), error


# --- before an answer has begun ---------------------------------------------------------


def test_a_server_that_breaks_off_is_an_upstream_error(program: Program) -> None:
    answer = program.ask("Model", {"fail": "reset"})
    assert (answer.status_code, error_of(answer)["code"]) == (502, "upstream_error")
    assert program.ask("Model").status_code == 200


def test_a_server_that_exits_over_a_request_is_an_upstream_error_and_is_started_again(
    program: Program,
) -> None:
    assert program.ask("Model").status_code == 200
    before = program.stats("Model")["pid"]
    answer = program.ask("Model", {"fail": "exit"})
    assert (answer.status_code, error_of(answer)["code"]) == (502, "upstream_error")
    eventually(lambda: program.ask("Model").status_code == 200)
    assert program.stats("Model")["pid"] != before


def test_a_server_that_is_silent_for_too_long_is_an_upstream_timeout(program: Program) -> None:
    stops = {"fail": "silent", "fail_at": "between", "after": 2, "chunks": 9}
    stream = background(lambda: broken_stream(program, stops))
    answer = program.ask("Model", SILENT)
    assert (answer.status_code, error_of(answer)["code"]) == (504, "upstream_timeout")
    text, error = stream.result(PATIENCE)
    assert text == " token0 token1"
    assert error["code"] == "upstream_timeout"


# --- in the middle of an answer ---------------------------------------------------------


@pytest.mark.parametrize(("fail", "fail_at"), [("reset", "between"), ("exit", "inside")])
def test_a_stream_that_breaks_ends_with_an_error_and_never_in_half_an_event(
    program: Program, fail: str, fail_at: str
) -> None:
    behaviour = {"chunks": 9, "interval": 0.02, "fail": fail, "fail_at": fail_at, "after": 3}
    text, error = broken_stream(program, behaviour)
    assert text == " token0 token1 token2"
    assert error["code"] == "upstream_error"


@pytest.mark.parametrize(
    "behaviour",
    [{"framing": "chunked", "size": 5_000_000}, {"size": 5_000_000}],
)
def test_an_answer_that_breaks_after_its_head_was_sent_never_looks_complete(
    program: Program, behaviour: dict[str, Any]
) -> None:
    with pytest.raises(requests.RequestException):
        program.ask("Model", {"fail": "close", "fail_at": "inside", **behaviour})


def test_other_streams_go_on_while_one_breaks(program: Program) -> None:
    with program.held("Model") as held:
        broken_stream(program, {"fail": "reset", "fail_at": "between", "after": 1})
        pieces = held.iter_content(1)
        assert len([next(pieces) for _ in range(1000)]) == 1000


# --- clients that disconnect ------------------------------------------------------------


def disconnect(connection: socket.socket, how: str) -> None:
    """Closes a client's connection in good order, or as the system of a crashed one does."""
    if how == "reset":
        reset(connection)
    else:
        connection.close()


def aborted(program: Program) -> int:
    """How many requests the model's server has seen broken off."""
    count: int = program.stats("Model")["aborted"]
    return count


@pytest.fixture(params=ENDINGS)
def how(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_client_that_disconnects_during_the_start_leaves_the_queue_and_the_start_goes_on(
    program: Program, gates: Path, how: str
) -> None:
    model = f"Gated {how}"
    for _ in range(3):
        connection = program.raw_chat(model, {})
        program.becomes(model, state="starting", waiting=1)
        disconnect(connection, how)
        program.becomes(model, state="starting", waiting=0)
    (gates / how).touch()
    program.becomes(model, state="ready")
    assert program.stats(model)["served"] == 1  # the probe; nothing is computed for the others


def test_a_client_that_disconnects_during_a_silent_prompt_releases_the_model(
    program: Program, how: str
) -> None:
    assert program.ask("Model").status_code == 200
    for streamed in (False, True):
        before = program.stats("Model")["aborted"]
        connection = program.raw_chat("Model", SILENT, stream=streamed)
        program.becomes("Model", in_flight=1)
        eventually(lambda: program.stats("Model")["open"] == 1)
        disconnect(connection, how)
        assert eventually(lambda before=before: aborted(program) - before) == 1
        program.becomes("Model", in_flight=0)


def test_a_client_that_disconnects_between_chunks_releases_the_model(
    program: Program, how: str
) -> None:
    assert program.ask("Model").status_code == 200
    before = program.stats("Model")["aborted"]
    endings = [ENDLESS, {"fail": "silent", "fail_at": "between", "after": 2}]
    for number, behaviour in enumerate(endings, 1):
        connection = program.raw_chat("Model", behaviour, stream=True)
        received = b""
        while b"token1" not in received:
            received += connection.recv(4096)
        disconnect(connection, how)
        assert eventually(lambda n=number: max(0, aborted(program) - before - n + 1)) == 1
        program.becomes("Model", in_flight=0)


def test_a_client_that_disconnects_while_it_is_queued_leaves_the_queue(
    program: Program, how: str
) -> None:
    with program.held("Single"):
        connection = program.raw_chat("Single", {}, user=f"disconnected by {how}")
        program.becomes("Single", in_flight=1, waiting=1)
        disconnect(connection, how)
        program.becomes("Single", in_flight=1, waiting=0)
    assert eventually(lambda: program.ask("Single").status_code == 200)
    bodies = [seen["body"] for seen in program.stats("Single")["requests"]]
    assert not any("disconnected by" in body for body in bodies)


def test_a_client_that_disconnects_at_once_or_with_its_answer_unread_disturbs_nobody(
    program: Program, how: str
) -> None:
    for behaviour in ({}, {"size": 5_000_000}, {"chunks": 500, "chunk_bytes": 20_000}):
        for _ in range(3):
            disconnect(program.raw_chat("Model", behaviour, stream=True), how)


def test_a_client_that_reads_nothing_gets_all_once_it_reads(
    program: Program,
) -> None:
    assert program.ask("Model").status_code == 200
    server = program.stats("Model")["pid"]
    size = 30_000_000
    connection = program.raw_chat("Model", {"size": size, "framing": "chunked"})
    program.becomes("Model", in_flight=1)
    assert program.ask("Model").status_code == 200
    assert program.stats("Model")["pid"] == server
    received = 0
    while piece := connection.recv(1 << 16):
        received += len(piece)
        if piece.endswith(b"0\r\n\r\n"):
            break
    assert received > size
    connection.close()


def test_one_connection_carries_many_requests(program: Program) -> None:
    body = json.dumps(chat("Model")).encode()
    with requests.Session() as session:
        session.trust_env = False
        for _ in range(5):
            assert session.post(program.url + CHAT, data=body).status_code == 200
            with session.post(program.url + CHAT, json=chat("Model", stream=True)) as answer:
                assert events_of(answer)[-1] == "[DONE]"


def test_a_frozen_server_does_not_keep_the_program_from_answering(program: Program) -> None:
    assert program.ask("Model").status_code == 200
    with frozen(program.stats("Model")["pid"]):
        connection = program.raw(raw_post(CHAT, json.dumps(chat("Model")).encode()))
        program.becomes("Model", in_flight=1)
        assert program.get("/health").status_code == 200
        assert program.ask("Cold").status_code == 200
    connection.close()
