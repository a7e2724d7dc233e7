"""Model servers that misbehave and clients that leave: each is told, nothing stays held."""

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
    PLACES,
    Program,
    chat,
    error_of,
    events_of,
    eventually,
    fake,
    frozen,
    gated,
    plain,
    raw_post,
    reset,
    text_of,
)

ENDLESS = {"chunks": 5000, "interval": 0.05}
SILENT = {"fail": "silent"}


@pytest.fixture(scope="module")
def shared(launch_once: Launch) -> Program:
    models = {"Model": fake(), "Cold": fake(), "Deaf": plain("--deaf")}
    return launch_once(models, threads=FEW_THREADS)  # one lost place shows at once


@pytest.fixture(scope="module")
def impatient(launch_once: Launch) -> Program:
    return launch_once({"Model": fake()}, threads=FEW_THREADS, upstream_timeout=1)


@pytest.fixture
def program(shared: Program) -> Iterator[Program]:
    """The shared program, of which no test may have kept anything."""
    yield shared
    nothing_is_held(shared)


def nothing_is_held(program: Program) -> None:
    """Nothing is under way, and as many requests as ever find a place at once."""
    for view in program.get("/api/models").json()["models"]:
        program.becomes(view["name"], in_flight=0, waiting=0)
    assert eventually(lambda: program.ask("Model").status_code == 200)
    with ExitStack() as held:
        for _ in range(PLACES):
            held.enter_context(program.held("Model"))
        program.becomes("Model", in_flight=PLACES)
    program.becomes("Model", in_flight=0)


def broken_stream(program: Program, behaviour: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """What a stream that breaks off said, and the error with which it ends."""
    with program.ask("Model", behaviour, stream=True) as answer:
        assert answer.status_code == 200
        *events, last = events_of(answer)
    assert list(last) == ["error"]
    error: dict[str, Any] = last["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return text_of(events), error


# --- before an answer has begun ---------------------------------------------------------


@pytest.mark.parametrize(
    "behaviour",
    [
        {"fail": "close"},
        {"fail": "reset"},
        {"garbage": True},
        {"html": True},
        {"length": 10, "close": "unsaid"},
        {"framing": "length", "fail": "reset", "fail_at": "inside"},
        {"headers": {"Transfer-Encoding": "gzip"}, "framing": "close"},
        {"headers": {"Content-Length": "many"}, "framing": "close"},
        {"headers": {"Bad Name ": "x"}},
    ],
    ids=str,
)
def test_a_server_that_breaks_off_or_is_no_http_server_is_an_upstream_error(
    program: Program, behaviour: dict[str, Any]
) -> None:
    answer = program.ask("Model", behaviour)
    assert answer.status_code == 502
    assert error_of(answer)["code"] == "upstream_error"
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


def test_a_server_that_refuses_connections_is_an_upstream_error(program: Program) -> None:
    for _ in range(2):
        answer = program.ask("Deaf")
        assert (answer.status_code, error_of(answer)["code"]) == (502, "upstream_error")


def test_a_server_that_closes_its_kept_connections_is_asked_on_a_new_one(
    program: Program,
) -> None:
    for close in ("unsaid", "said", "unsaid"):
        assert program.ask("Model", {"close": close}).status_code == 200
        assert program.ask("Model").status_code == 200


def test_a_server_that_is_silent_for_too_long_is_an_upstream_timeout(impatient: Program) -> None:
    answer = impatient.ask("Model", SILENT)
    assert (answer.status_code, error_of(answer)["code"]) == (504, "upstream_timeout")
    # It said more bytes than it sends.
    answer = impatient.ask("Model", {"length": 10})
    assert (answer.status_code, error_of(answer)["code"]) == (504, "upstream_timeout")
    said, error = broken_stream(
        impatient, {"fail": "silent", "fail_at": "between", "after": 2, "chunks": 9}
    )
    assert said == " token0 token1"
    assert error["code"] == "upstream_timeout"
    nothing_is_held(impatient)


def test_a_server_that_sends_more_than_it_said_does_not_disturb_the_next_answer(
    program: Program,
) -> None:
    whole = program.ask("Model").content
    cut = program.ask("Model", {"length": -20})
    assert cut.content == whole[:-20]
    for _ in range(3):
        assert program.ask("Model").content == whole


# --- in the middle of an answer ---------------------------------------------------------


@pytest.mark.parametrize("fail", ["close", "reset", "exit"])
@pytest.mark.parametrize("fail_at", ["between", "inside"])
def test_a_stream_that_breaks_ends_with_an_error_and_never_in_half_an_event(
    program: Program, fail: str, fail_at: str
) -> None:
    behaviour = {"chunks": 9, "interval": 0.02, "fail": fail, "fail_at": fail_at, "after": 3}
    said, error = broken_stream(program, behaviour)
    assert said == " token0 token1 token2"
    assert error["code"] == "upstream_error"


def test_a_stream_without_done_ends_with_an_error(program: Program) -> None:
    said, error = broken_stream(program, {"done": False})
    assert said == " token0 token1 token2"
    assert "[DONE]" in error["message"]


@pytest.mark.parametrize(
    "behaviour",
    [{"framing": "chunked"}, {"framing": "chunked", "size": 5_000_000}, {"size": 5_000_000}],
)
def test_an_answer_that_breaks_after_its_head_has_gone_on_never_looks_whole(
    program: Program, behaviour: dict[str, Any]
) -> None:
    with pytest.raises(requests.RequestException):
        program.ask("Model", {"fail": "close", "fail_at": "inside", **behaviour})


def test_other_streams_go_on_while_one_breaks(program: Program) -> None:
    with program.held("Model") as held:
        broken_stream(program, {"fail": "reset", "fail_at": "between", "after": 1})
        pieces = held.iter_content(1)
        assert len([next(pieces) for _ in range(1000)]) == 1000


# --- clients that leave -----------------------------------------------------------------


def leave(connection: socket.socket, how: str) -> None:
    """Ends a client's connection in good order, or as the system of a crashed one does."""
    if how == "reset":
        reset(connection)
    else:
        connection.close()


@pytest.fixture(params=["close", "reset"])
def how(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_client_that_leaves_during_the_start_leaves_the_line_and_the_start_goes_on(
    launch: Launch, tmp_path: Path, how: str
) -> None:
    gate = tmp_path / "gate"
    program = launch({"Cold": fake(prefix=gated(gate)), "Model": fake()}, threads=FEW_THREADS)
    for _ in range(3):
        connection = program.raw_chat("Cold", {})
        program.becomes("Cold", state="starting", waiting=1)
        leave(connection, how)
        program.becomes("Cold", state="starting", waiting=0)
    gate.touch()
    program.becomes("Cold", state="ready")
    assert program.stats("Cold")["served"] == 1  # the probe; nobody computes for those who left
    nothing_is_held(program)


def test_a_client_that_leaves_during_a_silent_prompt_frees_the_model(
    program: Program, how: str
) -> None:
    assert program.ask("Model").status_code == 200
    for streamed in (False, True):
        before = program.stats("Model")["aborted"]
        connection = program.raw_chat("Model", SILENT, stream=streamed)
        program.becomes("Model", in_flight=1)
        eventually(lambda: program.stats("Model")["open"] == 1)
        leave(connection, how)
        eventually(lambda before=before: program.stats("Model")["aborted"] == before + 1)
        program.becomes("Model", in_flight=0)


def test_a_client_that_leaves_between_chunks_frees_the_model(program: Program, how: str) -> None:
    assert program.ask("Model").status_code == 200
    before = program.stats("Model")["aborted"]
    endings = [ENDLESS, {"fail": "silent", "fail_at": "between", "after": 2}]
    for number, behaviour in enumerate(endings, 1):
        connection = program.raw_chat("Model", behaviour, stream=True)
        received = b""
        while b"token1" not in received:
            received += connection.recv(4096)
        leave(connection, how)
        eventually(lambda n=number: program.stats("Model")["aborted"] == before + n)
        program.becomes("Model", in_flight=0)


def test_a_client_that_leaves_while_it_waits_for_its_turn_leaves_the_line(
    launch: Launch, how: str
) -> None:
    program = launch({"Model": fake(max_concurrency=1)}, threads=FEW_THREADS)
    with program.held("Model"):
        connection = program.raw_chat("Model", {}, user="gone")
        program.becomes("Model", in_flight=1, waiting=1)
        leave(connection, how)
        program.becomes("Model", in_flight=1, waiting=0)
    assert eventually(lambda: program.ask("Model").status_code == 200)
    assert not any('"gone"' in seen["body"] for seen in program.stats("Model")["requests"])


def test_a_client_that_leaves_at_once_or_with_its_answer_unread_disturbs_nobody(
    program: Program, how: str
) -> None:
    for behaviour in ({}, {"size": 5_000_000}, {"chunks": 500, "chunk_bytes": 20_000}):
        for _ in range(3):
            leave(program.raw_chat("Model", behaviour, stream=True), how)


def test_a_client_that_reads_nothing_holds_its_model_back_and_gets_all_when_it_reads(
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
