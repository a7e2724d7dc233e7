"""By what a running server is known to be the one that the config asks for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from manager.config.settings import Model, Scheme
from manager.models.launch import launch_fingerprint

SCHEME = Scheme(
    name="GPU",
    required_devices=("v100",),
    script_path=None,
    command=("serve", "--port", "10001", "$HOME"),
    memory_mb={"v100": 1},
    env={"A": "b"},
    cwd=Path("/srv"),
)
MODEL = Model("m", port=10001)


def test_a_server_that_the_version_before_has_started_is_adopted() -> None:
    assert launch_fingerprint(MODEL, SCHEME) == "15ec8143d613b06c"


def test_another_value_in_the_environment_is_another_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scheme = replace(SCHEME, command=("serve", "--port=${PORT}", "${TEAM}"))
    monkeypatch.setenv("TEAM", "nlp")
    monkeypatch.setenv("PORT", "8080")
    before = launch_fingerprint(MODEL, scheme)
    monkeypatch.setenv("PORT", "9090")  # the program's own, which no command gets
    assert launch_fingerprint(MODEL, scheme) == before
    monkeypatch.setenv("TEAM", "vision")
    assert launch_fingerprint(MODEL, scheme) != before


def test_how_it_is_stopped_does_not_make_another_server_of_it() -> None:
    before = launch_fingerprint(MODEL, SCHEME)
    assert (
        launch_fingerprint(MODEL, replace(SCHEME, stop_command=("docker", "stop", "m"))) == before
    )
    assert launch_fingerprint(MODEL, replace(SCHEME, detached=True)) != before
