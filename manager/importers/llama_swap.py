"""llama-swap's config: https://github.com/mostlygeek/llama-swap, config.example.yaml of 2026."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

from manager.config import Program, readers
from manager.config.yaml_reader import InvalidValue, Section, TooManyProblems, Value, section
from manager.importers import command_line, llama_swap_filters, llama_swap_model, macros
from manager.importers.draft import SCHEME, Draft, Part
from manager.importers.given import Given, count, mapping, texts
from manager.importers.llama_swap_model import Model, minutes
from manager.importers.macros import Macros
from manager.importers.source import SourceError, read_document

_LEVELS = {"debug": "DEBUG", "info": "INFO", "warn": "WARNING", "error": "ERROR"}
_BY_MEMORY = "models are placed by free memory: what may run together need not be said"
_WITHOUT = {
    "startPort": "is not needed: free ports are chosen",
    "matrix": _BY_MEMORY,
    "profiles": "has no counterpart: `aliases` of a model are for all clients",
    "selectors": "has no counterpart: write each as one of `aliases` of its model",
}
# They mean nothing for a server that others start.
_OF_OUR_SERVERS = ("alive_time", "start_timeout", "auto_start", "pinned")


def read(path: Path) -> Draft:
    """What a config of llama-swap comes to. Raises SourceError."""
    document, problems = read_document(path)
    draft = Draft(path.name)
    try:
        _Config(section(document), draft).read()
    except InvalidValue as error:
        raise SourceError(f"{path.name}: {error}") from error
    except TooManyProblems as error:
        raise SourceError(f"{path.name}: {problems[-1].message}") from error
    for problem in problems:
        draft.program.note(problem.line, problem.message)
    return draft


class _Config:
    def __init__(self, root: Section, draft: Draft) -> None:
        self._root = root
        self._draft = draft
        self._program = draft.program
        self._given = Given(root, draft.program)
        self._macros = Macros(self._given.read("macros", mapping) or {})

    def read(self) -> None:
        models = self._given.read("models", section)
        found = list(models.unread()) if models else []
        if not found:
            raise SourceError(f"{self._draft.source} has no models: is it llama-swap's config?")
        self._settings()
        # All names first: an alias cannot take one.
        parts = [(self._draft.add(name, value.key_line), value) for name, value in found]
        read = [model for part, value in parts if (model := self._model(part, value))]
        self._peers()
        self._groups()
        self._preload()
        self._choose_ports(read)
        for part in self._draft.models.values():
            if "url" in part.entry:
                for key in _OF_OUR_SERVERS:
                    part.drop(key, "others start and stop that server")
        self._given.note_rest(_WITHOUT)

    def _model(self, part: Part, value: Value) -> Model | None:
        try:
            return llama_swap_model.read(section(value), part, self._macros, self._draft)
        except InvalidValue as fault:
            part.left_out.append(str(fault))
            return None

    def _settings(self) -> None:
        self._program.set(
            "globalTTL", "alive_time", minutes(self._given.read("globalTTL", count) or 0)
        )
        for theirs, ours in (
            ("healthCheckTimeout", "start_timeout"),
            ("unloadTimeout", "stop_timeout"),
        ):
            if value := self._given.read(theirs, count):
                self._program.set(theirs, ours, value)
        for theirs, ours in (
            ("sendLoadingState", "send_loading_state"),
            ("includeAliasesInList", "list_aliases"),
        ):
            if self._given.read(theirs, readers.boolean):
                self._program.set(theirs, ours, True)
        level = _LEVELS.get(self._given.read("logLevel", readers.scalar_text) or "")
        if level:
            self._program.set("logLevel", "log_level", level)
        if api_keys := self._given.read("apiKeys", texts):
            self._program.set("apiKeys", "require_key", True)
            self._given.note(
                "apiKeys",
                f"{len(api_keys)} keys are left out: a config has none here, and require_key lets"
                " nobody in without one. `llm-manager keys add NAME --secret-stdin` makes one of"
                " its secret",
            )

    def _peers(self) -> None:
        peers = self._given.read("peers", section)
        for name, value in peers.unread() if peers else ():
            try:
                given = section(value)
            except InvalidValue as fault:
                self._program.note(value.line, f"peers: {name} is left out: {fault}")
                continue
            _Peer(name, given, value.key_line, self._macros, self._draft).read()

    def _groups(self) -> None:
        groups = self._given.read("groups", mapping) or {}
        routing = self._given.read("routing", mapping)
        if routing is not None:
            settings = _at(routing, "router", "settings")
            groups = groups or _at(settings, "groups")
            self._given.note("routing", _BY_MEMORY)
        elif groups:
            self._given.note("groups", f"swap and exclusive mean nothing here: {_BY_MEMORY}")
        for group in groups.values():
            if isinstance(group, dict) and group.get("persistent") is True:
                for part in self._named(group.get("members"), "groups"):
                    part.set("groups: persistent", "pinned", True)

    def _preload(self) -> None:
        hooks = self._given.read("hooks", mapping)
        for part in self._named(_at(hooks, "on_startup").get("preload"), "hooks"):
            part.set("hooks: preload", "auto_start", True)

    def _named(self, names: Any, key: str) -> list[Part]:
        """The models of that list, by name or alias."""
        found = []
        for name in names if isinstance(names, list) else ():
            model = self._draft.find(str(name))
            if model is None:
                self._given.note(key, f"there is no model {name}")
            else:
                found.append(model)
        return found

    def _choose_ports(self, models: list[Model]) -> None:
        """A model keeps its fixed port where no other has it: here they may run at once."""
        uses = Counter(model.port for model in models if "url" not in model.part.entry)
        for model in models:
            port, part = model.port, model.part
            if port is None or "url" in part.entry or part.left_out:
                continue
            if uses[port] == 1 and port != Program.port:
                part.set("proxy", "port", port)
                continue
            free = command_line.with_free_port(model.arguments, port)
            who = "LLM-Manager's own" if port == Program.port else "another model's too"
            if free is None:
                part.left_out.append(
                    f"its port {port} is {who}, and its command has no option with it: give it one"
                )
                continue
            part.entry[SCHEME]["command"] = free
            part.take("proxy", "${PORT}")
            part.note(part.line, f"port {port} is {who}: its command has ${{PORT}} instead")


class _Peer:
    """A server elsewhere, each of whose models is one of ours with a `url`."""

    def __init__(self, name: str, given: Section, line: int, general: Macros, draft: Draft) -> None:
        self._name = name
        self._line = line
        self._macros = general
        self._draft = draft
        self._given = Given(given, draft.program, f"peers: {name}: ")

    def read(self) -> None:
        proxy = self._given.read("proxy", readers.scalar_text) or ""
        url = macros.in_text(self._macros.expand(proxy), os.environ).rstrip("/")
        key = self._given.read("apiKey", readers.scalar_text) or ""
        key = self._macros.expand(key)
        given = self._given.read("filters", mapping) or {}
        filters = llama_swap_filters.read(self._macros.expand_all(given))
        for lost in filters.lost:
            self._given.note("filters", lost)
        for name in self._given.read("models", texts) or []:
            if self._draft.find(name):
                self._given.note("models", f"{name} is left out: another model has that name")
                continue
            part = self._draft.add(name, self._line)
            part.set(f"peers: {self._name}", "url", url)
            if key:
                part.set("apiKey", "api_key", macros.in_value(key))
                self._draft.variables.update(macros.environment_names(key))
            if filters.request:
                part.set("filters", "request", filters.request)
        if key and not macros.environment_names(key):
            self._given.note(
                "apiKey",
                "stands in the config: write ${NAME} instead, of a variable that the program's"
                " environment has",
            )
        self._given.note_rest({"timeouts": "the program's upstream_timeout is for all models"})


def _at(given: Any, *keys: str) -> dict[str, Any]:
    """The mapping that is so deep in another; an empty one where there is none."""
    for key in keys:
        given = given.get(key) if isinstance(given, dict) else None
    return given if isinstance(given, dict) else {}
