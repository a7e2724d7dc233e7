"""What an open page does when the session that it was opened in has ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.browser.test_live import GONE, look_at, loses
from tests.support.browser import address, needs_browser, pages, shows, sign_in, violations
from tests.support.fixtures import Launch, OpenBrowser
from tests.support.program import Program, fake

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.support.browser import Reader

pytestmark = needs_browser

OUT = "You are signed out here."


@pytest.fixture
def program(launch: Launch) -> Program:
    program = launch({"Model": fake()}, threads=96)
    program.add_account("admin")
    return program


def opened(read: OpenBrowser, program: Program, path: str) -> tuple[Reader, Page]:
    """A page of somebody who has signed in."""
    reader = read(program)
    reader.expects("401", *GONE)
    tab = reader.context.new_page()
    tab.goto("/login")
    sign_in(tab, "admin")
    reader.settles(tab)
    reader.goto(tab, path)
    return reader, tab


def sign_out(program: Program) -> None:
    """Everywhere, as an admin does at another place."""
    assert program.post("/api/accounts/admin/sign-out").ok


def restart(program: Program) -> None:
    """Ends all streams; what is asked for from then on is asked of another process."""
    program.kill()
    program.start(program.port)


def test_pages_whose_stream_is_refused_say_so_and_ask_no_more(
    program: Program, read: OpenBrowser
) -> None:
    # A browser has six connections to a server, for all its tabs.
    tabs = [opened(read, program, address(page))[1] for page in pages()]
    sign_out(program)
    restart(program)
    asked: list[str] = []
    for tab in tabs:
        shows(tab, OUT)
        assert tab.locator("#connection").inner_text() == "Signed out"
        tab.on("request", lambda request: asked.append(request.url))
    tabs[0].wait_for_timeout(2500)  # a page that is not connected tries again each second
    assert asked == []


def test_what_is_refused_leads_to_signing_in_and_back_to_the_page(
    program: Program, read: OpenBrowser
) -> None:
    reader, tab = opened(read, program, "/requests?status=error")
    sign_out(program)
    tab.get_by_role("button", name="Search").click()
    shows(tab, OUT)
    tab.get_by_role("button", name="Search").click()
    assert tab.locator("#notices").inner_text().count(OUT) == 1
    tab.locator("#notices").get_by_role("link", name="Sign in").click()
    sign_in(tab, "admin")
    tab.get_by_role("heading", name="Requests", level=1).wait_for()
    assert tab.url.endswith("/requests?status=error")
    reader.settles(tab)


def test_a_model_that_is_tried_when_the_session_has_ended_is_not_asked(
    program: Program, read: OpenBrowser
) -> None:
    program.add_key("closes /v1")
    _, tab = opened(read, program, "/playground")
    tab.get_by_label("Your message").fill("Hello")
    sign_out(program)
    tab.get_by_role("button", name="Send").click()
    shows(tab, OUT)
    assert tab.get_by_label("Your message").input_value() == "Hello"


def test_a_page_goes_on_when_somebody_has_signed_in_in_another_tab(
    program: Program, read: OpenBrowser
) -> None:
    reader, tab = opened(read, program, "/settings")
    reader.expects("403")  # the token of the page is that of the session before
    sign_out(program)
    tab.get_by_role("button", name="Back up usage.db").click()
    shows(tab, OUT)
    assert violations(tab) == []
    look_at(tab, False)
    other = reader.context.new_page()
    other.goto("/login")
    sign_in(other, "admin")
    reader.settles(other)
    look_at(tab, True)
    reader.settles(tab)
    assert OUT not in tab.locator("body").inner_text()
    tab.get_by_role("button", name="Back up usage.db").click()
    shows(tab, "Backed up")


def test_a_server_that_is_gone_is_waited_for_as_ever(program: Program, read: OpenBrowser) -> None:
    reader, tab = opened(read, program, "/models")
    program.kill()
    loses(tab)
    assert OUT not in tab.locator("body").inner_text()
    program.start(program.port)
    reader.settles(tab)
