"""Signing in, by link and by password, and what those see who may not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.browser import FROM_ELSEWHERE, needs_browser, seen_on, shows, violations
from tests.support.fixtures import Launch, OpenBrowser
from tests.support.program import PASSWORD, Program

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = needs_browser


@pytest.fixture(scope="module")
def new(launch_once: Launch) -> Program:
    """One without an account."""
    return launch_once({})


def opened(read: OpenBrowser, program: Program, path: str, *expected: str) -> Page:
    """A page in a browser that runs no script."""
    reader = read(program, java_script_enabled=False)
    reader.expects(*expected, r"\.js: csp")  # of scripts that are to be loaded before they are run
    tab = reader.context.new_page()
    tab.goto(path)
    return tab


# --- before there is an account -----------------------------------------------------------


def test_without_an_account_this_machine_may_look_and_reads_how_to_become_admin(
    new: Program, read: OpenBrowser
) -> None:
    reader = read(new, is_owner=False)
    reader.expects("403")
    tab = reader.open("/settings")
    shows(tab, "You may look at everything here and change nothing")
    assert not tab.get_by_role("button", name="Apply the file on disk").is_visible()
    assert "Sign out" not in seen_on(tab)
    tab.get_by_role("link", name="How to become admin").click()
    shows(tab, "llm-manager open", "llm-manager users add NAME --role admin --password-stdin")
    assert violations(tab) == []
    tab.goto("/setup")
    shows(tab, "The first account is made by the owner of this machine", "llm-manager open")
    assert tab.get_by_label("Password").count() == 0


def test_from_another_machine_the_page_says_what_to_do_first(
    new: Program, read: OpenBrowser
) -> None:
    reader = read(new, is_owner=False, extra_http_headers=FROM_ELSEWHERE)
    reader.expects("403")
    tab = reader.context.new_page()
    tab.goto("/models")
    shows(tab, "No password is set yet", "llm-manager open", "llm-manager users add NAME")
    assert violations(tab) == []


def test_the_link_signs_in_once_and_leaves_nothing_in_the_address(
    new: Program, read: OpenBrowser
) -> None:
    reader = read(new, is_owner=False)
    tab = reader.context.new_page()
    link = new.sign_in_link()
    tab.goto(link)
    tab.wait_for_url(f"{new.url}/")
    reader.settles(tab)
    assert tab.evaluate("location.hash") == ""
    tab.goto("/access")
    there_is_none = tab.locator(".empty").filter(has_text="There is no account yet")
    assert there_is_none.get_by_role("link").get_attribute("href") == "/setup"
    tab.get_by_role("button", name="Sign out", exact=True).click()
    assert tab.get_by_role("heading", level=1).inner_text() == "Sign in"
    reader.expects("403")
    tab.goto(link)
    shows(tab, "This link was used already or has expired", "llm-manager open")
    assert tab.url == f"{new.url}/login/link"
    assert violations(tab) == []


# --- with no script -----------------------------------------------------------------------


def test_the_owner_makes_the_first_account_who_signs_in_to_the_page_that_was_wanted(
    launch: Launch, read: OpenBrowser
) -> None:
    program = launch({})
    tab = opened(read, program, "/setup", "400")
    assert tab.get_by_label("Name of the first admin").input_value() == "admin"
    tab.get_by_label("Password", exact=True).fill(PASSWORD)
    tab.get_by_label("Password, once more").fill(f"{PASSWORD}, or not")
    tab.get_by_role("button", name="Set the password").click()
    assert "The two passwords are not the same" in tab.get_by_role("alert").inner_text()
    tab.get_by_label("Password", exact=True).fill(PASSWORD)
    tab.get_by_label("Password, once more").fill(PASSWORD)
    tab.get_by_role("button", name="Set the password").click()
    assert tab.get_by_role("heading", level=1).inner_text() == "Overview"

    program.has_accounts = True
    assert opened(read, program, "/setup").url.endswith("/login")
    tab = opened(read, program, "/usage?range=7d", "403")
    # A choice of the language does not lose the page that was wanted.
    tab.get_by_label("Language").select_option("zh")
    tab.get_by_role("button", name="Apply").click()
    assert tab.locator("html").get_attribute("lang") == "zh-CN"
    for password in ("not the password", PASSWORD):
        tab.get_by_label("名称").fill("admin")
        tab.get_by_label("密码").fill(password)
        tab.get_by_role("button", name="登录").click()
        if password != PASSWORD:
            assert "The name or the password is wrong" in tab.get_by_role("alert").inner_text()
            assert tab.get_by_label("名称").input_value() == "admin"
    assert tab.url.endswith("/usage?range=7d")
