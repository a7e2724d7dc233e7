"""The page of accounts, tokens for scripts, and who changed what."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.browser.test_live import GONE
from tests.support.browser import (
    needs_browser,
    overflow,
    resize,
    seen_on,
    shows,
    sign_in,
    violations,
)
from tests.support.fixtures import Launch, OpenBrowser
from tests.support.program import PASSWORD, Program, eventually, fake

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

    from tests.support.browser import Reader

pytestmark = needs_browser

OTHER_PASSWORD = "another long secret"


@pytest.fixture
def program(launch: Launch) -> Program:
    program = launch({"Model": fake()})
    program.add_account("admin")
    return program


def as_admin(read: OpenBrowser, program: Program, path: str = "/access") -> tuple[Reader, Page]:
    reader = read(program)
    tab = reader.context.new_page()
    tab.goto(path)
    sign_in(tab, "admin")
    reader.settles(tab)
    return reader, tab


def row_of(tab: Page, table: str, name: str) -> Locator:
    return tab.locator(f"#{table} tbody tr").filter(has=tab.get_by_role("rowheader", name=name))


def roles(program: Program) -> dict[str, str]:
    """Of all accounts."""
    accounts = program.get("/api/accounts").json()["accounts"]
    return {account["name"]: account["role"] for account in accounts}


def may_sign_in(read: OpenBrowser, program: Program, name: str, password: str) -> bool:
    reader = read(program)
    # It may stay open until somebody ends its session.
    reader.expects("403", "401", *GONE)
    tab = reader.context.new_page()
    tab.goto("/login?next=/logs")
    sign_in(tab, name, password)
    tab.wait_for_load_state()
    return tab.url.endswith("/logs") or tab.url.endswith("/logs?of=program")


def test_without_a_password_the_page_leads_to_one(launch: Launch, read: OpenBrowser) -> None:
    tab = read(launch({})).open("/access")
    said = tab.locator(".empty").filter(has_text="There is no account yet")
    assert said.get_by_role("link").get_attribute("href") == "/setup"
    assert not tab.get_by_role("button", name="Add an account").is_visible()
    assert tab.get_by_role("button", name="Sign out", exact=True).count() == 1


def test_accounts_are_added_changed_signed_out_and_removed(
    program: Program, read: OpenBrowser
) -> None:
    reader, tab = as_admin(read, program)
    reader.expects("400", "409")
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
    assert roles(program) == {"admin": "admin", "Ann": "viewer"}

    tab.get_by_label("Role of Ann").select_option("admin")
    shows(tab, "The role of Ann is admin")
    assert roles(program)["Ann"] == "admin"

    tab.get_by_role("button", name="Password of Ann").click()
    dialog.get_by_label("Password").fill(OTHER_PASSWORD)
    dialog.get_by_role("button", name="Save").click()
    shows(tab, "The password of Ann is set")
    assert may_sign_in(read, program, "Ann", OTHER_PASSWORD)
    assert not may_sign_in(read, program, "Ann", PASSWORD)

    other = read(program)
    other.expects("401", *GONE)  # what is open ends with the session
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
    assert roles(program) == {"admin": "admin"}

    tab.get_by_label("Role of admin").select_option("viewer")
    shows(tab, "There has to be an admin")
    assert tab.get_by_label("Role of admin").input_value() == "admin"


def test_a_token_is_shown_once_lets_a_script_in_and_is_revoked(
    program: Program, read: OpenBrowser
) -> None:
    _, tab = as_admin(read, program)
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


def test_who_changed_what_is_told_in_words_newest_first_and_further_back_on_demand(
    program: Program, read: OpenBrowser
) -> None:
    program.add_account("Ann", "viewer")
    for _ in range(105):
        program.request("PATCH", "/api/accounts/admin", json={"role": "admin"})
    limits = {"requests_per_minute": 7, "budget": {"amount": "2.5", "period": "day"}}
    program.add_key("agents", models=["Model"], **limits)
    program.command("Model", "start")
    _, tab = as_admin(read, program)
    rows = tab.locator("#audit tbody tr")
    assert "signed in admin" in rows.nth(0).inner_text().replace("\t", " ")
    assert "started a model Model" in rows.nth(1).inner_text()
    said = rows.nth(2).inner_text()
    assert "made an API key" in said
    assert "local token" in said
    assert "127.0.0.1" in said
    for line in ("name: agents", "models: Model", "requests_per_minute: 7", "budget.amount: 2.5"):
        assert line in said
    assert rows.count() == 100
    tab.get_by_role("button", name="Load older").click()
    shows(tab, "Ann")
    rows.nth(105).wait_for()
    assert rows.count() > 105
    assert "password: ***" in seen_on(tab)
    assert PASSWORD not in seen_on(tab)
    # What is new comes on top; what was loaded stays.
    count = rows.count()
    tab.get_by_label("Role of Ann").select_option("admin")
    rows.nth(count).wait_for()
    assert "changed an account Ann" in rows.nth(0).inner_text()
    assert tab.get_by_role("button", name="Load older").is_hidden()


def test_everybody_sees_who_is_signed_in_and_signs_out_on_every_page(
    program: Program, read: OpenBrowser
) -> None:
    reader, tab = as_admin(read, program, "/logs")
    bar = tab.locator("header.bar")
    assert "admin" in bar.inner_text()
    for width in (390, 820, 1280):
        resize(tab, width)
        assert overflow(tab) == []
    tab.get_by_role("button", name="Sign out", exact=True).click()
    tab.get_by_role("heading", name="Sign in").wait_for()
    reader.expects("401")
    tab.goto("/keys")
    assert "/login" in tab.url
