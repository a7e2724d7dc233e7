"""Every page of a busy program is whole and usable, and looks as its reader has chosen.

The nightly tests see each page in both languages, both themes and more widths.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.browser import address, needs_browser, overflow, pages, resize, violations
from tests.support.busy_program import busy_program
from tests.support.fixtures import Launch, OpenBrowser
from tests.support.program import Program

pytestmark = needs_browser


@pytest.fixture(scope="module")
def program(launch_once: Launch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    with busy_program(launch_once, tmp_path_factory.mktemp("machine")) as program:
        yield program


def test_every_page_fits_a_phone_and_a_screen_and_is_usable_for_all(
    program: Program, read: OpenBrowser
) -> None:
    reader = read(program)
    tab = reader.context.new_page()
    found: list[str] = []
    for page in pages():
        reader.goto(tab, address(page))
        faults = violations(tab)
        for width in (390, 1280):
            resize(tab, width)
            faults += overflow(tab)
        found += [f"{page}: {fault}" for fault in faults]
    assert not found, "\n".join(found)


def test_language_and_theme_are_the_systems_until_others_are_chosen(
    program: Program, read: OpenBrowser
) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    reader = read(program, locale="zh-CN", color_scheme="dark")
    tab = reader.open("/logs")
    assert tab.locator("html").get_attribute("lang") == "zh-CN"
    dark = tab.evaluate(background)
    tab.locator("select[name=language]").select_option("en")
    tab.locator("html[lang=en]").wait_for()
    reader.settles(tab)
    tab.get_by_label("Theme").select_option("light")
    tab.locator("html[data-theme=light]").wait_for()
    reader.settles(tab)
    assert tab.get_by_role("heading", name="Logs", level=1).is_visible()
    assert tab.evaluate(background) != dark
