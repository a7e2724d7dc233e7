"""API keys in the running program: limits that hold under a crowd and over a restart, and what
each key has used."""

from __future__ import annotations

import json
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
    PASSWORD,
    PATIENCE,
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

CROWD = 60
PASSING = 30
PRICE = {"tiers": [{"input": "1", "output": "2"}]}  # a million tokens
ENDLESS = {"chunks": 5000, "interval": 0.05}
ANSWER = Decimal("0.000023")  # 17 tokens in, 3 out


class Client:
    """A client with a key."""

    def __init__(self, program: Program, secret: str) -> None:
        self.program = program
        self.headers = {"Authorization": f"Bearer {secret}"}

    def ask(self, fake: dict[str, Any] | None = None, **fields: Any) -> requests.Response:
        stream = bool(fields.get("stream"))
        body = chat(fields.pop("model", "Model"), fake, **fields)
        return self.program.post(CHAT, body, headers=self.headers, stream=stream)

    def me(self) -> dict[str, Any]:
        answer = self.program.get("/api/keys/me", headers=self.headers)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found


def add_key(program: Program, name: str, **limits: Any) -> Client:
    answer = program.post("/api/keys", {"name": name, **limits})
    assert answer.status_code == 201, answer.text
    assert "no-store" in answer.headers["Cache-Control"]
    return Client(program, answer.json()["secret"])


def at_once(ask: Callable[[], requests.Response]) -> list[requests.Response]:
    """The answers to a crowd that sends its requests in the same moment."""
    together = threading.Barrier(CROWD)

    def one() -> requests.Response:
        together.wait(PATIENCE)
        return ask()

    with ThreadPoolExecutor(CROWD) as pool:
        return [future.result() for future in [pool.submit(one) for _ in range(CROWD)]]


def statuses(answers: list[requests.Response]) -> Counter[int]:
    return Counter(answer.status_code for answer in answers)


def run_command(
    program: Program, *arguments: str, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Runs a command of `llm-manager` on the program's data directory."""
    return subprocess.run(
        [sys.executable, "-m", "commands", *arguments, "--data-dir", str(program.data)],
        cwd=ROOT,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def shell(program: Program, *arguments: str, stdin: str = "") -> str:
    """What a command prints that succeeds."""
    done = run_command(program, *arguments, stdin=stdin)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def program(launch_once: Launch) -> Program:
    models = {
        "Model": fake(price=PRICE, aliases=["gpt"]),
        "Queued": fake(max_concurrency=1),
        "Other": fake(),
    }
    program = launch_once(models, threads=CROWD + 40)
    program.command("Model", "start")
    return program


def test_limits_hold_under_a_crowd_and_over_a_kill(launch: Launch) -> None:
    program = launch({"Model": fake(price=PRICE)}, threads=CROWD + 40)
    program.command("Model", "start")
    fast = add_key(program, "fast", requests_per_minute=PASSING)
    poor = add_key(program, "poor", budget={"amount": str(PASSING * ANSWER), "period": "month"})
    port = program.port
    used_up = "is used up until"

    def spend() -> requests.Response:
        # Refused for what is in flight, it sends it again, as the SDKs do.
        (answer,) = eventually(lambda: settled(poor.ask(max_tokens=3)))
        return answer

    def settled(answer: requests.Response) -> list[requests.Response] | None:
        if answer.status_code == 200 or used_up in error_of(answer)["message"]:
            return [answer]  # a refusal itself counts as false
        assert (answer.status_code, error_of(answer)["code"]) == (429, "budget_exceeded")
        assert answer.headers["Retry-After"] == "1"
        return None

    answers = at_once(fast.ask)
    assert statuses(answers) == {200: PASSING, 429: CROWD - PASSING}
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert error_of(refused)["code"] == "rate_limited"
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert refused.headers["x-ratelimit-limit-requests"] == str(PASSING)
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert statuses(at_once(spend)) == {200: PASSING, 429: CROWD - PASSING}

    program.kill()
    program.start(port)
    fast.ask()
    assert used_up in error_of(poor.ask())["message"]
    assert Decimal(poor.me()["now"]["spent_this_month"]) == PASSING * ANSWER
    # A credit allows one more.
    credit = {"key": "poor", "amount": f"-{ANSWER}", "note": "sorry"}
    assert program.post("/api/adjustments", credit).status_code == 201
    assert poor.ask().status_code == 200
    assert poor.ask().status_code == 429

    program.end()  # all rows are in the database now
    statement = "SELECT started_ms FROM requests WHERE status = 200 AND key = 'fast'"
    answered = sorted(ms for (ms,) in query(program.usage_db, statement))
    assert len(answered) >= PASSING
    # Where this machine is so slow that a minute has passed, more may pass: but never in a minute.
    for first, beyond in zip(answered, answered[PASSING:], strict=False):
        assert beyond - first >= 60_000


def test_concurrent_requests_are_never_more_than_the_limit(program: Program) -> None:
    ann = add_key(program, "concurrent", max_concurrency=7)
    refused = "llm_manager_requests_total"
    before = program.counted(refused, status="429")
    gate = threading.Event()

    def held() -> requests.Response:
        answer = ann.ask(ENDLESS, stream=True)
        if answer.status_code == 200:
            gate.wait(PATIENCE)
        answer.close()
        return answer

    with ThreadPoolExecutor(1) as pool:
        crowd = pool.submit(at_once, held)
        eventually(lambda: program.counted(refused, status="429") == before + CROWD - 7)
        assert ann.me()["now"]["in_flight"] == 7
        gate.set()
        assert statuses(crowd.result()) == {200: 7, 429: CROWD - 7}
    eventually(lambda: ann.me()["now"]["in_flight"] == 0)  # released by the disconnect
    assert ann.ask().status_code == 200


def test_a_stream_that_passes_the_budget_is_finished_and_the_next_refused(
    program: Program,
) -> None:
    ann = add_key(program, "streaming", budget={"amount": "0.00001", "period": "day"})
    answer = ann.ask({"chunks": 50}, stream=True)
    assert answer.status_code == 200
    events = events_of(answer)
    assert events[-1] == "[DONE]"
    assert len(text_of(events).split()) == 50
    refused = ann.ask()
    assert (refused.status_code, error_of(refused)["code"]) == (429, "budget_exceeded")


def test_a_client_that_disconnects_pays_for_its_prompt_as_well(program: Program) -> None:
    ann = add_key(program, "long", tokens_per_minute=1000)
    long = [{"role": "user", "content": "word " * 4000}]
    answer = ann.ask({"chunks": 2000, "interval": 0.02}, stream=True, messages=long)
    next(answer.iter_lines())
    answer.close()
    row = eventually(lambda: program.get("/api/usage/requests?key=long").json()["requests"])[0]
    assert (row["status"], row["estimated"]) == (499, True)
    assert row["prompt_tokens"] > 4000
    refused = ann.ask()
    assert (refused.status_code, error_of(refused)["code"]) == (429, "rate_limited")


def test_tokens_a_minute_are_those_of_the_answers(program: Program) -> None:
    ann = add_key(program, "short", tokens_per_minute=30)
    first = ann.ask(max_tokens=3)
    assert first.headers["x-ratelimit-limit-tokens"] == "30"
    assert ann.ask(max_tokens=3).status_code == 200
    refused = ann.ask(max_tokens=3)
    assert (refused.status_code, error_of(refused)["code"]) == (429, "rate_limited")
    assert refused.headers["x-ratelimit-remaining-tokens"] == "0"


def test_each_request_counts_for_its_key_in_rows_totals_and_its_own_view(
    program: Program,
) -> None:
    ann, bob = add_key(program, "ann", owner="Ann"), add_key(program, "bob")
    for _ in range(3):
        assert ann.ask().status_code == 200
    assert bob.ask().status_code == 200
    assert bob.ask({"status": 500}).status_code == 500

    def totals() -> dict[str, tuple[int, int, str]] | None:
        found = program.get("/api/usage/summary?group=key").json()
        by_key = {
            one["key"]: (one["requests"], one["errors"], one["cost"]) for one in found["groups"]
        }
        is_complete = found["pending"] == 0 and {"ann", "bob"} <= set(by_key)
        return by_key if is_complete and by_key["bob"][0] == 2 else None

    by_key = eventually(totals)
    assert by_key["ann"] == (3, 0, str(3 * ANSWER))
    assert by_key["bob"] == (2, 1, str(ANSWER))
    rows = program.get("/api/usage/requests?key=ann").json()["requests"]
    assert [row["key"] for row in rows] == ["ann"] * 3
    me = ann.me()
    assert (me["name"], me["owner"], me["state"]) == ("ann", "Ann", "active")
    assert me["usage"]["month"]["requests"] == 3
    assert me["usage"]["month"]["cost"] == str(3 * ANSWER)
    assert me["now"]["requests"] == 3
    assert "secret" not in me


def test_a_key_sees_and_uses_only_its_models(program: Program) -> None:
    ann = add_key(program, "restricted", models=["gpt"])
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


def test_a_key_of_higher_priority_is_served_first_and_equal_ones_in_their_order(
    program: Program,
) -> None:
    usual, urgent = add_key(program, "usual"), add_key(program, "urgent", priority=3)
    sent = [(usual, "first"), (usual, "second"), (urgent, "urgent"), (urgent, "urgent too")]
    waiting = []
    holder = usual.ask(ENDLESS, model="Queued", stream=True)
    for number, (client, user) in enumerate(sent):
        waiting.append(background(lambda c=client, u=user: c.ask(model="Queued", user=u)))
        program.becomes("Queued", waiting=number + 1, in_flight=1)
    holder.close()
    assert [answer.result().status_code for answer in waiting] == [200] * 4
    bodies = [json.loads(one["body"]) for one in program.stats("Queued")["requests"][-4:]]
    assert [body["user"] for body in bodies] == ["urgent", "urgent too", "first", "second"]


def test_what_a_shell_changes_takes_effect_within_a_moment(launch: Launch) -> None:
    program = launch({"Model": fake()})
    assert program.ask("Model").status_code == 200  # open, as no key is defined
    ann = Client(program, shell(program, "keys", "add", "ann"))
    eventually(lambda: program.ask("Model").status_code == 401)
    assert ann.ask().status_code == 200
    shell(program, "keys", "change", "ann", "--raw")
    eventually(lambda: program.get("/api/keys/ann").json()["raw"] is True)
    shell(program, "keys", "change", "ann", "--no-raw")
    eventually(lambda: program.get("/api/keys/ann").json()["raw"] is False)
    shell(program, "keys", "revoke", "ann")
    eventually(lambda: ann.ask().status_code == 401)

    assert program.get("/api/models", headers=NOBODY).status_code == 200
    shell(program, "users", "add", "ann", "--password-stdin", stdin=PASSWORD)
    eventually(lambda: program.get("/api/models", headers=NOBODY).status_code == 401)
    token = shell(program, "users", "add-token", "prometheus")
    headers = {"Authorization": f"Bearer {token}"}
    eventually(lambda: program.get("/metrics", headers=headers).status_code == 200)
    refused = program.post("/api/models/stop", headers=headers)
    assert (refused.status_code, error_of(refused)["code"]) == (403, "admin_needed")
    with program.get("/api/events", headers=headers, stream=True) as stream:
        lines = stream.iter_lines()
        next(lines)
        shell(program, "users", "remove-token", "prometheus")
        assert list(lines)  # what was on its way, and then its end

    failed = run_command(program, "keys", "revoke", "nobody")
    assert failed.returncode == 1
    assert "no key" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_the_openai_sdk_raises_its_own_errors_for_refusals(program: Program) -> None:
    ann = add_key(program, "sdk", requests_per_minute=1)
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
    ann = add_key(program, "secretive")
    program.add_account("admin")
    secret = ann.headers["Authorization"].split()[1]
    number = ann.ask().headers["X-LLM-Manager-Request"]
    eventually(lambda: program.get(f"/api/usage/requests/{number}").status_code == 200)
    wrong = {"Authorization": "Bearer sk-llm-mistyped-but-nearly-right"}
    assert program.post(CHAT, chat("Model"), headers=wrong).status_code == 401
    written = program.output.encode()
    for path in program.data.rglob("*"):
        if path.is_file():
            written += path.read_bytes()
    assert CHAT.encode() in written
    for hidden in (secret, PASSWORD, "mistyped"):
        assert hidden.encode() not in written
