"""``/api/keys``: API keys, their limits and what they have used."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, g, jsonify

from manager.access import api_keys
from manager.access.api_keys import Budget, Key
from manager.billing import calendar
from manager.billing.calendar import iso
from manager.billing.pricing import decimal_text
from manager.errors import ApiError
from manager.storage.store import DatabaseError
from manager.usage.request_search import Filters
from routes import fields
from routes.api.usage import database_error, totals_to_json, zone_of
from routes.request import bad, body, refuse_unknown
from routes.services import Services

_CHANGEABLE = (
    *("owner", "models", "requests_per_minute", "tokens_per_minute", "max_concurrency"),
    *("budget", "priority", "expires_at"),
)
_HOURS = 24  # that a replaced secret stays valid
_HOUR_MS = 3_600_000
_MOST_REQUESTS = 1_000_000
_MOST_TOKENS = 10**12
_NO_STORE = {"Cache-Control": "no-store"}


def blueprint(services: Services) -> Blueprint:
    routes = Blueprint("keys", __name__)
    routes.register_error_handler(DatabaseError, database_error)

    @routes.get("/api/keys")
    def all_keys() -> Response:
        known = services.access.snapshot.keys.values()
        return jsonify(
            {
                "currency": services.fleet.config.program.currency,
                "keys": [_shown(services, key) for key in known],
            }
        )

    @routes.get("/api/keys/me")
    def me() -> Response:
        key: Key = g.caller.key
        zone, now_ms = zone_of(services), services.clock.wall_ms()
        spans = {
            "day": calendar.day_start_ms(now_ms, zone),
            "month": calendar.month_start_ms(now_ms, zone),
        }
        only = Filters(key=key.name)
        return jsonify(
            {
                **_shown(services, key),
                "currency": services.fleet.config.program.currency,
                "usage": {
                    name: totals_to_json(
                        services.reports.summary(start_ms, now_ms, zone, only).totals
                    )
                    for name, start_ms in spans.items()
                },
            }
        )

    @routes.post("/api/keys")
    def add() -> tuple[Response, int]:
        given = body()
        refuse_unknown(given, ("name", *_CHANGEABLE))
        key = Key(fields.read(given, "name", fields.text), **_changes(services, given))
        now_ms = services.clock.wall_ms()
        made, secret = services.access.change(
            lambda connection: api_keys.add(connection, key, now_ms)
        )
        return _told_once(services, made, secret), 201

    @routes.get("/api/keys/<path:name>")
    def key(name: str) -> Response:
        return jsonify(_shown(services, _find(services, name)))

    @routes.patch("/api/keys/<path:name>")
    def change(name: str) -> Response:
        given = body()
        refuse_unknown(given, _CHANGEABLE)
        changes = _changes(services, given)
        changed = services.access.change(
            lambda connection: api_keys.change(connection, name, changes)
        )
        return jsonify(_shown(services, changed))

    @routes.post("/api/keys/<path:name>/rotate")
    def rotate(name: str) -> Response:
        given = body()
        refuse_unknown(given, ("keep_old_hours",))
        hours = fields.read(given, "keep_old_hours", _hours, _HOURS)
        now_ms = services.clock.wall_ms()
        made, secret = services.access.change(
            lambda connection: api_keys.rotate(connection, name, hours * _HOUR_MS, now_ms)
        )
        return _told_once(services, made, secret)

    @routes.delete("/api/keys/<path:name>")
    def revoke(name: str) -> Response:
        now_ms = services.clock.wall_ms()
        revoked = services.access.change(
            lambda connection: api_keys.revoke(connection, name, now_ms)
        )
        return jsonify(_shown(services, revoked))

    return routes


def _find(services: Services, name: str) -> Key:
    found = services.access.snapshot.keys.get(name)
    if found is None:
        raise ApiError(404, "key_not_found", f"There is no key {name!r}")
    return found


def _told_once(services: Services, key: Key, secret: str) -> Response:
    answer = jsonify({**_shown(services, key), "secret": secret})
    answer.headers.update(_NO_STORE)
    return answer


def _shown(services: Services, key: Key) -> dict[str, Any]:
    now_ms, view = services.clock.wall_ms(), services.limits.view(key.name)
    return {
        "name": key.name,
        "owner": key.owner,
        "state": key.state(now_ms),
        "models": None if key.models is None else list(key.models),
        "requests_per_minute": key.requests_per_minute,
        "tokens_per_minute": key.tokens_per_minute,
        "max_concurrency": key.max_concurrency,
        "budget": None
        if key.budget is None
        else {"amount": decimal_text(key.budget.amount), "period": key.budget.period},
        "priority": key.priority,
        "created_at": iso(key.created_ms),
        "expires_at": _iso(key.expires_ms),
        "revoked_at": _iso(key.revoked_ms),
        "secrets": [
            {
                "hint": secret.hint,
                "created_at": iso(secret.created_ms),
                "valid_until": _iso(secret.valid_until_ms),
            }
            for secret in key.secrets
            if secret.valid_until_ms is None or secret.valid_until_ms > now_ms
        ],
        "now": {
            "requests": view.requests,
            "tokens": view.tokens,
            "in_flight": view.in_flight,
            "spent_today": decimal_text(view.spent["day"]),
            "spent_this_month": decimal_text(view.spent["month"]),
        },
    }


def _iso(ms: int | None) -> str | None:
    return None if ms is None else iso(ms)


def _changes(services: Services, given: dict[str, Any]) -> dict[str, Any]:
    """The fields of a key that are given. Raises ApiError 400."""

    def moment(path: str, value: Any) -> int:
        return fields.moment(path, value, zone_of(services))

    readers = {
        "owner": ("owner", fields.text),
        "models": ("models", fields.optional(_models)),
        "requests_per_minute": ("requests_per_minute", fields.optional(_limit(_MOST_REQUESTS))),
        "tokens_per_minute": ("tokens_per_minute", fields.optional(_limit(_MOST_TOKENS))),
        "max_concurrency": ("max_concurrency", fields.optional(_limit(_MOST_REQUESTS))),
        "budget": ("budget", fields.optional(_budget)),
        "priority": ("priority", _priority),
        "expires_at": ("expires_ms", fields.optional(moment)),
    }
    return {
        field: reader(name, given[name])
        for name, (field, reader) in readers.items()
        if name in given
    }


def _limit(most: int) -> fields.Reader:
    return lambda path, value: fields.integer(path, value, 1, most)


def _priority(path: str, value: Any) -> int:
    return fields.integer(path, value, 0, api_keys.MAX_PRIORITY)


def _hours(path: str, value: Any) -> int:
    return fields.integer(path, value, 0, api_keys.MAX_GRACE_HOURS)


def _models(path: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise bad(path, f"{path} has to be a list of models' names, or null for all")
    return tuple(fields.text(f"{path}[{place}]", name) for place, name in enumerate(value))


def _budget(path: str, value: Any) -> Budget:
    if not isinstance(value, dict):
        raise bad(path, f'{path} has to be as {{"amount": "10", "period": "month"}}, or null')
    refuse_unknown(value, ("amount", "period"), f"{path}.")
    period = fields.read(value, "period", fields.text, path=f"{path}.")
    return Budget(fields.read(value, "amount", fields.amount, path=f"{path}."), period)
