from __future__ import annotations

import io
import wave
from typing import Any

from manager.interfaces.base import Interface
from manager.interfaces.endpoints import OF_TRANSCRIPTION, paths_of

_SAMPLES_PER_SECOND = 16_000
_SECONDS = 0.5


class Transcription(Interface):
    """What recordings say: ``/v1/audio/transcriptions``."""

    mode = "Transcription"
    endpoints = paths_of(OF_TRANSCRIPTION)

    def probe(self, model: str) -> tuple[str, dict[str, Any]]:
        return self.endpoints[0], {"model": model, "file": ("silence.wav", _silence())}


def _silence() -> bytes:
    """A sound file in which nothing is said."""
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(_SAMPLES_PER_SECOND)
        sound.writeframes(bytes(2 * int(_SAMPLES_PER_SECOND * _SECONDS)))
    return file.getvalue()
