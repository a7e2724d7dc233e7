"""Every page, full of life, in both languages, both themes, and from a phone to a wide screen."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from babel.messages.pofile import read_po

from tests.support.browser import (
    address,
    needs_browser,
    overflow,
    pages,
    resize,
    seen_on,
    violations,
)
from tests.support.cards import Cards, card
from tests.support.fixtures import Launch, OpenBrowser
from tests.support.program import ROOT, Program, env_of, eventually, fake, on

pytestmark = needs_browser

RTX_4060 = "NVIDIA GeForce RTX 4060"
V100 = "Tesla V100-SXM2-16GB"
LONG = "an-organisation/a-model-whose-name-goes-on-and-on-70B-Instruct-Q4_K_M-imatrix.gguf"
PRICE = {"tiers": [{"input": 1, "output": 2}], "per_hour": 0.5}
LOCALES = {"en": "en-US", "zh-CN": "zh-CN"}
WIDTHS = (390, 820, 1600)
# It takes a while, so it sees each language, theme and width, but not each with each.
WITH_AXE = {
    ("en", "light", 390),
    ("en", "dark", 1600),
    ("zh-CN", "dark", 390),
    ("zh-CN", "light", 820),
}


@pytest.fixture(scope="module")
def program(launch_once: Launch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """One with models in all states, with answers under way, and with a past."""
    cards = Cards(
        tmp_path_factory.mktemp("machine"),
        [card(RTX_4060, 8188, 300, util=25, temp=51), card(V100, 16384)],
    )
    program = launch_once(
        {
            "Busy": on("rtx 4060", 6000, aliases=["qwen", "org/qwen:8b"], price=PRICE),
            "Line": on("rtx 4060", 5000),
            LONG: on("v100", 9000, "--mode", "Chat", aliases=[f"{LONG}:alias"]),
            "Broken": fake("--crash-after-boot", 4),
            "Vectors": fake(mode="Embedding"),
            "Ranks": fake(mode="Reranker"),
            "Texts": fake(mode="Base"),
        },
        env=env_of(cards),
    )
    for model in ("Busy", LONG):
        assert program.ask(model, {"log": f"{model} warns\nan ERROR of {model}"}).ok
        assert not program.ask(model, {"status": 500}).ok
    assert program.post("/v1/embeddings", {"model": "Vectors", "input": "Hi"}).ok
    assert program.ask(f"no-{LONG}").status_code == 404
    assert program.command("Broken", "start")["state"] == "failed"
    with program.held("Busy"):
        program.post("/api/models/Line/start")
        program.becomes("Line", state="queued")
        eventually(lambda: program.get("/api/usage/summary").json()["requests"] >= 5)
        limits = {"requests_per_minute": 60, "tokens_per_minute": 10**9, "max_concurrency": 4}
        budget = {"amount": "1234.5", "period": "month"}
        program.add_key(
            LONG[:100], owner=LONG[:100], models=[LONG, "Busy"], budget=budget, **limits
        )
        assert program.post("/api/tokens", {"name": "a-" + "token-" * 10, "role": "viewer"}).ok
        program.add_key("ends", expires_at="2001-01-01")
        yield program


@pytest.mark.parametrize("language", LOCALES)
def test_every_page_is_whole_and_usable_for_all(
    program: Program, read: OpenBrowser, language: str
) -> None:
    themes = ("light", "dark") if language == "en" else ("dark", "light")
    reader = read(program, locale=LOCALES[language], color_scheme=themes[0])
    tab = reader.context.new_page()
    found: list[str] = []
    for page in pages():
        reader.goto(tab, address(page))
        assert tab.locator("html").get_attribute("lang") == language
        for theme in themes:
            tab.emulate_media(color_scheme=theme)
            for width in WIDTHS:
                resize(tab, width)
                faults = overflow(tab)
                if (language, theme, width) in WITH_AXE:
                    faults += violations(tab)
                found += [f"{page}, {theme}, {width} px wide: {fault}" for fault in faults]
        if language != "en":
            said = {line.strip() for line in seen_on(tab).splitlines()} & english()
            # One of them is a mode's name, too.
            found += [f"{page}: {text!r} in English" for text in said - {"Chat"}]
    assert not found, "\n".join(found)


def english() -> set[str]:
    """What pages say in English and in no other language."""
    with (ROOT / "translations" / "zh" / "LC_MESSAGES" / "messages.po").open("rb") as file:
        catalog = read_po(file, locale="zh")
    return {str(word.id) for word in catalog if word.id and word.id != word.string}


# --- language and theme -------------------------------------------------------------------

GROUND = "getComputedStyle(document.body).backgroundColor"


def test_the_language_is_the_browsers_until_another_is_chosen_which_is_kept(
    program: Program, read: OpenBrowser
) -> None:
    reader = read(program, locale="zh-CN")
    tab = reader.open("/logs")
    assert tab.locator("html").get_attribute("lang") == "zh-CN"
    tab.locator("select[name=language]").select_option("en")
    tab.locator("html[lang=en]").wait_for()
    reader.settles(tab)
    assert tab.get_by_role("heading", name="Logs", level=1).is_visible()
    assert reader.open("/models").locator("html").get_attribute("lang") == "en"


def test_the_theme_is_the_systems_until_another_is_chosen_which_is_kept(
    program: Program, read: OpenBrowser
) -> None:
    dark = read(program, color_scheme="dark").open("/logs").evaluate(GROUND)
    reader = read(program, color_scheme="light")
    tab = reader.open("/logs")
    light = tab.evaluate(GROUND)
    assert light != dark
    tab.get_by_label("Theme").select_option("dark")
    tab.locator("html[data-theme=dark]").wait_for()
    reader.settles(tab)
    assert tab.evaluate(GROUND) == dark
    assert reader.open("/").evaluate(GROUND) == dark
    tab.get_by_label("Theme").select_option("system")
    tab.locator("html[data-theme=system]").wait_for()
    reader.settles(tab)
    assert tab.evaluate(GROUND) == light
