"""What requests and hours cost, and what a price says about itself."""

from __future__ import annotations

import itertools
from decimal import ROUND_HALF_UP, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.billing import pricing
from manager.billing.pricing import MAX_AMOUNT, PER_UNIT, Price, Tier
from manager.tokens import MAX_TOKENS


def tier(
    min_input: int = 0,
    max_input: int = -1,
    min_output: int = 0,
    max_output: int = -1,
    **amounts: int,
) -> Tier:
    prices = {"input": 1, "output": 2, "cache_read": 0, "cache_write": 0, "support_cache": False}
    return Tier(min_input, max_input, min_output, max_output, **{**prices, **amounts})


def per_token(*tiers: Tier) -> Price:
    return Price(None, tiers)


amounts = st.integers(0, MAX_AMOUNT * PER_UNIT) | st.integers(0, 10**10)
tokens = st.integers(0, 40) | st.integers(0, MAX_TOKENS)
bounds = st.integers(0, 6)
tiers = st.builds(
    Tier,
    bounds,
    st.integers(-1, 6),
    bounds,
    st.integers(-1, 6),
    *[amounts] * 4,
    st.booleans(),
)


# Which tier.


@pytest.mark.parametrize(
    ("prompt", "completion", "place"),
    [
        (0, 0, 0),
        (32000, 5, 0),
        (32001, 0, 1),  # a bound belongs to the tier below it
        (64000, 8000, 1),
        (64000, 8001, None),
        (64001, 1, None),
    ],
)
def test_a_request_has_the_tier_whose_ranges_it_lies_in(
    prompt: int, completion: int, place: int | None
) -> None:
    price = per_token(tier(0, 32000), tier(32000, 64000, 0, 8000))
    assert pricing.tier_of(price, prompt, completion) == place


def test_the_first_tier_that_fits_is_the_price() -> None:
    price = per_token(tier(10, 100), tier(0, 50), tier())
    assert [pricing.tier_of(price, prompt, 1) for prompt in (5, 10, 11, 100, 101)] == [
        1,
        1,
        0,
        0,
        2,
    ]


def test_a_tier_for_no_output_at_all_takes_embeddings() -> None:
    price = per_token(tier(0, -1, 0, 0), tier(0, -1, 0, -1))
    assert [pricing.tier_of(price, 10, completion) for completion in (0, 1)] == [0, 1]


# What it costs.


def test_tokens_cost_their_part_of_a_million() -> None:
    plain = tier(input=2_000_000_000, output=8_000_000_000)
    assert pricing.token_cost(plain, 1000, 600, 500) == 2_000_000 + 4_000_000


def test_cached_tokens_cost_their_reading_and_the_others_their_writing_too() -> None:
    cached = tier(
        input=2_000_000_000,
        output=8_000_000_000,
        cache_read=200_000_000,
        cache_write=500_000_000,
        support_cache=True,
    )
    # 600 read at 0.2, 400 at 2 and 0.5, 500 at 8, a million.
    assert pricing.token_cost(cached, 1000, 600, 500) == 120_000 + 1_000_000 + 4_000_000


@pytest.mark.parametrize(("amount", "cost"), [(499_999, 0), (500_000, 1), (1_499_999, 1)])
def test_half_a_billionth_is_rounded_up(amount: int, cost: int) -> None:
    assert pricing.token_cost(tier(input=amount), 1, 0, 0) == cost


def test_a_request_is_rounded_once_and_not_each_part_of_it() -> None:
    assert pricing.token_cost(tier(input=400_000, output=400_000), 1, 0, 1) == 1


@given(tier=tiers, prompt=tokens, part=st.fractions(0, 1), completion=tokens)
def test_a_cost_is_exact_and_fits_the_database(
    tier: Tier, prompt: int, part: float, completion: int
) -> None:
    cached = int(prompt * part)
    cost = pricing.token_cost(tier, prompt, cached, completion)
    if tier.support_cache:
        exact = cached * tier.cache_read + (prompt - cached) * (tier.input + tier.cache_write)
    else:
        exact = prompt * tier.input
    exact += completion * tier.output
    assert cost == (Decimal(exact) / 1_000_000).quantize(Decimal(1), ROUND_HALF_UP)
    assert cost < 2**63


@pytest.mark.parametrize(
    ("per_hour", "ms", "cost"),
    [
        (3_600_000_000, 1000, 1_000_000),
        (1, 1_799_999, 0),
        (1, 1_800_000, 1),
        (MAX_AMOUNT * PER_UNIT, 3_600_000, MAX_AMOUNT * PER_UNIT),
        (0, 3_600_000, 0),
        (None, 3_600_000, 0),
    ],
)
def test_time_costs_its_part_of_an_hour(per_hour: int | None, ms: int, cost: int) -> None:
    assert pricing.hour_cost(per_hour, ms) == cost


# How it is kept and shown.


@given(tiers=st.lists(tiers, max_size=4))
def test_tiers_come_back_from_the_database_as_they_were(tiers: list[Tier]) -> None:
    assert pricing.tiers_from_json(pricing.tiers_to_json(tiers)) == tuple(tiers)


@pytest.mark.parametrize("text", ["", "{", "[1]", '[{"input": 1}]', "null", '["input"]'])
def test_a_column_that_holds_no_tiers_is_told(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - what json says of it is as good
        pricing.tiers_from_json(text)


@given(amount=st.integers(-(2**63), 2**63))
def test_an_amount_is_shown_exactly(amount: int) -> None:
    text = pricing.format_amount(amount)
    assert Decimal(text).scaleb(9) == amount
    assert "e" not in text.lower()
    assert "." not in text or not text.endswith(("0", "."))


@pytest.mark.parametrize(
    ("amount", "text"),
    [(0, "0"), (12_300_000, "0.0123"), (-500_000_000, "-0.5"), (1, "0.000000001"), (10**10, "10")],
)
def test_an_amount_is_shown_without_what_says_nothing(amount: int, text: str) -> None:
    assert pricing.format_amount(amount) == text


@given(amount=amounts)
def test_an_amount_that_is_shown_can_be_read_again(amount: int) -> None:
    assert pricing.parse_amount(pricing.format_amount(amount)) == amount


# What is wrong with a price.


def test_ranges_that_no_number_lies_in_are_named() -> None:
    price = per_token(tier(0, 100), tier(500, 100, 8, 8))
    assert pricing.find_errors(price) == [
        "tier 2: max_input 100 is not above min_input 500; expected more than 500, or -1 for no"
        " limit",
        "tier 2: max_output 8 is not above min_output 8; expected more than 8, or -1 for no limit",
    ]


def test_a_range_of_zero_alone_is_one() -> None:
    assert pricing.find_errors(per_token(tier(0, 0, 0, 0))) == []


def test_tiers_that_overlap_are_named_with_where() -> None:
    price = per_token(tier(0, 32000), tier(16000, -1, 0, 8000), tier(32000, -1, 8000, -1))
    assert pricing.warnings(price) == [
        "tiers 1 and 2 overlap: input 16001 to 32000 with output 0 to 8000 is priced by tier 1"
    ]


def test_gaps_between_tiers_are_named_with_where() -> None:
    price = per_token(tier(0, 100), tier(200, 300, 0, 10), tier(300, -1, 5, 10))
    ends = ": such requests cost nothing"
    assert pricing.warnings(price) == [
        "no tier fits input 101 to 200 with output of any length" + ends,
        "no tier fits input 201 to 300 with output over 10" + ends,
        "no tier fits input over 300 with output 0 to 5" + ends,
        "no tier fits input over 300 with output over 10" + ends,
    ]


@pytest.mark.parametrize(
    "price",
    [
        per_token(tier()),
        per_token(tier(0, 32000), tier(32000, -1)),
        per_token(tier(0, 5, 0, 3), tier(0, 5, 3, -1), tier(5, -1)),
        Price(5, ()),  # by the hour alone: tokens cost nothing, and are meant to
    ],
)
def test_a_price_for_every_request_has_nothing_to_name(price: Price) -> None:
    assert pricing.find_errors(price) == pricing.warnings(price) == []


@given(tiers=st.lists(tiers, min_size=1, max_size=4))
def test_there_is_a_warning_where_a_request_fits_two_tiers_or_none(tiers: list[Tier]) -> None:
    price = per_token(*tiers)
    fitting = [
        sum(pricing.tier_of(per_token(tier), *counts) is not None for tier in tiers)
        for counts in itertools.product(range(9), repeat=2)
    ]
    found = pricing.warnings(price)
    assert any("overlap" in warning for warning in found) == any(fits > 1 for fits in fitting)
    assert any("no tier fits" in warning for warning in found) == (0 in fitting)
