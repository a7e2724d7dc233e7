"""The first steps of a newcomer, by mouse and by keyboard alone."""

from __future__ import annotations

from contextlib import closing

import pytest

from tests.support.browser import (
    address,
    becomes,
    card_of,
    focused,
    needs_browser,
    overflow,
    pages,
    shows,
    tab_to,
    violations,
)
from tests.support.fixtures import Launch, OpenBrowser
from tests.support.program import Program, fake, free_port
from tests.support.servers import FakeModel

pytestmark = needs_browser


# --- an empty config ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def empty(launch_once: Launch) -> Program:
    return launch_once({})


def test_empty_pages_say_what_to_do_first(empty: Program, read: OpenBrowser) -> None:
    reader = read(empty)
    tab = reader.context.new_page()
    for page in pages("logs", "settings"):
        reader.goto(tab, address(page))
        said = tab.locator(".empty").filter(visible=True)
        said.first.wait_for()
        assert any(said.nth(number).locator("a").count() for number in range(said.count())), page
        assert overflow(tab) == [], page
        if page in ("overview", "models"):
            link = said.filter(has_text="no models yet").get_by_role("link")
            assert link.get_attribute("href") == "/models?add"


# --- a first model ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def program(launch_once: Launch) -> Program:
    return launch_once(
        {
            "Model": fake("--boot", 0.5),
            "Broken": fake("--boot", "x"),
            "Chatty": fake(),
            "Asked": fake(stop_timeout=1),
            "Steered": fake(),
            "Other": fake(),
        }
    )


def test_a_model_is_tried_out_started_followed_restarted_and_stopped_by_mouse(
    program: Program, read: OpenBrowser
) -> None:
    reader = read(program)
    tab = reader.open("/models")
    card = card_of(tab, "Model")

    card.get_by_role("button", name="Dry run").click()
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


def test_whole_requests_are_recorded_on_demand_and_read_beside_their_rows(
    program: Program, read: OpenBrowser
) -> None:
    reader = read(program)
    tab = reader.open("/models")
    card = card_of(tab, "Other")
    card.get_by_role("button", name="Record the requests of Other").click()
    tab.get_by_role("dialog").get_by_role("button", name="Record").click()
    shows(tab, "Whole requests and answers are recorded until")
    answer = program.ask("Other", {"text": "a secret plan"})
    assert answer.ok

    requests = reader.open(f"/requests?id={answer.headers['X-LLM-Manager-Request']}")
    shows(requests, "Other: whole requests and answers are recorded until", "a secret plan")
    assert violations(requests) == []

    card.get_by_role("button", name="Delete what was recorded").click()
    card.get_by_text("Whole requests and answers are recorded").wait_for(state="hidden")
    assert program.get("/api/captures").json() == {"captures": []}
    program.command("Other", "stop")


def test_a_server_that_others_start_is_shown_with_its_address_and_has_no_stop(
    launch: Launch, read: OpenBrowser
) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    reader = read(launch({"Far": {"url": f"{url}/v1"}}))
    tab = reader.open("/models")
    card = card_of(tab, "Far")
    becomes(tab, "Far", "failed")
    shows(tab, f"{url}/v1", f"nothing answers at {url}")
    card.get_by_role("button", name="Start Far").click()
    shows(tab, "Far does not answer: ")
    assert not card.get_by_role("button", name="Dry run").is_visible()

    with closing(FakeModel(port=port)):
        card.get_by_role("button", name="Start Far").click()
        shows(tab, "Far answers")
        becomes(tab, "Far", "ready")
        for name in ("Start Far", "Stop Far", "Restart Far"):
            assert not card.get_by_role("button", name=name, exact=True).is_visible()
        assert violations(tab) == []


def test_a_log_is_followed_searched_filtered_paused_and_saved(
    program: Program, read: OpenBrowser
) -> None:
    reader = read(program)
    tab = reader.open("/models")
    card_of(tab, "Chatty").get_by_role("button", name="Start Chatty", exact=True).click()
    becomes(tab, "Chatty", "ready")
    card_of(tab, "Chatty").get_by_role("button", name="Log").click()
    lines = tab.locator("#log .log")
    shows(tab, "Log of Chatty", "listening on 127.0.0.1")

    assert program.ask("Chatty", {"log": "a needle\nWARNING: hot\nERROR: burnt"}).ok
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
    assert program.ask("Chatty", {"log": "while it was paused"}).ok
    shows(tab, "2 new lines held back")
    assert "while it was paused" not in lines.inner_text()
    tab.get_by_role("button", name="Pause").click()
    shows(tab, "while it was paused")

    with tab.expect_download() as download:
        tab.get_by_role("button", name="Download").click()
    assert download.value.suggested_filename == "Chatty.log"
    saved = download.value.path().read_text(encoding="utf-8").splitlines()
    assert saved == program.log("Chatty").splitlines()
    assert violations(tab) == []

    # The log is part of the address: it is there again when the page is loaded again.
    tab.reload()
    reader.settles(tab)
    shows(tab, "while it was paused")
    tab.get_by_role("button", name="Close the log").click()
    assert not lines.is_visible()


def test_whoever_stops_a_model_that_answers_is_asked_first(
    program: Program, read: OpenBrowser
) -> None:
    program.command("Asked", "start")
    tab = read(program).open("/models")
    with program.held("Asked"):
        card_of(tab, "Asked").get_by_role("button", name="Stop").click()
        shows(tab, "Asked has 1 in flight. Stop it?")
        tab.get_by_role("button", name="Cancel").click()
        assert program.model("Asked")["state"] == "ready"
        card_of(tab, "Asked").get_by_role("button", name="Stop").click()
        tab.get_by_role("dialog").get_by_role("button", name="Stop").click()
        becomes(tab, "Asked", "stopped")


def test_a_question_is_not_answered_by_what_was_said_to_the_one_before(
    program: Program, read: OpenBrowser
) -> None:
    tab = read(program).open("/models")
    answers = tab.evaluate(
        """async () => {
          const { agreed } = await import(document.querySelector("link[href*=core]").href);
          const dialog = document.getElementById("question");
          const first = agreed("First?", "Yes");
          await Promise.resolve();
          dialog.close("no");
          const second = agreed("Second?", "Yes");
          const before = await first;
          await new Promise((resolve) => setTimeout(resolve)); // the first one's event has ended
          dialog.close("yes");
          return [before, await second];
        }"""
    )
    assert answers == [False, True]


# --- by keyboard alone --------------------------------------------------------------------


def test_the_first_tab_leads_past_the_menu(empty: Program, read: OpenBrowser) -> None:
    tab = read(empty).open("/")
    tab.keyboard.press("Tab")
    assert focused(tab) == "Skip to the content"
    box = tab.locator(".skip").bounding_box()
    assert box is not None
    assert box["x"] >= 0
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.id") == "content"


def test_models_are_steered_by_keyboard_alone(program: Program, read: OpenBrowser) -> None:
    reader = read(program)
    tab = reader.open("/")
    tab_to(tab, "Models")
    tab.keyboard.press("Enter")
    tab.wait_for_url("**/models")
    reader.settles(tab)

    tab_to(tab, "Start Steered")
    tab.keyboard.press("Enter")
    becomes(tab, "Steered", "ready")
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
    assert program.model("Steered")["state"] == "ready"

    tab.keyboard.press("Enter")
    dialog.wait_for()
    tab_to(tab, "Stop all")
    tab.keyboard.press("Enter")
    for model in ("Steered", "Other"):
        becomes(tab, model, "stopped")
