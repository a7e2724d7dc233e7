"""``/api/prices`` and ``/api/adjustments``: what models cost, and what corrects a bill."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import replace
from typing import Any

from flask import Response, jsonify

from manager.billing import Adjustment, Price, PriceVersion, Tier, format_amount, iso, pricing
from manager.tokens import MAX_TOKENS
from routes.api.usage import model_named, zone_of
from routes.calls import Api, Rule
from routes.request import (
    Body,
    Field,
    Number,
    amount,
    anything,
    bad,
    boolean,
    integer,
    list_of,
    moment,
    record,
    text,
)
from routes.services import Services

_MAX_TIERS = 100
_MAX_TOKENS = 10**12
_SECONDS = re.compile(r"([0-9]{1,9})(?:\.([0-9]{1,3}))?")


def _tier_field(declared: dataclasses.Field[Any]) -> Field:
    """What a body may have for a field of ``Tier``, by its declaration there."""
    unit, default = declared.metadata["unit"], declared.metadata["default"]
    if unit == "tokens":  # whose default is the least that they may be
        return integer(default, _MAX_TOKENS).default_to(default)
    if unit == "flag":
        return boolean().default_to(bool(default))
    return amount().required() if default is None else replace(amount(), default=default)


_TIER = Body({one.name: _tier_field(one) for one in dataclasses.fields(Tier)})
_PRICE = {
    "per_hour": amount().nullable(),
    "tiers": list_of(record(_TIER, ""), 0, _MAX_TIERS, "tiers").nullable(),
}
_TOKENS = integer(0, MAX_TOKENS).default_to(0)


def blueprint(services: Services) -> Api:
    api = Api("prices", tag="money")
    when = moment(lambda: zone_of(services))

    @api.call("GET /api/prices", Rule.VIEW, query={"model": anything()})
    def prices(query: dict[str, Any]) -> Response:
        """Every version of every price, or of one model's, oldest first."""
        model = query.get("model")
        versions = services.prices.versions(None if model is None else model_named(services, model))
        return jsonify(
            {
                "currency": services.fleet.config.program.currency,
                "prices": [_version(version) for version in versions],
            }
        )

    @api.call(
        "PUT /api/models/<path:name>/price",
        Rule.ADMIN,
        body=Body(
            {"effective_from": when.nullable(), **_PRICE},
            {"description": "per_hour, tiers or both"},
        ),
        errors=(409,),
    )
    def put(name: str, body: dict[str, Any]) -> Response:
        """Sets a new version of a model's price."""
        model = services.fleet.find(name).settings.name
        price = _price(body)
        version = services.prices.set_price(model, price, body.get("effective_from"))
        answer = {**_version(version), "currency": services.fleet.config.program.currency}
        return jsonify(answer | {"warnings": pricing.warnings(price)})

    @api.call(
        "POST /api/prices/quote",
        Rule.VIEW,
        body={
            **_PRICE,
            "prompt_tokens": _TOKENS,
            "cached_tokens": _TOKENS,
            "completion_tokens": _TOKENS,
            "seconds": Field(
                _milliseconds, {"type": "number", "minimum": 0, "maximum": 999999999}, default=0
            ),
        },
    )
    def quote(body: dict[str, Any]) -> Response:
        """What a request would cost under a price, which is not stored."""
        price = _price(body)
        prompt, cached = body["prompt_tokens"], body["cached_tokens"]
        completion = body["completion_tokens"]
        if cached > prompt:
            raise bad("cached_tokens", "cached_tokens are a part of prompt_tokens: no more of them")
        place = pricing.tier_of(price, prompt, completion)
        tier = None if place is None else price.tiers[place]
        tokens = 0 if tier is None else pricing.token_cost(tier, prompt, cached, completion)
        hours = pricing.hour_cost(price.per_hour, body["seconds"])
        return jsonify(
            {
                "currency": services.fleet.config.program.currency,
                "cost": format_amount(tokens + hours),
                "cost_tokens": format_amount(tokens),
                "cost_hours": format_amount(hours),
                "tier": place,
                "warnings": pricing.warnings(price),
            }
        )

    @api.call(
        "GET /api/adjustments",
        Rule.VIEW,
        query={"model": anything(), "key": anything(), "start": when, "end": when},
    )
    def adjustments(query: dict[str, Any]) -> Response:
        """What was added to bills or taken off them, oldest first."""
        model = query.get("model")
        found = services.prices.adjustments(
            None if model is None else model_named(services, model),
            query.get("key"),
            query.get("start"),
            query.get("end"),
        )
        return jsonify(
            {
                "currency": services.fleet.config.program.currency,
                "adjustments": [_adjustment(one) for one in found],
            }
        )

    @api.call(
        "POST /api/adjustments",
        Rule.ADMIN,
        body={
            "model": text().default_to(""),
            "key": text().default_to(""),
            "at": when.nullable(),
            "amount": amount(is_signed=True).required(),
            "note": text(1).required(),
        },
        answers={201: "Json"},
        errors=(404,),
    )
    def adjust(body: dict[str, Any]) -> tuple[Response, int]:
        """Adds an amount to a bill, or takes it off; it stays."""
        at_ms, note = body.get("at"), body["note"]
        if body["amount"] == 0:
            raise bad("amount", "amount has to be another than 0")
        if not note.strip():
            raise bad("note", "note has to say what the adjustment is for")
        at_ms = services.clock.wall_ms() if at_ms is None else at_ms
        model = model_named(services, body["model"])
        if model and model not in services.reports.models():
            model = services.fleet.find(model).settings.name
        made = services.prices.add_adjustment(model, body["key"], at_ms, body["amount"], note)
        if made.key:
            services.limits.apply_adjustment(made.key, made.at_ms, made.amount)
        return jsonify(_adjustment(made)), 201

    return api


def _version(version: PriceVersion) -> dict[str, Any]:
    per_hour = version.price.per_hour
    return {
        "id": version.id,
        "model": version.model,
        "effective_from": iso(version.effective_ms),
        "per_hour": None if per_hour is None else format_amount(per_hour),
        "tiers": [_shown(tier) for tier in version.price.tiers],
        "created_at": iso(version.created_ms),
    }


def _shown(tier: Tier) -> dict[str, Any]:
    return {
        one.name: format_amount(value) if one.metadata["unit"] == "amount" else value
        for one in dataclasses.fields(Tier)
        for value in [getattr(tier, one.name)]
    }


def _adjustment(one: Adjustment) -> dict[str, Any]:
    return {
        "id": one.id,
        "model": one.model,
        "key": one.key,
        "at": iso(one.at_ms),
        "amount": format_amount(one.amount),
        "note": one.note,
        "created_at": iso(one.created_ms),
    }


# --- reading a body ---------------------------------------------------------------------


def _price(body: dict[str, Any]) -> Price:
    per_hour, tiers = body.get("per_hour"), body.get("tiers")
    if per_hour is None and tiers is None:
        raise bad("tiers", "a price has per_hour, tiers or both")
    price = Price(per_hour, tuple(Tier(**tier) for tier in tiers or ()))
    faults = pricing.find_errors(price)
    if faults:
        raise bad("tiers", "; ".join(faults))
    return price


def _milliseconds(path: str, value: Any) -> int:
    found = _SECONDS.fullmatch(value) if isinstance(value, Number) else None
    if found is None:
        raise bad(path, f"{path} has to be from 0 to 999999999, with at most three decimals")
    whole, part = found.groups("")
    return int(whole) * 1000 + int(part.ljust(3, "0"))
