"""Pages are live: they outlast the server's end, and hold no more of it than they use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.browser import (
    DISCONNECTED,
    address,
    becomes,
    card_of,
    loses_connection,
    needs_browser,
    set_visible,
    shows,
)
from tests.support.fixtures import Launch, OpenBrowser
from tests.support.program import FEW_THREADS, Program, fake

if TYPE_CHECKING:
    from playwright.sync_api import Route

pytestmark = needs_browser

# --- the server's end ---------------------------------------------------------------------


def test_pages_outlast_a_killed_server_and_go_on_with_the_next(
    launch: Launch, read: OpenBrowser
) -> None:
    program = launch({"Dies": fake(), "Lives": fake(), "Starts": fake()})
    program.command("Dies", "start")
    assert program.ask("Lives", {"log": "said before"}).ok
    reader = read(program)
    reader.expects(*DISCONNECTED)
    tabs = {path: reader.open(path) for path in ("/models?log=Lives", "/", "/billing")}
    models, overview, billing = tabs.values()
    becomes(models, "Dies", "ready")
    shows(models, "said before")

    program.kill()
    for tab in tabs.values():
        loses_connection(tab)
    for process in program.processes("Dies"):
        process.kill()
    program.start(program.port)
    for tab in tabs.values():
        reader.settles(tab)

    becomes(models, "Dies", "stopped")
    becomes(models, "Lives", "ready")
    program.command("Starts", "start")
    becomes(models, "Starts", "ready")
    # The log goes on and says nothing twice.
    assert program.ask("Lives", {"log": "said after"}).ok
    shows(models, "said before", "said after")
    lines = models.locator("#log .log").inner_text().splitlines()
    assert [line for line in lines if line.startswith("said")] == ["said before", "said after"]
    card_of(models, "Lives").get_by_role("button", name="Stop").click()
    becomes(models, "Lives", "stopped")
    # The next server knows the pages of the one before: what they ask for is done.
    billing.get_by_role("button", name="Create the bill (CSV)").click()
    shows(billing, ".csv is ready")
    overview.get_by_role("button", name="Start Lives").click()
    overview.get_by_role("button", name="Stop Lives").wait_for()


def test_a_start_that_fails_before_its_own_answer_comes_is_reported(
    launch: Launch, read: OpenBrowser
) -> None:
    program = launch({"Broken": {"Scheme": {"command": ["false"]}}})
    tab = read(program).open("/models")

    def answer_late(route: Route) -> None:
        answer = route.fetch()
        becomes(tab, "Broken", "failed")
        route.fulfill(response=answer)

    tab.route("**/api/models/Broken/start", answer_late)
    card_of(tab, "Broken").get_by_role("button", name="Start Broken").click()
    shows(tab, "Broken did not start")


# --- what a page holds --------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(launch_once: Launch) -> Program:
    """A program with a slot for one live page."""
    return launch_once({"Model": fake(), "Other": fake()}, threads=FEW_THREADS)


def is_full(program: Program) -> bool:
    """Whether all slots for live pages are taken."""
    with program.get("/api/events", stream=True) as answer:
        return answer.status_code == 503


def test_a_tab_that_is_closed_or_left_releases_its_slot(small: Program, read: OpenBrowser) -> None:
    reader = read(small)
    reader.expects("503")  # a page may ask a moment before the slot of another is released
    tab = reader.open("/models")
    assert is_full(small)
    tab.close()
    small.page("/api/events").close()
    tab = reader.context.new_page()
    for page in ("models", "usage", "settings"):
        reader.goto(tab, address(page))


def test_a_tab_in_the_background_holds_no_slot_and_is_up_to_date_when_it_is_seen_again(
    small: Program, read: OpenBrowser
) -> None:
    reader = read(small)
    reader.expects("503")
    tab = reader.open("/models")
    becomes(tab, "Model", "stopped")
    set_visible(tab, False)
    small.page("/api/events").close()
    small.command("Model", "start")
    assert card_of(tab, "Model").locator(".state.stopped").is_visible()
    set_visible(tab, True)
    becomes(tab, "Model", "ready")


def test_a_page_that_finds_no_slot_says_so_and_connects_once_there_is_one(
    small: Program, read: OpenBrowser
) -> None:
    stream = small.page("/api/events")
    reader = read(small)
    reader.expects("503")
    tab = reader.context.new_page()
    tab.goto("/models")
    loses_connection(tab)
    stream.close()
    reader.settles(tab)
    becomes(tab, "Other", "stopped")
