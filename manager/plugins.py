"""Finds plugins, ours and the user's. A broken file is named in the log and left out."""

from __future__ import annotations

import importlib.util
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from manager.interfaces import BUILT_IN, Interface

log = logging.getLogger(__name__)

_PATH = re.compile(r"/v1/[A-Za-z0-9._~/-]+")


def interfaces(folder: Path | None) -> dict[str, Interface]:
    """Every mode by its name. A plugin with the name of a shipped mode takes its place."""
    found: dict[str, Interface] = {kind.mode: kind() for kind in BUILT_IN}
    for path, module in _modules(folder):
        for kind in vars(module).values():
            is_own = isinstance(kind, type) and kind.__module__ == module.__name__
            if not is_own or not issubclass(kind, Interface):
                continue
            if fault := _fault(kind):
                log.error("plugin %s: %s %s; it is left out", path, kind.__name__, fault)
                continue
            try:
                found[kind.mode] = kind()
            except Exception:
                # As in loading it: a user's code may fail in any way, and ends nothing but itself.
                log.exception("plugin %s: %s cannot be made; it is left out", path, kind.__name__)
    return found


def _fault(kind: type[Interface]) -> str | None:
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


def _modules(folder: Path | None) -> Iterator[tuple[Path, ModuleType]]:
    for path in sorted(folder.glob("*.py")) if folder else ():
        if path.name.startswith("_"):
            continue
        spec = importlib.util.spec_from_file_location(f"llm_manager_plugin_{path.stem}", path)
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
