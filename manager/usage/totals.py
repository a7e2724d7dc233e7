"""Adds up what is in some ranges of time: rollups, the rows that none has yet, adjustments."""

from __future__ import annotations

import sqlite3
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from manager.billing.pricing import PER_UNIT
from manager.storage.schema import ALL
from manager.usage import latency, request_search
from manager.usage.request_search import Filters, Search

_MOST_TIMED = 5000  # requests that are looked at where no sums have how long they took

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


Cells = dict[tuple[int, str], Totals]
"""Sums by the place in a series and by the group."""

Piece = tuple[str, int, int]
"""Rollups of this span that start here and before there."""


class Sums:
    """Collects what is in some ranges, by the place of the range and the group's name."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        filters: Filters,
        group: str | None,
        billed_seq: int,
    ) -> None:
        self.cells: Cells = {}
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
        # In the order of the rollups' key where that can be: what is not sorted takes half as long.
        self._grouped = {None: "", "model": "GROUP BY start_ms, model"}.get(group, "GROUP BY 1")

    def add_rollups(self, place: int, piece: Piece) -> None:
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
        found, values = request_search.every(
            self._filters, Search(start_ms=borders[0], end_ms=borders[-1])
        )
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
        for name, seq, started_ms, first_ms, ended_ms in request_search.newest(
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
