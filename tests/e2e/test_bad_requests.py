"""Faulty requests: each gets an error that says how to fix it, and no other client notices."""

from __future__ import annotations

import gzip
import json
import socket
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.fixtures import Launch
from tests.support.program import (
    CHAT,
    Program,
    chat,
    error_of,
    eventually,
    fake,
    raw_post,
    read_answer,
)

MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def shared(launch_once: Launch) -> Program:
    models = {"Talker-7b": fake(aliases=["talky"]), "Vectors": fake(mode="Embedding")}
    return launch_once({**models, "Hidden": fake(unlisted=True)}, max_body_mb=1)


@pytest.fixture
def program(shared: Program) -> Iterator[Program]:
    """The shared program, which works after each test as before."""
    yield shared
    for view in shared.get("/api/models").json()["models"]:
        shared.becomes(view["name"], in_flight=0, waiting=0)
    assert shared.ask("Talker-7b").status_code == 200


def refusal(program: Program, body: bytes | str, path: str = CHAT) -> dict[str, Any]:
    """The error of a 400 for this body."""
    headers = {"Content-Type": "application/json"}
    answer = program.request("POST", path, data=body, headers=headers)
    assert answer.status_code == 400, answer.text
    assert answer.headers["Content-Type"] == "application/json"
    return error_of(answer)


# --- bodies -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"hello",
        b'{"model": "Talker-7b"',
        b'{"model": "Talker-7b",}',
        b"{'model': 'Talker-7b'}",
        b'{"model": "Talker-7b"} {}',
        b'{"model": "\xff\xfe"}',
        b'{"model": "Talker-7b", "messages": ' + b"[" * 200_000,
        b"\x1f\x8b\x08 compressed",
        b'["Talker-7b"]',
        b'"Talker-7b"',
        b"7",
        b"null",
    ],
    ids=lambda body: repr(body[:40]),
)
def test_a_body_that_is_no_json_object_is_refused(program: Program, body: bytes) -> None:
    assert refusal(program, body)["code"] == "invalid_json"


@pytest.mark.parametrize(
    "body", ["{}", '{"messages": []}', '{"model": ""}', '{"model": null}', '{"model": ["a"]}']
)
def test_a_body_that_names_no_model_is_refused(program: Program, body: str) -> None:
    error = refusal(program, body)
    assert (error["code"], error["param"]) == ("model_missing", "model")


def test_an_unknown_model_is_answered_with_the_near_names(program: Program) -> None:
    answer = program.ask("Talker-7B")
    assert answer.status_code == 404
    error = error_of(answer)
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert error["type"] == "invalid_request_error"
    assert "Talker-7b" in error["message"]
    assert "talky" in error_of(program.ask("talkyy"))["message"]
    far = error_of(program.ask("????"))["message"]
    assert "Talker-7b" in far
    assert "Hidden" not in far + error_of(program.ask("Hiddn"))["message"]


def test_a_model_of_another_mode_is_refused_with_the_right_endpoint(program: Program) -> None:
    error = refusal(program, json.dumps(chat("Vectors")))
    assert error["code"] == "endpoint_not_supported"
    assert "/v1/embeddings" in error["message"]
    error = refusal(program, json.dumps({"model": "talky", "input": "Hi"}), "/v1/embeddings")
    assert CHAT in error["message"]
    assert program.model("Vectors")["state"] == "stopped"


def test_a_body_over_the_limit_is_refused_and_the_client_can_read_it(program: Program) -> None:
    large = json.dumps(chat("Talker-7b", x="x" * (65 * MEGABYTE))).encode()

    def in_pieces() -> Iterator[bytes]:
        for start in range(0, len(large), MEGABYTE):
            yield large[start : start + MEGABYTE]

    for body in (large, in_pieces()):
        answer = program.request("POST", CHAT, data=body)
        assert answer.status_code == 413
        error = error_of(answer)
        assert error["code"] == "body_too_large"
        assert "max_body_mb" in error["message"]


def test_a_body_of_just_the_limit_is_taken_and_one_byte_more_is_not(program: Program) -> None:
    start = json.dumps(chat("Talker-7b", x=""))[:-2]
    for length, status in ((MEGABYTE, 200), (MEGABYTE + 1, 413)):
        body = start + "x" * (length - len(start) - 2) + '"}'
        assert len(body) == length
        headers = {"Content-Type": "application/json"}
        assert program.request("POST", CHAT, data=body, headers=headers).status_code == status


@pytest.mark.parametrize(
    ("coding", "encode"), [("gzip", gzip.compress), ("deflate", zlib.compress)]
)
def test_a_compressed_body_reaches_the_model_as_it_was_before(
    program: Program, coding: str, encode: Callable[[bytes], bytes]
) -> None:
    body = json.dumps(chat("Talker-7b", {"echo": True}, user="packed")).encode()
    headers = {"Content-Type": "application/json", "Content-Encoding": coding}
    answer = program.request("POST", CHAT, data=encode(body), headers=headers)
    assert answer.status_code == 200, answer.text
    seen = answer.json()
    assert seen["body"].encode() == body
    sent = {name.lower(): value for name, value in seen["headers"]}
    assert "content-encoding" not in sent
    assert sent["content-length"] == str(len(body))


def test_a_body_that_is_too_large_once_it_is_decoded_is_refused(program: Program) -> None:
    bomb = gzip.compress(b" " * (64 * MEGABYTE))
    assert len(bomb) < MEGABYTE
    answer = program.request("POST", CHAT, data=bomb, headers={"Content-Encoding": "gzip"})
    assert (answer.status_code, error_of(answer)["code"]) == (413, "body_too_large")


def test_a_body_in_chunks_is_taken_as_any_other(program: Program) -> None:
    body = json.dumps(chat("Talker-7b")).encode()
    pieces = (body[start : start + 7] for start in range(0, len(body), 7))
    assert program.request("POST", CHAT, data=pieces).status_code == 200


def test_a_body_that_is_cut_short_reaches_no_model(program: Program) -> None:
    assert program.ask("Talker-7b").status_code == 200
    before = program.stats("Talker-7b")["connections"]
    body = json.dumps(chat("Talker-7b", user="cut")).encode()
    for sent in (b"", body[:20], body[:-1]):
        connection = program.raw(raw_post(CHAT, sent, length=len(body)))
        assert program.get("/health").status_code == 200
        connection.close()
    chunked = b"POST %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" % CHAT.encode()
    program.raw(chunked + b"ff\r\n" + body[:20]).close()
    assert program.ask("Talker-7b").status_code == 200
    stats = program.stats("Talker-7b")
    assert not any('"cut"' in seen["body"] for seen in stats["requests"])
    assert before <= stats["connections"] <= before + 3  # ours, for these numbers


def test_a_client_that_only_half_closes_its_side_does_not_hang(program: Program) -> None:
    body = json.dumps(chat("Talker-7b")).encode()
    connection = program.raw(raw_post(CHAT, body[:-5], length=len(body)))
    connection.shutdown(socket.SHUT_WR)
    assert connection.recv(1) == b""
    connection.close()


# --- heads ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        ["X-Bomb: " + "x" * 300_000],
        [f"X-Bomb-{number}: x" for number in range(20_000)],
    ],
    ids=["long", "many"],
)
def test_a_header_bomb_is_refused_and_the_client_can_read_it(
    program: Program, headers: list[str]
) -> None:
    body = json.dumps(chat("Talker-7b")).encode()
    status, answer = read_answer(program.raw(raw_post(CHAT, body, *headers)))
    assert status == 431
    assert json.loads(answer)["error"]["code"] == "headers_too_large"


def test_what_is_not_http_is_refused(program: Program) -> None:
    for data in (b"\x16\x03\x01\x02\x00\x01 hello\r\n\r\n", b"hello\r\n\r\n"):
        status, answer = read_answer(program.raw(data))
        assert status == 400
        assert json.loads(answer)["error"]["message"]


def test_an_unreadable_length_is_refused(program: Program) -> None:
    request = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n".encode()
    status, answer = read_answer(program.raw(request))
    assert status == 400
    assert json.loads(answer)["error"]["type"] == "invalid_request_error"


# --- paths and calls --------------------------------------------------------------------


def test_an_unknown_path_is_an_error_of_the_usual_shape(program: Program) -> None:
    for path in ("/v1/chat/completion", "/nothing", "/api/nothing", "/v1/../etc/passwd"):
        answer = program.get(path)
        assert answer.status_code == 404
        assert error_of(answer)["code"] == "not_found"
    for path in ("/v1/nothing", "/api/nothing"):  # also to a client that prefers a page
        answer = program.get(path, headers={"Accept": "text/html"})
        assert (answer.status_code, error_of(answer)["code"]) == (404, "not_found")


def test_a_wrong_method_is_an_error_that_names_the_right_ones(program: Program) -> None:
    answer = program.get(CHAT)
    assert answer.status_code == 405
    assert error_of(answer)["code"] == "method_not_allowed"
    assert "POST" in answer.headers["Allow"]
    assert program.request("DELETE", "/v1/models").status_code == 405


@pytest.mark.parametrize(
    "content_type", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
)
@pytest.mark.parametrize(
    "path", ["/api/models/talky/stop", "/api/models/stop", "/api/config/reload"]
)
def test_a_call_that_changes_something_needs_json_so_that_no_foreign_form_can_make_it(
    program: Program, path: str, content_type: str | None
) -> None:
    assert program.ask("talky").status_code == 200
    headers = {"Content-Type": content_type} if content_type else {}
    answer = program.request("POST", path, data="a=b", headers=headers)
    assert answer.status_code == 415
    assert "application/json" in error_of(answer)["message"]
    assert program.model("talky")["state"] == "ready"


@pytest.mark.parametrize("lines", ["0", "-1", "many", "1.5", "10001", "9" * 5000, "", "٣"])
@pytest.mark.parametrize("call", ["logs", "logs/stream"])
def test_a_number_of_lines_that_is_none_is_refused(program: Program, call: str, lines: str) -> None:
    answer = program.get(f"/api/models/talky/{call}", params={"lines": lines})
    assert answer.status_code == 400
    error = error_of(answer)
    assert (error["code"], error["param"]) == ("bad_parameter", "lines")


def test_an_unknown_model_is_not_found_by_the_manager_either(program: Program) -> None:
    for call in ("", "/logs", "/logs/stream"):
        answer = program.get(f"/api/models/nobody{call}")
        assert (answer.status_code, error_of(answer)["code"]) == (404, "model_not_found")
    for verb in ("start", "stop", "restart"):
        assert program.post(f"/api/models/nobody/{verb}").status_code == 404


def test_hundreds_of_idle_connections_keep_nobody_from_being_answered(program: Program) -> None:
    idle = [program.raw(b"") for _ in range(300)]
    idle += [program.raw(b"POST / HTTP/1.1\r\nContent-Le") for _ in range(300)]
    eventually(lambda: program.get("/health").status_code == 200)
    assert program.ask("talky").status_code == 200
    for connection in idle:
        connection.close()
