"""Money: the pure price formula, price versions, bills, and the calendar they go by."""

from manager.billing import calendar, pricing, statements
from manager.billing.calendar import iso
from manager.billing.price_versions import Adjustment, PriceBook, read_versions
from manager.billing.pricing import (
    UNBOUNDED,
    Price,
    PriceVersion,
    Tier,
    format_amount,
    hour_cost,
    parse_amount,
    tiers_to_json,
)
from manager.billing.statements import Period

__all__ = [
    "UNBOUNDED",
    "Adjustment",
    "Period",
    "Price",
    "PriceBook",
    "PriceVersion",
    "Tier",
    "calendar",
    "format_amount",
    "hour_cost",
    "iso",
    "parse_amount",
    "pricing",
    "read_versions",
    "statements",
    "tiers_to_json",
]
