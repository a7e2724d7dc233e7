"""Money: the pure price formula, price versions, bills, and the calendar they go by."""

from manager.billing import calendar, pricing, statements
from manager.billing.calendar import iso
from manager.billing.price_versions import Adjustment, PriceBook, read_versions
from manager.billing.pricing import (
    OPEN,
    Price,
    PriceVersion,
    Tier,
    billionths,
    decimal_text,
    hour_cost,
    tiers_to_json,
)
from manager.billing.statements import Period

__all__ = [
    "OPEN",
    "Adjustment",
    "Period",
    "Price",
    "PriceBook",
    "PriceVersion",
    "Tier",
    "billionths",
    "calendar",
    "decimal_text",
    "hour_cost",
    "iso",
    "pricing",
    "read_versions",
    "statements",
    "tiers_to_json",
]
