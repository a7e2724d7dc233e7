"""Which card a name in ``required_devices`` means."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.placement.matching import assignments, matches, missing_devices

REAL = [
    "NVIDIA GeForce RTX 4060",
    "NVIDIA GeForce RTX 4060 Ti",
    "NVIDIA GeForce RTX 4060 Laptop GPU",
    "NVIDIA GeForce RTX 4070 Ti",
    "NVIDIA GeForce RTX 4070 Ti SUPER",
    "NVIDIA GeForce RTX 4090",
    "NVIDIA GeForce RTX 4090 D",
    "Tesla V100-SXM2-16GB",
    "Tesla V100-PCIE-32GB",
    "Tesla V100S-PCIE-32GB",
    "NVIDIA A100 80GB PCIe",
    "NVIDIA A100-SXM4-40GB",
    "NVIDIA A10",
    "NVIDIA L4",
    "NVIDIA L40",
    "NVIDIA L40S",
    "AMD Radeon RX 7900 XT",
    "AMD Radeon RX 7900 XTX",
    "CPU + RAM",
]


@pytest.mark.parametrize(
    ("wanted", "meant"),
    [
        ("rtx 4060", ["NVIDIA GeForce RTX 4060", "NVIDIA GeForce RTX 4060 Laptop GPU"]),
        ("RTX  4060 Ti", ["NVIDIA GeForce RTX 4060 Ti"]),
        ("rtx 4060 laptop", ["NVIDIA GeForce RTX 4060 Laptop GPU"]),
        ("rtx 4070", []),
        ("rtx 4070 ti", ["NVIDIA GeForce RTX 4070 Ti"]),
        ("4070 ti super", ["NVIDIA GeForce RTX 4070 Ti SUPER"]),
        ("RTX 4090", ["NVIDIA GeForce RTX 4090"]),
        ("rtx 4090 d", ["NVIDIA GeForce RTX 4090 D"]),
        ("v100", ["Tesla V100-SXM2-16GB", "Tesla V100-PCIE-32GB"]),
        ("V100-SXM2-16GB", ["Tesla V100-SXM2-16GB"]),
        ("v100s", ["Tesla V100S-PCIE-32GB"]),
        ("a100", ["NVIDIA A100 80GB PCIe", "NVIDIA A100-SXM4-40GB"]),
        ("A100 80GB", ["NVIDIA A100 80GB PCIe"]),
        ("a10", ["NVIDIA A10"]),
        ("l4", ["NVIDIA L4"]),
        ("L40", ["NVIDIA L40"]),
        ("l40s", ["NVIDIA L40S"]),
        ("rx 7900 xt", ["AMD Radeon RX 7900 XT"]),
        ("RX 7900 XTX", ["AMD Radeon RX 7900 XTX"]),
        ("rx 7900", []),
        ("cpu", ["CPU + RAM"]),
        ("ram", ["CPU + RAM"]),
        ("CPU + RAM", ["CPU + RAM"]),
        ("geforce rtx", REAL[:3] + REAL[3:7]),
        ("", []),
        ("+", []),
    ],
)
def test_a_name_means_these_cards_and_no_others(wanted: str, meant: list[str]) -> None:
    assert [name for name in REAL if matches(wanted, name)] == meant


@given(st.sampled_from(REAL), st.sampled_from([" ", "  ", "-", "_", " - "]), st.booleans())
def test_case_and_spaces_do_not_matter(name: str, between: str, upper: bool) -> None:
    written = between.join(name.split())
    assert matches(written.upper() if upper else written.lower(), name)


@given(st.sampled_from(REAL), st.sampled_from(REAL))
def test_a_card_s_full_name_means_no_other_card(one: str, other: str) -> None:
    laptop = {one, other} == set(REAL[:3:2])  # its name begins with all of the other's
    assert matches(one, other) == (one == other) or laptop


def test_one_name_for_equal_cards_can_be_any_of_them() -> None:
    cards = {"V100 #0": "Tesla V100", "V100 #1": "Tesla V100"}
    assert list(assignments(["v100"], cards)) == [{"V100 #0": "v100"}, {"V100 #1": "v100"}]


def test_a_name_twice_is_two_cards_in_one_way() -> None:
    cards = {"V100 #0": "Tesla V100", "V100 #1": "Tesla V100", "L4": "NVIDIA L4"}
    assert list(assignments(["v100", "V100"], cards)) == [{"V100 #0": "v100", "V100 #1": "v100"}]


def test_a_scheme_without_devices_is_always_possible() -> None:
    assert list(assignments([], {})) == [{}]


def test_the_reason_names_what_is_missing() -> None:
    cards = {"V100": "Tesla V100", "L4": "NVIDIA L4"}
    assert missing_devices(["v100", "rtx 4060"], cards) == "rtx 4060 is not online"
    assert missing_devices(["v100", "V100"], cards) == "it needs 2 of v100, and 1 is online"
    assert "same device" in missing_devices(["v100", "tesla v100"], cards)


names = st.sampled_from(["a", "b", "A", "c"])


@given(
    st.lists(names, max_size=3),
    st.lists(st.sampled_from(["a one", "a two", "b", "c"]), max_size=5),
)
def test_every_way_is_found_once_and_takes_a_card_for_each_name(
    required: list[str], online: list[str]
) -> None:
    cards = {f"{name} #{number}": name for number, name in enumerate(online)}
    found = [
        tuple(sorted((card, name.lower()) for card, name in way.items()))
        for way in assignments(required, cards)
    ]
    expected = {
        tuple(sorted((card, name.lower()) for name, card in zip(required, way, strict=True)))
        for way in itertools.permutations(cards, len(required))
        if all(matches(name, cards[card]) for name, card in zip(required, way, strict=True))
    }
    assert len(found) == len(set(found))
    assert set(found) == expected
    assert bool(found) or missing_devices(required, cards)


def test_names_in_any_script_are_told_apart() -> None:
    assert matches("显卡", "我的 显卡")
    assert matches("Карта", "карта")
    assert matches("昇腾 910B", "昇腾 910B")
    assert not matches("昇腾 910B", "寒武纪 910B")
