"""What admins and viewers find on the pages, and who signs out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from .browser import needs_browser, seen_on, shows, sign_in
from .conftest import Launch, OpenBrowser
from .program import Program, eventually, fake

if TYPE_CHECKING:
    from .browser import Reader

pytestmark = needs_browser


@pytest.fixture(scope="module")
def program(launch_once: Launch) -> Program:
    """One where a password and an API key are asked for."""
    program = launch_once({"Model": fake()})
    program.add_account("admin")
    program.add_account("looker", "viewer")
    program.headers["X-Api-Key"] = program.add_key("agents")
    return program


def signed_in(read: OpenBrowser, program: Program, name: str) -> Reader:
    reader = read(program)
    tab = reader.context.new_page()
    tab.goto("/login")
    sign_in(tab, name)
    reader.settles(tab)
    tab.close()
    return reader


# --- the playground -----------------------------------------------------------------------


def try_out(reader: Reader, prompt: str, key: str = "") -> str:
    """What the playground shows when it has sent a prompt."""
    tab = reader.open("/playground")
    if key:
        tab.get_by_text("Try as an API key").click()
        tab.get_by_label("API key, not kept anywhere").fill(key)
    tab.get_by_label("Your message").fill(prompt)
    tab.get_by_role("button", name="Send").click()
    tab.locator("#chat [data-part=facts]:visible, #chat [data-part=error]:visible").wait_for()
    tab.locator("#chat").get_by_text("Same request with curl").click()
    return seen_on(tab)


def keys_used(program: Program) -> list[str]:
    """Of the requests, the newest first."""
    rows = program.get("/api/usage/requests").json()["requests"]
    return [row["key"] for row in rows]


def test_an_admin_tries_a_model_with_no_key_and_is_named_by_the_request(
    program: Program, read: OpenBrowser
) -> None:
    reader = signed_in(read, program, "admin")
    said = try_out(reader, "Hello")
    assert "the first byte after" in said
    assert "Authorization: Bearer $KEY" in said  # curl has no session
    eventually(lambda: keys_used(program)[:1] == ["@admin"])
    tab = reader.open("/usage?group=key")
    shows(tab, "@admin")


def test_a_model_is_tried_as_a_key_which_is_nowhere_kept(
    program: Program, read: OpenBrowser
) -> None:
    secret = program.headers["X-Api-Key"]
    reader = signed_in(read, program, "looker")
    said = try_out(reader, "Hello", secret)
    assert "the first byte after" in said
    eventually(lambda: keys_used(program)[:1] == ["agents"])
    tab = reader.context.pages[-1]
    stored = tab.evaluate("JSON.stringify([localStorage, sessionStorage, location.href])")
    assert secret not in stored
    assert secret not in tab.locator("#chat .curl").inner_text()
    tab.reload()
    reader.settles(tab)
    assert tab.locator("#as-key").input_value() == ""


def test_who_may_only_look_needs_a_key_to_try_a_model(program: Program, read: OpenBrowser) -> None:
    reader = signed_in(read, program, "looker")
    reader.expects("401")
    assert "An API key is needed" in try_out(reader, "Hello")
    assert "The API key is not valid" in try_out(reader, "Hello", "sk-llm-wrong")
