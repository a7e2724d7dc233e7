"""What config.yaml can set, with the defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from manager.billing.pricing import Price

Network = IPv4Network | IPv6Network


@dataclass(frozen=True)
class Export:
    """When bills are written, for which span (`day` or `month`), and where (None: the data dir)."""

    schedule: str
    period: str
    directory: Path | None


@dataclass(frozen=True)
class Program:
    """The `program` section. Times are seconds, except `alive_time`, which is minutes."""

    host: str = "127.0.0.1"
    port: int = 8080
    log_level: str = "INFO"
    alive_time: float = 15.0
    disable_gpu_monitoring: bool = False
    token_tracker: tuple[str, ...] = ("Chat", "Base", "Embedding", "Reranker")
    device_plugin_dir: Path | None = None
    interface_plugin_dir: Path | None = None
    device_memory_mb: Mapping[str, int] = field(default_factory=dict)
    threads: int = 512
    start_timeout: float = 300.0
    stop_timeout: float = 10.0
    queue_timeout: float = 300.0
    max_waiting: int = 320
    max_body_mb: int = 64
    list_aliases: bool = False
    upstream_timeout: float = 600.0
    currency: str = "CNY"
    timezone: str | None = None
    log_retention_days: int = 30
    request_retention_days: int = 0
    export: Export | None = None
    # The URL may hold a password.
    queue: str | None = field(default=None, repr=False)
    # None: /v1 asks for a key once one is defined. False: never, keys then only tell who sends.
    require_key: bool | None = None
    # In lower case, without a port; addresses are never among them.
    allowed_hosts: tuple[str, ...] = ()
    # As browsers send them; "*" is every page.
    cors_origins: tuple[str, ...] = ()
    # Whose X-Forwarded-For and X-Forwarded-Proto are believed.
    trusted_proxies: tuple[Network, ...] = ()
    # On a page, from other machines, too.
    allow_config_edit: bool = False
    # Those of our environment that `queue` has the values of.
    variables: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Scheme:
    """One way to start a model: a script or a command, and the devices that it needs.

    `command` is empty where there is a `script_path`, else `script_path` is None. `memory_mb` has
    the devices' names as `required_devices` spells them. `expanded` names those of `env` whose
    values have some of our own environment's in them.
    """

    name: str
    required_devices: tuple[str, ...]
    script_path: Path | None
    command: tuple[str, ...]
    memory_mb: Mapping[str, int]
    # Values may be keys and tokens.
    env: Mapping[str, str] = field(repr=False)
    cwd: Path
    expanded: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Model:
    """A model; its schemes are in the order in which they are tried.

    Times are seconds, except `alive_time`, which is minutes; where the file has none, they are the
    program's.
    """

    name: str
    aliases: tuple[str, ...] = ()
    mode: str = "Chat"
    port: int | None = None
    auto_start: bool = False
    alive_time: float = Program.alive_time
    start_timeout: float = Program.start_timeout
    stop_timeout: float = Program.stop_timeout
    max_waiting: int = Program.max_waiting
    max_concurrency: int | None = None
    pinned: bool = False
    served_model_name: str | None = None
    unlisted: bool = False
    ask_usage: bool = True
    price: Price | None = None
    schemes: tuple[Scheme, ...] = ()


@dataclass(frozen=True)
class Config:
    """A whole config.yaml; `models` are by name, in file order."""

    path: Path
    program: Program
    models: Mapping[str, Model]
    _named: Mapping[str, Model] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        named = {alias: model for model in self.models.values() for alias in model.aliases}
        object.__setattr__(self, "_named", named | dict(self.models))

    def find(self, name: str) -> Model | None:
        """The model with this name or alias."""
        return self._named.get(name)
