"""LLM-Manager's config (https://github.com/lingyezhixing/LLM-Manager): the database of 3.x, and the
YAML or JSON of the versions before."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from manager.billing import Price, Tier, format_amount, parse_amount, pricing
from manager.config.yaml_reader import InvalidValue, Section, TooManyProblems, section
from manager.importers import llm_manager_database
from manager.importers.draft import Draft, Part
from manager.importers.llm_manager_database import TheirModel, Theirs, TheirScheme
from manager.importers.source import SourceError, plain, read_document

_MODEL_KEYS = ("aliases", "mode", "port", "auto_start")
# Their key, and ours; both have the same unit.
_PROGRAM = {
    "host": "host",
    "openai_host": "host",
    "port": "port",
    "openai_port": "port",
    "alive_time": "alive_time",
    "log_level": "log_level",
    "Disable_GPU_monitoring": "Disable_GPU_monitoring",
    "TokenTracker": "TokenTracker",
    "log_retention_days": "log_retention_days",
}
_NUMBERS = ("port", "alive_time", "log_retention_days")
_PLUGINS = "is left out: plugins of LLM-Manager 3.x do not run here"
_WITHOUT = {"device_plugin_dir": _PLUGINS, "interface_plugin_dir": _PLUGINS}
_COMMAND_KEYS = ("exe", "args", "env", "cwd", "conda_env")


def read(path: Path) -> Draft:
    """What a config of LLM-Manager comes to. Raises SourceError."""
    theirs = (
        llm_manager_database.read(path)
        if llm_manager_database.is_database(path)
        else _read_document(path)
    )
    if not theirs.models:
        raise SourceError(f"{path.name} has no models: is it a config of LLM-Manager?")
    draft = Draft(path.name)
    draft.program.notes += theirs.notes
    _program(theirs.program, draft.program)
    for model in theirs.models:
        draft.add(model.name, model.line)
    for model in theirs.models:
        _Model(model, draft, path.absolute().parent).read()
    return draft


def _read_document(path: Path) -> Theirs:
    document, problems = read_document(path)
    theirs = Theirs()
    try:
        root = section(document)
        theirs.program = _mapping(root, "program")
        models = root.get("Local-Models")
        # The first versions had models at the top.
        found = section(models) if models else root
        for name, value in found.unread():
            if value.is_mapping and (models or section(value).get("port")):
                theirs.models.append(_their_model(name, value.key_line, section(value)))
            else:
                theirs.note(value.key_line, f"{name}: has no counterpart")
        if models:
            for name, value in root.unread():
                theirs.note(value.key_line, f"{name}: has no counterpart")
    except InvalidValue as error:
        raise SourceError(f"{path.name}: {error}") from error
    except TooManyProblems as error:
        raise SourceError(f"{path.name}: {problems[-1].message}") from error
    for problem in problems:
        theirs.note(problem.line, problem.message)
    return theirs


def _mapping(root: Section, key: str) -> dict[str, Any]:
    value = root.get(key)
    found = plain(value) if value else {}
    return found if isinstance(found, dict) else {}


def _their_model(name: str, line: int, given: Section) -> TheirModel:
    model = TheirModel(name, line)
    for key in _MODEL_KEYS:
        if (value := given.get(key)) is not None:
            model.fields[key] = plain(value)
    for key, value in given.unread():
        if value.is_mapping:
            model.schemes.append(TheirScheme(key, value.key_line, plain(value)))
        else:
            model.rest.append((key, value.key_line))
    return model


def _program(given: Mapping[str, Any], program: Part) -> None:
    for key, value in given.items():
        ours = _PROGRAM.get(key)
        if ours is None:
            program.note(None, f"program: {key} {_WITHOUT.get(key, 'has no counterpart')}")
        elif ours not in program.entry:
            if ours in _NUMBERS and isinstance(value, str) and value.isdecimal():
                value = int(value)
            program.set(key, ours, value)
    if program.entry.get("host") in ("0.0.0.0", "::"):
        program.note(
            None,
            "host: it lets other machines in, as before: make keys with `llm-manager keys add`",
        )


class _Model:
    def __init__(self, given: TheirModel, draft: Draft, folder: Path) -> None:
        self._given = given
        self._draft = draft
        self._part = draft.models[given.name]
        self._folder = folder
        aliases = given.fields.get("aliases")
        self._aliases = [str(alias) for alias in aliases] if isinstance(aliases, list) else []
        self._port = given.fields.get("port")

    def read(self) -> None:
        part = self._part
        for key in ("mode", "port", "auto_start"):
            if (value := self._given.fields.get(key)) not in (None, False):
                part.set(key, key, value)
        kept = [
            alias
            for alias in dict.fromkeys(self._aliases)
            if alias != part.name and self._draft.take_alias(part, alias, part.line)
        ]
        if kept:
            part.set("aliases", "aliases", kept)
        for key, line in self._given.rest:
            part.note(line, f"{key}: has no counterpart")
        self._price()
        for scheme in self._given.schemes:
            entry = self._scheme(scheme)
            if entry:
                part.set(scheme.name, scheme.name, entry)
        if not any(scheme.name in part.entry for scheme in self._given.schemes):
            part.left_out.append("it has no scheme that could be taken over")

    def _scheme(self, scheme: TheirScheme) -> dict[str, Any] | None:
        given = scheme.fields
        devices = given.get("required_devices")
        entry: dict[str, Any] = {}
        if isinstance(devices, list) and devices:
            entry["required_devices"] = [str(device) for device in devices]
        started = self._script(scheme) or self._command(scheme)
        if started is None:
            return None
        entry |= started
        if memory := self._memory(scheme, entry.get("required_devices", [])):
            entry["memory_mb"] = memory
        known = ("required_devices", "memory_mb", "script_path", "bat_path", "command")
        for key in given:
            if key not in (*known, *_COMMAND_KEYS):
                self._note(scheme, f"{key}: has no counterpart")
        return entry

    def _note(self, scheme: TheirScheme, message: str) -> None:
        self._part.note(scheme.line, f"{scheme.name}: {message}")

    def _script(self, scheme: TheirScheme) -> dict[str, Any] | None:
        written = scheme.fields.get("script_path") or scheme.fields.get("bat_path")
        if not isinstance(written, str):
            return None
        path = self._folder / written.replace("\\", "/")
        if not os.path.isfile(path):
            self._note(scheme, f"is left out: there is no file {path}; copy it, and import again")
            return {}
        if path.suffix.lower() in (".bat", ".cmd") and os.name != "nt":
            self._note(scheme, f"{path.name} is a script of Windows")
        return {"script_path": str(path)}

    def _command(self, scheme: TheirScheme) -> dict[str, Any] | None:
        command = scheme.fields.get("command")
        given = command if isinstance(command, dict) else scheme.fields
        exe, args = given.get("exe"), given.get("args") or []
        if not isinstance(exe, str) or not exe or not isinstance(args, list):
            self._note(scheme, "is left out: it has no script and no command")
            return None
        written = [exe, *(str(arg) for arg in args)]
        arguments = [self._filled(arg.replace("${", "$${"), "${PORT}") for arg in written]
        if any("{{alias}}" in arg for arg in written):
            self._part.entry["served_model_name"] = self._served_name()
        if env_name := given.get("conda_env"):
            by = "-p" if "/" in str(env_name) or "\\" in str(env_name) else "-n"
            arguments = ["conda", "run", "--no-capture-output", by, str(env_name), *arguments]
        entry: dict[str, Any] = {"command": arguments}
        env = given.get("env")
        if isinstance(env, dict) and env:
            entry["env"] = {
                name: self._filled(str(value).replace("${", "$${"), str(self._port))
                for name, value in env.items()
            }
        if cwd := given.get("cwd"):
            folder = self._folder / str(cwd).replace("\\", "/")
            if folder.is_dir():
                entry["cwd"] = str(folder).replace("${", "$${")
            else:
                self._note(scheme, f"cwd is left out: there is no folder {folder}")
        return entry

    def _served_name(self) -> str:
        return self._aliases[0] if self._aliases else self._part.name

    def _filled(self, text: str, port: str) -> str:
        return text.replace("{{port}}", port).replace("{{alias}}", self._served_name())

    def _memory(self, scheme: TheirScheme, devices: list[str]) -> dict[str, int]:
        given = scheme.fields.get("memory_mb")
        memory: dict[str, int] = {}
        folded = {device.casefold() for device in devices}
        for device, size in given.items() if isinstance(given, dict) else ():
            if not isinstance(size, int) or size < 1:
                self._note(
                    scheme, f"memory_mb of {device} is left out: what it takes there is measured"
                )
            elif device.casefold() not in folded:
                self._note(scheme, f"memory_mb of {device} is left out: it is no required device")
            else:
                memory[device] = size
        return memory

    def _price(self) -> None:
        try:
            price = _price(self._given.pricing)
        except (ValueError, TypeError, OverflowError) as error:
            self._part.note(None, f"its price is left out: {error}")
            return
        if price is not None:
            self._part.set("pricing", "price", price)


def _price(given: Mapping[str, Any]) -> dict[str, Any] | None:
    """A price as config.yaml has it; theirs is per million tokens as well. Raises ValueError,
    TypeError, OverflowError."""
    if given.get("pricing_type") == "hourly":
        per_hour = _amount(given.get("hourly_price"))
        return {"per_hour": format_amount(per_hour)} if per_hour else None
    tiers = [_tier(tier, bool(given.get("support_cache"))) for tier in given.get("tiers") or ()]
    if not tiers:
        return None
    faults = pricing.find_errors(Price(None, tuple(tiers)))
    if faults:
        raise ValueError(faults[0])
    return {"tiers": [_written(tier) for tier in tiers]}


def _tier(given: Mapping[str, Any], support_cache: bool) -> Tier:
    def tokens(key: str, absent: int) -> int:
        value = given.get(key)
        return absent if value is None or int(value) < 0 else int(value)

    return Tier(
        tokens("min_input", 0),
        tokens("max_input", -1),
        tokens("min_output", 0),
        tokens("max_output", -1),
        _amount(given.get("input_price")),
        _amount(given.get("output_price")),
        _amount(given.get("cache_read_price")),
        _amount(given.get("cache_write_price")),
        support_cache,
    )


def _amount(price: Any) -> int:
    return parse_amount(f"{round(float(price or 0), 9):.9f}")


def _written(tier: Tier) -> dict[str, Any]:
    written: dict[str, Any] = {
        name: value
        for name, value in (
            ("min_input", tier.min_input),
            ("max_input", tier.max_input),
            ("min_output", tier.min_output),
            ("max_output", tier.max_output),
        )
        if value not in (0, -1)
    }
    written |= {"input": format_amount(tier.input), "output": format_amount(tier.output)}
    if tier.support_cache:
        written |= {
            "cache_read": format_amount(tier.cache_read),
            "cache_write": format_amount(tier.cache_write),
            "support_cache": True,
        }
    return written
