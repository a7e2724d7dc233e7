"""The devices as models are placed on them: what was read, within the budgets of the config."""

from __future__ import annotations

from dataclasses import replace

from manager.devices import Device, Reading, Snapshot
from manager.placement.device_state import device_budgets, visible_devices_env
from manager.placement.ledger import Ledger
from manager.placement.types import DeviceBudget

V100, RTX_4060 = "Tesla V100", "NVIDIA GeForce RTX 4060"


def snapshot(*readings: Reading) -> Snapshot:
    return Snapshot(tuple(Device(reading, 1.0, stale=False) for reading in readings))


def test_a_device_without_a_budget_is_used_as_a_whole() -> None:
    read = snapshot(Reading(V100, "nvidia", 0, 16000, 1000))
    assert device_budgets(read, {}) == [DeviceBudget("Tesla V100 #0", V100, 16000, 1000)]


def test_a_budget_below_a_cards_size_is_all_that_is_used_of_it() -> None:
    read = snapshot(Reading(V100, "nvidia", 0, 16000, 1000))
    assert device_budgets(read, {"v100": 8000}) == [DeviceBudget("Tesla V100 #0", V100, 8000, 0)]
    # Other programs use more than what the budget leaves them.
    read = snapshot(Reading(V100, "nvidia", 0, 16000, 9000))
    assert device_budgets(read, {"v100": 8000})[0].used_mb == 1000


def test_a_budget_above_a_cards_size_adds_nothing() -> None:
    read = snapshot(Reading(V100, "nvidia", 0, 16000, 0))
    assert device_budgets(read, {"v100": 20000})[0].total_mb == 16000


def test_a_card_whose_driver_reports_no_memory_has_its_budget() -> None:
    read = snapshot(Reading(V100, "nvidia", 0))
    assert device_budgets(read, {"v100": 8000}) == [DeviceBudget("Tesla V100 #0", V100, 8000, 0)]


def test_of_a_card_whose_driver_reports_only_what_is_used_that_counts_within_its_budget() -> None:
    read = snapshot(Reading(V100, "nvidia", 0, None, 3000))
    assert device_budgets(read, {"v100": 8000})[0].used_mb == 3000
    assert device_budgets(read, {})[0].total_mb is None


def test_a_card_whose_driver_reports_no_more_than_its_size_has_that() -> None:
    read = snapshot(Reading(V100, "nvidia", 0, 16000, None))
    assert device_budgets(read, {}) == [DeviceBudget("Tesla V100 #0", V100, 16000, 0)]


def test_a_size_of_0_is_not_known() -> None:
    read = snapshot(Reading(V100, "nvidia", 0, 0, 0))
    assert device_budgets(read, {})[0].total_mb is None
    assert device_budgets(read, {"v100": 8000})[0].total_mb == 8000


def test_a_budget_that_no_driver_knows_is_a_device_of_its_own() -> None:
    assert device_budgets(snapshot(), {"rtx 4060": 8000}) == [
        DeviceBudget("rtx 4060 #0", "rtx 4060", 8000)
    ]


def test_a_card_with_a_budget_that_its_driver_lists_no_more_is_not_there() -> None:
    read = snapshot(Reading(V100, "nvidia", 1, 16000, 0))
    budgets = device_budgets(read, {"rtx 4060": 6000}, driver_reported={"rtx 4060"})
    assert [budget.id for budget in budgets] == ["Tesla V100 #1"]


def test_a_hidden_card_is_not_there_though_it_has_a_budget() -> None:
    hidden = Reading(RTX_4060, "nvidia", 0, 8188, hidden_by="CUDA_VISIBLE_DEVICES")
    read = replace(snapshot(Reading(V100, "nvidia", 1, 16000, 0)), hidden=(hidden,))
    budgets = device_budgets(read, {"rtx 4060": 6000})
    assert [budget.id for budget in budgets] == ["Tesla V100 #1"]
    ledger = Ledger()
    ledger.read(read, {"rtx 4060": 6000})
    assert ledger.budgets(snapshot(), {"rtx 4060": 6000}) == []  # nor once it is offline


def test_a_script_is_given_its_nvidia_cards_in_the_drivers_order() -> None:
    read = snapshot(
        Reading(RTX_4060, "nvidia", 0), Reading(V100, "nvidia", 1), Reading("CPU + RAM", "cpu", 0)
    )
    assert visible_devices_env({"Tesla V100 #1": 1, f"{RTX_4060} #0": 1}, read) == {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "0,1",
    }
    assert visible_devices_env({"CPU + RAM #0": 50}, read) == {}


def test_a_script_is_given_its_amd_cards_by_hips_numbers() -> None:
    card = "AMD Radeon RX 7900 XTX"
    read = snapshot(Reading(V100, "nvidia", 0), Reading(card, "amd", 2), Reading(card, "amd", 0))
    assert visible_devices_env({f"{card} #2": 1, f"{card} #0": 1}, read) == {
        "HIP_VISIBLE_DEVICES": "0,2"
    }
    assert visible_devices_env({f"{card} #2": 1, "Tesla V100 #0": 1}, read) == {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "0",
        "HIP_VISIBLE_DEVICES": "2",
    }
