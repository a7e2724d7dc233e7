"""Secrets that are brought along: those that nobody finds by trying, and all others."""

from __future__ import annotations

import math
import secrets
import string
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.access.credentials import (
    KEY_PREFIX,
    MIN_SECRET_BITS,
    check_secret,
    estimated_bits,
    hint,
    new_secret,
)
from manager.errors import ApiError

VISIBLE = string.ascii_letters + string.digits + string.punctuation


def refusal(secret: str) -> str:
    with pytest.raises(ApiError) as caught:
        check_secret(secret)
    assert (caught.value.status, caught.value.param) == (400, "secret")
    return caught.value.message


@pytest.mark.parametrize(
    "secret",
    [
        "sk-7Jq2vXn0Rk5tWbY8cZ1dLs",  # 22 of base64, as of LiteLLM
        "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",
        "sk-b0a7d94c6e2f4f1b8d35c7a9e1f0264d",
        "0b6f2d9c-51a7-4e83-9d2c-7f60a1b4c3e8",
        "lmk_mzxw6ytboi3q5d7ec2knu4vhga",
        "Aq7!mZ0#tR4$wK9%pL2^nB6&",
        "sk-llm-Vd3Kx8Qm5Zt1Rw7Ny2Bc",
    ],
)
def test_what_other_gateways_have_made_is_taken(secret: str) -> None:
    check_secret(secret)


@pytest.mark.parametrize(
    "secret",
    [
        "x",
        "sk-1234",
        "sk-litellm-proxy-master-key-1234",
        "sk-my-super-secret-production-key-for-the-team-2026",
        "correct-horse-battery-staple",
        "correcthorsebatterystaple",
        "123456789012345678901234567890",
        "31415926535897932384626433832795",
        "a1" * 60,
        "a" * 200,
        "abc123" * 20,
        "sk-abcdefghijklmnopqrstuvwxyz0123456789",
        "zyxwvutsrqponmlkjihgfedcba9876543210",
        "0123456789abcdef0123456789abcdef",
        "password1234password1234",
        "deadbeef" * 8,
        "7Jq2vXn0Rk5tWb",
        "aaaaaaaaaaaaaaaaaaaaa7Jq2vXn0Rk5t",
    ],
)
def test_what_could_be_guessed_is_not(secret: str) -> None:
    assert "could be guessed" in refusal(secret)


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "7Jq2vXn0Rk5t WbY8cZ1dLs",
        "7Jq2vXn0Rk5tWbY8cZ1dLs ",
        "7Jq2vXn0Rk5tWbY8cZ1dLs\n",
        "7Jq2vXn0Rk5t\x00WbY8cZ1dLs",
        "7Jq2vXn0Rk5t\x7fWbY8cZ1dLs",
        "7Jq2vXn0Rk5tWbY8cZ1dLsé",
        "7Jq2vXn0Rk5tWbY8cZ1dLs\udc80",
        "7Jq2vXn0Rk5tWbY8cZ1dLs" * 12,
    ],
)
def test_what_no_header_should_have_is_not(secret: str) -> None:
    assert "ASCII" in refusal(secret)


def test_what_looks_like_a_token_is_not() -> None:
    assert "is a token" in refusal("tk-llm-7Jq2vXn0Rk5tWbY8cZ1dLs")


@given(st.text(VISIBLE, min_size=12, max_size=60))
def test_no_refusal_has_the_secret(secret: str) -> None:
    said = ""
    try:
        check_secret(secret)
    except ApiError as error:
        said = error.message
    assert secret not in said


@given(st.text(VISIBLE, max_size=60), st.integers(1, 60))
def test_what_is_said_again_and_again_is_worth_no_more_than_once(secret: str, times: int) -> None:
    assert estimated_bits(secret * times) <= (len(secret) + 2) * math.log2(len(VISIBLE))


@given(st.sampled_from(VISIBLE), st.integers(4, 200))
def test_one_character_is_worth_nothing_however_often(character: str, times: int) -> None:
    assert estimated_bits(character * times) == 0


@given(st.text(VISIBLE, max_size=60))
def test_what_lists_show_of_it_is_not_counted(secret: str) -> None:
    assert estimated_bits(secret) == estimated_bits(secret[:-4] + "0000"[: len(secret)])
    assert len(hint(secret)) <= 4


def test_what_programs_make_at_random_is_enough() -> None:
    made = (new_secret(KEY_PREFIX), str(uuid.uuid4()), f"sk-{secrets.token_hex(24)}")
    assert all(estimated_bits(secret) > MIN_SECRET_BITS - 16 for secret in made)
