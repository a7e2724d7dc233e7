"""Pictures of every page for the docs: `make screenshots` writes docs/pages/*.png.

It runs the program with simulated cards, models, clients and a month of requests. Needs Chromium.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import platform
import random
import re
import shlex
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import requests  # noqa: E402
from gguf import GGMLQuantizationType  # noqa: E402
from PIL import Image  # noqa: E402
from playwright.sync_api import Page, Route, sync_playwright  # noqa: E402

from routes.pages.views import PAGES  # noqa: E402
from tests.support.browser import Reader, launch_chromium  # noqa: E402
from tests.support.cards import Cards, card  # noqa: E402
from tests.support.gguf_files import write_model  # noqa: E402
from tests.support.program import CHAT, FAKE, Program, chat, env_of, on, scheme  # noqa: E402
from tests.support.usage_rows import a_request, add_run, new_store  # noqa: E402

OUT = ROOT / "docs" / "pages"
WIDE, PHONE = {"width": 1280, "height": 1180}, {"width": 390, "height": 844}
DAYS = 30
HOUR_MS = 3_600_000
WARM_SECONDS = 60.0  # of traffic before the pictures
LOCAL_HOUR = 17  # in the time zone of the pictures, so that the day has something to show

LARGE, SMALL, EMBEDDING, RERANKER = "Qwen3-14B", "Qwen3-4B", "BGE-M3", "BGE-Reranker-v2"
CODER, DUAL, BROKEN = "Qwen3-Coder-30B", "Llama-3.3-70B", "Gemma-3-27B"
RTX, V100 = "rtx 4060", "v100"
KEYS: dict[str, dict[str, Any]] = {
    "notebook": {"owner": "Wei", "max_concurrency": 2, "budget": {"amount": "5", "period": "day"}},
    "agents": {"owner": "Nightly jobs", "requests_per_minute": 120, "models": [LARGE, CODER]},
    "workstation": {"owner": "Lab 3", "priority": 5},
}
LARGE_TIERS = [
    {"max_input": 32000, "input": "2.4", "output": "9.6", "support_cache": True},
    {"min_input": 32000, "input": "4.8", "output": "14.4", "support_cache": True},
]
SERVER = "llama-server"
FAKE_COMMAND = [sys.executable, str(FAKE)]


def models() -> dict[str, Any]:
    broken = scheme({V100: 15400})
    out_of_memory = 'echo "ggml_cuda: allocating 15384.00 MiB"; echo "out of memory" >&2; exit 1'
    broken["command"] = ["sh", "-c", out_of_memory]
    tiers = [{"input": "0.5", "output": "2", "support_cache": True, "cache_read": "0.1"}]
    prompts = {"tiers": [{"input": "0.2", "output": "0"}]}
    entries = {
        LARGE: on(
            V100, 12000, "--boot", 2, aliases=["gpt-4", "qwen"], price={"tiers": LARGE_TIERS}
        ),
        SMALL: on(RTX, 5000, "--boot", 1, aliases=["gpt-3.5-turbo"], price={"tiers": tiers}),
        CODER: on(V100, 15000, price={"per_hour": "0.9"}),
        DUAL: {"Both": scheme({RTX: 7200, V100: 15800}), "V100": scheme({V100: 16000})},
        BROKEN: {"V100": broken, "price": {"per_hour": "0.8"}},
        EMBEDDING: on(RTX, 1500, "--mode", "Embedding", mode="Embedding", price=prompts),
        RERANKER: on(RTX, 1200, "--mode", "Reranker", mode="Reranker", price=prompts),
    }
    for name, entry in entries.items():  # the config is in a picture
        for value in entry.values():
            if isinstance(value, dict) and value.get("command", [])[:2] == FAKE_COMMAND:
                value["command"][:2] = [SERVER, "-m", f"/models/{name.lower()}-q6_k.gguf"]
    return entries


# --- a month of requests ----------------------------------------------------------------------

# By model: its share of the requests, its mode and endpoint, tokens of prompts and completions.
HISTORY = {
    LARGE: (40, "Chat", CHAT, 1800, 420),
    SMALL: (22, "Chat", CHAT, 600, 180),
    EMBEDDING: (20, "Embedding", "/v1/embeddings", 900, 0),
    CODER: (9, "Chat", CHAT, 5200, 700),
    RERANKER: (6, "Reranker", "/v1/rerank", 2400, 0),
}


def write_history(path: Path, now: datetime) -> None:
    """Requests and runs up to this moment: the same ones whenever it is."""
    store = new_store(path)
    first = (now - timedelta(days=DAYS)).replace(hour=0, minute=0, second=0, microsecond=0)
    now_ms = now.timestamp() * 1000
    rows = []
    for day in range(DAYS + 1):
        rng = random.Random(day)
        begin = first + timedelta(days=day)
        begin_ms = int(begin.timestamp() * 1000)
        count = rng.randint(150, 260) if begin.weekday() < 5 else rng.randint(50, 90)
        rows += sorted(_request(rng, begin_ms) for _ in range(count))
        for number, model in enumerate((LARGE, CODER, SMALL)):
            ready = begin_ms + (7 + number) * HOUR_MS
            ended = ready + (11 - 3 * number) * HOUR_MS
            if ended < now_ms:
                add_run(store, f"{day:02}-{number}", ready, ended, model)
    store.add_requests([row for row in rows if row.ended_ms < now_ms])
    store.close()


def _request(rng: random.Random, begin_ms: int) -> Any:
    model = rng.choices(list(HISTORY), [share for share, *_ in HISTORY.values()])[0]
    _, mode, endpoint, prompt_tokens, completion_tokens = HISTORY[model]
    started = begin_ms + int(min(23.99, max(0.0, rng.gauss(14, 4))) * HOUR_MS)
    prompt = int(prompt_tokens * math.exp(rng.gauss(0, 0.7)))
    completion = int(completion_tokens * math.exp(rng.gauss(0, 0.6)))
    leased = started + rng.choice((1, 2, 3, 3, 5, 1800))
    first = leased + 80 + prompt // 12
    row: dict[str, Any] = {
        "mode": mode,
        "endpoint": endpoint,
        "key": rng.choices(("agents", "workstation", "notebook", ""), (50, 25, 15, 10))[0],
        "streamed": mode == "Chat",
        "leased_ms": leased,
        "first_byte_ms": first,
        "ended_ms": first + completion * 24,
        "prompt_tokens": prompt,
        "cached_tokens": int(prompt * rng.random() * 0.8) if mode == "Chat" else 0,
        "completion_tokens": completion,
    }
    if rng.random() < 0.012:
        error = "upstream_error: the model's server closed the connection"
        row |= {"status": 502, "error": error, "first_byte_ms": None}
    return a_request(started, model, **row)


# --- the program and its clients --------------------------------------------------------------

LOG = (
    "slot 0: prompt done, 627 tokens in 0.31 s (2022 tokens/s)",
    "slot 0: answer done, 212 tokens in 5.09 s (41.7 tokens/s)",
    "WARNING: the context is nearly full, 31850 of 32768 tokens",
)


def write_files(folder: Path) -> None:
    """GGUFs of the form of well-known models."""
    folder.mkdir()
    form = {"layers": 36, "width": 4096, "heads": 32, "kv_heads": 8, "head": 128}
    extra = {"general.name": "Qwen3 8B", "qwen3.context_length": 40960}
    write_model(
        folder / "Qwen3-8B-Q4_K_M.gguf",
        "qwen3",
        **form,
        feed_forward=12288,
        tokens=151_936,
        kind=GGMLQuantizationType.Q4_K,
        extra=extra,
    )


@contextlib.contextmanager
def busy_program() -> Iterator[Program]:
    """The program with a history, running models and clients."""
    with tempfile.TemporaryDirectory(prefix="llm-manager-") as name:
        folder = Path(name)
        rtx = card("NVIDIA GeForce RTX 4060", 8188, 640, util=31, temp=52)
        cards = Cards(
            folder / "cards", [rtx, card("Tesla V100-SXM2-16GB", 16384, 300, util=86, temp=67)]
        )
        server = cards.bin / SERVER  # on the PATH of the models
        command = " ".join(shlex.quote(part) for part in FAKE_COMMAND)
        server.write_text(f'#!/bin/sh\nshift 2\nexec {command} "$@"\n')
        server.chmod(0o755)
        hours_ahead = (LOCAL_HOUR - datetime.now(timezone.utc).hour + 9) % 24 - 9
        zone = f"Etc/GMT{-hours_ahead:+d}"  # these have their signs the other way round
        gguf = folder / "models"
        write_files(gguf)
        program = Program(
            folder / "program",
            models(),
            env=env_of(cards),
            models_dir=[str(gguf)],
            timezone=zone,
            export={"schedule": "0 3 1 * *", "period": "month"},
        )
        program.data.mkdir()
        now = datetime.now(ZoneInfo(zone))
        write_history(program.usage_db, now)
        program.start()
        is_over = threading.Event()
        try:
            _prepare(program, now)
            _start_clients(program, is_over)
            yield program
        finally:
            is_over.set()
            with contextlib.redirect_stdout(io.StringIO()):  # it prints the program's output
                program.finish()


def _prepare(program: Program, now: datetime) -> None:
    for name, fields in KEYS.items():
        program.headers = {"X-Api-Key": program.add_key(name, **fields)}  # the last one may do all
    program.post(f"/api/models/{BROKEN}/start?wait=1")
    for name in (LARGE, EMBEDDING, SMALL):
        program.command(name, "start")
    program.ask(LARGE, {"log": "\n".join(LOG), "chunks": 40})
    price = {"per_hour": "0.8", "tiers": LARGE_TIERS}
    program.request("PUT", f"/api/models/{LARGE}/price", json=price)
    month = (now.replace(day=1) - timedelta(days=1)).strftime("%Y-%m")
    program.post("/api/exports?wait=1", {"month": month})


def _start_clients(program: Program, is_over: threading.Event) -> None:
    rng = random.Random(1)

    def read(body: dict[str, Any]) -> None:
        with program.post(CHAT, body, stream=True, timeout=None) as answer:
            for _ in answer.iter_content(None):
                if is_over.is_set():
                    return

    def embed(**fake: Any) -> None:
        body = {"model": EMBEDDING, "input": "The cards are hot today.", "fake": fake}
        program.post("/v1/embeddings", body, timeout=None)

    def converse() -> None:
        fake = {"chunks": rng.randint(60, 200), "interval": 0.012, "log": rng.choice(LOG[:2])}
        read(chat("gpt-3.5-turbo", fake, stream=True))
        embed()
        is_over.wait(rng.random() * 3)

    def repeat(act: Callable[[], None]) -> None:
        while not is_over.is_set():
            with contextlib.suppress(requests.RequestException, OSError):
                act()
            is_over.wait(0.5)

    endless = chat(LARGE, {"chunks": 100_000, "interval": 0.024}, stream=True)
    for act in (
        lambda: read(endless),
        lambda: read(endless),
        lambda: embed(delay=3600),
        converse,
        lambda: read(chat(CODER)),  # waits for the memory of models whose answers do not end
    ):
        threading.Thread(target=repeat, args=(act,), daemon=True).start()


# --- pictures ---------------------------------------------------------------------------------

PATHS = {"overview": "/", "models": f"/models?log={LARGE}", "usage": "/usage?range=30d"}
ANSWER = "A 14B model in 6 bits on the larger one; on the other, a 4B model and one for embeddings."


HIDE_FOLDER = """() => {
  const entry = document.querySelector("dialog textarea");
  entry.value = entry.value.replace(/\\/\\w+\\/llm-manager-\\w+/, "/srv");
}"""


def hide_machine(route: Route) -> None:
    """Takes the names of the machine that the pictures are taken on out of an answer."""
    answer = route.fetch()
    text = answer.text().replace(f" {platform.release()}", "").replace(platform.node(), "lab")
    route.fulfill(response=answer, body=re.sub(r"/\w+/llm-manager-\w+", "/srv/llm-manager", text))


def chat_on(page: Page) -> None:
    """Has a model answer in the playground."""

    def with_answer(route: Route) -> None:
        body = route.request.post_data_json | {"fake": {"text": ANSWER, "interval": 0.024}}
        route.continue_(post_data=json.dumps(body))

    page.route(f"**{CHAT}", with_answer)
    page.select_option("#chat [name=model]", SMALL)
    page.fill("#chat [name=prompt]", "Two cards, 8 and 16 GB: what should I run on them?")
    page.click("#chat [data-send]")
    page.click("#chat summary")
    page.wait_for_selector("#chat [data-part=facts]:visible")


def save(picture: bytes, path: Path) -> None:
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    image.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} KB", flush=True)


def main() -> int:
    pictures: list[tuple[str, str, dict[str, Any]]] = [
        *((name, name, {}) for name in PAGES),
        ("models", "add-model", {}),
        ("overview", "overview-dark", {"color_scheme": "dark"}),
        ("overview", "overview-zh", {"locale": "zh-CN"}),
        ("overview", "overview-phone", {"viewport": PHONE}),
    ]
    with busy_program() as program, sync_playwright() as playwright:
        time.sleep(WARM_SECONDS)
        zone = program.get("/api/about").json()["timezone"]
        with launch_chromium(playwright) as browser:
            for name, file, options in pictures:
                defaults = {"locale": "en-GB", "timezone_id": zone, "viewport": WIDE}
                reader = Reader(browser, program, **(defaults | options))
                for call in ("about", "config/text"):
                    reader.context.route(f"**/api/{call}", hide_machine)
                page = reader.open(PATHS.get(name, f"/{name}"))
                if name == "playground":
                    chat_on(page)
                if file == "add-model":
                    page.get_by_role("button", name="Add a model").click()
                page.wait_for_timeout(3000)  # a reading of the cards and a few seconds of speeds
                if file == "add-model":
                    page.evaluate(HIDE_FOLDER)
                save(page.screenshot(), OUT / f"{file}.png")
                reader.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
