"""What others have written is shown as text, whatever it is: names, logs, errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import pytest

from tests.support.browser import address, becomes, card_of, needs_browser, pages, shows
from tests.support.cards import Cards, card
from tests.support.fixtures import OpenBrowser
from tests.support.program import Program, env_of, eventually, fake, scheme

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = needs_browser

SCRIPT = "<script>alert(1)</script>"
IMAGE = "<img src=x onerror=alert(2)>"
QUOTES = "\"'><svg onload=alert(3)>"
ALIAS = f"alias {IMAGE}"
SCHEME = f"scheme {IMAGE}"
PASSED_OVER = f"needs {SCRIPT}"
DEVICE = f"card {IMAGE}"
BROKEN = f"broken {IMAGE}"
ASKED_FOR = f"asked {SCRIPT}"
PROMPT = f"prompt {SCRIPT} {IMAGE}"
LINE = f"line {SCRIPT} {IMAGE} {QUOTES}"
OUTPUT = f"ERROR output {SCRIPT} {IMAGE}"
FOLDER = f"folder {SCRIPT}"
OWNER = f"owner {IMAGE}"
# What a page shows besides the models' names.
SHOWN = {
    "overview": (BROKEN, OUTPUT, DEVICE, ASKED_FOR),
    "models": (ALIAS, BROKEN, OUTPUT, SCHEME, PASSED_OVER, DEVICE),
    "requests": (ASKED_FOR,),
    "keys": (OWNER,),
    "access": (OWNER,),
    "settings": (FOLDER, ALIAS, SCHEME, OUTPUT),
}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    cards = Cards(tmp_path_factory.mktemp("machine"), [card(DEVICE, 8000, 100)])
    dies = ["sh", "-c", 'echo "$0"; exit 3', OUTPUT]
    program = Program(
        tmp_path_factory.mktemp("shared") / FOLDER,
        {
            SCRIPT: {
                "aliases": [ALIAS],
                PASSED_OVER: scheme({"no such card": 100}),
                SCHEME: scheme({DEVICE: 1000}),
            },
            BROKEN: {SCHEME: {"command": dies}},
            QUOTES: fake(),
        },
        env=env_of(cards),
    )
    program.start()
    assert program.ask(QUOTES).ok
    messages = [{"role": "user", "content": PROMPT}]
    assert program.ask(ALIAS, {"log": LINE}, messages=messages).ok
    assert not program.ask(SCRIPT, {"status": 500}, messages=messages).ok
    assert program.ask(ASKED_FOR).status_code == 404
    assert not program.ask(BROKEN).ok
    eventually(lambda: program.get("/api/usage/summary").json()["requests"] >= 5)
    for key in (SCRIPT, IMAGE):
        program.headers["X-Api-Key"] = program.add_key(key, owner=OWNER, models=[QUOTES, SCRIPT])
    yield program
    program.finish()


def is_harmless(tab: Page) -> bool:
    """Whether no element was made of any of the texts."""
    made = (
        "script:not([src]):not([type='application/json']), img[src=x], svg[onload],"
        " [onerror], [onload]"
    )
    return tab.locator(made).count() == 0


def test_every_page_shows_hostile_text_as_text(program: Program, read: OpenBrowser) -> None:
    reader = read(program)
    tab = reader.context.new_page()
    for page in pages():
        reader.goto(tab, address(page))
        shows(tab, SCRIPT, QUOTES, *SHOWN.get(page, ()))
        assert is_harmless(tab), page


def test_a_model_of_a_hostile_name_is_steered_like_any_other(
    program: Program, read: OpenBrowser
) -> None:
    reader = read(program)
    tab = reader.open("/models")
    card = card_of(tab, SCRIPT)
    card.get_by_role("button", name="Log").click()
    shows(tab, f"Log of {SCRIPT}", LINE)
    card.get_by_role("button", name="Stop").click()
    becomes(tab, SCRIPT, "stopped")
    card.get_by_role("button", name="Dry run").click()
    shows(tab, f"in scheme {SCHEME}", f"not {PASSED_OVER}")
    card.get_by_role("button", name=f"Start {SCRIPT}", exact=True).click()
    shows(tab, f"{SCRIPT} is ready")
    with program.held(SCRIPT):
        shows(tab, "1 in flight, 0 waiting")
        card.get_by_role("button", name="Restart").click()
        shows(tab, f"{SCRIPT} has 1 in flight")
        tab.keyboard.press("Escape")
    card_of(tab, BROKEN).get_by_role("button", name=f"Start {BROKEN}", exact=True).click()
    shows(tab, f"{BROKEN} did not start")
    assert is_harmless(tab)


def test_a_log_shows_hostile_lines_as_text_found_ones_too(
    program: Program, read: OpenBrowser
) -> None:
    tab = read(program).open(f"/logs?{urlencode({'of': f'model/{BROKEN}'})}")
    shows(tab, OUTPUT)
    tab.get_by_label("Search").fill("<script>")
    assert tab.locator(".log mark").first.inner_text() == "<script>"
    shows(tab, OUTPUT)
    tab.locator("#whose").select_option("program")
    tab.get_by_label("Search").fill("did not start")
    shows(tab, f"{BROKEN} did not start")
    assert is_harmless(tab)


def test_a_prompt_and_a_requests_error_are_text(program: Program, read: OpenBrowser) -> None:
    reader = read(program)
    tab = reader.open("/playground")
    tab.locator("#chat").get_by_label("Model").select_option(QUOTES)
    tab.get_by_label("Your message").fill(PROMPT)
    tab.get_by_role("button", name="Send").click()
    shows(tab, PROMPT, "the first byte after")
    tab.locator("#chat").get_by_text("Same request with curl").click()
    assert "<script>" in tab.locator("#chat .curl").inner_text()
    assert is_harmless(tab)
    tab = reader.open(f"/requests?{urlencode({'status': '503'})}")
    tab.locator("#past tbody button").first.click()
    shows(tab, f"{BROKEN} did not start")
    assert is_harmless(tab)


def test_a_key_of_a_hostile_name_is_changed_and_rotated_like_any_other(
    program: Program, read: OpenBrowser
) -> None:
    tab = read(program).open("/keys")
    tab.get_by_role("button", name=f"Change {SCRIPT}", exact=True).click()
    shows(tab, f"Change {SCRIPT}", QUOTES)
    tab.get_by_label("Owner").fill(QUOTES)
    tab.get_by_role("button", name="Save").click()
    shows(tab, f"{SCRIPT} is changed")
    tab.get_by_role("button", name=f"Rotate {SCRIPT}", exact=True).click()
    tab.get_by_role("button", name="Make a new secret").click()
    shows(tab, f"The secret of the key {SCRIPT}")
    tab.get_by_role("button", name="I have it").click()
    tab.get_by_role("button", name=f"Revoke {SCRIPT}", exact=True).click()
    shows(tab, f"Revoke {SCRIPT}?")
    tab.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    assert is_harmless(tab)


def test_an_address_that_is_not_there_is_shown_as_text(program: Program, read: OpenBrowser) -> None:
    reader = read(program)
    reader.expects("404")
    tab = reader.context.new_page()
    tab.goto(f"/{IMAGE}")
    shows(tab, f"/{IMAGE}")
    assert is_harmless(tab)
