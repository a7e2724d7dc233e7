"""How much memory a command's model takes, on the host and on devices."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manager.gguf import Estimate, GgufError, estimate
from manager.gguf.memory import DEVICE_CONTEXT_MB
from tests.support.gguf_files import Type, write_gguf, write_model

MB = 2**20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of 8 layers with weights of about 420 MB, as files of a few KB."""
    path = tmp_path_factory.mktemp("models")
    form = {"layers": 8, "width": 2048, "heads": 16, "kv_heads": 4, "head": 128}
    form |= {"feed_forward": 8192, "tokens": 1000, "kind": Type.Q8_0}
    write_model(path / "llama.gguf", **form)
    write_model(path / "tied.gguf", **form, tied=True)
    write_model(path / "q4.gguf", **form | {"kind": Type.Q4_0})
    write_model(path / "moe.gguf", **form, architecture="qwen3moe", experts=8)
    write_model(
        path / "gemma.gguf",
        **form,
        architecture="gemma3",
        extra={"gemma3.attention.sliding_window": 512},
    )
    write_gguf(
        path / "mmproj.gguf",
        "clip",
        {"clip.vision.image_size": 896, "clip.vision.patch_size": 14}
        | {"clip.vision.feed_forward_length": 4304, "clip.vision.embedding_length": 1152},
        [("v.blk.0.attn_q.weight", (1152, 1152 * 100), Type.F16)],
    )
    return path


def of(folder: Path, *arguments: str, model: str = "llama.gguf", **env: str) -> Estimate:
    found = estimate(["llama-server", "-m", model, "-c", "4096", *arguments], folder, env)
    assert found is not None
    return found


def cache_mb(folder: Path, *arguments: str, model: str = "llama.gguf") -> float:
    return sum(of(folder, *arguments, model=model).loaded[0].caches) / MB


def test_the_cache_grows_with_context_and_type(folder: Path) -> None:
    # 8 layers x 4 heads x (128 keys + 128 values) x 4096 cells x 2 bytes
    assert cache_mb(folder) == 64
    assert cache_mb(folder, "-c", "8192") == 128
    assert cache_mb(folder, "-ctk", "q8_0", "-ctv", "q4_0") == 32 * 34 / 64 + 32 * 18 / 64
    assert cache_mb(folder, "-c", "4000") == 64, "the context is padded to 256"


def test_without_a_context_it_is_what_the_model_was_trained_for(folder: Path) -> None:
    found = estimate(["llama-server", "-m", "llama.gguf"], folder)
    assert found is not None
    assert found.context == 4096


def test_slots_share_the_context(folder: Path) -> None:
    assert cache_mb(folder, "-np", "4") == 64
    assert cache_mb(folder, "-np", "3") == 72, "a slot's part is padded: 3 x 1536 cells"
    assert cache_mb(folder, "-np", "3", "-kvu") == 64


def test_layers_with_a_window_keep_only_that(folder: Path) -> None:
    gemma = {"model": "gemma.gguf"}
    # One of six layers sees everything; 7 of 8 keep 512 + a batch of 512 tokens.
    assert cache_mb(folder, "-np", "1", **gemma) == 8 + 7 * 2
    assert cache_mb(folder, "-np", "1", "-c", "32768", **gemma) == 64 + 7 * 2
    assert cache_mb(folder, **gemma) == 8 + 7 * 5, "four slots have four windows"
    assert cache_mb(folder, "--swa-full", **gemma) == 64


def test_latent_attention_keeps_no_values(tmp_path: Path) -> None:
    extra = {"deepseek2.attention.key_length_mla": 192, "deepseek2.attention.key_length": 576}
    write_model(tmp_path / "a.gguf", "deepseek2", layers=4, kv_heads=1, extra=extra)
    assert cache_mb(tmp_path, model="a.gguf") == 4 * 576 * 2 * 4096 / MB


def test_recurrent_layers_keep_a_state_for_each_slot(tmp_path: Path) -> None:
    extra = {
        "nemotron_h.attention.head_count_kv": [0, 2, 0, 0],
        "nemotron_h.ssm.inner_size": 1024,
        "nemotron_h.ssm.state_size": 128,
        "nemotron_h.ssm.conv_kernel": 4,
        "nemotron_h.ssm.group_count": 8,
    }
    write_model(tmp_path / "a.gguf", "nemotron_h", layers=4, extra=extra)
    state = 4 * (3 * (1024 + 2 * 8 * 128) + 128 * 1024)
    attention = 2 * 2 * 32 * 2 * 4096
    found = of(tmp_path, "-np", "2", model="a.gguf")
    assert found.loaded[0].caches == (2 * state, attention, 2 * state, 2 * state, 0)


def test_an_encoder_has_no_cache(tmp_path: Path) -> None:
    write_model(tmp_path / "a.gguf", "bert")
    assert cache_mb(tmp_path, "--embedding", model="a.gguf") == 0


def test_all_layers_are_on_the_device(folder: Path) -> None:
    split = of(folder).on([1.0])
    weights = (folder / "llama.gguf").stat().st_size / MB
    assert split.device_mb[0] > weights + 64 + DEVICE_CONTEXT_MB - 3
    assert split.host_mb < 20, "the token embedding, and what goes into the graph"


def test_some_layers_are_on_the_device(folder: Path) -> None:
    """-ngl 3 offloads the output and two layers, with their cache."""
    model = of(folder).loaded[0]
    layer, cache = model.weights[0] / MB, model.caches[0] / MB
    two, three = of(folder, "-ngl", "2").on([1.0]), of(folder, "-ngl", "3").on([1.0])
    assert three.device_mb[0] - two.device_mb[0] == pytest.approx(layer + cache, abs=1)
    assert two.host_mb - three.host_mb == pytest.approx(layer + cache, abs=1)


def test_the_cache_can_stay_on_the_host(folder: Path) -> None:
    assert of(folder, "-nkvo").on([1.0]).host_mb - of(folder).on([1.0]).host_mb >= 64


def test_a_tied_output_is_on_the_device_too(folder: Path) -> None:
    own, tied = of(folder), of(folder, model="tied.gguf")
    assert own.on([1.0]).device_mb == tied.on([1.0]).device_mb
    assert own.on(()).host_mb - tied.on(()).host_mb == 2, "on the host it is there once"


def test_experts_can_stay_on_the_host(folder: Path) -> None:
    def device(*arguments: str) -> int:
        return of(folder, *arguments, model="moe.gguf").on([1.0]).device_mb[0]

    assert device("--cpu-moe") == device("--n-cpu-moe", "8") == device("-ot", r"exps=CPU")
    assert device() - device("--n-cpu-moe", "4") > 4 * 300
    assert device("-ot", "exps=CUDA0") == device()
    assert device("-ot", "((=CPU") == device(), "llama.cpp refuses it"


def test_layers_are_shared_out(folder: Path) -> None:
    model = of(folder).loaded[0]
    even = of(folder).on([0.5, 0.5]).device_mb
    more = 2 * (model.weights[0] + model.caches[0]) - model.weights[-1]
    assert even[0] - even[1] == pytest.approx(more / MB, abs=1), "5 layers; 3 and the output"
    assert of(folder).on([0.0, 1.0]).device_mb[0] == 0
    assert of(folder, "-ts", "1,0").on([0.5, 0.5]).device_mb[1] == 0
    assert of(folder, "-sm", "none", "-mg", "1").on([0.5, 0.5]).device_mb[0] == 0
    assert of(folder, "-dev", "none").on([1.0]).device_mb == (0,)


def test_types_that_are_repacked_are_there_twice(folder: Path) -> None:
    size = (folder / "q4.gguf").stat().st_size / MB
    repacked = of(folder, model="q4.gguf").on(())
    plain = of(folder, "--no-repack", model="q4.gguf").on(())
    assert repacked.host_mb - plain.host_mb == pytest.approx(size, abs=3)
    assert of(folder).on(()) == of(folder, "--no-repack").on(())


def test_scores_are_kept_without_flash_attention(folder: Path) -> None:
    more = of(folder, "-fa", "off").on(()).host_mb - of(folder, "-fa", "on").on(()).host_mb
    assert more > 16 * 4096 * 512 * 4 / MB - 60


def test_a_draft_model_and_a_projector_come_on_top(folder: Path) -> None:
    alone = of(folder).on([1.0])
    with_draft = of(folder, "-md", "tied.gguf").on([1.0])
    assert with_draft.device_mb[0] > 2 * alone.device_mb[0] - DEVICE_CONTEXT_MB - 2
    projector = of(folder, "--mmproj", "mmproj.gguf").on([1.0])
    assert projector.device_mb[0] - alone.device_mb[0] > 253
    on_host = of(folder, "--mmproj", "mmproj.gguf", "--no-mmproj-offload").on([1.0])
    assert on_host.device_mb == alone.device_mb
    with pytest.raises(GgufError, match="no mmproj file"):
        of(folder, "--mmproj", "llama.gguf")


def test_the_environment_is_read_and_the_command_goes_before_it(folder: Path) -> None:
    env = {"LLAMA_ARG_CTX_SIZE": "8192", "LLAMA_ARG_MODEL": "llama.gguf"}
    found = estimate(["llama-server"], folder, env)
    assert found is not None
    assert found.context == 8192
    assert of(folder, **env).context == 4096


@pytest.mark.parametrize(
    "command",
    [
        "docker run --rm -v {}:/models:ro ghcr.io/ggml-org/llama.cpp:server -m /models/llama.gguf",
        "podman run -it -m 8g --name llama-server -p127.0.0.1:1:2"
        " --mount type=bind,source={},target=/m,readonly llama.cpp:cuda --model /m/llama.gguf",
        "docker --context x run -e LLAMA_ARG_MODEL=/models/llama.gguf --volume={}:/models"
        " my/llama-server",
        "/opt/llama.cpp/llama-server.exe --model {}/llama.gguf",
        "env A=b nice ./llama-server -m {}/llama.gguf",
    ],
)
def test_commands_that_name_a_model(folder: Path, command: str) -> None:
    found = estimate(command.replace("{}", str(folder)).split(), Path("/"))
    assert found is not None
    assert found.model == folder / "llama.gguf"


@pytest.mark.parametrize(
    "command",
    [
        "",
        "vllm serve a/b",
        "llama-server",
        "llama-server -hf a/b",
        "python serve.py -m llama.gguf",
        "docker run --name llama.cpp vllm/vllm-openai -m /a.gguf",
        "docker start llama.cpp",
        "docker run -v",
    ],
)
def test_commands_that_name_none(folder: Path, command: str) -> None:
    assert estimate(command.split(), folder) is None


def test_a_bad_file_is_an_error_that_names_it(folder: Path) -> None:
    with pytest.raises(GgufError, match=r"none\.gguf: cannot be read"):
        of(folder, model="none.gguf")


WORDS = st.sampled_from(
    ["-c", "-np", "-ngl", "-ts", "-ub", "-b", "-fa", "-ctk", "-ot", "-sm", "-mg", "-kvu", "-dev"]
) | st.sampled_from(
    ["0", "1", "7", "-1", "99999999999999999999", "nan", "1,inf", "x", "none", "a=CPU", "on"]
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(WORDS, max_size=8), shares=st.lists(st.floats(0, 1), max_size=3))
def test_any_options_give_a_figure(folder: Path, words: list[str], shares: list[float]) -> None:
    found = estimate(["llama-server", "-m", "gemma.gguf", *words], folder)
    assert found is not None
    split = found.on(shares)
    assert len(split.device_mb) == len(shares)
    assert min(*split.device_mb, split.host_mb, 0) >= 0
