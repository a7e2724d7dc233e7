"""A newcomer's whole path: from the first visit over a first answer to the bill."""

from __future__ import annotations

import csv
import io

import pytest

from tests.support.browser import needs_browser, shows, violations
from tests.support.fixtures import Launch, OpenBrowser
from tests.support.program import Program, eventually, fake, media

pytestmark = needs_browser


@pytest.fixture(scope="module")
def program(launch_once: Launch) -> Program:
    return launch_once(
        {
            "Chat": fake(),
            "Texts": fake(mode="Base"),
            "Vectors": fake(mode="Embedding"),
            "Ranks": fake(mode="Reranker"),
            "Paints": media("Image"),
        }
    )


def test_from_the_first_visit_to_the_bill(program: Program, read: OpenBrowser) -> None:
    reader = read(program)
    tab = reader.open("/")
    shows(tab, "Chat", "Vectors", "stopped")

    # Nothing runs yet: the first message starts its model.
    tab.get_by_role("link", name="Try a model").click()
    reader.settles(tab)
    chat = tab.locator("#chat")
    chat.get_by_label("Your message").fill("What is the capital of France?")
    chat.get_by_role("button", name="Send").click()
    shows(tab, "17 prompt, 3 completion", "the first byte after")
    assert chat.locator(".said.assistant").inner_text().strip() != ""
    assert program.model("Chat")["state"] == "ready"

    # A price, and what it means, before it is saved.
    tab.get_by_role("link", name="Billing").click()
    reader.settles(tab)
    shows(tab, "No price yet", "Chat")
    tab.locator("#model").select_option("Chat")
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
    chat.get_by_label("Your message").fill("And of Spain?")
    chat.get_by_label("Your message").press("Control+Enter")
    shows(tab, "¥0.000058")
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
    shows(tab, "Chat")
    tab.get_by_role("link", name="Billing").click()
    reader.settles(tab)
    tab.get_by_role("button", name="Create the bill (CSV)").click()
    link = tab.get_by_role("link", name="Download bill-")
    link.wait_for()
    with tab.expect_download() as download:
        link.click()
    rows = list(csv.DictReader(io.StringIO(download.value.path().read_text("utf-8-sig"))))
    sums = program.get("/api/usage/summary").json()
    assert rows[-1]["cost"] == sums["cost"]
    assert float(sums["cost"]) > 0


def test_every_mode_of_texts_can_be_tried(program: Program, read: OpenBrowser) -> None:
    tab = read(program).open("/playground")
    shows(tab, "Models of other modes cannot be tried here: Paints")
    tab.get_by_role("radio", name="Completion").check()
    tab.get_by_role("button", name="Complete").click()
    shows(tab, "token0 token1 token2", "17 prompt, 3 completion")
    tab.get_by_role("radio", name="Embeddings").check()
    tab.get_by_role("button", name="Compare").click()
    shows(tab, "Similarity 1 ")
    tab.get_by_role("radio", name="Rerank").check()
    tab.get_by_role("button", name="Rank", exact=True).click()
    eventually(lambda: tab.locator("#rerank tbody tr").count() == 2)
    assert violations(tab) == []


def test_the_config_is_edited_checked_and_applied(program: Program, read: OpenBrowser) -> None:
    reader = read(program)
    reader.expects("400 .BAD REQUEST")
    tab = reader.open("/settings")
    text = tab.get_by_label("The text of config.yaml")
    assert text.input_value() == program.config.read_text()
    right = text.input_value().replace("Texts:", "Renamed:")

    text.fill(right.replace("threads:", "treads:"))
    shows(tab, "Problems: 1.", "did you mean threads?")
    tab.get_by_role("button", name="Save and apply").click()
    shows(tab, "config.yaml:2: treads: unknown key")
    assert "treads" not in program.config.read_text()

    text.fill(right)
    shows(tab, "No problems. Models: 5")
    tab.get_by_role("button", name="Save and apply").click()
    shows(tab, "Applied. Models: 5")
    assert program.model("Renamed")["state"] == "stopped"
    assert violations(tab) == []
