"""The first minutes with the program: check a config, start it, send it requests."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.support.fixtures import Launch
from tests.support.program import CHAT, ROOT, Program, chat, error_of, events_of, fake, text_of

MODELS = {
    "Talker": fake(aliases=["gpt", "org/talker:7b"]),
    "Writer": fake(mode="Base"),
    "Vectors": fake(mode="Embedding"),
    "Judge": fake(mode="Reranker"),
    "Hidden": fake(unlisted=True),
    "Broken": fake("--crash-after-boot", 3),
}
BAD_CONFIG = """program:
  prot: 8080
Local-Models:
  Talker:
    mode: Chatt
    Default:
      command: [server]
"""


@pytest.fixture(scope="module")
def program(launch_once: Launch) -> Program:
    return launch_once(MODELS, max_body_mb=1)


@pytest.fixture(scope="module")
def client(program: Program) -> Iterator[openai.OpenAI]:
    http = openai.DefaultHttpxClient(trust_env=False)
    with openai.OpenAI(
        base_url=f"{program.url}/v1", api_key="none", max_retries=0, http_client=http
    ) as client:
        yield client


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs the program where it ends by itself."""
    command = [sys.executable, str(ROOT / "wsgi.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


# --- the command line -------------------------------------------------------------------


def test_check_warns_of_what_is_odd_and_succeeds(tmp_path: Path) -> None:
    text = "program:\n  queue: redis://:hunter2@cache:6379/0\nLocal-Models:\n"
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    done = run("--config", tmp_path / "config.yaml", "--check")
    assert done.returncode == 0, done.stderr
    assert "0 models, no problems" in done.stdout
    assert done.stderr.startswith("config.yaml:2: queue: this key is ignored")
    assert "hunter2" not in done.stderr


def test_a_bad_config_is_refused_with_every_problem_and_its_line(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(BAD_CONFIG, encoding="utf-8")
    data = tmp_path / "data"
    done = run("--config", tmp_path / "config.yaml", "--data-dir", data, "--port", "0")
    assert done.returncode == 1
    assert "config.yaml:2: " in done.stderr
    assert "port" in done.stderr.splitlines()[0]
    assert "config.yaml:5: " in done.stderr
    assert "Traceback" not in done.stderr
    assert "Listening" not in done.stdout
    assert not data.exists()


def test_check_fails_for_a_config_that_is_missing(tmp_path: Path) -> None:
    done = run("--config", tmp_path / "config.yaml", "--check")
    assert done.returncode == 1
    assert done.stderr.startswith("config.yaml:")
    assert "Traceback" not in done.stderr


def test_a_second_program_on_the_same_data_folder_refuses(program: Program) -> None:
    done = run("--config", program.config, "--data-dir", program.data, "--port", "0")
    assert done.returncode == 1
    assert f"in use by another LLM-Manager (pid {program.pid})" in done.stderr
    assert "Traceback" not in done.stderr
    assert program.get("/health").status_code == 200


def test_a_port_in_use_ends_the_program_with_the_name_of_the_holder(
    program: Program, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        done = run("--config", program.config, "--data-dir", tmp_path / "data", "--port", port)
    assert done.returncode == 1
    assert f"(pid {os.getpid()})" in done.stderr
    assert "Traceback" not in done.stderr


def test_open_shows_the_pages_of_the_program_signed_in(program: Program, tmp_path: Path) -> None:
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" >"{tmp_path / "opened"}"\n')
    browser.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-m", "commands", "open", "--data-dir", str(program.data)],
        cwd=ROOT,
        env={**os.environ, "BROWSER": str(browser)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    page = program.data / "open.html"
    assert (tmp_path / "opened").read_text().strip() == page.as_uri()
    assert f"{program.url}/login/link#" in page.read_text()
    assert done.stdout == f"opened {program.url}/ in a browser\n"


# --- plain HTTP -------------------------------------------------------------------------


def test_health_answers(program: Program) -> None:
    response = program.get("/health")
    assert (response.status_code, response.json()) == (200, {"status": "ok"})


def test_models_are_listed_once_with_their_aliases_and_without_the_unlisted(
    program: Program,
) -> None:
    listed = program.get("/v1/models").json()
    assert listed["object"] == "list"
    names = [entry["id"] for entry in listed["data"]]
    assert names == ["Talker", "Writer", "Vectors", "Judge", "Broken"]
    assert listed["data"][0]["object"] == "model"
    assert listed["data"][0]["aliases"] == ["gpt", "org/talker:7b"]


@pytest.mark.parametrize("name", ["Talker", "gpt", "org/talker:7b", "Hidden"])
def test_one_model_is_found_by_its_name_and_by_its_aliases(program: Program, name: str) -> None:
    assert program.get(f"/v1/models/{name}").json()["id"] == name
    assert program.ask(name).status_code == 200


def test_the_first_request_starts_the_model(program: Program) -> None:
    program.command("Talker", "stop")
    assert program.model("Talker")["state"] == "stopped"
    answer = program.ask("Talker")
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"] == " token0 token1 token2"
    assert program.model("Talker")["state"] == "ready"


def test_a_streamed_answer_comes_whole_and_ends_with_done(program: Program) -> None:
    with program.ask("Talker", {"chunks": 5}, stream=True) as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        events = events_of(answer)
    assert text_of(events) == " token0 token1 token2 token3 token4"
    assert events[-1] == "[DONE]"


def test_a_chunk_is_sent_on_before_the_next_one_is_there(program: Program) -> None:
    silent = {"fail": "silent", "fail_at": "between", "after": 1}
    with program.ask("Talker", silent, stream=True) as answer:
        assert b" token0" in next(answer.iter_content(None))


def test_the_usage_that_only_the_manager_asked_for_is_not_in_the_stream(
    program: Program,
) -> None:
    with program.ask("Talker", stream=True) as answer:
        assert all("usage" not in event for event in events_of(answer)[:-1])
    with program.ask("Talker", stream=True, stream_options={"include_usage": True}) as answer:
        assert events_of(answer)[-2]["usage"]["completion_tokens"] == 3


def test_a_body_reaches_the_model_as_it_was_sent_and_its_answer_the_client(
    program: Program,
) -> None:
    body = b'{ "model":"Talker", "seed": 1e2,\n "messages":[], "x":"\\u00e9"}'
    program.request(
        "POST",
        f"{CHAT}?trace=1",
        data=body,
        headers={
            "Content-Type": "application/json",
            "Authorization": "Bearer secret",
            "X-Api-Key": "secret",
            "X-Request-Id": "7",
        },
    )
    seen = program.stats("Talker")["requests"][-1]
    headers = {name.lower(): value for name, value in seen["headers"]}
    assert seen["body"].encode() == body
    assert seen["path"] == f"{CHAT}?trace=1"
    assert headers["x-request-id"] == "7"
    assert not {"authorization", "x-api-key"} & set(headers)


def test_rerank_answers(program: Program) -> None:
    body = {"model": "Judge", "query": "a", "documents": ["b", "c", "d"], "top_n": 2}
    results = program.post("/v1/rerank", body).json()["results"]
    assert [result["index"] for result in results] == [0, 1]


# --- the official SDK -------------------------------------------------------------------


def test_the_sdk_chats(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    answer = client.chat.completions.create(model="gpt", messages=messages)
    assert answer.choices[0].message.content == " token0 token1 token2"
    assert answer.usage.total_tokens == 20


def test_the_sdk_streams_a_chat(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    stream = client.chat.completions.create(model="Talker", messages=messages, stream=True)
    text = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "".join(text) == " token0 token1 token2"


def test_the_sdk_completes_and_embeds_and_lists(client: openai.OpenAI) -> None:
    assert client.completions.create(model="Writer", prompt="Hi").choices[0].text
    vectors = client.embeddings.create(model="Vectors", input=["a", "b"]).data
    assert [vector.embedding for vector in vectors] == [[0.5, 0.25, -0.125, 0.0]] * 2
    assert "Talker" in [model.id for model in client.models.list()]


def test_the_sdk_raises_its_own_errors(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    create = client.chat.completions.create
    with pytest.raises(openai.NotFoundError) as unknown:
        create(model="Talkr", messages=messages)
    assert unknown.value.code == "model_not_found"
    assert "Talker" in unknown.value.message

    with pytest.raises(openai.BadRequestError) as misplaced:
        create(model="Vectors", messages=messages)
    assert misplaced.value.code == "endpoint_not_supported"

    with pytest.raises(openai.APIStatusError) as large:
        create(model="Talker", messages=[{"role": "user", "content": "x" * (2 << 20)}])
    assert (large.value.status_code, large.value.code) == (413, "body_too_large")

    with pytest.raises(openai.InternalServerError) as failed:
        create(model="Broken", messages=messages)
    assert (failed.value.status_code, failed.value.code) == (503, "start_failed")
    assert "exit code 3" in failed.value.message
    assert "fake: giving up" in failed.value.message


def test_an_error_of_the_model_server_reaches_the_client_as_it_is(program: Program) -> None:
    headers = {"Retry-After": "9", "X-Own": "yes"}
    answer = program.ask("Talker", {"status": 429, "headers": headers})
    assert answer.status_code == 429
    assert (answer.headers["Retry-After"], answer.headers["X-Own"]) == ("9", "yes")
    assert error_of(answer)["type"] == "fake_error"


def test_a_large_answer_comes_whole(program: Program) -> None:
    for framing in ("length", "chunked", "close"):
        answer = program.ask("Talker", {"size": 5_000_000, "framing": framing})
        assert len(answer.json()["padding"]) == 5_000_000


def test_a_compressed_answer_reaches_the_client(program: Program) -> None:
    answer = program.post(CHAT, chat("Talker", {"gzip": True}))
    assert answer.json()["choices"][0]["message"]["content"] == " token0 token1 token2"
