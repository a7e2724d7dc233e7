"""Recordings, speech and pictures: forms and sounds on their way through the real program."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import requests

from tests.support.fixtures import Launch
from tests.support.media_server import SOUND, WORDS
from tests.support.program import PATIENCE, Program, error_of, events_of, eventually, media

TRANSCRIPTIONS = "/v1/audio/transcriptions"
SPEECH = "/v1/audio/speech"
EDITS = "/v1/images/edits"
SMALL = random.Random(1).randbytes(10_000)  # a recording
LARGE = random.Random(2).randbytes(2_000_000)  # one that waitress has in a file
CHANGES = {"strip": ["mask", "seed"], "default": {"language": "en"}, "set": {"temperature": 0.5}}
TEXT = "".join(WORDS)

Parts = list[tuple[str, Any]]


@pytest.fixture(scope="module")
def program(launch_once: Launch) -> Program:
    models = {
        "Whisper": media("Transcription", aliases=["whisper-1"]),
        "Changed": media("Transcription", served_model_name="large", request=CHANGES),
        "Speaker": media("Speech", served_model_name="kokoro"),
        "Painter": media("Image"),
        "Talker": media("Chat"),
        "Locked": media("Speech", 401),
    }
    return launch_once(models, max_body_mb=3)


@pytest.fixture
def client(program: Program) -> Iterator[openai.OpenAI]:
    http = openai.DefaultHttpxClient(trust_env=False, timeout=PATIENCE)
    with openai.OpenAI(
        base_url=f"{program.url}/v1", api_key="none", max_retries=0, http_client=http
    ) as made:
        yield made


def ask(
    program: Program, parts: Parts, path: str = TRANSCRIPTIONS, **options: Any
) -> requests.Response:
    """Sends a form: of each part its name and its text, or its file as a name and bytes."""
    files = [(name, (None, part) if isinstance(part, str) else part) for name, part in parts]
    return program.request("POST", path, files=files, **options)


def row_of(program: Program, answer: Any) -> dict[str, Any]:
    """The recorded request; the answer is of requests or httpx."""
    number = answer.headers["X-LLM-Manager-Request"]

    def row() -> dict[str, Any] | None:
        found = program.get(f"/api/usage/requests/{number}")
        return found.json() if found.status_code == 200 else None

    return eventually(row)


def invalid_form(answer: requests.Response) -> str:
    assert answer.status_code == 400, answer.text
    error = error_of(answer)
    assert error["code"] == "invalid_form"
    return str(error["message"])


# --- forms ------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [SMALL, LARGE])
@pytest.mark.parametrize(
    ("asked", "reached"),
    [
        (TRANSCRIPTIONS, TRANSCRIPTIONS),
        ("/audio/transcriptions/", TRANSCRIPTIONS),
        ("/v1/v1/audio/translations?x=1", "/v1/audio/translations?x=1"),
    ],
)
def test_a_form_arrives_as_it_was_with_the_model_as_its_last_field(
    program: Program, content: bytes, asked: str, reached: str
) -> None:
    fields = [
        ("kinds[]", "word"),
        ("kinds[]", "segment"),
        ("prompt", "Grüße"),
        ("model", "Whisper"),
    ]
    answer = ask(program, [("file", ("a.wav", content)), *fields], asked)
    assert answer.status_code == 200, answer.text
    digest = hashlib.sha256(content).hexdigest()
    seen = answer.json()
    assert (seen["path"], seen["text"]) == (reached, TEXT)
    assert seen["fields"] == [list(field) for field in fields]
    assert seen["files"] == [["file", "a.wav", len(content), digest]]


@pytest.mark.parametrize("content", [SMALL, LARGE])
def test_a_forms_fields_are_changed_as_the_config_says(program: Program, content: bytes) -> None:
    parts = [("model", "Changed"), ("mask", ("m", b"x")), ("seed", "1"), ("a", ("a.wav", content))]
    seen = ask(program, parts).json()
    digest = hashlib.sha256(content).hexdigest()
    assert seen["files"] == [["a", "a.wav", len(content), digest]]
    assert seen["fields"] == [["model", "large"], ["language", "en"], ["temperature", "0.5"]]


def test_plain_text_comes_as_it_is_also_where_a_stream_was_asked_for(program: Program) -> None:
    for fields in ([], [("stream", "1")]):
        answer = ask(program, [("response_format", "text"), ("model", "Whisper"), *fields])
        assert answer.text == f"{TEXT}\n"
        assert answer.headers["Content-Type"].startswith("text/plain")
        assert row_of(program, answer)["error"] is None


def test_tokens_are_metered_and_seconds_are_not_taken_for_tokens(program: Program) -> None:
    row = row_of(program, ask(program, [("model", "Whisper"), ("prompt", "tokens")]))
    assert (row["mode"], row["prompt_tokens"], row["completion_tokens"]) == ("Transcription", 14, 3)
    assert not row["estimated"]
    row = row_of(program, ask(program, [("model", "Whisper"), ("file", ("a", LARGE))]))
    assert (row["prompt_tokens"], row["completion_tokens"], row["estimated"]) == (0, 0, True)


def test_a_streamed_transcript_comes_whole_and_one_that_is_cut_is_reported(
    program: Program,
) -> None:
    def streamed(prompt: str) -> tuple[list[Any], dict[str, Any]]:
        parts = [("stream", "true"), ("prompt", prompt), ("model", "whisper-1")]
        answer = ask(program, [("file", ("a", LARGE)), *parts], stream=True)
        return events_of(answer), row_of(program, answer)

    events, row = streamed("")
    assert [event["type"].rpartition(".")[2] for event in events] == ["delta"] * 3 + ["done"]
    assert (row["status"], row["error"]) == (200, None)
    assert (row["streamed"], row["prompt_tokens"], row["completion_tokens"]) == (True, 14, 3)
    events, row = streamed("vllm")
    assert (events[-1], row["status"], row["error"]) == ("[DONE]", 200, None)
    assert row["prompt_tokens"] < 100  # estimated, of the fields: the recording has none
    events, row = streamed("cut")
    assert events[-1]["error"]["code"] == "upstream_error"
    assert "before its last event" in events[-1]["error"]["message"]
    assert row["status"] == 502


def test_a_form_over_the_limit_is_refused_and_the_client_reads_that(program: Program) -> None:
    answer = ask(program, [("model", "Whisper"), ("file", ("a", bytes(200_000_000)))])
    assert answer.status_code == 413
    assert error_of(answer)["code"] == "body_too_large"
    assert ask(program, [("model", "Whisper")]).status_code == 200


def test_what_is_no_form_is_refused_with_the_reason(program: Program) -> None:
    assert "application/json" in invalid_form(program.post(TRANSCRIPTIONS, {"model": "Whisper"}))
    assert "a body without a Content-Type" in invalid_form(
        program.request("POST", TRANSCRIPTIONS, data=b"")
    )

    def sent(body: bytes, kind: str) -> requests.Response:
        headers = {"Content-Type": kind}
        return program.request("POST", TRANSCRIPTIONS, data=body, headers=headers)

    assert "boundary" in invalid_form(sent(b"--b--", "multipart/form-data"))
    assert "end of multipart" in invalid_form(sent(b"--b\r\n", 'multipart/form-data; boundary="b"'))
    twice = invalid_form(ask(program, [("model", "Whisper"), ("model", "Changed")]))
    assert "twice" in twice
    missing = ask(program, [("file", ("a", SMALL))])
    assert (missing.status_code, error_of(missing)["code"]) == (400, "model_missing")
    packed = ask(program, [("model", "Whisper")], headers={"Content-Encoding": "gzip"})
    assert (packed.status_code, error_of(packed)["code"]) == (415, "unsupported_encoding")
    form = ask(program, [("model", "Talker")], "/v1/chat/completions")
    assert form.status_code == 400
    assert "it is a form" in error_of(form)["message"]


def test_a_form_is_for_a_model_that_takes_it(program: Program) -> None:
    answer = ask(program, [("model", "Talker")])
    assert (answer.status_code, error_of(answer)["code"]) == (400, "endpoint_not_supported")
    answer = ask(program, [("model", "Wisper")])
    assert (answer.status_code, error_of(answer)["code"]) == (404, "model_not_found")
    assert "Whisper" in error_of(answer)["message"]


def test_a_form_needs_a_key_where_keys_are_needed(launch: Launch) -> None:
    program = launch({"Whisper": media("Transcription")}, require_key=True)
    parts: Parts = [("file", ("a", LARGE)), ("model", "Whisper")]
    key = program.add_key("one", models=["Whisper"])
    for secret, status in ((key, 200), (f"{key}x", 401)):
        answer = ask(program, parts, headers={"Authorization": f"Bearer {secret}"})
        assert answer.status_code == status, answer.text
    other = program.add_key("other", models=["Other"])
    answer = ask(program, parts, headers={"Authorization": f"Bearer {other}"})
    assert (answer.status_code, error_of(answer)["code"]) == (403, "model_not_allowed")


# --- speech and pictures ----------------------------------------------------------------


def test_speech_comes_while_it_is_made(program: Program) -> None:
    """The second piece is only made after the first was here."""
    body = {"model": "Speaker", "input": "wait", "voice": "echo"}
    with program.post(SPEECH, body, stream=True) as answer:
        assert answer.headers["Content-Type"] == "audio/mpeg"
        pieces = answer.iter_content(None)
        first = next(pieces)
        assert first == SOUND[0]
        voices = program.get("/audio/voices?model=Speaker&x=1")
        assert voices.json() == {"path": "/v1/audio/voices?model=kokoro&x=1"}
        assert b"".join(pieces) == SOUND[1]
    row = row_of(program, answer)
    assert (row["status"], row["mode"], row["completion_tokens"]) == (200, "Speech", 0)


def test_pictures_come_by_prompt_and_by_form(program: Program) -> None:
    answer = program.post("/images/generations", {"model": "Painter", "prompt": "a panda"})
    assert answer.json()["path"] == "/v1/images/generations"
    for path in (EDITS, "/v1/images/variations"):
        parts = [("image[]", ("1.png", LARGE)), ("image[]", ("2.png", b"")), ("model", "Painter")]
        seen = ask(program, parts, path).json()
        assert (seen["path"], [size for _, _, size, _ in seen["files"]]) == (path, [len(LARGE), 0])
    body = {"model": "Painter", "prompt": "a panda", "stream": True}
    streamed = program.post("/v1/images/generations", body, stream=True)
    assert [event["type"] for event in events_of(streamed)][-1] == "image_generation.completed"
    assert row_of(program, streamed)["prompt_tokens"] == 14


def test_what_a_server_is_asked_until_it_is_ready_is_small(program: Program) -> None:
    for name, asked in (
        ("Whisper", [f"asked at {TRANSCRIPTIONS}"]),
        ("Speaker", [f"asked at {SPEECH}"]),  # where the voice is refused
        ("Painter", []),
    ):
        program.command(name, "restart")
        program.becomes(name, state="ready")
        lines = program.log(name).splitlines()
        assert [line for line in lines if line.startswith("asked")] == asked
    program.command("Locked", "start")
    error = program.becomes("Locked", state="failed")["last_error"]
    assert "got 401" in error
    assert "start the server without a key" in error


# --- requests without a body ------------------------------------------------------------


@pytest.mark.parametrize("path", ["/props", "/v1/props", "/v1/v1/props/"])
def test_what_llama_cpp_says_of_itself_can_be_read_and_not_set(program: Program, path: str) -> None:
    answer = program.get(f"{path}?model=Talker")
    assert (answer.status_code, answer.json()) == (200, {"path": "/props?model=Talker"})
    # A browser may be led here: what a server sends is no page of ours.
    assert answer.headers["Content-Security-Policy"] == "sandbox; default-src 'none'"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert row_of(program, answer)["endpoint"] == "/v1/props"
    before = program.log("Talker").count("/props")
    for method in ("POST", "PUT", "HEAD"):
        refused = program.request(method, f"{path}?model=Talker", json={"model": "Talker"})
        assert refused.status_code == 405
    assert program.log("Talker").count("/props") == before


def test_a_request_without_a_body_names_one_model_in_its_query(program: Program) -> None:
    for query in ("", "?model=", "?model=Talker&model=Whisper"):
        answer = program.get(f"/v1/props{query}")
        assert (answer.status_code, error_of(answer)["code"]) == (400, "model_missing")
    answer = program.get("/v1/props?model=Whisper")
    assert (answer.status_code, error_of(answer)["code"]) == (400, "endpoint_not_supported")
    answer = program.get("/v1/props?model=Wisper")
    assert (answer.status_code, error_of(answer)["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_picture_in_a_foreign_page_starts_no_model(program: Program, site: str) -> None:
    refused = program.get("/props?model=Talker", headers={"Sec-Fetch-Site": site})
    assert (refused.status_code, error_of(refused)["code"]) == (403, "origin_not_allowed")
    for own in ("none", "same-origin"):
        headers = {"Sec-Fetch-Site": own}
        assert program.get("/props?model=Talker", headers=headers).status_code == 200


# --- a plugin ---------------------------------------------------------------------------


def test_a_plugins_endpoint_may_take_forms(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "dictation.py").write_text(
        "from manager.interfaces import Endpoint, Interface\n\n\n"
        "class Dictation(Interface):\n"
        "    mode = 'Dictation'\n"
        "    endpoints = ('/v1/dictate',)\n\n"
        "    def endpoint(self, path):\n"
        "        return Endpoint(path, is_form=True)\n\n"
        "    def probe(self, model):\n"
        "        return '/v1/dictate', {'model': model, 'file': ('a.wav', b'RIFF')}\n"
    )
    program = launch({"Typist": media("Dictation")}, interface_plugin_dir=str(tmp_path))
    seen = ask(program, [("file", ("b.wav", LARGE)), ("model", "Typist")], "/dictate").json()
    assert (seen["path"], seen["files"][0][:3]) == ("/v1/dictate", ["file", "b.wav", len(LARGE)])
    assert program.log("Typist").count("asked at /v1/dictate") == 2  # the first is the probe


# --- OpenAI's SDK -----------------------------------------------------------------------


def test_openais_sdk_transcribes_speaks_and_draws(client: openai.OpenAI) -> None:
    recording = ("a.wav", LARGE)
    transcript = client.audio.transcriptions.create(file=recording, model="whisper-1")
    assert transcript.text == TEXT
    words = client.audio.transcriptions.create(
        file=recording,
        model="whisper-1",
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
    )
    granularities = [value for name, value in words.fields if name.startswith("timestamp")]
    assert granularities == ["word", "segment"]
    stream = client.audio.transcriptions.create(file=recording, model="whisper-1", stream=True)
    assert [event.type for event in stream][-1] == "transcript.text.done"
    with pytest.raises(openai.APIError, match="stream"):
        list(
            client.audio.transcriptions.create(
                file=recording, model="whisper-1", stream=True, prompt="cut"
            )
        )
    with client.audio.speech.with_streaming_response.create(
        model="Speaker", input="Hi", voice="echo"
    ) as speech:
        assert b"".join(speech.iter_bytes()) == b"".join(SOUND)
    with pytest.raises(openai.BadRequestError, match="no voice alloy"):
        client.audio.speech.create(model="Speaker", input="Hi", voice="alloy")
    picture = client.images.edit(model="Painter", image=[LARGE, SMALL], prompt="a panda")
    assert [size for _, _, size, _ in picture.files] == [len(LARGE), len(SMALL)]
