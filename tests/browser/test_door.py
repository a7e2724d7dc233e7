"""Coming in: the first password, signing in and out, and what who may not is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.browser.test_pages import LOCALES, english
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
from tests.support.program import PASSWORD, Program

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = needs_browser

# A header that only proxies send: the program takes the caller for somebody from elsewhere.
FROM_ELSEWHERE = {"X-Real-IP": "192.0.2.7"}


@pytest.fixture(scope="module")
def new(launch_once: Launch) -> Program:
    """One whose pages nobody has set a password for."""
    return launch_once({})


@pytest.fixture(scope="module")
def closed(launch_once: Launch) -> Program:
    program = launch_once({})
    program.add_account("admin")
    program.add_account("looker", "viewer")
    return program


# --- how they look ------------------------------------------------------------------------


@pytest.mark.parametrize("language", LOCALES)
def test_the_doors_pages_are_whole_and_usable_for_all(
    new: Program, closed: Program, read: OpenBrowser, language: str
) -> None:
    found: list[str] = []
    for program, path, headers in (
        (closed, "/login?next=/usage", {}),
        (new, "/login", {}),
        (new, "/login/link", {}),
        (new, "/setup", {}),
        (new, "/", FROM_ELSEWHERE),
    ):
        options = {"locale": LOCALES[language], "extra_http_headers": headers}
        reader = read(program, is_owner=path == "/setup", **options)
        reader.expects("403")
        tab = reader.context.new_page()
        tab.goto(path)
        for theme, width in (("light", 390), ("dark", 1600)):
            tab.emulate_media(color_scheme=theme)
            resize(tab, width)
            faults = overflow(tab) + violations(tab)
            found += [f"{path}, {theme}, {width} px wide: {fault}" for fault in faults]
        if language != "en":
            said = {line.strip() for line in seen_on(tab).splitlines()} & english()
            # The account that is first is named so in each language.
            found += [f"{path}: {text!r} in English" for text in said - {"admin"}]
        assert tab.locator("nav").count() == (path == "/setup"), path
        assert tab.title() == f"{tab.locator('h1').inner_text()} · LLM-Manager"
    assert not found, "\n".join(found)


# --- coming in, with no script ------------------------------------------------------------


def opened(read: OpenBrowser, program: Program, path: str, *expected: str) -> Page:
    """A page in a browser that runs no script."""
    reader = read(program, java_script_enabled=False)
    reader.expects(*expected, r"\.js: csp")  # of scripts that are to be loaded before they are run
    tab = reader.context.new_page()
    tab.goto(path)
    return tab


def test_the_first_password_is_set_and_one_is_in(launch: Launch, read: OpenBrowser) -> None:
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
    other = opened(read, program, "/setup")
    assert other.url.endswith("/login")


def test_who_signs_in_gets_to_the_page_that_was_wanted(closed: Program, read: OpenBrowser) -> None:
    tab = opened(read, closed, "/usage?range=7d", "403")
    assert tab.get_by_role("heading", level=1).inner_text() == "Sign in"
    sign_in(tab, "looker", "no such word")
    assert "The name or the password is wrong" in tab.get_by_role("alert").inner_text()
    assert tab.get_by_label("Name").input_value() == "looker"
    sign_in(tab, "looker")
    assert tab.url.endswith("/usage?range=7d")
    assert tab.get_by_role("heading", level=1).inner_text() == "Usage"


def test_the_language_is_chosen_before_one_is_in_and_the_way_is_not_lost(
    closed: Program, read: OpenBrowser
) -> None:
    tab = opened(read, closed, "/usage?range=7d")
    tab.get_by_label("Language").select_option("zh")
    tab.get_by_role("button", name="Apply").click()
    assert tab.locator("html").get_attribute("lang") == "zh-CN"
    tab.get_by_label("名称").fill("admin")
    tab.get_by_label("密码").fill(PASSWORD)
    tab.get_by_role("button", name="登录").click()
    assert tab.url.endswith("/usage?range=7d")


def test_who_comes_from_elsewhere_too_early_is_told_what_to_do(
    new: Program, read: OpenBrowser
) -> None:
    reader = read(new, is_owner=False, extra_http_headers=FROM_ELSEWHERE)
    reader.expects("403")
    tab = reader.context.new_page()
    tab.goto("/models")
    shows(tab, "No password is set yet", "llm-manager open", "llm-manager users add NAME")


# --- before there is an account -----------------------------------------------------------


def test_the_link_signs_in_once_and_leaves_nothing_in_the_address(
    launch: Launch, read: OpenBrowser
) -> None:
    program = launch({})
    reader = read(program, is_owner=False)
    tab = reader.context.new_page()
    link = program.sign_in_link()
    tab.goto(link)
    tab.wait_for_url(f"{program.url}/")
    reader.settles(tab)
    shows(tab, "Make the first account", "Sign out")
    assert tab.evaluate("location.hash") == ""
    tab.get_by_role("button", name="Sign out", exact=True).click()
    assert tab.get_by_role("heading", level=1).inner_text() == "Sign in"
    reader.expects("403")
    tab.goto(link)
    shows(tab, "This link was used already or has expired", "llm-manager open")
    assert tab.url == f"{program.url}/login/link"


def test_who_is_on_this_machine_without_an_account_looks_and_is_told_how_to_become_admin(
    new: Program, read: OpenBrowser
) -> None:
    reader = read(new, is_owner=False)
    reader.expects("403")
    tab = reader.open("/settings")
    shows(tab, "You may look at everything here and change nothing")
    assert not tab.get_by_role("button", name="Reload the file from disk").is_visible()
    assert "Sign out" not in seen_on(tab)
    tab.get_by_role("link", name="How to become admin").click()
    shows(tab, "llm-manager open", "llm-manager users add NAME --role admin --password-stdin")
    tab.goto("/setup")
    shows(tab, "The first account is made by the owner of this machine", "llm-manager open")
    assert tab.get_by_label("Password").count() == 0
