"""A trace: cards, models and requests in one CSV file.

The first column says what a row is; rows may stand in any order, requests are sorted by time:

    card,<name>,<MB>                                      the same name twice is two such cards
    model,<name>,<seconds to start>,<schemes>[,pinned]
    request,<seconds>,<model>,<seconds it takes>

Schemes are tried in their order and separated by ``|``; each is ``card name=MB``, with ``;``
between several cards. ``v100=9000;v100=9000|rtx 4060=8000`` is two V100, else one RTX 4060. Empty
lines and those that begin with ``#`` mean nothing.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from manager.placement.types import DeviceBudget, SchemeOption


class TraceError(Exception):
    """A trace cannot be read; the text says where and why."""


@dataclass(frozen=True)
class ModelSpec:
    """A model as a trace describes it; ``start_seconds`` is how long a cold start takes."""

    name: str
    start_seconds: float
    options: tuple[SchemeOption, ...]
    pinned: bool = False


@dataclass(frozen=True)
class Trace:
    """``requests`` are (seconds since the beginning, model, seconds it takes), in time's order."""

    cards: tuple[DeviceBudget, ...]
    models: tuple[ModelSpec, ...]
    requests: tuple[tuple[float, str, float], ...]


def read(path: Path) -> Trace:
    """Raises TraceError, and OSError where there is no such file."""
    cards: list[tuple[str, int]] = []
    models: dict[str, ModelSpec] = {}
    requests: list[tuple[float, str, float]] = []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        for row in reader:
            if not row or row[0].startswith("#"):
                continue
            try:
                match row:
                    case ["card", name, mb]:
                        cards.append((name, int(mb)))
                    case ["model", name, start, schemes]:
                        models[name] = ModelSpec(name, float(start), _options(schemes))
                    case ["model", name, start, schemes, "pinned"]:
                        models[name] = ModelSpec(name, float(start), _options(schemes), True)
                    case ["request", at, name, seconds]:
                        requests.append((float(at), name, float(seconds)))
                    case _:
                        raise TraceError(f"{path}:{reader.line_num}: no such row: {','.join(row)}")
            except ValueError as error:
                raise TraceError(f"{path}:{reader.line_num}: {error}") from error
    unknown = {name for _, name, _ in requests} - models.keys()
    if unknown:
        raise TraceError(f"{path}: requests for models it does not have: {sorted(unknown)}")
    return Trace(with_ids(cards), tuple(models.values()), tuple(sorted(requests)))


def write(trace: Trace, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        for card in trace.cards:
            writer.writerow(("card", card.name, card.total_mb))
        for model in trace.models:
            schemes = "|".join(
                ";".join(f"{name}={option.memory_mb[name]}" for name in option.required_devices)
                for option in model.options
            )
            pinned = ("pinned",) if model.pinned else ()
            writer.writerow(("model", model.name, f"{model.start_seconds:g}", schemes, *pinned))
        for at, name, seconds in trace.requests:
            writer.writerow(("request", f"{at:.1f}", name, f"{seconds:.1f}"))


def with_ids(cards: Iterable[tuple[str, int]]) -> tuple[DeviceBudget, ...]:
    """Cards of these names and MB; equal ones are told apart by a number."""
    cards = list(cards)
    same = Counter(name for name, _ in cards)
    seen: Counter[str] = Counter()
    made = []
    for name, mb in cards:
        made.append(DeviceBudget(f"{name} #{seen[name]}" if same[name] > 1 else name, name, mb))
        seen[name] += 1
    return tuple(made)


def _options(schemes: str) -> tuple[SchemeOption, ...]:
    options = []
    for number, scheme in enumerate(schemes.split("|"), start=1):
        pairs = [device.rpartition("=") for device in scheme.split(";")]
        memory_mb = {name.strip(): int(mb) for name, _, mb in pairs}
        names = tuple(name.strip() for name, _, _ in pairs)
        options.append(SchemeOption(f"scheme {number}", names, memory_mb))
    return tuple(options)
