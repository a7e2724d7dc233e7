"""Takes over the history of LLM-Manager 2.2.

Of its database, for each model: requests, run times, and the price where ours has none that far
back. A second import of the same file, or of a later copy of it, adds only what is new: each row's
id is made of its content. Rows that make no sense are named and left out.
"""

from __future__ import annotations

import hashlib
import math
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from manager.billing import UNBOUNDED, Price, Tier, parse_amount, pricing, tiers_to_json
from manager.storage import INSERT_REQUESTS, ONE_REQUEST, RequestRow, Store, maintenance

_SAFE_NAME = re.compile(r"\w+", re.ASCII)
_ROWS = 500  # in one transaction
_MAX_TOKENS = 2**31 - 1
_LATEST_MS = 253_339_228_800_000  # the year 9998, as far as the calendar goes
_EARLIEST = 0  # ms: the price of 2.2 held for all that there was

_COLUMNS = {
    "requests": (
        *("id", "start_time", "end_time", "input_tokens", "output_tokens", "cache_n", "prompt_n"),
    ),
    "runtime": ("id", "start_time", "end_time"),
    "tier_pricing": (
        *("tier_index", "min_input_tokens", "max_input_tokens", "min_output_tokens"),
        *("max_output_tokens", "input_price", "output_price", "support_cache"),
        *("cache_write_price", "cache_read_price"),
    ),
    "hourly_price": ("hourly_price",),
    "billing_method": ("use_tier_pricing",),
}


class UnsupportedDatabase(Exception):
    """The file is not a database of LLM-Manager 2.2; says why."""


@dataclass
class Report:
    """What was added, what was there already, and what was left out and why."""

    requests: int = 0
    runs: int = 0
    prices: int = 0
    known: int = 0
    left_out: list[str] = field(default_factory=list)


def import_file(source: Path, target: Path) -> Report:
    """Adds all of a 2.2 database to ours, which is made where it is missing. What was added is
    priced by the program's worker.

    Raises NotReadable before anything is added; StoreError, sqlite3.Error.
    """
    if not source.is_file():
        raise UnsupportedDatabase(f"{source} is missing")
    report = Report()
    with closing(_open(source)) as theirs:
        try:
            models = _models(theirs)
        except sqlite3.DatabaseError as error:
            raise UnsupportedDatabase(f"{source} cannot be read: {error}") from error
        Store(target).close()  # makes or migrates it
        with closing(maintenance.connect(target)) as ours:
            for model, safe_name in models.items():
                _Model(theirs, ours, model, safe_name, report).add()
    return report


def _open(source: Path) -> sqlite3.Connection:
    # For writing, though nothing is: what 2.2 left in the file's journal is read only so.
    connection = sqlite3.connect(f"{source.absolute().as_uri()}?mode=rw", uri=True)
    connection.execute("PRAGMA query_only = ON")
    return connection


def _models(theirs: sqlite3.Connection) -> dict[str, str]:
    """Their tables' common prefix by the model's name. Raises NotReadable."""
    tables: dict[str, set[str]] = {}
    for (table,) in theirs.execute("SELECT name FROM sqlite_master WHERE type = 'table'"):
        tables[table] = {column[1] for column in theirs.execute(f'PRAGMA table_info("{table}")')}
    if not {"original_name", "safe_name"} <= tables.get("model_name_mapping", set()):
        newer = " It looks like a database of 3.x." if "models" in tables else ""
        raise UnsupportedDatabase(
            "there is no table model_name_mapping(original_name, safe_name), as in 2.2." + newer
        )
    found: dict[str, str] = {}
    for name, safe_name in theirs.execute(
        "SELECT original_name, safe_name FROM model_name_mapping"
    ):
        if not isinstance(name, str) or not _SAFE_NAME.fullmatch(str(safe_name)):
            raise UnsupportedDatabase(
                f"model_name_mapping has {name!r}, {safe_name!r}, which are no names"
            )
        for kind, columns in _COLUMNS.items():
            missing = set(columns) - tables.get(f"{safe_name}_{kind}", set())
            if missing:
                raise UnsupportedDatabase(
                    f"{name}: the table {safe_name}_{kind} has no {', '.join(sorted(missing))}"
                )
        found[name] = safe_name
    return found


class _Model:
    """One model's tables."""

    def __init__(
        self,
        theirs: sqlite3.Connection,
        ours: sqlite3.Connection,
        name: str,
        safe_name: str,
        report: Report,
    ) -> None:
        self._theirs = theirs
        self._ours = ours
        self._name = name
        self._safe_name = safe_name
        self._report = report
        self._first_ms = _LATEST_MS

    def add(self) -> None:
        # Before what it is for: a worker prices rows as soon as they are there, and once.
        self._find_first()
        self._add_price()
        self._report.requests += self._insert(
            "requests",
            self._request,
            INSERT_REQUESTS + ONE_REQUEST,
        )
        self._report.runs += self._insert(
            "runtime",
            self._run,
            "INSERT INTO runs (id, model, scheme, fingerprint, port, started_ms, ready_ms,"
            " ended_ms, end_reason) VALUES (?, ?, '', '', 0, ?, ?, ?, 'imported')"
            # It went on after an earlier copy was made.
            " ON CONFLICT (id) DO UPDATE SET ended_ms = excluded.ended_ms"
            " WHERE excluded.ended_ms > ended_ms",
        )

    def _find_first(self) -> None:
        """Finds out how far back the price has to reach."""
        for kind, read in (("requests", self._request), ("runtime", self._run)):
            for rows in self._batches(kind):
                for row in rows:
                    with suppress(ValueError):  # reported when the rows are added
                        read(*row)

    def _insert(self, kind: str, read: Callable[..., tuple[object, ...]], statement: str) -> int:
        """Adds a table's rows; says how many were new."""
        added = 0
        for rows in self._batches(kind):
            values = []
            for row in rows:
                try:
                    values.append(read(*row))
                except ValueError as error:
                    self._leave_out(f"row {row[0]} of {self._safe_name}_{kind}: {error}")
            with maintenance.transaction(self._ours):
                # Of many at once, SQLite says how many were not ignored.
                new = self._ours.executemany(statement, values).rowcount if values else 0
            added += new
            self._report.known += len(values) - new
        return added

    def _batches(self, kind: str) -> Iterator[list[tuple[object, ...]]]:
        cursor = self._theirs.execute(
            f"SELECT {', '.join(_COLUMNS[kind])} FROM {self._safe_name}_{kind} ORDER BY 1"
        )
        while rows := cursor.fetchmany(_ROWS):
            yield rows

    def _request(
        self,
        number: object,
        start: object,
        end: object,
        prompt: object,
        completion: object,
        cached: object,
        _fresh: object,
    ) -> RequestRow:
        ended_ms = _ms("end_time", end)
        # Versions before 2 knew the end only, and 2 wrote 0 for the start of what they had.
        started_ms = ended_ms if start == 0 else _ms("start_time", start)
        prompt = _tokens("input_tokens", prompt)
        cached = _tokens("cache_n", cached)
        if cached > prompt:
            raise ValueError(f"cache_n is {cached}, more than all {prompt} input_tokens")
        id = self._id(started_ms, "requests", number, ended_ms, prompt, completion, cached)
        completion = _tokens("output_tokens", completion)
        self._first_ms = min(self._first_ms, started_ms)
        return RequestRow(
            id=id,
            model=self._name,
            asked_for=self._name,
            mode="",
            scheme="",
            key="",
            endpoint="",
            streamed=False,
            status=200,
            started_ms=started_ms,
            leased_ms=None,
            first_byte_ms=None,
            ended_ms=ended_ms,
            prompt_tokens=prompt,
            cached_tokens=cached,
            completion_tokens=completion,
            estimated=False,
            error=None,
        )

    def _run(self, number: object, start: object, end: object) -> tuple[object, ...]:
        started_ms, ended_ms = _ms("start_time", start), _ms("end_time", end)
        if ended_ms < started_ms:
            raise ValueError("it ends before it begins")
        self._first_ms = min(self._first_ms, started_ms)
        id = self._id(started_ms, "runtime", number).hex()
        return (id, self._name, started_ms, started_ms, ended_ms)

    def _id(self, ms: int, *content: object) -> bytes:
        """A UUID of version 7 that the same row always gets."""
        digest = hashlib.sha256(repr((self._name, *content)).encode()).digest()
        chance = int.from_bytes(digest[:10], "big")
        number = ms << 80 | 0x7 << 76 | (chance >> 68 & 0xFFF) << 64
        return (number | 0b10 << 62 | chance & (1 << 62) - 1).to_bytes(16, "big")

    def _add_price(self) -> None:
        try:
            price = self._price()
        except ValueError as error:
            self._leave_out(f"the price: {error}")
            return
        if price is None or self._is_priced():
            return
        with maintenance.transaction(self._ours):
            self._ours.execute(
                "INSERT INTO prices (model, effective_ms, per_hour, tiers, created_ms)"
                " VALUES (?, ?, ?, ?, ?)",
                (
                    self._name,
                    _EARLIEST,
                    price.per_hour,
                    tiers_to_json(price.tiers),
                    time.time_ns() // 1_000_000,
                ),
            )
        self._report.prices += 1

    def _price(self) -> Price | None:
        """The one of the two that it was billed by; None for the zeros of one that nobody set."""
        by_tiers = self._one("billing_method")
        if not by_tiers:
            per_hour = _amount("hourly_price", self._one("hourly_price"))
            return Price(per_hour, ()) if per_hour else None
        tiers = tuple(_tier(*row) for rows in self._batches("tier_pricing") for row in rows)
        price = Price(None, tiers)
        faults = pricing.find_errors(price)
        if faults:
            raise ValueError("; ".join(faults))
        amounts = [(t.input, t.output, t.cache_read, t.cache_write) for t in tiers]
        return price if any(map(any, amounts)) else None

    def _one(self, kind: str) -> object:
        for rows in self._batches(kind):
            return rows[0][0]
        raise ValueError(f"{self._safe_name}_{kind} is empty")

    def _is_priced(self) -> bool:
        """Whether a price of ours reaches back to the first of what was imported."""
        found = self._ours.execute(
            "SELECT 1 FROM prices WHERE model = ? AND effective_ms <= ? AND replaced_ms IS NULL",
            (self._name, min(self._first_ms, _LATEST_MS)),
        )
        return found.fetchone() is not None

    def _leave_out(self, what: str) -> None:
        self._report.left_out.append(f"{self._name}: {what}")


def _tier(_place: object, *cells: object) -> Tier:
    names = _COLUMNS["tier_pricing"][1:]
    min_input, max_input, min_output, max_output = (
        _bound(name, cell) for name, cell in zip(names[:4], cells[:4], strict=True)
    )
    amounts = {
        name: _amount(name, cell)
        for name, cell in zip(names[4:], cells[4:], strict=True)
        if name != "support_cache"
    }
    return Tier(
        min_input,
        max_input,
        min_output,
        max_output,
        input=amounts["input_price"],
        output=amounts["output_price"],
        cache_read=amounts["cache_read_price"],
        cache_write=amounts["cache_write_price"],
        support_cache=bool(cells[6]),
    )


def _ms(name: str, seconds: object) -> int:
    if not isinstance(seconds, int | float) or not math.isfinite(seconds):
        raise ValueError(f"{name} is {seconds!r}, not a time in seconds")
    ms = round(seconds * 1000)
    if not 0 < ms < _LATEST_MS:
        raise ValueError(f"{name} is {seconds!r}, not a time in the years 1970 to 9997")
    return ms


def _tokens(name: str, count: object) -> int:
    if not isinstance(count, int) or not 0 <= count <= _MAX_TOKENS:
        raise ValueError(f"{name} is {count!r}, not 0 to {_MAX_TOKENS}")
    return count


def _bound(name: str, tokens: object) -> int:
    if not isinstance(tokens, int) or tokens < UNBOUNDED:
        raise ValueError(f"{name} is {tokens!r}, not a number of tokens")
    return tokens


def _amount(name: str, amount: object) -> int:
    if not isinstance(amount, int | float):
        raise ValueError(f"{name} is {amount!r}, not an amount")
    try:
        return parse_amount(repr(amount))  # the shortest decimal that is this number
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
