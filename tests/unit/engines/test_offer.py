"""What "add a model" offers first."""

from __future__ import annotations

from pathlib import Path

import pytest

from manager.engines import BY_ID, Target, engines_for, offer
from manager.gguf import GgufError, Kind, ModelFile, read_model
from tests.support.gguf_files import write_model

CARD = Target("card", 24_000)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFile:
    """128 KB of cache a token and layer: a context of 4096 takes 256 MB."""
    path = tmp_path_factory.mktemp("models") / "a.gguf"
    form = {"layers": 8, "width": 2048, "heads": 16, "kv_heads": 16, "head": 128}
    extra = {"llama.context_length": 131_072}
    return read_model(write_model(path, **form, feed_forward=4096, extra=extra))


def test_engines_are_those_that_take_the_model_here_and_can_be_run_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: name if name == "docker" else None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    found = [engine.id for engine in engines_for(Kind.CHAT, {"nvidia"})]
    assert found[:2] == ["docker-llama-cuda", "docker-llama-cpu"]
    assert {"llama-server", "demo"} <= set(found)
    assert not {"docker-llama-rocm", "vllm", "own"} & set(found)
    assert [engine.id for engine in engines_for(None, {"amd"})] == ["docker-vllm-rocm", "vllm"]
    assert engines_for(Kind.ADAPTER, {"nvidia"}) == []


@pytest.mark.parametrize(
    ("targets", "devices", "context"),
    [
        ([CARD], ["card"], 32_768),
        ([Target("card", 2_000)], ["card"], 16_384),
        ([Target("card", 10)], ["card"], 4096),
        ([CARD, Target("RAM", 2_000, is_host=True)], [], 16_384),
        ([CARD], ["another"], None),
        ([], [], None),
    ],
)
def test_the_context_is_the_largest_that_fits_up_to_a_usual_one(
    model: ModelFile, targets: list[Target], devices: list[str], context: int | None
) -> None:
    found = offer(model, BY_ID["llama-server"], targets, devices=devices)
    assert found.context == context
    command = next(iter(list(found.proposal.entry.values())[1:]))["command"]
    assert ("-c" in command) == (context is not None)


def test_a_context_that_was_asked_for_is_taken(model: ModelFile) -> None:
    found = offer(model, BY_ID["llama-server"], [CARD], devices=["card"], context=100)
    assert found.context == 100
    assert [fit.target.name for fit in found.fits] == ["card"]


def test_nothing_is_known_of_what_fits_for_a_model_that_is_no_file() -> None:
    found = offer("org/model", BY_ID["vllm"], [CARD], devices=["card"])
    assert (found.fits, found.context, found.proposal.name) == ((), None, "model")


def test_a_file_that_cannot_be_read_any_more_is_an_error(tmp_path: Path) -> None:
    path = write_model(tmp_path / "a.gguf")
    model = read_model(path)
    path.unlink()
    with pytest.raises(GgufError, match=r"a\.gguf"):
        offer(model, BY_ID["llama-server"], [CARD])
