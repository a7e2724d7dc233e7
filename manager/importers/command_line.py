"""Command lines as llama-swap reads them, and what they say of a model. Pure."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence

_WINDOWS_PATH = re.compile(r"(?:^|[\s\"'=])[A-Za-z]:\\")
_PROGRAM_OF_CONTAINERS = ("docker", "podman")
# Which cards a server may use, by the variable that says so to it.
PINS = (
    *("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
    *("GGML_VK_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "ONEAPI_DEVICE_SELECTOR"),
)
_PIN_OPTIONS = ("--device", "-dev", "--main-gpu", "-mg", "--gpus", "--device-ids")
_KEY_OPTIONS = ("--api-key", "--api-key-file")
_KEY_VARIABLES = ("LLAMA_API_KEY", "VLLM_API_KEY")
_OPEN_PORT = re.compile(r"\$\{PORT\}:[0-9]+")  # as Docker publishes one
_OPEN_HOSTS = ("0.0.0.0", "::")

# What an option or a program says of a model's mode; the first that is there.
_MODE_BY_ARGUMENT = {
    "--reranking": "Reranker",
    "--rerank": "Reranker",
    "--embedding": "Embedding",
    "--embeddings": "Embedding",
}
_MODE_BY_VALUE = {
    ("--pooling", "rank"): "Reranker",
    ("--task", "embed"): "Embedding",
    ("--task", "embedding"): "Embedding",
    ("--task", "score"): "Reranker",
    ("--task", "transcription"): "Transcription",
}
_MODE_BY_PROGRAM = {
    "whisper-server": "Transcription",
    "sd-server": "Image",
    "text-embeddings-router": "Embedding",
}
_MODE_BY_NAME = {
    "Reranker": re.compile("rerank", re.IGNORECASE),
    "Embedding": re.compile("embed", re.IGNORECASE),
    "Transcription": re.compile("whisper", re.IGNORECASE),
    "Speech": re.compile(r"(?<![a-z])tts(?![a-z])|kokoro", re.IGNORECASE),
}


def without_comments(text: str) -> str:
    """A command line without its lines that begin with ``#``."""
    return "\n".join(line for line in text.split("\n") if not line.strip().startswith("#"))


def split(text: str) -> list[str]:
    """The arguments of a command line: quotes as a shell has them, a ``\\`` at the end of a line
    goes on with the next. A command with a path such as ``C:\\x`` is read as Windows does. Raises
    ValueError where a quote is open at the end."""
    lines = without_comments(text).split("\n")
    joined = "\n".join(
        line.strip()[:-1] + " " if line.strip().endswith("\\") else line for line in lines
    )
    if os.name == "nt" or _WINDOWS_PATH.search(joined):
        return list(_split_as_windows(joined))
    return shlex.split(joined)


def _split_as_windows(text: str) -> Iterator[str]:
    """As CommandLineToArgvW does: ``\\`` is itself but before a ``"``."""
    argument: list[str] = []
    quoted = started = False
    for found in re.finditer(r'(\\+)("?)|(")|([ \t\r\n])|([^ \t\r\n"\\]+)', text):
        backslashes, after, quote, space, other = found.groups()
        if space and not quoted:
            if started:
                yield "".join(argument)
            argument, started = [], False
            continue
        started = True
        if backslashes and after:
            argument.append("\\" * (len(backslashes) // 2))
            quote = '"' if len(backslashes) % 2 == 0 else ""
            argument.append("" if quote else '"')
        if quote:
            quoted = not quoted
        elif not after:
            argument.append(backslashes or space or other)
    if quoted:
        raise ValueError("No closing quotation")
    if started:
        yield "".join(argument)


def program(arguments: Sequence[str]) -> str:
    """The name of the program that a command runs, without its folder and ``.exe``."""
    name = re.split(r"[/\\]", arguments[0])[-1] if arguments else ""
    return name.removesuffix(".exe")


def mode(arguments: Sequence[str], name: str) -> tuple[str, str]:
    """A model's mode, and what says so: an argument of the command, or else the model's name. It is
    empty for ``Chat``, which all others are."""
    for before, argument in zip(("", *arguments), arguments, strict=False):
        option, _, value = argument.partition("=")
        found = (
            _MODE_BY_ARGUMENT.get(argument)
            or _MODE_BY_VALUE.get((option, value))
            or _MODE_BY_VALUE.get((before, argument))
        )
        if found:
            return found, argument
        if by_program := _MODE_BY_PROGRAM.get(program([argument])):
            return by_program, program([argument])
    for found, word in _MODE_BY_NAME.items():
        if word.search(name):
            return found, "its name"
    return "Chat", ""


def missing_flag(arguments: Sequence[str], mode: str) -> str:
    """What llama-server needs for a mode and does not have; empty where it has it, and for other
    servers."""
    flags = [flag for flag, meant in _MODE_BY_ARGUMENT.items() if meant == mode]
    if program(arguments) != "llama-server" or not flags or set(flags) & set(arguments):
        return ""
    return "" if ("--pooling" in arguments and mode == "Reranker") else flags[0]


def hints(arguments: Sequence[str], env: Mapping[str, str]) -> Iterator[str]:
    """What a person has to know of a command that LLM-Manager will run. No value of a variable is
    in it, but for those that name cards."""
    if pins := [*(f"{name}={env[name]}" for name in PINS if name in env), *_pins(arguments)]:
        yield (
            f"{', '.join(pins)} pins a card: name that card in required_devices, and take this out:"
            " the server is given CUDA_VISIBLE_DEVICES or HIP_VISIBLE_DEVICES with it"
        )
    in_container = program(arguments) in _PROGRAM_OF_CONTAINERS
    for option, value in _options(arguments):
        if option in _KEY_OPTIONS:
            yield (
                f"{option}: its server would ask LLM-Manager for a key, which it does not send:"
                " take it out, keys are checked by LLM-Manager"
            )
        elif option == "--host" and value in _OPEN_HOSTS and not in_container:
            yield (
                f"--host {value}: other machines reach its server, past the keys of LLM-Manager:"
                " write --host 127.0.0.1"
            )
    if open_port := next((one for one in arguments if _OPEN_PORT.fullmatch(one)), None):
        yield (
            f"{open_port}: other machines reach its server, past the keys of LLM-Manager:"
            f" write 127.0.0.1:{open_port}"
        )
    if asks := [name for name in _KEY_VARIABLES if name in env]:
        yield f"{asks[0]}: its server would ask LLM-Manager for a key, which it does not send"
    relative = [one for one in arguments if one.startswith(("./", "../", ".\\", "..\\"))]
    if relative:
        yield (
            f"{relative[0]} begins in the folder of config.yaml here:"
            " write `cwd` into the scheme if that is another"
        )


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each argument up to its ``=``, with what is behind that, or else the next argument."""
    for argument, after in zip(arguments, (*arguments[1:], ""), strict=True):
        option, equals, value = argument.partition("=")
        yield option, value if equals else after


def _pins(arguments: Sequence[str]) -> Iterator[str]:
    for argument, (option, value) in zip(arguments, _options(arguments), strict=True):
        if option in PINS and "=" in argument:
            yield argument
        # Docker's --device is a file, and its --gpus may be all of them.
        elif option in _PIN_OPTIONS and value != "all" and not value.startswith("/dev/"):
            yield f"{option} {value}"


def with_free_port(arguments: Sequence[str], port: int) -> list[str] | None:
    """The command with ``${PORT}`` in place of a fixed port, where an option says that; None where
    none does."""
    written = re.compile(rf"(port[ =]){port}(?![0-9])")
    result = []
    for before, argument in zip(("", *arguments), arguments, strict=False):
        if before.endswith("port") and argument == str(port):
            result.append("${PORT}")
        else:
            result.append(written.sub(r"\1${PORT}", argument))
    return result if result != list(arguments) else None
