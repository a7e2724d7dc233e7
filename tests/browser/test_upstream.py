"""Pages that a model's server has: theirs work below /upstream, and reach nothing of ours."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from tests.support.browser import needs_browser
from tests.support.fixtures import Launch, OpenBrowser
from tests.support.program import ROOT, Program, eventually

if TYPE_CHECKING:
    from playwright.sync_api import Page, Response

pytestmark = needs_browser

SERVER = ROOT / "tests" / "support" / "page_server.py"

FRIENDLY = {
    "index.html": """<!doctype html><link rel="stylesheet" href="./style.css">
        <h1>A page</h1>
        <form action="./form" method="post"><button name="a" value="1">Send</button></form>
        <script src="plain.js"></script><script type="module" src="./module.js"></script>""",
    "style.css": "h1 { color: rgb(1, 2, 3) }",
    "plain.js": "window.plain = true",
    "module.js": """
        const chat = { messages: [], model: "any" };
        const options = { method: "POST", body: JSON.stringify(chat),
          headers: { "Content-Type": "application/json", "X-Test": "1" } };
        const props = await (await fetch("./props?a=b")).json();
        const answer = await (await fetch("v1/chat/completions", options)).json();
        const deleted = await (await fetch("./thing", { method: "DELETE" })).json();
        window.found = [props.path, answer.choices[0].message.content, deleted.method];""",
}

# Each attempt returns what it got of ours, or nothing; what it throws is a refusal.
HOSTILE = r"""<!doctype html><title>Hostile</title><body><script>
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
const json = { "Content-Type": "application/json" };
const include = { credentials: "include" };
const read = (address, options) => fetch(address, { ...include, ...options }).then((r) => r.text());
const blind = (address, options) =>
  fetch(address, { ...include, mode: "no-cors", ...options }).then((r) => r.text());
const loaded = (tag, address) => new Promise((done, failed) => {
  const part = document.createElement(tag);
  part.src = address;
  part.onload = () => done(tag === "iframe" ? part.contentDocument?.body?.innerText : "loaded");
  part.onerror = failed;
  document.body.append(part);
  if (tag === "iframe") part.setAttribute("sandbox", "allow-scripts allow-same-origin allow-forms");
});
const submit = (action, fields, enctype = "application/x-www-form-urlencoded") => {
  const frame = document.createElement("iframe");
  frame.name = `to${Math.random()}`;
  const form = document.createElement("form");
  Object.assign(form, { action, method: "post", enctype, target: frame.name });
  for (const [name, value] of Object.entries(fields)) {
    const field = document.createElement("input");
    Object.assign(field, { name, value });
    form.append(field);
  }
  document.body.append(frame, form);
  form.submit();
  return wait(500).then(() => frame.contentDocument?.body?.innerText);
};
const key = '{"name": "stolen", "raw": true}';
const attempts = {
  models: () => read("/api/models"),
  keys: () => read("/api/keys"),
  page: () => read("/settings"),
  csrf: () => read("/login"),
  health: () => read("/health"),
  openai: () => read("/v1/models"),
  other: () => read("/upstream/Other/x"),
  climb: () => read("./../Other/x"),
  climb_encoded: () => read(location.pathname + "%2e%2e/%2e%2e/api/models"),
  blind_models: () => blind("/api/models"),
  add_key: () => read("/api/keys", { method: "POST", headers: json, body: key }),
  blind_add_key: () => blind("/api/keys", { method: "POST", body: key }),
  blind_stop: () => blind("/api/models/Victim/stop", { method: "POST", body: "{}" }),
  blind_other: () => blind("/upstream/Other/slots/0?action=erase", { method: "POST" }),
  blind_other_get: () => blind("/upstream/Other/slots"),
  revoke: () => read("/api/keys/victim", { method: "DELETE", headers: json, body: "{}" }),
  unload: () => blind("/unload"),
  beacon: () => { navigator.sendBeacon("/api/models/stop", "{}"); },
  request: () => new Promise((done, failed) => {
    const asked = new XMLHttpRequest();
    asked.withCredentials = true;
    asked.open("GET", "/api/session");
    asked.onload = () => done(asked.responseText);
    asked.onerror = failed;
    asked.send();
  }),
  events: () => new Promise((done, failed) => {
    const stream = new EventSource("/api/events", { withCredentials: true });
    stream.onopen = () => done("open");
    stream.onerror = failed;
  }),
  socket: () => new Promise((done, failed) => {
    const socket = new WebSocket(`ws://${new URL(document.baseURI).host}/upstream/Other/ws`);
    socket.onopen = () => done("open");
    socket.onerror = failed;
  }),
  frame: () => loaded("iframe", "/settings"),
  frame_of_upstream: () => loaded("iframe", "/upstream/Other/"),
  script: () => loaded("script", "/api/models"),
  image: () => loaded("img", "/unload"),
  window: () => window.open("/settings")?.document.body.innerText,
  opener: () => window.opener && "opener",
  above: () => window.parent !== window && "parent",
  cookie: () => document.cookie,
  set_cookie: () => { document.cookie = "planted=1; Path=/"; return document.cookie; },
  local: () => JSON.stringify(localStorage),
  session: () => JSON.stringify(sessionStorage),
  database: async () => JSON.stringify(await indexedDB.databases()),
  caches: async () => JSON.stringify(await caches.keys()),
  worker: async () =>
    (await navigator.serviceWorker.register("./worker.js", { scope: "./" })).scope,
  root_worker: async () =>
    (await navigator.serviceWorker.register("./worker.js", { scope: "/" })).scope,
  form_key: () => submit("/api/keys", { '{"name": "stolen", "owner": "': '"}' }, "text/plain"),
  form_logout: () => submit("/logout", {}),
  form_preferences: () => submit("/preferences", { language: "zh", back: "/settings" }),
  form_other: () => submit("/upstream/Other/slots/0?action=erase", { a: 1 }),
  form_unload: () => submit("/unload", {}),
};
(async () => {
  const found = {};
  for (const [name, attempt] of Object.entries(attempts)) {
    found[name] = await Promise.race([wait(3000).then(() => ""),
      Promise.resolve().then(attempt).then((got) => got ?? "", () => "")]);
  }
  window.found = found;
})();
</script>"""


def served(folder: Path, files: dict[str, str], **settings: Any) -> dict[str, Any]:
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return {**settings, "Default": {"command": [sys.executable, str(SERVER), str(folder)]}}


@pytest.fixture(scope="module")
def program(launch_once: Launch, tmp_path_factory: pytest.TempPathFactory) -> Program:
    folder = tmp_path_factory.mktemp("pages")
    leave = {"index.html": "<script>location = '/upstream/Other/slots'</script>"}
    program = launch_once(
        {
            "Friendly": served(folder / "friendly", FRIENDLY, aliases=["team/friendly"]),
            "Hostile": served(folder / "hostile", {"index.html": HOSTILE, "worker.js": ""}),
            "Leaving": served(folder / "leaving", leave),
            "Victim": served(folder / "victim", {}),
            "Other": served(folder / "other", {}),
        }
    )
    program.add_account("admin")
    program.add_key("victim")
    return program


def found_by(tab: Page) -> Any:
    tab.wait_for_function("window.found !== undefined", timeout=120_000)
    return tab.evaluate("window.found")


@pytest.mark.parametrize("path", ["/upstream/Friendly", "/upstream/team/friendly/?theme=dark"])
def test_a_servers_own_page_works_with_its_files_and_what_it_asks_for(
    program: Program, read: OpenBrowser, path: str
) -> None:
    tab = read(program, account="admin").context.new_page()
    tab.goto(path)
    assert found_by(tab) == ["/props?a=b", "Hello", "DELETE"]
    assert tab.evaluate("window.plain")
    color = tab.evaluate("getComputedStyle(document.querySelector('h1')).color")
    assert color == "rgb(1, 2, 3)"
    tab.reload()
    assert found_by(tab) == ["/props?a=b", "Hello", "DELETE"]
    tab.get_by_role("button", name="Send").click()
    tab.wait_for_url("**/form")
    assert '"body": "a=1"' in tab.content()


def test_what_a_page_asks_for_is_metered_under_who_opened_it(
    program: Program, read: OpenBrowser
) -> None:
    tab = read(program, account="admin").context.new_page()
    tab.goto("/upstream/Friendly/")
    found_by(tab)

    def row() -> dict[str, Any] | None:
        rows = program.get("/api/usage/requests?key=@admin").json()["requests"]
        return next((one for one in rows if one["completion_tokens"]), None)

    assert eventually(row)["endpoint"] == "/upstream"


def test_the_page_of_who_was_signed_out_has_expired(program: Program, read: OpenBrowser) -> None:
    reader = read(program, account="admin")
    reader.expects("403", "401", "JSON")
    tab = reader.context.new_page()
    tab.goto("/upstream/Friendly/")
    found_by(tab)
    assert program.post("/api/accounts/admin/sign-out").ok
    assert "page_expired" in (tab.reload() or pytest.fail("no answer")).text()
    answer = tab.goto("/upstream/Friendly/")
    assert answer is not None
    assert answer.status == 401


def test_a_hostile_page_reads_and_changes_nothing_of_ours(
    program: Program, read: OpenBrowser
) -> None:
    program.command("Victim", "start")
    reader = read(program, account="admin")
    reader.expects(".")  # nearly all that it tries is refused with a message
    answers: list[Response] = []
    reader.context.on("response", lambda answer: answers.append(answer))
    before = {path: program.get(path).json() for path in ("/api/audit", "/api/keys")}
    tab = reader.context.new_page()
    tab.goto("/upstream/Hostile/")
    found = found_by(tab)
    assert len(found) > 40
    assert {name: got for name, got in found.items() if got} == {}

    # Nothing that it sent was taken for the admin's, whether it could read the answer or not.
    own = urlsplit(tab.url).path
    refused = {
        urlsplit(one.url).path: one.status
        for one in answers
        if not urlsplit(one.url).path.startswith((own, "/upstream/Hostile", "/login", "/v1"))
    }
    assert {"/api/models", "/api/keys", "/upstream/Other/slots/0", "/unload"} <= refused.keys()
    allowed = {path: status for path, status in refused.items() if status < 400}
    assert allowed.keys() <= {"/health", "/settings"}, allowed  # which leads to /login

    assert {path: program.get(path).json() for path in before} == before
    assert program.model("Victim")["state"] == "ready"
    assert program.model("Other")["state"] == "stopped"
    names = {cookie["name"] for cookie in reader.context.cookies()}
    assert not names & {"planted", "language"}
    page = reader.open("/settings")  # the session is as it was
    assert "admin" in page.locator("body").inner_text()


def test_a_page_that_leads_elsewhere_below_upstream_is_stopped(
    program: Program, read: OpenBrowser
) -> None:
    reader = read(program, account="admin")
    reader.expects("403")
    tab = reader.context.new_page()
    tab.goto("/upstream/Leaving/")
    tab.wait_for_url("**/upstream/Other/slots")
    assert "cross_site_request" in tab.content()
    assert program.model("Other")["state"] == "stopped"


def test_our_own_pages_run_nothing_of_a_server(program: Program, read: OpenBrowser) -> None:
    """As a fault in one of ours could try, whose policy allows scripts of our origin."""
    reader = read(program, account="admin")
    reader.expects("403", "MIME", "JSON", "not caught")
    tab = reader.open("/models")
    other = reader.context.new_page()
    other.goto("/upstream/Friendly/")
    found_by(other)
    for base in ("/upstream/Friendly/", urlsplit(other.url).path):
        outcome = tab.evaluate(
            """(address) => new Promise((done) => {
              const script = document.createElement('script');
              Object.assign(script, { src: address, onload: () => done('ran'),
                onerror: () => done('refused') });
              document.body.append(script);
            })""",
            f"{base}plain.js",
        )
        assert outcome == "refused"
        assert tab.evaluate("window.plain") is None
