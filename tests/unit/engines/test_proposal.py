"""What is proposed for a model can be run, and read by the estimate."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from manager.engines import BY_ID, ENGINES, ProposalError, llama_server_command, propose
from manager.gguf import ModelFile, estimate, read_model
from tests.support.gguf_files import write_gguf, write_model

CARD = ("rtx 4090",)


@pytest.fixture
def model(tmp_path: Path) -> ModelFile:
    return read_model(write_model(tmp_path / "Tiny-7B-Instruct-Q4_K_M.gguf"))


def command_of(entry: dict[str, Any]) -> list[str]:
    (scheme,) = (each for each in entry.values() if isinstance(each, dict))
    return scheme["command"]


def devices_for(engine: str) -> tuple[str, ...]:
    return () if "cpu" in BY_ID[engine].device_kinds else CARD


GGUF_ENGINES = [each.id for each in ENGINES if each.kinds and each.command]
VLLM_ENGINES = [each.id for each in ENGINES if not each.kinds]


def test_llama_server_on_a_card(model: ModelFile) -> None:
    proposal = propose(model, BY_ID["llama-server"], devices=CARD, context=8192)
    assert proposal.name == "Tiny-7B-Instruct"
    assert proposal.entry == {
        "mode": "Chat",
        "GPU": {
            "required_devices": ["rtx 4090"],
            "command": [
                *("llama-server", "-m", str(model.path), "-c", "8192", "-ngl", "999"),
                *("--threads-http", "64", "--host", "127.0.0.1", "--port", "${PORT}"),
            ],
        },
    }


def test_a_long_name_of_a_file_is_cut(tmp_path: Path) -> None:
    model = read_model(write_model(tmp_path / f"{'n' * 240}.gguf"))
    engine = BY_ID["llama-server"]
    assert propose(model, engine).name == "n" * 100
    assert propose(model, engine, taken=["n" * 100]).name == "n" * 100 + "-2"


@pytest.mark.parametrize("engine", GGUF_ENGINES)
def test_the_estimate_reads_what_is_proposed(model: ModelFile, engine: str) -> None:
    proposal = propose(model, BY_ID[engine], devices=devices_for(engine), context=2048)
    found = estimate(command_of(proposal.entry), Path("/"))
    assert found is not None
    assert (found.model, found.context) == (model.path, 2048)


@pytest.mark.parametrize("engine", GGUF_ENGINES)
def test_a_projector_is_given_too(model: ModelFile, engine: str) -> None:
    projector = write_gguf(model.path.with_name("mmproj.gguf"), "clip", {})
    proposal = propose(model, BY_ID[engine], devices=devices_for(engine), projector=projector)
    command = command_of(proposal.entry)
    assert command[command.index("--mmproj") + 1].endswith("mmproj.gguf")
    assert estimate(command, Path("/"))


@pytest.mark.parametrize("engine", [each.id for each in ENGINES if "docker" in each.id])
def test_a_container_is_reached_over_loopback_and_reads_only_its_model(
    model: ModelFile, engine: str
) -> None:
    if engine in VLLM_ENGINES:
        proposal = propose(str(model.path.parent), BY_ID[engine], devices=CARD)
        source = model.path.parent
    else:
        proposal = propose(model, BY_ID[engine], devices=devices_for(engine))
        source = model.path
    command = command_of(proposal.entry)
    assert command[:4] == ["docker", "run", "--rm", "--init"]
    published = [command[at + 1] for at, each in enumerate(command) if each == "--publish"]
    assert [each.rpartition(":")[0] for each in published] == ["127.0.0.1:${PORT}"]
    mounts = [command[at + 1] for at, each in enumerate(command) if each == "--mount"]
    assert mounts == [f"type=bind,source={source},target=/models/{source.name},readonly"]
    assert not {"--privileged", "-v", "--volume", "--network", "--ipc"}.intersection(command)
    name = command[command.index("--name") + 1]
    (scheme,) = (each for each in proposal.entry.values() if isinstance(each, dict))
    assert scheme["stop_command"] == ["docker", "stop", "-t", "8", name]


def test_a_container_reads_the_file_that_a_link_leads_to(tmp_path: Path) -> None:
    blob = write_model(tmp_path / "blob,1")
    link = tmp_path / "a.gguf"
    link.symlink_to(blob)
    command = command_of(propose(read_model(link), BY_ID["docker-llama-cpu"]).entry)
    assert f'type=bind,"source={blob}",target=/models/a.gguf,readonly' in command
    found = estimate(command, Path("/"))
    assert found is not None
    assert found.model == blob


def test_containers_of_two_models_have_two_names(model: ModelFile) -> None:
    found = set()
    for name in ("a b", "a-b", "a/b", "模型"):
        command = command_of(propose(model, BY_ID["docker-llama-cpu"], name=name).entry)
        found.add(command[command.index("--name") + 1])
    assert len(found) == 4
    assert all(each.isascii() and " " not in each and "/" not in each for each in found)


@pytest.mark.parametrize("engine", VLLM_ENGINES)
def test_vllm_takes_its_planned_share_of_the_card(engine: str) -> None:
    proposal = propose("Qwen/Qwen3-8B", BY_ID[engine], devices=CARD * 2, context=8192)
    command = command_of(proposal.entry)
    assert (proposal.name, proposal.entry["served_model_name"]) == ("Qwen3-8B", "Qwen/Qwen3-8B")
    assert "Qwen/Qwen3-8B" in command
    pairs = dict(pairwise(command))
    assert pairs["--gpu-memory-utilization"] == "${MEMORY_FRACTION}"
    assert (pairs["--max-model-len"], pairs["--tensor-parallel-size"]) == ("8192", "2")


@pytest.mark.parametrize(
    ("mode", "flag"),
    [("Embedding", "--embedding"), ("Reranker", "--reranking"), ("Chat", None), ("Base", None)],
)
def test_a_mode_has_its_flag(mode: str, flag: str | None) -> None:
    command = llama_server_command("/a.gguf", mode=mode)
    assert [each for each in command if each in ("--embedding", "--reranking")] == (
        [flag] if flag else []
    )


def test_a_mode_is_that_of_the_models_kind(tmp_path: Path) -> None:
    embedding = read_model(write_model(tmp_path / "a.gguf", "bert"))
    assert propose(embedding, BY_ID["llama-server"]).mode == "Embedding"
    assert propose(embedding, BY_ID["llama-server"], mode="Reranker").mode == "Reranker"


def test_an_embedding_model_that_does_not_say_how_it_pools_is_helped(tmp_path: Path) -> None:
    says = read_model(write_model(tmp_path / "a.gguf", extra={"llama.pooling_type": 3}))
    says_not = read_model(write_model(tmp_path / "my-embedding.gguf"))
    engine = BY_ID["llama-server"]
    assert "--pooling" not in command_of(propose(says, engine).entry)
    command = command_of(propose(says_not, engine).entry)
    assert command[command.index("--pooling") + 1] == "last"


def test_names_are_unique(model: ModelFile) -> None:
    engine = BY_ID["llama-server"]
    assert propose(model, engine, taken=["tiny-7b-instruct"]).name == "Tiny-7B-Instruct-2"
    taken = ["Tiny-7B-Instruct", "Tiny-7B-Instruct-2"]
    assert propose(model, engine, taken=taken).name == "Tiny-7B-Instruct-3"


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct"),
        ("gpt-oss-20b-mxfp4.gguf", "gpt-oss-20b"),
        ("Qwen3-30B-A3B-UD-Q4_K_XL.gguf", "Qwen3-30B-A3B"),
        ("bge-m3-F16.gguf", "bge-m3"),
        ("Q8_0.gguf", "Q8_0"),
    ],
)
def test_a_name_is_the_files_without_its_quantisation(tmp_path: Path, file: str, name: str) -> None:
    model = read_model(write_model(tmp_path / file))
    assert propose(model, BY_ID["llama-server"]).name == name


def test_no_text_of_a_path_is_a_variable(tmp_path: Path) -> None:
    (tmp_path / "${HOME}").mkdir()
    model = read_model(write_model(tmp_path / "${HOME}" / "a.gguf"))
    for engine in ("llama-server", "docker-llama-cpu"):
        command = command_of(propose(model, BY_ID[engine]).entry)
        assert any("$${HOME}" in each for each in command)
        assert not any("/${HOME}" in each for each in command)
    assert llama_server_command("~a/b.gguf")[2] == "./~a/b.gguf"


def test_what_cannot_be_run_is_refused(model: ModelFile) -> None:
    adapter = read_model(
        write_gguf(model.path.with_name("lora.gguf"), "llama", {"adapter.type": "lora"})
    )
    with pytest.raises(ProposalError, match="serves no adapter"):
        propose(adapter, BY_ID["llama-server"])
    with pytest.raises(ProposalError, match="serves no chat"):
        propose(model, BY_ID["vllm"], devices=CARD)
    with pytest.raises(ProposalError, match="takes a GGUF file"):
        propose("Qwen/Qwen3-8B", BY_ID["llama-server"])
    with pytest.raises(ProposalError, match="needs a device"):
        propose(model, BY_ID["docker-llama-cuda"])


def test_ones_own_command_is_left_to_fill_in(model: ModelFile) -> None:
    assert command_of(propose(model, BY_ID["own"]).entry) == []


def test_an_engine_says_why_it_is_unavailable() -> None:
    assert BY_ID["llama-server"].unavailable(lambda _: "/bin/llama-server") is None
    reason = BY_ID["docker-llama-cpu"].unavailable(lambda _: None)
    assert reason == "there is no docker on the PATH of this program"
    assert BY_ID["own"].unavailable(lambda _: None) is None


def test_an_engine_says_that_no_device_of_this_machine_is_for_it() -> None:
    assert BY_ID["llama-server"].lacks_device({"cpu"}) is None
    assert BY_ID["vllm"].lacks_device({"cpu", "amd"}) is None
    reason = BY_ID["vllm"].lacks_device({"cpu"})
    assert reason == "this machine has no device of the kind amd or nvidia"
