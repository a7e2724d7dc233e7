"""Accounts, tokens and the audit log; what admins and viewers find on the pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.browser import (
    DISCONNECTED,
    FROM_ELSEWHERE,
    Reader,
    address,
    needs_browser,
    overflow,
    pages,
    resize,
    seen_on,
    shows,
    sign_in,
    violations,
)
from tests.support.fixtures import Launch, OpenBrowser
from tests.support.program import CHAT, PASSWORD, Program, chat, eventually, fake

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

pytestmark = needs_browser

OTHER_PASSWORD = "another long secret"


@pytest.fixture(scope="module")
def program(launch_once: Launch) -> Program:
    """One that asks for a password and for an API key."""
    program = launch_once({"Model": fake()})
    program.add_account("admin")
    program.add_account("looker", "viewer")
    program.add_key("first")
    return program


@pytest.fixture(scope="module")
def key(program: Program) -> str:
    """The secret of one named agents."""
    return program.add_key("agents")


def row_of(tab: Page, table: str, name: str) -> Locator:
    return tab.locator(f"#{table} tbody tr").filter(has=tab.get_by_role("rowheader", name=name))


def role_of(program: Program, name: str) -> str | None:
    accounts = program.get("/api/accounts").json()["accounts"]
    return {account["name"]: account["role"] for account in accounts}.get(name)


# --- the page of an admin -----------------------------------------------------------------


def test_accounts_are_added_changed_signed_out_and_removed(
    program: Program, read: OpenBrowser
) -> None:
    reader = read(program, account="admin")
    reader.expects("400", "409")
    tab = reader.open("/access")
    tab.get_by_role("button", name="Add an account").click()
    dialog = tab.get_by_role("dialog")
    dialog.get_by_label("Name").fill("Ann")
    dialog.get_by_label("Password").fill("short")
    assert violations(tab) == []
    dialog.get_by_role("button", name="Save").click()
    shows(tab, "a password has 8 to 200 characters")
    dialog.get_by_label("Password").fill(PASSWORD)
    dialog.get_by_role("button", name="Save").click()
    shows(tab, "The account Ann is added")
    assert role_of(program, "Ann") == "viewer"

    tab.get_by_label("Role of Ann").select_option("admin")
    shows(tab, "The role of Ann is admin")
    assert role_of(program, "Ann") == "admin"

    tab.get_by_role("button", name="Password of Ann").click()
    dialog.get_by_label("Password").fill(OTHER_PASSWORD)
    dialog.get_by_role("button", name="Save").click()
    shows(tab, "The password of Ann is set")

    other = read(program)
    other.expects("401", *DISCONNECTED)  # what is open ends with the session
    theirs = other.context.new_page()
    theirs.goto("/login?next=/keys")
    sign_in(theirs, "Ann", OTHER_PASSWORD)
    other.settles(theirs)
    tab.get_by_role("button", name="Sign out everywhere: Ann").click()
    shows(tab, "Ann is signed out everywhere")
    theirs.goto("/keys")
    assert "/login" in theirs.url

    tab.get_by_role("button", name="Remove Ann").click()
    shows(tab, "Remove the account Ann?")
    tab.get_by_role("dialog").get_by_role("button", name="Remove").click()
    shows(tab, "Ann is removed")
    assert role_of(program, "Ann") is None

    tab.get_by_label("Role of admin").select_option("viewer")
    shows(tab, "There has to be an admin")
    assert tab.get_by_label("Role of admin").input_value() == "admin"


def test_a_token_is_shown_once_lets_a_script_in_and_is_revoked(
    program: Program, read: OpenBrowser
) -> None:
    tab = read(program, account="admin").open("/access")
    tab.get_by_role("button", name="Make a token").click()
    dialog = tab.get_by_role("dialog")
    dialog.get_by_label("Name").fill("scraper")
    dialog.get_by_label("Expires").fill("2031-02-03T04:05:06")
    assert violations(tab) == []
    dialog.get_by_role("button", name="Make it").click()
    shows(tab, "The token scraper", "never again")
    secret = tab.get_by_label("Secret", exact=True).input_value()
    tab.get_by_role("button", name="I have it").click()
    assert secret not in tab.content()
    eventually(lambda: tab.locator("#secret-text").input_value() == "")
    shows(tab, f"…{secret[-4:]}", "Feb 3, 2031")
    token = {"Authorization": f"Bearer {secret}"}
    assert program.get("/metrics", headers=token).status_code == 200
    tab.get_by_role("button", name="Revoke scraper").click()
    shows(tab, "Revoke the token scraper?")
    tab.get_by_role("dialog").get_by_role("button", name="Revoke").click()
    shows(tab, "scraper is revoked")
    assert program.get("/metrics", headers=token).status_code == 401


def test_the_audit_log_is_in_words_newest_first_with_older_entries_on_demand(
    program: Program, read: OpenBrowser
) -> None:
    program.add_account("Bob", "viewer")
    for _ in range(105):
        program.request("PATCH", "/api/accounts/admin", json={"role": "admin"})
    limits = {"requests_per_minute": 7, "budget": {"amount": "2.5", "period": "day"}}
    program.add_key("limited", models=["Model"], **limits)
    program.command("Model", "start")
    tab = read(program, account="admin").open("/access")
    rows = tab.locator("#audit tbody tr")
    assert "signed in admin" in rows.nth(0).inner_text().replace("\t", " ")
    assert "started a model Model" in rows.nth(1).inner_text()
    said = rows.nth(2).inner_text()
    assert "made an API key" in said
    assert "local token" in said
    assert "127.0.0.1" in said
    for line in ("name: limited", "models: Model", "requests_per_minute: 7", "budget.amount: 2.5"):
        assert line in said
    assert rows.count() == 100
    tab.get_by_role("button", name="Load older").click()
    shows(tab, "Bob")
    rows.nth(105).wait_for()
    assert rows.count() > 105
    assert "password: ***" in seen_on(tab)
    assert PASSWORD not in seen_on(tab)
    # What is new comes on top; what was loaded stays.
    count = rows.count()
    tab.get_by_label("Role of Bob").select_option("admin")
    rows.nth(count).wait_for()
    assert "changed an account Bob" in rows.nth(0).inner_text()
    assert tab.get_by_role("button", name="Load older").is_hidden()


def test_the_name_of_the_account_is_on_the_page_and_signs_out(
    program: Program, read: OpenBrowser
) -> None:
    reader = read(program, account="admin")
    tab = reader.open("/logs")
    assert "admin" in tab.locator("header.bar").inner_text()
    for width in (390, 820, 1280):
        resize(tab, width)
        assert overflow(tab) == []
    tab.get_by_role("button", name="Sign out", exact=True).click()
    tab.get_by_role("heading", name="Sign in").wait_for()
    reader.expects("401")
    tab.goto("/keys")
    assert "/login" in tab.url


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
    reader = read(program, account="admin")
    tab = try_out(reader, "Hello")
    shows(tab, "the first byte after", "Authorization: Bearer $KEY")  # curl has no session
    eventually(lambda: keys_used(program)[:1] == ["@admin"])
    tab = reader.open("/usage?group=key")
    shows(tab, "@admin")


def test_a_model_is_tried_as_a_key_which_is_nowhere_kept(
    program: Program, key: str, read: OpenBrowser
) -> None:
    reader = read(program, account="looker")
    tab = try_out(reader, "Hello", key)
    shows(tab, "the first byte after")
    eventually(lambda: keys_used(program)[:1] == ["agents"])
    stored = tab.evaluate("JSON.stringify([localStorage, sessionStorage, location.href])")
    assert key not in stored
    assert key not in tab.locator("#chat .curl").inner_text()
    tab.reload()
    reader.settles(tab)
    assert tab.locator("#as-key").input_value() == ""


def test_a_viewer_needs_a_key_to_try_a_model(program: Program, read: OpenBrowser) -> None:
    reader = read(program, account="looker")
    reader.expects("401")
    shows(try_out(reader, "Hello"), "An API key is needed")
    shows(try_out(reader, "Hello", "sk-llm-wrong"), "The API key is not valid")


# --- a viewer -----------------------------------------------------------------------------

# All buttons on the pages of a viewer.
VIEWER_BUTTONS = {
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


def test_a_viewer_finds_nothing_that_changes_something(
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
        reader = read(program, account=name)
        tab = reader.context.new_page()
        for page in pages():
            reader.goto(tab, address(page))
            seen.setdefault(page, {})[name] = buttons(tab)
    for page, of in seen.items():
        assert of["looker"] <= VIEWER_BUTTONS, page
    changing = {page for page, of in seen.items() if of["admin"] - of["looker"]}
    assert changing == {"overview", "models", "billing", "keys", "access", "settings"}


def test_pages_that_have_nothing_for_a_viewer_say_so(program: Program, read: OpenBrowser) -> None:
    reader = read(program, account="looker")
    tab = reader.open("/access")
    shows(tab, "Only an admin may see who has access")
    assert "Accounts" not in seen_on(tab)
    reader.goto(tab, "/settings")
    shows(tab, "Only an admin may edit the config", '"name": "Model"', "fake_upstream.py")
    assert tab.get_by_label("The text of config.yaml").is_editable() is False


def test_the_config_is_read_and_not_edited_from_another_machine(
    program: Program, read: OpenBrowser
) -> None:
    reader = read(program, account="admin", extra_http_headers=FROM_ELSEWHERE)
    tab = reader.open("/settings")
    shows(tab, "From another machine the config can be read and not edited", '"name": "Model"')
    assert tab.get_by_label("The text of config.yaml").is_editable() is False
    assert not tab.get_by_role("button", name="Save and apply").is_visible()
    tab.get_by_role("button", name="Apply the file on disk").click()
    shows(tab, "Applied. Models: 1")
    assert overflow(tab) + violations(tab) == []
