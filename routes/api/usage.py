"""``/api/usage``: sums, series and single requests, as JSON and as CSV."""

from __future__ import annotations

import base64
import binascii
import csv
import io
import itertools
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import tzinfo
from typing import Any

from flask import Response, jsonify, request

from manager.billing import calendar, format_amount, iso, statements
from manager.errors import ApiError
from manager.storage import RequestRow, latency
from manager.usage import Filters, RequestFilter, TooManyBuckets, Totals, reports, request_search
from routes.calls import Api, Rule
from routes.request import Field, anything, bad, choice, integer, moment
from routes.services import Services

_STATUS = "ok|error|[1-9][0-9][0-9]"
_MAX_TEXT = 200
_CSV_ROWS = 1000  # of which a piece of a CSV answer is made
_PERCENTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
_MONEY = ("cost", "cost_tokens", "cost_hours", "adjustments")  # may begin with a minus
# The names of a request's columns in JSON and CSV, in the order of the CSV; new ones come last.
_THEN = ("cost", "price", "tier", "error")
_FIRST = RequestRow._fields[: RequestRow._fields.index("error")]
_NAMES = {
    name: f"{name[:-3]}_at" if name.endswith("_ms") else name
    for name in dict.fromkeys((*_FIRST, *_THEN, *RequestRow._fields))
}
_CSV_MARK = b"\xef\xbb\xbf"  # without it spreadsheets take UTF-8 for something else


def blueprint(services: Services) -> Api:
    api = Api("usage", tag="usage")
    filters_of = _parameters(services)

    @api.call(
        "GET /api/usage/summary",
        Rule.VIEW,
        query={
            **filters_of,
            "group": choice(*request_search.GROUPS),
            "round": choice(*reports.ROUNDING_UNITS).default_to("hour"),
        },
        answers={200: "JsonOrCsv"},
    )
    def summary(query: dict[str, Any]) -> Response:
        """Sums of a time range."""
        zone = zone_of(services)
        group = query.get("group")
        start_ms, end_ms = _range(services, query, zone)
        filters, unit = _filters(services, query), query["round"]
        try:
            found = services.reports.summary(start_ms, end_ms, zone, filters, group, unit)
        except TooManyBuckets as error:
            raise bad("round", f"{error}: choose a longer round or a shorter range") from error
        span = {"start": iso(found.start_ms), "end": iso(found.end_ms)}
        currency = services.fleet.config.program.currency
        whole = totals_to_json(found.totals)
        rows = [{group: name, **totals_to_json(totals)} for name, totals in found.groups.items()]
        if _is_csv(query):
            named = [{**span, "currency": currency, **row} for row in (rows if group else [whole])]
            return _csv("usage-summary", [*span, "currency", *_by(group), *_FLAT_SUMS], [named])
        answer = {**span, "timezone": str(zone), "currency": currency, **whole}
        return jsonify(answer | ({"group": group, "groups": rows} if group else {}))

    @api.call(
        "GET /api/usage/series",
        Rule.VIEW,
        query={
            **filters_of,
            "group": choice("none", *request_search.GROUPS),
            "bucket": choice(*reports.BUCKETS),
        },
        answers={200: "JsonOrCsv"},
    )
    def series(query: dict[str, Any]) -> Response:
        """The same sums by buckets of time."""
        zone = zone_of(services)
        group, bucket = query.get("group"), query.get("bucket")
        group = None if group == "none" else group
        start_ms, end_ms = _range(services, query, zone)
        filters = _filters(services, query)
        try:
            found = services.reports.series(start_ms, end_ms, zone, filters, bucket, group)
        except TooManyBuckets as error:
            raise bad("bucket", f"{error}: choose a longer bucket or a shorter range") from error
        rows = [
            {
                "start": iso(one.start_ms),
                "end": iso(one.end_ms),
                **dict.fromkeys(_by(group), one.group),
                **totals_to_json(one.totals),
            }
            for one in found.buckets
        ]
        currency = services.fleet.config.program.currency
        if _is_csv(query):
            rows = [{**row, "currency": currency} for row in rows]
            header = ["start", "end", "currency", *_by(group), *_FLAT_SUMS]
            return _csv("usage-series", header, [rows])
        return jsonify(
            {
                "start": iso(found.start_ms),
                "end": iso(found.end_ms),
                "timezone": str(zone),
                "currency": currency,
                "bucket": found.bucket,
                "group": group,
                "buckets": rows,
            }
        )

    @api.call(
        "GET /api/usage/requests",
        Rule.VIEW,
        query={
            **filters_of,
            "status": anything(pattern=f"^({_STATUS})$"),
            "text": anything(minLength=1, maxLength=_MAX_TEXT),
            "limit": integer(1, 1000).default_to(100),
            "cursor": anything(description="The last answer's next"),
        },
        answers={200: "JsonOrCsv"},
    )
    def requests(query: dict[str, Any]) -> Response:
        """Single requests, newest first, by pages."""
        filters, sought = _filters(services, query), _search(query)
        if _is_csv(query):
            return _csv_of_requests(services, filters, sought)
        page = services.reports.requests(filters, sought, query["limit"], _before(query))
        return jsonify(
            {
                "requests": [_request(one) for one in page.requests],
                "next": None if page.next is None else _cursor(page.next),
            }
        )

    @api.call("GET /api/usage/requests/<number>", Rule.VIEW)
    def request(number: str) -> Response:
        """One request."""
        try:
            found = services.reports.request(uuid.UUID(number).bytes)
        except ValueError:
            found = None
        if found is None:
            raise ApiError(404, "request_not_found", f"There is no request {number[:40]!r}")
        return jsonify(_request(found))

    return api


def zone_of(services: Services) -> tzinfo:
    """The configured time zone."""
    return calendar.zone(services.fleet.config.program.timezone)


def model_named(services: Services, name: str) -> str:
    """The model of that name or alias; one that is not in the config has its name only."""
    found = services.fleet.config.find(name)
    return name if found is None else found.name


# --- what is asked for ------------------------------------------------------------------


def _parameters(services: Services) -> dict[str, Field]:
    """Of a range, and of what is in it."""
    when = moment(lambda: zone_of(services))
    names = ("model", "key", "mode", "scheme")
    return {
        "start": when,
        "end": when,
        **{name: anything() for name in names},
        "format": choice("json", "csv").default_to("json"),
    }


def _filters(services: Services, query: dict[str, Any]) -> Filters:
    model = query.get("model")
    return Filters(
        model=None if model is None else model_named(services, model),
        key=query.get("key"),
        mode=query.get("mode"),
        scheme=query.get("scheme"),
    )


def _range(services: Services, query: dict[str, Any], zone: tzinfo) -> tuple[int, int]:
    """From the beginning of the month until now, where nothing else is said."""
    end_ms = query.get("end")
    start_ms = query.get("start")
    if end_ms is None:
        end_ms = services.clock.wall_ms() + 1
    if start_ms is None:
        start_ms = calendar.month_start_ms(end_ms - 1, zone)
    if start_ms >= end_ms:
        raise bad(
            "start", f"start has to be before end: {iso(start_ms)} is not before {iso(end_ms)}"
        )
    return start_ms, end_ms


def _search(query: dict[str, Any]) -> RequestFilter:
    status = query.get("status")
    if status is not None and not re.fullmatch(_STATUS, status):
        raise bad("status", f"status has to be ok, error or such as 404, not {status[:40]!r}")
    text = query.get("text")
    if text is not None and not 1 <= len(text) <= _MAX_TEXT:
        raise bad("text", f"text has to have 1 to {_MAX_TEXT} characters")
    return RequestFilter(
        status=int(status) if status and status.isdigit() else None,
        failed={"ok": False, "error": True}.get(status or ""),
        text=text,
        start_ms=query.get("start"),
        end_ms=query.get("end"),
    )


def _is_csv(query: dict[str, Any]) -> bool:
    return bool(query["format"] == "csv")


def _cursor(number: bytes) -> str:
    return base64.urlsafe_b64encode(number).decode().rstrip("=")


def _before(query: dict[str, Any]) -> bytes | None:
    cursor = query.get("cursor")
    if cursor is None:
        return None
    try:
        number = base64.b64decode(cursor + "==", b"-_", validate=True)
    except (binascii.Error, ValueError):
        number = b""
    if len(number) != 16:
        raise bad("cursor", "cursor has to be the next of an earlier answer")
    return number


# --- what is answered -------------------------------------------------------------------


def totals_to_json(totals: Totals) -> dict[str, Any]:
    """Sums as the API names them."""
    return {
        "requests": totals.requests,
        "errors": totals.errors,
        "prompt_tokens": totals.prompt_tokens,
        "cached_tokens": totals.cached_tokens,
        "completion_tokens": totals.completion_tokens,
        "cost": format_amount(totals.cost),
        "cost_tokens": format_amount(totals.cost_tokens),
        "cost_hours": format_amount(totals.cost_hours),
        "adjustments": format_amount(totals.adjustments),
        "pending": totals.pending,
        "unpriced": totals.unpriced,
        "estimated": totals.estimated,
        "run_seconds": totals.run_ms / 1000,
        "cache_hit_rate": _rounded(totals.cache_hit_rate, 4),
        "tokens_per_second": _rounded(totals.tokens_per_second, 2),
        "first_byte_ms": _percentiles(totals.first_byte),
        "whole_ms": _percentiles(totals.whole),
    }


def _by(group: str | None) -> list[str]:
    return [] if group is None else [group]


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def _percentiles(histogram: int) -> dict[str, int | None]:
    times = latency.percentiles(histogram, list(_PERCENTILES.values()))
    return dict(zip(_PERCENTILES, times, strict=True))


def _request(one: RequestRow) -> dict[str, Any]:
    values = {name: _shown(name, getattr(one, name)) for name in RequestRow._fields}
    return {_NAMES[name]: values[name] for name in _NAMES}


def _shown(column: str, value: Any) -> Any:
    if value is None:
        return None
    if column.endswith("_ms"):
        return iso(value)
    if column == "id":
        return str(uuid.UUID(bytes=value))
    return format_amount(value) if column == "cost" else value


def _csv_of_requests(services: Services, filters: Filters, sought: RequestFilter) -> Response:
    """All of them, as they are read: there may be millions."""
    for name in ("limit", "cursor"):
        if name in request.args:
            raise bad(name, f"CSV has no pages: leave {name} out, and narrow it by start and end")
    found = services.reports.each_request(filters, sought)
    first = list(itertools.islice(found, 1))  # what fails should fail before the first byte
    rows = map(_request, itertools.chain(first, found))
    batches = iter(lambda: list(itertools.islice(rows, _CSV_ROWS)), [])
    release = services.slots.acquire_stream()
    response = _csv("usage-requests", list(_NAMES.values()), batches)
    response.call_on_close(release)
    return response


def _csv(name: str, header: Sequence[str], batches: Iterable[list[dict[str, Any]]]) -> Response:
    """A table for a spreadsheet; each batch of rows is sent as it is made."""

    def pieces() -> Iterator[bytes]:
        yield _CSV_MARK + _lines([header])
        for rows in batches:
            flat = map(_flat, rows)
            yield _lines([[_cell(name, row[name]) for name in header] for row in flat])

    return Response(
        pieces(),
        mimetype="text/csv",
        headers={
            "Content-Disposition": f'attachment; filename="{name}.csv"',
            "Cache-Control": "no-store",
        },
    )


def _lines(rows: Iterable[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)  # which ends its lines with CR LF
    return text.getvalue().encode()


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """``first_byte_ms: {p50}`` becomes ``first_byte_ms_p50``."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            flat |= {f"{name}_{inner}": one for inner, one in value.items()}
        else:
            flat[name] = value
    return flat


def _cell(name: str, value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and name not in _MONEY:
        return statements.escape_csv_cell(value)
    return value


_FLAT_SUMS = list(_flat(totals_to_json(Totals())))
