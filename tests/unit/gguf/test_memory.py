"""How much memory a command's model takes, on the host and on devices."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manager.gguf import Estimate, GgufError, estimate
from manager.gguf.memory import DEVICE_CONTEXT_MB
from tests.support.gguf_files import Type, write_gguf, write_model

MB = 2**20


STATE_SPACE = {"ssm.inner_size": 5120, "ssm.state_size": 128, "ssm.conv_kernel": 4}
STATE_SPACE |= {"ssm.group_count": 1, "ssm.time_step_rank": 80}


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


def test_of_some_architectures_every_fourth_layer_has_a_cache(tmp_path: Path) -> None:
    extra = {f"qwen3next.{key}": value for key, value in STATE_SPACE.items()}
    write_model(tmp_path / "a.gguf", "qwen3next", layers=8, extra=extra)
    caches = of(tmp_path, "-np", "1", model="a.gguf").loaded[0].caches
    row = 2 * 2 * 32 * 2 * 4096
    assert [each == row for each in caches] == [layer in (3, 7) for layer in range(9)]


@pytest.mark.parametrize("key", ["attention.shared_kv_layers", "nextn_predict_layers"])
def test_the_last_layers_may_have_no_cache_of_their_own(tmp_path: Path, key: str) -> None:
    write_model(tmp_path / "a.gguf", layers=4, extra={f"llama.{key}": 1})
    caches = of(tmp_path, model="a.gguf").loaded[0].caches
    assert [each > 0 for each in caches] == [True, True, True, False, False]


def test_an_encoder_has_no_cache(tmp_path: Path) -> None:
    write_model(tmp_path / "a.gguf", "bert")
    assert cache_mb(tmp_path, "--embedding", model="a.gguf") == 0


def test_all_layers_are_on_the_device(folder: Path) -> None:
    split = of(folder).on([1.0])
    weights = (folder / "llama.gguf").stat().st_size / MB
    assert split.device_mb[0] > weights + 64 + DEVICE_CONTEXT_MB - 3
    assert split.host_mb < 20, "the token embedding, and what goes into the graph"


def test_some_layers_are_on_the_device(folder: Path) -> None:
    """-ngl 3 offloads the output and two layers, with their cache; what is computed for the others
    needs their largest tensor there."""
    model = of(folder).loaded[0]
    split = of(folder, "-ngl", "3").on([1.0])
    layers = sum(model.weights[6:]) + sum(model.caches[6:])
    device = layers + model.compute + model.largest_tensor
    assert split.device_mb[0] - DEVICE_CONTEXT_MB == pytest.approx(device / MB, abs=1)
    host = sum(model.weights[:6]) + sum(model.caches[:6]) + model.host + model.compute
    assert split.host_mb == pytest.approx((host + model.outputs) / MB, abs=1)
    assert len(model.weights) == 9
    assert of(folder, "-ngl", "9").on([1.0]) == of(folder).on([1.0])


def test_the_cache_can_stay_on_the_host(folder: Path) -> None:
    kept, offloaded = of(folder, "-nkvo").on([1.0]), of(folder).on([1.0])
    assert kept.host_mb - offloaded.host_mb >= 64
    assert offloaded.device_mb[0] - kept.device_mb[0] > 64 - 20, "but for one tensor's copy"


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


@pytest.mark.parametrize(
    "pattern",
    [
        r"exps",
        r"\.ffn_.*_exps\.",
        r"([0-9]+).ffn_.*_exps.",
        r"blk\.(?:[0-9]|[1-5][0-9])\.ffn_(gate|up|down)_exps\.weight",
        r"^blk\.\d+\.ffn_(up|down|gate)_.*exps",
    ],
)
def test_patterns_that_people_write_are_read(folder: Path, pattern: str) -> None:
    found = of(folder, "-ot", f"{pattern}=CPU", model="moe.gguf").on([1.0])
    assert found == of(folder, "--cpu-moe", model="moe.gguf").on([1.0])


@pytest.mark.parametrize(
    "pattern",
    [
        "((",
        "(a+)+$",
        "(a|a)" * 20,
        "((a|a)(a|a))",
        "a*a*a*b",
        f"({'|'.join('a' * 30)})({'|'.join('a' * 30)})",
        "a?",
        "a{99999999999999999999}",
        "(" * 3000 + ")" * 3000,
        "a" * 1000,
        r"\q",
    ],
)
def test_a_pattern_that_might_take_long_gives_no_estimate(folder: Path, pattern: str) -> None:
    with pytest.raises(GgufError, match="no estimate"):
        of(folder, "-ot", f"{pattern}=CPU")
    with pytest.raises(GgufError, match="no estimate"):
        of(folder, "-ot", ",".join(["a=CPU"] * 3000))


def test_layers_are_shared_out(folder: Path) -> None:
    model = of(folder).loaded[0]
    even = of(folder).on([0.5, 0.5]).device_mb
    more = 2 * (model.weights[0] + model.caches[0]) - model.weights[-1]
    assert even[0] - even[1] == pytest.approx(more / MB, abs=1), "5 layers; 3 and the output"
    # Four batches are under way at once, each with its inputs.
    device = sum(model.weights[:5]) + sum(model.caches[:5]) + model.compute + 3 * model.inputs
    assert even[0] - DEVICE_CONTEXT_MB == pytest.approx(device / MB, abs=1)
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
    off, on = of(folder, "-fa", "off").loaded[0], of(folder, "-fa", "on").loaded[0]
    # Scores of 16 heads instead of the network's 3 x 8192 numbers; a mask of 4 bytes, not of 2.
    per_token = 4 * (16 * 4096 + 2 * 2048 + 2 * 512 - 3 * 8192) + 2 * 4096
    assert off.compute - on.compute == 512 * per_token


def test_an_embedding_has_a_result_for_each_token(tmp_path: Path) -> None:
    write_model(tmp_path / "a.gguf", tokens=5000)
    more = of(tmp_path, "--embedding", model="a.gguf").loaded[0].compute
    more -= of(tmp_path, model="a.gguf").loaded[0].compute
    assert more == 512 * 4 * (5000 - 3 * 128)


def test_a_recurrent_layer_computes_with_its_states(tmp_path: Path) -> None:
    extra = {f"mamba2.{key}": value for key, value in STATE_SPACE.items()}
    extra |= {"mamba2.attention.head_count": 0, "mamba2.attention.head_count_kv": 0}
    write_model(tmp_path / "a.gguf", "mamba2", width=2560, feed_forward=0, extra=extra)
    # What llama.cpp (xllamacpp 2026.10.11549) reports for a model of this form.
    for slots, reported in (("1", 79.23), ("4", 86.91)):
        found = of(tmp_path, "-np", slots, model="a.gguf").loaded[0].compute / MB
        assert found == pytest.approx(reported, abs=1)


def test_a_network_without_a_gate_computes_less(tmp_path: Path) -> None:
    form = {"width": 768, "heads": 12, "kv_heads": 12, "head": 64, "feed_forward": 3072}
    path = write_model(tmp_path / "a.gguf", "bert", **form)
    gated = of(tmp_path, model="a.gguf").loaded[0].compute
    # The gate's tensor by a name that llama.cpp does not know, so that there is none.
    path.write_bytes(path.read_bytes().replace(b"ffn_gate", b"ffn_xxxx"))
    assert gated - of(tmp_path, model="a.gguf").loaded[0].compute == 2 * 3072 * 512 * 4


def test_a_draft_model_and_a_projector_come_on_top(folder: Path) -> None:
    alone = of(folder).on([1.0])
    with_draft = of(folder, "-md", "tied.gguf").on([1.0])
    assert with_draft.device_mb[0] > 2 * alone.device_mb[0] - DEVICE_CONTEXT_MB - 2
    projector = of(folder, "--mmproj", "mmproj.gguf").on([1.0])
    # 121.25 is what llama.cpp (xllamacpp 2026.10.11549) reports for a projector of this form.
    weights = 1152 * 1152 * 100 * 2 / MB
    more = projector.device_mb[0] - alone.device_mb[0]
    assert more == pytest.approx(weights + 121.25, abs=1)
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
        "docker run -v /:/models -v {}:/models/inner:ro -v /x:/models/in llama.cpp"
        " -m /models/inner/llama.gguf",
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


def test_a_mount_that_docker_refuses_is_passed_over(folder: Path) -> None:
    command = ["docker", "run", "--mount", "type=bind\rx", "-v", f"{folder}:/m", "llama.cpp"]
    assert estimate([*command, "-m", "/m/llama.gguf"], Path("/")) is not None


def test_a_slot_can_have_a_context_of_its_own(folder: Path) -> None:
    each = ("-np", "3", "--kv-unified-per-slot", "2000")
    assert of(folder, "-c", "0", *each).context == 6144, "padded to 256"
    assert of(folder, "-c", "1024", *each).context == 1024


def test_the_network_of_the_first_layers_can_stay_on_the_host(folder: Path) -> None:
    less = of(folder).loaded[0].weights[0] - of(folder, "-ncffn", "1").loaded[0].weights[0]
    assert less == 3 * 2048 * 8192 * 34 / 32
    assert of(folder, "-ncffn", "1").loaded[0].weights[1] == of(folder).loaded[0].weights[1]


def test_options_are_written_in_several_ways(folder: Path) -> None:
    now = {"LLAMA_ARG_SPEC_DRAFT_MODEL": "tied.gguf"}
    before = {"LLAMA_ARG_MODEL_DRAFT": "tied.gguf"}
    assert len(of(folder, **now).loaded) == len(of(folder, **before).loaded) == 2
    assert of(folder, "--ctx_size", "8192").context == 8192
    assert of(folder, "-fa", "-c", "8192").context == 8192, "a flag in earlier versions"


def test_a_bad_file_is_an_error_that_names_it(folder: Path) -> None:
    with pytest.raises(GgufError, match=r"none\.gguf: cannot be read"):
        of(folder, model="none.gguf")


def test_a_name_that_no_file_can_have_is_an_error(folder: Path) -> None:
    for name in ("a" * 300, "a" * 300 + "-00001-of-00002.gguf", "\0", "\0-00001-of-00002.gguf"):
        with pytest.raises(GgufError, match="cannot be read"):
            of(folder, model=name)


def test_a_piece_in_a_locked_folder_is_not_called_missing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(path: object, **_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "stat", refuses)
    with pytest.raises(GgufError, match="Permission denied"):
        of(folder, model="locked-00001-of-00002.gguf")


def test_a_tensor_without_dimensions_is_one_number(tmp_path: Path) -> None:
    path = write_model(tmp_path / "a.gguf", feed_forward=0)
    content = path.read_bytes().replace(b"ffn_gate", b"ffn_xxxx")
    at = content.index(b"blk.0.ffn_up.weight") + len(b"blk.0.ffn_up.weight")
    path.write_bytes(content[:at] + bytes(4) + content[at + 4 + 16 :] + bytes(64))
    assert of(tmp_path, model="a.gguf").on([1.0]).device_mb[0] > DEVICE_CONTEXT_MB


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
