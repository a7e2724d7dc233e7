"""`docker run` for a model's server, as docs/containers.md describes it."""

from __future__ import annotations

import csv
import io
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from manager.engines.llama_cpp import PORT, literal

_INSIDE = "/models"
_STOP_SECONDS = "8"  # Docker's patience; it ends before a scheme's stop_timeout of 10 s does


class Mounted(NamedTuple):
    """``command`` up to the image; ``paths`` are what the given files are called inside."""

    command: list[str]
    paths: list[str]


def docker_command(
    model: str, image: str, port: int, options: Sequence[str], files: Sequence[Path]
) -> Mounted:
    """A container for this model of the config, that serves on loopback only, and can read these
    files (or folders) of the host and nothing else, wherever links lead to them."""
    paths = [inside(each) for each in files]
    mounts = [_mount(each.resolve(), at) for each, at in zip(files, paths, strict=True)]
    command = [
        *("docker", "run", "--rm", "--init", "--name", container_name(model), *options),
        *("--publish", f"127.0.0.1:{PORT}:{port}"),
        *(part for mount in mounts for part in ("--mount", mount)),
        image,
    ]
    return Mounted(command, paths)


def inside(path: Path) -> str:
    """What a container calls a file or a folder that is mounted."""
    return f"{_INSIDE}/{path.name}"


def docker_stop(model: str) -> list[str]:
    """The scheme's `stop_command`."""
    return ["docker", "stop", "-t", _STOP_SECONDS, container_name(model)]


def container_name(model: str) -> str:
    """A name that Docker takes, and that no other model of the config has."""
    plain = re.sub(r"[^a-zA-Z0-9_.-]+", "-", model)
    return f"llm-{plain}" if plain == model else f"llm-{plain}-{zlib.crc32(model.encode()):08x}"


def _mount(source: Path, target: str) -> str:
    # One record of CSV: a path may have a comma in it.
    record = io.StringIO()
    fields = ["type=bind", f"source={literal(source)}", f"target={literal(target)}", "readonly"]
    csv.writer(record, lineterminator="").writerow(fields)
    return record.getvalue()
