"""The page of the API keys: made, shown once, changed, rotated, revoked."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.browser import needs_browser, shows, violations
from tests.support.fixtures import Launch, OpenBrowser
from tests.support.program import CHAT, Program, chat, eventually, fake

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

pytestmark = needs_browser

PRICE = {"tiers": [{"input": "1000", "output": "1000"}]}


@pytest.fixture(scope="module")
def program(launch_once: Launch) -> Program:
    """One without a key, until the first test has made one."""
    return launch_once({"Model": fake(price=PRICE), "Other": fake()})


def is_in_sight(tab: Page, part: Locator) -> bool:
    box, size = part.bounding_box(), tab.viewport_size
    assert box is not None
    assert size is not None
    return 0 <= box["y"] <= box["y"] + box["height"] <= size["height"]


def answer(program: Program, secret: str, model: str = "Model") -> int:
    """The status that a client of a key gets."""
    headers = {"Authorization": f"Bearer {secret}"}
    return program.post(CHAT, chat(model), headers=headers).status_code


def key_of(program: Program, name: str) -> dict[str, Any]:
    found: dict[str, Any] = program.get(f"/api/keys/{name}").json()
    return found


def row_of(tab: Page, name: str) -> Locator:
    return tab.locator("#keys tbody tr").filter(
        has=tab.get_by_role("rowheader", name=re.compile(f"^{name}"))
    )


def take_secret(tab: Page) -> str:
    """What the dialog shows; closes it."""
    dialog = tab.get_by_role("dialog")
    secret = dialog.get_by_label("Secret", exact=True).input_value()
    assert secret.startswith("sk-llm-")
    assert "never again" in dialog.inner_text()
    dialog.get_by_role("button", name="I have it").click()
    return secret


def test_a_first_key_is_made_with_all_its_fields_and_its_secret_is_shown_once(
    program: Program, read: OpenBrowser
) -> None:
    reader = read(program, timezone_id="Asia/Shanghai", permissions=["clipboard-write"])
    tab = reader.open("/keys")
    shows(tab, "A key is for a program or a person", "/v1 is open to whoever reaches it")
    tab.get_by_role("button", name="Make a key").click()
    dialog = tab.get_by_role("dialog")
    for label, value in {
        "Name": "agents",
        "Owner": "Ann",
        "Requests a minute": "60",
        "Tokens a minute": "5000",
        "Requests at once": "4",
        "Budget in CNY": "12.5",
        "Expires": "2031-02-03T04:05:06",
        "Priority, 0 to 10": "7",
    }.items():
        dialog.get_by_label(label, exact=True).fill(value)
    dialog.get_by_label("for each").select_option("day")
    dialog.get_by_label("All, and those to come").uncheck()
    dialog.get_by_label("Model", exact=True).check()
    dialog.get_by_label("Their whole servers, too").check()
    assert violations(tab) == []
    dialog.get_by_role("button", name="Make it").click()

    shows(tab, "The secret of the key agents")
    assert violations(tab) == []
    tab.keyboard.press("Escape")  # does not lose it
    tab.get_by_role("dialog").get_by_role("button", name="Copy").click()
    shows(tab, "Copied")
    secret = take_secret(tab)
    assert answer(program, secret) == 200
    assert answer(program, secret, "Other") == 403
    made = key_of(program, "agents")
    assert made["owner"] == "Ann"
    assert made["models"] == ["Model"]
    assert (made["requests_per_minute"], made["tokens_per_minute"]) == (60, 5000)
    assert (made["max_concurrency"], made["priority"]) == (4, 7)
    assert made["raw"] is True
    assert made["budget"] == {"amount": "12.5", "period": "day"}
    assert made["expires_at"].startswith("2031-02-02T20:05:06")
    reader.goto(tab, "/keys")
    assert secret not in tab.content()
    shows(tab, "agents", "Ann", "their whole servers, too", f"…{secret[-4:]}", "of ¥12.50 today")
    assert "may use the models" not in tab.locator("body").inner_text()


def test_a_key_may_be_given_the_secret_that_its_clients_have(
    program: Program, read: OpenBrowser
) -> None:
    reader = read(program)
    reader.expects("400")
    tab = reader.open("/keys")
    tab.get_by_role("button", name="Make a key").click()
    dialog = tab.get_by_role("dialog")
    dialog.get_by_label("Name", exact=True).fill("moved")
    field = dialog.get_by_label("Secret, if clients have one already")
    field.fill("sk-1234")
    dialog.get_by_role("button", name="Make it").click()
    shows(tab, "this secret could be guessed")
    # In a small window, too, the reason and the button are in sight.
    tab.set_viewport_size({"width": 800, "height": 500})
    for part in (tab.get_by_text("this secret could be guessed"), dialog.get_by_text("Make it")):
        eventually(lambda part=part: is_in_sight(tab, part))
    assert field.get_attribute("aria-invalid") == "true"
    assert violations(tab) == []
    secret = "sk-7Jq2vXn0Rk5tWbY8cZ1dLs"
    field.fill(secret)
    dialog.get_by_role("button", name="Make it").click()
    shows(tab, "moved is made, with the secret that you gave", "…1dLs")
    assert tab.get_by_role("dialog").count() == 0
    assert tab.locator("[name=secret]").input_value() == ""
    assert answer(program, secret) == 200
    tab.get_by_role("button", name="Change moved").click()
    assert not tab.locator("[name=secret]").is_visible()


def test_what_a_key_does_now_is_seen_beside_its_limits(program: Program, read: OpenBrowser) -> None:
    secret = program.add_key(
        "watched", requests_per_minute=9, budget={"amount": "0.001", "period": "month"}
    )
    assert answer(program, secret) == 200
    tab = read(program).open("/keys")
    row = row_of(tab, "watched")
    assert "requests: 1 of 9" in row.inner_text()
    assert row.locator(".bad-text").inner_text() == "of ¥0.001 this month"  # used up
    assert answer(program, secret) == 429


def test_a_change_sends_what_was_changed_and_nothing_else(
    program: Program, read: OpenBrowser
) -> None:
    program.add_key("changed", owner="Ann", priority=3, expires_at="2031-02-03T04:05:06Z")
    before = key_of(program, "changed")
    reader = read(program)
    reader.expects("400")
    tab = reader.open("/keys")
    tab.get_by_role("button", name="Change changed").click()
    dialog = tab.get_by_role("dialog")
    assert dialog.get_by_label("Owner").input_value() == "Ann"
    program.request("PATCH", "/api/keys/changed", json={"priority": 9})  # by somebody else
    dialog.get_by_label("Owner").fill("Bob")
    dialog.get_by_label("Requests a minute").fill("many")
    dialog.get_by_role("button", name="Save").click()
    shows(tab, "requests_per_minute has to be a whole number")
    assert dialog.get_by_label("Requests a minute").get_attribute("aria-invalid") == "true"
    dialog.get_by_label("Requests a minute").fill("")
    dialog.get_by_role("button", name="Save").click()
    shows(tab, "changed is changed", "Bob")
    after = key_of(program, "changed")
    assert after == {**before, "owner": "Bob", "priority": 9}


def test_a_rotated_key_has_two_secrets_for_a_while(program: Program, read: OpenBrowser) -> None:
    old = program.add_key("rotated")
    reader = read(program)
    tab = reader.open("/keys")
    tab.get_by_role("button", name="Rotate rotated").click()
    dialog = tab.get_by_role("dialog")
    assert dialog.get_by_label("Hours that the old one stays valid").input_value() == "24"
    dialog.get_by_role("button", name="Make a new secret").click()
    shows(tab, "The secret of the key rotated")
    new = take_secret(tab)
    assert (answer(program, old), answer(program, new)) == (200, 200)
    shows(tab, f"…{old[-4:]} until")

    tab.get_by_role("button", name="Rotate rotated").click()
    tab.get_by_label("Hours that the old one stays valid").fill("0")
    assert violations(tab) == []
    tab.get_by_role("button", name="Make a new secret").click()
    shows(tab, "The secret of the key rotated")
    newest = take_secret(tab)
    assert [answer(program, secret) for secret in (old, new, newest)] == [401, 401, 200]


def test_a_key_is_revoked_only_after_a_question(program: Program, read: OpenBrowser) -> None:
    secret = program.add_key("revoked")
    reader = read(program)
    tab = reader.open("/keys")
    tab.get_by_role("button", name="Revoke revoked").click()
    shows(tab, "Revoke revoked? Its requests are refused from now on")
    tab.get_by_role("button", name="Cancel").click()
    assert answer(program, secret) == 200
    tab.get_by_role("button", name="Revoke revoked").click()
    tab.get_by_role("dialog").get_by_role("button", name="Revoke").click()
    shows(tab, "revoked is revoked")
    assert answer(program, secret) == 401
    row_of(tab, "revoked").wait_for(state="detached")
    tab.get_by_label("Also those revoked").check()
    assert "revoked" in row_of(tab, "revoked").locator(".state").inner_text()
    assert row_of(tab, "revoked").get_by_role("button").count() == 0
