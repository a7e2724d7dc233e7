"""Which context of a GGUF fits on which device."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from manager.engines.llama_cpp import llama_server_command
from manager.gguf import ModelFile, estimate

CONTEXTS = (4096, 8192, 16_384, 32_768, 65_536, 131_072)


@dataclass(frozen=True)
class Target:
    """A device that a model may be put on. ``is_host`` is for the processor and its RAM."""

    name: str
    total_mb: int
    is_host: bool = False


@dataclass(frozen=True)
class Need:
    """What the model takes of a device at a context (tokens), and of the host beside it."""

    context: int
    device_mb: int
    host_mb: int


@dataclass(frozen=True)
class Fit:
    """``needs`` are for rising contexts; ``largest`` is the last of them that the device has the
    memory for, None where none fits."""

    target: Target
    needs: tuple[Need, ...]
    largest: Need | None


def what_fits(
    model: ModelFile, mode: str, targets: Iterable[Target], projector: Path | None = None
) -> tuple[Fit, ...]:
    """For each device alone, what llama.cpp takes there at each context that the model was trained
    for. Raises GgufError."""
    trained = model.context or CONTEXTS[-1]
    contexts = sorted({*(each for each in CONTEXTS if each < trained), trained})
    estimates = []
    for context in contexts:
        command = llama_server_command(model.path, mode=mode, context=context, mmproj=projector)
        # As it is once it is run: the config has `$${` for a `${` in a name.
        found = estimate([each.replace("$${", "${") for each in command], Path("/"))
        assert found is not None  # the command names the model
        estimates.append((context, found))

    def fit(target: Target) -> Fit:
        needs = []
        for context, each in estimates:
            split = each.on(() if target.is_host else (1.0,))
            on_device = split.host_mb if target.is_host else split.device_mb[0]
            needs.append(Need(context, on_device, 0 if target.is_host else split.host_mb))
        fitting = [each for each in needs if each.device_mb <= target.total_mb]
        return Fit(target, tuple(needs), fitting[-1] if fitting else None)

    return tuple(map(fit, targets))
