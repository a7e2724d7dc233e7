"""Pages are live: they outlast the server's end, and hold no more of it than they use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.browser import address, becomes, card_of, needs_browser, pages, shows
from tests.support.fixtures import Launch, OpenBrowser
from tests.support.program import FEW_THREADS, Program, fake

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = needs_browser

# What a browser says of a server that is not there.
GONE = (
    *("ERR_CONNECTION_", "ERR_INCOMPLETE_CHUNKED_ENCODING", "ERR_EMPTY_RESPONSE"),
    "ERR_SOCKET_NOT_CONNECTED",
)


def loses(page: Page) -> None:
    """Waits until the page says that it is not connected."""
    page.locator("#connection[data-state=off]").wait_for()
    assert page.locator("#connection").inner_text().startswith("Not connected")


# --- the server's end ---------------------------------------------------------------------


def test_pages_outlast_a_killed_server_and_go_on_with_the_next(
    launch: Launch, read: OpenBrowser
) -> None:
    program = launch({"Dies": fake(), "Lives": fake(), "Starts": fake()}, threads=96)
    for model in ("Dies", "Lives"):
        program.command(model, "start")
    tabs = {}
    for page in pages():
        reader = read(program)  # a browser has six connections to a server, for all its tabs
        reader.expects(*GONE)
        tabs[page] = reader, reader.open(address(page))
    models = tabs["models"][1]
    becomes(models, "Dies", "ready")

    program.kill()
    for _, tab in tabs.values():
        loses(tab)
    for process in program.processes("Dies"):
        process.kill()
    program.start(program.port)
    for reader, tab in tabs.values():
        reader.settles(tab)

    becomes(models, "Dies", "stopped")
    becomes(models, "Lives", "ready")
    program.command("Starts", "start")
    becomes(models, "Starts", "ready")
    card_of(models, "Lives").get_by_role("button", name="Stop").click()
    becomes(models, "Lives", "stopped")
    # The next server knows the pages of the one before: what they ask for is done.
    billing = tabs["billing"][1]
    billing.get_by_role("button", name="Create the bill (CSV)").click()
    shows(billing, ".csv is ready")
    settings = tabs["settings"][1]
    settings.get_by_role("button", name="Back up usage.db").click()
    shows(settings, "Backed up")
    overview = tabs["overview"][1]
    overview.get_by_role("button", name="Start Lives").click()
    overview.get_by_role("button", name="Stop Lives").wait_for()
    program.becomes("Lives", state="ready")


def test_a_log_that_is_followed_goes_on_behind_a_restart_of_the_server_and_says_nothing_twice(
    launch: Launch, read: OpenBrowser
) -> None:
    program = launch({"Model": fake()})
    assert program.ask("Model", {"log": "said before"}).ok
    reader = read(program)
    reader.expects(*GONE)
    tab = reader.open("/models?log=Model")
    shows(tab, "said before")
    program.kill()
    loses(tab)
    program.start(program.port)
    reader.settles(tab)
    assert program.ask("Model", {"log": "said after"}).ok
    shows(tab, "said before", "said after")
    lines = tab.locator("#log .log").inner_text().splitlines()
    assert [line for line in lines if line.startswith("said")] == ["said before", "said after"]


# --- what a page holds --------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(launch_once: Launch) -> Program:
    """A program with a place for one page."""
    return launch_once({"Model": fake(), "Other": fake()}, threads=FEW_THREADS)


def is_full(program: Program) -> bool:
    """Whether all places for live pages are taken."""
    with program.get("/api/events", stream=True) as answer:
        return answer.status_code == 503


def look_at(page: Page, is_seen: bool) -> None:
    """As if the reader went to another tab, or came back; without a window there are none."""
    page.evaluate(
        """(hidden) => {
          Object.defineProperty(document, 'hidden', { get: () => hidden, configurable: true });
          document.dispatchEvent(new Event('visibilitychange'));
        }""",
        not is_seen,
    )


def test_a_tab_that_is_closed_or_left_gives_its_place_back(
    small: Program, read: OpenBrowser
) -> None:
    reader = read(small)
    reader.expects("503")  # a page may ask a moment before the place of another is given back
    tab = reader.open("/models")
    assert is_full(small)
    tab.close()
    small.page("/api/events").close()
    tab = reader.context.new_page()
    for page in pages():
        reader.goto(tab, address(page))


def test_a_tab_in_the_background_holds_no_place_and_is_up_to_date_when_it_is_looked_at(
    small: Program, read: OpenBrowser
) -> None:
    reader = read(small)
    reader.expects("503")
    tab = reader.open("/models")
    becomes(tab, "Model", "stopped")
    look_at(tab, False)
    small.page("/api/events").close()
    small.command("Model", "start")
    assert card_of(tab, "Model").locator(".state.stopped").is_visible()
    look_at(tab, True)
    becomes(tab, "Model", "ready")


def test_a_page_that_finds_no_place_says_so_and_comes_to_life_once_there_is_one(
    small: Program, read: OpenBrowser
) -> None:
    stream = small.page("/api/events")
    reader = read(small)
    reader.expects("503")
    tab = reader.context.new_page()
    tab.goto("/models")
    loses(tab)
    stream.close()
    reader.settles(tab)
    becomes(tab, "Other", "stopped")
