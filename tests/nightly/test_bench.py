"""What the benchmark promises: right figures from right counts, and a table that hides nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import load, servers, storage
from bench.report import Figures, Report, medians, ratio, render, table
from bench.servers import BenchError

CHUNK = b'data: {"choices":[{"delta":{"content":" a"}}],"t":1}\n\n'
DONE = b"data: [DONE]\n\n"
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunked(body: bytes, size: int) -> bytes:
    """A stream's bytes as a proxy may cut them: HTTP chunks of `size` bytes, across events."""
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    return STREAM_HEAD + b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n"


def streaming_client() -> load.Client:
    return load.Client(("127.0.0.1", 1), b"", stream=True)


def report(**runs: dict[str, Figures]) -> Report:
    return Report("2 cores", ["straight", "nginx", "LLM-Manager"], repeat=3, runs=runs)


@pytest.fixture(scope="module")
def upstream_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with servers.upstream(tmp_path_factory.mktemp("bench") / "upstream.log") as port:
        yield port


def run_load(port: int, *arguments: str) -> dict[str, object]:
    command = [sys.executable, str(servers.HERE / "load.py"), "--url", f"http://127.0.0.1:{port}"]
    command += ["--model", servers.MODEL, "--timeout", "30", *arguments]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    figures: dict[str, object] = json.loads(done.stdout)
    return figures


def test_percentile_is_a_value_that_was_measured() -> None:
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert load.percentile(values, 0.5) == 3.0
    assert load.percentile(values, 0.99) == 4.0
    assert load.percentile(values, 1.0) == 5.0
    assert load.percentile([7.0], 0.99) == 7.0
    assert load.percentile([], 0.5) == 0.0


def test_medians_are_taken_figure_by_figure() -> None:
    repeats = [{"a": 1.0, "b": 30.0}, {"a": 3.0, "b": 10.0}, {"a": 2.0, "b": 20.0}]
    assert medians(repeats) == {"a": 2.0, "b": 20.0}


@pytest.mark.parametrize(
    ("value", "straight", "shown"),
    [(310.0, 1000.0, "0.31"), (15.0, 1000.0, "0.015"), (12.34, 1.0, "12"), (0.0, 0.0, "")],
)
def test_ratio_has_two_places_that_count(value: float, straight: float, shown: str) -> None:
    assert ratio(value, straight) == shown


def test_table_puts_every_server_beside_straight() -> None:
    one = report(
        answers={
            "straight": {"answers_per_s": 30000.0},
            "nginx": {"answers_per_s": 21000.0},
            "LLM-Manager": {"answers_per_s": 1200.0},
        }
    )
    one.program["memory_mb"] = 81.4
    assert table(one).splitlines() == [
        "|  | straight | nginx | ratio | LLM-Manager | ratio |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| answers a second | 30,000 | 21,000 | 0.7 | 1,200 | 0.04 |",
        "| memory after these runs, MB |  |  |  | 81 |  |",
    ]


def test_report_names_what_failed_and_what_was_left_out() -> None:
    one = report()
    one.notes.append("nginx is not installed and was left out.")
    one.failures.append("held, LLM-Manager: 3 times timed out")
    text = render(one)
    assert "nginx is not installed and was left out." in text
    assert "held, LLM-Manager: 3 times timed out" in text


@pytest.mark.parametrize("read_size", [1, 7, 4096])
@pytest.mark.parametrize("chunk_size", [1, 10, 53, 4096])
def test_every_event_is_counted_however_it_is_cut(chunk_size: int, read_size: int) -> None:
    data = chunked(CHUNK * 5 + DONE, chunk_size)
    client = streaming_client()
    complete = [
        client.received(data[start : start + read_size]) for start in range(0, len(data), read_size)
    ]
    assert complete == [False] * (len(complete) - 1) + [True]
    samples = load.Samples()
    client.finish(samples)
    assert samples.chunks == 5
    assert len(samples.lags) == 5


def test_stream_without_done_is_a_failure() -> None:
    client = streaming_client()
    assert client.received(chunked(CHUNK * 2, 4096))
    with pytest.raises(load.BadAnswerError, match="without \\[DONE\\]"):
        client.finish(load.Samples())


def test_stream_that_breaks_off_is_a_failure() -> None:
    client = streaming_client()
    assert not client.received(chunked(CHUNK * 2, 4096)[:-10])
    with pytest.raises(load.BadAnswerError, match="before the end"):
        client.closed()


def test_refused_request_is_a_failure_with_its_message() -> None:
    client = load.Client(("127.0.0.1", 1), b"", stream=False)
    with pytest.raises(load.BadAnswerError, match="503 Service"):
        client.received(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")


def test_answers_are_all_measured(upstream_port: int) -> None:
    figures = run_load(upstream_port, "-c", "4", "-n", "20")
    assert (figures["ok"], figures["failed"]) == (20, 0)


def test_streams_lose_no_chunk(upstream_port: int) -> None:
    arguments = ["--stream", "-c", "4", "-n", "4", "--tokens", "25"]
    for pause in ("0", "2"):
        figures = run_load(upstream_port, *arguments, "--interval-ms", pause)
        assert (figures["ok"], figures["failed"]) == (4, 0)
        assert figures["chunks"] == 4 * 26  # and one with the finish reason


def test_server_that_is_not_there_is_counted_not_awaited() -> None:
    figures = run_load(servers.free_port(), "-c", "2", "-n", "5")
    assert (figures["ok"], figures["failed"]) == (0, 5)


def test_storage_is_filled_priced_and_asked(tmp_path: Path) -> None:
    path = tmp_path / "usage.db"
    storage.fill(path, rows=500, days=3)
    asked = {what: ask() for what, ask, _ in storage.questions(path, days=3)}
    assert asked["summary of a month"].totals.requests == 500
    assert asked["bill of a month"].count(b"\n") > storage.MODELS / 2


def test_program_that_ends_at_once_is_shown_with_its_last_words(tmp_path: Path) -> None:
    broken = tmp_path / "wsgi.py"
    broken.write_text("raise SystemExit('no such option')")
    with pytest.raises(BenchError, match="no such option"), servers.program(broken, tmp_path):
        pass
