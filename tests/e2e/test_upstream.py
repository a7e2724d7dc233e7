"""A model's whole server below /upstream: who may use it, what reaches it, and what comes back."""

from __future__ import annotations

import hashlib
import http.client
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support import page_server
from tests.support.fixtures import Launch
from tests.support.program import (
    CHAT,
    PATIENCE,
    ROOT,
    Program,
    chat,
    error_of,
    eventually,
    free_port,
)

POLICY = "sandbox allow-scripts allow-forms"
SERVER = ROOT / "tests" / "support" / "page_server.py"


def served(folder: Path, **settings: Any) -> dict[str, Any]:
    """A model whose server has the pages of a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(SERVER), str(folder)]
    return {"mode": "Chat", **settings, "Default": {"command": command}}


class Site:
    """A program whose models' servers note what reaches them."""

    def __init__(self, launch: Launch, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.port = free_port()
        self.program: Program = launch(
            {
                "Model": served(folder / "model", aliases=["team/model"], port=self.port),
                "Model/b": served(folder / "b"),
                "/x y": served(folder / "x"),
                "Cold": served(folder / "cold"),
            },
            **settings,
        )
        self.raw = {"Authorization": f"Bearer {self.program.add_key('raw', raw=True)}"}
        self.key = {"Authorization": f"Bearer {self.program.add_key('plain')}"}

    def seen(self, name: str = "model") -> list[dict[str, Any]]:
        """What has reached a model's server, but for what tells whether it is well."""
        path = self.folder / name / page_server.SEEN
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        found = [json.loads(line) for line in lines]
        return [one for one in found if one["headers"].get("x-test")]

    def send(
        self,
        method: str,
        target: str,
        body: bytes | Iterator[bytes] | None = None,
        **headers: str,
    ) -> tuple[http.client.HTTPResponse, bytes]:
        """A request whose target goes out as it is here."""
        connection = http.client.HTTPConnection("127.0.0.1", self.program.port, timeout=PATIENCE)
        sent = {"X-Test": "1", **self.raw}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, target, body, sent)
            answer = connection.getresponse()
            return answer, answer.read()
        finally:
            connection.close()

    def row_of(self, answer: http.client.HTTPResponse) -> dict[str, Any]:
        path = f"/api/usage/requests/{answer.headers['X-LLM-Manager-Request']}"
        eventually(lambda: self.program.get(path).ok)
        row: dict[str, Any] = self.program.get(path).json()
        return row


@pytest.fixture(scope="module")
def site(launch_once: Launch, tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("site")
    (folder / "model").mkdir()
    (folder / "model" / "index.html").write_text("<h1>Of the server</h1>", encoding="utf-8")
    return Site(launch_once, folder, max_body_mb=32)


# --- what reaches the server ----------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_any_method_path_query_and_body_reach_the_server_as_they_were_sent(
    site: Site, method: str
) -> None:
    target = "/slots/0%2F1//a%20b;c/é?action=save&x=%2F&y".replace("é", "%C3%A9")
    body = b"\x00raw\xff"
    answer, content = site.send(
        method,
        "/upstream/Model" + target,
        body,
        Content_Type="application/x-own",
        Cookie="theirs=1",
        X_Api_Key="more",
        Range="bytes=0-",
    )
    assert answer.status == 200
    said, seen = json.loads(content), site.seen()[-1]
    assert said == seen
    assert (seen["method"], seen["path"], seen["body"]) == (method, target, body.decode("latin-1"))
    assert seen["headers"]["content-type"] == "application/x-own"
    assert seen["headers"]["range"] == "bytes=0-"
    assert not {"authorization", "cookie", "x-api-key", "origin"} & seen["headers"].keys()


@pytest.mark.parametrize("in_chunks", [False, True])
def test_a_large_body_goes_through_whole(site: Site, in_chunks: bool) -> None:
    body = bytes(range(256)) * 80_000
    sent = iter([body[:1000], body[1000:]]) if in_chunks else body
    answer, content = site.send("PUT", "/upstream/Model/upload", sent)
    assert answer.status == 200
    found = json.loads(content)["body"].encode("latin-1")
    assert hashlib.sha256(found).digest() == hashlib.sha256(body).digest()


def test_a_model_that_is_stopped_is_started_and_its_use_counts(site: Site) -> None:
    assert site.program.model("Cold")["state"] == "stopped"
    answer, _ = site.send("GET", "/upstream/Cold/props")
    assert answer.status == 200
    view = site.program.model("Cold")
    assert (view["state"], view["last_used_at"] is not None) == ("ready", True)


@pytest.mark.parametrize(
    ("target", "folder", "path"),
    [
        ("/upstream/Model/", "model", "/"),
        ("/upstream/team/model/props", "model", "/props"),
        ("/upstream/team%2Fmodel/props", "model", "/props"),
        ("/upstream/Model%2Fb/props", "b", "/props"),
        ("/upstream/Model/b/props", "b", "/props"),  # the longest name that there is
        ("/upstream/Model/c/props", "model", "/c/props"),
        ("/upstream/%2Fx%20y/props?q", "x", "/props?q"),
    ],
)
def test_the_model_is_the_longest_name_or_alias_that_the_path_begins_with(
    site: Site, target: str, folder: str, path: str
) -> None:
    answer, _ = site.send("GET", target)
    assert answer.status == 200
    assert site.seen(folder)[-1]["path"] == path


@pytest.mark.parametrize(
    ("target", "to"),
    [
        ("/upstream/Model", "/upstream/Model/"),
        ("/upstream/team/model?a=b", "/upstream/team/model/?a=b"),
        ("/upstream/%2Fx%20y", "/upstream/%2Fx%20y/"),
    ],
)
def test_a_page_has_a_slash_behind_its_name_so_that_relative_addresses_are_below_it(
    site: Site, target: str, to: str
) -> None:
    before = site.seen()
    answer, _ = site.send("POST", target)
    assert (answer.status, answer.headers["Location"]) == (308, to)
    assert site.seen() == before


@pytest.mark.parametrize(
    "path",
    [
        "/../Cold/x",
        "/../../api/models",
        "/a/../../../api/models",
        "/%2e%2e/%2E%2e/api/models",
        "/..%2f..%2fapi%2fmodels",
        "/.%2e/Cold/x",
        "/./x",
    ],
)
def test_no_path_climbs_out_of_its_server(site: Site, path: str) -> None:
    before = site.seen(), site.seen("cold")
    answer, content = site.send("GET", "/upstream/Model" + path)
    assert (answer.status, json.loads(content)["error"]["code"]) == (400, "bad_path")
    assert (site.seen(), site.seen("cold")) == before


def test_an_unknown_model_is_not_found_and_near_names_are_said(site: Site) -> None:
    answer, content = site.send("GET", "/upstream/Modell/props")
    assert answer.status == 404
    error = json.loads(content)["error"]
    assert (error["code"], "Model" in error["message"]) == ("model_not_found", True)


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"Connection": "Upgrade", "Upgrade": "websocket"}, 501, "upgrade_not_supported"),
        ({"Service_Worker": "script"}, 403, "service_worker_refused"),
        ({"Sec_Fetch_Site": "cross-site"}, 403, "cross_site_request"),
        ({"Origin": "null"}, 403, "origin_not_allowed"),
        ({"Origin": "https://evil.example"}, 403, "origin_not_allowed"),
    ],
)
def test_what_no_page_may_do_is_refused_before_the_server_is_asked(
    site: Site, headers: dict[str, str], status: int, code: str
) -> None:
    before = site.seen()
    answer, content = site.send("GET", "/upstream/Model/props", **headers)
    assert (answer.status, json.loads(content)["error"]["code"]) == (status, code)
    assert answer.headers["Content-Security-Policy"] == POLICY
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert site.seen() == before


# --- what comes back ------------------------------------------------------------------------------


def test_every_answer_is_sandboxed_and_no_header_reaches_beyond_it(site: Site) -> None:
    for target in ("/upstream/Model/", "/upstream/Model/json", "/upstream/Model/moved?to=/x"):
        answer, _ = site.send("GET", target)
        headers = {name.lower(): value for name, value in answer.headers.items()}
        assert headers["content-security-policy"] == POLICY
        assert headers["referrer-policy"] == "no-referrer"
        left = {name.lower() for name in page_server.HOSTILE} & headers.keys()
        assert left == {"content-security-policy"}


@pytest.mark.parametrize(
    ("method", "target", "headers", "status"),
    [
        ("GET", "/upstream", {}, 404),
        ("GET", "/upstream/", {}, 404),
        ("GET", "/upstream/nobody/", {}, 404),
        ("GET", "/upstream/Model/x", {"Authorization": "Bearer sk-llm-wrong"}, 401),
        ("GET", "/upstream/Model/x", {"Authorization": ""}, 401),
        ("TRACE", "/upstream/Model/x", {}, 405),
        ("POST", "/upstream/Model/x", {"Content-Encoding": "gzip"}, 400),
        ("POST", "/upstream/Model/x", {"Content-Length": str(1 << 30)}, 413),
    ],
)
def test_our_own_errors_are_sandboxed_too(
    site: Site, method: str, target: str, headers: dict[str, str], status: int
) -> None:
    answer, _ = site.send(method, target, b"x" if method == "POST" else None, **headers)
    assert (answer.status, answer.headers["Content-Security-Policy"]) == (status, POLICY)


def test_a_redirect_of_the_server_stays_below_it(site: Site) -> None:
    own = f"http://127.0.0.1:{site.port}/a?b=c"
    for to, location in (
        ("/login", "/upstream/Model/login"),
        (own, "/upstream/Model/a?b=c"),
    ):
        answer, _ = site.send("GET", f"/upstream/Model/moved?to={requests.utils.quote(to)}")
        assert (answer.status, answer.headers["Location"]) == (302, location)


def test_a_redirect_to_another_address_or_back_to_us_is_not_passed_on(site: Site) -> None:
    for to in ("https://elsewhere.example/x", f"http://127.1:{site.port}/v1/props?model=Model"):
        answer, _ = site.send("GET", f"/upstream/Model/moved?to={requests.utils.quote(to)}")
        assert (answer.status, answer.headers["Location"]) == (502, None)


def test_head_ranges_and_conditions_are_the_servers(site: Site) -> None:
    answer, content = site.send("HEAD", "/upstream/Model/")
    assert (answer.status, content) == (200, b"")
    assert answer.headers["Content-Length"] == str(len("<h1>Of the server</h1>"))
    assert answer.headers["Accept-Ranges"] == "bytes"
    answer, content = site.send("GET", "/upstream/Model/", If_None_Match="here")
    assert (answer.status, content) == (304, b"")


# --- what it costs, and who may -------------------------------------------------------------------


def test_a_chat_below_it_is_metered_and_a_page_is_not_billed(site: Site) -> None:
    body = json.dumps(chat("whoever")).encode()
    answer, _ = site.send("POST", "/upstream/Model/v1/chat/completions", body)
    assert answer.status == 200
    row = site.row_of(answer)
    assert (row["endpoint"], row["model"], row["key"]) == ("/upstream", "Model", "raw")
    assert (row["prompt_tokens"], row["completion_tokens"], row["estimated"]) == (11, 4, False)
    answer, _ = site.send("GET", "/upstream/Model/")
    row = site.row_of(answer)
    assert (row["endpoint"], row["prompt_tokens"], row["estimated"]) == ("/upstream", 0, False)


def test_the_limits_of_a_key_hold_below_it_as_everywhere(site: Site) -> None:
    def ask(secret: str, model: str = "Model") -> tuple[int, str]:
        answer, content = site.send(
            "POST",
            f"/upstream/{model}/v1/chat/completions",
            b"{}",
            Authorization=f"Bearer {secret}",
        )
        error = json.loads(content).get("error")
        return answer.status, error["code"] if error else ""

    program = site.program
    only = program.add_key("only", raw=True, models=["Model"])
    assert ask(only) == (200, "")
    assert ask(only, "Cold") == (403, "model_not_allowed")
    once = program.add_key("once", raw=True, requests_per_minute=1)
    assert [ask(once), ask(once)] == [(200, ""), (429, "rate_limited")]
    poor = program.add_key("poor", raw=True, budget={"amount": "0", "period": "day"})
    assert ask(poor) == (429, "budget_exceeded")


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("POST", "/slots/0?action=save"),
        ("POST", "/v1/../slots/0?action=save"),
        ("POST", "/v1/%2e%2e/slots/0?action=save"),
        ("POST", "/v1/chat/completions/..;/props"),
        ("POST", "//props"),
        ("POST", "/v1/v1/load_lora_adapter/"),
        ("POST", "/v1/chat%2Fcompletions%2F..%2Fprops"),
        ("GET", "/upstream/Model/slots"),
        ("POST", "//upstream//Model/props"),
    ],
)
def test_a_key_for_inference_does_not_steer_a_server(site: Site, method: str, target: str) -> None:
    """All paths and spellings are tried in tests/integration/routes/test_auth.py."""
    body = json.dumps({"model": "Model", "lora_name": "a"}).encode()
    before = site.seen()
    answer, _ = site.send(method, target, body, **site.key, Content_Type="application/json")
    while answer.status in (301, 302, 307, 308):  # as a client follows them
        answer, _ = site.send(method, answer.headers["Location"], body, **site.key)
    assert answer.status in (400, 401, 403, 404, 405)
    assert site.seen() == before


def test_a_key_without_raw_is_told_what_it_lacks(site: Site) -> None:
    answer, content = site.send("GET", "/upstream/Model/props", **site.key)
    error = json.loads(content)["error"]
    assert (answer.status, error["code"]) == (403, "raw_not_allowed")
    assert "`raw`" in error["message"]
    answer, _ = site.send("GET", "/upstream/Model/props", Authorization="")
    assert answer.status == 401


def test_it_is_closed_where_everything_else_is_open(launch: Launch, tmp_path: Path) -> None:
    """A new program, without an account and without a key."""
    program = launch({"Model": served(tmp_path / "model")})
    assert program.post(CHAT, chat("Model")).status_code == 200
    nobody = {"Authorization": None}
    for method in ("GET", "POST", "DELETE"):
        refused = program.request(method, "/upstream/Model/props", headers=nobody)
        assert (refused.status_code, error_of(refused)["code"]) == (401, "sign_in_needed")
    assert program.get("/upstream/Model/props").status_code == 200  # with the local token


# --- llama-swap's calls ---------------------------------------------------------------------------


def test_scripts_of_llama_swap_see_what_runs_and_unload_it(site: Site) -> None:
    program = site.program
    program.command("Model", "start")
    nobody = {"Authorization": None}
    running = program.get("/running", headers=nobody).json()["running"]
    (entry,) = [one for one in running if one["model"] == "Model"]
    assert entry["state"] == "ready"
    assert entry["proxy"] == f"http://127.0.0.1:{site.port}"
    assert entry["ttl"] == 15 * 60
    assert "cmd" not in entry
    for method in ("GET", "POST"):
        program.command("Model", "start")
        refused = program.request(method, "/unload", headers=nobody)
        assert (refused.status_code, error_of(refused)["code"]) == (401, "token_needed")
        assert program.model("Model")["state"] == "ready"
        assert program.request(method, "/unload").text == "OK"
        assert program.get("/running").json() == {"running": []}
    entries = program.get("/api/audit").json()["audit"]
    assert {"GET /unload", "POST /unload"} <= {one["action"] for one in entries}
