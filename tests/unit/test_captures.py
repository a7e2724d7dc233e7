"""What is kept of whole requests: no secret of their headers, and never more than is allowed."""

from __future__ import annotations

import io

from manager.captures import MAX_BYTES, MAX_CAPTURES, Captures
from manager.clock import Clock
from manager.interfaces import ENDPOINTS
from manager.relay import Body, Headers, RawBody, RelayRequest, RelayResponse, Spooled

CHAT = "/v1/chat/completions"


def asked(
    body: bytes | Spooled = b"{}", headers: Headers | None = None, target: str = CHAT
) -> RelayRequest:
    raw: Body = RawBody(body)
    return RelayRequest(ENDPOINTS[CHAT], target, headers or [], raw)


def test_secrets_in_headers_and_in_the_query_are_masked() -> None:
    secrets = ["Authorization", "X-Api-Key", "Cookie", "Proxy-Authorization", "X-Csrftoken"]
    headers = [(name, "s3cr3t") for name in secrets] + [("X-Request-Id", "7")]
    capture = Captures(Clock()).begin("1", "M", asked(headers=headers, target="/x?api_key=s3cr3t"))
    answer = RelayResponse("200 OK", [("Set-Cookie", "s3cr3t")], iter([]), lambda: None)
    assert list(capture.record(answer)) == []
    shown = capture.to_json()
    assert "s3cr3t" not in repr(shown)
    assert ("X-Request-Id", "7") in shown["request"]["headers"]


def test_an_answer_is_kept_as_it_goes_out() -> None:
    closed: list[bool] = []
    capture = Captures(Clock()).begin("1", "M", asked(b'{"a": 1}'))
    answer = RelayResponse(
        "404 Not Found", [], iter([b"no ", b"\xff"]), lambda: closed.append(True)
    )
    recorded = capture.record(answer)
    assert list(recorded) == [b"no ", b"\xff"]
    recorded.close()
    assert closed == [True]
    shown = capture.to_json()
    assert (shown["status"], shown["request"]["body"]) == (404, '{"a": 1}')
    assert shown["answer"]["body"] == "no \ufffd"
    assert shown["answer"]["is_whole"]


def test_of_a_large_body_the_beginning_is_kept() -> None:
    file = io.BytesIO(bytes(MAX_BYTES + 10))
    body = Spooled(file, [b"head", (0, MAX_BYTES + 10)])
    kept = Captures(Clock()).begin("1", "M", asked(body)).to_json()["request"]
    assert (len(kept["body"]), kept["size"], kept["is_whole"]) == (MAX_BYTES, MAX_BYTES + 14, False)


def test_the_last_ones_are_kept_until_their_model_is_not_captured_any_more() -> None:
    captures = Captures(Clock())
    for number in range(MAX_CAPTURES + 5):
        captures.begin(str(number), f"M{number % 2}", asked())
    assert len(captures.all()) == MAX_CAPTURES
    assert captures.find("4") is None
    assert captures.all()[0].id == str(MAX_CAPTURES + 4)
    captures.discard("M0")
    assert {one.model for one in captures.all()} == {"M1"}
