"""A few hundred inputs of the fuzz, always the same; `python -m bench.fuzz` makes a hundred
thousand."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import fuzz
from tests.support.program import ROOT


def test_nothing_that_is_sent_is_too_much(tmp_path: Path) -> None:
    tally = fuzz.fuzz(ROOT / "wsgi.py", tmp_path, inputs=250, seed=7, minutes=5)
    assert tally.failures == []
    assert {kind for kind, _ in tally.statuses} == set(fuzz.SHARES)
    assert tally.inputs >= 240  # shares are rounded


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/", fuzz.Answer(500, "text/plain", b"oops")),
        ("/api/x", fuzz.Answer(500, "application/json", b'{"error": {"code": "internal_error"}}')),
        ("/api/x", fuzz.Answer(404, "text/html", b"<p>not found</p>")),
        ("/v1/x", fuzz.Answer(400, "application/json", b'{"error": {"message": "no"}}')),
        (
            "/v1/x",
            fuzz.Answer(
                503,
                "application/json",
                b'{"error": {"message": "", "type": "", "param": null, "code": "new"}}',
            ),
        ),
    ],
)
def test_what_is_no_good_answer_is_a_fault(path: str, answer: fuzz.Answer) -> None:
    assert fuzz.fault_of(path, answer)
