"""The day that docs/billing.md works out by hand: the page, the database and the bill agree."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flask.testing import FlaskClient

import routes
from jobs import billing, run_hours
from jobs.tasks import TaskRunner, WorkerSettings
from manager.billing import calendar
from manager.billing.price_versions import PriceBook
from manager.billing.statements import Period
from manager.clock import Clock
from manager.config import loader
from manager.config.settings import Config
from manager.storage import maintenance, runs
from manager.storage.rows import Run
from manager.storage.store import Store
from manager.usage.reports import Reports
from routes import app as app_module
from routes.api import prices, usage
from routes.http.slots import Slots
from tests.support.authorization import as_admin, unlocked
from tests.support.usage_rows import a_request, add_request, query

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "billing.md").read_text(encoding="utf-8")
MODEL = "Qwen-14B"
DAY = "2026-11-05"
ZONE = calendar.zone("Asia/Shanghai")
HEARTBEAT_MS = 30_000

# What happened, and what it costs in billionths: worked out by hand, not by the program.
# Began at, status, prompt, cached, completion tokens, the tier's place, cost.
REQUESTS = [
    ("09:21:00.000", 200, 1200, 0, 300, 0, 1_320_000),
    ("09:22:00.000", 200, 3001, 2001, 150, 0, 925_013),
    ("09:40:00.000", 200, 8000, 0, 100, 0, 5_000_000),
    ("10:05:00.000", 200, 8001, 8000, 100, 1, 8_301_000),
    ("10:14:30.000", 503, 0, 0, 0, 0, 0),
    ("11:59:59.900", 499, 100, 0, 41, 0, 142_000),
    ("12:00:00.000", 200, 2000, 0, 400, 0, 2_200_000),
]
VERSIONS = [1, 1, 1, 1, 1, 1, 2]  # by which each of them was priced

# Run, from, to, milliseconds, cost; each is in one hour and under one version.
TIMES = [
    ("1", "09:20:00.000", "10:00:00.000", 2_400_000, 800_000_000),
    ("1", "10:00:00.000", "10:10:12.341", 612_341, 204_113_667),
    ("2", "11:30:00.000", "12:00:00.000", 1_800_000, 600_000_000),
    ("2", "12:00:00.000", "12:47:30.253", 2_850_253, 1_187_605_417),
]

BILL = (
    b"\xef\xbb\xbfdate,model,key,requests,errors,prompt_tokens,cached_tokens,completion_tokens,"
    b"estimated,unpriced,hours,cost_tokens,cost_hours,adjustments,cost,currency\r\n"
    b"2026-11-05,Qwen-14B,,7,2,22302,10001,1091,1,0,"
    b"2.128498,0.017888013,2.791719084,-0.5,2.309607097,CNY\r\n"
    b"total,,,7,2,22302,10001,1091,1,0,"
    b"2.128498,0.017888013,2.791719084,-0.5,2.309607097,CNY\r\n"
)


def ms(time: str) -> int:
    """That time of the day, in Shanghai."""
    return round(datetime.fromisoformat(f"{DAY}T{time}+08:00").timestamp() * 1000)


def amount(billionths: int) -> Decimal:
    return Decimal(billionths).scaleb(-9)


def block(language: str) -> str:
    found = re.search(f"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    return found[1]


def bodies() -> list[Any]:
    """The JSON that the page's commands send: the price from noon on, and the credit."""
    return [json.loads(text) for text in re.findall(r"-d '(\{.*?\})'", PAGE, re.DOTALL)]


def table(header: str) -> list[list[str]]:
    """The cells of the page's table, numbers without their commas."""
    _, _, rest = PAGE.partition(f"\n| {header}")
    lines = rest.partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip().replace(",", "") for cell in line.split("|")[1:-1]] for line in lines]


class Example:
    """The program, without its models, and its worker, who comes often or in the evening only."""

    def __init__(self, folder: Path, worker_comes_often: bool) -> None:
        self.path = folder / "usage.db"
        self.store = Store(self.path)
        self.work = TaskRunner(
            WorkerSettings(folder, "INFO", str(ZONE), "CNY", 0, folder / "exports")
        )
        self.now_ms = ms("00:00:00.000")
        self._often = worker_comes_often
        file = folder / "config.yaml"
        file.write_text(block("yaml"), encoding="utf-8")
        self._config: Config = loader.load(file, lambda _folder: ["Chat"])
        self.client = self._serve()
        self._prices.seed_from_config(
            (model.name, model.price) for model in self._config.models.values() if model.price
        )

    def at(self, time: str) -> None:
        self.now_ms = ms(time)
        if self._often:
            self.bill()

    def bill(self) -> None:
        with closing(maintenance.connect(self.path)) as connection:
            while billing.price_new(connection):
                pass
            run_hours.bill_runs(connection, self.now_ms)

    def request(self, number: int, ended: str, **changes: Any) -> None:
        began, status, prompt, cached, completion, _, _ = REQUESTS[number - 1]
        row = a_request(
            ms(began),
            MODEL,
            status=status,
            ended_ms=ms(ended),
            prompt_tokens=prompt,
            cached_tokens=cached,
            completion_tokens=completion,
            **changes,
        )
        add_request(self.store, row)
        self.at(ended)

    def begin_run(self, run: str, started: str, ready: str) -> None:
        runs.begin(
            self.store, Run(run, MODEL, "Default", "f", 1, 1, 1.0, ms(started), None, "Chat")
        )
        runs.ready(self.store, run, ms(ready), 1, 1.0)
        self.at(ready)

    def heartbeats(self, run: str, first: str, last: str) -> None:
        for at_ms in range(ms(first), ms(last) + 1, HEARTBEAT_MS):
            runs.heartbeat(self.store, {run: at_ms})
            self.now_ms = at_ms + 1000
            if self._often:
                self.bill()

    def die(self) -> None:
        """The program is gone, and another one has the database."""
        self.store.close()
        self.store = Store(self.path)
        self.client = self._serve()

    def _serve(self) -> FlaskClient:
        clock = Clock(wall=lambda: self.now_ms / 1000)
        self._prices = PriceBook(self.store, self.path, clock)
        fleet = SimpleNamespace(
            config=self._config,
            find=lambda name: SimpleNamespace(settings=self._config.find(name)),
        )
        services: Any = SimpleNamespace(
            **unlocked(),
            fleet=fleet,
            clock=clock,
            slots=Slots(64),
            reports=Reports(self.path),
            prices=self._prices,
        )
        return as_admin(routes.create_app(services, b"secret").test_client())


@pytest.fixture(scope="module", params=[True, False], ids=["often", "in the evening"])
def example(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Example]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(app_module, "_BLUEPRINTS", (usage.blueprint, prices.blueprint))
        example = Example(tmp_path_factory.mktemp("day"), request.param)
        happen(example)
        yield example
        example.store.close()


def happen(day: Example) -> None:
    """What the page tells, in its order."""
    price_from_noon, credit = bodies()
    day.begin_run("1", "09:19:40.000", "09:20:00.000")
    day.heartbeats("1", "09:20:12.341", "09:20:42.341")
    day.request(1, "09:21:05.000")
    day.heartbeats("1", "09:21:12.341", "09:21:42.341")
    day.request(2, "09:22:04.000")
    day.heartbeats("1", "09:22:12.341", "09:39:42.341")
    day.request(3, "09:40:05.000", streamed=True)
    day.heartbeats("1", "09:40:12.341", "10:04:42.341")
    day.request(4, "10:05:06.000")
    day.heartbeats("1", "10:05:12.341", "10:10:12.341")
    day.die()  # at 10:10:40, and its model with it
    day.at("10:14:00.000")
    (open_run,) = runs.unfinished(day.store)
    runs.end_unseen(day.store, open_run.id, "found ended at the program's start")
    day.request(5, "10:14:31.000", scheme="", leased_ms=None, first_byte_ms=None, error="failed")
    assert day.client.post("/api/adjustments", json=credit).status_code == 201
    day.begin_run("2", "11:29:38.000", "11:30:00.000")
    day.heartbeats("2", "11:30:15.000", "11:44:45.000")
    day.at("11:45:00.000")
    answer = day.client.put(f"/api/models/{MODEL}/price", json=price_from_noon)
    assert (answer.status_code, answer.get_json()["warnings"]) == (200, [])
    day.heartbeats("2", "11:45:15.000", "11:59:45.000")
    day.request(7, "12:00:03.500")
    day.request(6, "12:00:04.000", streamed=True, estimated=True, error="the client disconnected")
    day.heartbeats("2", "12:00:15.000", "12:09:45.000")
    day.die()  # at 12:10, but its model lives; the next program takes over its run
    day.at("12:20:00.000")
    assert [run.id for run in runs.unfinished(day.store)] == ["2"]
    day.heartbeats("2", "12:20:30.000", "12:47:00.000")
    runs.end(day.store, "2", ms("12:47:30.253"), "idle")
    day.at("12:48:00.000")
    day.bill()


def test_each_request_costs_what_the_page_says(example: Example) -> None:
    rows = query(
        example.path,
        "SELECT started_ms, status, prompt_tokens, cached_tokens, completion_tokens, tier, cost,"
        " price FROM requests ORDER BY started_ms",
    )
    assert rows == [
        (ms(began), *rest, version)
        for (began, *rest), version in zip(REQUESTS, VERSIONS, strict=True)
    ]
    assert table("| began at") == [
        [*(str(cell) for cell in (number, *row[:5])), f"{amount(row[6]).normalize():f}"]
        for number, row in enumerate(REQUESTS, 1)
    ]


def test_each_hour_of_a_run_costs_what_the_page_says(example: Example) -> None:
    rows = query(
        example.path,
        "SELECT run, hour_ms, ms, cost FROM run_hours ORDER BY run, hour_ms",
    )
    assert rows == [
        (run, ms(start[:2] + ":00:00.000"), length, cost) for run, start, _, length, cost in TIMES
    ]
    assert table("run | from") == [
        [*(str(cell) for cell in row[:4]), f"{amount(row[4]).normalize():f}"] for row in TIMES
    ]
    assert [ms(end) - ms(start) for _, start, end, _, _ in TIMES] == [row[3] for row in TIMES]
    ends = query(example.path, "SELECT ready_ms, ended_ms, billed_ms FROM runs ORDER BY id")
    first, second = ms("10:10:12.341"), ms("12:47:30.253")
    assert ends == [(ms("09:20:00"), first, first), (ms("11:30:00"), second, second)]


def test_the_bill_is_that_of_the_page_byte_for_byte(example: Example) -> None:
    with closing(maintenance.connect(example.path)) as connection:
        path = example.work.export(connection, Period.parse(DAY), example.now_ms + 24 * 3_600_000)
    assert path.name == f"bill-{DAY}.csv"
    assert path.name in PAGE
    assert path.read_bytes() == BILL
    assert block("csv").replace("\n", "\r\n").encode("utf-8-sig") == BILL


def test_a_bill_can_be_checked_as_the_page_says(example: Example) -> None:
    asked = {"start": DAY, "end": "2026-11-06", "model": MODEL}
    answer = example.client.get("/api/usage/requests", query_string={**asked, "format": "csv"})
    header, *rows = [line.split(",") for line in answer.text.splitlines()]
    place = header.index("cost")
    assert sum(Decimal(row[place]) for row in rows) == Decimal("0.017888013")
    assert "It prints `0.017888013`" in PAGE
    answer = example.client.get("/api/usage/series", query_string={**asked, "bucket": "hour"})
    hours = answer.get_json()["buckets"]
    assert len(hours) == 24
    assert {
        number: (hour["run_seconds"], hour["cost_hours"])
        for number, hour in enumerate(hours)
        if hour["run_seconds"]
    } == {
        9: (2400, "0.8"),
        10: (612.341, "0.204113667"),
        11: (1800, "0.6"),
        12: (2850.253, "1.187605417"),
    }


def test_a_version_by_which_something_was_billed_is_not_replaced(example: Example) -> None:
    answer = example.client.put(f"/api/models/{MODEL}/price", json=bodies()[0])
    assert answer.status_code == 409
    error = answer.get_json()["error"]
    assert error["code"] == "already_billed"
    assert error["message"].endswith("can is 2026-11-05T04:47:30.253+00:00")  # 12:47:30.253
    later = {**bodies()[0], "effective_from": f"{DAY}T12:47:30.253"}
    assert example.client.put(f"/api/models/{MODEL}/price", json=later).status_code == 200


def test_the_calculations_of_the_page_are_right() -> None:
    """Each line such as `7   2,000 * 600 + 400 * 2,500 = 2,200,000`, with the page's own sign for
    times; an ellipsis cuts digits off. Those of a request come to its cost."""
    lines = re.findall(r"^(?:(\d|sum) +)?([(\d][^=\n]*) = ([-\d,.…]+)$", PAGE, re.MULTILINE)
    requests = {}
    for label, left, right in lines:
        formula = left.replace("\N{MULTIPLICATION SIGN}", "*").replace(",", "")
        assert re.fullmatch(r"[-+*/()\d. ]+", formula), left
        exact = eval(re.sub(r"[\d.]+", r"Fraction('\g<0>')", formula), {"Fraction": Fraction})
        stated = right.replace(",", "").rstrip("…")
        cut = Fraction(1, 10 ** len(stated.partition(".")[2])) if "…" in right else 0
        assert 0 <= exact - Fraction(stated) <= cut, f"{left} = {right}"
        if label.isdigit():
            requests[int(label)] = int(exact + Fraction(1, 2))
    assert len(lines) == 14
    assert requests == {number: row[6] for number, row in enumerate(REQUESTS, 1) if row[6]}
