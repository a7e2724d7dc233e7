"""API keys as their owners meet them: limits that hold under a crowd and over a restart, and what
each has used."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import openai
import pytest
import requests

from tests.support.fixtures import Launch
from tests.support.program import (
    CHAT,
    NOBODY,
    ROOT,
    Program,
    background,
    chat,
    error_of,
    events_of,
    eventually,
    fake,
    text_of,
)
from tests.support.usage_rows import query

CROWD = 200
PRICE = {"tiers": [{"input": "1", "output": "2"}]}  # a million tokens
ANSWER = Decimal("0.000023")  # 17 tokens in, 3 out


class Client:
    """Who has a key."""

    def __init__(self, program: Program, secret: str) -> None:
        self.program = program
        self.headers = {"Authorization": f"Bearer {secret}"}

    def ask(self, fake: dict[str, Any] | None = None, **fields: Any) -> requests.Response:
        stream = bool(fields.get("stream"))
        body = chat("Model", fake, **fields)
        return self.program.post(CHAT, body, headers=self.headers, stream=stream)

    def me(self) -> dict[str, Any]:
        answer = self.program.get("/api/keys/me", headers=self.headers)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found


def make(program: Program, name: str = "ann", **limits: Any) -> Client:
    answer = program.post("/api/keys", {"name": name, **limits})
    assert answer.status_code == 201, answer.text
    assert "no-store" in answer.headers["Cache-Control"]
    return Client(program, answer.json()["secret"])


def at_once(ask: Callable[[], requests.Response]) -> list[requests.Response]:
    """A crowd that asks in the same moment."""
    together = threading.Barrier(CROWD)

    def one() -> requests.Response:
        together.wait(60)
        return ask()

    with ThreadPoolExecutor(CROWD) as pool:
        return [future.result() for future in [pool.submit(one) for _ in range(CROWD)]]


def statuses(answers: list[requests.Response]) -> Counter[int]:
    return Counter(answer.status_code for answer in answers)


def shell(program: Program, *arguments: str, text: str = "") -> str:
    """What a command of `llm-manager` prints."""
    done = subprocess.run(
        [sys.executable, "-m", "commands", *arguments, "--data-dir", str(program.data)],
        cwd=ROOT,
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.strip()


@pytest.fixture
def program(launch: Launch) -> Program:
    program = launch({"Model": fake(price=PRICE)}, threads=300)
    program.command("Model", "start")
    return program


def moments(program: Program) -> list[int]:
    """When each request was asked for that was answered, epoch ms."""
    rows = query(program.usage_db, "SELECT started_ms FROM requests WHERE status = 200")
    return sorted(ms for (ms,) in rows)


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM])
def test_of_two_hundred_at_once_a_hundred_pass_and_none_more_after_a_restart(
    program: Program, by: signal.Signals
) -> None:
    ann = make(program, requests_per_minute=100)
    port = program.port
    answers = at_once(ann.ask)
    assert statuses(answers) == {200: 100, 429: 100}
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert error_of(refused)["code"] == "rate_limited"
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert refused.headers["x-ratelimit-limit-requests"] == "100"
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    if by is signal.SIGKILL:
        program.kill()
    else:
        program.end()
    program.start(port)
    for _ in range(5):
        ann.ask()
    program.end()  # all rows are in the database now
    answered = moments(program)
    assert len(answered) >= 100
    # Where this machine is so slow that a minute has passed, more may have: but never in a minute.
    for first, beyond in zip(answered, answered[100:], strict=False):
        assert beyond - first >= 60_000


def test_tasks_at_once_are_never_more_than_the_limit(program: Program) -> None:
    ann = make(program, max_concurrency=7)
    gate = threading.Event()

    def held() -> requests.Response:
        answer = ann.ask({"chunks": 2000, "interval": 0.05}, stream=True)
        if answer.status_code == 200:
            gate.wait(60)
        answer.close()
        return answer

    with ThreadPoolExecutor(1) as pool:
        crowd = pool.submit(at_once, held)
        eventually(lambda: program.counted("llm_manager_requests_total", status="429") >= CROWD - 7)
        assert ann.me()["now"]["in_flight"] == 7
        gate.set()
        assert statuses(crowd.result()) == {200: 7, 429: CROWD - 7}
    eventually(lambda: ann.me()["now"]["in_flight"] == 0)  # a client that has left gives it back
    assert ann.ask().status_code == 200


def test_a_budget_is_not_passed_by_a_crowd_nor_forgotten_by_a_restart(program: Program) -> None:
    ann = make(program, budget={"amount": str(100 * ANSWER), "period": "month"})
    port = program.port
    used_up = "is used up until"

    def ask() -> requests.Response:
        # Refused for what is under way, it asks again, as the SDKs do.
        (answer,) = eventually(lambda: settled(ann.ask(max_tokens=3)))
        return answer

    def settled(answer: requests.Response) -> list[requests.Response] | None:
        if answer.status_code == 200 or used_up in error_of(answer)["message"]:
            return [answer]  # a refusal itself counts as false
        assert (answer.status_code, error_of(answer)["code"]) == (429, "budget_exceeded")
        assert answer.headers["Retry-After"] == "1"
        return None

    assert statuses(at_once(ask)) == {200: 100, 429: 100}
    program.kill()
    program.start(port)
    assert used_up in error_of(ann.ask())["message"]
    me = ann.me()
    assert Decimal(me["now"]["spent_this_month"]) == 100 * ANSWER
    # A credit lets it go on.
    credit = {"key": "ann", "amount": f"-{ANSWER}", "note": "sorry"}
    assert program.post("/api/adjustments", credit).status_code == 201
    assert ann.ask().status_code == 200
    assert ann.ask().status_code == 429


def test_a_stream_that_passes_the_budget_is_finished_and_the_next_refused(
    program: Program,
) -> None:
    ann = make(program, budget={"amount": "0.00001", "period": "day"})
    answer = ann.ask({"chunks": 50}, stream=True)
    assert answer.status_code == 200
    events = events_of(answer)
    assert events[-1] == "[DONE]"
    assert len(text_of(events).split()) == 50
    refused = ann.ask()
    assert (refused.status_code, error_of(refused)["code"]) == (429, "budget_exceeded")


def test_who_leaves_before_the_last_event_pays_for_the_prompt_as_well(program: Program) -> None:
    ann = make(program, tokens_per_minute=1000)
    long = [{"role": "user", "content": "word " * 4000}]
    answer = ann.ask({"chunks": 2000, "interval": 0.02}, stream=True, messages=long)
    next(answer.iter_lines())
    answer.close()
    row = eventually(lambda: program.get("/api/usage/requests?key=ann").json()["requests"])[0]
    assert (row["status"], row["estimated"]) == (499, True)
    assert row["prompt_tokens"] > 4000
    refused = ann.ask()
    assert (refused.status_code, error_of(refused)["code"]) == (429, "rate_limited")


def test_tokens_a_minute_are_those_of_the_answers(program: Program) -> None:
    ann = make(program, tokens_per_minute=30)
    first = ann.ask(max_tokens=3)
    assert first.headers["x-ratelimit-limit-tokens"] == "30"
    assert ann.ask(max_tokens=3).status_code == 200
    refused = ann.ask(max_tokens=3)
    assert (refused.status_code, error_of(refused)["code"]) == (429, "rate_limited")
    assert refused.headers["x-ratelimit-remaining-tokens"] == "0"


def test_each_request_is_its_keys_in_rows_sums_and_its_own_view(program: Program) -> None:
    ann, bob = make(program, owner="Ann"), make(program, "bob")
    for _ in range(3):
        assert ann.ask().status_code == 200
    assert bob.ask().status_code == 200
    assert bob.ask({"status": 500}).status_code == 500
    by_key = eventually(
        lambda: (
            found
            if (found := program.get("/api/usage/summary?group=key").json())["pending"] == 0
            and found["requests"] == 5
            else None
        )
    )
    sums = {one["key"]: (one["requests"], one["errors"], one["cost"]) for one in by_key["groups"]}
    assert sums["ann"] == (3, 0, str(3 * ANSWER))
    assert sums["bob"] == (2, 1, str(ANSWER))
    rows = program.get("/api/usage/requests?key=ann").json()["requests"]
    assert [row["key"] for row in rows] == ["ann"] * 3
    me = ann.me()
    assert (me["name"], me["owner"], me["state"]) == ("ann", "Ann", "active")
    assert me["usage"]["month"]["requests"] == 3
    assert me["usage"]["month"]["cost"] == str(3 * ANSWER)
    assert me["now"]["requests"] == 3
    assert "secret" not in me


def test_a_key_sees_and_uses_only_its_models(launch: Launch) -> None:
    program = launch({"Model": fake(aliases=["gpt"]), "Other": fake()})
    ann = make(program, models=["gpt"])
    listed = program.get("/v1/models", headers=ann.headers).json()["data"]
    assert [one["id"] for one in listed] == ["Model"]
    assert ann.ask().status_code == 200
    refused = program.post(CHAT, chat("Other"), headers=ann.headers)
    assert (refused.status_code, error_of(refused)["code"]) == (403, "model_not_allowed")
    assert program.model("Other")["state"] == "stopped"
    hidden = program.get("/v1/models/Other", headers=ann.headers)
    assert hidden.status_code == 403
    unknown = program.post(CHAT, chat("Othe"), headers=ann.headers)
    assert unknown.status_code == 404
    assert "Other" not in error_of(unknown)["message"]


def test_a_key_of_higher_priority_goes_first_and_equal_ones_in_their_order(launch: Launch) -> None:
    program = launch({"Model": fake(max_concurrency=1)})
    first, later = make(program), make(program, "bob", priority=3)
    asked = [(first, "first"), (first, "second"), (later, "urgent"), (later, "urgent too")]
    waiting = []
    holder = first.ask({"chunks": 5000, "interval": 0.05}, stream=True)
    for number, (who, user) in enumerate(asked):
        waiting.append(background(lambda who=who, user=user: who.ask(user=user)))
        program.becomes("Model", waiting=number + 1, in_flight=1)
    holder.close()
    assert [answer.result().status_code for answer in waiting] == [200] * 4
    bodies = [json.loads(one["body"]) for one in program.stats("Model")["requests"][-4:]]
    assert [body["user"] for body in bodies] == ["urgent", "urgent too", "first", "second"]


def test_keys_of_the_shell_are_known_within_a_moment(program: Program) -> None:
    assert program.ask("Model").status_code == 200  # open, as none is defined
    secret = shell(program, "keys", "add", "ann", "--max-concurrency", "2")
    ann = Client(program, secret)
    eventually(lambda: program.ask("Model").status_code == 401)
    assert ann.ask().status_code == 200
    new = Client(program, shell(program, "keys", "rotate", "ann"))
    eventually(lambda: new.ask().status_code == 200)
    assert ann.ask().status_code == 200
    shell(program, "keys", "rotate", "ann", "--keep-old-hours", "0")
    eventually(lambda: new.ask().status_code == 401)
    eventually(lambda: ann.ask().status_code == 401)
    newest = Client(program, shell(program, "keys", "rotate", "ann"))
    eventually(lambda: newest.ask().status_code == 200)
    shell(program, "keys", "revoke", "ann")
    eventually(lambda: newest.ask().status_code == 401)
    assert "revoked" in shell(program, "keys", "list")


def test_what_goes_wrong_in_the_shell_is_said(program: Program) -> None:
    for arguments, said in (
        (("keys", "revoke", "nobody"), "no key"),
        (("keys", "add", "*"), "cannot be named"),
        (("keys", "add", "a", "--budget", "10/year"), "day or a month"),
        (("users", "remove", "nobody"), "no account"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "commands", *arguments, "--data-dir", str(program.data)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 1
        assert said in done.stderr
        assert "Traceback" not in done.stderr


def test_a_password_of_the_shell_locks_the_pages_and_a_token_opens_the_api(
    program: Program,
) -> None:
    assert program.get("/api/models", headers=NOBODY).status_code == 200
    shell(program, "users", "add", "ann", "--password-stdin", text="correct horse\n")
    eventually(lambda: program.get("/api/models", headers=NOBODY).status_code == 401)
    token = shell(program, "users", "add-token", "prom")
    headers = {"Authorization": f"Bearer {token}"}
    eventually(lambda: program.get("/metrics", headers=headers).status_code == 200)
    refused = program.post("/api/models/stop", headers=headers)
    assert (refused.status_code, error_of(refused)["code"]) == (403, "admin_needed")
    assert program.ask("Model").status_code == 200  # no key is defined


def test_who_is_signed_out_sees_no_more_of_a_stream(program: Program) -> None:
    shell(program, "users", "add", "ann", "--password-stdin", text="correct horse\n")
    eventually(lambda: program.get("/api/models", headers=NOBODY).status_code == 401)
    token = shell(program, "users", "add-token", "watcher")
    headers = {"Authorization": f"Bearer {token}"}
    eventually(lambda: program.get("/api/session", headers=headers).status_code == 200)
    with program.get("/api/events", headers=headers, stream=True) as stream:
        lines = stream.iter_lines()
        next(lines)
        shell(program, "users", "remove-token", "watcher")
        assert list(lines)  # what was on its way, and then its end


def test_openais_own_library_takes_the_refusals_for_what_they_are(program: Program) -> None:
    ann = make(program, requests_per_minute=1)
    secret = ann.headers["Authorization"].split()[1]

    def client(key: str) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{program.url}/v1", api_key=key, max_retries=0)

    def ask(key: str) -> Any:
        with client(key) as connected:
            return connected.chat.completions.with_raw_response.create(
                model="Model", messages=[{"role": "user", "content": "Hi"}]
            )

    with pytest.raises(openai.AuthenticationError) as wrong:
        ask("sk-wrong")
    assert wrong.value.code == "invalid_api_key"
    assert ask(secret).headers["x-ratelimit-remaining-requests"] == "0"
    with pytest.raises(openai.RateLimitError) as limited:
        ask(secret)
    assert limited.value.code == "rate_limited"


def test_no_secret_is_in_any_file_or_output(program: Program) -> None:
    ann = make(program)
    shell(program, "users", "add", "ann", "--password-stdin", text="correct horse\n")
    secret = ann.headers["Authorization"].split()[1]
    ann.ask()
    bad = {"Authorization": "Bearer sk-llm-mistyped-but-nearly-right"}
    program.post(CHAT, chat("Model"), headers=bad)
    program.end()
    seen = program.output.encode()
    for path in program.data.rglob("*"):
        if path.is_file():
            seen += path.read_bytes()
    assert CHAT.encode() in seen
    for hidden in (secret, "correct horse", "mistyped"):
        assert hidden.encode() not in seen
