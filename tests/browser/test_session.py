"""What an open page does when the session that it was opened in has ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.browser import (
    DISCONNECTED,
    loses_connection,
    needs_browser,
    set_visible,
    shows,
    sign_in,
    violations,
)
from tests.support.fixtures import Launch, OpenBrowser
from tests.support.program import Program, fake

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.support.browser import Reader

pytestmark = needs_browser

OUT = "You are signed out here."


@pytest.fixture(scope="module")
def program(launch_once: Launch) -> Program:
    program = launch_once({"Model": fake()})
    program.add_account("admin")
    return program


def opened(read: OpenBrowser, program: Program, path: str) -> tuple[Reader, Page]:
    """A page of somebody who is signed in."""
    reader = read(program, account="admin")
    reader.expects("401", *DISCONNECTED)
    return reader, reader.open(path)


def sign_out(program: Program) -> None:
    """Everywhere, as an admin does at another place."""
    assert program.post("/api/accounts/admin/sign-out").ok


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
    set_visible(tab, False)
    other = reader.context.new_page()
    other.goto("/login")
    sign_in(other, "admin")
    reader.settles(other)
    set_visible(tab, True)
    reader.settles(tab)
    assert OUT not in tab.locator("body").inner_text()
    tab.get_by_role("button", name="Back up usage.db").click()
    shows(tab, "Backed up")


def test_a_server_that_does_not_answer_is_no_end_of_the_session_and_a_refusal_is(
    program: Program, read: OpenBrowser
) -> None:
    reader, tab = opened(read, program, "/models")
    program.kill()
    loses_connection(tab)
    assert OUT not in tab.locator("body").inner_text()
    program.start(program.port)
    reader.settles(tab)

    sign_out(program)
    program.kill()
    program.start(program.port)
    shows(tab, OUT)
    assert tab.locator("#connection").inner_text() == "Signed out"
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.wait_for_timeout(1500)  # a page that is not connected tries again each second
    assert asked == []
