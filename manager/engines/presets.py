"""The engines that "add a model" offers: one declaration each."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from manager.engines.docker import docker_command, docker_stop, inside
from manager.engines.llama_cpp import PORT, literal, llama_server_command, model_arguments
from manager.gguf import Kind

DEMO_SERVER = Path(__file__).resolve().parents[2] / "scripts" / "llama_server.py"

_TEXT = frozenset({Kind.CHAT, Kind.BASE, Kind.EMBEDDING, Kind.RERANKER})
_VLLM_POOLING = {"Embedding": "embed", "Reranker": "classify"}


@dataclass(frozen=True)
class Request:
    """What is to be served: ``files`` of a GGUF, the first first, or ``model``, the name of a
    Hugging Face model or its folder. ``devices`` are required devices by name; ``name`` is the
    model's in the config; ``pooling`` is llama.cpp's, where the file does not say it."""

    name: str
    mode: str
    model: str
    files: tuple[Path, ...] = ()
    projector: Path | None = None
    devices: tuple[str, ...] = ()
    context: int | None = None
    pooling: str | None = None

    @property
    def given_files(self) -> tuple[Path, ...]:
        """All that the server reads, the model's first file first and the projector last."""
        return (*self.files, *((self.projector,) if self.projector else ()))


@dataclass(frozen=True)
class Engine:
    """One way to run a model.

    ``kinds`` of GGUF that it takes; empty: it takes a Hugging Face model's name or folder instead.
    ``device_kinds`` are the kinds of devices that it runs on; ``cpu`` stands for none.
    ``program`` has to be on PATH, ``module`` to be installed. ``command`` and ``stop`` make a
    scheme's `command` and `stop_command`; an engine without ``command`` is the user's own.
    ``served_name`` is what it calls the model, where it refuses another name.
    """

    id: str
    title: str
    kinds: frozenset[Kind]
    device_kinds: frozenset[str]
    command: Callable[[Request], list[str]] | None
    program: str = ""
    module: str = ""
    stop: Callable[[Request], list[str]] | None = None
    served_name: Callable[[Request], str] | None = None
    start_timeout: int | None = None

    def lacks_device(self, device_kinds: Collection[str]) -> str | None:
        """Why it cannot be run on a machine with these kinds of devices, for a person; None where
        it can."""
        if "cpu" in self.device_kinds or self.device_kinds & set(device_kinds):
            return None
        return f"this machine has no device of the kind {' or '.join(sorted(self.device_kinds))}"

    def unavailable(self, which: Callable[[str], str | None] = shutil.which) -> str | None:
        """Why it cannot be run here, for a person; None where it can."""
        if self.program and which(self.program) is None:
            return f"there is no {self.program} on the PATH of this program"
        if self.module and importlib.util.find_spec(self.module) is None:
            return f"the Python package {self.module} is not installed here"
        return None


def _llama_server(request: Request, program: Sequence[str] = ("llama-server",)) -> list[str]:
    return llama_server_command(
        request.files[0],
        mode=request.mode,
        context=request.context,
        mmproj=request.projector,
        pooling=request.pooling,
        on_devices=bool(request.devices),
        program=program,
    )


def _demo(request: Request) -> list[str]:
    return _llama_server(request, (sys.executable, str(DEMO_SERVER)))


def _vllm_arguments(request: Request) -> list[str]:
    pooling = _VLLM_POOLING.get(request.mode)
    return [
        *("--gpu-memory-utilization", "${MEMORY_FRACTION}"),
        *(("--max-model-len", str(request.context)) if request.context else ()),
        *(("--tensor-parallel-size", str(n)) if (n := len(request.devices)) > 1 else ()),
        *(("--runner", "pooling", "--convert", pooling) if pooling else ()),
    ]


def _vllm(request: Request) -> list[str]:
    return [
        *("vllm", "serve", literal(request.model), *_vllm_arguments(request)),
        *("--host", "127.0.0.1", "--port", PORT),
    ]


def _llama_in(image: str, *options: str) -> Callable[[Request], list[str]]:
    """llama.cpp's server of an image, with options for ``docker run``."""

    def command(request: Request) -> list[str]:
        mounted = docker_command(request.name, image, 8080, options, request.given_files)
        return [
            *mounted.command,
            *model_arguments(
                mounted.paths[0],
                mode=request.mode,
                context=request.context,
                mmproj=mounted.paths[-1] if request.projector else None,
                pooling=request.pooling,
                on_devices=bool(request.devices),
            ),
        ]

    return command


def _vllm_in(image: str, *options: str) -> Callable[[Request], list[str]]:
    """vLLM's server of an image. A model that is no folder comes from the user's cache of Hugging
    Face, or gets there."""

    def command(request: Request) -> list[str]:
        if Path(request.model).is_absolute():
            folders, cache = [Path(request.model)], []
        else:
            path = Path.home() / ".cache" / "huggingface"
            folders, cache = [], ["--volume", f"{literal(path)}:/root/.cache/huggingface"]
        mounted = docker_command(request.name, image, 8000, (*_SHARED, *options, *cache), folders)
        return [*mounted.command, "--model", _name_inside(request), *_vllm_arguments(request)]

    return command


def _name_inside(request: Request) -> str:
    """What a container calls a Hugging Face model."""
    name = request.model
    return literal(inside(Path(name)) if Path(name).is_absolute() else name)


def _stop(request: Request) -> list[str]:
    return docker_stop(request.name)


# The processes of one model share more memory than the 64 MB that Docker gives. The documentation
# of vLLM has --ipc=host as well, which shares all of the host's.
_SHARED = ("--shm-size", "8g")
_VLLM_START_SECONDS = 900  # it compiles its kernels at the first start
_NVIDIA = ("--gpus", '"device=${DEVICES}"')
_AMD = ("--device", "/dev/kfd", "--device", "/dev/dri", "--group-add", "video")
_ROCM = (*_AMD, "--env", "HIP_VISIBLE_DEVICES=${DEVICES}")
_VULKAN = ("--device", "/dev/dri", "--group-add", "video")
_LLAMA_CPP = "ghcr.io/ggml-org/llama.cpp"

_ANY = frozenset({"cpu", "nvidia", "amd"})
_ON_CPU = frozenset({"cpu"})
_ON_NVIDIA = frozenset({"nvidia"})
_ON_AMD = frozenset({"amd"})
_NO_GGUF: frozenset[Kind] = frozenset()

ENGINES: tuple[Engine, ...] = (
    Engine("llama-server", "llama.cpp: llama-server", _TEXT, _ANY, _llama_server, "llama-server"),
    Engine("demo", "llama.cpp of the demo models", _TEXT, _ON_CPU, _demo, module="xllamacpp"),
    Engine(
        *("docker-llama-cuda", "llama.cpp in Docker, NVIDIA", _TEXT, _ON_NVIDIA),
        *(_llama_in(f"{_LLAMA_CPP}:server-cuda", *_NVIDIA), "docker"),
        stop=_stop,
    ),
    Engine(
        *("docker-llama-rocm", "llama.cpp in Docker, AMD (ROCm)", _TEXT, _ON_AMD),
        *(_llama_in(f"{_LLAMA_CPP}:server-rocm", *_ROCM), "docker"),
        stop=_stop,
    ),
    Engine(
        *("docker-llama-vulkan", "llama.cpp in Docker, Vulkan", _TEXT, _ON_AMD),
        *(_llama_in(f"{_LLAMA_CPP}:server-vulkan", *_VULKAN), "docker"),
        stop=_stop,
    ),
    Engine(
        *("docker-llama-cpu", "llama.cpp in Docker, processor", _TEXT, _ON_CPU),
        *(_llama_in(f"{_LLAMA_CPP}:server"), "docker"),
        stop=_stop,
    ),
    Engine(
        *("vllm", "vLLM", _NO_GGUF, _ON_NVIDIA | _ON_AMD, _vllm, "vllm"),
        served_name=lambda request: request.model,
        start_timeout=_VLLM_START_SECONDS,
    ),
    Engine(
        *("docker-vllm-cuda", "vLLM in Docker, NVIDIA", _NO_GGUF, _ON_NVIDIA),
        *(_vllm_in("vllm/vllm-openai", *_NVIDIA), "docker"),
        stop=_stop,
        served_name=_name_inside,
        start_timeout=_VLLM_START_SECONDS,
    ),
    Engine(
        *("docker-vllm-rocm", "vLLM in Docker, AMD (ROCm)", _NO_GGUF, _ON_AMD),
        *(_vllm_in("vllm/vllm-openai-rocm", *_ROCM), "docker"),
        stop=_stop,
        served_name=_name_inside,
        start_timeout=_VLLM_START_SECONDS,
    ),
    Engine("own", "my own command", _TEXT, _ANY, None),
)
BY_ID = {each.id: each for each in ENGINES}
