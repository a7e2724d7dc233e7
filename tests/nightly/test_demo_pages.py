"""The shipped models are tried in the playground, in each of their modes."""

from __future__ import annotations

import pytest

from tests.support.browser import needs_browser, shows
from tests.support.fixtures import OpenBrowser
from tests.support.program import Program, eventually

pytestmark = [needs_browser, pytest.mark.demo]


def test_the_first_message_starts_a_real_model_and_is_answered(
    demo: Program, read: OpenBrowser
) -> None:
    tab = read(demo).open("/playground")
    chat = tab.locator("#chat")
    chat.get_by_label("Max tokens").fill("12")
    chat.get_by_label("Your message").fill("What is the capital of France?")
    chat.get_by_role("button", name="Send").click()
    shows(tab, " prompt, ", "the first byte after", "tokens/s")
    assert chat.locator(".said.assistant").inner_text().strip() != ""


def test_every_mode_can_be_tried(demo: Program, read: OpenBrowser) -> None:
    tab = read(demo).open("/playground")
    modes = {model["mode"] for model in demo.get("/api/models").json()["models"]}
    if "Base" in modes:
        tab.get_by_role("radio", name="Completion").check()
        tab.locator("#completion").get_by_label("Max tokens").fill("4")
        tab.get_by_role("button", name="Complete").click()
        shows(tab, "tokens/s")
    tab.get_by_role("radio", name="Embeddings").check()
    tab.get_by_role("button", name="Compare").click()
    shows(tab, "Similarity ", "numbers a text")
    tab.get_by_role("radio", name="Rerank").check()
    tab.get_by_role("button", name="Rank", exact=True).click()
    eventually(lambda: tab.locator("#rerank tbody tr").count() == 2)
