"""The NVIDIA cards that the environment of the program itself leaves to it."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection, Mapping

log = logging.getLogger(__name__)

VARIABLE = "CUDA_VISIBLE_DEVICES"
_INDEX = re.compile(r"\+?([0-9]{1,9})")  # what follows a number is ignored, as by strtoul()


def is_set() -> bool:
    return VARIABLE in os.environ


def visible_cards(uuids: Mapping[int, str]) -> Collection[int]:
    """The indices of the cards that ``CUDA_VISIBLE_DEVICES`` names; all where it is not set.

    ``uuids`` has every card by the driver's index, "" for one whose UUID is not known. Indices
    are the driver's too, ``nvidia-smi``'s: CUDA counts so with ``CUDA_DEVICE_ORDER=PCI_BUS_ID``,
    and which is the fastest, with which it begins else, is known to CUDA alone.

    As in CUDA an entry is an index or a UUID, or as much of its beginning as no other card has,
    and the first that names no card ends the list: an empty value and ``-1`` are none. A MIG slice
    is no card here: where one is named, all cards are visible.
    """
    value = os.environ.get(VARIABLE)
    if value is None or names_mig(value):
        return uuids.keys()
    visible = set()
    for entry in value.split(","):
        card = _card(entry.strip(), uuids)
        if card is None:
            break
        visible.add(card)
    return visible


def names_mig(value: str) -> bool:
    return any(entry.strip().startswith("MIG-") for entry in value.split(","))


def _card(entry: str, uuids: Mapping[int, str]) -> int | None:
    if entry.startswith("GPU-"):
        found = [index for index, uuid in uuids.items() if uuid.startswith(entry)]
        return found[0] if len(found) == 1 else None
    number = _INDEX.match(entry)
    return int(number[1]) if number and int(number[1]) in uuids else None


def log_hidden(ids: Collection[str]) -> None:
    """Says which cards are not used, and why; nothing where the variable is not set."""
    value = os.environ.get(VARIABLE)
    if value is None:
        return
    if names_mig(value):
        log.warning(
            "%s=%s names MIG slices, which are not supported: it is ignored, and models are"
            " placed on all NVIDIA cards",
            VARIABLE,
            value,
        )
    elif ids:
        log.info(
            "%s=%s (as nvidia-smi numbers them) hides %s", VARIABLE, value, ", ".join(sorted(ids))
        )
