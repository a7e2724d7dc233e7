"""Which context of a model fits on which card."""

from __future__ import annotations

from pathlib import Path

import pytest

from manager.engines import Target, what_fits
from manager.gguf import ModelFile, read_model
from tests.support.gguf_files import write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFile:
    """8 layers of 128 KB of cache a token each: a context of 4096 takes 256 MB."""
    path = tmp_path_factory.mktemp("models") / "a.gguf"
    form = {"layers": 8, "width": 2048, "heads": 16, "kv_heads": 16, "head": 128}
    extra = {"llama.context_length": 40_000}
    return read_model(write_model(path, **form, feed_forward=4096, extra=extra))


def test_the_largest_context_is_named_for_each_device(model: ModelFile) -> None:
    small, middle, large, host = what_fits(
        model,
        "Chat",
        [
            Target("small", 500),
            Target("middle", 2000),
            Target("large", 24_000),
            Target("RAM", 64_000, is_host=True),
        ],
    )
    assert small.largest is None
    assert middle.largest is not None
    assert 4096 < middle.largest.context < 40_000
    assert large.largest is not None
    assert large.largest.context == 40_000, "what it was trained for"
    assert [each.context for each in host.needs] == [4096, 8192, 16_384, 32_768, 40_000]


def test_a_name_like_a_variable_is_that_of_the_file(tmp_path: Path) -> None:
    model = read_model(write_model(tmp_path / "${HOME}.gguf"))
    (fit,) = what_fits(model, "Chat", [Target("card", 24_000)])
    assert fit.largest is not None


def test_a_larger_context_takes_more(model: ModelFile) -> None:
    (fit,) = what_fits(model, "Chat", [Target("card", 24_000)])
    first, second = fit.needs[:2]
    assert second.device_mb - first.device_mb == pytest.approx(256, abs=10)
    assert first.host_mb < 50
