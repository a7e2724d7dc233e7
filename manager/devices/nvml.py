"""NVIDIA cards through NVML, the driver's own library: a millisecond, and memory by process."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from manager.devices import visibility
from manager.devices.base import DeviceError, DevicePlugin, Reading

log = logging.getLogger(__name__)

_MB = 2**20


@dataclass(frozen=True)
class _Card:
    handle: Any
    name: str
    index: int


class Nvml(DevicePlugin):
    """Every card that NVML lists. Used memory includes what the driver keeps for itself.

    Making it loads and initialises the library, which may take seconds and may hang: make it
    where it is read. Raises ImportError without the wheel ``nvidia-ml-py``, DeviceError where the
    library is missing or does not work.
    """

    name = "nvidia"

    def __init__(self) -> None:
        import pynvml

        self._nvml: Any = pynvml
        self._cards: list[_Card] | None = None  # their handles cost too much to ask for each time
        self._visible: Collection[int] = ()
        self._unknown = {
            pynvml.NVML_ERROR_NOT_SUPPORTED,
            pynvml.NVML_ERROR_NO_PERMISSION,
            pynvml.NVML_ERROR_NOT_FOUND,
            pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
            pynvml.NVML_ERROR_INSUFFICIENT_SIZE,  # a list that grew while it was asked for
            pynvml.NVML_ERROR_NO_DATA,
            pynvml.NVML_ERROR_NOT_READY,
        }
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise _fault(error) from error

    def read(self, pids: Collection[int]) -> Sequence[Reading]:  # noqa: ARG002 - NVML has all
        try:
            return self._readings()
        except self._nvml.NVMLError:
            # After a reload of the driver, and after a card was lost, every handle is void and
            # the library has to be initialised again. Which errors say so depends on the driver.
            self._end()
        try:
            self._nvml.nvmlInit()
            return self._readings()
        except self._nvml.NVMLError as error:
            raise _fault(error) from error

    def _end(self) -> None:
        self._cards = None
        with contextlib.suppress(self._nvml.NVMLError):  # it was not initialised
            self._nvml.nvmlShutdown()

    def _readings(self) -> list[Reading]:
        if self._cards is None:
            self._cards = self._find()
        return [
            self._reading(card)
            if card.index in self._visible
            else Reading(card.name, "nvidia", card.index, hidden_by=visibility.CUDA)
            for card in self._cards
        ]

    def _find(self) -> list[_Card]:
        nvml = self._nvml
        cards = []
        # A lost card is still the one that its index names.
        uuids = dict.fromkeys(range(nvml.nvmlDeviceGetCount()), "")
        for index in uuids:
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                name = _text(nvml.nvmlDeviceGetName(handle))
                if visibility.is_set(visibility.CUDA):
                    uuids[index] = _text(self._known(nvml.nvmlDeviceGetUUID, handle) or "")
                self._known(nvml.nvmlDeviceGetMemoryInfo, handle)
            except nvml.NVMLError as error:
                if error.value != nvml.NVML_ERROR_GPU_IS_LOST:
                    raise
                # It has fallen off the bus and stays away until the machine restarts; the other
                # cards work on.
                log.warning("NVIDIA card %d is offline: %s", index, error)
                continue
            cards.append(_Card(handle, name, index))
        self._visible = visibility.visible_cards(visibility.CUDA, uuids)
        return cards

    def _reading(self, card: _Card) -> Reading:
        nvml = self._nvml
        # Before what is used: of a process that ends in between, or frees some, nothing counts as
        # other programs'.
        held_mb = self._held(card.handle)
        memory = self._known(nvml.nvmlDeviceGetMemoryInfo, card.handle)
        rates = self._known(nvml.nvmlDeviceGetUtilizationRates, card.handle)
        return Reading(
            name=card.name,
            kind="nvidia",
            index=card.index,
            total_mb=None if memory is None else memory.total // _MB,
            used_mb=None if memory is None else -(-memory.used // _MB),
            load=None if rates is None else rates.gpu / 100,
            temperature_c=self._known(
                nvml.nvmlDeviceGetTemperature, card.handle, nvml.NVML_TEMPERATURE_GPU
            ),
            held_mb=held_mb,
        )

    def _held(self, handle: Any) -> dict[int, int] | None:
        """MB by pid; None where the driver does not report it, as on Windows' desktops."""
        nvml = self._nvml
        lists = [
            self._known(nvml.nvmlDeviceGetComputeRunningProcesses, handle),
            self._known(nvml.nvmlDeviceGetGraphicsRunningProcesses, handle),
        ]
        if lists == [None, None]:
            return None
        held: dict[int, int] = {}
        is_incomplete = False
        for processes in lists:
            own: dict[int, int] = {}
            for process in processes or ():
                if process.usedGpuMemory is None:
                    is_incomplete = True
                else:  # a process has an entry for each slice of a divided card
                    own[process.pid] = own.get(process.pid, 0) + process.usedGpuMemory
            # One that computes and draws stands in both lists, each time with all that it holds.
            held.update({pid: max(used, held.get(pid, 0)) for pid, used in own.items()})
        if is_incomplete and not held:
            return None
        return {pid: -(-used // _MB) for pid, used in held.items()}

    def _known(self, ask: Callable[..., Any], *arguments: Any) -> Any:
        """The answer; None where this card or this driver has none."""
        try:
            return ask(*arguments)
        except self._nvml.NVMLError as error:
            if error.value in self._unknown:
                return None
            raise


def _text(answer: str | bytes) -> str:
    """Older releases of the wheel answer with bytes."""
    return answer.decode("utf-8", "replace") if isinstance(answer, bytes) else answer


def _fault(error: Exception) -> DeviceError:
    return DeviceError(
        f"NVML, the NVIDIA driver's library, reports: {error}; see what nvidia-smi reports"
    )
