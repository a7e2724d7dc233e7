"""A newcomer's whole way: from the first look over a first answer to the bill."""

from __future__ import annotations

import csv
import io

import pytest

from tests.support.browser import needs_browser, shows, violations
from tests.support.fixtures import Launch, OpenBrowser
from tests.support.program import Program, eventually, fake

pytestmark = needs_browser


@pytest.mark.demo
def test_from_the_first_look_to_the_bill(demo: Program, read: OpenBrowser) -> None:
    reader = read(demo)
    tab = reader.open("/")
    shows(tab, "Demo-Chat", "Demo-Embedding", "stopped")

    # Nothing runs yet: the first message starts its model.
    tab.get_by_role("link", name="Try a model").click()
    reader.settles(tab)
    chat = tab.locator("#chat")
    chat.get_by_label("Model").select_option("Demo-Chat")
    chat.get_by_label("Max tokens").fill("12")
    chat.get_by_label("Your message").fill("What is the capital of France?")
    chat.get_by_role("button", name="Send").click()
    shows(tab, "16 prompt, ", "the first byte after", "tokens/s")
    assert chat.locator(".said.assistant").inner_text().strip() != ""
    assert demo.model("Demo-Chat")["state"] == "ready"

    # A price, and what it means, before it is saved.
    tab.get_by_role("link", name="Billing").click()
    reader.settles(tab)
    shows(tab, "No price yet", "Demo-Chat")
    tab.locator("#model").select_option("Demo-Chat")
    reader.settles(tab)
    tier = tab.get_by_role("group", name="tier 1")
    tier.get_by_label("Prompt", exact=True).fill("2")
    tier.get_by_label("Output", exact=True).fill("8")
    shows(tab, "¥0.028: tokens ¥0.028 (tier 1)")
    tab.get_by_role("button", name="Save as new version").click()
    shows(tab, "in force", "prompt ¥2.00, completion ¥8.00")

    # The next answer costs something, and says so.
    tab.get_by_role("link", name="Playground").click()
    reader.settles(tab)
    chat.get_by_label("Max tokens").fill("12")
    chat.get_by_label("Your message").fill("And of Spain?")
    chat.get_by_label("Your message").press("Control+Enter")
    shows(tab, "¥0.000")
    tab.get_by_role("link", name="the request").click()
    reader.settles(tab)
    dialog = tab.get_by_role("dialog")
    for text in ("waited", "until the first byte", "answered for", "price 1, tier 1"):
        assert text in dialog.inner_text()
    assert violations(tab) == []
    dialog.get_by_role("button", name="Close").click()

    # Usage, and the bill as a file.
    tab.get_by_role("link", name="Usage").click()
    reader.settles(tab)
    shows(tab, "Demo-Chat")
    tab.get_by_role("link", name="Billing").click()
    reader.settles(tab)
    tab.get_by_role("button", name="Create the bill (CSV)").click()
    link = tab.get_by_role("link", name="Download bill-")
    link.wait_for()
    with tab.expect_download() as download:
        link.click()
    rows = list(csv.DictReader(io.StringIO(download.value.path().read_text("utf-8-sig"))))
    sums = demo.get("/api/usage/summary").json()
    assert rows[-1]["cost"] == sums["cost"]
    assert float(sums["cost"]) > 0


@pytest.mark.demo
def test_every_mode_can_be_tried(demo: Program, read: OpenBrowser) -> None:
    tab = read(demo).open("/playground")

    def kind(name: str) -> None:
        tab.get_by_role("radio", name=name).check()

    kind("Completion")
    tab.locator("#completion").get_by_label("Max tokens").fill("4")
    tab.get_by_role("button", name="Complete").click()
    shows(tab, "tokens/s")
    kind("Embeddings")
    tab.get_by_role("button", name="Compare").click()
    shows(tab, "Similarity 0.", "576 numbers a text")
    kind("Rerank")
    tab.get_by_role("button", name="Rank", exact=True).click()
    eventually(lambda: tab.locator("#rerank tbody tr").count() == 2)
    assert violations(tab) == []


def test_the_config_is_edited_checked_and_applied(launch: Launch, read: OpenBrowser) -> None:
    program = launch({"Model": fake()})
    reader = read(program)
    reader.expects("400 .BAD REQUEST")
    tab = reader.open("/settings")
    text = tab.get_by_label("The text of config.yaml")
    assert text.input_value() == program.config.read_text()
    right = text.input_value().replace("Model:", "Renamed:")

    text.fill(right.replace("threads:", "treads:"))
    shows(tab, "Problems: 1.", "did you mean threads?")
    tab.get_by_role("button", name="Save and apply").click()
    shows(tab, "config.yaml:2: treads: unknown key")
    assert "treads" not in program.config.read_text()

    text.fill(right)
    shows(tab, "No problems. Models: 1")
    tab.get_by_role("button", name="Save and apply").click()
    shows(tab, "Applied. Models: 1")
    assert program.model("Renamed")["state"] == "stopped"
    assert violations(tab) == []
