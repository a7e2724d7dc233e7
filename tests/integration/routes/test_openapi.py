"""``/openapi.json`` and docs/http-api.md name what there is, and nothing else."""

from __future__ import annotations

import re
from typing import Any

import pytest
from flask import Flask
from openapi_spec_validator import validate

from manager.interfaces import BUILT_IN, Chat
from routes.auth import calls_of
from scripts import http_reference

_NOT_DESCRIBED = ("pages", "login", "assets")


class Poem(Chat):
    """As a plugin brings one."""

    mode = "Poem"
    endpoints = ("/v1/poems", "/v1/chat/completions")


@pytest.fixture(scope="module")
def app() -> Flask:
    return http_reference.application([kind() for kind in (*BUILT_IN, Poem)])


@pytest.fixture(scope="module")
def document(app: Flask) -> dict[str, Any]:
    answer = app.test_client().get("/openapi.json")
    assert (answer.status_code, answer.mimetype) == (200, "application/json")
    found: dict[str, Any] = answer.get_json()
    return found


def test_it_names_exactly_the_routes_and_methods_that_there_are(
    app: Flask, document: dict[str, Any]
) -> None:
    there = {
        (re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule), method.lower())
        for rule in app.url_map.iter_rules()
        if rule.endpoint.partition(".")[0] not in _NOT_DESCRIBED
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    named = {
        (path, method)
        for path, item in document["paths"].items()
        for method in item
        if method != "parameters"
    }
    assert sorted(named) == sorted(there)


def test_it_is_valid(document: dict[str, Any]) -> None:
    validate(document)


def test_every_part_of_a_path_is_a_parameter(document: dict[str, Any]) -> None:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if method == "parameters":
                continue
            given = [*item.get("parameters", ()), *operation.get("parameters", ())]
            names = [
                document["components"]["parameters"][one["$ref"].rpartition("/")[2]]
                if "$ref" in one
                else one
                for one in given
            ]
            in_path = {one["name"] for one in names if one["in"] == "path"}
            assert in_path == set(re.findall(r"{(\w+)}", path)), path


def test_a_plugins_endpoint_is_named_as_a_mode_of_its_own(document: dict[str, Any]) -> None:
    poems, chats = (document["paths"][path]["post"] for path in Poem.endpoints)
    assert "503" in poems["responses"]
    assert "ChatPrompt" in str(chats["requestBody"])


def test_it_names_the_cookie_of_this_program(app: Flask, document: dict[str, Any]) -> None:
    cookie = document["components"]["securitySchemes"]["session"]["name"]
    assert cookie == app.config["SESSION_COOKIE_NAME"] != "session"


def test_the_page_of_the_docs_is_that_of_the_routes() -> None:
    page = http_reference.PAGE.read_text(encoding="utf-8")
    assert page == http_reference.page_text(page), "run `make reference`"


def test_every_call_says_what_it_does(app: Flask) -> None:
    calls = calls_of(app).values()
    assert [call.name for call in calls if call.tag and not call.summary] == []
