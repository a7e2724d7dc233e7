"""Reads config.yaml into settings; every problem in the file is found at once, with its line."""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from manager.config import readers, variables, yaml_reader
from manager.config.declaration import keys, read_keys
from manager.config.readers import listed, single_line
from manager.config.settings import (
    REMOVED_KEYS,
    AliasChanges,
    Config,
    Export,
    Model,
    Program,
    Scheme,
    aliases,
)
from manager.config.yaml_reader import (
    InvalidValue,
    Problem,
    Section,
    TooManyProblems,
    UnreadableFile,
    Value,
    section,
)

__all__ = [
    "Config",
    "ConfigError",
    "EmptyConfig",
    "Export",
    "Model",
    "Problem",
    "Program",
    "Scheme",
    "decode",
    "load",
    "located",
    "log_warnings",
    "parse",
    "read",
    "read_regular",
]

log = logging.getLogger(__name__)

K = TypeVar("K", str, int)

_SCHEME_KEYS = tuple(key.name for key in keys(Scheme))
_OF_OUR_SERVERS = ("port", "auto_start", "alive_time", "start_timeout", "pinned", "sleep")
"""Keys of a model that mean nothing for a server that others start."""
MAX_NAME_LENGTH = 200
MAX_BYTES = 4 << 20  # some ten thousand models


class ConfigError(Exception):
    """The file cannot be used; `str` has one line a problem, in the order of the file."""

    def __init__(self, path: Path, problems: Collection[Problem]) -> None:
        super().__init__(path, problems)
        self.path = path
        self.problems = tuple(sorted(problems))

    def __str__(self) -> str:
        return "\n".join(located(self.path, self.problems))


class EmptyConfig(ConfigError):
    """The file has nothing in it, but for comments."""


def located(path: Path, problems: Iterable[Problem]) -> list[str]:
    """Problems or warnings as users see them: `config.yaml:LINE: message`."""
    return [f"{path.name}:{problem.line}: {problem.message}" for problem in problems]


def log_warnings(config: Config) -> None:
    """Logs what is odd in a config that has come into use."""
    for line in located(config.path, config.warnings):
        log.warning("%s", line)


def load(path: Path, modes: Callable[[Path | None], Collection[str]]) -> Config:
    """Read and check the file at `path`; paths in it are relative to its folder.

    `modes` gives the known modes for an `interface_plugin_dir` (or none). Raises ConfigError with
    every problem of the file.
    """
    try:
        text = decode(read(path))
    except UnreadableFile as error:
        raise ConfigError(path, [error.problem]) from error
    return parse(text, path, modes)


def parse(text: str, path: Path, modes: Callable[[Path | None], Collection[str]]) -> Config:
    """As `load`, for the text that the file at `path` has or is to have."""
    try:
        document, problems = yaml_reader.parse(text, path.name, path.absolute().parent)
    except UnreadableFile as error:
        raise ConfigError(path, [error.problem]) from error
    if document.is_null:
        message = "the file is empty: begin with `program:` and `Local-Models:`"
        raise EmptyConfig(path, [Problem(1, message)])
    try:
        config = document.read(lambda value: _config(value, path, modes), None)
    except TooManyProblems:
        config = None
    if problems or config is None:
        raise ConfigError(path, problems)
    return config


def read(path: Path) -> bytes:
    """What the file has in it. Raises UnreadableFile."""
    try:
        content = read_regular(path, MAX_BYTES + 1)
    except FileNotFoundError as error:
        message = f"there is no file {path.absolute()}: write one, or name another with --config"
        raise UnreadableFile(Problem(1, message)) from error
    except OSError as error:
        message = f"{path.absolute()} cannot be read: {error.strerror}"
        raise UnreadableFile(Problem(1, message)) from error
    if len(content) > MAX_BYTES:
        message = (
            f"{path.absolute()} is over {MAX_BYTES >> 20} MB, which no config is: name another"
        )
        raise UnreadableFile(Problem(1, message))
    return content


def read_regular(path: Path, most: int, *, follow: bool = True) -> bytes:
    """The first `most` bytes of a regular file; `follow` says whether it may be a link. Raises
    OSError with a `strerror`."""
    # Without O_NONBLOCK the opening of a FIFO would wait for a writer.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    if not follow:
        flags |= getattr(os, "O_NOFOLLOW", 0)
    descriptor = os.open(path, flags)
    try:
        # A pipe or a device could be read for ever.
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(most)
    finally:
        os.close(descriptor)


def decode(content: bytes) -> str:
    """The text in a file's bytes. Raises UnreadableFile."""
    try:
        # Windows editors put a byte order mark first.
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UnreadableFile(Problem(line, "this is not UTF-8: save the file as UTF-8")) from error


def _config(value: Value, path: Path, modes: Callable[[Path | None], Collection[str]]) -> Config:
    root = section(value)
    given = root.section("program")
    # Before all else: with its plugins the modes are known.
    plugins = given.read("interface_plugin_dir", readers.folder, None)
    value.document.modes = sorted(modes(plugins))
    ports = {given.read("port", readers.PORT, Program.port): "the program's own"}
    program = Program(
        **read_keys(Program, given, {"ollama_port": _port(ports, "the program's, for Ollama")})
    )
    for key, other in given.unread():
        if key in REMOVED_KEYS:
            other.warn(f"this key is ignored: {REMOVED_KEYS[key]}", other.key_line)
        else:
            given.unknown(key)
    models = root.section("Local-Models")
    for key, _ in root.unread():
        if not key.startswith("x-"):  # which are for YAML anchors
            root.unknown(key)
    read = _Models(models, program, ports).read()
    return Config(path, program, read, tuple(sorted(value.document.warnings)))


class _Models:
    """Reads models one by one, in file order, and knows which names and ports are taken."""

    def __init__(self, models: Section, program: Program, ports: dict[int, str]) -> None:
        self._models = models
        self._program = program
        self._ports = ports
        # What each is taken by. A model's name counts from the start, so that an alias above it
        # cannot take it.
        self._names = {
            name: f"the name of a model (line {value.key_line})" for name, value in models.unread()
        }

    def read(self) -> dict[str, Model]:
        return {name: self._model(name, value) for name, value in self._models.unread()}

    def _model(self, name: str, value: Value) -> Model:
        fault = _name_fault(name) or _address_fault(name)
        if fault:
            value.problem(fault, value.key_line)
        given = value.read(section, None)
        if given is None:
            return Model(name)
        own = {"aliases": self._aliases(name), "port": _port(self._ports, f"the port of {name}")}
        values = {
            key.field: getattr(self._program, key.field) for key in keys(Model) if key.inherit
        }
        values |= read_keys(Model, given, own)
        # Last: schemes are what nobody else has read.
        if given.get("url") is not None:
            _check_remote(given)
            return Model(name, **{**values, "port": None})
        if (api_key := given.get("api_key")) is not None:
            api_key.problem("is for the server at url, which is missing", api_key.key_line)
        return Model(name, **values, schemes=_schemes(given))

    def _aliases(self, model: str) -> Callable[[Value], Mapping[str, AliasChanges]]:
        def check(value: Value, alias: str) -> None:
            fault = _name_fault(alias) or _address_fault(alias)
            if fault:
                raise InvalidValue(fault)
            if alias != model:
                _take(self._names, alias, f"an alias of {model} (line {value.key_line})")

        def read(value: Value) -> Mapping[str, AliasChanges]:
            found = dict(aliases(check)(value))
            own = found.pop(model, None)
            if own is not None and own.set:
                raise InvalidValue(f"{model} is the model's own name: its changes are `request`")
            return found

        return read


def _port(taken: dict[int, str], use: str) -> Callable[[Value], int]:
    """Reads a port that nothing in the file has yet."""

    def read(value: Value) -> int:
        port = readers.PORT(value)
        _take(taken, port, f"{use} (line {value.line})")
        return port

    return read


def _take(taken: dict[K, str], key: K, use: str) -> None:
    if key in taken:
        raise InvalidValue(f"{key} is already {taken[key]}: choose another")
    taken[key] = use


def _name_fault(name: str) -> str | None:
    if not name.strip():
        return "a name cannot be empty"
    if yaml_reader.has_control(name):
        return "a name cannot have control characters or line ends"
    if len(name) > MAX_NAME_LENGTH:
        return f"a name has at most {MAX_NAME_LENGTH} characters; this one has {len(name)}"
    return None


def _address_fault(name: str) -> str | None:
    if name in (".", ".."):
        return (
            f"clients take {name} in an address for a folder: none could ask for it, choose another"
        )
    return None


def _schemes(given: Section) -> tuple[Scheme, ...]:
    """All mappings that are not keys of a model; what else is left is reported."""
    schemes = []
    for key, value in given.unread():
        if value.is_mapping and (key not in _SCHEME_KEYS or _can_start(value)):
            schemes.append(_scheme(key, value))
        elif key in _SCHEME_KEYS:
            message = "belongs inside a scheme: a mapping with a name of your choice"
            value.problem(message, value.key_line)
        else:
            given.unknown(key)
    if not schemes:
        given.value.problem(
            "has no scheme: add a mapping, such as `Default:`, with script_path or command in it",
            given.value.key_line,
        )
    return tuple(schemes)


def _check_remote(given: Section) -> None:
    """What a model with a `url` cannot have, and what means nothing for it."""
    for key, value in given.unread():
        if value.is_mapping or key in _SCHEME_KEYS:
            message = "a model has schemes or a url, whose server others start: keep one of them"
            value.problem(message, value.key_line)
        else:
            given.unknown(key)
    for key in _OF_OUR_SERVERS:
        if (own := given.get(key)) is not None:
            own.warn("means nothing beside url: others start and stop its server", own.key_line)
    price = given.get("price")
    if price is not None and price.is_mapping:
        per_hour = section(price).get("per_hour")
        if per_hour is not None:
            message = "is never billed beside url: nobody counts the hours of its server"
            per_hour.warn(message, per_hour.key_line)


def _can_start(value: Value) -> bool:
    given = section(value)
    return bool(given.get("script_path") or given.get("command"))


def _scheme(name: str, value: Value) -> Scheme:
    fault = _name_fault(name)
    if fault:
        value.problem(fault, value.key_line)
    given = section(value)
    devices = given.read("required_devices", listed(single_line), ())
    fields = {
        "cwd": value.document.folder,
        **read_keys(Scheme, given, {"memory_mb": _memory(devices)}),
    }
    env = fields.pop("env", {})
    scheme = Scheme(
        name,
        **fields,
        env={variable: one.text for variable, one in env.items()},
        expanded=frozenset(variable for variable, one in env.items() if one.names),
    )
    script, command = given.get("script_path"), given.get("command")
    _warn_of_unknown_names(command, scheme.command, scheme.env)
    stop_command, detached = given.get("stop_command"), given.get("detached")
    _warn_of_unknown_names(stop_command, scheme.stop_command, scheme.env)
    if detached and scheme.detached and not stop_command:
        detached.problem(
            "a detached server needs stop_command, which ends it, such as [docker, stop, NAME]",
            detached.key_line,
        )
    if script and command:
        later = max(script.key_line, command.key_line)
        value.problem("has both script_path and command: keep one", later)
    elif not script and not command:
        near = yaml_reader.nearest(name, ("price", *_SCHEME_KEYS))
        hint = f", or did you mean {near}?" if near else ""
        value.problem(f"this scheme needs script_path or command{hint}", value.key_line)
    given.reject_unread()
    return scheme


def _warn_of_unknown_names(
    given: Value | None, command: tuple[str, ...], env: Mapping[str, str]
) -> None:
    if given is None or not command:
        return
    values = variables.known_values(env)
    for argument, written in zip(given.items(), command, strict=False):
        for missing in variables.unknown_names(written, values):
            argument.warn(f"the environment has no {missing}: ${{{missing}}} stays as it is")


def _memory(devices: tuple[str, ...]) -> Callable[[Value], dict[str, int]]:
    spelled = {_folded(device): device for device in reversed(devices)}

    def read(value: Value) -> dict[str, int]:
        result: dict[str, int] = {}
        for name, entry in section(value).unread():
            device = spelled.get(_folded(name))
            if device is None:
                hint = yaml_reader.did_you_mean(name, devices)
                entry.problem(f"this device is not in required_devices{hint}", entry.key_line)
            elif device in result:
                entry.problem(f"{device} is here twice: keep one", entry.key_line)
            result[device or name] = entry.read(readers.MEGABYTES, 0)
        return result

    return read


def _folded(device: str) -> str:
    return " ".join(device.casefold().split())
