"""Single requests of usage.db: which rows are meant, and how to walk to them.

Pages are keyset pages: a walk down an index from where the last page ended, newest first. So the
last of a million pages takes as long as the first, and each request is on one page whatever is
written meanwhile.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from manager.errors import CLIENT_CLOSED_REQUEST
from manager.storage import REQUEST_COLUMNS, RequestRow, request_of

GROUPS = ("model", "key", "mode", "scheme")
"""What requests can be filtered by and summed up by."""

# Rows that a page looks at, some milliseconds: those that lie beside each other, and those that an
# index finds here and there, each of which may have to be read from the disk.
_MAX_SCANNED = 10_000
_MAX_JUMPS = 1_000


@dataclass(frozen=True)
class Filters:
    """What is wanted; None is all. A run's time has the key '', an adjustment the mode '' and the
    scheme ''."""

    model: str | None = None
    key: str | None = None
    mode: str | None = None
    scheme: str | None = None


EVERYTHING = Filters()


@dataclass(frozen=True)
class RequestFilter:
    """Further filters of single requests. ``status`` is one, or all ``failed`` ones (400 and
    above, but for clients that disconnected) or those that succeeded; ``text`` is in the error or
    in the name asked for, in any case. Times are epoch ms, the end excluded."""

    status: int | None = None
    failed: bool | None = None
    text: str | None = None
    start_ms: int | None = None
    end_ms: int | None = None


@dataclass(frozen=True)
class Page:
    """Some requests, newest first. ``next`` is the id to go on before; None at the end. A page
    may be short, or empty, and not the last: a search looks at so many rows and no more."""

    requests: list[RequestRow]
    next: bytes | None


def page(
    connection: sqlite3.Connection,
    filters: Filters,
    search: RequestFilter,
    limit: int,
    before: bytes | None,
) -> Page:
    """At most `limit` requests, newest first; `before` is the last page's ``next``."""
    walk = _walk(filters, search)
    path = _path(walk, filters, search, before)
    conditions, values = _conditions(walk, filters, search)
    least = _first_id(search.start_ms or 0)
    floor = None
    if conditions:
        # What is looked for may be far away: no page looks at more rows than this.
        most = _MAX_JUMPS if walk else _MAX_SCANNED
        floor = _skip(connection, path, most - 1, least)
    rows = connection.execute(
        f"SELECT {REQUEST_COLUMNS} {path.sql}{''.join(f' AND {one}' for one in conditions)}"
        " ORDER BY id DESC LIMIT ?",
        # One lower bound: of two SQLite would walk to the first and look at each row for the other.
        (*path.values, floor or least, *values, limit + 1),
    ).fetchall()
    requests = [request_of(row) for row in rows[:limit]]
    if len(rows) > limit:
        return Page(requests, requests[-1].id)
    return Page(requests, floor)


def get(connection: sqlite3.Connection, number: bytes) -> RequestRow | None:
    """The request with this id."""
    row = connection.execute(
        f"SELECT {REQUEST_COLUMNS} FROM requests WHERE id = ?", (number,)
    ).fetchone()
    return None if row is None else request_of(row)


def newest(
    connection: sqlite3.Connection, columns: str, filters: Filters, search: RequestFilter, most: int
) -> sqlite3.Cursor:
    """These columns of requests, newest first, of which no more than so many are looked at."""
    walk = _walk(filters, search)
    path = _path(walk, filters, search, None)
    conditions, values = _conditions(walk, filters, search)
    return connection.execute(
        f"SELECT {columns} FROM (SELECT * {path.sql} ORDER BY id DESC LIMIT ?)"
        f" WHERE {' AND '.join(['true', *conditions])}",
        (*path.values, _first_id(search.start_ms or 0), most, *values),
    )


def select_all(filters: Filters, search: RequestFilter) -> tuple[str, list[object]]:
    """All of these requests: the part of a statement that begins with FROM, and its values."""
    walk = _walk(filters, search)
    path = _path(walk, filters, search, None)
    conditions, values = _conditions(walk, filters, search)
    where = "".join(f" AND {one}" for one in conditions)
    return path.sql + where, [*path.values, _first_id(search.start_ms or 0), *values]


def conditions(filters: Filters) -> tuple[str, list[object]]:
    """Conditions in SQL to add to others, and their values."""
    wanted = [(name, getattr(filters, name)) for name in GROUPS]
    named = [(name, value) for name, value in wanted if value is not None]
    return "".join(f" AND {name} = ?" for name, _ in named), [value for _, value in named]


def _walk(filters: Filters, search: RequestFilter) -> str | None:
    """The index to walk down, by the end of its name; None: that of all ids."""
    if search.failed or (search.status is not None and search.status >= 400):
        return "failed"
    if filters.model is not None:
        return "model"
    return None if filters.key is None else "key"


@dataclass(frozen=True)
class _Path:
    """The part of a statement that walks down an index; the least id is its last value."""

    sql: str
    values: list[object]


def _path(walk: str | None, filters: Filters, search: RequestFilter, before: bytes | None) -> _Path:
    index = f"INDEXED BY requests_{walk} " if walk else ""
    conditions: list[str] = []
    values: list[object] = []
    if walk == "failed":
        conditions.append("status >= 400")
    elif walk is not None:
        conditions.append(f"{walk} = ?")
        values.append(getattr(filters, walk))
    ends = [] if search.end_ms is None else [_first_id(search.end_ms)]
    ends += [] if before is None else [before]
    if ends:
        conditions.append("id < ?")
        values.append(min(ends))
    conditions.append("id >= ?")
    return _Path(f"FROM requests {index}WHERE {' AND '.join(conditions)}", values)


def _skip(connection: sqlite3.Connection, path: _Path, rows: int, least: bytes) -> bytes | None:
    """The id that is so many rows down the path; None where it ends before."""
    row = connection.execute(
        f"SELECT id {path.sql} ORDER BY id DESC LIMIT 1 OFFSET ?", (*path.values, least, rows)
    ).fetchone()
    return None if row is None else bytes(row[0])


def _conditions(
    walk: str | None, filters: Filters, search: RequestFilter
) -> tuple[list[str], list[object]]:
    """What the rows on the way have to be looked at for."""
    wanted = [(name, getattr(filters, name)) for name in GROUPS if name != walk]
    wanted.append(("status", search.status))
    conditions = [f"{name} = ?" for name, value in wanted if value is not None]
    values = [value for _, value in wanted if value is not None]
    if search.failed is not None:
        # A client that disconnects is no fault. It is in the index of failed requests all the same.
        is_fault = f"status <> {CLIENT_CLOSED_REQUEST}"
        conditions.append(is_fault if search.failed else "status < 400")
    if search.text is not None:
        conditions.append("(error LIKE ? ESCAPE '!' OR asked_for LIKE ? ESCAPE '!')")
        values += [_like(search.text)] * 2
    return conditions, values


def _like(text: str) -> str:
    for special in "!%_":
        text = text.replace(special, "!" + special)
    return f"%{text}%"


def _first_id(ms: int) -> bytes:
    """No UUIDv7 of that moment or after it is smaller."""
    return max(ms, 0).to_bytes(6, "big") + bytes(10)  # a range may begin before 1970
