"""The first steps of a newcomer, by mouse and by keyboard alone."""

from __future__ import annotations

import pytest

from .browser import (
    address,
    becomes,
    card_of,
    every_page,
    focused,
    needs_browser,
    overflow,
    shows,
    tab_to,
    violations,
)
from .conftest import Launch, OpenBrowser
from .program import Program, fake

pytestmark = needs_browser


# --- an empty config ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def empty(launch_once: Launch) -> Program:
    return launch_once({})


@pytest.mark.parametrize("page", every_page("logs", "settings"))
def test_an_empty_page_says_what_to_do_first(empty: Program, read: OpenBrowser, page: str) -> None:
    tab = read(empty).open(address(page))
    said = tab.locator(".empty").filter(visible=True)
    said.first.wait_for()
    assert any(said.nth(number).locator("a").count() for number in range(said.count()))
    assert overflow(tab) + violations(tab) == []


@pytest.mark.parametrize("page", ["overview", "models"])
def test_whoever_has_no_models_is_sent_to_the_settings(
    empty: Program, read: OpenBrowser, page: str
) -> None:
    tab = read(empty).open(address(page))
    link = tab.locator(".empty").filter(has_text="no models yet").get_by_role("link")
    assert link.is_visible()
    assert link.get_attribute("href") == "/settings"


# --- a first model ------------------------------------------------------------------------


def test_a_model_is_tried_out_started_followed_restarted_and_stopped_by_mouse(
    launch: Launch, read: OpenBrowser
) -> None:
    program = launch({"Model": fake("--boot", 0.5), "Other": fake(), "Broken": fake("--boot", "x")})
    reader = read(program)
    tab = reader.open("/models")
    card = card_of(tab, "Model")

    card.get_by_role("button", name="What would it do?").click()
    shows(tab, "It would start at once, in scheme Default.")
    assert program.model("Model")["state"] == "stopped"

    card.get_by_role("button", name="Start Model", exact=True).click()
    becomes(tab, "Model", "starting")
    becomes(tab, "Model", "ready")
    shows(tab, "Model is ready after", str(program.model("Model")["pid"]))

    before = program.model("Model")["pid"]
    tab.get_by_role("button", name="Close", exact=True).click()
    card.get_by_role("button", name="Restart").click()
    shows(tab, "Model is ready after")
    after = program.model("Model")["pid"]
    assert after != before
    shows(tab, str(after))

    card.get_by_role("button", name="Stop").click()
    shows(tab, "Model is stopped")
    becomes(tab, "Model", "stopped")

    card_of(tab, "Broken").get_by_role("button", name="Start Broken", exact=True).click()
    becomes(tab, "Broken", "failed")
    shows(tab, "Broken did not start", "invalid float value")
    assert violations(tab) == []


def test_a_log_is_followed_searched_sifted_paused_and_saved(
    launch: Launch, read: OpenBrowser
) -> None:
    program = launch({"Model": fake()})
    reader = read(program)
    tab = reader.open("/models")
    card_of(tab, "Model").get_by_role("button", name="Start Model", exact=True).click()
    card_of(tab, "Model").get_by_role("button", name="Log").click()
    lines = tab.locator("#log .log")
    shows(tab, "Log of Model", "listening on 127.0.0.1")

    assert program.ask("Model", {"log": "a needle\nWARNING: hot\nERROR: burnt"}).ok
    shows(tab, "a needle", "ERROR: burnt")
    tab.get_by_label("Search").last.fill("NEEDLE")
    assert lines.inner_text().splitlines() == ["a needle"]
    assert lines.locator("mark").inner_text() == "needle"
    tab.get_by_label("Search").last.fill("")
    tab.get_by_label("Level").select_option("warn")
    assert lines.inner_text().splitlines() == ["WARNING: hot", "ERROR: burnt"]
    tab.get_by_label("Level").select_option("bad")
    assert lines.inner_text().splitlines() == ["ERROR: burnt"]
    tab.get_by_label("Level").select_option("")

    tab.get_by_role("button", name="Pause").click()
    assert program.ask("Model", {"log": "while it was paused"}).ok
    shows(tab, "2 new ones wait")
    assert "while it was paused" not in lines.inner_text()
    tab.get_by_role("button", name="Pause").click()
    shows(tab, "while it was paused")

    with tab.expect_download() as download:
        tab.get_by_role("button", name="Download").click()
    assert download.value.suggested_filename == "Model.log"
    saved = download.value.path().read_text(encoding="utf-8").splitlines()
    assert saved == program.log("Model").splitlines()
    assert violations(tab) == []

    # The log is part of the address: it is there again when the page is loaded anew.
    tab.reload()
    reader.settles(tab)
    shows(tab, "while it was paused")
    tab.get_by_role("button", name="Close the log").click()
    assert not lines.is_visible()


def test_whoever_stops_a_model_that_answers_is_asked_first(
    launch: Launch, read: OpenBrowser
) -> None:
    program = launch({"Model": fake(stop_timeout=1)})
    program.command("Model", "start")
    tab = read(program).open("/models")
    with program.held("Model"):
        card_of(tab, "Model").get_by_role("button", name="Stop").click()
        shows(tab, "Model answers 1 requests. Stop it?")
        tab.get_by_role("button", name="Cancel").click()
        assert program.model("Model")["state"] == "ready"
        card_of(tab, "Model").get_by_role("button", name="Stop").click()
        tab.get_by_role("dialog").get_by_role("button", name="Stop").click()
        becomes(tab, "Model", "stopped")


# --- by keyboard alone --------------------------------------------------------------------


@pytest.mark.parametrize("page", every_page())
def test_the_first_tab_leads_past_the_menu(empty: Program, read: OpenBrowser, page: str) -> None:
    tab = read(empty).open(address(page))
    tab.keyboard.press("Tab")
    assert focused(tab) == "Skip to the content"
    box = tab.locator(".skip").bounding_box()
    assert box is not None
    assert box["x"] >= 0
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.id") == "content"


def test_models_are_steered_by_keyboard_alone(launch: Launch, read: OpenBrowser) -> None:
    program = launch({"Model": fake(), "Other": fake()})
    reader = read(program)
    tab = reader.open("/")
    tab_to(tab, "Models")
    tab.keyboard.press("Enter")
    tab.wait_for_url("**/models")
    reader.settles(tab)

    tab_to(tab, "Start Model")
    tab.keyboard.press("Enter")
    becomes(tab, "Model", "ready")
    tab_to(tab, "Start Other")
    tab.keyboard.press("Space")
    becomes(tab, "Other", "ready")

    tab_to(tab, "Stop all models", key="Shift+Tab")
    tab.keyboard.press("Enter")
    dialog = tab.get_by_role("dialog")
    dialog.wait_for()
    assert focused(tab) == "Cancel"
    tab.keyboard.press("Escape")
    dialog.wait_for(state="hidden")
    assert focused(tab) == "Stop all models"
    assert program.model("Model")["state"] == "ready"

    tab.keyboard.press("Enter")
    dialog.wait_for()
    tab_to(tab, "Stop all")
    tab.keyboard.press("Enter")
    for model in ("Model", "Other"):
        becomes(tab, model, "stopped")
