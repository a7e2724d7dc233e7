"""What "add a model" offers for a model: engines, what fits where, and an entry of the config."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from manager.engines.fit import Fit, Target, what_fits
from manager.engines.presets import ENGINES, Engine
from manager.engines.proposal import Proposal, propose
from manager.gguf import Kind, ModelFile

DEFAULT_CONTEXT = 32_768
"""No more is offered by itself: a larger one takes memory that few conversations need."""


def engines_for(kind: Kind | None, device_kinds: Collection[str]) -> list[Engine]:
    """The engines that take a GGUF of this kind (None: the name of a Hugging Face model) on one of
    these kinds of devices, or on none; those first that can be run here."""
    suited = [
        engine
        for engine in ENGINES
        if engine.command
        and (kind in engine.kinds if kind else not engine.kinds)
        and not engine.lacks_device(device_kinds)
    ]
    return sorted(suited, key=lambda engine: engine.unavailable() is not None)


@dataclass(frozen=True)
class Offer:
    """A proposal, the context in it (None: the engine's own), and for a GGUF what fits where."""

    proposal: Proposal
    context: int | None
    fits: tuple[Fit, ...]


def offer(
    model: ModelFile | str,
    engine: Engine,
    targets: Sequence[Target],
    *,
    devices: Sequence[str] = (),
    context: int | None = None,
    projector: Path | None = None,
    name: str | None = None,
    taken: Collection[str] = (),
) -> Offer:
    """As `propose`, on a machine with these devices. Without a ``context`` a GGUF gets one that
    fits on the first of its ``devices``, or in RAM. Raises ProposalError, GgufError."""

    def proposed(tokens: int | None) -> Proposal:
        return propose(
            model,
            engine,
            devices=devices,
            context=tokens,
            projector=projector,
            name=name,
            taken=taken,
        )

    found = proposed(context)
    if not isinstance(model, ModelFile):
        return Offer(found, context, ())
    fits = what_fits(model, found.mode, targets, projector)
    if context is None:
        context = _first_context(fits, devices[0] if devices else None)
    return Offer(proposed(context), context, fits)


def _first_context(fits: Sequence[Fit], device: str | None) -> int | None:
    """The largest up to `DEFAULT_CONTEXT` that fits there, else the smallest; None where nothing
    is known of the device."""
    for fit in fits:
        if fit.target.name == device or (device is None and fit.target.is_host):
            fitting = [need.context for need in fit.needs if need.device_mb <= fit.target.total_mb]
            below = [context for context in fitting if context <= DEFAULT_CONTEXT]
            return max(below, default=fit.needs[0].context)
    return None
