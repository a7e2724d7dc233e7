"""How many connections are taken with so many descriptors."""

from __future__ import annotations

import pytest

from routes.http.server import _connection_limit


@pytest.mark.parametrize(
    ("threads", "files", "most"),
    [
        (64, None, 6256),  # no limit, and Windows
        (64, 65536, 6256),
        (64, 1024, 860),
        (64, 256, 92),
        (200, 256, 78),  # half of what is left: the other is for what they ask the models
        (64, 64, 16),
    ],
)
def test_the_system_leaves_enough_files_for_the_connections_that_are_taken(
    threads: int, files: int | None, most: int
) -> None:
    assert _connection_limit(threads, files) == most


def test_a_limit_that_is_in_the_way_is_named(caplog: pytest.LogCaptureFixture) -> None:
    _connection_limit(64, 65536)
    assert not caplog.records
    _connection_limit(64, 256)
    assert "at most 92 connections" in caplog.text
