"""Finds plugins, shipped and the user's. A broken file is named in the log and left out."""

from __future__ import annotations

import importlib.util
import logging
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from manager.devices import BUILT_IN as DEVICES
from manager.devices import DevicePlugin
from manager.interfaces import BUILT_IN as INTERFACES
from manager.interfaces import Interface

log = logging.getLogger(__name__)

T = TypeVar("T")

_PATH = re.compile(r"/v1/[A-Za-z0-9._~/-]+")


def interfaces(folder: Path | None) -> dict[str, Interface]:
    """Every mode by its name. A plugin with the name of a shipped mode takes its place."""
    found: dict[str, Interface] = {kind.mode: kind() for kind in INTERFACES}
    found.update({each.mode: each for each in _made(folder, Interface, _interface_fault)})
    return found


def devices(folder: Path | None) -> list[DevicePlugin]:
    """Every way to ask for devices. A plugin with the name of a shipped one takes its place."""
    found: dict[str, DevicePlugin] = {kind.name: kind() for kind in DEVICES}
    found.update({each.name: each for each in _made(folder, DevicePlugin, _device_fault)})
    return list(found.values())


def _made(
    folder: Path | None, base: type[T], fault_of: Callable[[type[T]], str | None]
) -> Iterator[T]:
    """An object of each plugin in the folder's files, in the order of their names."""
    for path, module in _modules(folder, base.__name__):
        for kind in vars(module).values():
            is_own = isinstance(kind, type) and kind.__module__ == module.__name__
            if not is_own or not issubclass(kind, base):
                continue
            if fault := fault_of(kind):
                log.error("plugin %s: %s %s; it is left out", path, kind.__name__, fault)
                continue
            try:
                plugin = kind()
            except (Exception, SystemExit):
                # As in loading it: a user's code may fail in any way, and ends nothing but itself.
                log.exception("plugin %s: %s cannot be made; it is left out", path, kind.__name__)
                continue
            yield plugin


def _interface_fault(kind: type[Interface]) -> str | None:
    mode = getattr(kind, "mode", None)
    if not isinstance(mode, str) or not mode:
        return 'needs a name: mode = "..."'
    endpoints = getattr(kind, "endpoints", None)
    if not isinstance(endpoints, tuple) or not endpoints:
        return 'needs a tuple of paths: endpoints = ("/v1/...",)'
    for path in endpoints:
        if not isinstance(path, str) or not _PATH.fullmatch(path):
            return f"has an endpoint that is not a plain path below /v1/: {path!r}"
    if kind.probe is Interface.probe:
        return "needs a probe(self, model) that returns a path and a JSON body"
    return None


def _device_fault(kind: type[DevicePlugin]) -> str | None:
    name = getattr(kind, "name", None)
    if not isinstance(name, str) or not name:
        return 'needs a name: name = "..."'
    if kind.read is DevicePlugin.read:
        return "needs a read(self, pids) that returns a list of Readings"
    return None


def _modules(folder: Path | None, use: str) -> Iterator[tuple[Path, ModuleType]]:
    """Each file of the folder as a module; ``use`` keeps apart what two folders call the same."""
    for path in sorted(folder.glob("*.py")) if folder else ():
        if path.name.startswith("_"):
            continue
        spec = importlib.util.spec_from_file_location(f"llm_manager_{use}_{path.stem}", path)
        if spec is None or spec.loader is None:
            continue
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses, for one, look their module up there
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit):
            # Anything can be wrong in a user's file; the log has the traceback.
            sys.modules.pop(spec.name, None)
            log.exception("plugin %s cannot be loaded; it is left out", path)
            continue
        yield path, module
