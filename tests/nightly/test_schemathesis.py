"""What schemathesis makes of /openapi.json, as described and not: every answer is one that the
document and the table of errors know."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import requests
import schemathesis
from hypothesis.errors import Unsatisfiable

from manager.interfaces import is_for_models, is_ollamas
from tests.support.fixtures import Launch
from tests.support.process_usage import growth, settled
from tests.support.program import PATIENCE, Program, fake, media

TEXTS = {"talker": "Chat", "writer": "Base", "vectors": "Embedding", "judge": "Reranker"}
MEDIA = {"typist": "Transcription", "speaker": "Speech", "painter": "Image"}
MODELS = TEXTS | MEDIA
EXAMPLES = 100  # of each operation, as described and not
# 5xx that a client may meet though the program is in order.
ERRORS = {
    502: {"upstream_error"},
    503: {
        "busy",
        "no_matching_scheme",
        "insufficient_memory",
        "start_failed",
        "start_timeout",
        "queue_timeout",
        "shutting_down",
        "database_unavailable",
    },
    504: {"upstream_timeout"},
}


@pytest.fixture(scope="module")
def program(launch_once: Launch) -> Iterator[Program]:
    """One that a key is not needed for, and that has grown by nothing at the end."""
    models = {name: fake(mode=mode) for name, mode in TEXTS.items()}
    models |= {name: media(mode) for name, mode in MEDIA.items()}
    timeouts = {"start_timeout": 5, "stop_timeout": 1, "queue_timeout": 2, "upstream_timeout": 5}
    program = launch_once(models, threads=96, max_body_mb=1, require_key=False, **timeouts)
    before = settled(program)
    yield program
    after = settled(program)
    assert growth(before, after) == {}


@pytest.fixture(scope="module")
def key(program: Program) -> str:
    return program.add_key("tester")


@pytest.fixture(scope="module")
def operations(program: Program) -> list[Any]:
    """Those of the program's own document, in which a model's name is one that there is."""
    document = program.get("/openapi.json").json()
    name = {"type": "string", "enum": list(MODELS)}
    for path, item in document["paths"].items():
        # A model that was removed from the config would be no model for the others.
        if "/models/{name}" in path and not path.startswith("/api/config/"):
            parameter = {"name": "name", "in": "path", "required": True, "schema": name}
            item["parameters"] = [parameter]
    for schema in ("Prompt", "RecordingForm", "PictureForm", "OllamaPrompt", "Named"):
        document["components"]["schemas"][schema]["properties"]["model"] = name
    document["components"]["parameters"]["model"]["schema"] = name
    return [found.ok() for found in schemathesis.openapi.from_dict(document).get_all_operations()]


def check_error(path: str, answer: requests.Response) -> None:
    """One in the shape of all errors; from 500 on only with the codes that clients know of."""
    error = answer.json()["error"]
    if is_ollamas(path):
        assert isinstance(error, str)
        assert answer.status_code < 500 or answer.status_code in {501, *ERRORS}, error
        return
    assert set(error) >= {"message", "type", "param", "code"}
    assert answer.status_code < 500 or error["code"] in ERRORS[answer.status_code], error


def check(case: schemathesis.Case, program: Program, key: str) -> int:
    """The status of the answer to it, sent with a credential that opens the path."""
    arguments = case.as_transport_kwargs(base_url=program.url)
    takes_keys = is_for_models(case.path) or case.path == "/api/keys/me"
    secret = key if takes_keys else program.local_token
    arguments["headers"]["Authorization"] = f"Bearer {secret}"
    if case.method != "GET" and not arguments.get("files"):  # also where there is no body
        arguments["headers"].setdefault("Content-Type", "application/json")
    with requests.Session() as session:
        session.trust_env = False
        with session.request(**arguments, stream=True, timeout=PATIENCE) as answer:
            if answer.status_code >= 500 or (
                answer.status_code >= 400 and case.path.startswith(("/api/", "/v1/"))
            ):
                check_error(case.path, answer)
            elif answer.headers["Content-Type"].partition(";")[0] != "text/event-stream":
                _ = answer.content  # comes whole; a stream of events goes on
            status: int = answer.status_code
            return status


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_every_answer_is_a_good_one(
    program: Program, key: str, operations: list[Any], mode: schemathesis.GenerationMode
) -> None:
    limits = hypothesis.settings(
        max_examples=EXAMPLES,
        database=None,
        derandomize=True,
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    statuses: collections.Counter[tuple[str, int]] = collections.Counter()

    def run(case: schemathesis.Case) -> None:
        statuses[case.operation.label, check(case, program, key)] += 1

    for operation in operations:
        strategy = operation.as_strategy(generation_mode=mode)
        # Where there is nothing to be wrong, nothing can be made that is not as described.
        with contextlib.suppress(Unsatisfiable):
            limits(hypothesis.given(strategy)(run))()
    print(statuses)
    if mode is schemathesis.GenerationMode.POSITIVE:
        succeeded = {label for label, status in statuses if status < 300}
        assert len(succeeded) > len(operations) / 2  # else it asks for nothing that there is
