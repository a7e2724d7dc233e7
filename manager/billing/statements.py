"""Bills: what each model and key cost on each day of a month, or on one day, as CSV.

A bill is made of the rollups of each day and of what a person has put on it. The same rows give
the same bytes. Spreadsheets open it: UTF-8 with a byte order mark, lines that end with CRLF, and no
cell that is taken for a formula.
"""

from __future__ import annotations

import csv
import io
import os
import re
import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone, tzinfo
from pathlib import Path

from manager.billing import calendar
from manager.billing.pricing import format_amount
from manager.storage import read_connection
from manager.storage.rollups import ADDED_UP, ALL, ON_BILL, Sums, pieces

# OWASP's list. The wide ones are those of Chinese keyboards, which some spreadsheets take as well.
_BEGINS_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # noqa: RUF001
_NAME = re.compile(r"bill-([0-9]{4}-[0-9]{2}(?:-[0-9]{2})?)\.csv")
_MS_PER_HOUR = 3_600_000
_SHORTEST = 1000  # billionths of an hour that are shown: 4 ms


@dataclass(frozen=True)
class Period:
    """A month or a day, as `2026-11` or `2026-11-05`."""

    text: str
    first: date
    is_month: bool

    @classmethod
    def parse(cls, text: str) -> Period:
        """Raises ValueError, which says what to write instead."""
        is_month = bool(re.fullmatch("[0-9]{4}-[0-9]{2}", text, re.ASCII))
        try:
            if not is_month and not re.fullmatch("[0-9]{4}-[0-9]{2}-[0-9]{2}", text, re.ASCII):
                raise ValueError
            first = date.fromisoformat(f"{text}-01" if is_month else text)
            if not 1970 <= first.year <= 9000:
                raise ValueError
        except ValueError:
            raise ValueError(
                f"expected a month such as 2026-11 or a day such as 2026-11-05, found {text[:40]!r}"
            ) from None
        return cls(text, first, is_month)

    @classmethod
    def last_complete(cls, kind: str, now_ms: int, zone: tzinfo) -> Period:
        """The last `month` or `day` that has ended."""
        start_of = calendar.month_start_ms if kind == "month" else calendar.day_start_ms
        return cls.of(kind, start_of(now_ms, zone) - 1, zone)

    @classmethod
    def of(cls, kind: str, ms: int, zone: tzinfo) -> Period:
        """The `month` or `day` that the moment lies in."""
        text = calendar.date_of(ms, zone).isoformat()
        return cls.parse(text[:7] if kind == "month" else text)

    def after(self) -> Period:
        """The next month, or the next day, which the zone may skip."""
        text = self._next_day().isoformat()
        return Period.parse(text[:7] if self.is_month else text)

    def before(self) -> Period:
        """The month or the day before it."""
        text = (self.first - timedelta(days=1)).isoformat()
        return Period.parse(text[:7] if self.is_month else text)

    def _next_day(self) -> date:
        if self.is_month:
            return (self.first.replace(day=28) + timedelta(days=4)).replace(day=1)
        return self.first + timedelta(days=1)

    @property
    def file(self) -> str:
        return f"bill-{self.text}.csv"

    def bounds_ms(self, zone: tzinfo) -> tuple[int, int]:
        """Its first moment, and that of what follows it. Raises ValueError for a day that the zone
        has skipped."""
        start_ms, end_ms = _start_ms(self.first, zone), _start_ms(self._next_day(), zone)
        if start_ms >= end_ms:
            raise ValueError(f"there is no {self.text} in {zone}")
        return start_ms, end_ms


COLUMNS = (
    *("date", "model", "key", *ON_BILL, "hours"),
    *("cost_tokens", "cost_hours", "adjustments", "cost", "currency"),
)


@dataclass
class _Line(Sums):
    """What a model and key cost on a day."""

    adjustments: int = 0


def render_csv(
    connection: sqlite3.Connection, period: Period, zone: tzinfo, currency: str
) -> bytes:
    """The bill. Everything of the period has to be in the rollups. Raises ValueError for a day
    that the zone has skipped; sqlite3.Error."""
    lines = _lines(connection, period, zone)
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\r\n")
    rows.writerow(COLUMNS)
    for (day, model, key), line in sorted(lines.items()):
        rows.writerow(
            [
                day,
                escape_csv_cell(model),
                escape_csv_cell(key),
                *_cells(line),
                escape_csv_cell(currency),
            ]
        )
    total = _Line()
    for line in lines.values():
        total.add(line)
    rows.writerow(["total", "", "", *_cells(total), escape_csv_cell(currency)])
    return text.getvalue().encode("utf-8-sig")


def is_empty(path: Path, period: Period, zone: tzinfo) -> bool:
    """Whether the bill, made from the file as it is, would have nothing on it. Raises as `make`."""
    with read_connection(path) as connection:
        return not _lines(connection, period, zone)


def directory(chosen: Path | None, data_dir: Path) -> Path:
    """Where bills are written: the folder that the config names, or one in the data folder."""
    return chosen or data_dir / "exports"


def write(folder: Path, period: Period, bill: bytes, as_of_ms: int | None = None) -> Path:
    """Writes it under its name, whole or not at all, in place of an earlier one; dated ``as_of_ms``
    (epoch), else now. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / period.file
    part = folder / f".{period.file}.part"
    try:
        with part.open("wb") as file:
            file.write(bill)
            file.flush()
            os.fsync(file.fileno())
        if as_of_ms is not None:
            os.utime(part, ns=(as_of_ms * 1_000_000, as_of_ms * 1_000_000))
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    return path


def period_of(name: str) -> Period | None:
    """The period of a bill's file name; None for any other name, such as one with a path."""
    found = _NAME.fullmatch(name)
    if not found:
        return None
    try:
        return Period.parse(found[1])
    except ValueError:
        return None


def list_files(folder: Path) -> list[Path]:
    """The bills in the folder, the latest period first."""
    if not folder.is_dir():
        return []
    found = (path for path in folder.iterdir() if period_of(path.name) and path.is_file())
    return sorted(found, reverse=True)


def is_made(path: Path, period: Period, zone: tzinfo, now_ms: int | None = None) -> bool:
    """Whether the period's bill is there, and is dated after the period's end: one that somebody
    asked for before that, or before all of it was recorded, is of a part. One from after `now_ms`
    (epoch) was made before a clock was set back, and may be of a part too. Raises OSError;
    ValueError for a day that the zone has skipped."""
    _, end_ms = period.bounds_ms(zone)
    try:
        made_ms = path.stat().st_mtime_ns // 1_000_000
    except FileNotFoundError:
        return False
    return made_ms >= end_ms and (now_ms is None or made_ms <= now_ms)


def _lines(
    connection: sqlite3.Connection, period: Period, zone: tzinfo
) -> dict[tuple[str, str, str], _Line]:
    start_ms, end_ms = period.bounds_ms(zone)
    lines: dict[tuple[str, str, str], _Line] = defaultdict(_Line)
    starts = list(calendar.days(start_ms, end_ms, zone))
    dates = [calendar.date_of(day_ms, zone).isoformat() for day_ms in starts]
    for piece in pieces([*starts, end_ms]):
        for model, key, *sums in connection.execute(
            f"SELECT model, key, {ADDED_UP} FROM rollups"
            " WHERE span = ? AND start_ms >= ? AND start_ms < ? AND key != ? AND mode != ?"
            " GROUP BY model, key",
            (*piece[:3], ALL, ALL),
        ):
            for place, sign in piece.places:
                lines[dates[place], model, key].add_found(sums, sign)
    for at_ms, model, key, amount in connection.execute(
        "SELECT at_ms, model, key, amount FROM adjustments WHERE at_ms >= ? AND at_ms < ?",
        (start_ms, end_ms),
    ):
        day = calendar.date_of(at_ms, zone).isoformat()
        lines[day, model, key].adjustments += amount
    return {who: line for who, line in lines.items() if not line.is_empty()}


def _start_ms(day: date, zone: tzinfo) -> int:
    """When the date begins, or the next one where the zone has skipped it."""
    midnight = datetime(day.year, day.month, day.day, tzinfo=timezone.utc)
    # Every zone is within a day of UTC.
    at_ms = calendar.day_start_ms((int(midnight.timestamp()) - 2 * 86_400) * 1000, zone)
    while calendar.date_of(at_ms, zone) < day:
        at_ms = calendar.next_day_ms(at_ms, zone)
    return at_ms


def _cells(line: _Line) -> Iterator[object]:
    yield from (getattr(line, name) for name in ON_BILL)
    yield format_amount(_hours(line.run_ms))
    cost = line.cost_tokens + line.cost_hours + line.adjustments
    yield from map(format_amount, (line.cost_tokens, line.cost_hours, line.adjustments, cost))


def _hours(run_ms: int) -> int:
    """In billionths of an hour, rounded to what is shown."""
    per_shown = _MS_PER_HOUR * _SHORTEST
    return (2 * run_ms * 1_000_000_000 + per_shown) // (2 * per_shown) * _SHORTEST


def escape_csv_cell(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(_BEGINS_FORMULA) else text
