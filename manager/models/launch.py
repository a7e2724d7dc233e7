"""What a start runs: the arguments and variables of a scheme, and how the run is recorded."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from typing import NamedTuple

from manager.config import loader, variables
from manager.models import process_tree
from manager.placement import MAX_ASSUMED_FRACTION, DeviceAssignment
from manager.storage import Launch, Run

# Else what a Python server prints while it loads stands in its log minutes later, or never. Below
# all other environments, and no part of the fingerprint.
_DEFAULTS = {"PYTHONUNBUFFERED": "1"}

# Where no device's memory is known.
_NO_PLANNED_MEMORY = {"MEMORY_MB": "0", "MEMORY_FRACTION": f"{MAX_ASSUMED_FRACTION:g}"}


class LaunchPlan(NamedTuple):
    """What is to be run, and its run; ``env`` is the whole environment."""

    run: Run
    scheme: loader.Scheme
    arguments: list[str]
    env: Mapping[str, str]


def plan(
    settings: loader.Model, assignment: DeviceAssignment, port: int, now_ms: int
) -> LaunchPlan:
    """The launch of a model with the scheme and the devices that it was assigned. Raises
    LaunchError."""
    scheme = next(s for s in settings.schemes if s.name == assignment.scheme)
    given = {  # besides our own environment
        **assignment.environment,
        **scheme.env,
        "LLM_MANAGER_MODEL": settings.name,
        "LLM_MANAGER_SCHEME": scheme.name,
        "LLM_MANAGER_PORT": str(port),
        "PORT": str(port),
    }
    inherited = variables.child_environment()
    devices = assignment.environment.get("CUDA_VISIBLE_DEVICES", "")
    if "HIP_VISIBLE_DEVICES" in assignment.environment:
        devices = devices or assignment.environment["HIP_VISIBLE_DEVICES"]
        # HIP would count the cards that this leaves, and not all that there are.
        inherited.pop("ROCR_VISIBLE_DEVICES", None)
    env = {**_DEFAULTS, **inherited, **given}
    values = {
        **env,
        "MODEL": settings.name,
        "SCHEME": scheme.name,
        "DEVICES": devices,
        **_NO_PLANNED_MEMORY,
        **assignment.variables,
    }
    launch = Launch()
    if scheme.stop_command:
        stop_command = variables.expand_command(scheme.stop_command, values)
        launch = Launch(tuple(stop_command), str(scheme.cwd), given, scheme.detached)
    run = Run(
        id=uuid.uuid4().hex,
        model=settings.name,
        scheme=scheme.name,
        fingerprint=launch_fingerprint(settings, scheme),
        port=port,
        pid=None,
        pid_created=None,
        started_ms=now_ms,
        ready_ms=None,
        mode=settings.mode,
        memory_mb=assignment.memory_mb,
        launch=launch,
    )
    command = variables.expand_command(scheme.command, values)
    return LaunchPlan(run, scheme, process_tree.command_line(scheme.script_path, command), env)


def launch_fingerprint(settings: loader.Model, scheme: loader.Scheme) -> str:
    """A hash of all that decides how the server was launched: if it differs, the running one
    is not what the config asks for. How it is stopped is none of it: a run keeps its own
    stop_command."""
    launched = [
        settings.mode,
        settings.port,
        scheme.name,
        str(scheme.script_path),
        variables.expand_command(scheme.command, variables.known_values(scheme.env)),
        sorted(scheme.env.items()),
        str(scheme.cwd),
        *scheme.required_devices,
        *(["detached"] if scheme.detached else []),
    ]
    return hashlib.sha256(json.dumps(launched).encode()).hexdigest()[:16]
