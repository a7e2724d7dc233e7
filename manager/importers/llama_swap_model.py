"""One model of llama-swap's config."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import Any

from manager.config import readers
from manager.config.yaml_reader import Section, Value
from manager.importers import command_line, llama_swap_filters, macros
from manager.importers.draft import SCHEME, Draft, Part
from manager.importers.given import Given, count, mapping, seconds, texts
from manager.importers.llama_swap_filters import Filters
from manager.importers.macros import Macros
from manager.importers.source import plain

_PROXY = re.compile(r"(https?)://(\[[^\]]*\]|[^/:?#]*)(?::([^/?#]*))?(.*)", re.DOTALL)
_HERE = re.compile(r"localhost|127(?:\.[0-9]+){3}|\[::1?\]|0\.0\.0\.0")
_LISTENED_ON = ("localhost", "127.0.0.1", "[::1]")
_WITHOUT = {
    "name": "is shown nowhere: clients see the model's own name",
    "description": "is shown nowhere",
    "sendLoadingState": "is a key of the program here: send_loading_state",
    "timeouts": "the program's upstream_timeout is for all models",
}


@dataclass
class Model:
    """A model that was read. `port` is the one that its server has in its command, None where that
    is ``${PORT}``; `arguments` are those of its command."""

    part: Part
    arguments: list[str] = field(default_factory=list)
    port: int | None = None


def minutes(of_seconds: int) -> float:
    """As `alive_time` has them; a whole number is an int."""
    whole, rest = divmod(of_seconds, 60)
    return round(of_seconds / 60, 4) if rest else whole


def read(section: Section, part: Part, general: Macros, draft: Draft) -> Model:
    """Fills the part with what the model's section has. Raises SourceError, TooManyProblems."""
    return _Reading(section, part, general, draft).model()


class _Reading:
    def __init__(self, section: Section, part: Part, general: Macros, draft: Draft) -> None:
        self._given = Given(section, part)
        self._part = part
        self._draft = draft
        self._macros = general.within(self._given.read("macros", mapping) or {})
        self._scheme: dict[str, Any] = {}

    def model(self) -> Model:
        model = Model(self._part)
        model.arguments = self._command("cmd")
        stop = self._command("cmdStop")
        env = self._env()
        self._proxy(model)
        self._settings()
        self._aliases_and_filters()
        self._capabilities()
        if self._part.entry.get("url") is None:
            self._own_server(model, stop, env)
        elif model.arguments:
            self._given.note(
                "cmd", "is left out, as cmdStop: a server at another host is started by others"
            )
        self._given.note_rest(_WITHOUT)
        return model

    def _own_server(self, model: Model, stop: list[str], env: dict[str, str]) -> None:
        if not model.arguments:
            self._part.left_out.append("it has no cmd, and no proxy on another host")
            return
        self._scheme["command"] = model.arguments
        self._part.take("cmd", "command")
        if stop:
            self._scheme["stop_command"] = stop
            self._part.take("cmdStop", "stop_command")
        if env:
            self._scheme["env"] = env
            self._part.take("env", "env")
        self._part.entry[SCHEME] = self._scheme
        found, why = command_line.mode(model.arguments, self._part.name)
        if found != "Chat":
            self._part.entry["mode"] = found
            self._given.note("cmd", f"mode: {found}, since {why} says so: check it")
            if flag := command_line.missing_flag(model.arguments, found):
                self._given.note("cmd", f"llama-server answers as {found} with {flag} alone")
        for hint in command_line.hints(model.arguments, env):
            self._given.note("cmd", hint)
        if model.port is None and not any("${PORT}" in one for one in model.arguments):
            self._given.note(
                "cmd", "has no ${PORT}, and proxy no port: write `port` with that of its server"
            )

    def _text(self, key: str) -> str | None:
        """A text with its macros expanded; those of the environment and our own stay."""
        written = self._given.read(key, readers.scalar_text)
        if written is None:
            return None
        expanded = self._macros.expand(command_line.without_comments(written))
        for name in macros.unknown_names(expanded):
            self._given.note(
                key, f"there is no macro {name}: ${{{name}}} is a variable of the environment here"
            )
        return expanded

    def _command(self, key: str) -> list[str]:
        text = self._text(key)
        if text is None:
            return []
        if "${PID}" in text:
            self._given.note(key, "is left out: the process tree is ended without it, by its id")
            return []
        for name in macros.hidden_names(text):
            self._given.note(key, f"${{env.{name}}}: in a command ${{{name}}} has another meaning")
        self._draft.variables.update(macros.environment_names(text))
        try:
            return command_line.split(macros.in_command(text))
        except ValueError:
            self._given.note(key, "is left out: a quote is open at its end")
            return []

    def _env(self) -> dict[str, str]:
        env = {}
        for entry in self._given.read("env", texts) or []:
            name, equals, value = entry.partition("=")
            if not name or not equals:
                self._given.note("env", "an entry without NAME= is left out")
                continue
            text = self._macros.expand(value)
            if "${PORT}" in text:
                self._given.note("env", f"{name}: ${{PORT}} is not expanded there; PORT has it")
            env[name] = macros.in_value(text.replace("${MODEL_ID}", self._part.name))
            self._draft.variables.update(macros.environment_names(text))
        return env

    def _proxy(self, model: Model) -> None:
        text = self._text("proxy")
        if text is None:
            return
        text = macros.in_text(text.replace("${MODEL_ID}", self._part.name), os.environ).strip()
        match = _PROXY.fullmatch(text)
        if match is None:
            self._given.note("proxy", "is left out: it is no address")
            return
        scheme, host, port, rest = match.groups()
        if scheme == "https" or not _HERE.fullmatch(host.lower()):
            self._part.set("proxy", "url", text.rstrip("/"))
            return
        if rest not in ("", "/"):
            self._given.note("proxy", "its path is left out: a server of our own has none")
        if host.lower() not in _LISTENED_ON:
            self._given.note("proxy", f"{host}: its server has to listen on 127.0.0.1")
        if port is None or port.isdecimal():
            model.port = int((port or "80")[:6])

    def _settings(self) -> None:
        ttl = self._given.read("ttl", seconds)
        if ttl is not None and ttl >= 0:
            self._part.set("ttl", "alive_time", minutes(ttl))
        for theirs, ours in (
            ("healthCheckTimeout", "start_timeout"),
            ("unloadTimeout", "stop_timeout"),
        ):
            if value := self._given.read(theirs, count):
                self._part.set(theirs, ours, value)
        if limit := self._given.read("concurrencyLimit", count):
            self._part.set("concurrencyLimit", "max_concurrency", limit)
            self._given.note("concurrencyLimit", "further requests are queued, not refused")
        if self._given.read("unlisted", readers.boolean):
            self._part.set("unlisted", "unlisted", True)
        if name := self._text("useModelName"):
            self._part.set("useModelName", "served_model_name", name)
        health = self._text("checkEndpoint")
        if health and health != "/health":
            self._part.set("checkEndpoint", "health", health)

    def _aliases_and_filters(self) -> None:
        aliases = self._given.read("aliases", alias_names) or []
        changes: dict[str, dict[str, Any]] = {alias: {} for alias in aliases}
        filters = Filters()
        if (given := self._given.read("filters", mapping)) is not None:
            given = self._macros.expand_all(given)
            filters = llama_swap_filters.read(self._named(given))
        for lost in filters.lost:
            self._given.note("filters", lost)
        own = filters.by_name.pop(self._part.name, {})
        changes |= filters.by_name
        if own:
            filters.request["set"] = {**filters.request.get("set", {}), **own}
            if any(own.keys() - fields.keys() for fields in changes.values()):
                self._given.note(
                    "filters",
                    "what setParamsByID sets for the model's own name is set for its aliases too,"
                    " unless they set it otherwise",
                )
        if filters.request:
            self._part.set("filters", "request", filters.request)
        line = self._given.line("aliases") or self._given.line("filters")
        kept = {
            alias: {"set": fields} if fields else None
            for alias, fields in changes.items()
            if alias != self._part.name and self._draft.take_alias(self._part, alias, line)
        }
        if kept:
            has_changes = any(kept.values())
            self._part.set("aliases", "aliases", kept if has_changes else list(kept))

    def _named(self, value: Any) -> Any:
        """With the model's name for its macro."""
        return Macros({"MODEL_ID": self._part.name}).expand_all(value)

    def _capabilities(self) -> None:
        found = self._given.read("capabilities", mapping)
        if found is None:
            return
        found = self._macros.expand_all(found)
        if isinstance(found.get("context"), int) and found["context"] > 0:
            self._part.set("capabilities", "context_length", found["context"])
        if found.get("reranker") is True:
            self._part.set("capabilities", "mode", "Reranker")
        self._given.note("capabilities", "in, out and tools are left out: the server is asked")


def alias_names(value: Value) -> list[str]:
    """Aliases: texts, or mappings that have them as `id`."""
    found = plain(value)
    items = found if isinstance(found, list) else [found]
    named = [item.get("id") if isinstance(item, dict) else item for item in items]
    return [str(item) for item in named if item is not None]
