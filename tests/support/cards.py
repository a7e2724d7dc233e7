"""Plays NVIDIA cards: a ``nvidia-smi`` for PATH that says what a test wants, when it wants."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_STAND_IN = Path(__file__).with_name("nvidia_smi.py")


def card(name: str, total: int | None, used: int | None = 0, **more: Any) -> dict[str, Any]:
    """One card, memory in MB; ``more`` may be ``util`` (percent), ``temp``, ``reserved``,
    ``index``, ``uuid``, ``real``."""
    return {"name": name, "total": total, "used": used, "util": 0, "temp": 40, **more}


class Cards:
    """The cards of one machine, in a folder of their own. ``env`` is what a program needs that
    is to see them; ``held`` the folder where fake model servers write what they take."""

    def __init__(self, folder: Path, cards: Sequence[dict[str, Any]] = ()) -> None:
        self._file = folder / "cards.json"
        self._calls = folder / "cards.json.calls"
        self.bin = folder / "bin"
        self.held = folder / "held"
        self.bin.mkdir(parents=True)
        self.held.mkdir()
        program = self.bin / "nvidia-smi"
        # Isolated from everything that site would import, to be quick.
        text = f"#!{sys.executable} -SE\n" + _STAND_IN.read_text(encoding="utf-8")
        program.write_text(text, encoding="utf-8")
        program.chmod(0o755)
        self._play: dict[str, Any] = {"cards": [], "held": str(self.held)}
        self.set(*cards)

    @property
    def env(self) -> dict[str, str]:
        path = os.pathsep.join([str(self.bin), os.environ.get("PATH", os.defpath)])
        return {"PATH": path, "FAKE_NVIDIA_SMI": str(self._file)}

    @property
    def calls(self) -> int:
        """How often it was run."""
        return len(self.call_times)

    @property
    def call_times(self) -> list[float]:
        """When it was run, in epoch seconds."""
        if not self._calls.exists():
            return []
        return [float(line) for line in self._calls.read_text(encoding="utf-8").split()]

    def set(self, *cards: dict[str, Any]) -> None:
        """These cards are there from now on; see ``card``."""
        self.play(cards=list(cards))

    def play(self, **changes: Any) -> None:
        """Changes what ``nvidia_smi.py`` reads; None takes a key away."""
        self._play.update(changes)
        play = {key: value for key, value in self._play.items() if value is not None}
        replace(self._file, play)

    def hang(self, how: str = "for ever") -> None:
        """Further calls do not answer, "until changed" or "for ever"."""
        self.play(hang=how)

    def fail(self, text: str, code: int) -> None:
        """Further calls print the text and end with the exit code."""
        self.play(text=text, code=code)

    def answer(self) -> None:
        """Further calls answer again, at once."""
        self.play(hang=None, text=None, code=None, delay=None, warning=None)

    def hold(self, pid: int, card: int, mb: int) -> None:
        """While the process lives it takes memory on the card, as a model's server does."""
        replace(self.held / f"{pid}-{card}.json", {"pid": pid, "card": card, "mb": mb})


def replace(path: Path, value: Any) -> None:
    """Writes JSON so that a reader sees the old or the new and never a half."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
    temporary.write_text(json.dumps(value), encoding="utf-8")
    os.replace(temporary, path)
