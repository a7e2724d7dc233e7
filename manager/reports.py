"""The read side of usage.db: sums, series, and requests page by page.

Sums come from the rollups: whole days inside of the range, hours at its edges, and the rows that
no rollup has yet. So their time depends on the range and not on how many requests there were. Only
what is shorter than an hour is summed up from the requests themselves.

Every call reads on a connection of its own, and sees the database as it was at one moment: opening
one costs a quarter of a millisecond, and a thread of the server that only once made a report holds
no memory for it.
"""

from __future__ import annotations

import itertools
import sqlite3
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import tzinfo
from pathlib import Path

from manager import calendar, latency, search
from manager.pricing import PER_UNIT
from manager.schema import ALL
from manager.search import EVERYTHING, Filters, Page, Request, Search
from manager.store import reading

_SHORT = {"10s": 10_000, "minute": 60_000}  # ms; the same ones in every zone

ROUNDS = (*_SHORT, "hour")
"""What the range of a summary can be rounded to."""

BUCKETS = (*ROUNDS, "day", "month")

MOST_BUCKETS = 1000
"""A series has no more than this, and a range that is rounded to less than an hour no more of what
it is rounded to."""

_MOST_CHOSEN = 400  # buckets, where the caller leaves them to us

_EACH = {"hour": calendar.hours, "day": calendar.days, "month": calendar.months}


class TooManyBuckets(ValueError):
    """The range has more than MOST_BUCKETS of that length."""


@dataclass
class Totals:
    """Sums over some requests and runs. Money is in billionths."""

    requests: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    estimated: int = 0  # requests whose tokens we counted
    unpriced: int = 0  # requests with tokens that no tier fits
    cost_tokens: int = 0
    cost_hours: int = 0
    run_ms: int = 0
    generated_tokens: int = 0  # completion tokens of streamed answers
    generated_ms: int = 0  # from their first byte to their end
    pending: int = 0  # requests whose cost is not known yet
    adjustments: int = 0
    first_byte: int = 0  # how long requests took, as manager/latency.py has it
    whole: int = 0

    def add(self, other: Totals) -> None:
        """Adds the other's sums to these."""
        for column in fields(self):
            sums = getattr(self, column.name) + getattr(other, column.name)
            setattr(self, column.name, sums)

    def count_times(self, started_ms: int, first_ms: int | None, ended_ms: int) -> None:
        """Counts how long a request took."""
        self.whole += latency.histogram(ended_ms - started_ms)
        if first_ms is not None:
            self.first_byte += latency.histogram(first_ms - started_ms)

    @property
    def cost(self) -> int:
        return self.cost_tokens + self.cost_hours + self.adjustments

    @property
    def cache_hit_rate(self) -> float | None:
        """The part of the prompt tokens that came from a cache; None where there are none."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else None

    @property
    def tokens_per_second(self) -> float | None:
        """How fast streamed answers came; None where there are none."""
        return self.generated_tokens * 1000 / self.generated_ms if self.generated_ms else None


@dataclass(frozen=True)
class Summary:
    """Sums over a range, which begins and ends with what it was rounded to. Times are epoch ms;
    ``groups`` is by the group's name, in its order."""

    start_ms: int
    end_ms: int
    totals: Totals
    groups: dict[str, Totals]


@dataclass(frozen=True)
class Bucket:
    """One of BUCKETS in a series, or the part of it that is in the range."""

    start_ms: int
    end_ms: int
    group: str | None
    totals: Totals


@dataclass(frozen=True)
class Series:
    """Buckets in order. Without groups all of the range, with groups those that have something in
    them."""

    start_ms: int
    end_ms: int
    bucket: str
    buckets: list[Bucket]


# Sums by the place in a series and by the group.
_Cells = dict[tuple[int, str], Totals]
_Piece = tuple[str, int, int]  # rollups of this span that start here and before there

_MOST_TIMED = 5000  # requests that are looked at where no sums have how long they took

_PAGE = 1000  # requests of those that are read one after the other

_COUNTS = (
    "requests",
    "errors",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "estimated",
    "unpriced",
    "run_ms",
    "generated_tokens",
    "generated_ms",
)

# Money in two columns: summed up it may be more than SQLite's integers hold.
_SUMS = ", ".join(
    [f"sum({column})" for column in _COUNTS]
    + [
        f"sum({column} {half} {PER_UNIT})"
        for column in ("cost_tokens", "cost_hours")
        for half in "/%"
    ]
)

# One request as a row of rollups has it. A price without tiers wants nothing for tokens: what it
# prices is not unpriced.
_REQUEST = """
    started_ms, model, key, mode, scheme,
    1 AS requests, status >= 400 AS errors,
    prompt_tokens, cached_tokens, completion_tokens, estimated,
    cost IS 0 AND tier IS NULL AND prompt_tokens + completion_tokens > 0 AND
        (price IS NULL OR price IN (SELECT id FROM prices WHERE tiers != '[]')) AS unpriced,
    0 AS run_ms,
    iif(streamed AND first_byte_ms IS NOT NULL, completion_tokens, 0) AS generated_tokens,
    iif(streamed AND first_byte_ms IS NOT NULL, max(ended_ms - first_byte_ms, 0), 0)
        AS generated_ms,
    ifnull(cost, 0) AS cost_tokens, 0 AS cost_hours, cost IS NULL AS pending
"""

# One step of the index a model, not one a row.
_MODELS = """
    WITH RECURSIVE
        asked(model) AS (
            SELECT min(model) FROM requests
            UNION ALL
            SELECT (SELECT min(model) FROM requests WHERE model > asked.model) FROM asked
            WHERE asked.model IS NOT NULL
        ),
        ran(model) AS (
            SELECT min(model) FROM runs
            UNION ALL
            SELECT (SELECT min(model) FROM runs WHERE model > ran.model) FROM ran
            WHERE ran.model IS NOT NULL
        )
    SELECT model FROM asked WHERE model IS NOT NULL
    UNION SELECT model FROM ran WHERE model IS NOT NULL
    UNION SELECT model FROM rollups WHERE span = 'day' AND key = '*'
    UNION SELECT model FROM prices
    UNION SELECT model FROM adjustments
    ORDER BY model
"""


class Reports:
    """Reads usage.db. Every method raises sqlite3.Error where that cannot be read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def summary(
        self,
        start_ms: int,
        end_ms: int,
        zone: tzinfo,
        filters: Filters = EVERYTHING,
        group: str | None = None,
        unit: str = "hour",
    ) -> Summary:
        """Sums over the hours that have a part in the range; with `group` for each of those that
        have something in them, too.

        `unit` is one of ROUNDS. With a shorter one than an hour the sums are of requests only, of
        no run time and no adjustments. Raises TooManyBuckets where the range has too many of that.
        """
        start_ms, end_ms = _rounded(start_ms, end_ms, zone, unit)
        cells = self._cells([start_ms, end_ms], zone, filters, group, unit)
        totals = Totals()
        for part in cells.values():
            totals.add(part)
        groups = {name: cells[place, name] for place, name in sorted(cells)}
        return Summary(start_ms, end_ms, totals, {} if group is None else groups)

    def series(
        self,
        start_ms: int,
        end_ms: int,
        zone: tzinfo,
        filters: Filters = EVERYTHING,
        bucket: str | None = None,
        group: str | None = None,
    ) -> Series:
        """The same by one of BUCKETS; where `bucket` is None, by the shortest from an hour on of
        which there are not too many. Raises TooManyBuckets."""
        start_ms, end_ms = _rounded(start_ms, end_ms, zone, bucket)
        bucket = bucket or _fitting(start_ms, end_ms)
        borders = _borders(start_ms, end_ms, zone, bucket)
        cells = self._cells(borders, zone, filters, group, bucket)
        keys = [(place, "") for place in range(len(borders) - 1)]
        if group is not None:
            keys = sorted(cells)
        buckets = [
            Bucket(
                borders[place],
                borders[place + 1],
                None if group is None else name,
                cells.get((place, name), Totals()),
            )
            for place, name in keys
        ]
        return Series(start_ms, end_ms, bucket, buckets)

    def requests(
        self, filters: Filters, sought: Search, limit: int, before: bytes | None = None
    ) -> Page:
        """At most `limit` requests, newest first; `before` is the last page's ``next``."""
        with reading(self._path) as connection:
            return search.page(connection, filters, sought, limit, before)

    def each_request(self, filters: Filters, sought: Search) -> Iterator[Request]:
        """All of them, newest first. No look at the database lasts longer than a page, so that
        its journal can be cleared meanwhile however slowly they are taken."""
        before: bytes | None = None
        while True:
            page = self.requests(filters, sought, _PAGE, before)
            yield from page.requests
            before = page.next
            if before is None:
                return

    def request(self, number: bytes) -> Request | None:
        """The request with this id."""
        with reading(self._path) as connection:
            return search.one(connection, number)

    def models(self) -> list[str]:
        """The names of all models that there is something of, those of the config or not."""
        with reading(self._path) as connection:
            rows = connection.execute(_MODELS).fetchall()
        return [name for (name,) in rows]

    def _cells(
        self, borders: list[int], zone: tzinfo, filters: Filters, group: str | None, unit: str
    ) -> _Cells:
        """Sums by the place between two borders and by the group's name, '' without groups."""
        with reading(self._path) as connection:
            marks = dict(connection.execute("SELECT name, value FROM marks"))
            billed_seq = int(marks.get("billed_seq", 0))
            sums = _Sums(connection, filters, group, billed_seq)
            if unit in _SHORT:
                sums.add_rows(borders)
                sums.add_latencies_of_rows(borders, billed_only=False)
                return sums.cells
            has_days = marks.get("timezone") == str(zone)  # else they are another zone's
            for place, (low, high) in enumerate(itertools.pairwise(borders)):
                for piece in _pieces(low, high, zone) if has_days else [("hour", low, high)]:
                    sums.add_rollups(place, piece)
            if not sums.has_latencies:
                sums.add_latencies_of_rows(borders, billed_only=True)
            sums.add_live(borders)
            sums.add_adjustments(borders)
        return sums.cells


class _Sums:
    """Collects what is in some ranges, by the place of the range and the group's name."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        filters: Filters,
        group: str | None,
        billed_seq: int,
    ) -> None:
        self.cells: _Cells = {}
        self._billed_seq = billed_seq
        self._connection = connection
        self._group = "''" if group is None else group
        self._conditions, self._values = search.conditions(filters)
        self._filters = filters
        asked = {name for name in search.GROUPS if getattr(filters, name) is not None}
        asked |= set() if group is None else {group}
        # Each request is in a sum of its model, in one of its key, and in one of both.
        if "key" not in asked:
            self._kept = f" AND key = '{ALL}'"
        elif asked == {"key"}:
            self._kept = f" AND mode = '{ALL}'"
        else:
            self._kept = f" AND key != '{ALL}' AND mode != '{ALL}'"
        # Of both there are none.
        self.has_latencies = asked <= {"key"} or "key" not in asked
        # In the order of the rollups' key where that can be: what is not sorted takes half as long.
        self._grouped = {None: "", "model": "GROUP BY start_ms, model"}.get(group, "GROUP BY 1")

    def add_rollups(self, place: int, piece: _Piece) -> None:
        where = f"WHERE span = ? AND start_ms >= ? AND start_ms < ?{self._kept}{self._conditions}"
        for name, *sums in self._rows(
            f"SELECT {self._group}, {_SUMS} FROM rollups {where} {self._grouped}", piece
        ):
            if sums[0] is not None:  # the sum of nothing, where nothing is grouped
                self._add(place, name, sums)
        for name, first, whole in self._rows(
            f"SELECT {self._group}, first, whole FROM latencies {where}", piece
        ):
            totals = self._totals(place, name)
            totals.first_byte += latency.unpack(first)
            totals.whole += latency.unpack(whole)

    def add_rows(self, borders: list[int]) -> None:
        """Adds all requests, billed or not; the borders are equally far apart. It is SQLite that
        adds them up: meanwhile others have the interpreter's lock."""
        found, values = search.every(self._filters, Search(start_ms=borders[0], end_ms=borders[-1]))
        for place, name, pending, *sums in self._connection.execute(
            f"SELECT (started_ms - ?) / ?, {self._group}, sum(pending), {_SUMS}"
            f" FROM (SELECT {_REQUEST} {found}) GROUP BY 1, 2",
            (borders[0], borders[1] - borders[0], *values),
        ):
            self._add(place, name, sums)
            self._totals(place, name).pending += pending

    def add_latencies_of_rows(self, borders: list[int], billed_only: bool) -> None:
        """Adds how long the newest requests took; `billed_only`: of those that are in the
        rollups."""
        span = Search(start_ms=borders[0], end_ms=borders[-1])
        for name, seq, started_ms, first_ms, ended_ms in search.newest(
            self._connection,
            f"{self._group}, seq, started_ms, first_byte_ms, ended_ms",
            self._filters,
            span,
            _MOST_TIMED,
        ):
            if seq <= self._billed_seq or not billed_only:
                totals = self._totals(bisect_right(borders, started_ms) - 1, name)
                totals.count_times(started_ms, first_ms, ended_ms)

    def add_live(self, borders: list[int]) -> None:
        """Adds what no rollup has yet; the worker is seconds behind, so these are few."""
        for name, started_ms, first_ms, ended_ms, streamed, cost, *counts in self._rows(
            f"SELECT {self._group}, started_ms, first_byte_ms, ended_ms, streamed, cost,"
            " status >= 400, prompt_tokens, cached_tokens, completion_tokens, estimated"
            # Not by the index of a model: all of its requests are in that.
            " FROM requests NOT INDEXED WHERE seq > ? AND started_ms >= ? AND started_ms < ?"
            f"{self._conditions}",
            (self._billed_seq, borders[0], borders[-1]),
        ):
            totals = self._totals(bisect_right(borders, started_ms) - 1, name)
            totals.pending += cost is None
            totals.cost_tokens += cost or 0
            for column, value in zip(_COUNTS, [1, *counts], strict=False):
                setattr(totals, column, getattr(totals, column) + value)
            totals.count_times(started_ms, first_ms, ended_ms)
            if first_ms is not None and streamed:
                totals.generated_tokens += counts[3]
                totals.generated_ms += max(ended_ms - first_ms, 0)

    def add_adjustments(self, borders: list[int]) -> None:
        for name, at_ms, amount in self._rows(
            f"SELECT {self._group}, at_ms, amount FROM"
            " (SELECT model, key, '' AS mode, '' AS scheme, at_ms, amount FROM adjustments)"
            f" WHERE at_ms >= ? AND at_ms < ?{self._conditions}",
            (borders[0], borders[-1]),
        ):
            self._totals(bisect_right(borders, at_ms) - 1, name).adjustments += amount

    def _add(self, place: int, name: str, sums: Sequence[int]) -> None:
        """Adds what _SUMS has found."""
        totals = self._totals(place, name)
        for column, value in zip(_COUNTS, sums, strict=False):
            setattr(totals, column, getattr(totals, column) + value)
        tokens, tokens_rest, hours, hours_rest = sums[len(_COUNTS) :]
        totals.cost_tokens += tokens * PER_UNIT + tokens_rest
        totals.cost_hours += hours * PER_UNIT + hours_rest

    def _rows(self, statement: str, values: Iterable[object]) -> sqlite3.Cursor:
        return self._connection.execute(statement, (*values, *self._values))

    def _totals(self, place: int, name: str) -> Totals:
        return self.cells.setdefault((place, name), Totals())


def _rounded(start_ms: int, end_ms: int, zone: tzinfo, unit: str | None) -> tuple[int, int]:
    """The range in what is shorter than an hour, or else in whole hours."""
    length = _SHORT.get(unit or "")
    if length is None:
        start = calendar.hour_start_ms(start_ms, zone)
        return start, max(calendar.next_hour_ms(end_ms - 1, zone), start)
    start, end = start_ms - start_ms % length, end_ms + -end_ms % length
    if end - start > MOST_BUCKETS * length:  # each request in it is looked at
        raise _too_many(unit)
    return start, end


def _fitting(start_ms: int, end_ms: int) -> str:
    hours = (end_ms - start_ms) // calendar.HOUR_MS
    if hours <= _MOST_CHOSEN:
        return "hour"
    return "day" if hours <= _MOST_CHOSEN * 24 else "month"


def _borders(start_ms: int, end_ms: int, zone: tzinfo, bucket: str) -> list[int]:
    """Where the buckets begin, and the last one's end."""
    if bucket in _SHORT:
        return list(range(start_ms, end_ms + 1, _SHORT[bucket]))
    borders = [start_ms]
    for start in _EACH[bucket](start_ms, end_ms, zone):
        if start > start_ms:
            borders.append(start)
        if len(borders) > MOST_BUCKETS:
            raise _too_many(bucket)
    return [*borders, end_ms]


def _too_many(bucket: str | None) -> TooManyBuckets:
    return TooManyBuckets(f"the range is longer than {MOST_BUCKETS} x {bucket}")


def _pieces(low: int, high: int, zone: tzinfo) -> Iterator[_Piece]:
    """Whole days, and the hours before and after them."""
    first, last = calendar.day_start_ms(low, zone), calendar.day_start_ms(high, zone)
    if first < low:
        first = calendar.next_day_ms(low, zone)
    if first >= last:
        yield "hour", low, high
        return
    for piece in (("hour", low, first), ("day", first, last), ("hour", last, high)):
        if piece[1] < piece[2]:
            yield piece
