"""``/api/keys``: API keys, their limits and what they have used."""

from __future__ import annotations

from typing import Any

from flask import Response, g, jsonify

from manager.access import Budget, Key, api_keys
from manager.billing import calendar, format_amount, iso
from manager.errors import ApiError
from manager.usage import Filters
from routes.api.usage import totals_to_json, zone_of
from routes.calls import Api, Rule
from routes.request import (
    Body,
    Field,
    amount,
    boolean,
    choice,
    integer,
    list_of,
    moment,
    record,
    text,
)
from routes.services import Services

_HOURS = 24  # that a replaced secret stays valid
_HOUR_MS = 3_600_000
_MAX_REQUESTS = 1_000_000
_MAX_TOKENS = 10**12
_BUDGET = Body({"amount": amount().required(), "period": choice("day", "month").required()})
_NO_STORE = {"Cache-Control": "no-store"}


def blueprint(services: Services) -> Api:
    api = Api("keys", tag="access")
    changeable = _changeable(services)

    @api.call("GET /api/keys", Rule.VIEW)
    def all_keys() -> Response:
        """All API keys, without their secrets.

        Of each its fields, `state` (`active`, `expired`, `revoked`), `created_at`, `revoked_at`,
        `secrets` with `hint`, `created_at` and `valid_until`, where `hint` is a secret's last
        characters, and `now` with `requests` and `tokens` of the last sixty seconds, `in_flight`,
        `spent_today` and `spent_this_month`.
        """
        known = services.access.snapshot.keys.values()
        return jsonify(
            {
                "currency": services.fleet.config.program.currency,
                "keys": [_shown(services, key) for key in known],
            }
        )

    @api.call("GET /api/keys/me", Rule.KEY)
    def me() -> Response:
        """The limits of the key that asks, and what it has used today and this month."""
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

    @api.call(
        "POST /api/keys",
        Rule.ADMIN,
        body={
            "name": text(1, 100).required(),
            "secret": text(),
            **changeable,
            "priority": changeable["priority"].default_to(0),
        },
        answers={201: "Json"},
        errors=(409,),
    )
    def add(body: dict[str, Any]) -> tuple[Response, int]:
        """Adds a key; its `secret` is shown once.

        A `secret` that its owner has already may be sent, which is not in the answer: ASCII without
        blanks, and hard to guess.
        """
        given = body.pop("secret", None)
        if given is not None and services.local_token.check(given) is not None:
            raise api_keys.secret_taken()
        key = Key(**_changes(body))
        now_ms = services.clock.wall_ms()
        made, secret = services.access.change(
            lambda connection: api_keys.add(connection, key, now_ms, given)
        )
        if given is not None:
            return jsonify(_shown(services, made)), 201
        return _with_secret(services, made, secret), 201

    @api.call("GET /api/keys/<path:name>", Rule.VIEW)
    def key(name: str) -> Response:
        """One key."""
        return jsonify(_shown(services, _find(services, name)))

    @api.call("PATCH /api/keys/<path:name>", Rule.ADMIN, body=changeable, errors=(409,))
    def change(name: str, body: dict[str, Any]) -> Response:
        """Changes fields of a key."""
        changes = _changes(body)
        changed = services.access.change(
            lambda connection: api_keys.change(connection, name, changes)
        )
        return jsonify(_shown(services, changed))

    @api.call(
        "POST /api/keys/<path:name>/rotate",
        Rule.ADMIN,
        body={"keep_old_hours": integer(0, api_keys.MAX_GRACE_HOURS).default_to(_HOURS)},
        errors=(409,),
    )
    def rotate(name: str, body: dict[str, Any]) -> Response:
        """Gives a key a new `secret`; those before it stay valid for so many more hours."""
        hours = body["keep_old_hours"]
        now_ms = services.clock.wall_ms()
        made, secret = services.access.change(
            lambda connection: api_keys.rotate(connection, name, hours * _HOUR_MS, now_ms)
        )
        return _with_secret(services, made, secret)

    @api.call("DELETE /api/keys/<path:name>", Rule.ADMIN, errors=(409,))
    def revoke(name: str) -> Response:
        """Revokes a key, for ever."""
        now_ms = services.clock.wall_ms()
        revoked = services.access.change(
            lambda connection: api_keys.revoke(connection, name, now_ms)
        )
        return jsonify(_shown(services, revoked))

    return api


def _find(services: Services, name: str) -> Key:
    found = services.access.snapshot.keys.get(name)
    if found is None:
        raise ApiError(404, "key_not_found", f"There is no key {name!r}")
    return found


def _with_secret(services: Services, key: Key, secret: str) -> Response:
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
        else {"amount": format_amount(key.budget.amount), "period": key.budget.period},
        "priority": key.priority,
        "raw": key.raw,
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
            "spent_today": format_amount(view.spent["day"]),
            "spent_this_month": format_amount(view.spent["month"]),
        },
    }


def _iso(ms: int | None) -> str | None:
    return None if ms is None else iso(ms)


def _changeable(services: Services) -> dict[str, Field]:
    names = list_of(text(1, 200), 1, None, "models' names, or null for all")
    return {
        "owner": text(most=100),
        "models": names.nullable(),
        "requests_per_minute": integer(1, _MAX_REQUESTS).nullable(),
        "tokens_per_minute": integer(1, _MAX_TOKENS).nullable(),
        "max_concurrency": integer(1, _MAX_REQUESTS).nullable(),
        "budget": record(_BUDGET, '{"amount": "10", "period": "month"}').nullable(),
        "priority": integer(0, api_keys.MAX_PRIORITY),
        "raw": boolean(),
        "expires_at": moment(lambda: zone_of(services)).nullable(),
    }


def _changes(body: dict[str, Any]) -> dict[str, Any]:
    """The fields of a Key."""
    changes = dict(body)
    if "expires_at" in changes:
        changes["expires_ms"] = changes.pop("expires_at")
    if changes.get("budget") is not None:
        changes["budget"] = Budget(**changes["budget"])
    return changes
