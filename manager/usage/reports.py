"""The read side of usage.db: sums, series, and requests page by page.

Sums come from the rollups, and from the rows that no rollup has yet. The rollups are in UTC: days,
and hours and quarters of an hour at the borders, whatever the time zone. So the time
that a sum takes depends on the range and not on how many requests there were. Only what is shorter
than an hour is added up from the requests themselves.

Every call reads on a connection of its own, and sees the database as it was at one moment: opening
one costs a quarter of a millisecond, and a thread of the server that only once made a report holds
no memory for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import tzinfo
from pathlib import Path

from manager.billing import calendar
from manager.storage import RequestRow, billed_seq, read_connection, rollups
from manager.usage import request_search
from manager.usage.request_search import EVERYTHING, Filters, Page, RequestFilter
from manager.usage.totals import Cells, Totals, TotalsQuery

_SHORT = {"10s": 10_000, "minute": 60_000}  # ms; the same ones in every zone

ROUNDING_UNITS = (*_SHORT, "hour")
"""What the range of a summary can be rounded to."""

BUCKETS = (*ROUNDING_UNITS, "day", "month")

MAX_BUCKETS = 1000
"""A series has no more than this, and a range that is rounded to less than an hour no more of what
it is rounded to."""

_MAX_CHOSEN = 400  # buckets, where the caller leaves them to us

_EACH = {"hour": calendar.hours, "day": calendar.days, "month": calendar.months}


class TooManyBuckets(ValueError):
    """The range has more than MOST_BUCKETS of that length."""


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


_PAGE = 1000  # requests of those that are read one after the other

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
        cells = self._cells([start_ms, end_ms], filters, group, unit)
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
        cells = self._cells(borders, filters, group, bucket)
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
        self, filters: Filters, sought: RequestFilter, limit: int, before: bytes | None = None
    ) -> Page:
        """At most `limit` requests, newest first; `before` is the last page's ``next``."""
        with read_connection(self._path) as connection:
            return request_search.page(connection, filters, sought, limit, before)

    def each_request(self, filters: Filters, sought: RequestFilter) -> Iterator[RequestRow]:
        """All of them, newest first. No look at the database lasts longer than a page, so that
        its journal can be cleared meanwhile however slowly they are taken."""
        before: bytes | None = None
        while True:
            page = self.requests(filters, sought, _PAGE, before)
            yield from page.requests
            before = page.next
            if before is None:
                return

    def request(self, number: bytes) -> RequestRow | None:
        """The request with this id."""
        with read_connection(self._path) as connection:
            return request_search.get(connection, number)

    def models(self) -> list[str]:
        """The names of all models that there is something of, those of the config or not."""
        with read_connection(self._path) as connection:
            rows = connection.execute(_MODELS).fetchall()
        return [name for (name,) in rows]

    def _cells(self, borders: list[int], filters: Filters, group: str | None, unit: str) -> Cells:
        """Sums by the place between two borders and by the group's name, '' without groups."""
        with read_connection(self._path) as connection:
            sums = TotalsQuery(connection, filters, group, billed_seq(connection))
            if unit in _SHORT:
                sums.add_rows(borders)
                sums.add_latencies_of_rows(borders, billed_only=False)
                return sums.cells
            for piece in rollups.pieces(borders):
                sums.add_rollups(piece)
            if not sums.has_latencies:
                sums.add_latencies_of_rows(borders, billed_only=True)
            sums.add_live(borders)
            sums.add_adjustments(borders)
        return {cell: totals for cell, totals in sums.cells.items() if not totals.is_empty()}


def _rounded(start_ms: int, end_ms: int, zone: tzinfo, unit: str | None) -> tuple[int, int]:
    """The range in what is shorter than an hour, or else in whole hours."""
    length = _SHORT.get(unit or "")
    if length is None:
        start = calendar.hour_start_ms(start_ms, zone)
        return start, max(calendar.next_hour_ms(end_ms - 1, zone), start)
    start, end = start_ms - start_ms % length, end_ms + -end_ms % length
    if end - start > MAX_BUCKETS * length:  # each request in it is looked at
        raise _too_many(unit)
    return start, end


def _fitting(start_ms: int, end_ms: int) -> str:
    hours = (end_ms - start_ms) // calendar.HOUR_MS
    if hours <= _MAX_CHOSEN:
        return "hour"
    return "day" if hours <= _MAX_CHOSEN * 24 else "month"


def _borders(start_ms: int, end_ms: int, zone: tzinfo, bucket: str) -> list[int]:
    """Where the buckets begin, and the last one's end."""
    if bucket in _SHORT:
        return list(range(start_ms, end_ms + 1, _SHORT[bucket]))
    borders = [start_ms]
    for start in _EACH[bucket](start_ms, end_ms, zone):
        if start > start_ms:
            borders.append(start)
        if len(borders) > MAX_BUCKETS:
            raise _too_many(bucket)
    return [*borders, end_ms]


def _too_many(bucket: str | None) -> TooManyBuckets:
    return TooManyBuckets(f"the range is longer than {MAX_BUCKETS} x {bucket}")
