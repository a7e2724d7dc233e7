"""Which cards the program's own CUDA_VISIBLE_DEVICES leaves to it, by nvidia-smi's rows."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from manager.devices import Nvidia, Reading, visibility
from manager.devices.nvidia import Smi
from manager.devices.visibility import CUDA, visible_cards
from tests.support.cards import Cards, card

UUIDS = {
    0: "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6",
    1: "GPU-8932aaaa-1a2b-3c4d-5e6f-000000000001",
    2: "GPU-5ebe9f43-ac33-420f-b628-000000000002",
    4: "",
}


def visible(monkeypatch: pytest.MonkeyPatch, value: str) -> list[int]:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    return sorted(visible_cards(CUDA, UUIDS))


def test_cards_come_in_the_order_in_which_they_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0,2")
    assert visible_cards(CUDA, UUIDS) == [2, 0]


def test_without_the_variable_every_card_is_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert sorted(visible_cards(CUDA, UUIDS)) == [0, 1, 2, 4]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1", [1]),
        ("2,0", [0, 2]),
        (" 2 , 0 ", [0, 2]),
        ("1,1", [1]),
        ("4", [4]),
        ("+1,2x", [1, 2]),
        (UUIDS[2], [2]),
        (f"{UUIDS[2]},{UUIDS[0]}", [0, 2]),
        ("GPU-8932f,GPU-5", [0, 2]),
        ("GPU-8932F", [0]),
        ("1,GPU-5ebe", [1, 2]),
    ],
)
def test_cards_are_named_by_index_by_uuid_and_by_its_beginning(
    monkeypatch: pytest.MonkeyPatch, value: str, expected: list[int]
) -> None:
    assert visible(monkeypatch, value) == expected


@pytest.mark.parametrize("value", ["", " ", "-1", "none", "NoDevFiles", "-1,0", ",0", "GPU-", "9"])
def test_a_value_that_begins_with_no_card_is_none(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    assert visible(monkeypatch, value) == []


@pytest.mark.parametrize(
    "end", ["-1", "3", "99999999999999999999", "", "x", "²", "GPU-8932", "GPU-ffff", UUIDS[2] + "0"]
)
def test_what_names_no_card_ends_the_list(monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    assert visible(monkeypatch, f"1,{end},2") == [1]


@pytest.mark.parametrize("value", ["MIG-5ebe9f43", "0,MIG-GPU-5ebe9f43/1/0"])
def test_a_value_with_a_mig_slice_is_ignored_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, value: str
) -> None:
    assert visible(monkeypatch, value) == [0, 1, 2, 4]
    log = visibility.HiddenCardsLog((CUDA,), "as nvidia-smi numbers them")
    for _ in range(2):
        log.update([Reading("Tesla V100", "nvidia", 0)])
    assert len(caplog.messages) == 1
    assert "MIG slices, which are not supported" in caplog.text


# --- as nvidia-smi lists them -----------------------------------------------------------


@pytest.fixture
def cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cards:
    """Two V100 and an A100, which CUDA itself would count first."""
    cards = Cards(
        tmp_path / "machine",
        [
            card("Tesla V100", 16384, uuid=UUIDS[0]),
            card("Tesla V100", 16384, uuid=UUIDS[1]),
            card("NVIDIA A100", 40960, uuid=UUIDS[2]),
        ],
    )
    for name, value in cards.env.items():
        monkeypatch.setenv(name, value)
    return cards


@pytest.mark.usefixtures("cards")
@pytest.mark.parametrize("value", ["1", "GPU-8932a"])
def test_only_the_visible_cards_are_used_and_keep_the_drivers_number(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    readings = Smi().read(())
    assert {reading.id: reading.hidden_by for reading in readings} == {
        "Tesla V100 #0": "CUDA_VISIBLE_DEVICES",
        "Tesla V100 #1": None,
        "NVIDIA A100 #2": "CUDA_VISIBLE_DEVICES",
    }


@pytest.mark.usefixtures("cards")
def test_without_the_variable_no_card_is_hidden_and_nothing_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    caplog.set_level(logging.INFO)
    assert [reading.hidden_by for reading in Nvidia().read(())] == [None] * 3
    assert caplog.messages == []


@pytest.mark.usefixtures("cards")
def test_the_log_says_once_which_cards_are_hidden(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0")
    caplog.set_level(logging.INFO)
    plugin = Nvidia()
    for _ in range(2):
        plugin.read(())
    assert caplog.messages == [
        "CUDA_VISIBLE_DEVICES=2,0 (as nvidia-smi numbers them) hides Tesla V100 #1"
    ]
