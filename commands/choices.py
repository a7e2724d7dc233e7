"""What `add` has to know of a model, from its options or asked on a terminal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from commands import console, options
from commands.options import CommandError
from manager.config import Config
from manager.engines import BY_ID, Engine, Fit, Offer, Target, engines_for, offer, what_fits
from manager.gguf import ModelFile, list_models, read_model
from manager.storage import escaped

T = TypeVar("T")

NO_DEVICE = "cpu"
_MAX_SHOWN = 40  # files to choose from


class Device(NamedTuple):
    """``total_mb`` is None where nothing reports it."""

    name: str
    kind: str
    total_mb: int | None


class Chosen(NamedTuple):
    """A GGUF with its image projector, or what is for vLLM."""

    model: ModelFile | str
    projector: Path | None


class Questions:
    """Asked on a terminal where they are on; else each has its first answer."""

    def __init__(self, *, is_on: bool) -> None:
        self.is_on = is_on

    def choose(self, what: str, answers: Sequence[tuple[str, T]]) -> T:
        """One of the answers, each with its text; there is at least one."""
        if not self.is_on or len(answers) == 1:
            return answers[0][1]
        for number, (text, _) in enumerate(answers, 1):
            console.write_note(f"{number:3}  {escaped(text)}")
        while True:
            given = self._answer(f"{what} [1]: ") or "1"
            if given.isdecimal() and 0 < int(given) <= len(answers):
                return answers[int(given) - 1][1]
            console.write_note(
                f"{given} is not in the list: type a number from 1 to {len(answers)}"
            )

    def text(self, what: str, default: str) -> str:
        return (self._answer(f"{what} [{escaped(default)}]: ") if self.is_on else "") or default

    def agrees(self, what: str, default: str = "y") -> bool:
        """The default, `y` or `n`, is what an empty line means. False where nobody is asked."""
        shown = "Y/n" if default == "y" else "y/N"
        return self.is_on and (self._answer(f"{what} [{shown}]: ").lower() or default) in (
            "y",
            "yes",
        )

    def require(self, what: str, default: str = "y") -> None:
        """Raises CommandError unless that is agreed to."""
        if not self.is_on:
            raise CommandError("nothing was written: nobody can be asked here; say --yes")
        if not self.agrees(what, default):
            raise CommandError("nothing was written")

    @staticmethod
    def _answer(prompt: str) -> str:
        print(prompt, end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            raise CommandError("nothing was written")
        return line.strip()


def choose(
    arguments: argparse.Namespace, config: Config, devices: Sequence[Device], ask: Questions
) -> Offer:
    """A proposal. Raises CommandError, ProposalError, GgufError."""
    model, projector = _model(arguments.model, arguments.engine, config, ask)
    engine = _engine(model, arguments.engine, devices, ask)
    targets = [
        Target(one.name, one.total_mb, is_host=one.kind == "cpu")
        for one in devices
        if one.total_mb is not None
    ]
    fits = what_fits(model, "Chat", targets, projector) if isinstance(model, ModelFile) else ()
    names = _device_names(arguments.device, engine, devices, fits, ask)
    taken = [name for one in config.models.values() for name in (one.name, *one.aliases)]

    def offered(context: int | None, name: str | None) -> Offer:
        return offer(
            model,
            engine,
            targets,
            devices=names,
            context=context,
            projector=projector,
            name=name,
            taken=taken,
        )

    found = offered(arguments.context, arguments.name)
    if arguments.name and found.proposal.name != arguments.name:
        raise CommandError(f"there is a model {arguments.name} already: choose another name")
    if isinstance(model, ModelFile) and model.context and (arguments.context or 0) > model.context:
        console.write_note(
            f"{model.path.name} was trained for a context of {model.context:,} tokens: beyond that"
            " its answers may be useless"
        )
    if not ask.is_on:
        return found
    context = arguments.context or _context(found, names, ask)
    name = arguments.name or ask.text("Name", found.proposal.name)
    return offered(context, name)


def _model(given: str | None, engine: str | None, config: Config, ask: Questions) -> Chosen:
    folders: Sequence[Path] = config.program.models_dir
    if given is not None:
        path = options.path(given).absolute()
        if engine is not None and not BY_ID[engine].kinds:
            return Chosen(str(path) if path.is_dir() else given, None)
        if not path.exists():
            raise CommandError(
                f"there is no {path}; for the name of a Hugging Face model say --engine vllm"
            )
        if not path.is_dir():
            return Chosen(read_model(path), _projector(path))
        folders = [path]
    if not folders:
        raise CommandError("say which file, or set models_dir in the config")
    listing = list_models(folders)
    for note in (*listing.notes, *(one.error for one in listing.models if one.error)):
        console.write_note(escaped(note))
    files = [
        (_described(one.model), Chosen(one.model, next(iter(one.projectors), None)))
        for one in listing.models
        if one.model
    ]
    if not files:
        raise CommandError(f"there is no GGUF in {', '.join(map(str, folders))}")
    if len(files) > _MAX_SHOWN:
        raise CommandError(f"there are {len(files)} GGUFs: say which, or a folder with fewer")
    if len(files) > 1 and not ask.is_on:
        paths = [escaped(str(one.path)) for one in listing.models if one.model]
        raise CommandError(f"say which: {', '.join(paths)}")
    return ask.choose("File", files)


def _projector(path: Path) -> Path | None:
    """The one beside a file that belongs to it."""
    for listed in list_models([path.parent], is_deep=False).models:
        if listed.path == path:
            return next(iter(listed.projectors), None)
    return None


def _described(model: ModelFile) -> str:
    size = f"{model.size / 2**30:.1f} GB"
    context = f"context {model.context:,}" if model.context else ""
    parts = [model.kind.value, model.architecture, model.quantisation, size, context]
    return f"{model.path.name}: {', '.join(part for part in parts if part)}"


def _engine(
    model: ModelFile | str, given: str | None, devices: Sequence[Device], ask: Questions
) -> Engine:
    if given is not None:
        if why := BY_ID[given].unavailable():
            console.write_note(f"{BY_ID[given].title}: {why}")
        return BY_ID[given]
    kind = model.kind if isinstance(model, ModelFile) else None
    found = engines_for(kind, {device.kind for device in devices})
    usable = [engine for engine in found if not engine.unavailable()]
    if not usable:
        reasons = [f"{engine.title}: {engine.unavailable()}" for engine in found]
        raise CommandError("\n".join(["nothing here runs it", *reasons]))
    return ask.choose("Engine", [(engine.title, engine) for engine in usable])


def _device_names(
    given: Sequence[str] | None,
    engine: Engine,
    devices: Sequence[Device],
    fits: Sequence[Fit],
    ask: Questions,
) -> tuple[str, ...]:
    """`required_devices`: as given, else one card on which the model fits, else none."""
    if given is not None:
        return tuple(name for name in given if name.lower() != NO_DEVICE)
    needs = {fit.target.name: fit for fit in fits}
    cards = [one for one in devices if one.kind != "cpu" and one.kind in engine.device_kinds]
    # The first is the answer where nobody is asked: what has the memory, the largest before others.
    cards.sort(key=lambda one: (_fits(needs.get(one.name)), one.total_mb or 0), reverse=True)
    answers: list[tuple[str, tuple[str, ...]]] = [
        (_with_fit(card.name, needs.get(card.name)), (card.name,)) for card in cards
    ]
    if "cpu" in engine.device_kinds:
        host = next((fit for fit in fits if fit.target.is_host), None)
        answers.append((_with_fit("the processor and its RAM", host), ()))
        if cards and not _fits(needs.get(cards[0].name)):
            answers.insert(0, answers.pop())
    if not answers:
        raise CommandError(f"{engine.title} needs a device, and none is online: say --device NAME")
    return ask.choose("Device", answers)


def _fits(fit: Fit | None) -> bool:
    """True also where nothing is known."""
    return fit is None or fit.largest is not None


def _with_fit(name: str, fit: Fit | None) -> str:
    if fit is None:
        return name
    if fit.largest is None:
        smallest = fit.needs[0]
        return f"{name}: too small, {smallest.device_mb:,} MB for a context of {smallest.context:,}"
    return f"{name}: context up to {fit.largest.context:,} ({fit.largest.device_mb:,} MB)"


def _context(found: Offer, names: Sequence[str], ask: Questions) -> int | None:
    """Of those that are shown for the first device, what was proposed first."""
    for fit in found.fits:
        if fit.target.name == names[0] if names else fit.target.is_host:
            needs = sorted(fit.needs, key=lambda need: need.context != found.context)
            return ask.choose(
                "Context",
                [
                    (f"{need.context:,} tokens: {need.device_mb:,} MB", need.context)
                    for need in needs
                ],
            )
    return found.context
