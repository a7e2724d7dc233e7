"""Who may come in: every route against every caller, by the application's own map of routes.

What a route does when it is reached is not asked here: each answers "reached".
"""

from __future__ import annotations

import functools
import ipaddress
import json
import logging
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock
from urllib.parse import unquote, urlsplit

import pytest
from flask import Blueprint, Flask, session
from flask.testing import FlaskClient
from flask_wtf.csrf import generate_csrf
from werkzeug.test import TestResponse

import routes
from manager.access import accounts, api_keys, audit, credentials, local_token
from manager.access.api_keys import Key
from manager.access.local_token import LocalToken
from manager.access.registry import AccessRegistry
from manager.clock import Clock
from manager.config import plugins
from manager.config.settings import Config, Program
from manager.storage import maintenance
from routes import app as app_module
from routes import auth
from routes.calls import Api, Rule
from routes.page_passes import PagePasses
from routes.services import Services
from tests.support.usage_rows import new_store

NOW = 1_795_400_000_000
ELSEWHERE = "203.0.113.9"
PASSWORD = "correct horse"

# --- the promise ----------------------------------------------------------------------------------

OPEN = """
    GET /health
    GET /openapi.json
    GET /static/<version>/<path:name>
    GET /login
    POST /login
    GET /login/link
    POST /login/link
    POST /logout
    POST /preferences
"""
MODELS = """
    POST /v1/chat/completions
    POST /v1/completions
    POST /v1/responses
    POST /v1/messages
    POST /v1/messages/count_tokens
    POST /v1/responses/input_tokens
    POST /v1/completion
    POST /v1/infill
    POST /v1/tokenize
    POST /v1/detokenize
    POST /v1/apply-template
    GET /v1/props
    POST /v1/audio/transcriptions
    POST /v1/audio/translations
    POST /v1/audio/speech
    GET /v1/audio/voices
    POST /v1/images/generations
    POST /v1/images/edits
    POST /v1/images/variations
    POST /v1/embeddings
    POST /v1/pooling
    POST /v1/rerank
    POST /v1/score
    GET /v1/models
    GET /v1/models/<path:name>
"""
PAGES_OF_SERVERS = "GET /upstream/<path:rest>"
RAW = """
    POST /upstream/<path:rest>
    PUT /upstream/<path:rest>
    PATCH /upstream/<path:rest>
    DELETE /upstream/<path:rest>
"""
LOCAL = "GET /running"
TOKEN = """
    GET /unload
    POST /unload
"""
OLLAMA = """
    GET /api/tags
    GET /api/ps
    GET /api/version
    POST /api/show
    POST /api/chat
    POST /api/generate
    POST /api/embed
    POST /api/embeddings
    POST /api/pull
    POST /api/push
    POST /api/create
    POST /api/copy
    DELETE /api/delete
    GET /api/blobs/<digest>
    POST /api/blobs/<digest>
"""
OLLAMA_CALLS = [tuple(line.split()) for line in OLLAMA.strip().splitlines()]
KEY = "GET /api/keys/me"
FIRST = """
    GET /setup
    POST /setup
"""
PAGES = """
    GET /
    GET /models
    GET /usage
    GET /requests
    GET /billing
    GET /keys
    GET /playground
    GET /logs
    GET /access
    GET /settings
"""
VIEW = """
    GET /metrics
    GET /api/about
    GET /api/activity
    GET /api/adjustments
    GET /api/config
    GET /api/config/file
    GET /api/data
    GET /api/data/models
    GET /api/devices
    GET /api/events
    GET /api/exports
    GET /api/exports/<file>
    GET /api/keys
    GET /api/keys/<path:name>
    GET /api/log
    GET /api/models
    GET /api/models/<path:name>
    GET /api/models/<path:name>/logs
    GET /api/models/<path:name>/logs/stream
    GET /api/models/<path:name>/runs
    GET /api/prices
    POST /api/prices/quote
    GET /api/session
    GET /api/usage/requests
    GET /api/usage/requests/<number>
    GET /api/usage/series
    GET /api/usage/summary
"""
ADMIN = """
    GET /api/accounts
    POST /api/accounts
    PATCH /api/accounts/<name>
    DELETE /api/accounts/<name>
    POST /api/accounts/<name>/sign-out
    POST /api/adjustments
    GET /api/audit
    POST /api/config/reload
    POST /api/data/backup
    DELETE /api/data/models/<path:name>
    POST /api/data/reprice
    POST /api/data/vacuum
    POST /api/exports
    POST /api/keys
    PATCH /api/keys/<path:name>
    DELETE /api/keys/<path:name>
    POST /api/keys/<path:name>/rotate
    POST /api/models/<path:name>/restart
    POST /api/models/<path:name>/capture
    GET /api/captures
    GET /api/captures/<number>
    POST /api/models/<path:name>/start
    POST /api/models/<path:name>/stop
    PUT /api/models/<path:name>/price
    POST /api/models/stop
    GET /api/tokens
    POST /api/tokens
    DELETE /api/tokens/<name>
"""
CONFIG = """
    POST /api/config/check
    GET /api/config/files
    POST /api/config/models
    GET /api/config/models/<path:name>
    PUT /api/config/models/<path:name>
    DELETE /api/config/models/<path:name>
    POST /api/config/preview
    POST /api/config/propose
    GET /api/config/text
    PUT /api/config/text
"""
CLASSES = {
    "open": OPEN,
    "models": MODELS,
    "raw": RAW,
    "raw page": PAGES_OF_SERVERS,
    "local": LOCAL,
    "token": TOKEN,
    "key": KEY,
    "first": FIRST,
    "pages": PAGES,
    "view": VIEW,
    "admin": ADMIN,
    "config": CONFIG,
}
PROMISED = {
    tuple(line.split()): kind
    for kind, text in CLASSES.items()
    for line in text.strip().splitlines()
}
PROMISED |= dict.fromkeys(OLLAMA_CALLS, "models")

YES = "reached"
SIGN_IN = "401 sign_in_needed"
NO_KEY = "401 invalid_api_key"
NO_TOKEN = "401 invalid_token"
NO_PASSWORD = "403 no_password_yet"
NO_ADMIN = "403 admin_needed"
LOCKED = "403 config_locked"
OUTDATED = "403 page_outdated"
NOT_RAW = "403 raw_not_allowed"
TOKEN_NEEDED = "403 token_needed"
NO_SESSION = "401 token_needed"

ALONE = dict.fromkeys(CLASSES, NO_PASSWORD) | {
    "open": YES,
    "models": YES,
    "key": NO_KEY,
    "token": NO_SESSION,
}
OWNER = dict.fromkeys(CLASSES, YES) | {"key": NO_KEY}
OWNER_SIGNED_IN = OWNER | {"raw": TOKEN_NEEDED, "token": NO_SESSION}
ONLOOKER = dict.fromkeys(CLASSES, YES) | {
    **dict.fromkeys(("key",), NO_KEY),
    **dict.fromkeys(("admin", "config", "raw", "raw page"), SIGN_IN),
    "first": NO_ADMIN,
    "token": NO_SESSION,
}
# While there is no account and no key: this machine may look, others use models; who has the local
# token does everything.
WITHOUT_ACCOUNT: dict[str, dict[str, str]] = {
    "nobody on loopback": ONLOOKER,
    "nobody from elsewhere": ALONE,
    "nobody through a proxy": ALONE,
    "local token": OWNER,
    "local token from elsewhere": OWNER | {"config": LOCKED},
    "local session": OWNER_SIGNED_IN,
    "local session without CSRF": OWNER_SIGNED_IN
    | dict.fromkeys(("open", "first", "admin", "config", "view"), OUTDATED),
    "local session of a token before": ONLOOKER,
    "wrong token": dict.fromkeys(CLASSES, NO_TOKEN)
    | {"open": YES, "models": YES, "key": NO_KEY, "local": YES},
}

# This machine may always see what runs.
ANYBODY = {"open": YES, "first": YES, "local": YES}  # /setup itself sends them on to /login
PERSON = ANYBODY | {
    **dict.fromkeys(("models", "key"), NO_KEY),
    **dict.fromkeys(("pages", "view"), YES),
}
STRANGER = ANYBODY | {
    **dict.fromkeys(("models", "key"), NO_KEY),
    **dict.fromkeys(("pages", "view", "admin", "config", "raw", "raw page"), SIGN_IN),
    "token": NO_SESSION,
}
STRANGER_ELSEWHERE = STRANGER | {"local": SIGN_IN}
WITH_A_SECRET = STRANGER | dict.fromkeys(("pages", "view", "admin", "config", "token"), NO_TOKEN)
WITH_A_DEAD_KEY = WITH_A_SECRET | dict.fromkeys(("raw", "raw page"), NO_KEY)
WITH_A_DEAD_TOKEN = WITH_A_SECRET | dict.fromkeys(("raw", "raw page"), NO_TOKEN)
WITH_A_KEY = WITH_A_SECRET | {"models": YES, "key": YES, "raw": NOT_RAW, "raw page": NOT_RAW}
WATCHER = PERSON | dict.fromkeys(("admin", "config", "raw", "raw page"), NO_ADMIN)
SCRIPT = PERSON | dict.fromkeys(("admin", "config", "raw", "raw page", "token"), YES)
# Who is signed in looks at a server's pages, and no more.
ADMIN_SIGNED_IN = SCRIPT | {"models": YES, "raw": TOKEN_NEEDED, "token": NO_SESSION}
# Once there are a password and a key.
WITH_ACCOUNT: dict[str, dict[str, str]] = {
    "nobody on loopback": STRANGER,
    "nobody from elsewhere": STRANGER_ELSEWHERE,
    "key": WITH_A_KEY,
    "key in x-api-key": STRANGER | {"models": YES, "key": YES, "raw": NOT_RAW, "raw page": NOT_RAW},
    "raw key": WITH_A_KEY | {"raw": YES, "raw page": YES},
    "key brought along": WITH_A_KEY,
    "key brought along that looks like ours": WITH_A_KEY,
    "raw key brought along": WITH_A_KEY | {"raw": YES, "raw page": YES},
    "revoked key brought along": WITH_A_DEAD_KEY,
    "wrong key": WITH_A_DEAD_KEY,
    "expired key": WITH_A_DEAD_KEY,
    "revoked key": WITH_A_DEAD_KEY,
    "viewer": WATCHER | {"models": NO_ADMIN, "token": NO_SESSION},
    "admin": ADMIN_SIGNED_IN,
    "admin from elsewhere": ADMIN_SIGNED_IN | {"config": LOCKED},
    # What changes something; looking is as for any admin.
    "admin without CSRF": ADMIN_SIGNED_IN
    | {"models": NO_KEY, "admin": OUTDATED, "config": OUTDATED, "open": OUTDATED}
    | {"first": OUTDATED, "view": OUTDATED},
    "admin who was signed out": STRANGER,
    "viewer's token": WATCHER | {"token": NO_ADMIN},
    "admin's token": SCRIPT,
    "admin's token from elsewhere": SCRIPT | {"config": LOCKED},
    "expired token": WITH_A_DEAD_TOKEN,
    "local token": SCRIPT,
    "local token from elsewhere": SCRIPT | {"config": LOCKED},
    "local session": ADMIN_SIGNED_IN,
    "local session of a token before": STRANGER,
    "wrong token": WITH_A_DEAD_TOKEN,
}

BROUGHT_ALONG = {
    "own": "sk-7Jq2vXn0Rk5tWbY8cZ1dLs",
    "own like ours": "sk-llm-Vd3Kx8Qm5Zt1Rw7Ny2Bc",
    "own raw": "0b6f2d9c-51a7-4e83-9d2c-7f60a1b4c3e8",
    "own gone": "AKx9zPq4Lm7Tn2Vb5Rc8Wd1Yf",
}

PERSONS = ("viewer", "admin", "admin from elsewhere", "admin without CSRF", "local session")

# --- the application ------------------------------------------------------------------------------


@functools.cache
def hashed_password() -> str:
    return credentials.password_hash(PASSWORD)


class Gate:
    """The whole application, of which each route only says that it was reached."""

    def __init__(self, folder: Path, whole: tuple[str, ...] = ()) -> None:
        self.store = new_store(folder / "usage.db")
        clock = Clock(wall=lambda: NOW / 1000)
        self.access = AccessRegistry(self.store, folder / "usage.db", clock)
        self.path = folder / "usage.db"
        self.program = Program(timezone="UTC")
        fleet = SimpleNamespace(
            config=Config(folder / "config.yaml", self.program, {}), models=list, find=None
        )
        self.fleet = fleet
        parts: dict[str, Any] = {
            "fleet": fleet,
            "access": self.access,
            "clock": clock,
            "data_dir": folder,
            "interfaces": plugins.interfaces(None),
            "host": "127.0.0.1",
            "local_token": LocalToken(folder),
            "page_passes": PagePasses(),
        }
        # The routes' own parts, which nobody reaches.
        others = {
            field.name: MagicMock()
            for field in fields(Services)
            if field.init and field.name not in parts
        }
        services = self.services = Services(**parts, **others)
        self.app = routes.create_app(services, b"a secret")
        for endpoint in self.app.view_functions:
            if not endpoint.startswith(whole):
                self.app.view_functions[endpoint] = lambda **_: YES

    def set(self, **program: Any) -> None:
        config = self.fleet.config
        self.fleet.config = replace(config, program=replace(config.program, **program))

    def lock(self) -> None:
        """Sets a password and makes keys and tokens."""

        def work(c: Any) -> dict[str, str]:
            hashed = hashed_password()
            accounts.add(c, "ann", "admin", hashed, NOW)
            accounts.add(c, "eve", "viewer", hashed, NOW)
            secrets = {}
            for name, expires_ms in (("good", None), ("late", NOW), ("gone", None), ("raw", None)):
                key = Key(name, expires_ms=expires_ms, raw=name == "raw")
                secrets[name] = api_keys.add(c, key, NOW)[1]
            for name, secret in BROUGHT_ALONG.items():
                api_keys.add(c, Key(name, raw=name == "own raw"), NOW, secret)
            for name in ("gone", "own gone"):
                api_keys.revoke(c, name, NOW)
            secrets |= BROUGHT_ALONG
            for name, role, until in (
                ("a", "admin", None),
                ("v", "viewer", None),
                ("x", "admin", NOW),
            ):
                secrets[name] = accounts.add_token(c, name, role, "ann", until, NOW)[1]
            return secrets

        self.secrets = self.access.change(work)

    def caller(self, name: str) -> Caller:
        address = ELSEWHERE if "elsewhere" in name else "127.0.0.1"
        caller = Caller(self.app, address)
        if "proxy" in name:
            caller.headers["X-Forwarded-For"] = "127.0.0.1"
        bearer = {
            "key": "good",
            "raw key": "raw",
            "expired key": "late",
            "revoked key": "gone",
            "key brought along": "own",
            "key brought along that looks like ours": "own like ours",
            "raw key brought along": "own raw",
            "revoked key brought along": "own gone",
            "viewer's token": "v",
            "admin's token": "a",
            "admin's token from elsewhere": "a",
            "expired token": "x",
        }
        if name in bearer:
            caller.headers["Authorization"] = f"Bearer {self.secrets[bearer[name]]}"
        elif name == "wrong key":
            caller.headers["Authorization"] = "Bearer sk-llm-" + "A" * 43
        elif name == "key in x-api-key":
            caller.headers["X-Api-Key"] = self.secrets["good"]
        elif name == "wrong token":
            caller.headers["Authorization"] = "Bearer tk-llm-" + "A" * 43
        elif name.startswith("local token"):
            token = local_token.read(self.path.parent)
            caller.headers["Authorization"] = f"Bearer {token}"
        elif name.startswith("local session"):
            caller.begin_local_session(self)
            if "before" in name:
                (self.path.parent / local_token.FILE).unlink()
                LocalToken(self.path.parent)
        elif name.startswith(("admin", "viewer")):
            caller.sign_in(self, "eve" if name == "viewer" else "ann")
        if "without CSRF" in name:
            caller.headers.clear()
        if name == "admin who was signed out":
            self.access.change(lambda c: accounts.sign_out(c, "ann"))
        return caller


class Caller:
    """Somebody with cookies and headers of their own."""

    def __init__(self, app: Flask, address: str) -> None:
        self.app = app
        self.address = address
        self.headers: dict[str, str] = {}
        self.sends_token = True
        self.client: FlaskClient = app.test_client()

    def sign_in(self, gate: Gate, name: str) -> None:
        account = gate.access.snapshot.accounts[name]
        with self.client.session_transaction() as kept:
            kept["account"], kept["generation"] = name, account.generation
        self.take_token()

    def begin_local_session(self, gate: Gate) -> None:
        generation = gate.services.local_token.check(local_token.read(gate.path.parent))
        with self.client.session_transaction() as kept:
            kept["local_token"] = generation
        self.take_token()

    def take_token(self) -> None:
        """As a page has it, which anybody can load who can load /login."""
        with self.app.test_request_context(), self.client.session_transaction() as kept:
            session.update(kept)
            self.headers["X-CSRFToken"] = generate_csrf()
            kept.update(session)

    def call(self, method: str, path: str, **more: Any) -> TestResponse:
        json = {"json": {}} if method != "GET" and path.startswith(("/api", "/v1")) else {}
        headers = {**self.headers, **more.pop("headers", {})}
        if not self.sends_token:
            headers.pop("X-CSRFToken", None)
        return self.client.open(
            path,
            method=method,
            headers=headers,
            environ_base={"REMOTE_ADDR": self.address},
            **json,
            **more,
        )

    def outcome(self, method: str, path: str, **more: Any) -> str:
        return outcome(self.call(method, path, **more))


def outcome(answer: TestResponse) -> str:
    if answer.status_code == 200:
        return answer.text
    if answer.status_code == 303 and answer.headers["Location"].startswith("/login"):
        return SIGN_IN
    if answer.is_json and isinstance(answer.json["error"], dict):
        return f"{answer.status_code} {answer.json['error']['code']}"
    # A page, for people, or Ollama's: it has the message.
    codes = {"Send a valid one": NO_KEY, "can try models": NO_ADMIN} if answer.is_json else {}
    codes |= {"No password is set": NO_PASSWORD, "out of date": OUTDATED, "The token": NO_TOKEN}
    codes |= {"An API key is for": NO_TOKEN, "made by the owner": NO_ADMIN}
    found = [code for text, code in codes.items() if text in answer.text]
    assert len(found) == 1, answer.text
    return found[0]


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path)
    yield gate
    gate.store.close()


def served(app: Flask) -> set[tuple[str, ...]]:
    return {
        (method, rule.rule)
        for rule in app.url_map.iter_rules()
        for method in rule.methods or ()
        if method not in ("HEAD", "OPTIONS")
    }


def spelled(path: str) -> str:
    """An address that the route has."""
    for part, value in (
        ("<path:name>", "some"),
        ("<path:rest>", "some/path"),
        ("<name>", "some"),
        ("<file>", "some"),
        ("<version>", "some"),
        ("<number>", "some"),
        ("<digest>", "sha256:00"),
    ):
        path = path.replace(part, value)
    assert "<" not in path
    return path


# --- the table ------------------------------------------------------------------------------------


def test_every_route_has_its_place_in_the_table(gate: Gate) -> None:
    assert served(gate.app) == set(PROMISED)


def test_a_route_without_a_declaration_keeps_the_program_from_starting(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def undeclared(_services: Services) -> Blueprint:
        bare = Blueprint("bare", __name__)
        bare.add_url_rule("/api/bare", "bare", lambda: YES)
        return bare

    monkeypatch.setattr(app_module, "_BLUEPRINTS", (undeclared,))
    with pytest.raises(LookupError, match="/api/bare"):
        routes.create_app(gate.services, b"a secret")


@pytest.mark.parametrize("name", WITHOUT_ACCOUNT)
def test_without_an_account_this_machine_may_look_and_the_local_token_does_all(
    gate: Gate, name: str
) -> None:
    caller = gate.caller(name)
    if "without CSRF" not in name:
        caller.take_token()
    found, wanted = {}, {}
    for route, kind in PROMISED.items():
        method, path = route
        expected = WITHOUT_ACCOUNT[name][kind]
        wanted[route] = OWNER[kind] if expected == OUTDATED and method == "GET" else expected
        found[route] = caller.outcome(method, spelled(path))
    assert found == wanted


@pytest.mark.parametrize("name", WITH_ACCOUNT)
def test_with_an_account_and_a_key_each_caller_may_call_what_its_rule_says(
    gate: Gate, name: str
) -> None:
    gate.lock()
    caller = gate.caller(name)
    if name not in PERSONS:
        caller.take_token()
        if not any(header in caller.headers for header in ("Authorization", "X-Api-Key")):
            # A page's token alone lets nobody use a model.
            assert caller.outcome("POST", "/v1/chat/completions") == SIGN_IN
    found, wanted = {}, {}
    for route, kind in PROMISED.items():
        method, path = route
        expected = WITH_ACCOUNT[name][kind]
        if expected == OUTDATED and method == "GET":
            expected = WITH_ACCOUNT["admin"][kind]
        # Only a page's own script sends its token along to a model.
        caller.sends_token = kind != "models" or name in PERSONS
        found[route] = caller.outcome(method, spelled(path))
        wanted[route] = expected
    assert found == wanted


# --- inference only -------------------------------------------------------------------------------

STEERING = [
    ("POST", "/slots/0?action=save"),
    ("POST", "/slots/0?action=erase"),
    ("GET", "/slots"),
    ("POST", "/props"),
    ("POST", "/v1/load_lora_adapter"),
    ("POST", "/v1/unload_lora_adapter"),
    ("GET", "/lora-adapters"),
    ("POST", "/lora-adapters"),
    ("POST", "/sleep"),
    ("POST", "/wake_up"),
    ("POST", "/collective_rpc"),
    ("POST", "/reset_prefix_cache"),
    ("POST", "/start_profile"),
    ("POST", "/stop_profile"),
    ("POST", "/models/load"),
    ("POST", "/models/unload"),
]
SPELLINGS = [
    "{}",
    "/v1{}",
    "/v1/v1{}",
    "/v1/..{}",
    "/v1/%2e%2e{}",
    "/v1/chat/completions/../..{}",
    "/v1/chat/completions/..;{}",
    "//{}",
    "/v1/{}/",
    "/v1/chat/completions;{}",
    "/v1/chat/completions%2F..%2F..{}",
    "/%76%31{}",
    "/upstream/Model{}",
    "//upstream//Model{}",
    "/upstream%2FModel{}",
    "/v1/../upstream/Model{}",
    "/upstream/@aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa{}",
]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_key_for_inference_reaches_nothing_that_steers_a_server(
    gate: Gate, spelling: str
) -> None:
    """Whichever way the path is spelled."""
    gate.lock()
    key = gate.caller("key")
    for method, path in STEERING:
        for target in (spelling.format(path), spelling.format(path.replace("/", "%2F"))):
            sent, _, query = target.partition("?")
            environ = {
                "PATH_INFO": "/" + unquote(sent).lstrip("/"),  # as waitress has it
                "REQUEST_URI": target,
                "QUERY_STRING": query,
            }
            answer = key.call(method, "/", environ_overrides=environ)
            if answer.status_code == 308:  # of doubled slashes
                answer = key.call(method, urlsplit(answer.headers["Location"]).path)
            assert answer.status_code in (400, 401, 403, 404, 405), (method, target)


# --- names and addresses --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "lets_in"),
    [
        ("localhost", True),
        ("localhost:8080", True),
        ("LOCALHOST.", True),
        ("127.0.0.1:8080", True),
        ("192.168.1.5", True),
        ("[::1]:8080", True),
        ("[fe80::1]", True),
        ("models.localhost", True),
        ("host.docker.internal", True),
        (socket.gethostname(), True),
        ("llm.example.org", True),  # allowed below
        ("LLM.Example.org:443", True),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("evil.example:8080", False),
        ("llm.example.org.evil.example", False),
        ("", False),
        ("[::1", False),
        ("a" * 60 + ".example", False),
        ("[evil.example]", False),
        ("llm.example.org@evil.example", False),
    ],
)
def test_a_name_that_is_not_ours_is_refused(gate: Gate, host: str, lets_in: bool) -> None:
    gate.set(allowed_hosts=("llm.example.org",))
    caller = Caller(gate.app, "127.0.0.1")
    for path in ("/", "/api/models", "/v1/models", "/login"):
        found = caller.call("GET", path, headers={"Host": host})
        assert (found.status_code, "is not known as" in found.text) == (
            (200, False) if lets_in else (403, True)
        )
    assert caller.outcome("GET", "/health", headers={"Host": host}) == YES


ORIGINS = [
    ("http://localhost", True),  # the client's own host
    ("https://localhost", True),
    ("https://chat.example.org", True),  # allowed below, for the models alone
    ("http://localhost:3000", False),
    ("http://evil.example", False),
    ("null", False),
    ("https://chat.example.org.evil.example", False),
    ("http://localhost.evil.example", False),
    ("http://[", False),
    ("", False),
]


@pytest.mark.parametrize(("origin", "lets_in"), ORIGINS)
def test_a_foreign_page_may_not_use_models(gate: Gate, origin: str, lets_in: bool) -> None:
    gate.set(cors_origins=("https://chat.example.org",))
    caller = Caller(gate.app, "127.0.0.1")
    for method, path in (("POST", "/v1/chat/completions"), ("GET", "/v1/models")):
        found = caller.call(method, path, headers={"Origin": origin})
        assert found.status_code == (200 if lets_in else 403)
        shared = found.headers.get("Access-Control-Allow-Origin")
        assert shared == (origin if "chat" in origin and lets_in else None)
    is_own = lets_in and "localhost" in origin
    for path in ("/", "/api/models", "/health"):
        found = caller.call("GET", path, headers={"Origin": origin})
        assert found.status_code == (200 if is_own else 403)
        assert "Access-Control-Allow-Origin" not in found.headers


def test_an_extension_is_let_in_by_a_pattern_and_to_the_models_alone(gate: Gate) -> None:
    gate.set(cors_origins=("moz-extension://*",))
    caller = Caller(gate.app, "127.0.0.1")
    extension = "moz-extension://2f6a4c5e-1b1d-4a53-9d3b-0d2c5a8e7f10"
    asked = {"Origin": extension, "Access-Control-Request-Method": "POST"}
    for method, status in (("OPTIONS", 204), ("POST", 200)):
        answer = caller.call(method, "/v1/chat/completions", headers=asked)
        assert answer.status_code == status
        assert answer.headers["Access-Control-Allow-Origin"] == extension
        for path in ("/api/models", "/metrics", "/", "/health", "/v1", "/api/models/%2Fv1%2Fx"):
            refused = caller.call(method, path, headers=asked)
            assert refused.status_code == 403
            assert "may not use this LLM-Manager" in refused.text
            assert "Access-Control-Allow-Origin" not in refused.headers
    for origin in ("chrome-extension://abc", "null", f"{extension}/x"):
        foreign = caller.call("POST", "/v1/chat/completions", headers={"Origin": origin})
        assert outcome(foreign) == "403 origin_not_allowed"


@pytest.mark.parametrize(("origin", "lets_in"), ORIGINS)
def test_ollamas_paths_are_for_the_same_pages_as_the_models(
    gate: Gate, origin: str, lets_in: bool
) -> None:
    gate.set(cors_origins=("https://chat.example.org",))
    caller = Caller(gate.app, "127.0.0.1")
    asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    is_foreign = "chat" in origin
    for method, path in OLLAMA_CALLS:
        found = caller.call(method, spelled(path), headers={"Origin": origin})
        assert found.status_code == (200 if lets_in else 403)
        if not lets_in:
            assert isinstance(found.json["error"], str)
        if is_foreign:
            before = caller.call("OPTIONS", spelled(path), headers=asked)
            assert before.status_code == (204 if lets_in else 403)
    # What is beside them is not.
    for path in ("/api/models", "/api/keys", "/api/chat/x", "/api/blobs", "/api/tags/", "/api"):
        found = caller.call("OPTIONS", path, headers=asked)
        assert "Access-Control-Allow-Origin" not in found.headers
        assert found.status_code == (403 if is_foreign or not lets_in else found.status_code)


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", ""])
def test_only_ollamas_paths_take_any_content_type(gate: Gate, kind: str) -> None:
    caller = gate.caller("local token")
    del caller.headers["Authorization"]
    for method, path in OLLAMA_CALLS:
        sent = caller.client.open(spelled(path), method=method, data="{}", content_type=kind)
        assert (sent.status_code, sent.text) == (200, YES)
    caller = gate.caller("local token")
    changing = [route for route, rule in PROMISED.items() if rule in ("admin", "config")]
    for method, path in [route for route in changing if route[0] != "GET"]:
        sent = caller.client.open(
            spelled(path), method=method, data="{}", content_type=kind, headers=caller.headers
        )
        assert outcome(sent) == "415 json_required"


@pytest.mark.parametrize(("path", "rule"), [("/api/keys", "OLLAMA"), ("/api/chat", "OPEN")])
def test_a_route_that_is_ollamas_by_its_path_or_its_rule_alone_keeps_the_program_from_starting(
    gate: Gate, monkeypatch: pytest.MonkeyPatch, path: str, rule: str
) -> None:
    def confused(_services: Services) -> Api:
        api = Api("confused")
        api.call(f"POST {path}", Rule[rule])(lambda: YES)
        return api

    monkeypatch.setattr(app_module, "_BLUEPRINTS", (confused,))
    with pytest.raises(LookupError, match=path):
        routes.create_app(gate.services, b"a secret")


def test_a_browser_may_ask_first_where_a_page_is_allowed(gate: Gate) -> None:
    gate.lock()  # the question comes without a key
    gate.set(cors_origins=("https://chat.example.org",))
    caller = Caller(gate.app, ELSEWHERE)
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
    headers = {"Origin": "https://chat.example.org", **asked}
    answer = caller.call("OPTIONS", "/v1/chat/completions", headers=headers)
    assert answer.status_code == 204
    assert answer.headers["Access-Control-Allow-Origin"] == "https://chat.example.org"
    assert answer.headers["Access-Control-Allow-Headers"] == "x-api-key"
    assert "Origin" in answer.headers["Vary"]
    assert caller.call("OPTIONS", "/api/models", headers=headers).status_code == 403
    headers["Origin"] = "https://other.example"
    assert caller.call("OPTIONS", "/v1/chat/completions", headers=headers).status_code == 403
    gate.set(cors_origins=("*",))
    assert caller.call("OPTIONS", "/v1/chat/completions", headers=headers).status_code == 204
    # Where the answer is a refusal, a page may read why.
    refused = caller.call("POST", "/v1/chat/completions", headers=headers)
    assert outcome(refused) == NO_KEY
    assert refused.headers["Access-Control-Allow-Origin"] == "https://other.example"


@pytest.mark.parametrize(
    ("listed", "lets_in"),
    [
        (("https://chat.example.org",), True),
        (("*", "https://chat.example.org"), True),
        (("*",), False),
        (("https://*.example.org",), False),
    ],
)
def test_only_a_page_that_is_named_may_come_from_the_internet_to_a_private_address(
    gate: Gate, listed: tuple[str, ...], lets_in: bool
) -> None:
    gate.set(cors_origins=listed)
    caller = Caller(gate.app, "127.0.0.1")
    name = "Access-Control-Allow-Private-Network"
    headers = {"Origin": "https://chat.example.org", "Access-Control-Request-Method": "POST"}
    assert name not in caller.call("OPTIONS", "/v1/models", headers=headers).headers
    headers["Access-Control-Request-Private-Network"] = "true"
    answer = caller.call("OPTIONS", "/v1/models", headers=headers)
    assert answer.status_code == 204
    assert answer.headers.get(name) == ("true" if lets_in else None)
    assert name not in caller.call("OPTIONS", "/api/models", headers=headers).headers


PROXY = "10.0.0.1"


HERE = "127.0.0.1"


@pytest.mark.parametrize(
    ("peer", "forwarded", "is_here"),
    [
        ("127.4.5.6", None, True),
        ("::1", None, True),
        ("::ffff:127.4.5.6", None, True),
        (ELSEWHERE, None, False),
        ("::ffff:203.0.113.9", None, False),
        ("", None, False),
        # From a proxy that nobody has named, nothing is believed.
        ("127.4.5.6", HERE, False),
        (ELSEWHERE, HERE, False),
        # From a named one on this machine, the last that it has seen itself.
        (HERE, None, True),  # who came without it
        (HERE, HERE, True),
        (HERE, f"{HERE}:5000", True),
        (HERE, "[::1]:5000", True),
        (HERE, ELSEWHERE, False),
        (HERE, f"{HERE}, {ELSEWHERE}", False),
        (HERE, f"{ELSEWHERE}, {PROXY}", False),
        (HERE, f"127.9.9.9, {PROXY}", True),  # two of ours, one behind the other
        (HERE, "nonsense", False),
        (HERE, "127.9.9.9, ", False),
        # Who is at home on another machine is not so on this one.
        (PROXY, HERE, False),
        (PROXY, ELSEWHERE, False),
        (PROXY, None, False),
    ],
)
def test_only_this_machine_itself_is_local(
    gate: Gate, peer: str, forwarded: str | None, is_here: bool
) -> None:
    gate.set(trusted_proxies=tuple(map(ipaddress.ip_network, ("10.0.0.0/24", HERE))))
    caller = Caller(gate.app, peer)
    headers = {} if forwarded is None else {"X-Forwarded-For": forwarded}
    wanted = YES if is_here else NO_PASSWORD
    assert caller.outcome("GET", "/api/models", headers=headers) == wanted


@pytest.mark.parametrize("name", ["Forwarded", "X-Real-IP", "Via", "X-Forwarded-For"])
def test_a_proxy_on_this_machine_that_is_not_named_does_not_bring_everybody_in(
    gate: Gate, name: str
) -> None:
    caller = Caller(gate.app, "127.0.0.1")
    assert caller.outcome("GET", "/api/models", headers={name: "127.0.0.1"}) == NO_PASSWORD
    # Nor does one that is named, and tells in another way than the one that is read.
    gate.set(trusted_proxies=(ipaddress.ip_network("127.0.0.1"),))
    is_read = name == "X-Forwarded-For"
    found = caller.outcome("GET", "/api/models", headers={name: "127.0.0.1"})
    assert found == (YES if is_read else NO_PASSWORD)


def test_behind_a_named_proxy_its_name_and_scheme_are_the_clients(gate: Gate) -> None:
    gate.set(trusted_proxies=(ipaddress.ip_network(PROXY),), allowed_hosts=("llm.example.org",))
    seen = {"X-Forwarded-For": ELSEWHERE, "X-Forwarded-Host": "llm.example.org"}
    own = {**seen, "Origin": "https://llm.example.org", "Host": "127.0.0.1:8080"}
    caller = Caller(gate.app, PROXY)
    assert caller.outcome("GET", "/v1/models", headers=own) == YES
    assert caller.call("GET", "/v1/models", headers={**own, "X-Forwarded-Host": "evil.example"})
    strange = caller.call("GET", "/v1/models", headers={**own, "X-Forwarded-Host": "evil.example"})
    assert strange.status_code == 403


@pytest.mark.parametrize(
    ("forwarded", "logged"),
    [
        (f"{PROXY}, {ELSEWHERE}", ELSEWHERE),
        (f"{ELSEWHERE}:5000", ELSEWHERE),
        ("fe80::1%eth0 200 from 192.0.2.1", "fe80::1"),
        ("[2001:db8::1%\x1b[2J]:5000", "2001:db8::1"),
        ("\x1b]0;owned\x07", "-"),
        ("", "-"),
    ],
)
def test_a_refusal_is_logged_with_the_client_behind_a_named_proxy_and_nothing_it_made_up(
    gate: Gate, caplog: pytest.LogCaptureFixture, forwarded: str, logged: str
) -> None:
    gate.lock()
    gate.set(trusted_proxies=(ipaddress.ip_network(PROXY),))
    headers = {"X-Forwarded-For": forwarded}
    with caplog.at_level(logging.INFO, "routes.auth"):
        Caller(gate.app, PROXY).call("GET", "/api/models/a%1Bb/logs", headers=headers)
        Caller(gate.app, ELSEWHERE).call("GET", "/v1/models", headers={"X-Forwarded-For": HERE})
    assert [record.getMessage() for record in caplog.records] == [
        f"'GET /api/models/a\\x1bb/logs' from {logged}: 401 sign_in_needed",
        f"'GET /v1/models' from {ELSEWHERE}: 401 invalid_api_key",
    ]


def test_a_page_of_ours_uses_models_only_with_its_token(gate: Gate) -> None:
    gate.lock()
    admin = gate.caller("admin")
    ask = ("POST", "/v1/chat/completions")
    assert admin.outcome(*ask) == YES
    assert admin.outcome(*ask, headers={"X-CSRFToken": "made-up"}) == OUTDATED


# --- keys -----------------------------------------------------------------------------------------


def test_the_models_are_closed_as_require_key_says(gate: Gate) -> None:
    nobody = Caller(gate.app, ELSEWHERE)
    ask = ("POST", "/v1/chat/completions")
    unknown = {"Authorization": "Bearer sk-no-key-required"}
    assert nobody.outcome(*ask) == nobody.outcome(*ask, headers=unknown) == YES
    gate.set(require_key=True)
    assert nobody.outcome(*ask) == nobody.outcome(*ask, headers=unknown) == NO_KEY
    gate.set(require_key=None)
    gate.lock()
    assert nobody.outcome(*ask) == nobody.outcome(*ask, headers=unknown) == NO_KEY
    # To revoke the last one does not open /v1 again.
    for name in ("good", "late"):
        gate.access.change(lambda c, name=name: api_keys.revoke(c, name, NOW))
    assert nobody.outcome(*ask) == NO_KEY
    gate.set(require_key=False)
    assert nobody.outcome(*ask) == nobody.outcome(*ask, headers=unknown) == YES
    # Who was locked out by name stays out.
    gone = {"Authorization": f"Bearer {gate.secrets['gone']}"}
    assert nobody.outcome(*ask, headers=gone) == NO_KEY


def test_a_refusal_for_want_of_a_key_is_final_to_the_sdks(gate: Gate) -> None:
    gate.lock()
    answer = Caller(gate.app, ELSEWHERE).call("POST", "/v1/chat/completions")
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answer.headers["X-Should-Retry"] == "false"
    assert answer.json is not None
    assert answer.json["error"]["type"] == "authentication_error"


@pytest.mark.parametrize("header", ["Bearer", "bearer ", "Basic YTpi", "Bearer  ", "", "token x"])
def test_a_header_without_a_key_is_as_none(gate: Gate, header: str) -> None:
    gate.lock()
    caller = Caller(gate.app, "127.0.0.1")
    headers = {"Authorization": header}
    assert caller.outcome("POST", "/v1/chat/completions", headers=headers) == NO_KEY
    assert caller.outcome("GET", "/api/models", headers=headers) == SIGN_IN


def test_the_word_bearer_may_be_spelled_as_one_likes(gate: Gate) -> None:
    gate.lock()
    for word in ("bearer", "BEARER", "Bearer "):
        headers = {"Authorization": f"{word} {gate.secrets['good']}"}
        answer = Caller(gate.app, ELSEWHERE).outcome("GET", "/v1/models", headers=headers)
        assert answer == YES


# --- the config -----------------------------------------------------------------------------------


def test_the_config_is_edited_from_elsewhere_only_where_that_is_on(gate: Gate) -> None:
    gate.lock()
    caller = gate.caller("admin from elsewhere")
    assert caller.outcome("PUT", "/api/config/text") == LOCKED
    gate.set(allow_config_edit=True)
    assert caller.outcome("PUT", "/api/config/text") == YES
    viewer = gate.caller("viewer")
    assert viewer.outcome("PUT", "/api/config/text") == NO_ADMIN


# --- signing in -----------------------------------------------------------------------------------


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Gate]:
    """A gate whose own pages do what they do."""
    gate = Gate(tmp_path, whole=("login.", "access."))
    yield gate
    gate.store.close()


def sign_in(caller: Caller, name: str = "ann", password: str = PASSWORD, **more: str) -> Any:
    caller.take_token()
    token = caller.headers.pop("X-CSRFToken")
    form = {"name": name, "password": password, "csrf_token": token, **more}
    return caller.client.post(
        "/login", data=form, environ_base={"REMOTE_ADDR": caller.address}, headers=caller.headers
    )


def cookie_of(answer: TestResponse) -> str:
    return next(c for c in answer.headers.getlist("Set-Cookie") if c.startswith("llm_manager_"))


def test_who_knows_the_password_is_let_in_where_they_wanted(desk: Gate) -> None:
    desk.lock()
    caller = Caller(desk.app, ELSEWHERE)
    away = caller.call("GET", "/usage?start=2026-11-01&model=a%26b")
    assert away.headers["Location"] == "/login?next=/usage%3Fstart%3D2026-11-01%26model%3Da%2526b"
    answer = sign_in(caller, next="/usage?start=2026-11-01&model=a%26b")
    assert answer.status_code == 303
    assert answer.headers["Location"].startswith("/usage?start=2026-11-01")
    cookie = cookie_of(answer)
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    assert "Secure" not in cookie
    assert "Expires" in cookie
    assert caller.outcome("GET", "/api/models") == YES


@pytest.mark.parametrize("back", ["https://evil.example/", "//evil.example", "/\\evil", "", "x"])
def test_signing_in_leads_to_no_foreign_page(desk: Gate, back: str) -> None:
    desk.lock()
    answer = sign_in(Caller(desk.app, ELSEWHERE), next=back)
    assert answer.headers["Location"] == "/"


def test_who_is_signed_in_already_is_led_on(desk: Gate) -> None:
    desk.lock()
    caller = Caller(desk.app, ELSEWHERE)
    sign_in(caller)
    assert caller.call("GET", "/login?next=/usage").headers["Location"] == "/usage"
    assert caller.call("GET", "/setup").headers["Location"] == "/login"


def test_what_was_in_a_session_before_is_not_taken_along(desk: Gate) -> None:
    desk.lock()
    caller = Caller(desk.app, ELSEWHERE)
    with caller.client.session_transaction() as kept:
        kept["planted"] = "by somebody else"
    sign_in(caller)
    with caller.client.session_transaction() as kept:
        assert sorted(kept) == ["_permanent", "account", "generation"]


def test_what_somebody_has_open_is_theirs_until_they_are_signed_out(gate: Gate) -> None:
    onlooker = auth.Caller("127.0.0.1", True, is_onlooker=True)
    generation = gate.services.local_token.check(local_token.read(gate.path.parent))
    owner = auth.Caller("127.0.0.1", True, local_token=generation)
    assert auth.is_still_authorized(gate.services, onlooker)
    gate.lock()
    assert not auth.is_still_authorized(gate.services, onlooker)
    assert auth.is_still_authorized(gate.services, owner)
    (gate.path.parent / local_token.FILE).unlink()
    assert not auth.is_still_authorized(gate.services, owner)
    ann = auth.Caller(ELSEWHERE, False, account=gate.access.snapshot.accounts["ann"])
    script = auth.Caller(ELSEWHERE, False, token=gate.access.snapshot.tokens["a"])
    assert auth.is_still_authorized(gate.services, ann)
    assert auth.is_still_authorized(gate.services, script)
    gate.access.change(lambda c: accounts.sign_out(c, "ann"))
    gate.access.change(lambda c: accounts.remove_token(c, "a"))
    assert not auth.is_still_authorized(gate.services, ann)
    assert not auth.is_still_authorized(gate.services, script)


def test_an_account_of_the_same_name_is_another(desk: Gate) -> None:
    desk.lock()
    caller = Caller(desk.app, ELSEWHERE)
    sign_in(caller, "eve")
    assert caller.outcome("GET", "/api/models") == YES
    desk.access.change(lambda c: accounts.remove(c, "eve"))
    assert caller.outcome("GET", "/api/models") == SIGN_IN
    desk.access.change(lambda c: accounts.add(c, "eve", "admin", "hash", NOW + 1))
    assert caller.outcome("GET", "/api/models") == SIGN_IN


def test_a_database_that_does_not_take_a_password_is_told_on_the_page(
    desk: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_function: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(desk.access, "change", fail)
    answer = set_up(desk.caller("local session"))
    assert (answer.status_code, answer.mimetype) == (503, "text/html")
    assert "usage.db cannot be used" in answer.text


def test_behind_tls_the_cookie_stays_there(desk: Gate) -> None:
    desk.lock()
    desk.set(trusted_proxies=(ipaddress.ip_network(PROXY),))
    caller = Caller(desk.app, PROXY)
    caller.headers = {"X-Forwarded-For": ELSEWHERE, "X-Forwarded-Proto": "https"}
    assert "Secure" in cookie_of(sign_in(caller))
    # Nobody else can say so.
    desk.set(trusted_proxies=())
    assert "Secure" not in cookie_of(sign_in(caller))


@pytest.mark.parametrize(
    ("name", "password"), [("ann", "wrong horse"), ("nobody", PASSWORD), ("", ""), ("ann", "")]
)
def test_a_wrong_name_or_password_is_told_alike(desk: Gate, name: str, password: str) -> None:
    desk.lock()
    caller = Caller(desk.app, ELSEWHERE)
    answer = sign_in(caller, name, password)
    assert answer.status_code == 403
    assert "The name or the password is wrong" in answer.text
    assert PASSWORD not in answer.text
    assert caller.outcome("GET", "/api/models") == SIGN_IN


def test_guessing_is_slowed_down_also_for_who_then_knows_it(desk: Gate) -> None:
    desk.lock()
    caller = Caller(desk.app, ELSEWHERE)
    for _ in range(3):
        assert sign_in(caller, password="wrong horse").status_code == 403
    refused = sign_in(caller)
    assert refused.status_code == 429
    assert int(refused.headers["Retry-After"]) == 1
    assert "try again in" in refused.text
    assert sign_in(Caller(desk.app, "198.51.100.7")).status_code == 303


def test_a_port_behind_an_address_does_not_make_another_client(desk: Gate) -> None:
    desk.lock()
    desk.set(trusted_proxies=(ipaddress.ip_network(PROXY),))
    for port in range(4000, 4003):
        caller = Caller(desk.app, PROXY)
        caller.headers["X-Forwarded-For"] = f"{ELSEWHERE}:{port}"
        assert sign_in(caller, password="wrong horse").status_code == 403
    caller.headers["X-Forwarded-For"] = f"{ELSEWHERE}:5000"
    assert sign_in(caller).status_code == 429


def test_no_password_is_hashed_for_who_may_not_set_it(
    desk: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.lock()
    monkeypatch.setattr(credentials, "password_hash", None)
    assert set_up(Caller(desk.app, ELSEWHERE)).headers["Location"] == "/login"


def test_signing_out_ends_a_session_and_everywhere_ends_all(desk: Gate) -> None:
    desk.lock()
    callers = [Caller(desk.app, ELSEWHERE) for _ in range(3)]
    for caller in callers:
        sign_in(caller)
        caller.take_token()
    first, second, _ = callers
    assert first.call("POST", "/logout").headers["Location"] == "/login"
    assert first.outcome("GET", "/api/models") == SIGN_IN
    assert second.outcome("GET", "/api/models") == YES
    assert second.call("POST", "/api/accounts/ann/sign-out").status_code == 200
    assert [c.outcome("GET", "/api/models") for c in callers] == [SIGN_IN] * 3


def test_a_new_password_keeps_only_the_session_that_set_it(desk: Gate) -> None:
    desk.lock()
    callers = [Caller(desk.app, ELSEWHERE) for _ in range(2)]
    for caller in callers:
        sign_in(caller)
        caller.take_token()
    changed = callers[0].client.patch(
        "/api/accounts/ann", json={"password": "another horse"}, headers=callers[0].headers
    )
    assert changed.status_code == 200
    assert "password" not in changed.text
    assert [c.outcome("GET", "/api/models") for c in callers] == [YES, SIGN_IN]
    assert sign_in(Caller(desk.app, ELSEWHERE)).status_code == 403
    assert sign_in(Caller(desk.app, "192.0.2.1"), password="another horse").status_code == 303


def set_up(caller: Caller, **form: str) -> TestResponse:
    caller.take_token()
    token = caller.headers.pop("X-CSRFToken")
    given = {"name": "ann", "password": PASSWORD, "again": PASSWORD, "csrf_token": token, **form}
    return caller.client.post("/setup", data=given, environ_base={"REMOTE_ADDR": caller.address})


def test_the_first_account_is_made_with_the_local_token_once(desk: Gate) -> None:
    assert "No password is set yet" in set_up(Caller(desk.app, ELSEWHERE)).text
    refused = set_up(Caller(desk.app, "127.0.0.1"))
    assert refused.status_code == 403
    assert "llm-manager open" in refused.text
    assert "llm-manager users add NAME --role admin --password-stdin" in refused.text
    owner = desk.caller("local session")
    assert "not the same" in set_up(owner, again="x").text
    assert "8 to 200" in set_up(owner, password="short", again="short").text
    assert not desk.access.snapshot.accounts
    assert set_up(owner).headers["Location"] == "/"
    assert owner.outcome("GET", "/api/models") == YES
    again = set_up(desk.caller("local session"), name="eve")
    assert again.headers["Location"] == "/login"
    assert list(desk.access.snapshot.accounts) == ["ann"]
    # From now on, this machine's other users have to sign in as well.
    assert Caller(desk.app, "127.0.0.1").outcome("GET", "/api/models") == SIGN_IN


def follow(caller: Caller, code: str) -> TestResponse:
    caller.take_token()
    form = {"code": code, "csrf_token": caller.headers.pop("X-CSRFToken")}
    return caller.client.post(
        "/login/link", data=form, environ_base={"REMOTE_ADDR": caller.address}
    )


def test_a_link_of_the_local_token_signs_in_once_and_says_so_in_the_audit_table(
    desk: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    token = local_token.read(desk.path.parent)
    link = local_token.sign_in_link("http://127.0.0.1:8080", token, NOW)
    code = link.partition("#")[2]
    caller = Caller(desk.app, "127.0.0.1")
    assert token not in caller.call("GET", "/login/link").text
    answer = follow(caller, code)
    assert (answer.status_code, answer.headers["Location"]) == (303, "/")
    assert caller.call("GET", "/api/session").json == {
        "name": "local token",
        "role": "admin",
        "is_local": True,
        "password_is_set": False,
        "models_are_open": True,
    }
    caller.take_token()
    assert caller.outcome("POST", "/api/models/stop") == YES
    assert caller.call("GET", "/login").headers["Location"] == "/"
    late = follow(Caller(desk.app, "127.0.0.1"), code)
    assert late.status_code == 403
    assert "used already" in late.text
    assert entries(desk) == [
        ("local token", "127.0.0.1", "signed in", "local token"),
        ("local token", "127.0.0.1", "POST /api/models/stop", ""),
    ]
    for secret in (token, code):
        assert secret not in caplog.text + answer.text + late.text
    caller.call("POST", "/logout")
    assert caller.outcome("POST", "/api/models/stop") == SIGN_IN


def test_a_session_of_the_local_token_ends_with_it(desk: Gate) -> None:
    owner = desk.caller("local session")
    assert owner.outcome("GET", "/api/accounts") != SIGN_IN
    (desk.path.parent / local_token.FILE).unlink()
    assert owner.outcome("GET", "/api/accounts") == SIGN_IN


def test_a_session_of_another_program_or_of_nobody_is_worth_nothing(desk: Gate) -> None:
    desk.lock()
    sign_in(ann := Caller(desk.app, ELSEWHERE))
    cookie = ann.client.get_cookie(desk.app.config["SESSION_COOKIE_NAME"])
    assert cookie is not None
    forged = Caller(desk.app, ELSEWHERE)
    for value in (cookie.value[:-2] + "AA", cookie.value.split(".")[0], "", "x.y.z"):
        forged.client.set_cookie(cookie.key, value)
        assert forged.outcome("GET", "/api/models") == SIGN_IN


# --- who changed what -----------------------------------------------------------------------------


def entries(desk: Gate) -> list[tuple[str, str, str, str]]:
    with closing(maintenance.connect(desk.path)) as connection:
        found, _ = audit.page(connection, 100, None)
    return [(one.who, one.address, one.action, one.subject) for one in reversed(found)]


def test_every_change_is_in_the_audit_table_and_no_refusal(desk: Gate) -> None:
    desk.lock()
    caller = Caller(desk.app, ELSEWHERE)
    sign_in(caller)
    caller.take_token()
    json = {"name": "bob", "role": "viewer", "password": "sw0rdfish!"}
    made = caller.client.post(
        "/api/accounts",
        json=json,
        headers=caller.headers,
        environ_base={"REMOTE_ADDR": ELSEWHERE},
    )
    assert made.status_code == 201
    caller.call("DELETE", "/api/accounts/nobody")  # 404
    caller.call("GET", "/api/accounts")
    caller.call("POST", "/api/prices/quote")
    token = Caller(desk.app, "127.0.0.1")
    token.headers["Authorization"] = f"Bearer {desk.secrets['a']}"
    token.call("DELETE", "/api/tokens/v")
    assert entries(desk) == [
        ("ann", ELSEWHERE, "signed in", "ann"),
        ("ann", ELSEWHERE, "POST /api/accounts", "bob"),
        ("token a", "127.0.0.1", "DELETE /api/tokens/{name}", "v"),
    ]
    stored = desk.path.read_bytes() + desk.path.with_name("usage.db-wal").read_bytes()
    assert b"sw0rdfish" not in stored


@pytest.mark.parametrize("who", ["key", "key brought along", "revoked key brought along"])
def test_a_key_of_any_shape_is_named_as_one_where_a_token_is_needed(gate: Gate, who: str) -> None:
    gate.lock()
    answer = gate.caller(who).call("GET", "/api/models")
    assert answer.status_code == 401
    assert "An API key is for /v1" in answer.text


def test_a_secret_that_is_brought_along_is_shown_and_recorded_nowhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    gate = Gate(tmp_path, whole=("keys.add",))
    gate.services.limits.view.return_value.spent = {"day": 0, "month": 0}  # type: ignore[attr-defined]
    gate.services.limits.view.return_value.configure_mock(  # type: ignore[attr-defined]
        requests=0, tokens=0, in_flight=0
    )
    caller = gate.caller("local token")
    secret = "sk-7Jq2vXn0Rk5tWbY8cZ1dLs"
    refused = [
        caller.client.post("/api/keys", json={"name": "b", "secret": one}, headers=caller.headers)
        for one in (local_token.read(tmp_path), "sk-1234", f"{secret}\u00e9", secret * 20)
    ]
    made = caller.client.post(
        "/api/keys", json={"name": "ann", "secret": secret}, headers=caller.headers
    )
    again = caller.client.post(
        "/api/keys", json={"name": "bob", "secret": secret}, headers=caller.headers
    )
    assert (made.status_code, "secret" in made.json) == (201, False)
    assert [one["hint"] for one in made.json["secrets"]] == ["1dLs"]
    assert [one.json["error"]["param"] for one in (*refused, again)] == ["secret"] * 5
    assert [one.status_code for one in (*refused, again)] == [409, 400, 400, 400, 409]
    assert "ann" not in again.text
    assert gate.access.snapshot.key(secret, NOW).name == "ann"  # type: ignore[union-attr]
    assert list(gate.access.snapshot.keys) == ["ann"]
    with closing(maintenance.connect(gate.path)) as connection:
        (entry,), _ = audit.page(connection, 100, None)
    assert (entry.subject, entry.detail["secret"]) == ("ann", "***")
    gate.store.close()
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    said = caplog.text + made.text + again.text + "".join(one.text for one in refused)
    assert secret[3:15] not in said
    assert secret[3:15].encode() not in written
    assert local_token.read(tmp_path) not in said


class DryRun:
    """A model that notes what was asked of it."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def preview(self) -> dict[str, str]:
        self.calls.append("preview")
        return {}

    def start(self) -> None:
        self.calls.append("start")

    def to_json(self) -> dict[str, str]:
        return {}


@pytest.mark.parametrize(
    ("query", "calls", "is_recorded"),
    [
        ("?dry_run=1", ["preview"], False),
        ("?dry_run=0", ["start"], True),
        ("", ["start"], True),
        ("?dryrun=1", [], False),
    ],
)
def test_only_a_start_that_is_made_is_in_the_audit_table(
    tmp_path: Path, query: str, calls: list[str], is_recorded: bool
) -> None:
    gate = Gate(tmp_path, whole=("models.",))
    model = DryRun()
    gate.fleet.find = lambda _name: model
    gate.lock()
    gate.caller("admin's token").call("POST", f"/api/models/some/start{query}")
    assert model.calls == calls
    assert bool(entries(gate)) == is_recorded
    gate.store.close()


@pytest.mark.parametrize(
    "body",
    ['{"x": "\\ud800"}', "[" * 5000, '{"x":' * 700 + "1" + "}" * 700, '{"x": NaN}', "nonsense"],
)
def test_no_strange_body_keeps_a_change_from_the_audit_table(gate: Gate, body: str) -> None:
    gate.lock()
    caller = gate.caller("admin's token")
    answer = caller.client.post(
        "/api/models/some/stop",
        data=body,
        content_type="application/json",
        headers=caller.headers,
    )
    assert answer.text == YES
    with closing(maintenance.connect(gate.path)) as connection:
        (entry,), _ = audit.page(connection, 10, None)
    assert (entry.action, entry.subject) == ("POST /api/models/{name}/stop", "some")
    json.dumps(entry.detail, allow_nan=False)


def test_every_changing_route_is_recorded(gate: Gate) -> None:
    gate.lock()
    caller = gate.caller("admin")
    changing = [r for r, kind in PROMISED.items() if kind in ("admin", "config") and r[0] != "GET"]
    for method, path in changing:
        assert caller.outcome(method, spelled(path)) == YES
    recorded = {action for _, _, action, _ in entries(gate)}
    names = {
        f"{m} {p.replace('<path:', '<').replace('<', '{').replace('>', '}')}" for m, p in changing
    }
    without = ("check", "preview", "propose")
    assert recorded == names - {f"POST /api/config/{name}" for name in without}


# --- the pages of models' servers -----------------------------------------------------------------


@pytest.fixture
def hall(tmp_path: Path) -> Iterator[Gate]:
    """With the routes below /upstream as they are, as far as the model's server."""
    gate = Gate(tmp_path, whole=("upstream.",))
    model = SimpleNamespace(name="Model")
    gate.fleet.config = SimpleNamespace(
        program=gate.program, find=lambda name: model if name == "Model" else None
    )
    gate.lock()
    yield gate
    gate.store.close()


def test_who_is_signed_in_as_admin_is_led_to_an_address_with_a_pass(hall: Gate) -> None:
    for name in ("admin", "admin from elsewhere", "admin without CSRF"):
        caller = hall.caller(name)
        for method in ("GET", "HEAD"):
            for path in ("/upstream/Model/a%20b?c=d", "/upstream/Model"):
                answer = caller.call(method, path)
                assert (answer.status_code, answer.headers["Cache-Control"]) == (303, "no-store")
                base, _, rest = answer.headers["Location"].partition("@")[2].partition("/")
                assert len(base) == 32
                assert rest == ("a%20b?c=d" if "?" in path else "")


@pytest.mark.parametrize(
    ("name", "headers", "expected"),
    [
        ("admin", {}, "303"),
        ("admin", {"Sec-Fetch-Site": "none", "Sec-Fetch-Dest": "document"}, "303"),
        ("admin", {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Dest": "document"}, "303"),
        ("admin", {"Sec-Fetch-Site": "cross-site"}, "403 cross_site_request"),
        ("admin", {"Sec-Fetch-Site": "same-site"}, "403 cross_site_request"),
        ("admin", {"Sec-Fetch-Dest": "iframe"}, "403 cross_site_request"),
        ("admin", {"Sec-Fetch-Dest": "script"}, "403 cross_site_request"),
        ("admin", {"Origin": "null"}, "403 origin_not_allowed"),
        ("admin", {"Service-Worker": "script"}, "403 service_worker_refused"),
        ("admin", {"Upgrade": "websocket"}, "501 upgrade_not_supported"),
        ("viewer", {}, NO_ADMIN),
        ("key", {}, NOT_RAW),
        ("raw key", {"Sec-Fetch-Site": "cross-site"}, "403 cross_site_request"),
        ("admin's token", {"Sec-Fetch-Site": "cross-site"}, "403 cross_site_request"),
        ("nobody on loopback", {}, SIGN_IN),
    ],
)
def test_only_an_admin_opens_a_page_and_from_nowhere_else(
    hall: Gate, name: str, headers: dict[str, str], expected: str
) -> None:
    answer = hall.caller(name).call("GET", "/upstream/Model/", headers=headers)
    assert answer.headers["Content-Security-Policy"] == "sandbox allow-scripts allow-forms"
    assert (str(answer.status_code) if expected == "303" else outcome(answer)) == expected


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_a_session_does_no_more_than_look_whatever_it_sends_along(hall: Gate, method: str) -> None:
    assert hall.caller("admin").outcome(method, "/upstream/Model/") == TOKEN_NEEDED


SANDBOXED = {"Origin": "null", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "empty"}


def opened_by(gate: Gate, name: str = "admin") -> str:
    return gate.caller(name).call("GET", "/upstream/Model/").headers["Location"]


def test_a_page_with_a_pass_may_do_all_at_its_server_and_nothing_elsewhere(hall: Gate) -> None:
    page = opened_by(hall)
    hall.app.view_functions |= {
        name: lambda **_: YES for name in hall.app.view_functions if name.startswith("upstream.")
    }
    nobody = Caller(hall.app, ELSEWHERE)  # its cookie is not sent
    for method in ("GET", "POST", "DELETE"):
        answer = nobody.call(method, f"{page}any/path", headers=SANDBOXED)
        assert (answer.status_code, answer.text) == (200, YES)
        assert answer.headers["Access-Control-Allow-Origin"] == "null"
        assert "Access-Control-Allow-Credentials" not in answer.headers
    asked = {
        **SANDBOXED,
        "Access-Control-Request-Method": "DELETE",
        "Access-Control-Request-Headers": "x-own",
    }
    answer = nobody.call("OPTIONS", f"{page}x", headers=asked)
    assert answer.status_code == 204
    assert answer.headers["Access-Control-Allow-Methods"] == "DELETE"
    assert answer.headers["Access-Control-Allow-Headers"] == "x-own"
    for headers in (
        {"Origin": "https://evil.example"},
        {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Dest": "script"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Dest": "empty"},
    ):
        assert nobody.call("GET", page, headers=headers).status_code == 403
    for path in ("/api/models", "/v1/models", "/", "/upstream/Model/"):
        answer = nobody.call("GET", path, headers=SANDBOXED)
        assert answer.status_code == 403
        assert "Web pages of" in answer.text
        assert "Access-Control-Allow-Origin" not in answer.headers


def test_no_log_and_no_message_has_a_pass(hall: Gate, caplog: pytest.LogCaptureFixture) -> None:
    """Who may read the log may not use the server."""
    caplog.set_level(logging.INFO)
    page = opened_by(hall)
    hall.app.config["PROPAGATE_EXCEPTIONS"] = False
    nobody = Caller(hall.app, ELSEWHERE)
    refused = {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Dest": "script"}
    answers = [
        nobody.call("GET", f"{page}x", headers=refused),
        nobody.call("TRACE", f"{page}x"),
        nobody.call("POST", f"{page}x"),  # which fails here, for want of a fleet
    ]
    assert [answer.status_code for answer in answers] == [403, 405, 500]
    assert caplog.text.count("/upstream/@…/x") >= len(answers)
    code = page.strip("/").rpartition("@")[2]
    assert code not in caplog.text + "".join(answer.text for answer in answers)


def test_a_pass_ends_with_the_rights_of_who_made_it(hall: Gate) -> None:
    nobody = Caller(hall.app, ELSEWHERE)

    def is_good(page: str) -> bool:
        answer = nobody.call("OPTIONS", page, headers=SANDBOXED)
        assert answer.status_code == 204 or outcome(answer) == "403 page_expired"
        return answer.status_code == 204

    page = opened_by(hall)
    assert is_good(page)
    hall.access.change(lambda c: accounts.sign_out(c, "ann"))
    assert not is_good(page)
    page = opened_by(hall)
    hall.access.change(lambda c: accounts.set_role(c, "eve", "admin"))
    hall.access.change(lambda c: accounts.set_role(c, "ann", "viewer"))
    assert not is_good(page)
    page = opened_by(hall, "local session")
    assert is_good(page)
    (hall.path.parent / local_token.FILE).unlink()
    LocalToken(hall.path.parent)
    assert not is_good(page)
    assert not is_good(f"/upstream/@{'A' * 32}/")
