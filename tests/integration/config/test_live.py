"""The config's file, written and applied by one at a time."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from manager.config import Config, LiveConfig, edit, loader

TEXT = "Local-Models:\n  Qwen: {s: {command: [x]}}\n"


def test_models_that_join_at_the_same_time_are_all_in_the_file_and_in_use(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(TEXT)
    in_use: list[Config] = []

    def apply(config: Config) -> dict[str, object]:
        in_use.append(config)
        return {}

    def load() -> Config:
        return loader.load(path, modes)

    def modes(_folder: Path | None) -> list[str]:
        return ["Chat"]

    live = LiveConfig(path, load, apply, modes, tmp_path)
    names = [f"m{number}" for number in range(8)]
    entry = {"s": {"command": ["x"]}}
    start = threading.Barrier(len(names))

    def add(name: str) -> None:
        start.wait(10)
        live.save(lambda text: edit.add_models(text, {name: entry}))

    threads = [threading.Thread(target=add, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert {"Qwen", *names} == set(load().models) == set(in_use[-1].models)
    assert [len(config.models) for config in in_use] == list(range(2, 10))


def test_a_change_that_is_refused_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(TEXT)
    live = LiveConfig(
        path,
        lambda: pytest.fail("nothing is to be read"),
        lambda _: {},
        lambda _: ["Chat"],
        tmp_path,
    )
    with pytest.raises(edit.EditError):
        live.save(lambda text: edit.remove_model(text, "Other"))
    with pytest.raises(loader.ConfigError, match="has no scheme"):
        live.save(lambda text: edit.add_models(text, {"Neu": {}}))
    assert path.read_text() == TEXT
    assert [one.name for one in tmp_path.iterdir()] == ["config.yaml"]
