"""What admins and viewers find on the pages, and who signs out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.browser.test_door import FROM_ELSEWHERE
from tests.support.browser import (
    address,
    needs_browser,
    overflow,
    pages,
    seen_on,
    shows,
    sign_in,
    violations,
)
from tests.support.fixtures import Launch, OpenBrowser
from tests.support.program import CHAT, Program, chat, eventually, fake

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.support.browser import Reader

pytestmark = needs_browser


@pytest.fixture(scope="module")
def program(launch_once: Launch) -> Program:
    """One where a password and an API key are asked for."""
    program = launch_once({"Model": fake()})
    program.add_account("admin")
    program.add_account("looker", "viewer")
    program.add_key("first")
    return program


@pytest.fixture(scope="module")
def key(program: Program) -> str:
    """The secret of one named agents."""
    return program.add_key("agents")


def signed_in(read: OpenBrowser, program: Program, name: str, **options: Any) -> Reader:
    reader = read(program, **options)
    tab = reader.context.new_page()
    tab.goto("/login")
    sign_in(tab, name)
    reader.settles(tab)
    tab.close()
    return reader


# --- the playground -----------------------------------------------------------------------


def try_out(reader: Reader, prompt: str, key: str = "") -> Page:
    """The playground that has sent a prompt."""
    tab = reader.open("/playground")
    if key:
        tab.get_by_text("Try as an API key").click()
        tab.get_by_label("API key, not kept anywhere").fill(key)
    tab.get_by_label("Your message").fill(prompt)
    tab.get_by_role("button", name="Send").click()
    tab.locator("#chat").get_by_text("Same request with curl").click()
    return tab


def keys_used(program: Program) -> list[str]:
    """Of the requests, the newest first."""
    rows = program.get("/api/usage/requests").json()["requests"]
    return [row["key"] for row in rows]


def test_an_admin_tries_a_model_with_no_key_and_is_named_by_the_request(
    program: Program, read: OpenBrowser
) -> None:
    reader = signed_in(read, program, "admin")
    tab = try_out(reader, "Hello")
    shows(tab, "the first byte after", "Authorization: Bearer $KEY")  # curl has no session
    eventually(lambda: keys_used(program)[:1] == ["@admin"])
    tab = reader.open("/usage?group=key")
    shows(tab, "@admin")


def test_a_model_is_tried_as_a_key_which_is_nowhere_kept(
    program: Program, key: str, read: OpenBrowser
) -> None:
    reader = signed_in(read, program, "looker")
    tab = try_out(reader, "Hello", key)
    shows(tab, "the first byte after")
    eventually(lambda: keys_used(program)[:1] == ["agents"])
    stored = tab.evaluate("JSON.stringify([localStorage, sessionStorage, location.href])")
    assert key not in stored
    assert key not in tab.locator("#chat .curl").inner_text()
    tab.reload()
    reader.settles(tab)
    assert tab.locator("#as-key").input_value() == ""


def test_who_may_only_look_needs_a_key_to_try_a_model(program: Program, read: OpenBrowser) -> None:
    reader = signed_in(read, program, "looker")
    reader.expects("401")
    shows(try_out(reader, "Hello"), "An API key is needed")
    shows(try_out(reader, "Hello", "sk-llm-wrong"), "The API key is not valid")


# --- who may only look --------------------------------------------------------------------

# All that is on the pages for who may only look, besides links.
LOOKING = {
    *("Log", "Pause", "Download", "Close the log", "Search", "Show the newest", "Load older"),
    *("Send", "New conversation", "Copy"),
}
VISIBLE_BUTTONS = """() => [...document.querySelectorAll('main button')]
  .filter((e) => e.checkVisibility() && !e.closest('th'))
  .map((e) => e.getAttribute('aria-label') || e.innerText.trim())"""


def buttons(tab: Page) -> set[str]:
    """The names of those in sight, without those that sort a table or open a request."""
    names = tab.evaluate(VISIBLE_BUTTONS)
    return {name for name in names if not name.startswith("Log of ") and "Open the" not in name}


def test_who_may_only_look_finds_nothing_that_changes_something(
    program: Program, key: str, read: OpenBrowser
) -> None:
    asks = {"Authorization": f"Bearer {key}"}
    assert program.post(CHAT, chat("Model"), headers=asks).ok
    assert program.request("PUT", "/api/models/Model/price", json={"per_hour": 1}).ok
    body = {"model": "Model", "amount": "1", "note": "x"}
    assert program.post("/api/adjustments", body).ok
    eventually(lambda: program.get("/api/data/models").json()["models"])
    seen: dict[str, dict[str, set[str]]] = {}
    for name in ("looker", "admin"):
        reader = signed_in(read, program, name)
        tab = reader.context.new_page()
        for page in pages():
            reader.goto(tab, address(page))
            seen.setdefault(page, {})[name] = buttons(tab)
            if name == "looker":
                assert overflow(tab) + violations(tab) == [], page
    for page, of in seen.items():
        assert of["looker"] <= LOOKING, page
    changing = {page for page, of in seen.items() if of["admin"] - of["looker"]}
    assert changing == {"overview", "models", "billing", "keys", "access", "settings"}


def test_who_may_only_look_is_told_so_where_there_is_nothing_to_see(
    program: Program, read: OpenBrowser
) -> None:
    reader = signed_in(read, program, "looker")
    tab = reader.open("/access")
    shows(tab, "Only an admin may see who has access")
    assert "Accounts" not in seen_on(tab)
    reader.goto(tab, "/settings")
    shows(tab, "Only an admin may edit the config", '"name": "Model"', "fake_upstream.py")
    assert tab.get_by_label("The text of config.yaml").is_editable() is False


def test_the_config_is_read_and_not_edited_from_another_machine(
    program: Program, read: OpenBrowser
) -> None:
    reader = signed_in(read, program, "admin", extra_http_headers=FROM_ELSEWHERE)
    tab = reader.open("/settings")
    shows(tab, "From another machine the config can be read and not edited", '"name": "Model"')
    assert tab.get_by_label("The text of config.yaml").is_editable() is False
    assert not tab.get_by_role("button", name="Save and apply").is_visible()
    tab.get_by_role("button", name="Reload the file from disk").click()
    shows(tab, "Applied. Models: 1")
    assert overflow(tab) + violations(tab) == []
