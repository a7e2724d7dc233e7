"""The llama.cpp server in a command, also in a container's: its options and files."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from manager.gguf.options import Options, read_options

_SERVER = re.compile(r"(llama[-_]?server|llama[-_]cpp[-_]server|llamafile)", re.IGNORECASE)
_IMAGE = re.compile(r"llama[-_.]?cpp|llama[-_]?server|llamafile", re.IGNORECASE)
_CONTAINER_PROGRAMS = frozenset({"docker", "podman", "nerdctl"})
# Options of `docker run` that take no value (docs.docker.com/reference/cli/docker/container/run).
_FLAGS = frozenset(
    {
        "--detach", "--disable-content-trust", "--init", "--interactive", "--no-healthcheck",
        "--oom-kill-disable", "--privileged", "--publish-all", "--quiet", "--read-only", "--rm",
        "--sig-proxy", "--tty", "--use-api-socket",
    }
)  # fmt: skip
_SHORT_FLAGS = re.compile(r"-[ditPq]+")


@dataclass(frozen=True)
class Invocation:
    """``mounts`` are the folders and files of the host that a container has at another path."""

    options: Options
    cwd: Path
    mounts: Mapping[PurePosixPath, Path] | None = None

    def path(self, written: str) -> Path:
        """The file of this machine that the server calls ``written``."""
        if self.mounts is None:
            return self.cwd / written
        inside = PurePosixPath("/") / written
        for target in sorted(self.mounts, key=lambda each: len(each.parts), reverse=True):
            if inside == target or target in inside.parents:
                return self.mounts[target] / inside.relative_to(target)
        return Path(inside)


def read_command(command: Sequence[str], cwd: Path, env: Mapping[str, str]) -> Invocation | None:
    """The llama.cpp server that a command starts, with what it sets; None where it starts none.

    ``command`` has its variables expanded; ``env`` is what the scheme sets for it.
    """
    for at, argument in enumerate(command):
        program = PureWindowsPath(argument).stem.lower()  # splits at either slash
        if _SERVER.match(program):
            return Invocation(read_options(command[at + 1 :], env), cwd)
        if program in _CONTAINER_PROGRAMS:
            return _container(command[at + 1 :], cwd)
    return None


def _container(arguments: Sequence[str], cwd: Path) -> Invocation | None:
    """What ``docker run OPTIONS IMAGE ARGUMENTS`` starts."""
    if "run" not in arguments:
        return None
    rest = list(reversed(arguments[arguments.index("run") + 1 :]))
    env: dict[str, str] = {}
    mounts: dict[PurePosixPath, Path] = {}
    while rest and rest[-1].startswith("-"):
        name = rest.pop()
        value = ""
        if name.startswith("--"):
            name, has_value, value = name.partition("=")
            if not has_value and name not in _FLAGS and rest:
                value = rest.pop()
        elif not _SHORT_FLAGS.fullmatch(name):
            name, value = name[:2], name[2:]  # -eNAME=VALUE
            value = value or (rest.pop() if rest else "")
        if name in ("-e", "--env"):
            key, _, text = value.partition("=")
            env[key] = text
        elif name in ("-v", "--volume"):
            _mount(mounts, cwd, *_volume(value))
        elif name == "--mount":
            _mount(mounts, cwd, *_bind(value))
    if not rest:
        return None
    image = rest.pop()
    inside = list(reversed(rest))
    if not _IMAGE.search(image) and not any(_SERVER.search(each) for each in inside):
        return None
    return Invocation(read_options(inside, env), cwd, mounts)


def _volume(value: str) -> tuple[str, str]:
    """``SOURCE:TARGET[:OPTIONS]``; the source may begin with a drive's letter."""
    found = re.fullmatch(r"((?:[A-Za-z]:[\\/])?[^:]*):(/[^:]*)(?::.*)?", value, re.DOTALL)
    return (found[1], found[2]) if found else ("", "")


def _bind(value: str) -> tuple[str, str]:
    """``type=bind,source=SOURCE,target=TARGET``."""
    try:
        fields = next(csv.reader([value]), [])
    except csv.Error:  # docker's own message says it best
        return "", ""
    parts = dict(each.partition("=")[::2] for each in fields)
    source = parts.get("source") or parts.get("src") or ""
    return source, parts.get("target") or parts.get("dst") or parts.get("destination") or ""


def _mount(mounts: dict[PurePosixPath, Path], cwd: Path, source: str, target: str) -> None:
    if source and target:
        mounts[PurePosixPath("/") / target] = cwd / source
