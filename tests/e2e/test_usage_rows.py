"""A request's row: on the disk when its client has the last byte, and sane whatever the model's
server reports."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import socket
import sqlite3
import sys
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.fixtures import Launch
from tests.support.program import CHAT, Program, chat, eventually, fake, frozen, raw_post, reset
from tests.support.usage_rows import query

ID = "X-LLM-Manager-Request"
ENDLESS = {"chunks": 5000, "interval": 0.02}
PROMPT = 17  # tokens, of the fake upstream
PER_MILLION = 1_000_000
PRICE = {"tiers": [{"input": "1", "output": "2"}]}
INPUT, OUTPUT = 1_000_000_000, 2_000_000_000  # the same in billionths
FIFTEEN_DIGITS = 123_456_123_456_789  # billionths
NAMES = ["=1+1", "a \"b\", 'c'; --", "通义千问"]

# A model server that says what the request's `say` has, word for word.
SAYS = """
import json, os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # else the body waits until the head is acknowledged

    def do_GET(self):
        self.answer("{}")

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.answer(asked.get("say", "{}"), asked.get("kind", "application/json"))

    def answer(self, text, kind="application/json"):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def program(launch_once: Launch) -> Program:
    said = {"Default": {"command": [sys.executable, "-c", SAYS]}}
    dear = {"tiers": [{"input": "123456.123456789", "output": "0.000000001"}]}
    free = {"tiers": [{"input": 0, "output": 0}]}
    models = {
        "Model": fake(price=PRICE),
        "Said": {"price": dear, **said},
        "Free": fake(price=free),
        **{name: fake(price=PRICE) for name in NAMES},
    }
    return launch_once(models, timezone="UTC")


def row_of(program: Program, number: str) -> dict[str, Any] | None:
    """The row of that id as it is in the file now."""
    with closing(sqlite3.connect(program.usage_db)) as connection:
        connection.row_factory = sqlite3.Row
        statement = "SELECT * FROM requests WHERE id = ?"
        row = connection.execute(statement, (uuid.UUID(number).bytes,)).fetchone()
    return None if row is None else dict(row)


def priced_row(program: Program, number: str) -> dict[str, Any]:
    """The row of that id, once it has its cost."""

    def priced() -> dict[str, Any] | None:
        row = row_of(program, number)
        return row if row is not None and row["cost"] is not None else None

    return eventually(priced)


# --- when the client has the last byte --------------------------------------------------


def has_length(answer: bytes) -> bool:
    """Whether an answer of known length is whole."""
    head, _, body = answer.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return bool(lengths) and len(body) >= int(lengths[0].partition(b":")[2])


def says_done(answer: bytes) -> bool:
    """Whether a stream has said that it is over, behind which most clients read no more."""
    return b"data: [DONE]\n\n" in answer


def says_why(answer: bytes) -> bool:
    return b'data: {"error":' in answer and b"\n\n" in answer.partition(b'data: {"error":')[2]


def id_in(answer: bytes) -> str:
    """The id in an answer's head."""
    (number,) = re.findall(rf"(?im)^{ID}: ([0-9a-f-]+)\r$", answer.decode("latin-1"))
    return str(number)


@dataclass(frozen=True)
class Case:
    """A request, when its client has all of the answer, and what is in its row."""

    body: bytes
    row: dict[str, Any]
    is_whole: Callable[[bytes], bool] = has_length
    path: str = CHAT


def case(body: dict[str, Any], is_whole: Callable[[bytes], bool] = has_length, **row: Any) -> Case:
    return Case(
        json.dumps(body).encode(), {"asked_for": "Model", "model": "Model", **row}, is_whole
    )


NOBODY = {"model": "", "asked_for": "", "prompt_tokens": 0, "completion_tokens": 0}
WHOLE = {"status": 200, "prompt_tokens": PROMPT, "estimated": 0, "error": None}
OF_MODEL = {"mode": "Chat", "scheme": "Default", "key": "", "endpoint": CHAT}
BREAKS = {"chunks": 9, "fail": "reset", "fail_at": "between", "after": 4}
BROKEN = chat("Model", BREAKS, stream=True)
# The chunks that came, and the prompt by its bytes: the model has read it.
CUT = {
    "status": 502,
    "prompt_tokens": len(json.dumps(BROKEN)) // 4,
    "completion_tokens": 4,
    "estimated": 1,
}
CASES = {
    "whole": case(chat("Model"), **WHOLE, **OF_MODEL, streamed=0, completion_tokens=3),
    "stream": case(
        chat("Model", {"chunks": 5}, stream=True),
        says_done,
        **WHOLE,
        streamed=1,
        completion_tokens=5,
    ),
    "cut short": case(BROKEN, says_why, **CUT, streamed=1),
    "large": case(chat("Model", {"size": 3_000_000}), status=200),
    "refused by the model": case(chat("Model", {"status": 500}), status=500, completion_tokens=0),
    "no answer": case(chat("Model", {"fail": "close"}), status=502, completion_tokens=0),
    "unknown": case(chat("Nobody"), **{**NOBODY, "asked_for": "Nobody"}, status=404),
    "half a character": case(chat("x\ud800"), **{**NOBODY, "asked_for": "x?"}, status=404),
    "no name": case({"messages": []}, **NOBODY, status=400),
    "no JSON": Case(b'{"model": ', {**NOBODY, "status": 400, "endpoint": CHAT}),
    "wrong mode": Case(
        b'{"model": "Model", "input": "x"}',
        {**NOBODY, "model": "Model", "asked_for": "Model", "status": 400},
        path="/v1/embeddings",
    ),
}


def read_to_the_last_byte(program: Program, case: Case) -> str:
    """Sends the request, and returns the answer's id as soon as it is whole."""
    answer = b""
    with program.raw(raw_post(case.path, case.body)) as connection:
        while not case.is_whole(answer):
            piece = connection.recv(65536)
            assert piece, f"it ended too soon: {answer!r}"
            answer += piece
    return id_in(answer)


def check(name: str, row: dict[str, Any]) -> None:
    expected = CASES[name].row
    assert {key: row[key] for key in expected} == expected, name
    moments = [row[key] for key in ("started_ms", "leased_ms", "first_byte_ms", "ended_ms")]
    known = [moment for moment in moments if moment is not None]
    assert known == sorted(known), name
    if row["status"] >= 400 and name != "refused by the model":
        assert row["error"], name


@pytest.mark.skipif(os.name == "nt", reason="Windows stops no process")
@pytest.mark.parametrize("name", CASES)
def test_a_row_is_on_the_disk_when_the_client_has_the_last_byte(
    program: Program, name: str
) -> None:
    assert program.ask("Model").status_code == 200
    with closing(sqlite3.connect(program.usage_db, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")  # nobody waits for the database
        number = read_to_the_last_byte(program, CASES[name])
        with frozen(program.pid):
            waiting = b"".join(path.read_bytes() for path in program.data.glob("requests-?.jsonl"))
            assert waiting.count(uuid.UUID(number).hex.encode()) == 1
    check(name, eventually(lambda: row_of(program, number)))


def test_a_row_outlives_a_kill_at_the_last_byte(launch: Launch) -> None:
    program = launch({"Model": fake(price=PRICE)})
    assert program.ask("Model").status_code == 200
    eventually(lambda: query(program.usage_db, "SELECT 1 FROM requests"))
    with (
        closing(sqlite3.connect(program.usage_db, isolation_level=None)) as other,
        ThreadPoolExecutor(len(CASES)) as clients,
    ):
        other.execute("BEGIN IMMEDIATE")  # so that none of them is in the database
        asked = clients.map(lambda case: read_to_the_last_byte(program, case), CASES.values())
        numbers = dict(zip(CASES, asked, strict=True))
        program.kill()
    assert len(query(program.usage_db, "SELECT 1 FROM requests")) == 1

    program.start()
    for name, number in numbers.items():
        row = priced_row(program, number)
        check(name, row)
        shown = program.get(f"/api/usage/requests/{number}").json()
        assert shown["id"] == number
        expected = row["prompt_tokens"] * INPUT + row["completion_tokens"] * OUTPUT
        assert row["cost"] == expected // PER_MILLION, name
    assert len(query(program.usage_db, "SELECT 1 FROM requests")) == len(CASES) + 1


def test_a_client_that_disconnects_pays_for_what_had_come(program: Program) -> None:
    numbers = []
    for disconnect in (socket.socket.close, reset):
        connection = program.raw_chat("Model", ENDLESS, stream=True)
        answer = b""
        while answer.count(b"data: {") < 3:
            answer += connection.recv(65536)
        disconnect(connection)
        numbers.append(id_in(answer))
    for number in numbers:
        row = priced_row(program, number)
        assert (row["status"], row["streamed"], row["estimated"]) == (499, 1, 1)
        assert row["error"] == "the client disconnected"
        assert 3 <= row["completion_tokens"] < ENDLESS["chunks"]
        assert row["prompt_tokens"] > 0  # which the model has read
        cost = row["prompt_tokens"] * INPUT + row["completion_tokens"] * OUTPUT
        assert row["cost"] == cost // PER_MILLION


# --- what the model's server reports of its tokens ---------------------------------------


def said(**usage: Any) -> dict[str, str]:
    return {"say": json.dumps({"choices": [], "usage": usage})}


def streamed(*usages: dict[str, Any]) -> dict[str, Any]:
    """Two chunks of content, then these."""
    chunks = [{"choices": [{"delta": {"content": "x"}}]}] * 2
    chunks += [{"choices": [], "usage": usage} for usage in usages]
    text = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    return {"say": text, "kind": "text/event-stream", "stream": True}


HUGE = 2**31 - 1  # the largest count that is believed
# What is said, and the prompt's, the cached and the completion's tokens in the row.
COUNTS: list[tuple[dict[str, Any], tuple[int, int, int]]] = [
    (said(prompt_tokens=-5, completion_tokens=7), (0, 0, 7)),
    (said(prompt_tokens=10, completion_tokens=-7), (10, 0, 0)),
    (said(prompt_tokens="12", completion_tokens=5), (0, 0, 5)),
    (said(prompt_tokens=10**30, completion_tokens=5), (0, 0, 5)),
    (said(prompt_tokens=HUGE + 1, completion_tokens=1e300), (0, 0, 0)),
    (said(prompt_tokens=HUGE, completion_tokens=HUGE), (HUGE, 0, HUGE)),
    (said(prompt_tokens=5, prompt_tokens_details={"cached_tokens": 9}), (5, 5, 0)),
    (said(prompt_tokens=5, prompt_tokens_details={"cached_tokens": -9}), (5, 0, 0)),
    (said(prompt_tokens=None, completion_tokens=[1]), (0, 0, 0)),
    (said(), (0, 0, 0)),
    ({"say": '{"usage": "many"}'}, (0, 0, 0)),
    ({"say": '{"usage": {"prompt_tokens": 1' + "0" * 5000 + "}}"}, (0, 0, 0)),
    (streamed({"prompt_tokens": 10, "completion_tokens": 4}), (10, 0, 4)),
    (streamed({"prompt_tokens": -1, "completion_tokens": "4"}), (0, 0, 2)),
    (streamed(), (0, 0, 2)),
]


def test_whatever_a_server_reports_of_its_tokens_the_row_and_its_cost_are_sane(
    program: Program,
) -> None:
    total, prompts, numbers, bodies = 0, 0, [], []
    for fields, _ in COUNTS:
        bodies.append({"model": "Said", "messages": [], **fields})
        answer = program.post(CHAT, bodies[-1])
        assert answer.status_code == 200
        assert answer.text == fields["say"] or fields.get("stream")
        numbers.append(answer.headers[ID])
    for number, body, (fields, expected) in zip(numbers, bodies, COUNTS, strict=True):
        row = priced_row(program, number)
        is_unsaid = expected in ((0, 0, 0), (0, 0, 2))
        if expected == (0, 0, 2):  # a stream: its chunks, and the prompt by its bytes
            expected = (len(json.dumps(body)) // 4, 0, 2)
        counted = (row["prompt_tokens"], row["cached_tokens"], row["completion_tokens"])
        assert counted == expected, fields
        assert row["estimated"] == is_unsaid
        prompt, _, completion = counted
        exact = prompt * FIFTEEN_DIGITS + completion
        assert row["cost"] == (exact + PER_MILLION // 2) // PER_MILLION
        total += row["cost"]
        prompts += prompt
    summary = eventually(lambda: settled(program, model="Said"))
    assert summary["requests"] == len(COUNTS)
    assert summary["prompt_tokens"] == prompts
    assert summary["cost"] == f"{total // 10**9}.{total % 10**9:09}".rstrip("0")


def test_a_price_of_zero_is_a_price(program: Program) -> None:
    row = priced_row(program, program.ask("Free").headers[ID])
    assert row["price"] is not None
    assert row["cost"] == 0
    summary = eventually(lambda: settled(program, model="Free"))
    assert (summary["cost"], summary["unpriced"]) == ("0", 0)


def settled(program: Program, **asked: str) -> dict[str, Any] | None:
    """The sums of this month, once everything is in them with its price."""
    sums: dict[str, Any] = program.get("/api/usage/summary", params=asked).json()
    return sums if sums["pending"] == 0 else None


# --- names -------------------------------------------------------------------------------


def table_of(text: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text.decode("utf-8-sig"), newline="")))


def test_a_model_of_any_name_is_metered_billed_and_no_formula(program: Program) -> None:
    shown = {name: f"'{name}" if name.startswith("=") else name for name in NAMES}
    numbers = [program.ask(name).headers[ID] for name in NAMES]
    for name, number in zip(NAMES, numbers, strict=True):
        row = priced_row(program, number)
        assert (row["model"], row["asked_for"]) == (name, name)
        assert row["cost"] == (PROMPT * INPUT + 3 * OUTPUT) // PER_MILLION
        sums = eventually(lambda name=name: settled(program, model=name))
        assert (sums["requests"], sums["cost"]) == (1, "0.000023")
        listed = program.get("/api/usage/requests", params={"model": name}).json()["requests"]
        assert [request["model"] for request in listed] == [name]

    ((day,),) = query(
        program.usage_db,
        "SELECT date(max(started_ms) / 1000, 'unixepoch') FROM requests WHERE model = ?",
        NAMES[-1],
    )
    made = program.post("/api/exports?wait=1", {"day": day})
    assert made.ok, made.text
    bill = program.get(f"/api/exports/{made.json()['file']}")
    header, *rows = table_of(bill.content)
    of_model = {row[1]: dict(zip(header, row, strict=True)) for row in rows}
    for name in NAMES:
        row = of_model[shown[name]]
        assert (row["date"], row["requests"], row["cost"]) == (day, "1", "0.000023")
    grouped = program.get("/api/usage/summary", params={"group": "model", "format": "csv"})
    header, *rows = table_of(grouped.content)
    assert set(shown.values()) <= {row[header.index("model")] for row in rows}
