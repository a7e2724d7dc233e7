"""``/api/prices`` and ``/api/adjustments``: what models cost, and what corrects a bill."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from flask import Blueprint, Response, jsonify

from manager.billing import pricing
from manager.billing.calendar import iso
from manager.billing.price_versions import Adjustment
from manager.billing.pricing import Price, PriceVersion, Tier, decimal_text
from manager.storage.store import DatabaseError
from manager.tokens import MAX_TOKENS
from routes import fields
from routes.api.usage import database_error, model_named, zone_of
from routes.request import Number, Query, bad, body, refuse_unknown
from routes.services import Services

_PRICE = ("effective_from", "per_hour", "tiers")
_TOKENS = ("prompt_tokens", "cached_tokens", "completion_tokens")
_QUOTE = ("per_hour", "tiers", *_TOKENS, "seconds")
_ADJUSTMENT = ("model", "key", "at", "amount", "note")
_MOST_TIERS = 100
_MOST_TOKENS = 10**12
_SECONDS = re.compile(r"([0-9]{1,9})(?:\.([0-9]{1,3}))?")


def blueprint(services: Services) -> Blueprint:
    routes = Blueprint("prices", __name__)
    routes.register_error_handler(DatabaseError, database_error)

    @routes.get("/api/prices")
    def prices() -> Response:
        model = Query(("model",)).text("model")
        versions = services.prices.versions(None if model is None else model_named(services, model))
        return jsonify(
            {
                "currency": services.fleet.config.program.currency,
                "prices": [_version(version) for version in versions],
            }
        )

    @routes.put("/api/models/<path:name>/price")
    def put(name: str) -> Response:
        model = services.fleet.find(name).settings.name
        given = body()
        refuse_unknown(given, _PRICE)
        price = _price(given)
        moment = given.get("effective_from")
        effective_ms = (
            None if moment is None else fields.moment("effective_from", moment, zone_of(services))
        )
        version = services.prices.set_price(model, price, effective_ms)
        answer = {**_version(version), "currency": services.fleet.config.program.currency}
        return jsonify(answer | {"warnings": pricing.warnings(price)})

    @routes.post("/api/prices/quote")
    def quote() -> Response:
        given = body()
        refuse_unknown(given, _QUOTE)
        price = _price(given)
        prompt, cached, completion = (fields.read(given, name, _tokens, 0) for name in _TOKENS)
        if cached > prompt:
            raise bad("cached_tokens", "cached_tokens are a part of prompt_tokens: no more of them")
        place = pricing.tier_of(price, prompt, completion)
        tier = None if place is None else price.tiers[place]
        tokens = 0 if tier is None else pricing.token_cost(tier, prompt, cached, completion)
        hours = pricing.hour_cost(price.per_hour, fields.read(given, "seconds", _milliseconds, 0))
        return jsonify(
            {
                "currency": services.fleet.config.program.currency,
                "cost": decimal_text(tokens + hours),
                "cost_tokens": decimal_text(tokens),
                "cost_hours": decimal_text(hours),
                "tier": place,
                "warnings": pricing.warnings(price),
            }
        )

    @routes.get("/api/adjustments")
    def adjustments() -> Response:
        query, zone = Query(("model", "key", "start", "end")), zone_of(services)
        model = query.text("model")
        found = services.prices.adjustments(
            None if model is None else model_named(services, model),
            query.text("key"),
            query.moment_ms("start", zone),
            query.moment_ms("end", zone),
        )
        return jsonify(
            {
                "currency": services.fleet.config.program.currency,
                "adjustments": [_adjustment(one) for one in found],
            }
        )

    @routes.post("/api/adjustments")
    def adjust() -> tuple[Response, int]:
        given = body()
        refuse_unknown(given, _ADJUSTMENT)
        amount = fields.read(given, "amount", fields.signed)
        note = fields.read(given, "note", fields.text)
        if amount == 0:
            raise bad("amount", "amount has to be another than 0")
        if not note.strip():
            raise bad("note", "note has to say what the adjustment is for")
        moment = given.get("at")
        at_ms = (
            services.clock.wall_ms()
            if moment is None
            else fields.moment("at", moment, zone_of(services))
        )
        model = model_named(services, fields.read(given, "model", fields.text, ""))
        if model and model not in services.reports.models():
            model = services.fleet.find(model).settings.name
        made = services.prices.add_adjustment(
            model, fields.read(given, "key", fields.text, ""), at_ms, amount, note
        )
        if made.key:
            services.limits.apply_adjustment(made.key, made.at_ms, made.amount)
        return jsonify(_adjustment(made)), 201

    return routes


def _version(version: PriceVersion) -> dict[str, Any]:
    per_hour = version.price.per_hour
    return {
        "id": version.id,
        "model": version.model,
        "effective_from": iso(version.effective_ms),
        "per_hour": None if per_hour is None else decimal_text(per_hour),
        "tiers": [_shown(tier) for tier in version.price.tiers],
        "created_at": iso(version.created_ms),
    }


def _shown(tier: Tier) -> dict[str, Any]:
    return {
        one.name: decimal_text(value) if one.metadata["unit"] == "amount" else value
        for one in dataclasses.fields(Tier)
        for value in [getattr(tier, one.name)]
    }


def _adjustment(one: Adjustment) -> dict[str, Any]:
    return {
        "id": one.id,
        "model": one.model,
        "key": one.key,
        "at": iso(one.at_ms),
        "amount": decimal_text(one.amount),
        "note": one.note,
        "created_at": iso(one.created_ms),
    }


# --- reading a body: the name that a message gives a field is its path -------------------


def _price(given: dict[str, Any]) -> Price:
    per_hour, tiers = given.get("per_hour"), given.get("tiers")
    if per_hour is None and tiers is None:
        raise bad("tiers", "a price has per_hour, tiers or both")
    if not isinstance(tiers, list | None):
        raise bad("tiers", "tiers has to be a list")
    if len(tiers or ()) > _MOST_TIERS:
        raise bad("tiers", f"tiers has to have at most {_MOST_TIERS} in it")
    price = Price(
        None if per_hour is None else fields.amount("per_hour", per_hour),
        tuple(_tier(f"tiers[{place}].", tier) for place, tier in enumerate(tiers or ())),
    )
    faults = pricing.faults(price)
    if faults:
        raise bad("tiers", "; ".join(faults))
    return price


def _tier(path: str, given: Any) -> Tier:
    if not isinstance(given, dict):
        raise bad(path.rstrip("."), f"{path.rstrip('.')} has to be an object")
    refuse_unknown(given, tuple(one.name for one in dataclasses.fields(Tier)), path)
    values = {
        one.name: fields.read(given, one.name, _reader(one), _default(one), path)
        for one in dataclasses.fields(Tier)
    }
    return Tier(**values)


def _reader(one: dataclasses.Field[Any]) -> fields.Reader:
    unit, least = one.metadata["unit"], one.metadata["default"]
    if unit == "tokens":
        return lambda path, value: fields.integer(path, value, least, _MOST_TOKENS)
    return fields.amount if unit == "amount" else fields.boolean


def _default(one: dataclasses.Field[Any]) -> Any:
    default = one.metadata["default"]
    return fields.REQUIRED if default is None else default


def tier_schema() -> dict[str, Any]:
    """The schema of a tier in a body."""
    amount = {"$ref": "#/components/schemas/Amount"}
    properties = {
        one.name: {
            "tokens": {"type": "integer", "minimum": one.metadata["default"]},
            "amount": amount,
            "flag": {"type": "boolean"},
        }[one.metadata["unit"]]
        for one in dataclasses.fields(Tier)
    }
    return {
        "type": "object",
        "additionalProperties": False,
        "required": [
            one.name for one in dataclasses.fields(Tier) if one.metadata["default"] is None
        ],
        "properties": properties,
    }


def _tokens(path: str, value: Any) -> int:
    return fields.integer(path, value, 0, MAX_TOKENS)


def _milliseconds(path: str, value: Any) -> int:
    found = _SECONDS.fullmatch(value) if isinstance(value, Number) else None
    if found is None:
        raise bad(path, f"{path} has to be from 0 to 999999999, with at most three decimals")
    whole, part = found.groups("")
    return int(whole) * 1000 + int(part.ljust(3, "0"))
