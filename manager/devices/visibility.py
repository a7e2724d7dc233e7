"""The cards that variables of the program's own environment leave to it."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection, Mapping, Sequence

from manager.devices.base import Reading

log = logging.getLogger(__name__)

CUDA, ROCR, HIP = "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"
_INDEX = re.compile(r"\+?([0-9]{1,9})")  # what follows a number is ignored, as by strtoul()


def is_set(variable: str) -> bool:
    return variable in os.environ


def visible_cards(variable: str, uuids: Mapping[int, str]) -> Sequence[int]:
    """The indices of the cards that a variable names, in its order; all where it is not set.

    ``uuids`` has every card by the index that the variable counts with, "" for one whose UUID is
    not known. For CUDA that is the driver's, ``nvidia-smi``'s: it counts so with
    ``CUDA_DEVICE_ORDER=PCI_BUS_ID``, and which is the fastest, with which it begins else, is known
    to CUDA alone.

    As in CUDA and ROCm an entry is an index or a UUID, or as much of its beginning as no other
    card has, and the first that names no card ends the list: an empty value and ``-1`` are none.
    A MIG slice is no card here: where one is named, all cards are visible.
    """
    value = os.environ.get(variable)
    if value is None or names_mig(value):
        return list(uuids)
    visible: dict[int, None] = {}
    for entry in value.split(","):
        card = _card(entry.strip(), uuids)
        if card is None:
            break
        visible[card] = None
    return list(visible)


def names_mig(value: str) -> bool:
    return any(entry.strip().startswith("MIG-") for entry in value.split(","))


def _card(entry: str, uuids: Mapping[int, str]) -> int | None:
    if entry.startswith("GPU-"):
        prefix = entry.casefold()
        found = [index for index, uuid in uuids.items() if uuid.casefold().startswith(prefix)]
        return found[0] if len(found) == 1 else None
    number = _INDEX.match(entry)
    return int(number[1]) if number and int(number[1]) in uuids else None


class HiddenCardsLog:
    """Says once which cards of one maker are not used, and why; nothing where no variable is set.
    ``numbered`` is how ``variables`` number them."""

    def __init__(self, variables: Sequence[str], numbered: str) -> None:
        self._variables = variables
        self._numbered = numbered
        self._logged: Collection[str] | None = None

    def update(self, readings: Sequence[Reading]) -> None:
        """Takes what was read last."""
        hidden = {reading.id for reading in readings if reading.hidden_by is not None}
        if not readings or hidden == self._logged:
            return
        self._logged = hidden
        for variable in self._variables:
            value = os.environ.get(variable)
            ids = sorted(reading.id for reading in readings if reading.hidden_by == variable)
            if value is not None and names_mig(value):
                log.warning(
                    "%s=%s names MIG slices, which are not supported: it is ignored, and models"
                    " are placed on all NVIDIA cards",
                    variable,
                    value,
                )
            elif ids:
                log.info("%s=%s (%s) hides %s", variable, value, self._numbered, ", ".join(ids))
