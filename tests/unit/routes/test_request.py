"""Fields of bodies and queries: what is read, what is refused, and how it is described."""

from __future__ import annotations

import gzip
from datetime import timezone
from typing import Any

import pytest
from flask import Flask

from manager.errors import ApiError
from routes.request import (
    Body,
    Field,
    amount,
    anything,
    boolean,
    choice,
    flag,
    integer,
    list_of,
    moment,
    read_body,
    read_query,
    record,
    text,
)

TIER = Body({"input": amount().required(), "open": boolean().default_to(False)})
FIELDS = {
    "name": text().required(),
    "hours": integer(0, 9).default_to(3),
    "role": choice("admin", "viewer"),
    "until": moment(lambda: timezone.utc).nullable(),
    "tiers": list_of(record(TIER, ""), 0, 2, "tiers").nullable(),
    "signed": amount(is_signed=True),
}


def read(body: str | bytes, **headers: str) -> dict[str, Any]:
    with Flask("test").test_request_context("/", method="POST", data=body, headers=headers):
        return read_body(Body(FIELDS))


def refusal(body: str | bytes) -> tuple[str | None, str]:
    with pytest.raises(ApiError) as refused:
        read(body)
    assert refused.value.status == 400
    return refused.value.param, refused.value.message


def test_what_is_left_out_has_its_default_or_is_left_out() -> None:
    assert read('{"name": "ann"}') == {"name": "ann", "hours": 3}


def test_a_byte_order_mark_before_a_body_is_read_over() -> None:
    assert read(b'\xef\xbb\xbf{"name": "ann", "hours": 1}') == {"name": "ann", "hours": 1}


def test_a_body_in_another_encoding_is_refused_with_what_it_is() -> None:
    assert refusal('{"name": "ann"}'.encode("utf-16")) == (
        None,
        "The body is not valid JSON: it is in UTF-16, and JSON is sent in UTF-8",
    )


def test_a_compressed_body_is_refused_as_the_audit_table_would_not_show_it() -> None:
    assert read('{"name": "ann"}', **{"Content-Encoding": "Identity"})["name"] == "ann"
    with pytest.raises(ApiError) as refused:
        read(gzip.compress(b'{"name": "ann"}'), **{"Content-Encoding": "gzip"})
    assert (refused.value.status, refused.value.code) == (415, "unsupported_encoding")


def test_each_field_is_read_as_it_is_declared() -> None:
    assert read(
        '{"name": "ann", "hours": 0, "role": "viewer", "until": null, "signed": "-0.5",'
        ' "tiers": [{"input": 0.1}, {"input": "2", "open": true}]}'
    ) == {
        "name": "ann",
        "hours": 0,
        "role": "viewer",
        "until": None,
        "signed": -500_000_000,
        "tiers": (
            {"input": 100_000_000, "open": False},
            {"input": 2_000_000_000, "open": True},
        ),
    }


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ("{}", "name", "name is missing"),
        ('{"name": "a", "hour": 1}', "hour", "there is no hour; did you mean hours?"),
        ('{"name": 5}', "name", "name has to be text"),
        ('{"name": "a\\nb"}', "name", "name has to be text of one line"),
        ('{"name": "a", "hours": 10}', "hours", "a whole number from 0 to 9"),
        ('{"name": "a", "hours": "1"}', "hours", "a whole number from 0 to 9"),
        ('{"name": "a", "hours": null}', "hours", "a whole number from 0 to 9"),
        ('{"name": "a", "role": "owner"}', "role", "admin or viewer, not 'owner'"),
        ('{"name": "a", "role": []}', "role", "admin or viewer"),
        ('{"name": "a", "until": "then"}', "until", "epoch seconds or ISO 8601"),
        ('{"name": "a", "signed": "--1"}', "signed", "signed: "),
        ('{"name": "a", "tiers": {}}', "tiers", "a list of tiers"),
        ('{"name": "a", "tiers": [1]}', "tiers[0]", "tiers[0] has to be an object"),
        ('{"name": "a", "tiers": [{}]}', "tiers[0].input", "tiers[0].input is missing"),
        (
            '{"name": "a", "tiers": [{"input": 1, "opn": 1}]}',
            "tiers[0].opn",
            "did you mean open?",
        ),
        ('{"name": "a", "tiers": [{}, {}, {}]}', "tiers", "at most 2"),
    ],
)
def test_a_wrong_field_is_named_by_its_path(body: str, param: str, message: str) -> None:
    found, told = refusal(body)
    assert found == param
    assert message in told


QUERY: dict[str, Field] = {
    "limit": integer(1, 1000).default_to(100),
    "key": anything(),
    "wait": flag("1: answers when it is done"),
}


def ask(query: str) -> dict[str, Any]:
    with Flask("test").test_request_context(f"/?{query}"):
        return read_query(QUERY)


def test_a_query_is_read_as_it_is_declared() -> None:
    assert ask("") == {"limit": 100, "wait": False}
    assert ask("limit=5&key=&wait=true") == {"limit": 5, "key": "", "wait": True}
    assert ask("wait=0")["wait"] is False


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("limt=5", "there is no limt; did you mean limit?"),
        ("limit=5&limit=6", "limit is there twice"),
        ("limit=0", "limit has to be a whole number from 1 to 1000"),
        ("limit=five", "limit has to be a whole number"),
        ("wait=yes", "wait has to be 0 or 1 or true or false"),
    ],
)
def test_a_wrong_parameter_is_refused_by_its_name(query: str, message: str) -> None:
    with pytest.raises(ApiError, match=message):
        ask(query)


def test_the_schema_says_what_is_read() -> None:
    assert Body({"hours": integer(0, 9).required(), "role": choice("a", "b")}).schema == {
        "type": "object",
        "additionalProperties": False,
        "required": ["hours"],
        "properties": {
            "hours": {"type": "integer", "minimum": 0, "maximum": 9},
            "role": {"type": "string", "enum": ["a", "b"]},
        },
    }
    assert integer(0, 9).nullable().default_to(3).schema == {
        "type": ["integer", "null"],
        "minimum": 0,
        "maximum": 9,
        "default": 3,
    }
