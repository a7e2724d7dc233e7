"""The config that an import makes, which our own reader has accepted, and the report."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manager.config import Config, ConfigError, Model, edit, keys, loader
from manager.config.edit import EditError
from manager.importers.draft import Draft, Part
from manager.importers.source import SourceError
from manager.interfaces import BUILT_IN
from manager.storage import escaped

_MODES = tuple(interface.mode for interface in BUILT_IN)
_ORDER = [key.name for key in keys(Model)]
_INHERITED = [key.name for key in keys(Model) if key.inherit]
_LOOK = (
    "the config names programs that LLM-Manager runs as you: read every command before you use it"
)
_DEVICES = (
    "no memory is reserved for a scheme without required_devices: its model is started beside all"
    " others, whether or not the card has the memory. Name the cards, as in `required_devices:"
    " [rtx 4090]`, and models are placed by free memory; memory_mb is measured"
)


@dataclass(frozen=True)
class Imported:
    """`text` is the whole of a config.yaml, where there is none yet. `report` is what a person has
    to know, `models` are those taken over, `left_out` the others."""

    text: str
    report: str
    models: Mapping[str, Mapping[str, Any]]
    left_out: tuple[str, ...]


def finish(draft: Draft, target: Path, existing: Config | None = None) -> Imported:
    """Makes the config that is to be the file `target`, without the models in which our reader
    finds a problem: the report has that problem. Where `target` exists, the models are for its
    config, whose program settings stay. Raises SourceError."""
    text, parts = _config_text(draft)
    while problems := _problems(_with_variables(text, draft.variables), target):
        for line, message in problems:
            _take_out(_part_at(line, parts), message, draft)
        text, parts = _config_text(draft)
    if existing is not None:
        _fit_into(existing, draft)
    kept = draft.kept()
    return Imported(
        text,
        "\n".join(_report(draft)) + "\n",
        {model.name: _ordered(model.entry) for model in kept},
        tuple(model.name for model in draft.models.values() if model.left_out),
    )


def _take_out(part: Part, message: str, draft: Draft) -> None:
    """Takes out what our reader has a problem with: a model, or a key of the program. Raises
    SourceError where it is neither."""
    if part is not draft.program:
        part.left_out.append(message)
        return
    key = re.split("[,:]", message)[0]
    if part.entry.pop(key, None) is None:
        raise SourceError(f"the config that was made is not accepted: {message}")
    part.note(None, f"left out: {message}")


def _fit_into(existing: Config, draft: Draft) -> None:
    """Leaves out the models that the config cannot have. The others get the program settings of the
    source that the config has otherwise, where a model has the key."""
    settings = draft.program.entry
    inherited = {
        key: settings[key]
        for key in _INHERITED
        if key in settings and settings[key] != getattr(existing.program, key)
    }
    sources = {one.split(" → ")[-1]: one for one in draft.program.taken}
    for model in draft.kept():
        if clash := _clash(existing, model):
            model.left_out.append(f"{existing.path} has {clash} already")
        elif "url" not in model.entry:
            for key, value in inherited.items():
                if key not in model.entry:
                    model.entry[key] = value
                    model.taken.append(sources[key])
    if lost := ", ".join(dict.fromkeys(draft.program.taken)):
        draft.program.taken.clear()
        draft.program.note(None, f"not taken over, {existing.path} keeps its settings: {lost}")


def _clash(existing: Config, model: Part) -> str:
    """What of a model's the config has already; empty where nothing."""
    for name in (model.name, *model.entry.get("aliases", ())):
        if existing.find(name):
            return f"the name {name}"
    port = model.entry.get("port")
    ports = {existing.program.port, *(one.port for one in existing.models.values())}
    return f"port {port}" if port and port in ports else ""


def _part_at(line: int, parts: list[tuple[Part, int]]) -> Part:
    return next((part for part, last in parts if line <= last), parts[-1][0])


def _problems(text: str, target: Path) -> list[tuple[int, str]]:
    try:
        loader.parse(text, target, lambda _folder: _MODES)
    except ConfigError as error:
        return [(problem.line, problem.message) for problem in error.problems]
    return []


def _with_variables(text: str, names: set[str]) -> str:
    """The text as it is read where the program's environment has these variables."""
    for name in names - set(os.environ):
        text = text.replace(f"${{{name}}}", name)
    return text


def _config_text(draft: Draft) -> tuple[str, list[tuple[Part, int]]]:
    """The text, and each part with its last line in it. Raises SourceError."""
    settings = draft.program.entry
    # Braces would have to be taken out before anything could be added by hand.
    try:
        program = edit.written({"program": settings}) if settings else "program:\n"
    except EditError as error:
        raise SourceError(f"the settings of the program cannot be written: {error}") from error
    pieces = [program, "Local-Models:\n"]
    last_lines = [(draft.program, _lines(pieces))]
    for model in draft.kept():
        entry = {"Local-Models": {model.name: _ordered(model.entry)}}
        try:
            json.dumps(entry, ensure_ascii=False).encode()
            _, _, piece = edit.written(entry).partition("\n")
        except UnicodeEncodeError:
            model.left_out.append("it has half of a character (a lone surrogate) in it")
            continue
        except EditError as error:
            model.left_out.append(f"it cannot be written: {error}")
            continue
        pieces.append(piece)
        last_lines.append((model, _lines(pieces)))
    return "".join(pieces), last_lines


def _lines(pieces: list[str]) -> int:
    return sum(piece.count("\n") for piece in pieces)


def _ordered(entry: Mapping[str, Any]) -> dict[str, Any]:
    """In the order of the reference, the schemes last."""
    known = {name: entry[name] for name in _ORDER if name in entry}
    return {**known, **{name: value for name, value in entry.items() if name not in known}}


def _report(draft: Draft) -> Iterator[str]:
    kept = draft.kept()
    yield escaped(f"{draft.source}: {len(kept)} of {len(draft.models)} models taken over")
    for part in (draft.program, *draft.models.values()):
        if part.taken or part.notes or part.left_out:
            yield ""
            yield from map(escaped, _part(part))
    yield ""
    yield "before you use it:"
    yield f"  - {_LOOK}"
    if any(_reserves_nothing(model) for model in kept):
        yield f"  - {_DEVICES}"
    if missing := sorted(draft.variables - set(os.environ)):
        names = ", ".join(missing)
        yield escaped(f"  - the environment that LLM-Manager is started in has to have {names}")


def _part(part: Part) -> Iterator[str]:
    yield f"{part.name} (line {part.line})" if part.line else part.name
    for reason in part.left_out:
        yield f"  LEFT OUT: {reason}"
    if part.taken and not part.left_out:
        yield f"  taken over: {', '.join(dict.fromkeys(part.taken))}"
    for note in sorted(part.notes, key=lambda note: note.line or 0):
        yield f"  line {note.line}: {note.message}" if note.line else f"  {note.message}"


def _reserves_nothing(model: Part) -> bool:
    schemes = [value for value in model.entry.values() if isinstance(value, dict)]
    return any("command" in one and not one.get("required_devices") for one in schemes)
