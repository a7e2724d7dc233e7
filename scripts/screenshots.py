"""Pictures of every page, for the README: `make screenshots` writes them to docs/pages.

    python scripts/screenshots.py [--seconds 60]   pictures, after so long a life
    python scripts/screenshots.py --serve          only the program, until Ctrl+C

It starts the program with a small house that is played: two cards, eight models whose servers
compute nothing, and a month of requests. It needs Chromium; with Pillow the files get smaller.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import random
import shlex
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import requests  # noqa: E402
from playwright.sync_api import Browser, Page, Route, sync_playwright  # noqa: E402

from bench.pages import launch  # noqa: E402
from manager.billing.price_versions import Prices  # noqa: E402
from manager.billing.pricing import Price, Tier  # noqa: E402
from manager.clock import Clock  # noqa: E402
from manager.storage.store import RequestRow, Store  # noqa: E402
from routes.pages.views import PAGES  # noqa: E402
from tests.support.cards import Cards, card  # noqa: E402
from tests.support.program import CHAT, FAKE, Program, chat, env_of, on, scheme  # noqa: E402
from tests.support.usage_rows import a_request, add_run, new_store  # noqa: E402

OUT = ROOT / "docs" / "pages"
WIDE, PHONE = (1280, 1180), (390, 844)
ADDRESS = "http://127.0.0.1:8080"  # that pages show; the program listens on a port that is free
DAYS = 30
HOUR_MS, DAY_MS = 3_600_000, 86_400_000
WARM = 60.0  # seconds of life before the pictures

CHAT_MODEL, SMALL, EMBEDDING, RERANKER = "Qwen3-14B", "Qwen3-4B", "BGE-M3", "BGE-Reranker-v2"
BASE, CODER, DUAL, BROKEN = "Llama-3.1-8B-Base", "Qwen3-Coder-30B", "Llama-3.3-70B", "Gemma-3-27B"
RTX, V100 = "rtx 4060", "v100"
HOUR = 17  # that it is in the house, in a zone where it is, so that today has something to show
KEYS = ("agents", "workstation", "notebook", "")
KEYS_MADE: dict[str, dict[str, Any]] = {
    "notebook": {"owner": "Wei", "max_concurrency": 2, "budget": {"amount": "5", "period": "day"}},
    "agents": {
        "owner": "Nightly jobs",
        "requests_per_minute": 120,
        "tokens_per_minute": 200_000,
        "budget": {"amount": "400", "period": "month"},
        "models": [CHAT_MODEL, CODER],
    },
    "workstation": {"owner": "Lab 3", "priority": 5},
}

SERVER = "llama-server"
FAKE_COMMAND = [sys.executable, str(FAKE)]

# --- the house -------------------------------------------------------------------------------


def models() -> dict[str, Any]:
    out_of_memory = (
        'echo "loading model weights from gemma-3-27b-it-q6_k.gguf";'
        ' echo "ggml_cuda: allocating 15384.00 MiB on device 1";'
        ' echo "CUDA error: out of memory" >&2; exit 1'
    )
    broken = scheme({V100: 15400})
    broken["command"] = ["sh", "-c", out_of_memory]
    tiers = [{"input": "0.5", "output": "2", "support_cache": True, "cache_read": "0.1"}]
    by_prompt = [{"input": "0.2", "output": "0"}]
    entries = {
        CHAT_MODEL: on(V100, 12000, "--boot", "2", aliases=["gpt-4", "qwen"]),
        SMALL: on(RTX, 5000, "--boot", "1", aliases=["gpt-3.5-turbo"], price={"tiers": tiers}),
        CODER: on(V100, 15000, price={"per_hour": "0.9"}),
        DUAL: {
            "Both": scheme({RTX: 7200, V100: 15800}),
            "V100": scheme({V100: 16000}),
            "price": {"per_hour": "1.6"},
        },
        BROKEN: {"V100": broken, "price": {"per_hour": "0.8"}},
        EMBEDDING: on(
            RTX, 1500, "--mode", "Embedding", mode="Embedding", price={"tiers": by_prompt}
        ),
        RERANKER: on(RTX, 1200, "--mode", "Reranker", mode="Reranker", price={"tiers": by_prompt}),
        BASE: on(V100, 6000, "--mode", "Base", mode="Base", price={"tiers": tiers}),
    }
    for name, entry in entries.items():
        for value in entry.values():
            if isinstance(value, dict) and value.get("command", [])[:2] == FAKE_COMMAND:
                file = f"/models/{name.lower()}-q6_k.gguf"
                value["command"][:2] = [SERVER, "-m", file]
    return entries


def put_server(folder: Path) -> None:
    """A command by the name of a real server, which plays it: the config is in a picture."""
    server = folder / SERVER
    play = " ".join(shlex.quote(part) for part in FAKE_COMMAND)
    server.write_text(f'#!/bin/sh\nshift 2\nexec {play} "$@"\n')
    server.chmod(0o755)


def zone_where_it_is(hour: int) -> str:
    """A time zone in which it is about that hour now."""
    ahead = hour - datetime.now(timezone.utc).hour
    ahead -= 24 if ahead > 14 else 0
    return f"Etc/GMT{-ahead:+d}"  # these have their signs the other way round


# By model: its share of the requests, its mode and endpoint, tokens of prompts and of answers.
HISTORY = {
    CHAT_MODEL: (40, "Chat", CHAT, 1800, 420),
    SMALL: (22, "Chat", CHAT, 600, 180),
    EMBEDDING: (20, "Embedding", "/v1/embeddings", 900, 0),
    CODER: (9, "Chat", CHAT, 5200, 700),
    RERANKER: (6, "Reranker", "/v1/rerank", 2400, 0),
    BASE: (3, "Base", "/v1/completions", 300, 90),
}
FAILURES = (
    (502, "upstream_error: the model's server closed the connection"),
    (504, "upstream_timeout: no byte for 600 s"),
    (499, "the client went away"),
)


def fill(path: Path, now: datetime) -> None:
    """A month of requests and runs, the same ones up to this moment whenever it is."""
    store = new_store(path)
    first = (now - timedelta(days=DAYS)).replace(hour=0, minute=0, second=0, microsecond=0)
    _put_prices(store, path, first)
    rows = []
    for day in range(DAYS + 1):
        chance = random.Random(day)
        begin = first + timedelta(days=day)
        begin_ms = int(begin.timestamp() * 1000)
        count = chance.randint(150, 260) if begin.weekday() < 5 else chance.randint(50, 90)
        rows += sorted(_request(chance, begin_ms) for _ in range(count))
        for number, model in enumerate((CHAT_MODEL, CODER, SMALL)):
            ready = begin_ms + (7 + number) * HOUR_MS
            ended = ready + (11 - 3 * number) * HOUR_MS
            if ended < now.timestamp() * 1000:
                add_run(store, f"{day:02}-{number}", ready, ended, model)
    store.add_requests([row for row in rows if row.ended_ms < now.timestamp() * 1000])
    store.close()


def _put_prices(store: Store, path: Path, first: datetime) -> None:
    """Two versions of the price of the model that is used most; those of the others come from
    the config."""

    def tier(low: int, high: int, price: str, answer: str, cached: str) -> Tier:
        amounts = (int(float(amount) * 1e9) for amount in (price, answer, cached))
        return Tier(low, high, 0, -1, *amounts, 0, True)

    prices = Prices(store, path, Clock())
    small, large = tier(0, 32000, "2.4", "9.6", "0.24"), tier(32000, -1, "4.8", "14.4", "0.48")
    prices.put(CHAT_MODEL, Price(None, (tier(0, -1, "3", "12", "0.3"),)), 0)
    changed = int((first + timedelta(days=12)).timestamp() * 1000)
    prices.put(CHAT_MODEL, Price(800_000_000, (small, large)), changed)


def _request(chance: random.Random, begin_ms: int) -> RequestRow:
    weights = [share for share, *_ in HISTORY.values()]
    model = chance.choices(list(HISTORY), weights)[0]
    _, mode, endpoint, prompt_tokens, answer_tokens = HISTORY[model]
    hour = min(23.99, max(0.0, chance.gauss(14, 4)))
    started = begin_ms + int(hour * HOUR_MS)
    prompt = int(prompt_tokens * math.exp(chance.gauss(0, 0.7)))
    answer = int(answer_tokens * math.exp(chance.gauss(0, 0.6)))
    waited = chance.choice((1, 2, 3, 3, 5, 1800))
    first = started + waited + 80 + prompt // 12
    row: dict[str, Any] = {
        "id": started.to_bytes(6, "big") + b"\x70\x00\x80" + chance.randbytes(7),
        "mode": mode,
        "endpoint": endpoint,
        "scheme": "Default",
        "key": chance.choices(KEYS, (50, 25, 15, 10))[0],
        "asked_for": "gpt-4" if model == CHAT_MODEL and chance.random() < 0.4 else model,
        "streamed": mode == "Chat" and chance.random() < 0.8,
        "leased_ms": started + waited,
        "first_byte_ms": first,
        "ended_ms": first + answer * 24,
        "prompt_tokens": prompt,
        "cached_tokens": int(prompt * chance.random() * 0.8) if mode == "Chat" else 0,
        "completion_tokens": answer,
    }
    if chance.random() < 0.012:
        status, error = chance.choice(FAILURES)
        nothing = {"prompt_tokens": 0, "cached_tokens": 0, "completion_tokens": 0}
        row |= {"status": status, "error": error, "first_byte_ms": None, **nothing}
    return a_request(started, model, **row)


# --- its life --------------------------------------------------------------------------------

LOG = (
    "slot 0: new prompt, 1843 tokens, 1216 of them from the cache",
    "slot 0: prompt done, 627 tokens in 0.31 s (2022 tokens/s)",
    "slot 0: answer done, 212 tokens in 5.09 s (41.7 tokens/s)",
    "WARNING: the context is nearly full, 31850 of 32768 tokens",
)


class House:
    """The program with its models, and who asks them."""

    def __init__(self, folder: Path) -> None:
        played = Cards(
            folder / "cards",
            [
                card("NVIDIA GeForce RTX 4060", 8188, 640, util=31, temp=52),
                card("Tesla V100-SXM2-16GB", 16384, 300, util=86, temp=67),
            ],
        )
        put_server(played.bin)
        self.zone = zone_where_it_is(HOUR)
        export = {"schedule": "0 3 1 * *", "period": "month"}
        self.program = Program(
            folder / "program",
            models(),
            env=env_of(played),
            currency="CNY",
            timezone=self.zone,
            log_level="INFO",
            export=export,
        )
        self.program.data.mkdir()
        self._now = datetime.now(ZoneInfo(self.zone))
        fill(self.program.usage_db, self._now)
        self._is_over = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        program = self.program.start()
        for name, limits in KEYS_MADE.items():
            made = program.post("/api/keys", {"name": name, **limits}).json()
            program.headers = {"X-Api-Key": made["secret"]}  # of the last one, which may do all
        program.post(f"/api/models/{BROKEN}/start?wait=1")
        for name in (CHAT_MODEL, EMBEDDING, SMALL):
            program.command(name, "start")
        for line in LOG:
            program.ask(CHAT_MODEL, {"log": line, "chunks": 40})
        last_month = (self._now.replace(day=1) - timedelta(days=1)).strftime("%Y-%m")
        program.post("/api/exports?wait=1", {"month": last_month})
        day = (self._now - timedelta(days=1)).strftime("%Y-%m-%d")
        program.post("/api/exports?wait=1", {"day": day})
        self._keep(0.024)
        self._keep(0.031)
        self._ask(lambda: self._embed(delay=3600))
        chance = random.Random(1)
        self._ask(lambda: self._converse(chance))
        # It waits for those answers to end, which they do not.
        self._ask(lambda: program.post(CHAT, chat(CODER), timeout=None))

    def _ask(self, ask: Any) -> None:
        def until_the_end() -> None:
            while not self._is_over.is_set():
                with contextlib.suppress(requests.RequestException, OSError):
                    ask()
                self._is_over.wait(0.5)

        thread = threading.Thread(target=until_the_end, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _keep(self, interval: float) -> None:
        """An answer that goes on for as long as the house stands."""
        body = chat(CHAT_MODEL, {"chunks": 100_000, "interval": interval}, stream=True)

        def ask() -> None:
            with self.program.post(CHAT, body, stream=True, timeout=None) as answer:
                for _ in answer.iter_content(None):
                    if self._is_over.is_set():
                        return

        self._ask(ask)

    def _converse(self, chance: random.Random) -> None:
        """Short answers, a few at a time and then none for a while."""
        for _ in range(chance.randint(1, 4)):
            chunks = chance.randint(60, 200)
            fake = {"chunks": chunks, "interval": 0.012, "log": chance.choice(LOG[:3])}
            body = chat("gpt-3.5-turbo", fake, stream=True)
            with self.program.post(CHAT, body, stream=True) as answer:
                answer.content  # noqa: B018 - reads it
        self._embed()
        self._is_over.wait(chance.random() * 5)

    def _embed(self, **fake: Any) -> None:
        body = {"model": EMBEDDING, "input": "The cards are hot today.", "fake": fake}
        self.program.post("/v1/embeddings", body, timeout=None)

    def end(self) -> None:
        self._is_over.set()
        with contextlib.redirect_stdout(io.StringIO()):  # it shows what the program has printed
            self.program.finish()


@contextlib.contextmanager
def services() -> Iterator[House]:
    with tempfile.TemporaryDirectory(prefix="llm-manager-house-") as folder:
        built = House(Path(folder))
        try:
            built.start()
            yield built
        finally:
            built.end()


# --- pictures --------------------------------------------------------------------------------


def take(
    browser: Browser,
    zone: str,
    page_name: str,
    file: str,
    size: tuple[int, int] = WIDE,
    **chosen: str,
) -> None:
    """One picture of a page as it is; `chosen` are the cookies of theme and language."""
    width, height = size
    viewport = {"width": width, "height": height}
    with browser.new_context(viewport=viewport, locale="en-GB", timezone_id=zone) as context:
        cookies = {"theme": "light", "language": "en", **chosen}
        context.add_cookies(
            [{"name": name, "value": value, "url": ADDRESS} for name, value in cookies.items()]
        )
        page = context.new_page()
        page.goto(f"{ADDRESS}{ADDRESSES.get(page_name, f'/{page_name}')}")
        page.wait_for_selector("#connection[data-state=on]")
        if page_name == "playground":
            talk(page)
        page.wait_for_timeout(3000)  # a reading of the cards and a few seconds of speeds
        save(page.screenshot(), OUT / f"{file}.png")


ADDRESSES = {
    "overview": "/",
    "models": f"/models?log={CHAT_MODEL}",
    "usage": "/usage?range=30d",
    "logs": f"/logs?of=model%2F{CHAT_MODEL}",
}


QUESTION = "Two cards, 8 and 16 GB: what should I run on them?"
ANSWER = (
    "A 14B model in 6 bits takes about 12 GB: it fits the larger card with room for a long context."
    " On the smaller one, keep a 4B model and an embedding model side by side."
)


def talk(page: Page) -> None:
    """Has a model of the house answer in the playground."""

    def play(route: Route) -> None:
        body = route.request.post_data_json | {"fake": {"text": ANSWER, "interval": 0.024}}
        route.continue_(post_data=json.dumps(body))

    page.route(f"**{CHAT}", play)
    page.select_option("#chat [name=model]", SMALL)
    page.fill("#chat [name=prompt]", QUESTION)
    page.click("#chat [data-send]")
    page.click("#chat summary")
    page.wait_for_selector("#chat [data-part=facts]:visible")


def save(picture: bytes, path: Path) -> None:
    """Writes it, in 256 colours where Pillow is there to choose them."""
    try:
        from PIL import Image
    except ImportError:
        path.write_bytes(picture)
    else:
        image = Image.open(io.BytesIO(picture)).convert("RGB")
        image.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} KB", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=WARM, help="of life before the pictures")
    parser.add_argument("--serve", action="store_true", help="take no pictures")
    arguments = parser.parse_args()
    with services() as built:
        if arguments.serve:
            print(f"The house is at {built.program.url}; Ctrl+C ends it", flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                threading.Event().wait()
            return 0
        time.sleep(arguments.seconds)
        OUT.mkdir(exist_ok=True)
        port = built.program.url.rpartition(":")[2]
        rules = f"--host-resolver-rules=MAP 127.0.0.1:8080 127.0.0.1:{port}"
        with sync_playwright() as play, launch(play, rules) as browser:
            for page_name in PAGES:
                take(browser, built.zone, page_name, page_name)
            take(browser, built.zone, "overview", "overview-dark", theme="dark")
            take(browser, built.zone, "overview", "overview-zh", language="zh")
            take(browser, built.zone, "overview", "overview-phone", PHONE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
