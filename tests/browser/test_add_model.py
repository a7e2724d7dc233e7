"""A model is added to the config, changed and removed on the page Models."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.browser import FROM_ELSEWHERE, needs_browser, shows, violations
from tests.support.cards import Cards, card
from tests.support.fixtures import Launch, OpenBrowser
from tests.support.gguf_files import write_model
from tests.support.program import FAKE, env_of, eventually, fake

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = needs_browser

CARD = "NVIDIA GeForce RTX 3090"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """GGUFs: one to use, one that is cut."""
    folder = tmp_path / "models"
    folder.mkdir()
    extra = {"tokenizer.chat_template": "x", "llama.context_length": 40_000}
    write_model(folder / "tiny-Q8_0.gguf", extra=extra)
    (folder / "cut.gguf").write_bytes(b"GGUF")
    return folder


@pytest.fixture
def cards(tmp_path: Path) -> Cards:
    """A card, and a llama-server on the PATH."""
    cards = Cards(tmp_path / "machine", [card(CARD, 24_576)])
    server = cards.bin / "llama-server"
    server.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{FAKE}" --takes 400\n')
    server.chmod(0o755)
    return cards


def test_from_an_empty_config_to_the_first_answer(
    launch: Launch, read: OpenBrowser, cards: Cards, folder: Path
) -> None:
    program = launch({}, env=env_of(cards), models_dir=[str(folder)])
    reader = read(program)
    tab = reader.open("/")
    tab.get_by_role("link", name="Add a model").click()
    dialog = tab.get_by_role("dialog")
    shows(tab, "llama.cpp: llama-server", f"{CARD}: fits up to 40,000 tokens", "is not a GGUF")
    shows(tab, "It would start at once, in scheme GPU.")
    assert dialog.get_by_label("Name", exact=True).input_value() == "tiny"
    assert violations(tab) == []

    dialog.get_by_label("Context, in tokens").select_option("8192")
    entry = dialog.get_by_label("What the config has below its name")
    eventually(lambda: "'8192'" in entry.input_value())
    entry.fill(entry.input_value().replace("mode: Chat", "mode: Chatt"))
    shows(tab, "line 1: mode: unknown mode 'Chatt'")
    assert violations(tab) == []
    # What was typed is not lost without asking.
    dialog.get_by_label("Context, in tokens").select_option("4096")
    tab.get_by_role("button", name="Replace").click()
    eventually(lambda: "'4096'" in entry.input_value())

    dialog.get_by_role("button", name="Save and start").click()
    shows(tab, "Log of tiny", "tiny is ready after", "scheme GPU, port")
    assert program.ask("tiny").status_code == 200
    assert "'4096'" in program.config.read_text()
    assert violations(tab) == []


def test_an_entry_is_changed_and_a_model_removed(launch: Launch, read: OpenBrowser) -> None:
    program = launch({"One": fake(), "Two": fake()})
    text = program.config.read_text()
    program.config.write_text(text.replace("  Two:", "  # The other.\n  Two:"))
    program.request("POST", "/api/config/reload")
    reader = read(program)
    tab = reader.open("/models")
    tab.get_by_role("button", name="Edit the entry of Two").click()
    entry = tab.get_by_label("What the config has below its name")
    shows(tab, "It would start at once", "A model is renamed in the settings")
    assert not tab.get_by_label("Name", exact=True).is_editable()
    entry.fill(entry.input_value() + "pinned: true   # ours\n")
    tab.get_by_role("button", name="Save", exact=True).click()
    shows(tab, "Saved. Two has it from its next start on")
    assert "  # The other.\n  Two:" in program.config.read_text()
    assert "pinned: true   # ours\n" in program.config.read_text()

    tab.get_by_role("button", name="Remove Two from the config").click()
    tab.get_by_role("button", name="Cancel").click()
    assert program.model("Two")
    tab.get_by_role("button", name="Remove Two from the config").click()
    tab.get_by_role("button", name="Remove", exact=True).click()
    shows(tab, "Two is not in the config any more", "1 of 1 models")
    assert "Two:" not in program.config.read_text()


def test_a_command_of_ones_own_is_added_by_keyboard_alone(
    launch: Launch, read: OpenBrowser
) -> None:
    program = launch({"One": fake()})
    reader = read(program)
    tab = reader.open("/models")
    tab.get_by_role("button", name="Add a model").focus()
    tab.keyboard.press("Enter")
    link = tab.get_by_role("link", name="as models_dir, and they are offered here")
    assert link.get_attribute("href") == "/settings"
    tab.keyboard.press("End")  # the last choice of the list that has the focus
    entry = tab.get_by_label("What the config has below its name")
    # Nothing is wrong before anything was typed, and there is nothing to save.
    assert entry.input_value() == tab.locator("#entry-checked").inner_text() == ""
    assert not saves(tab)
    tab.get_by_label("Name", exact=True).fill("Mine")
    entry.fill("Default:\n  command: []\n")
    shows(tab, "expected a list that begins with the program to run")
    command = [sys.executable, str(FAKE)]
    entry.fill(f"Default:\n  command: {command}\n")
    shows(tab, "It would start at once, in scheme Default.")
    tab.get_by_role("button", name="Save", exact=True).click()
    shows(tab, "Mine is in the config", "2 of 2 models")
    assert program.model("Mine")["state"] == "stopped"

    tab.get_by_role("button", name="Add a model").click()
    tab.keyboard.press("Escape")
    assert not tab.get_by_role("dialog").is_visible()


def test_what_is_saved_is_what_was_chosen(
    launch: Launch, read: OpenBrowser, cards: Cards, folder: Path
) -> None:
    docker = cards.bin / "docker"
    docker.write_text("#!/bin/sh\n")
    docker.chmod(0o755)
    program = launch({}, env=env_of(cards), models_dir=[str(folder)])
    reader = read(program)
    reader.expects("400")
    tab = reader.open("/models?add=1")
    shows(tab, "It would start at once")
    assert saves(tab) == ["Save", "Save and start"]
    engine = tab.get_by_label("Engine")
    without_device = engine.locator("option[disabled]").all_inner_texts()
    reason = "this machine has no device of the kind amd"
    assert f"llama.cpp in Docker, AMD (ROCm): {reason}" in without_device

    entry = tab.get_by_label("What the config has below its name")
    engine.select_option("docker-llama-cuda")
    eventually(lambda: "docker" in entry.input_value())
    tab.get_by_label(CARD).uncheck()
    shows(tab, "llama.cpp in Docker, NVIDIA needs a device")
    assert entry.input_value() == ""
    assert not saves(tab)
    assert violations(tab) == []

    tab.get_by_label(CARD).check()
    shows(tab, "It would start at once")
    tab.get_by_label("Name", exact=True).fill("other")
    tab.get_by_role("button", name="Save", exact=True).click()
    shows(tab, "other is in the config")
    text = program.config.read_text()
    assert "llm-other" in text
    assert "llm-tiny" not in text


def test_no_engine_is_proposed_that_cannot_run_here(
    launch: Launch, read: OpenBrowser, tmp_path: Path, folder: Path
) -> None:
    without_cards = Cards(tmp_path / "machine", [])
    vllm = without_cards.bin / "vllm"
    vllm.write_text("#!/bin/sh\n")
    vllm.chmod(0o755)
    reader = read(launch({}, env=env_of(without_cards), models_dir=[str(folder)]))
    tab = reader.open("/models?add=1")
    tab.locator("#entry select[name=file]").select_option("hub")
    shows(tab, "Nothing that is installed here runs it.", "vLLM: this machine has no device of")
    assert not saves(tab)


def test_an_edit_of_a_model_that_runs_does_not_say_that_it_would_start(
    launch: Launch, read: OpenBrowser
) -> None:
    program = launch({"One": fake()})
    program.command("One", "start")
    program.becomes("One", state="ready")
    tab = read(program).open("/models")
    tab.get_by_role("button", name="Edit the entry of One").click()
    shows(tab, "One runs. It goes on as it is until it is restarted.")
    assert not tab.get_by_text("It would start at once").count()


def saves(tab: Page) -> list[str]:
    """The buttons of the dialog that save and can be used."""
    buttons = tab.locator("dialog[open]").get_by_role("button", name="Save", disabled=False)
    return buttons.all_inner_texts()


def test_who_may_not_edit_the_config_is_not_offered_to(launch: Launch, read: OpenBrowser) -> None:
    program = launch({"One": fake()})
    for reader in (read(program, is_owner=False), read(program, extra_http_headers=FROM_ELSEWHERE)):
        reader.expects("40[13]")
        tab = reader.open("/models")
        for name in ("Add a model", "Edit the entry of One", "Remove One from the config"):
            assert tab.get_by_role("button", name=name).count() == 0, name


def test_the_settings_show_the_file_that_is_on_the_disk(launch: Launch, read: OpenBrowser) -> None:
    program = launch({"One": fake(), "Two": fake()}, watch_config=True)
    text = program.config.read_text()
    tab = read(program).open("/settings")
    editor = tab.get_by_label("The text of config.yaml")
    program.config.write_text(f"# Of another editor.\n{text}")
    shows(tab, "# Of another editor.")
    assert not tab.get_by_text("The file was changed outside of this page.").is_visible()

    editor.fill(f"# Mine.\n{text}")
    program.config.write_text(f"# Of another one.\n{text}")
    shows(tab, "The file was changed outside of this page.")
    assert editor.input_value().startswith("# Mine.")
    assert violations(tab) == []
    tab.get_by_role("button", name="Discard my changes").click()
    shows(tab, "# Of another one.")
    assert not tab.get_by_text("The file was changed outside of this page.").is_visible()


def test_a_file_that_removes_models_is_applied_once_the_reader_agrees(
    launch: Launch, read: OpenBrowser
) -> None:
    program = launch({"One": fake(), "Two": fake()}, watch_config=True)
    program.configure({}, watch_config=True)
    tab = read(program).open("/settings")
    shows(tab, "not in use as it is until it is applied: 2 of 2 models are not in it")
    apply = tab.get_by_role("button", name="Apply the file on disk")
    apply.click()
    question = tab.get_by_role("dialog")
    shows(tab, "Apply the file on disk? 2 of 2 models are not in it: One, Two")
    question.get_by_role("button", name="Cancel").click()
    assert program.model("One")
    apply.click()
    question.get_by_role("button", name="Apply", exact=True).click()
    shows(tab, "Applied. Models: 0", "The file is applied by itself when it is saved.")


def test_the_overview_and_the_settings_say_why_a_saved_file_is_not_in_use(
    launch: Launch, read: OpenBrowser
) -> None:
    program = launch({"One": fake(), "Two": fake()}, watch_config=True)
    text = program.config.read_text()
    program.config.write_text(text.replace("threads:", "treads:"))
    eventually(lambda: program.get("/api/config/file").json()["problems"])
    reader = read(program)
    tab = reader.open("/")
    shows(tab, "Needs attention", "not in use", "line 2: treads: unknown key")
    tab.get_by_role("link", name="config.yaml").click()
    shows(tab, "The file has problems, and is not in use as it is")
    assert violations(tab) == []
    program.config.write_text(text)
    shows(tab, "The file is applied by itself when it is saved.")
