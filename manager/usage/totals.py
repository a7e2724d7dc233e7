"""Adds up what is in some ranges of time: rollups, the rows that none has yet, adjustments."""

from __future__ import annotations

import sqlite3
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

from manager.storage import latency
from manager.storage.rollups import (
    ADDED_UP,
    ALL,
    CONTRIBUTION,
    REQUEST_SUMS,
    REQUESTS_ADDED_UP,
    Piece,
    Sums,
)
from manager.usage import request_search
from manager.usage.request_search import Filters, RequestFilter

_GROUPS = ", ".join(request_search.GROUPS)
_MAX_TIMED = 5000  # requests that are looked at where no sums have how long they took


@dataclass
class Totals(Sums):
    """Sums over some requests and runs, those that are not billed yet included."""

    pending: int = 0  # requests whose cost is not known yet
    adjustments: int = 0
    first_byte: int = 0  # how long requests took, as manager/storage/latency.py has it
    whole: int = 0

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


Cells = dict[tuple[int, str], Totals]
"""Sums by the place in a series and by the group."""


class TotalsQuery:
    """Collects what is in some ranges, by the place of the range and the group's name."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        filters: Filters,
        group: str | None,
        billed_seq: int,
    ) -> None:
        self.cells: Cells = {}  # some may be empty: what was added was taken away again
        self._billed_seq = billed_seq
        self._connection = connection
        self._group = "''" if group is None else group
        self._conditions, self._values = request_search.conditions(filters)
        self._filters = filters
        asked = {name for name in request_search.GROUPS if getattr(filters, name) is not None}
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

    def add_rollups(self, piece: Piece) -> None:
        where = f"WHERE span = ? AND start_ms >= ? AND start_ms < ?{self._kept}{self._conditions}"
        grouped = "" if self._group == "''" else "GROUP BY 1"
        if self._group == "model" and piece.span == "day":
            grouped = "GROUP BY start_ms, model"  # the table's order: not sorted, in half the time
        for name, *sums in self._rows(
            f"SELECT {self._group}, {ADDED_UP} FROM rollups {where} {grouped}", piece[:3]
        ):
            if sums[0] is not None:  # the sum of nothing, where nothing is grouped
                for place, sign in piece.places:
                    self._totals(place, name).add_found(sums, sign)
        times: dict[str, list[int]] = {}
        for name, first, whole in self._rows(
            f"SELECT {self._group}, first, whole FROM latencies {where}", piece[:3]
        ):
            histograms = times.setdefault(name, [0, 0])
            histograms[0] += latency.unpack(first)
            histograms[1] += latency.unpack(whole)
        for name, (first, whole) in times.items():
            for place, sign in piece.places:
                totals = self._totals(place, name)
                totals.first_byte += sign * first
                totals.whole += sign * whole

    def add_rows(self, borders: list[int]) -> None:
        """Adds all requests, billed or not; the borders are equally far apart. It is SQLite that
        adds them up: meanwhile others have the interpreter's lock."""
        found, values = request_search.select_all(
            self._filters, RequestFilter(start_ms=borders[0], end_ms=borders[-1])
        )
        for place, name, pending, *sums in self._connection.execute(
            f"SELECT (started_ms - ?) / ?, {self._group}, sum(pending), {REQUESTS_ADDED_UP} FROM"
            f" (SELECT started_ms, {_GROUPS}, cost IS NULL AS pending, {CONTRIBUTION} {found})"
            " GROUP BY 1, 2",
            (borders[0], borders[1] - borders[0], *values),
        ):
            totals = self._totals(place, name)
            totals.add_found(sums)
            totals.pending += pending

    def add_latencies_of_rows(self, borders: list[int], billed_only: bool) -> None:
        """Adds how long the newest requests took; `billed_only`: of those that are in the
        rollups."""
        span = RequestFilter(start_ms=borders[0], end_ms=borders[-1])
        for name, seq, started_ms, first_ms, ended_ms in request_search.newest(
            self._connection,
            f"{self._group}, seq, started_ms, first_byte_ms, ended_ms",
            self._filters,
            span,
            _MAX_TIMED,
        ):
            if seq <= self._billed_seq or not billed_only:
                totals = self._totals(bisect_right(borders, started_ms) - 1, name)
                totals.count_times(started_ms, first_ms, ended_ms)

    def add_live(self, borders: list[int]) -> None:
        """Adds what no rollup has yet; the worker is seconds behind, so these are few."""
        for name, started_ms, first_ms, ended_ms, is_pending, *sums in self._rows(
            f"SELECT {self._group}, started_ms, first_byte_ms, ended_ms, cost IS NULL,"
            f" {CONTRIBUTION}"
            # Not by the index of a model: all of its requests are in that.
            " FROM requests NOT INDEXED WHERE seq > ? AND started_ms >= ? AND started_ms < ?"
            f"{self._conditions}",
            (self._billed_seq, borders[0], borders[-1]),
        ):
            totals = self._totals(bisect_right(borders, started_ms) - 1, name)
            totals.add(Totals(**dict(zip(REQUEST_SUMS, sums, strict=True)), pending=is_pending))
            totals.count_times(started_ms, first_ms, ended_ms)

    def add_adjustments(self, borders: list[int]) -> None:
        for name, at_ms, amount in self._rows(
            f"SELECT {self._group}, at_ms, amount FROM"
            " (SELECT model, key, '' AS mode, '' AS scheme, at_ms, amount FROM adjustments)"
            f" WHERE at_ms >= ? AND at_ms < ?{self._conditions}",
            (borders[0], borders[-1]),
        ):
            self._totals(bisect_right(borders, at_ms) - 1, name).adjustments += amount

    def _rows(self, statement: str, values: Iterable[object]) -> sqlite3.Cursor:
        return self._connection.execute(statement, (*values, *self._values))

    def _totals(self, place: int, name: str) -> Totals:
        totals = self.cells.get((place, name))
        if totals is None:
            totals = self.cells[place, name] = Totals()
        return totals
