"""A reader of the pages, with a headless Chromium, that records everything that fails there."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import time
from typing import TYPE_CHECKING, Any

import pytest

from routes.pages.views import PAGES
from tests.support.program import PASSWORD, PATIENCE, Program

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Dialog, Locator, Page, Request

_NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in _NAMES if (path := shutil.which(name))), None)
_PACKAGES = ("playwright", "axe_playwright_python")
_HAS_PACKAGES = all(importlib.util.find_spec(name) for name in _PACKAGES)
needs_browser = pytest.mark.skipif(
    CHROMIUM is None or not _HAS_PACKAGES,
    reason="needs Chromium (apt-get install chromium) and requirements-dev.txt",
)

SEEN = """document => {
  const texts = [document.body.innerText, document.title];
  const fields = 'input:not([type=radio], [type=checkbox]), textarea';
  for (const field of document.querySelectorAll(fields)) texts.push(field.value);
  for (const option of document.querySelectorAll('option')) texts.push(option.text);
  return texts.join('\\n');
}"""
RULES = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice")

# What Chromium says of a server that is not there.
DISCONNECTED = (
    *("ERR_CONNECTION_", "ERR_INCOMPLETE_CHUNKED_ENCODING", "ERR_EMPTY_RESPONSE"),
    "ERR_SOCKET_NOT_CONNECTED",
)
# A header that only proxies send: the program takes the caller for one from another machine.
FROM_ELSEWHERE = {"X-Real-IP": "192.0.2.7"}


def pages(*but: str) -> list[str]:
    """All pages, without some."""
    return [page for page in PAGES if page not in but]


def address(page: str) -> str:
    return "/" if page == "overview" else f"/{page}"


def launch_chromium(playwright: Any) -> Browser:
    browser: Browser = playwright.chromium.launch(
        executable_path=CHROMIUM,
        # Chromium's own sandbox does not work for root.
        chromium_sandbox=not (hasattr(os, "geteuid") and os.geteuid() == 0),
    )
    return browser


class Reader:
    """One person's browser, with cookies of its own; each page is a tab.

    ``account``: the one that is signed in. ``is_owner``: signed in by a link of the local token,
    as by default while there is no account.
    ``options`` are those of Playwright's contexts: ``locale``, ``color_scheme``, ``viewport``.
    At the end of a test there must be no fault but those it said to expect.
    """

    def __init__(
        self,
        browser: Browser,
        program: Program,
        *,
        account: str | None = None,
        is_owner: bool | None = None,
        **options: Any,
    ) -> None:
        self.faults: list[str] = []
        self._expected: list[str] = []
        self._under_way: set[Request] = set()
        self.context = context = browser.new_context(base_url=program.url, **options)
        context.set_default_timeout(PATIENCE * 1000)
        context.on("console", self._take_message)
        context.on("weberror", lambda fault: self.faults.append(f"not caught: {fault.error}"))
        context.on("dialog", self._take_dialog)
        context.on("request", self._take_request)
        context.on("requestfinished", lambda request: self._under_way.discard(request))
        context.on("requestfailed", self._take_failure)
        if account is not None:
            self._submit("/login", name=account, password=PASSWORD)
        elif is_owner if is_owner is not None else not program.has_accounts:
            self._submit("/login/link", code=program.sign_in_link().partition("#")[2])

    def _submit(self, path: str, **fields: str) -> None:
        """Sends the form of a page to sign in, for browsers that run no script as well."""
        page = self.context.request.get(path).text()
        found = re.search('name="csrf_token" value="([^"]+)"', page)
        assert found is not None, page
        form = {"csrf_token": found[1], **fields}
        answer = self.context.request.post(path, form=form, max_redirects=0)
        assert answer.status == 303, answer.text()

    def open(self, path: str) -> Page:
        """A page in a tab of its own, live and with all that it first asks for."""
        page = self.context.new_page()
        self.goto(page, path)
        return page

    def goto(self, page: Page, path: str) -> None:
        page.goto(path)
        self.settles(page)

    def settles(self, page: Page) -> None:
        """Waits until the page is live and has what it has asked for."""
        page.locator("#connection[data-state=on]").wait_for()
        deadline = time.monotonic() + PATIENCE
        while self._under_way:
            assert time.monotonic() < deadline, f"still asks for {self._under_way}"
            page.wait_for_timeout(10)
        drawn(page)

    def expects(self, *faults: str) -> None:
        """Faults of this test that are none; regular expressions."""
        self._expected += faults

    def close(self) -> None:
        """Ends the browser's window. Raises AssertionError where something was wrong."""
        for page in self.context.pages:
            page.evaluate("0")  # what it has reported is here before the answer to this
        self.context.close()
        faults = [
            fault
            for fault in self.faults
            if not any(re.search(expected, fault) for expected in self._expected)
        ]
        assert not faults, "\n".join(faults)

    def _take_message(self, message: ConsoleMessage) -> None:
        # Also what the Content-Security-Policy has stopped.
        if message.type in ("error", "warning"):
            self.faults.append(f"{message.type}: {message.text} ({message.location['url']})")

    def _take_dialog(self, dialog: Dialog) -> None:
        self.faults.append(f"a dialog: {dialog.message}")
        dialog.dismiss()

    def _take_request(self, request: Request) -> None:
        if request.resource_type != "eventsource":  # which does not end
            self._under_way.add(request)

    def _take_failure(self, request: Request) -> None:
        self._under_way.discard(request)
        # A page that is left breaks off what it had asked for.
        if request.failure != "net::ERR_ABORTED":
            self.faults.append(f"failed: {request.url}: {request.failure}")


def sign_in(page: Page, name: str, password: str = PASSWORD) -> None:
    """Fills in the form, in English, that the page shows, and sends it."""
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Sign in").click()


# --- what is on a page --------------------------------------------------------------------


def drawn(page: Page) -> None:
    """Waits until what has changed is drawn, charts in their new size as well."""
    page.evaluate(
        """() => new Promise((done) => requestAnimationFrame(() =>
          requestAnimationFrame(() => setTimeout(done))))"""
    )


def resize(page: Page, width: int, height: int = 900) -> None:
    page.set_viewport_size({"width": width, "height": height})
    drawn(page)


def seen_on(page: Page) -> str:
    """All text that a reader can see, that in fields and lists to choose from as well."""
    text: str = page.evaluate(f"({SEEN})(document)")
    return text


def shows(page: Page, *texts: str) -> None:
    """Waits until all of the texts can be seen: some come only with the stream of events."""
    deadline = time.monotonic() + PATIENCE
    while missing := [text for text in texts if text not in seen_on(page)]:
        assert time.monotonic() < deadline, f"{page.url} does not show {missing}"
        page.wait_for_timeout(20)


def loses_connection(page: Page) -> None:
    """Waits until the page says that it is not connected."""
    page.locator("#connection[data-state=off]").wait_for()
    assert page.locator("#connection").inner_text().startswith("Not connected")


def set_visible(page: Page, is_visible: bool) -> None:
    """As if the reader went to another tab, or came back; without a window there are none."""
    page.evaluate(
        """(hidden) => {
          Object.defineProperty(document, 'hidden', { get: () => hidden, configurable: true });
          document.dispatchEvent(new Event('visibilitychange'));
        }""",
        not is_visible,
    )


def card_of(page: Page, model: str) -> Locator:
    """A model's card on the page of the models."""
    heading = page.get_by_role("heading", name=model, exact=True)
    return page.locator("#cards > li").filter(has=heading)


def becomes(page: Page, model: str, state: str) -> None:
    """Waits until the model's card shows this state, one of the API's."""
    card_of(page, model).locator(f".state.{state}").wait_for()


def violations(page: Page) -> list[str]:
    """What axe-core has against the page as it is now."""
    from axe_playwright_python.sync_playwright import Axe

    options = {
        "resultTypes": ["violations"],
        "runOnly": list(RULES),
        # What is said to a button has to be what is written on it; axe takes it for experimental.
        "rules": {"label-content-name-mismatch": {"enabled": True}},
        "preload": False,
    }
    found = Axe().run(page, options=options).response["violations"]
    return [
        f"{one['id']}: {one['help']}: "
        + ", ".join(f"{node['target']} {node['html'][:120]}" for node in one["nodes"][:3])
        + (f" and {len(one['nodes']) - 3} more" if len(one["nodes"]) > 3 else "")
        for one in found
    ]


def overflow(page: Page) -> list[str]:
    """What makes the document wider than the window."""
    wide: list[str] = page.evaluate(
        """() => {
          const root = document.documentElement;
          if (root.scrollWidth <= innerWidth) return [];
          const style = (e) => getComputedStyle(e);
          const isCut = (e) => {
            const around = style(e).position === 'absolute' ? e.offsetParent : e.parentElement;
            return around && (style(around).overflowX !== 'visible' || isCut(around));
          };
          const wide = [...document.body.querySelectorAll('*')]
            .filter((e) => e.getBoundingClientRect().right > innerWidth + 0.5 && !isCut(e))
            .map((e) => e.outerHTML.slice(0, 100).replace(/\\s+/g, ' '));
          return [`${root.scrollWidth} px in ${innerWidth}: ${wide.slice(0, 5).join(', ')}`];
        }"""
    )
    return wide


def focused(page: Page) -> str:
    """The name of what has the focus, as a screen reader reads it, or its id."""
    name: str = page.evaluate(
        """() => {
          const e = document.activeElement;
          return e.getAttribute('aria-label') || (e.labels?.[0] ?? e).innerText?.trim() || e.id;
        }"""
    )
    return name


def tab_to(page: Page, name: str, key: str = "Tab") -> None:
    """Goes on with the key, Tab or Shift+Tab, until something of that name has the focus."""
    passed = []
    for _ in range(80):
        page.keyboard.press(key)
        passed.append(focused(page))
        if passed[-1] == name:
            return
    raise AssertionError(f"{key} does not lead to {name!r} but to {passed}")
