"""config.yaml: each key's declaration, the reader, the file, plugins."""

from manager.config import config_file, edit, loader, plugins, readers, variables, yaml_reader
from manager.config.declaration import keys
from manager.config.hosts import NO_HEALTH, Network, admits
from manager.config.live import ANY_VERSION, ConfigChanged, LiveConfig, NotApplied, NotSaved
from manager.config.loader import ConfigError, EmptyConfig, Problem
from manager.config.redaction import (
    MASK,
    argument_spans,
    is_secret_name,
    redact,
    redact_spans,
)
from manager.config.schedule import next_time
from manager.config.settings import Config, Export, Model, Program
from manager.config.yaml_reader import has_control

__all__ = [
    "ANY_VERSION",
    "MASK",
    "NO_HEALTH",
    "Config",
    "ConfigChanged",
    "ConfigError",
    "EmptyConfig",
    "Export",
    "LiveConfig",
    "Model",
    "Network",
    "NotApplied",
    "NotSaved",
    "Problem",
    "Program",
    "admits",
    "argument_spans",
    "config_file",
    "edit",
    "has_control",
    "is_secret_name",
    "keys",
    "loader",
    "next_time",
    "plugins",
    "readers",
    "redact",
    "redact_spans",
    "variables",
    "yaml_reader",
]
