"""NVIDIA cards: through NVML where it is there, else through GPUtil and its ``nvidia-smi``."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from manager.devices import visibility
from manager.devices.base import DeviceError, DevicePlugin, Reading
from manager.devices.nvml import Nvml

log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 5.0  # for nvidia-smi, which takes one or two where the driver sleeps
_KILL_WAIT_SECONDS = 1.0  # what has not ended by then hangs inside of the driver
_MAX_TEXT = 400

# The first two of the twelve fields that GPUtil asks for: index and UUID.
_ROW = re.compile(r"\d+, \S+(, [^,]*){10}")
_NO_CARDS = "No devices were found"
# What nvidia-smi calls "infoROM is corrupted": a warning, behind readings that are right.
_INFOROM_CORRUPTED = 14


class Nvidia(DevicePlugin):
    """Every NVIDIA card, in the order in which ``nvidia-smi`` numbers them. Those that the
    program's own ``CUDA_VISIBLE_DEVICES`` does not name are hidden: see ``visible_cards``.

    Which of them is decided by the first reading and not before: initialising NVML may take
    seconds, and hangs where the driver does, which must not hold up the program's start.
    """

    name = "nvidia"

    def __init__(self) -> None:
        self._reader: DevicePlugin | None = None
        self._log = visibility.HiddenCardsLog((visibility.CUDA,), "as nvidia-smi numbers them")

    def read(self, pids: Collection[int]) -> Sequence[Reading]:
        if self._reader is None:
            self._reader = _choose()
        readings = self._reader.read(pids)
        self._log.update(readings)
        return readings


def _choose() -> DevicePlugin:
    try:
        return Nvml()
    except (ImportError, DeviceError) as reason:
        log.debug("NVIDIA cards are read through GPUtil: %s", reason)
        return Smi()


class Smi(DevicePlugin):
    """The cards that ``nvidia-smi`` lists, through GPUtil; none where it is not installed.

    Used memory is what is not free: it includes what the driver keeps for itself.
    """

    name = "nvidia"

    def read(self, pids: Collection[int]) -> Sequence[Reading]:  # noqa: ARG002 - it reports by card
        if not _is_installed():
            return ()
        if _call.overdue is not None:
            if _call.overdue.poll() is None:
                # Another one would hang as well, and they would heap up, one a second.
                raise DeviceError(
                    f"nvidia-smi (pid {_call.overdue.pid}) hangs inside of the driver and cannot"
                    " be ended; reload the driver or restart the machine"
                )
            _call.overdue = None
        gputil = _gputil()
        _call.fault = "nvidia-smi was not run"  # until its answer is there
        try:
            cards = gputil.getGPUs()
        except (ValueError, IndexError, ZeroDivisionError) as error:
            raise DeviceError(f"GPUtil cannot read what nvidia-smi printed: {error}") from error
        if _call.fault is not None:
            raise DeviceError(_call.fault)
        visible = visibility.visible_cards(visibility.CUDA, {card.id: card.uuid for card in cards})
        return [_reading(card, is_visible=card.id in visible) for card in cards]


def _reading(card: Any, *, is_visible: bool) -> Reading:
    total, used, free = _known(card.memoryTotal), _known(card.memoryUsed), _known(card.memoryFree)
    if total is not None and free is not None:
        used = total - free
    return Reading(
        name=card.name,
        kind="nvidia",
        index=card.id,
        total_mb=None if total is None else int(total),
        used_mb=None if used is None else int(used),
        load=_known(card.load),
        temperature_c=_known(card.temperature),
        hidden_by=None if is_visible else visibility.CUDA,
    )


def _known(number: float) -> float | None:
    """GPUtil makes NaN of ``[N/A]`` and of all else that is no number."""
    return None if math.isnan(number) else number


# --- GPUtil -----------------------------------------------------------------------------


def _is_installed() -> bool:
    if shutil.which("nvidia-smi"):
        return True
    # Where GPUtil searches for it on Windows when PATH does not have it.
    drive = os.environ.get("SYSTEMDRIVE") if os.name == "nt" else None
    folder = Path(f"{drive}\\Program Files\\NVIDIA Corporation\\NVSMI")
    return drive is not None and (folder / "nvidia-smi.exe").is_file()


def _gputil() -> Any:
    """The module that has ``getGPUs``, its ``Popen`` bounded. Imported once it is needed: most
    machines without a card never do."""
    try:
        from GPUtil import GPUtil
    except ModuleNotFoundError as error:
        if error.name == "GPUtil":
            raise DeviceError("GPUtil is not installed: pip install -r requirements.txt") from error
        if error.name not in ("distutils", "distutils.spawn"):
            raise
        with _distutils():
            from GPUtil import GPUtil
    GPUtil.Popen = _NvidiaSmi
    return GPUtil


@contextlib.contextmanager
def _distutils() -> Iterator[None]:
    """Python 3.12 has no distutils any more; GPUtil imports one function of it."""
    package, spawn = types.ModuleType("distutils"), types.ModuleType("distutils.spawn")
    vars(spawn)["find_executable"] = shutil.which
    vars(package)["spawn"] = spawn
    modules = {"distutils": package, "distutils.spawn": spawn}
    sys.modules.update(modules)
    try:
        yield
    finally:
        # Others who import distutils must find what they found without us.
        for name in modules:
            sys.modules.pop(name, None)


class _Call(threading.local):
    """What became of this thread's last ``nvidia-smi``: GPUtil takes any failure for "no cards".

    ``fault`` says why it has no answer, ``overdue`` is one that could not be ended. Of a thread,
    since GPUtil's ``Popen`` is one name for all of them.
    """

    fault: str | None = None
    overdue: subprocess.Popen[bytes] | None = None


_call = _Call()


class _NvidiaSmi(subprocess.Popen[bytes]):
    """The ``Popen`` that GPUtil starts ``nvidia-smi`` with, which would wait for it for ever."""

    def __init__(self, args: Sequence[str], **options: Any) -> None:
        # A group of its own: to be ended with all it started, and not by a Ctrl-C meant for us.
        options.update(stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        options["start_new_session"] = os.name == "posix"
        # Without a console of ours, Windows would open a window for it each second.
        options["creationflags"] = getattr(subprocess, "CREATE_NO_WINDOW", 0)
        try:
            super().__init__(args, **options)
        except OSError as error:
            _call.fault = f"nvidia-smi cannot be run: {error.strerror}"
            raise

    def communicate(
        self,
        input: Any = None,
        timeout: float | None = None,
    ) -> tuple[bytes, bytes]:
        """The rows of the cards and nothing else; why there are none is in ``_call.fault``."""
        try:
            output, errors = super().communicate(
                input, TIMEOUT_SECONDS if timeout is None else timeout
            )
        except subprocess.TimeoutExpired:
            _call.fault = (
                f"nvidia-smi did not answer within {TIMEOUT_SECONDS:g} seconds and was ended;"
                " run it in a terminal to see what it waits for"
            )
            self._end()
            return b"", b""
        lines = [line.strip() for line in (output + errors).decode("utf-8", "replace").splitlines()]
        rows = [line for line in lines if _ROW.fullmatch(line)]
        _call.fault = _fault(
            self.returncode, [line for line in lines if line and not _ROW.fullmatch(line)]
        )
        return "".join(row + os.linesep for row in rows).encode(), b""

    def _end(self) -> None:
        if sys.platform == "win32":
            self.kill()
        else:
            with contextlib.suppress(ProcessLookupError):  # it ended just now
                os.killpg(self.pid, signal.SIGKILL)
        try:
            super().communicate(timeout=_KILL_WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            # A process that waits inside of the driver cannot be killed: waiting for its end
            # would wait for the driver.
            _call.overdue = self


def _fault(code: int, text: list[str]) -> str | None:
    """Why an exit code and the lines beside the cards' rows mean a failure; None if they do not."""
    message = " ".join(line for line in text if not line.upper().startswith("WARNING"))[:_MAX_TEXT]
    if message.startswith(_NO_CARDS):
        return None
    if code in (0, _INFOROM_CORRUPTED):
        return f"nvidia-smi says: {message}" if message else None
    how = f"exit code {code}" if code > 0 else f"signal {-code}"
    return f"nvidia-smi ended with {how}: {message}" if message else f"nvidia-smi ended with {how}"
