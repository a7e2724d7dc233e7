"""What config.yaml can set. Each key is declared here, and nowhere else: the loader's checks, the
keys that need a restart, config.schema.json and the tables of docs/config.md come from here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from manager.billing import Price
from manager.config import hosts, readers
from manager.config.declaration import inherited, key, record, schema
from manager.config.hosts import Network
from manager.config.readers import (
    boolean,
    choice,
    integer,
    listed,
    mapped,
    number,
    single_line,
    text,
)
from manager.config.yaml_reader import InvalidValue, Problem, Reader, Value, reader, section
from manager.interfaces import CAPABILITIES, ENDPOINTS

REMOVED_KEYS = {"queue": "tasks are kept in queue.db in the data folder; take this key out"}
"""Keys of `program` that an earlier version had, and what holds now: each is a warning."""

_COUNT = integer(1, 1_000_000)
_DAYS = integer(0, 36_500)
# 32 are kept for pages and health, so that one more is the least that proxies anything.
_THREADS = integer(33, 10_000)
# Windows cannot wait longer than 2**32 ms, which is 49 days.
_SECONDS = number(4_000_000)
_MINUTES = number(10 * 366 * 24 * 60, zero=True)
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


@dataclass(frozen=True)
class Export:
    """When bills are written, for which span (`day` or `month`), and where (None: the data dir)."""

    schedule: str = key(
        "",
        readers.cron_expression,
        "When a bill is written: a cron expression of five fields, in quotes.",
        required="five fields in quotes, such as '0 3 1 * *'",
    )
    period: str = key("day", choice("period", ("day", "month")), "What a bill is of.")
    directory: Path | None = key(
        None, readers.path, "Where bills are written.", absent="`exports` in the data folder"
    )


@dataclass(frozen=True)
class Program:
    """The `program` section. Times are seconds, except `alive_time`, which is minutes."""

    host: str = key(
        "127.0.0.1",
        text,
        "The address to listen on; `0.0.0.0` lets other machines in, `::` those with IPv6 too.",
        restart=True,
    )
    port: int = key(8080, readers.PORT, "The port to listen on.", restart=True)
    ollama_port: int | None = key(
        None,
        readers.PORT,
        "A second port to listen on, which serves Ollama's API alone; Ollama's own is 11434.",
        absent="none",
        restart=True,
    )
    log_level: str = key(
        "INFO", choice("level", _LEVELS, any_case=True), "What the log has in it.", restart=True
    )
    alive_time: float = key(
        15.0,
        _MINUTES,
        "How long a model is idle before it is stopped; 0: it never is.",
        unit="minutes",
    )
    disable_gpu_monitoring: bool = key(
        False,
        boolean,
        "No device is polled and no memory checked; every required device counts as online.",
        name="Disable_GPU_monitoring",
    )
    token_tracker: tuple[str, ...] | None = key(
        None,
        listed(readers.mode),
        "The modes whose requests are kept as rows, and so are on bills. Limits, budgets and"
        " metrics count every mode.",
        name="TokenTracker",
        absent="every mode",
    )
    device_plugin_dir: Path | None = key(
        None, readers.folder, "A folder with further device plugins.", restart=True
    )
    interface_plugin_dir: Path | None = key(
        None, readers.folder, "A folder with further interface plugins.", restart=True
    )
    models_dir: tuple[Path, ...] = key(
        (),
        readers.folders,
        "Folders of GGUF files that `Add a model` offers: a list, or one; those below them count.",
    )
    device_memory_mb: Mapping[str, int] = key(
        {},
        mapped(readers.MEGABYTES),
        "How much of a device may be used; one that no driver reports, or not its memory, has that"
        " much.",
        unit="MB",
    )
    threads: int = key(
        512,
        _THREADS,
        "Requests at a time that wait or are sent by a thread; 32 are kept for pages and health.",
        restart=True,
    )
    start_timeout: float = key(
        300.0, _SECONDS, "How long a model may take until it answers.", unit="seconds"
    )
    stop_timeout: float = key(
        10.0,
        _SECONDS,
        "How long requests in flight may take to end before a model is killed.",
        unit="seconds",
    )
    queue_timeout: float = key(
        300.0, _SECONDS, "How long a request may wait for a model.", unit="seconds"
    )
    max_waiting: int = key(
        320, _COUNT, "Requests that may wait for one model; the next is refused with 429."
    )
    max_body_mb: int = key(64, integer(1, 100_000), "The largest request.", unit="MB", restart=True)
    list_aliases: bool = key(
        False, boolean, "`GET /v1/models` lists aliases as models of their own."
    )
    upstream_timeout: float = key(
        600.0,
        _SECONDS,
        "How long a model may be silent before its request ends with 504.",
        unit="seconds",
    )
    send_loading_state: bool = key(
        False,
        boolean,
        "A stream that waits for its model gets a comment every five seconds, so that nothing in"
        " between takes it for dead; an error after that is an event of the stream.",
    )
    model_log_mb: int = key(
        64,
        integer(1, 1_000_000),
        "How large one model's log files may be together, also while it runs; the oldest output is"
        " deleted.",
        unit="MB",
    )
    currency: str = key("CNY", single_line, "The currency that prices and bills are in.")
    timezone: str | None = key(
        None,
        readers.timezone,
        "The time zone of days, months and schedules, such as `Asia/Shanghai`.",
        absent="the system's",
    )
    log_retention_days: int = key(
        30, _DAYS, "How long models' logs are kept; 0: for ever.", unit="days"
    )
    request_retention_days: int = key(
        0, _DAYS, "How long rows of requests are kept; 0: for ever.", unit="days"
    )
    export: Export | None = key(
        None, record(Export), "Bills as CSV files, by a schedule.", absent="off", restart=True
    )
    # None: /v1 asks for a key once one is defined. False: never, keys only identify the client.
    require_key: bool | None = key(
        None,
        boolean,
        "Whether `/v1` and Ollama's paths ask for an API key; with `false` keys only identify the"
        " client.",
        absent="once a key exists",
    )
    # In lower case, without a port; addresses are never among them.
    allowed_hosts: tuple[str, ...] = key(
        (),
        listed(hosts.host),
        "Further DNS names of this machine, such as `llm.example.org`; a call to any other name is"
        " refused. Addresses need not be listed.",
    )
    # As browsers send them, and patterns: `hosts.admits` reads them.
    cors_origins: tuple[str, ...] = key(
        (),
        listed(hosts.origin),
        "Web pages that may use models, by their origin, such as `https://chat.example.org`, or by"
        " a pattern of origins: `moz-extension://*`, `https://*.example.org`, `http://localhost:*`;"
        ' `"*"` is every page.',
    )
    trusted_proxies: tuple[Network, ...] = key(
        (),
        listed(hosts.network),
        "Addresses or networks of proxies whose `X-Forwarded-For` and `X-Forwarded-Proto` are"
        " believed.",
    )
    watch_config: bool = key(
        False,
        boolean,
        "This file is applied by itself once it is saved, as a reload applies it.",
    )
    allow_config_edit: bool = key(
        False,
        boolean,
        "An admin may read and change the config, which names programs to run, from other machines"
        " too.",
    )

    @property
    def export_directory(self) -> Path | None:
        """Where the config wants the bills; None where it does not say."""
        return self.export.directory if self.export else None


@dataclass(frozen=True)
class Scheme:
    """One way to start a model: a script or a command, and the devices that it needs.

    `command` is empty where there is a `script_path`, else `script_path` is None. `memory_mb` has
    the devices' names as `required_devices` spells them. `expanded` names those of `env` whose
    values have some of our own environment's in them.
    """

    name: str
    required_devices: tuple[str, ...] = key(
        (),
        listed(single_line),
        "Devices that all have to be online; the same name twice means two such devices.",
    )
    script_path: Path | None = key(
        None,
        readers.script,
        f"What starts the model: a file that ends in {', '.join(readers.SCRIPT_SUFFIXES)}. A scheme"
        " has this or `command`.",
    )
    command: tuple[str, ...] = key(
        (),
        readers.command,
        "The program to run and its arguments, with what `${NAME}` stands for: `${PORT}`,"
        " `${MODEL}`, `${SCHEME}`, `${DEVICES}` (as in `CUDA_VISIBLE_DEVICES`, or else"
        " `HIP_VISIBLE_DEVICES`), `${MEMORY_MB}` and `${MEMORY_FRACTION}` (what is planned of a"
        " card, and its share), then what `env` or the program's own environment has. A leading"
        " `~` is the home directory, `$${` is `${`; a name without a value stays as it is, with a"
        " warning. The system's list of processes shows a command: secrets belong in `env`.",
    )
    memory_mb: Mapping[str, int] = key(
        {},
        mapped(readers.MEGABYTES),
        "What the model takes of each of `required_devices`.",
        unit="MB",
        absent="what is measured, else estimated from its GGUF file, else the whole of each",
    )
    # Values may be keys and tokens.
    env: Mapping[str, str] = key(
        {},
        readers.environment,
        "Further environment variables. `${NAME}` is the value that NAME has in the program's own"
        " environment, `$${` is `${`. Secrets belong here.",
        repr=False,
    )
    cwd: Path = key(
        None,
        readers.working_folder,
        "The folder to run in; `${NAME}` and a leading `~` are expanded.",
        absent="the folder of the config",
    )
    stop_command: tuple[str, ...] = key(
        (),
        readers.command,
        "What is run to stop the model, with the variables of its start, before its process tree is"
        " ended: `[docker, stop, NAME]`. It may take `stop_timeout`; its output goes to the model's"
        " log.",
    )
    detached: bool = key(
        False,
        boolean,
        "The command ends with exit code 0 and the server lives on elsewhere, as with"
        " `docker run -d` or `systemctl start`. Needs `stop_command`.",
    )
    expanded: frozenset[str] = frozenset()


@dataclass(frozen=True)
class RequestChanges:
    """What is changed in the requests to a model: the fields of their bodies, not those within."""

    strip: tuple[str, ...] = key((), listed(readers.body_field), "Fields that are taken out.")
    default: Mapping[str, Any] = key(
        {},
        readers.body_fields,
        "Fields that are added where a request has none.",
    )
    set: Mapping[str, Any] = key(
        {}, readers.body_fields, "Fields that have these values, whatever a request says."
    )


@dataclass(frozen=True)
class AliasChanges:
    """What is changed in the requests that name a model by one of its aliases."""

    set: Mapping[str, Any] = key(
        {},
        readers.alias_fields,
        "Fields that have these values, whatever a request or the model's own `request` says;"
        " `model` is what the server calls the model, such as a LoRA adapter.",
    )


def aliases(
    check: Callable[[Value, str], None] = lambda _value, _alias: None,
) -> Reader[Mapping[str, AliasChanges]]:
    """A list of names, or a mapping from names to their changes; the good ones where some are bad.
    ``check`` raises InvalidValue for a bad name, which stands at that value."""

    @reader(**single_line.schema)
    def read_name(value: Value) -> str:
        check(value, alias := single_line(value))
        return alias

    @reader(
        type=["array", "object"],
        items=single_line.schema,
        additionalProperties={**schema(AliasChanges), "type": ["object", "null"]},
    )
    def read(value: Value) -> Mapping[str, AliasChanges]:
        if not value.is_mapping:
            return dict.fromkeys(listed(read_name)(value), AliasChanges())
        found = {}
        for alias, entry in section(value).unread():
            try:
                check(entry, alias)
            except InvalidValue as fault:
                entry.problem(str(fault), entry.key_line)
                continue
            found[alias] = AliasChanges()
            if not entry.is_null:
                found[alias] = entry.read(record(AliasChanges), AliasChanges())
        return found

    return read


@dataclass(frozen=True)
class Model:
    """A model; its schemes are in the order in which they are tried, and there are none where it
    has a `url`.

    Times are seconds, except `alive_time`, which is minutes; where the file has none, they are the
    program's.
    """

    name: str
    aliases: Mapping[str, AliasChanges] = key(
        {},
        aliases(),
        "Further names that requests may use, each of one model only: a list, or a mapping from"
        " names to what is changed in requests by that name: `{strict: {set: {temperature: 0}}}`.",
    )
    mode: str = key(
        "Chat",
        readers.mode,
        "`Chat`, `Base`, `Embedding`, `Reranker`, `Transcription`, `Speech`, `Image`, or a"
        " plugin's.",
    )
    endpoints: tuple[str, ...] = key(
        (),
        listed(choice("endpoint", sorted(ENDPOINTS))),
        "Paths that its server answers beside those of its mode, such as `/v1/embeddings`.",
    )
    port: int | None = key(
        None, readers.PORT, "Where its server listens, on loopback.", absent="any free one"
    )
    url: str | None = key(
        None,
        hosts.server_url,
        "A server that others start, instead of schemes: `https://api.example.org/v1` (what"
        " OpenAI's clients call the base URL) or `http://10.0.0.5:8080`.",
    )
    api_key: str | None = key(
        None,
        readers.api_key,
        "What that server is sent as its key: `${NAME}` is the value that NAME has in the program's"
        " environment.",
        repr=False,
    )
    auto_start: bool = key(False, boolean, "It is started together with the program.")
    alive_time: float = inherited(Program, "alive_time")
    start_timeout: float = inherited(Program, "start_timeout")
    stop_timeout: float = inherited(Program, "stop_timeout")
    max_waiting: int = inherited(Program, "max_waiting")
    max_concurrency: int | None = key(
        None,
        _COUNT,
        "Requests in flight at once; further ones are queued.",
        absent="any number",
    )
    pinned: bool = key(False, boolean, "It is never stopped to free memory for another.")
    sleep: bool = key(
        False,
        boolean,
        "Where it would be stopped for being idle or for another model, its server is put to sleep,"
        " if the machine's memory is enough for its model: vLLM's sleep mode"
        " (`--enable-sleep-mode`, `VLLM_SERVER_DEV_MODE=1`).",
    )
    served_model_name: str | None = key(
        None,
        single_line,
        "What its server calls the model; replaces `model` in what is forwarded.",
    )
    request: RequestChanges | None = key(
        None,
        record(RequestChanges),
        "What is changed in requests: `{strip: [seed], default: {max_tokens: 512}}`.",
        absent="nothing",
    )
    context_length: int | None = key(
        None,
        integer(1, 1_000_000_000),
        "What `/v1/models` says of how much it reads at once.",
        unit="tokens",
        absent="what its server says",
    )
    capabilities: tuple[str, ...] = key(
        (),
        listed(choice("capability", CAPABILITIES)),
        "What `/v1/models` says that it can do.",
        absent="what its endpoints and its server say",
    )
    unlisted: bool = key(False, boolean, "It can be used, but is not in `/v1/models`.")
    ask_usage: bool = key(
        True,
        boolean,
        "Its server is asked for usage in streams; `false` for one that refuses the field.",
    )
    health: str | None = key(
        None,
        hosts.health,
        "The path at which its server says that it is well, such as `/healthz`; `none`: it is once"
        " its port takes connections.",
        absent="`/health`, else `/v1/models`",
    )
    probe: bool = key(
        True,
        boolean,
        "It is sent a request for one token before it counts as ready, and where it seems to serve"
        " no longer; `false`: its health alone decides.",
    )
    price: Price | None = key(None, readers.price, "The first price of a model that has none yet.")
    schemes: tuple[Scheme, ...] = ()

    def changes(self, name: str) -> RequestChanges | None:
        """What is changed in a request that asks for it by this name, an alias or its own."""
        alias = self.aliases.get(name)
        if alias is None or not alias.set:
            return self.request
        changes = self.request or RequestChanges()
        return replace(changes, set={**changes.set, **alias.set})


@dataclass(frozen=True)
class Config:
    """A whole config.yaml; `models` are by name, in file order. `warnings` are what is odd in the
    file, yet keeps no program from starting."""

    path: Path
    program: Program
    models: Mapping[str, Model]
    warnings: tuple[Problem, ...] = ()
    _named: Mapping[str, Model] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        named = {alias: model for model in self.models.values() for alias in model.aliases}
        object.__setattr__(self, "_named", named | dict(self.models))

    def find(self, name: str) -> Model | None:
        """The model with this name or alias."""
        return self._named.get(name)

    def first_prices(self) -> Iterator[tuple[str, Price]]:
        """The models that name a price, with it."""
        return ((model.name, model.price) for model in self.models.values() if model.price)
