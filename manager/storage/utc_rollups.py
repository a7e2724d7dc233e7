"""Schema 5: rollups of local hours and days become quarters of an hour, hours and days in UTC.

Quarters come from the requests and hours of runs that are still there. What an hour of the schema
before counted beyond these, of requests that were deleted since, cannot be split: it stays whole,
in the quarter that the hour began with. Like every migration that was released this one is frozen:
its statements do not follow later changes of the tables. All of it is one transaction.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable

from manager.storage import latency
from manager.storage.rollups import spread

log = logging.getLogger(__name__)

_MANY = 100_000  # requests, from which on the log says why the start takes a while
_MAX = 2**63 - 1
_UNIT = 1_000_000_000
_MONEY = ("cost_tokens", "cost_hours")
_COUNTS = (
    *("requests", "errors", "prompt_tokens", "cached_tokens", "completion_tokens", "estimated"),
    *("unpriced", "generated_tokens", "generated_ms", "run_ms"),
)
_ALL = (*_COUNTS, *_MONEY)
_WHO = "model, key, mode, scheme"
_COLUMNS = f"span, start_ms, {_WHO}, {', '.join(_ALL)}"
_EACH = "key != '*' AND mode != '*'"
# Money in two parts: a sum of integers that is too large is an error.
_ADDED_UP = ", ".join(
    [
        *(f"sum({name})" for name in _COUNTS),
        *(
            f"min(sum({name} / {_UNIT}) * {_UNIT} + sum({name} % {_UNIT}), {_MAX})"
            for name in _MONEY
        ),
    ]
)
_ADD = ", ".join(f"{name} = min({name} + excluded.{name}, {_MAX})" for name in _ALL)
_LATENCIES_ADDED_UP = "latency_sum(first), latency_sum(whole)"
# Hours of every zone begin at a quarter in UTC: the one that a quarter lies in is one of four.
_HOUR_OF = """(
    SELECT max(hours.start_ms) FROM {0} AS hours
    WHERE hours.span = 'hour' AND hours.start_ms IN
        ({0}.start_ms, {0}.start_ms - 900000, {0}.start_ms - 1800000, {0}.start_ms - 2700000)
    AND hours.model = {0}.model AND hours.key = {0}.key
    AND hours.mode = {0}.mode AND hours.scheme = {0}.scheme
)"""

_QUARTERS_OF_REQUESTS = f"""
    INSERT INTO rollups ({_COLUMNS})
    SELECT 'quarter', start_ms, {_WHO}, {_ADDED_UP} FROM (
        SELECT started_ms / 900000 * 900000 AS start_ms, {_WHO},
            1 AS requests, status >= 400 AS errors,
            prompt_tokens, cached_tokens, completion_tokens, estimated,
            cost IS 0 AND tier IS NULL AND prompt_tokens + completion_tokens > 0 AND
                (price IS NULL OR price IN (SELECT id FROM prices WHERE tiers != '[]'))
                AS unpriced,
            iif(streamed AND first_byte_ms IS NOT NULL, completion_tokens, 0) AS generated_tokens,
            iif(streamed AND first_byte_ms IS NOT NULL, max(ended_ms - first_byte_ms, 0), 0)
                AS generated_ms,
            0 AS run_ms, ifnull(cost, 0) AS cost_tokens, 0 AS cost_hours
        FROM requests WHERE seq <= :billed
    ) GROUP BY start_ms, {_WHO}
"""
_ADD_RUN_TIME = f"""
    INSERT INTO rollups (span, start_ms, {_WHO}, run_ms, cost_hours)
    VALUES ('quarter', ?, ?, '', ?, ?, ?, ?)
    ON CONFLICT DO UPDATE SET run_ms = run_ms + excluded.run_ms,
        cost_hours = cost_hours + excluded.cost_hours
"""
_STEPS = (
    # What no hour counted, such as of a model that is just being deleted, is not counted now.
    f"DELETE FROM rollups WHERE span = 'quarter' AND {_HOUR_OF.format('rollups')} IS NULL",
    f"""
    CREATE TEMP TABLE uncounted AS
    SELECT 'quarter' AS span, start_ms, {_WHO}, {_ADDED_UP} FROM (
        SELECT start_ms, {_WHO}, {", ".join(_ALL)} FROM rollups
        WHERE span = 'hour' AND {_EACH}
        UNION ALL
        SELECT {_HOUR_OF.format("rollups")}, {_WHO}, {", ".join(f"-{name}" for name in _ALL)}
        FROM rollups WHERE span = 'quarter'
    ) GROUP BY start_ms, {_WHO}
    HAVING {" OR ".join(f"sum({name}) != 0" for name in _COUNTS)}
        OR {" OR ".join(f"total({name}) != 0" for name in _MONEY)}
    """,
    f"""
    INSERT INTO rollups ({_COLUMNS}) SELECT * FROM uncounted
    WHERE true ON CONFLICT DO UPDATE SET {_ADD}
    """,
    "DELETE FROM rollups WHERE span != 'quarter'",
    f"""
    INSERT INTO rollups ({_COLUMNS})
    SELECT 'quarter', start_ms, model, '*', mode, scheme, {_ADDED_UP} FROM rollups
    GROUP BY start_ms, model, mode, scheme
    """,
    f"""
    INSERT INTO rollups ({_COLUMNS})
    SELECT 'quarter', start_ms, '*', key, '*', '*', {_ADDED_UP} FROM rollups WHERE key != '*'
    GROUP BY start_ms, key
    """,
    *(
        f"""
        INSERT INTO rollups ({_COLUMNS})
        SELECT '{span}', start_ms / {length} * {length}, {_WHO}, {_ADDED_UP}
        FROM rollups WHERE span = '{of}' GROUP BY 2, {_WHO}
        """
        for span, length, of in (("hour", 3_600_000, "quarter"), ("day", 86_400_000, "hour"))
    ),
    *(
        f"""
        INSERT INTO latencies (span, start_ms, {_WHO}, first, whole)
        SELECT 'quarter', started_ms / 900000 * 900000, {who},
            latency_histogram(first_byte_ms - started_ms), latency_histogram(ended_ms - started_ms)
        FROM requests WHERE seq <= :billed GROUP BY 2, {group}
        """
        for who, group in (
            ("model, '*', mode, scheme", "model, mode, scheme"),
            ("'*', key, '*', '*'", "key"),
        )
    ),
    f"DELETE FROM latencies WHERE span = 'quarter' AND {_HOUR_OF.format('latencies')} IS NULL",
    f"""
    INSERT INTO latencies (span, start_ms, {_WHO}, first, whole)
    SELECT 'quarter', start_ms, {_WHO}, latency_left(first, first_counted) AS first_left,
        latency_left(whole, whole_counted) AS whole_left
    FROM latencies LEFT JOIN (
        SELECT {_HOUR_OF.format("latencies")} AS start_ms, {_WHO},
            latency_sum(first) AS first_counted, latency_sum(whole) AS whole_counted
        FROM latencies
        WHERE span = 'quarter' AND {_HOUR_OF.format("latencies")} IN
            (SELECT start_ms FROM uncounted)
        GROUP BY 1, {_WHO}
    ) USING (start_ms, {_WHO})
    WHERE span = 'hour' AND start_ms IN (SELECT start_ms FROM uncounted)
        AND (first IS NOT first_counted OR whole IS NOT whole_counted)
    ON CONFLICT DO UPDATE SET first = latency_added(first, excluded.first),
        whole = latency_added(whole, excluded.whole)
    """,
    "DELETE FROM latencies WHERE span != 'quarter'",
    *(
        f"""
        INSERT INTO latencies (span, start_ms, {_WHO}, first, whole)
        SELECT '{span}', start_ms / {length} * {length}, {_WHO}, {_LATENCIES_ADDED_UP}
        FROM latencies WHERE span = '{of}' GROUP BY 2, {_WHO}
        """
        for span, length, of in (("hour", 3_600_000, "quarter"), ("day", 86_400_000, "hour"))
    ),
    "DROP TABLE uncounted",
    "DELETE FROM marks WHERE name IN ('timezone', 'move')",
)


def migrate(connection: sqlite3.Connection) -> None:
    """Inside of a transaction. Raises sqlite3.Error."""
    connection.create_aggregate("latency_histogram", 1, _Histogram)  # type: ignore[arg-type]
    connection.create_aggregate("latency_sum", 1, _HistogramSum)  # type: ignore[arg-type]
    connection.create_function("latency_added", 2, latency.add)
    connection.create_function("latency_left", 2, _left)
    (billed,) = connection.execute(
        "SELECT ifnull((SELECT CAST(value AS INTEGER) FROM marks WHERE name = 'billed_seq'), 0)"
    ).fetchone()
    (count,) = connection.execute(
        "SELECT count(*) FROM requests WHERE seq <= ?", (billed,)
    ).fetchone()
    if count > _MANY:
        log.warning("usage.db is brought up to date: %d requests are added up again", count)
    connection.execute(_QUARTERS_OF_REQUESTS, {"billed": billed})
    connection.executemany(_ADD_RUN_TIME, list(_run_time(connection)))
    for statement in _STEPS:
        connection.execute(statement, {"billed": billed} if ":billed" in statement else {})


def _run_time(connection: sqlite3.Connection) -> Iterable[tuple[object, ...]]:
    """For _ADD_RUN_TIME. Within an hour the time of a price follows that of the one before."""
    last, end_ms = "", 0
    for run, hour_ms, ms, cost, model, mode, scheme, ready_ms in connection.execute(
        "SELECT run, hour_ms, ms, cost, runs.model, mode, scheme, ifnull(ready_ms, 0)"
        " FROM run_hours JOIN runs ON runs.id = run LEFT JOIN prices ON prices.id = price"
        " ORDER BY run, hour_ms, effective_ms"  # NULL, of no price, comes first
    ):
        start_ms = max(hour_ms, ready_ms, end_ms if run == last else 0)
        for quarter, part_ms, part in spread(start_ms, ms, cost):
            yield quarter, model, mode, scheme, part_ms, part
        last, end_ms = run, start_ms + ms


class _Histogram:
    """Of times, ms; NULL is none."""

    def __init__(self) -> None:
        self._sum = 0

    def step(self, ms: int | None) -> None:
        if ms is not None:
            self._sum += latency.histogram(ms)

    def finalize(self) -> bytes:
        return latency.pack(self._sum)


class _HistogramSum:
    def __init__(self) -> None:
        self._sum = 0

    def step(self, packed: bytes) -> None:
        self._sum += latency.unpack(packed)

    def finalize(self) -> bytes:
        return latency.pack(self._sum)


def _left(packed: bytes, counted: bytes | None) -> bytes:
    """What was packed beyond what is counted, bucket by bucket."""
    have, less = latency.unpack(packed), latency.unpack(counted or b"")
    left, place = 0, 0
    mask = (1 << 8 * latency.COUNT_BYTES) - 1
    while have >> place:
        left |= max((have >> place & mask) - (less >> place & mask), 0) << place
        place += 8 * latency.COUNT_BYTES
    return latency.pack(left)
