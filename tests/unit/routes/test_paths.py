"""Names in paths, and what was meant by a path that is not there."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from flask import Flask, jsonify, request
from hypothesis import example, given
from hypothesis import strategies as st

from manager.config import has_control
from routes import paths

KNOWN = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/embeddings"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{name}"),
    ("GET", "/health"),
    ("GET", "/api/models"),
    ("GET", "/api/models/{name}"),
    ("POST", "/api/models/{name}/start"),
    ("GET", "/api/keys/{name}"),
    ("PATCH", "/api/keys/{name}"),
    ("GET", "/api/data"),
]
ROUTES = ("", "/start", "/logs", "/logs/stream")


def application() -> Flask:
    app = paths.PathsApp("test", static_folder=None)

    def add(base: str, end: str) -> None:
        def view(name: str) -> object:
            return jsonify({"base": base, "end": end, "name": name, "path": request.path})

        app.add_url_rule(f"{base}/<path:name>{end}", f"{base}{end}", view)

    for base in ("/api/models", "/v1/models"):
        for end in ROUTES:
            add(base, end)
    app.add_url_rule("/api/exports/<file>", "file", lambda file: file)
    return app


CLIENT = application().test_client()
# All that the config takes for a model.
NAMES = (
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
    | st.text("/.%2Fx logs", min_size=1, max_size=12)
).filter(lambda name: name.strip() and name not in (".", "..") and not has_control(name))


@given(NAMES, st.sampled_from(("/api/models", "/v1/models")), st.sampled_from(ROUTES))
@example("/x", "/api/models", "")
@example("x/logs", "/api/models", "")
@example("x/logs", "/api/models", "/logs")
@example("logs", "/api/models", "/logs")
@example("//", "/v1/models", "/start")
@example("x/", "/api/models", "/start")
@example("a//b", "/api/models", "")
@example("%2F", "/api/models", "")
@example("../../etc", "/api/models", "/logs/stream")
@example("a?b#c 中文", "/v1/models", "")
def test_a_model_of_any_name_is_reached_at_each_of_its_calls(
    name: str, base: str, end: str
) -> None:
    answer = CLIENT.get(f"{base}/{quote(name, safe='')}{end}?x=%2F")
    assert answer.status_code == 200, answer.text
    assert (answer.json["base"], answer.json["end"], answer.json["name"]) == (base, end, name)


@pytest.mark.parametrize("encoded", ["a%2fb", "a%2Fb", "a/b"])
def test_a_slash_is_taken_in_each_of_its_spellings(encoded: str) -> None:
    answer = CLIENT.get(f"/api/models/{encoded}/start")
    assert (answer.json["name"], answer.json["end"]) == ("a/b", "/start")
    assert answer.json["path"] == "/api/models/a/b/start"


def test_slashes_as_they_are_mean_the_same_as_ever() -> None:
    assert CLIENT.get("/api/models/x/logs").json["end"] == "/logs"
    merged = CLIENT.get("/api//models/x/logs")
    assert merged.status_code == 308
    assert merged.headers["Location"].endswith("/api/models/x/logs")


def test_two_slashes_beside_an_encoded_one_are_one() -> None:
    assert CLIENT.get("/api///models//a%2F%2Fb//logs").json["name"] == "a//b"


def test_a_part_that_takes_no_slash_takes_no_encoded_one() -> None:
    assert CLIENT.get("/api/exports/bill.csv").text == "bill.csv"
    for path in ("/api/exports/..%2Fusage.db", "/api/exports/%2Fetc", "/api%2Fexports/x"):
        assert CLIENT.get(path).status_code == 404


@pytest.mark.parametrize(
    "target", ["http://host:80/v1/models/%2Fx?a=/", "HTTP://HOST/v1/models/%2Fx"]
)
def test_a_whole_uri_is_read_as_a_path(target: str) -> None:
    answer = CLIENT.get("/v1/models//x", environ_overrides={"REQUEST_URI": target})
    assert answer.json["name"] == "/x"


def test_where_the_server_does_not_say_what_was_sent_the_decoded_path_is_taken() -> None:
    answer = CLIENT.get("/v1/models/a%2Fb", environ_overrides={"REQUEST_URI": ""})
    assert answer.json["name"] == "a/b"


# --- what was meant ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "near"),
    [
        ("POST", "/chat/completions", "POST /v1/chat/completions"),
        ("POST", "/v1/v1/chat/completions", "POST /v1/chat/completions"),
        ("POST", "/v1/chat/completions/", "POST /v1/chat/completions"),
        ("POST", "/v1//chat/completions", "POST /v1/chat/completions"),
        ("POST", "/v1/chat/completion", "POST /v1/chat/completions"),
        ("POST", "/chat/completion", "POST /v1/chat/completions"),
        ("POST", "/V1/chat/completions", "POST /v1/chat/completions"),
        ("POST", "/api/v1/chat/completions", "POST /v1/chat/completions"),
        ("POST", "/openai/deployments/x/chat/completions", "POST /v1/chat/completions"),
        ("POST", "/v1/engines/x/completions", "POST /v1/completions"),
        ("POST", "/v1/models/x/chat/completions", "POST /v1/chat/completions"),
        ("GET", "/v1/chat/completions", "POST /v1/chat/completions"),
        ("GET", "/v1/v1/models", "GET /v1/models"),
        ("GET", "/v1/models/", "GET /v1/models"),
        ("GET", "/models/x", "GET /v1/models/{name}"),
        ("GET", "/health/", "GET /health"),
        ("GET", "/healthz", "GET /health"),
        ("PUT", "/api/keys/x", "GET or PATCH /api/keys/{name}"),
        ("PATCH", "/api/keys/x/", "PATCH /api/keys/{name}"),
        ("POST", "/api/chat", None),
        ("GET", "/", None),
        ("GET", "/v1", None),
        ("GET", "/.env", None),
        ("GET", "/wp-login.php", None),
    ],
)
def test_the_call_that_was_probably_meant_is_named(
    method: str, path: str, near: str | None
) -> None:
    assert paths.nearest(method, path, KNOWN) == near


@given(st.text(), st.sampled_from(["GET", "POST", "BREW"]))
@example("/" * 60_000, "GET")
@example("/x" * 30_000, "GET")
def test_any_path_is_answered(path: str, method: str) -> None:
    near = paths.nearest(method, path, KNOWN)
    assert near is None or near.split(" ")[-1] in {template for _, template in KNOWN}
