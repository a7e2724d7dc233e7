"""Every page in both languages, both themes, and from a phone to a wide screen."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from babel.messages.pofile import read_po

from tests.support.browser import (
    FROM_ELSEWHERE,
    address,
    needs_browser,
    overflow,
    pages,
    resize,
    seen_on,
    violations,
)
from tests.support.busy_program import busy_program
from tests.support.fixtures import Launch, OpenBrowser
from tests.support.program import ROOT, Program

pytestmark = needs_browser

LOCALES = {"en": "en-US", "zh-CN": "zh-CN"}
WIDTHS = (390, 820, 1600)


@pytest.fixture(scope="module")
def program(launch_once: Launch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    with busy_program(launch_once, tmp_path_factory.mktemp("machine")) as program:
        yield program


def english() -> set[str]:
    """What pages say in English and in no other language."""
    with (ROOT / "translations" / "zh" / "LC_MESSAGES" / "messages.po").open("rb") as file:
        catalog = read_po(file, locale="zh")
    return {str(message.id) for message in catalog if message.id and message.id != message.string}


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("language", LOCALES)
def test_every_page_is_whole_and_usable_for_all(
    program: Program, read: OpenBrowser, language: str, theme: str
) -> None:
    reader = read(program, locale=LOCALES[language], color_scheme=theme)
    tab = reader.context.new_page()
    found: list[str] = []
    for page in pages():
        reader.goto(tab, address(page))
        assert tab.locator("html").get_attribute("lang") == language
        for width in WIDTHS:
            resize(tab, width)
            faults = overflow(tab) + violations(tab)
            found += [f"{page}, {width} px wide: {fault}" for fault in faults]
        if language != "en":
            lines = {line.strip() for line in seen_on(tab).splitlines()} & english()
            # One of them is a mode's name, too.
            found += [f"{page}: {text!r} in English" for text in lines - {"Chat"}]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("language", LOCALES)
def test_the_pages_before_sign_in_are_whole_and_usable_for_all(
    launch_once: Launch, read: OpenBrowser, language: str
) -> None:
    new, closed = launch_once({}), launch_once({})
    closed.add_account("admin")
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
            lines = {line.strip() for line in seen_on(tab).splitlines()} & english()
            # The first account has this name in each language.
            found += [f"{path}: {text!r} in English" for text in lines - {"admin"}]
    assert not found, "\n".join(found)


def test_the_largest_dialog_fits_on_a_phone(program: Program, read: OpenBrowser) -> None:
    tab = read(program).open("/keys")
    resize(tab, 390)
    tab.get_by_role("button", name="Make a key").click()
    assert overflow(tab) == []
