"""Reads config.yaml into settings; every problem in the file is found at once, with its line."""

from __future__ import annotations

import os
import urllib.parse
import zoneinfo
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

from manager.billing.pricing import Price, Tier, billionths
from manager.config import cron, readers, variables, yaml_reader
from manager.config.settings import Config, Export, Model, Program, Scheme
from manager.config.variables import Expanded
from manager.config.yaml_reader import (
    Enough,
    Problem,
    Section,
    Unreadable,
    Value,
    Wrong,
    as_written,
    boolean,
    choice,
    folder,
    integer,
    listed,
    mapped,
    number,
    plain,
    section,
    text,
)

__all__ = [
    "Config",
    "ConfigError",
    "Export",
    "Model",
    "Problem",
    "Program",
    "Scheme",
    "decoded",
    "load",
    "parse",
    "read",
]

K = TypeVar("K", str, int)

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
QUEUE_SERVERS = ("redis", "rediss", "postgresql")
SCRIPT_SUFFIXES = (".sh", ".bat", ".cmd", ".ps1", ".py")
SCHEME_KEYS = ("required_devices", "script_path", "command", "memory_mb", "env", "cwd")

PORT = integer(1, 65535)
COUNT = integer(1, 1_000_000)
DAYS = integer(0, 36_500)
MEGABYTES = integer(1, 1_000_000_000)
TOKENS = 1_000_000_000_000
LONGEST_NAME = 200
# 32 are kept for pages and health, so that one more is the least that proxies anything.
THREADS = integer(33, 10_000)
# Windows cannot wait longer than 2**32 ms, which is 49 days.
SECONDS = number(4_000_000)
MINUTES = number(10 * 366 * 24 * 60, zero=True)


class ConfigError(Exception):
    """The file cannot be used; `str` has one line a problem, in the order of the file."""

    def __init__(self, path: Path, problems: Collection[Problem]) -> None:
        super().__init__(path, problems)
        self.path = path
        self.problems = tuple(sorted(problems))

    def __str__(self) -> str:
        return "\n".join(
            f"{self.path.name}:{problem.line}: {problem.message}" for problem in self.problems
        )


def load(path: Path, modes: Callable[[Path | None], Collection[str]]) -> Config:
    """Read and check the file at `path`; paths in it are relative to its folder.

    `modes` gives the known modes for an `interface_plugin_dir` (or none). Raises ConfigError with
    every problem of the file.
    """
    try:
        text = decoded(read(path))
    except Unreadable as error:
        raise ConfigError(path, [error.problem]) from error
    return parse(text, path, modes)


def parse(text: str, path: Path, modes: Callable[[Path | None], Collection[str]]) -> Config:
    """As `load`, for the text that the file at `path` has or is to have."""
    try:
        document, problems = yaml_reader.parse(text, path.name)
    except Unreadable as error:
        raise ConfigError(path, [error.problem]) from error
    try:
        config = document.read(lambda value: _config(value, path, modes), None)
    except Enough:
        config = None
    if problems or config is None:
        raise ConfigError(path, problems)
    return config


def read(path: Path) -> bytes:
    """What the file has in it. Raises Unreadable."""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        message = f"there is no file {path.absolute()}: write one, or name another with --config"
        raise Unreadable(Problem(1, message)) from error
    except OSError as error:
        message = f"{path.absolute()} cannot be read: {error.strerror}"
        raise Unreadable(Problem(1, message)) from error


def decoded(content: bytes) -> str:
    """The text in a file's bytes. Raises Unreadable."""
    try:
        # Windows editors put a byte order mark first.
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise Unreadable(Problem(line, "this is not UTF-8: save the file as UTF-8")) from error


def _config(value: Value, path: Path, modes: Callable[[Path | None], Collection[str]]) -> Config:
    if value.is_null:
        raise Wrong("the file is empty: begin with `program:` and `Local-Models:`")
    root = section(value)
    base = path.absolute().parent
    program_section = root.section("program")
    plugins = program_section.read("interface_plugin_dir", folder(base), None)
    mode = choice("mode", sorted(modes(plugins)))
    program = _program(program_section, base, mode, plugins)
    models = root.section("Local-Models")
    root.refuse_rest()
    return Config(path, program, _Models(models, base, program, mode).read())


def _program(
    given: Section, base: Path, mode: yaml_reader.Reader[str], plugins: Path | None
) -> Program:
    default = Program()
    queue = given.read("queue", _queue, None)
    program = Program(
        host=given.read("host", text, default.host),
        port=given.read("port", PORT, default.port),
        log_level=given.read(
            "log_level", choice("level", LOG_LEVELS, any_case=True), default.log_level
        ),
        alive_time=given.read("alive_time", MINUTES, default.alive_time),
        disable_gpu_monitoring=given.read(
            "Disable_GPU_monitoring", boolean, default.disable_gpu_monitoring
        ),
        token_tracker=given.read("TokenTracker", listed(mode), default.token_tracker),
        device_plugin_dir=given.read("device_plugin_dir", folder(base), None),
        interface_plugin_dir=plugins,
        device_memory_mb=given.read("device_memory_mb", mapped(MEGABYTES), {}),
        threads=given.read("threads", THREADS, default.threads),
        start_timeout=given.read("start_timeout", SECONDS, default.start_timeout),
        stop_timeout=given.read("stop_timeout", SECONDS, default.stop_timeout),
        queue_timeout=given.read("queue_timeout", SECONDS, default.queue_timeout),
        max_waiting=given.read("max_waiting", COUNT, default.max_waiting),
        max_body_mb=given.read("max_body_mb", integer(1, 100_000), default.max_body_mb),
        list_aliases=given.read("list_aliases", boolean, default.list_aliases),
        upstream_timeout=given.read("upstream_timeout", SECONDS, default.upstream_timeout),
        currency=given.read("currency", plain, default.currency),
        timezone=given.read("timezone", _timezone, None),
        log_retention_days=given.read("log_retention_days", DAYS, default.log_retention_days),
        request_retention_days=given.read(
            "request_retention_days", DAYS, default.request_retention_days
        ),
        export=given.read("export", lambda value: _export(value, base), None),
        queue=queue.text if queue else None,
        require_key=given.read("require_key", boolean, None),
        allowed_hosts=given.read("allowed_hosts", listed(readers.host), ()),
        cors_origins=given.read("cors_origins", listed(readers.origin), ()),
        trusted_proxies=given.read("trusted_proxies", listed(readers.network), ()),
        allow_config_edit=given.read("allow_config_edit", boolean, default.allow_config_edit),
        variables=queue.names if queue else frozenset(),
    )
    given.refuse_rest()
    return program


def _timezone(value: Value) -> str:
    name = text(value)
    try:
        zoneinfo.ZoneInfo(name)
    # OSError: the name of a folder of zones, such as America.
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        known = zoneinfo.available_timezones()
        if not known:
            raise Wrong(
                "this system has no time zone data: `pip install tzdata`, or leave this out"
            ) from None
        near = yaml_reader.nearest(name, known) or "Europe/Berlin"
        raise Wrong(f"unknown time zone {name!r}; did you mean {near}?") from None
    return name


def _export(value: Value, base: Path) -> Export:
    given = section(value)
    given.require("schedule", "five fields in quotes, such as '0 3 1 * *'")
    export = Export(
        schedule=given.read("schedule", _schedule, ""),
        period=given.read("period", choice("period", ("day", "month")), "day"),
        directory=given.read("directory", yaml_reader.path(base), None),
    )
    given.refuse_rest()
    return export


def _schedule(value: Value) -> str:
    schedule = text(value)
    fault = cron.fault(schedule)
    if fault:
        raise Wrong(fault)
    return schedule


def _queue(value: Value) -> Expanded:
    # No message repeats the URL: it may hold a password.
    found = variables.expanded(text(value))
    url = found.text
    if yaml_reader.has_control(url):
        raise Wrong("a variable in it has a control character or an end of line in its value")
    try:
        parts = urllib.parse.urlsplit(url)
        known = parts.scheme in QUEUE_SERVERS and url.startswith(f"{parts.scheme}://")
        _ = parts.port
    except ValueError:
        raise Wrong("this is not a URL: check its host and port") from None
    if not known:
        raise Wrong(f"expected a URL that begins with {':// or '.join(QUEUE_SERVERS)}://")
    return found


class _Models:
    """Reads models one by one, in file order, and knows which names and ports are taken."""

    def __init__(
        self, models: Section, base: Path, program: Program, mode: yaml_reader.Reader[str]
    ) -> None:
        self._models = models
        self._base = base
        self._program = program
        self._mode = mode
        # What each is taken by. A model's name counts from the start, so that an alias above it
        # cannot take it.
        self._names = {
            name: f"the name of a model (line {value.key_line})" for name, value in models.rest()
        }
        self._ports = {program.port: "the program's own"}

    def read(self) -> dict[str, Model]:
        return {name: self._model(name, value) for name, value in self._models.rest()}

    def _model(self, name: str, value: Value) -> Model:
        fault = _name_fault(name) or _address_fault(name)
        if fault:
            value.problem(fault, value.key_line)
        given = value.read(section, None)
        if given is None:
            return Model(name)
        program = self._program
        return Model(
            name=name,
            aliases=given.read("aliases", self._aliases(name), ()),
            mode=given.read("mode", self._mode, Model.mode),
            port=given.read("port", self._port(name), None),
            auto_start=given.read("auto_start", boolean, Model.auto_start),
            alive_time=given.read("alive_time", MINUTES, program.alive_time),
            start_timeout=given.read("start_timeout", SECONDS, program.start_timeout),
            stop_timeout=given.read("stop_timeout", SECONDS, program.stop_timeout),
            max_waiting=given.read("max_waiting", COUNT, program.max_waiting),
            max_concurrency=given.read("max_concurrency", COUNT, None),
            pinned=given.read("pinned", boolean, Model.pinned),
            served_model_name=given.read("served_model_name", plain, None),
            unlisted=given.read("unlisted", boolean, Model.unlisted),
            ask_usage=given.read("ask_usage", boolean, Model.ask_usage),
            price=given.read("price", _price, None),
            # Last: schemes are what nobody else has read.
            schemes=_schemes(given, self._base),
        )

    def _aliases(self, model: str) -> yaml_reader.Reader[tuple[str, ...]]:
        def read_one(value: Value) -> str:
            alias = plain(value)
            fault = _name_fault(alias) or _address_fault(alias)
            if fault:
                raise Wrong(fault)
            if alias != model:
                _take(self._names, alias, f"an alias of {model} (line {value.line})")
            return alias

        def read(value: Value) -> tuple[str, ...]:
            return tuple(alias for alias in listed(read_one)(value) if alias != model)

        return read

    def _port(self, model: str) -> yaml_reader.Reader[int]:
        def read(value: Value) -> int:
            port = PORT(value)
            _take(self._ports, port, f"the port of {model} (line {value.line})")
            return port

        return read


def _take(taken: dict[K, str], key: K, use: str) -> None:
    if key in taken:
        raise Wrong(f"{key} is already {taken[key]}: choose another")
    taken[key] = use


def _name_fault(name: str) -> str | None:
    if not name.strip():
        return "a name cannot be empty"
    if yaml_reader.has_control(name):
        return "a name cannot have control characters or line ends"
    if len(name) > LONGEST_NAME:
        return f"a name has at most {LONGEST_NAME} characters; this one has {len(name)}"
    return None


def _address_fault(name: str) -> str | None:
    if name in (".", ".."):
        return (
            f"clients take {name} in an address for a folder: none could ask for it, choose another"
        )
    return None


def _schemes(given: Section, base: Path) -> tuple[Scheme, ...]:
    """All mappings that are not keys of a model; what else is left is reported."""
    schemes = []
    for key, value in given.rest():
        if value.is_mapping and (key not in SCHEME_KEYS or _can_start(value)):
            schemes.append(_scheme(key, value, base))
        elif key in SCHEME_KEYS:
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


def _can_start(value: Value) -> bool:
    given = section(value)
    return bool(given.get("script_path") or given.get("command"))


def _scheme(name: str, value: Value, base: Path) -> Scheme:
    fault = _name_fault(name)
    if fault:
        value.problem(fault, value.key_line)
    given = section(value)
    devices = given.read("required_devices", listed(plain), None)
    env = given.read("env", _env, {})
    scheme = Scheme(
        name=name,
        required_devices=devices or (),
        script_path=given.read("script_path", _script(base), None),
        command=given.read("command", _command, ()),
        memory_mb=given.read("memory_mb", _memory(devices or ()), {}),
        env={name: one.text for name, one in env.items()},
        cwd=given.read("cwd", folder(base), base),
        expanded=frozenset(name for name, one in env.items() if one.names),
    )
    script, command = given.get("script_path"), given.get("command")
    if script and command:
        later = max(script.key_line, command.key_line)
        value.problem("has both script_path and command: keep one", later)
    elif not script and not command:
        near = yaml_reader.nearest(name, ("price", *SCHEME_KEYS))
        hint = f", or did you mean {near}?" if near else ""
        value.problem(f"this scheme needs script_path or command{hint}", value.key_line)
    given.refuse_rest()
    return scheme


def _script(base: Path) -> yaml_reader.Reader[Path]:
    def read(value: Value) -> Path:
        script = yaml_reader.path(base)(value)
        if script.suffix.lower() not in SCRIPT_SUFFIXES:
            value.problem(f"a script ends in {', '.join(SCRIPT_SUFFIXES)}; for others use command")
        if not os.path.isfile(script):
            raise Wrong(f"there is no file {script}")
        return script

    return read


def _command(value: Value) -> tuple[str, ...]:
    arguments = listed(as_written)(value)
    if not arguments or not arguments[0].strip():
        raise Wrong("expected a list that begins with the program to run")
    return arguments


def _memory(devices: tuple[str, ...]) -> yaml_reader.Reader[dict[str, int]]:
    spelled = {_folded(device): device for device in reversed(devices)}

    def read(value: Value) -> dict[str, int]:
        result: dict[str, int] = {}
        for name, entry in section(value).rest():
            device = spelled.get(_folded(name))
            if device is None:
                hint = yaml_reader.did_you_mean(name, devices)
                entry.problem(f"this device is not in required_devices{hint}", entry.key_line)
            elif device in result:
                entry.problem(f"{device} is here twice: keep one", entry.key_line)
            result[device or name] = entry.read(MEGABYTES, 0)
        return result

    return read


def _folded(device: str) -> str:
    return " ".join(device.casefold().split())


def _env(value: Value) -> dict[str, Expanded]:
    for name, entry in section(value).rest():
        if not name or "=" in name or "\0" in name:
            entry.problem("an environment variable's name cannot be empty or have a = in it")
    return mapped(lambda entry: variables.expanded(as_written(entry)))(value)


def _price(value: Value) -> Price:
    given = section(value)
    price = Price(
        per_hour=given.read("per_hour", _amount, None),
        tiers=given.read("tiers", listed(_tier), ()),
    )
    if given.get("per_hour") is None and given.get("tiers") is None:
        value.problem("a price has per_hour, tiers or both", value.key_line)
    given.refuse_rest()
    return price


def _tier(value: Value) -> Tier:
    given = section(value)
    for key in ("input", "output"):
        given.require(key, "a price per million tokens, 0 if free")
    tier = Tier(
        min_input=given.read("min_input", integer(0, TOKENS), 0),
        max_input=given.read("max_input", integer(-1, TOKENS), -1),
        min_output=given.read("min_output", integer(0, TOKENS), 0),
        max_output=given.read("max_output", integer(-1, TOKENS), -1),
        input=given.read("input", _amount, 0),
        output=given.read("output", _amount, 0),
        cache_read=given.read("cache_read", _amount, 0),
        cache_write=given.read("cache_write", _amount, 0),
        support_cache=given.read("support_cache", boolean, False),
    )
    for side, low, high in (
        ("input", tier.min_input, tier.max_input),
        ("output", tier.min_output, tier.max_output),
    ):
        # 0..0 is not empty: a min of 0 includes 0.
        if high != -1 and (high < low or high == low > 0):
            value.problem(f"min_{side} {low} to max_{side} {high} has no tokens in it: swap them")
    given.refuse_rest()
    return tier


def _amount(value: Value) -> int:
    try:
        return billionths(as_written(value))
    except ValueError as error:
        raise Wrong(str(error)) from error
