"""`python -m bench.pages --rows 10000000`: how fast the pages are in Chromium.

The program has 50 models in its config and as many requests in usage.db, the last of them now
(ten million take minutes to make; with `--keep FILE` they are kept, and copied from there the next
time). Each load is one in a new browser profile, with nothing in its cache:

- bytes: all that came over the wire, heads included, until the page was at rest
- first paint: when the browser has painted the first text
- usable: when the page is connected and what it is for is there; CONDITIONS says what that is
- answered: when the last of the calls that the page makes in the beginning is answered; no limit

It needs Chromium or Chrome, and `playwright` of requirements-dev.txt.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, CDPSession, Error, Page, Playwright, sync_playwright

from bench import servers, usage_rows
from bench.servers import BenchError, Program
from manager.billing import calendar
from routes.pages.views import PAGES

KILOBYTES, FIRST_PAINT_MS, USABLE_MS = 150, 500, 1000
ZONE = "UTC"
READY = 4  # of the models run
PATIENCE = 30.0  # seconds for one load
REST = 0.5  # seconds without a call after which a page is at rest
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

# What has to be there for a page to be of use, as JavaScript; `count` and `text` are below.
CONDITIONS = {
    # every model's row, and the requests of today
    "overview": "count('#models tbody tr') === {models}"
    " && /[1-9]/.test(text('[data-text=requests]'))",
    # every model's card
    "models": "count('#cards > *') === {models}",
    # the sums of today, their chart, and a row for every model
    "usage": "count('#table tbody tr') === {models} && count('#chart canvas') === 1"
    " && /[1-9]/.test(text('[data-text=requests]'))",
    # the newest requests
    "requests": "count('#past tbody tr') > 0",
    # the month's bill, and the prices of a model
    "billing": "count('#statement tbody tr') >= {models} && count('#versions > *') > 0",
    # the models that can be tried
    "playground": "count('#chat [name=model] option') > 0",
    # the log's lines
    "logs": "count('#log .log > *') > 0",
    # the config's text, and the data's sizes
    "settings": "document.querySelector('#text').value !== '' && count('#sizes tbody tr') > 0",
}
# Notes when the condition is met, at the change of the page that meets it.
NOTE = """
(() => {
  const count = (selector) => document.querySelectorAll(selector).length;
  const text = (selector) => document.querySelector(selector).textContent;
  const look = () => {
    if (window.metAt === undefined && count("#connection[data-state=on]") && %s) {
      window.metAt = performance.now();
    }
  };
  const observer = new MutationObserver(look);
  observer.observe(document, { subtree: true, childList: true, attributes: true,
    characterData: true });
})();
"""
SEEN = """
() => {
  const paint = performance.getEntriesByName("first-contentful-paint")[0];
  const calls = performance.getEntriesByType("resource")
    .filter((entry) => new URL(entry.name).pathname.startsWith("/api/"));
  return { met: window.metAt ?? null, paint: paint?.startTime ?? null,
    answered: Math.max(0, ...calls.map((entry) => entry.responseEnd)) };
}
"""


@dataclass(frozen=True)
class Load:
    """What one load of a page took."""

    kilobytes: float
    first_paint_ms: float
    usable_ms: float
    answered_ms: float


class Wire:
    """What comes over the wire while a page is loaded."""

    def __init__(self, session: CDPSession) -> None:
        self._bytes: dict[str, float] = {}
        self._paths: dict[str, str] = {}
        self._under_way: set[str] = set()
        self._last = time.monotonic()
        session.on("Network.requestWillBeSent", self._sent)
        session.on("Network.responseReceived", self._begun)
        session.on("Network.dataReceived", self._came)
        session.on("Network.loadingFinished", self._finished)
        session.on("Network.loadingFailed", self._failed)
        session.send("Network.enable")

    @property
    def kilobytes(self) -> float:
        return sum(self._bytes.values()) / 1000

    @property
    def is_at_rest(self) -> bool:
        """Whether nothing has been under way for a while, but for the stream of events."""
        return not self._under_way and time.monotonic() > self._last + REST

    def _sent(self, event: dict[str, Any]) -> None:
        self._last = time.monotonic()
        if "/api/events" not in event["request"]["url"]:
            self._under_way.add(event["requestId"])

    def _begun(self, event: dict[str, Any]) -> None:
        self._bytes[event["requestId"]] = event["response"]["encodedDataLength"]

    def _came(self, event: dict[str, Any]) -> None:
        self._bytes[event["requestId"]] += event["encodedDataLength"]

    def _finished(self, event: dict[str, Any]) -> None:
        self._bytes[event["requestId"]] = event["encodedDataLength"]
        self._over(event)

    def _failed(self, event: dict[str, Any]) -> None:
        self._over(event)

    def _over(self, event: dict[str, Any]) -> None:
        self._last = time.monotonic()
        self._under_way.discard(event["requestId"])


def load(browser: Browser, address: str, page_name: str) -> Load:
    """Opens the page in a new profile. Raises BenchError where it is not usable in the end."""
    condition = CONDITIONS[page_name].replace("{models}", str(usage_rows.MODELS))
    with browser.new_context(locale="en-US", viewport={"width": 1280, "height": 800}) as context:
        page = context.new_page()
        page.add_init_script(NOTE % condition)
        wire = Wire(context.new_cdp_session(page))
        answer = page.goto(address, wait_until="commit")
        if answer is None or answer.status != 200:
            raise BenchError(f"{page_name}: answered {answer and answer.status}")
        return _seen(page, page_name, wire)


def _seen(page: Page, page_name: str, wire: Wire) -> Load:
    deadline = time.monotonic() + PATIENCE
    while True:
        page.wait_for_timeout(50)  # the wire's events come meanwhile
        if wire.is_at_rest:
            seen = page.evaluate(SEEN)
            if seen["met"] is not None and seen["paint"] is not None:
                return Load(wire.kilobytes, seen["paint"], seen["met"], seen["answered"])
        if time.monotonic() > deadline:
            raise BenchError(f"{page_name}: not usable within {PATIENCE:g} s")


# --- the program -----------------------------------------------------------------------------


def _models() -> dict[str, object]:
    """Those that usage.db has requests of."""

    def model(number: int) -> dict[str, object]:
        mode, _ = usage_rows.mode_of(number)
        scheme = usage_rows.scheme_of(number)
        return {"mode": mode, scheme: {"command": servers.upstream_command()}}

    return {usage_rows.name_of(number): model(number) for number in range(usage_rows.MODELS)}


@contextlib.contextmanager
def _program(folder: Path, rows: int, keep: Path | None) -> Iterator[Program]:
    database = folder / "data" / "usage.db"
    database.parent.mkdir()
    if keep is None or not keep.exists():
        print(f"makes {rows:,} requests", file=sys.stderr)
        hour = calendar.HOUR_MS
        end = (int(time.time() * 1000) // hour + 1) * hour
        start = end - usage_rows.DAYS * 24 * hour
        usage_rows.fill(keep or database, rows, calendar.zone(ZONE), start_ms=start)
    if keep is not None:
        shutil.copyfile(keep, database)
    settings = {"timezone": ZONE}
    wsgi = Path("wsgi.py").resolve()
    with servers.program(wsgi, folder, _models(), settings) as program:
        for number in range(READY):
            servers.post_chat(program.port, usage_rows.name_of(number))
        yield program


# --- all of it -------------------------------------------------------------------------------


def launch(play: Playwright, *more: str) -> Browser:
    """The system's Chromium, with these arguments. Raises BenchError where there is none."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        raise BenchError("There is no Chromium: on Debian, apt-get install chromium")
    sandbox = [] if os.name == "nt" or os.geteuid() else ["--no-sandbox"]
    return play.chromium.launch(executable_path=path, args=[*sandbox, *more])


def bench(browser: Browser, port: int, times: int) -> list[str]:
    """Prints the table; what is over its limit."""
    missed = []
    print("| page | KB | first paint, ms | usable, ms | at most | answered, ms |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for page_name in PAGES:
        path = "" if page_name == "overview" else page_name
        address = f"http://127.0.0.1:{port}/{path}"
        try:
            loads = [load(browser, address, page_name) for _ in range(times)]
        except BenchError as error:
            missed.append(str(error))
            print(f"| {page_name} | failed |  |  |  |  |")
            continue
        kilobytes, paint, usable, answered = (
            statistics.median(getattr(one, field.name) for one in loads) for field in fields(Load)
        )
        longest = max(one.usable_ms for one in loads)
        figures = (kilobytes, paint, usable, longest, answered)
        print(f"| {page_name} | {' | '.join(f'{figure:.0f}' for figure in figures)} |", flush=True)
        for what, value, limit in (
            ("KB", kilobytes, KILOBYTES),
            ("ms to the first paint", paint, FIRST_PAINT_MS),
            ("ms until usable", usable, USABLE_MS),
        ):
            if value > limit:
                missed.append(f"{page_name}: {value:.0f} {what}, not {limit}")
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.pages", description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--keep", type=Path, metavar="FILE", help="the requests, made if missing")
    parser.add_argument("--times", type=int, default=7, help="loads of each page")
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="llm-manager-pages-") as name,
        sync_playwright() as play,
    ):
        try:
            with (
                launch(play) as browser,
                _program(Path(name), arguments.rows, arguments.keep) as program,
            ):
                load(browser, f"http://127.0.0.1:{program.port}/", "overview")  # warm
                missed = bench(browser, program.port, arguments.times)
        except (BenchError, Error) as error:
            print(error, file=sys.stderr)
            return 1
    print("\n" + ("\n".join(missed) if missed else "all within their limits"))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
