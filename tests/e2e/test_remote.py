"""A program whose model is another program's, or a provider's: metered, steered and kept secret."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.support.fixtures import Launch
from tests.support.program import (
    ROOT,
    Program,
    error_of,
    events_of,
    eventually,
    fake,
    free_port,
    text_of,
)
from tests.support.servers import FakeModel
from tests.support.tls import Certificate, TlsFront, needs_openssl
from tests.support.usage_rows import query

SECRET = "sk-of-a-provider-0123456789"
TIERS = {"tiers": [{"input": "100000", "output": "200000"}]}  # a million tokens


@pytest.fixture
def far(launch: Launch) -> Program:
    """A program on another machine, which asks for a key."""
    return launch({"Qwen": fake()}, require_key=True)


@pytest.fixture
def near(far: Program, monkeypatch: pytest.MonkeyPatch, launch: Launch) -> Program:
    """A program with a model that is that one's, and a key for it in its environment."""
    monkeypatch.setenv("FAR_KEY", far.add_key("near"))
    return launch(
        {
            "Mine": {
                "aliases": ["gpt"],
                "url": f"{far.url}/v1",
                "api_key": "${FAR_KEY}",
                "served_model_name": "Qwen",
                "request": {"strip": ["seed"]},
                "price": TIERS,
            }
        }
    )


def rows(program: Program) -> list[tuple[Any, ...]]:
    columns = "model, asked_for, scheme, status, streamed, prompt_tokens, completion_tokens"
    return query(program.usage_db, f"SELECT {columns} FROM requests ORDER BY id")


def test_a_model_of_another_program_is_used_as_if_it_were_here(near: Program, far: Program) -> None:
    shown = near.becomes("Mine", state="ready")
    assert (shown["url"], shown["port"], shown["scheme"]) == (f"{far.url}/v1", None, None)
    assert far.model("Qwen")["state"] == "stopped"
    answer = near.ask("gpt", {"echo": True}, seed=1)
    sent = json.loads(answer.json()["body"])
    assert (sent["model"], "seed" in sent) == ("Qwen", False)
    stream = near.ask("Mine", {"chunks": 4}, stream=True)
    assert text_of(events_of(stream)) == " token0 token1 token2 token3"
    assert near.ask("Mine", {"chunks": 5}).json()["usage"]["completion_tokens"] == 5
    eventually(lambda: len(rows(near)) == len(rows(far)) == 3)
    assert rows(near)[1:] == [
        ("Mine", "Mine", "", 200, 1, 17, 4),
        ("Mine", "Mine", "", 200, 0, 17, 5),
    ]
    assert rows(far)[1:] == [
        ("Qwen", "Qwen", "Default", 200, 1, 17, 4),
        ("Qwen", "Qwen", "Default", 200, 0, 17, 5),
    ]


def test_its_tokens_are_priced_and_its_hours_are_not(near: Program) -> None:
    near.becomes("Mine", state="ready")
    assert near.ask("Mine").status_code == 200

    def priced() -> Any:
        (found,) = near.get("/api/usage/requests").json()["requests"]
        return found["cost"] and found

    assert eventually(priced)["cost"] == "2.3"
    assert query(near.usage_db, "SELECT COUNT(*) FROM runs") == [(0,)]
    assert near.get("/api/models/Mine/logs").status_code == 200


def test_an_sdk_is_answered_and_a_stream_that_a_client_leaves_ends_on_the_other_machine(
    near: Program, far: Program
) -> None:
    client = openai.OpenAI(base_url=f"{near.url}/v1", api_key="none", max_retries=0)
    answer = client.chat.completions.create(
        model="gpt", messages=[{"role": "user", "content": "Hi"}]
    )
    assert answer.choices[0].message.content == " token0 token1 token2"
    before = far.stats("Qwen")["aborted"]
    with near.held("Mine"):
        assert far.stats("Qwen")["open"] == 1
    eventually(lambda: far.stats("Qwen")["aborted"] == before + 1)


def test_its_key_is_in_no_page_call_log_or_error(near: Program, far: Program) -> None:
    near.becomes("Mine", state="ready")
    assert near.ask("Mine").status_code == 200
    key = os.environ["FAR_KEY"]
    for path in (
        "/api/config",
        "/api/models",
        "/v1/models",
        "/api/config/text",
        "/metrics",
        "/models",
    ):
        answer = near.get(path)
        assert answer.status_code == 200, path
        assert key not in answer.text
    assert near.get("/api/config").json()["models"][0]["api_key"] == "***"
    far.kill()
    refused = near.ask("Mine")
    assert refused.status_code == 502
    assert key not in refused.text
    assert key not in near.output
    near.end()
    written = [path for path in near.data.rglob("*") if path.is_file()]
    assert not [path for path in written if key.encode() in path.read_bytes()]


def test_a_server_that_goes_down_is_an_error_with_the_reason_until_it_is_back(
    launch: Launch, far: Program
) -> None:
    port = far.port
    near = launch({"Mine": {"url": far.url, "served_model_name": "Qwen"}})
    near.becomes("Mine", state="ready")
    assert error_of(near.ask("Mine"))["code"] == "invalid_api_key"  # the other one's answer
    far.end()
    error = error_of(near.ask("Mine"))
    assert error["code"] == "upstream_error"
    assert f"nothing answers at {far.url}" in error["message"]
    far.start(port)
    assert near.ask("Mine").status_code == 401
    assert near.model("Mine")["state"] == "ready"


def test_a_program_that_starts_before_the_server_serves_it_as_soon_as_it_is_there(
    launch: Launch,
) -> None:
    port = free_port()
    near = launch({"Mine": {"url": f"http://127.0.0.1:{port}"}})
    near.becomes("Mine", state="failed")
    answer = near.ask("Mine")
    assert answer.status_code == 502
    assert "Mine does not answer" in error_of(answer)["message"]
    with closing(FakeModel(port=port)):
        assert near.ask("Mine").status_code == 200
        near.becomes("Mine", state="ready", last_error=None)


def test_it_is_not_stopped_and_a_reload_has_effect_at_once(launch: Launch) -> None:
    with closing(FakeModel()) as one, closing(FakeModel()) as other:
        near = launch({"Mine": {"url": f"http://127.0.0.1:{one.port}"}, "Own": fake()})
        near.becomes("Mine", state="ready")
        near.command("Own", "start")
        refused = near.post("/api/models/Mine/stop")
        assert refused.status_code == 409
        assert error_of(refused)["code"] == "not_started_here"
        assert near.post("/api/models/stop?wait=1").status_code == 200
        assert (near.model("Mine")["state"], near.model("Own")["state"]) == ("ready", "stopped")
        assert near.ask("Mine").status_code == 200
        near.configure({"Mine": {"url": f"http://127.0.0.1:{other.port}"}})
        assert near.post("/api/config/reload").status_code == 200
        assert near.ask("Mine").status_code == 200
        assert (len(one.stats()["requests"]), len(other.stats()["requests"])) == (1, 1)


def test_a_variable_that_is_not_there_keeps_the_program_from_starting(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        'Local-Models:\n  Far:\n    url: https://api.example.org/v1\n    api_key: "${NO_SUCH}"\n'
    )
    command = [sys.executable, ROOT / "wsgi.py", "--config", config, "--check"]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 1
    assert "config.yaml:4: api_key: the environment has no NO_SUCH" in checked.stderr


# --- a provider -------------------------------------------------------------------------------


@pytest.fixture
def provider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TlsFront]:
    """Speaks TLS with a certificate that programs trust."""
    certificate = Certificate(tmp_path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate.bundle))
    with (
        closing(FakeModel(no_health=True)) as model,
        closing(TlsFront(certificate, model.port)) as front,
    ):
        yield front


@needs_openssl
def test_a_provider_over_tls_streams_and_is_metered(provider: TlsFront, launch: Launch) -> None:
    near = launch(
        {
            "GPT": {
                "url": f"{provider.url}/v1",
                "api_key": SECRET,
                "max_concurrency": 2,
                "price": TIERS,
            }
        }
    )
    near.becomes("GPT", state="ready")
    sent = near.ask("GPT", {"echo": True}).json()
    assert ["Authorization", f"Bearer {SECRET}"] in sent["headers"]
    assert (
        text_of(events_of(near.ask("GPT", {"chunks": 3}, stream=True))) == " token0 token1 token2"
    )
    with near.held("GPT"):
        page = near.get("/api/models/GPT").json()
        assert page["in_flight"] == 1
    eventually(lambda: len(rows(near)) == 3)
    assert rows(near)[1][-2:] == (17, 3)
    assert rows(near)[2][3] == 499
    assert SECRET not in near.get("/api/config").text + near.output


def ends_with_the_program(near: Program) -> None:
    """An answer that goes on has its error and its row when the program has ended."""
    near.becomes("GPT", state="ready")
    stream = near.ask("GPT", {"chunks": 5000, "interval": 0.05}, stream=True)
    lines = stream.iter_lines()
    next(lines)
    near.end()
    assert b'"upstream_error"' in b"".join(lines)
    ((*_, status, streamed, _, tokens),) = rows(near)
    assert (status, streamed, tokens > 0) == (502, 1, True)
    assert "still under way" not in near.output


def test_an_answer_that_goes_on_ends_with_the_program_and_leaves_its_row(launch: Launch) -> None:
    with closing(FakeModel()) as model:
        url = f"http://127.0.0.1:{model.port}"
        ends_with_the_program(launch({"GPT": {"url": url, "stop_timeout": 0.1}}))


@needs_openssl
def test_an_answer_over_tls_that_goes_on_ends_with_the_program_and_leaves_its_row(
    provider: TlsFront, launch: Launch
) -> None:
    ends_with_the_program(launch({"GPT": {"url": provider.url, "stop_timeout": 0.1}}))


@needs_openssl
def test_a_provider_whose_certificate_is_not_trusted_is_failed_with_what_to_do(
    provider: TlsFront, launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    near = launch({"GPT": {"url": provider.url}})
    near.becomes("GPT", state="failed")
    message = error_of(near.ask("GPT"))["message"]
    assert "certificate" in message
    assert "REQUESTS_CA_BUNDLE" in message
