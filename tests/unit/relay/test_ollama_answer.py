"""Answers of OpenAI's endpoints as Ollama's clients expect them, however their bytes arrive."""

from __future__ import annotations

import codecs
import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.relay.ollama import Form, Kind, LineStream
from manager.relay.ollama.answer import MAX_EVENT, refusal

SECOND = 1_000_000_000  # ns
BEGAN, READY, FIRST, END = 100.0, 101.0, 101.5, 103.5
FORM = Form(Kind.CHAT, "m", BEGAN, 1_700_000_000.25, READY)
USAGE = {"prompt_tokens": 17, "completion_tokens": 3, "total_tokens": 20}
DONE = b"data: [DONE]\n\n"


def event(end: str = "\n", **fields: Any) -> bytes:
    return f"data: {json.dumps(fields)}{end}{end}".encode()


def delta(finish_reason: str | None = None, **said: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": said, "finish_reason": finish_reason}]}


def says(text: str) -> bytes:
    return event(**delta(content=text))


def tool(index: int, arguments: str, **named: str) -> bytes:
    function = {"arguments": arguments, **named}
    return event(**delta(tool_calls=[{"index": index, "function": function}]))


FINISH = event(**delta("stop"))
USED = event(choices=[], usage=USAGE)


def lines_of(written: bytes) -> list[dict[str, Any]]:
    assert written == b"" or written.endswith(b"\n")
    return [json.loads(line) for line in written.splitlines()]


def streamed(*pieces: bytes, form: Form = FORM) -> list[dict[str, Any]]:
    """The lines of a stream that has come in these pieces."""
    stream = LineStream(form)
    written = b"".join(stream.feed(piece, FIRST) for piece in pieces)
    return lines_of(written + stream.close(FIRST))


def said(lines: list[dict[str, Any]]) -> str:
    return "".join(line["message"]["content"] for line in lines if "message" in line)


def form_of(kind: Kind, **more: Any) -> Form:
    return Form(kind, "m", BEGAN, 0.0, READY, **more)


def whole(body: Any, form: Form = FORM) -> tuple[int, dict[str, Any]]:
    status, answer = form.whole(json.dumps(body).encode(), END)
    return status, json.loads(answer)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


# --- whatever the pieces are ------------------------------------------------------------

TEXT = st.text(max_size=10) | st.sampled_from(["\n\n", "data: [DONE]", '"error": {"', "\r\n"])
LINE_END = st.sampled_from(["\n", "\r\n", "\r"])
SPLIT = 'data: {"choices": [{"delta":\ndata: {"content": "split"}}]}\n\n'
ONE_EVENT = st.one_of(
    st.builds(lambda text, end: event(end, **delta(content=text)), TEXT, LINE_END),
    st.builds(lambda text, end: event(end, **delta(reasoning_content=text)), TEXT, LINE_END),
    st.builds(lambda text: event(choices=[{"index": 0, "text": text}]), TEXT),
    st.builds(lambda text: tool(0, text, name="f"), st.sampled_from(['{"a"', ": 1}", ""])),
    st.builds(lambda reason: event(**delta(reason)), st.sampled_from(["stop", "length"])),
    st.just(USED),
    st.just(b": ping\n\n"),
    st.just(b"event: message\nid: 7\ndata: {}\n\n"),
    st.just(b'data: {"choices":\ndata: []}\n\n'),
    st.builds(lambda end: SPLIT.replace("\n", end).encode(), LINE_END),
    st.just(b"data: no JSON\n\n"),
    st.just(b'data: {"error": {"message": "out of memory", "code": 500}}\n\n'),
    st.just(b'error: {"code": 500, "message": "out of memory"}\n\n'),
    st.just(b"event:error\rdata: out of memory\r\r"),
    st.just(DONE),
)
STREAM = st.builds(
    lambda start, events, end: start + b"".join(events) + end,
    st.sampled_from([b"", codecs.BOM_UTF8]),
    st.lists(ONE_EVENT, max_size=8),
    st.sampled_from([b"", DONE, b"data: [DONE]", b"data:[DONE]\r\n\r\n"]),
)
PLACES = st.lists(st.integers(0, 2**16), max_size=30)


@given(STREAM, PLACES)
def test_however_the_bytes_are_cut_the_lines_are_the_same(data: bytes, places: list[int]) -> None:
    assert streamed(*cut(data, places)) == streamed(data)


@given(STREAM)
def test_byte_by_byte_they_are_the_same_too(data: bytes) -> None:
    assert streamed(*(data[at : at + 1] for at in range(len(data)))) == streamed(data)


@given(STREAM | st.binary(max_size=200), PLACES)
def test_a_stream_has_one_end_and_nothing_behind_it(data: bytes, places: list[int]) -> None:
    lines = streamed(*cut(data, places))
    is_end = [line.get("done", False) or "error" in line for line in lines]
    assert is_end == [False] * (len(lines) - 1) + [True]


@given(st.lists(TEXT), LINE_END, PLACES)
def test_no_word_of_the_model_is_lost(texts: list[str], end: str, places: list[int]) -> None:
    events = [codecs.BOM_UTF8, *(event(end, **delta(content=text)) for text in texts)]
    events.append(SPLIT.replace("\n", end).encode())
    lines = streamed(*cut(b"".join(events) + FINISH + DONE, places))
    assert said(lines) == "".join(texts) + "split"
    assert lines[-1]["done_reason"] == "stop"


# --- streams ------------------------------------------------------------------------------


def test_a_stream_is_a_line_for_each_piece_and_one_that_ends_it() -> None:
    stream = LineStream(FORM)
    first = lines_of(stream.feed(says("Hel"), FIRST))
    second = lines_of(stream.feed(says("lo"), END))
    last = lines_of(stream.feed(FINISH + USED + DONE, END))
    assert first == [
        {
            "model": "m",
            "created_at": "2023-11-14T22:13:21.750000Z",
            "message": {"role": "assistant", "content": "Hel"},
            "done": False,
        }
    ]
    assert second[0]["message"]["content"] == "lo"
    assert last == [
        {
            "model": "m",
            "created_at": "2023-11-14T22:13:23.750000Z",
            "message": {"role": "assistant", "content": ""},
            "done": True,
            "done_reason": "stop",
            "total_duration": 3.5 * SECOND,
            "load_duration": SECOND,
            "prompt_eval_count": 17,
            "prompt_eval_duration": 0.5 * SECOND,
            "eval_count": 3,
            "eval_duration": 2 * SECOND,
        }
    ]
    assert stream.close(END) == b""


def test_a_piece_is_sent_as_soon_as_its_event_is_whole() -> None:
    stream = LineStream(FORM)
    one = says("a")
    assert stream.feed(one[:-1], FIRST) == b""
    assert said(lines_of(stream.feed(one[-1:], FIRST))) == "a"


def test_a_text_is_a_response() -> None:
    pieces = [event(choices=[{"index": 0, "text": text}]) for text in ("Hel", "lo")]
    end = event(choices=[{"index": 0, "text": "", "finish_reason": "length"}])
    lines = streamed(*pieces, end, DONE, form=form_of(Kind.GENERATE))
    assert [line["response"] for line in lines] == ["Hel", "lo", ""]
    assert "message" not in lines[0]
    assert lines[-1]["done_reason"] == "length"


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_what_the_model_thinks_is_apart_from_what_it_says(name: str) -> None:
    pieces = [event(**delta(content="", **{name: "Hm"})), says("Hi"), FINISH, DONE]
    thought, answer, _ = streamed(*pieces)
    assert thought["message"] == {"role": "assistant", "content": "", "thinking": "Hm"}
    assert answer["message"] == {"role": "assistant", "content": "Hi"}
    assert streamed(*pieces, form=form_of(Kind.GENERATE))[0]["thinking"] == "Hm"
    hidden = streamed(*pieces, form=form_of(Kind.CHAT, hides_thinking=True))
    assert [line["message"] for line in hidden] == [
        {"role": "assistant", "content": "Hi"},
        {"role": "assistant", "content": ""},
    ]


def test_tool_calls_come_whole_before_the_end() -> None:
    first = event(
        **delta(tool_calls=[{"index": 0, "id": "call_a", "function": {"name": "weather"}}])
    )
    pieces = [first, tool(0, '{"city": "Pa'), tool(1, "", name="time"), tool(0, 'ris"}')]
    calls, end = streamed(*pieces, event(**delta("tool_calls")), DONE)
    assert calls["done"] is False
    assert calls["message"]["tool_calls"] == [
        {
            "id": "call_a",
            "function": {"index": 0, "name": "weather", "arguments": {"city": "Paris"}},
        },
        {"function": {"index": 1, "name": "time", "arguments": {}}},
    ]
    assert (end["done"], end["done_reason"]) == (True, "stop")


@pytest.mark.parametrize("arguments", ['{"city": ', "[]", '"Paris"'])
def test_a_call_with_arguments_that_are_no_object_is_an_error(arguments: str) -> None:
    lines = streamed(tool(0, arguments, name="weather"), event(**delta("length")), DONE)
    assert lines == [{"error": "the model called 'weather' with arguments that are no JSON object"}]


def test_llama_cpps_own_times_are_believed() -> None:
    timings = {"prompt_n": 5, "prompt_ms": 250.0, "predicted_n": 2, "predicted_ms": 1500}
    end = streamed(event(**delta("stop"), timings=timings), DONE)[-1]
    assert end["prompt_eval_duration"] == SECOND / 4
    assert end["eval_duration"] == 1.5 * SECOND
    assert (end["prompt_eval_count"], end["eval_count"]) == (5, 2)


def test_a_server_that_reports_no_tokens_has_no_counts() -> None:
    end = streamed(says("Hi"), FINISH, DONE)[-1]
    assert "eval_count" not in end
    assert "prompt_eval_count" not in end
    assert end["eval_duration"] > 0


@pytest.mark.parametrize("end", [b"", b": bye\n\n", DONE, USED])
def test_an_answer_that_has_ended_is_complete_whatever_follows(end: bytes) -> None:
    assert streamed(says("Hi"), FINISH, end)[-1]["done"] is True
    assert streamed(says("Hi"), DONE)[-1]["done_reason"] == "stop"


@pytest.mark.parametrize("rest", [b"", USED, says("there")[:-9]])
def test_a_stream_that_is_cut_short_ends_in_an_error(rest: bytes) -> None:
    assert streamed(says("Hi"), rest)[-1] == {"error": "the model's answer was cut short"}


def test_an_error_in_a_stream_is_its_last_line() -> None:
    error = event(error={"message": "out of memory", "type": "server_error", "code": 500})
    lines = streamed(says("Hi"), error, says("no more"), FINISH, DONE)
    assert said(lines) == "Hi"
    assert lines[-1] == {"error": "out of memory"}


def test_half_a_character_does_not_break_the_line_that_it_is_in() -> None:
    pieces = [b'data: {"choices": [{"delta": {"content": "\\ud83d"}}]}\n\n', FINISH, DONE]
    assert streamed(*pieces)[0]["message"]["content"] == "\ud83d"


def test_an_event_without_an_end_takes_no_more_than_so_much_memory() -> None:
    stream = LineStream(FORM)
    piece = b"data: " + b"x" * (MAX_EVENT // 4)
    written = b"".join(stream.feed(piece, FIRST) for _ in range(5))
    assert "bytes" in lines_of(written)[0]["error"]
    assert stream.feed(piece, FIRST) + stream.close(FIRST) == b""


# --- answers that come whole --------------------------------------------------------------


def test_a_whole_chat_is_one_object() -> None:
    message = {"role": "assistant", "content": "Hi", "reasoning_content": "Hm"}
    status, answer = whole(
        {"choices": [{"message": message, "finish_reason": "stop"}], "usage": USAGE}
    )
    assert status == 200
    assert answer["message"] == {"role": "assistant", "content": "Hi", "thinking": "Hm"}
    assert (answer["done"], answer["done_reason"]) == (True, "stop")
    assert (answer["prompt_eval_count"], answer["eval_count"]) == (17, 3)
    assert (answer["load_duration"], answer["eval_duration"]) == (SECOND, 2.5 * SECOND)


def test_a_whole_answer_has_its_tool_calls() -> None:
    function = {"name": "weather", "arguments": '{"city": "Paris"}'}
    calls = [{"id": "a", "type": "function", "function": function}] * 2
    choice = {"message": {"content": None, "tool_calls": calls}, "finish_reason": "tool_calls"}
    _, answer = whole({"choices": [choice]})
    assert answer["message"]["content"] == ""
    made = [one["function"] for one in answer["message"]["tool_calls"]]
    assert [(one["index"], one["arguments"]) for one in made] == [
        (0, {"city": "Paris"}),
        (1, {"city": "Paris"}),
    ]
    assert answer["done_reason"] == "stop"


def test_a_whole_text_is_one_response() -> None:
    body = {"choices": [{"text": "Hi", "finish_reason": "length"}]}
    _, answer = whole(body, form_of(Kind.GENERATE))
    assert (answer["response"], answer["done_reason"]) == ("Hi", "length")


def test_vectors_are_in_the_order_of_their_texts() -> None:
    data = [{"index": 1, "embedding": [2.0]}, {"index": 0, "embedding": [1.0]}]
    usage = {"prompt_tokens": 17, "total_tokens": 17}
    _, answer = whole({"data": data, "usage": usage}, form_of(Kind.EMBED))
    assert answer == {
        "model": "m",
        "embeddings": [[1.0], [2.0]],
        "total_duration": 3.5 * SECOND,
        "load_duration": SECOND,
        "prompt_eval_count": 17,
    }
    _, answer = whole({"data": data}, form_of(Kind.EMBEDDINGS))
    assert answer == {"embedding": [1.0]}


def test_nothing_asked_is_answered_in_the_shape_of_its_path() -> None:
    def answer(kind: Kind) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(form_of(kind).nothing_asked("load", BEGAN))
        return answer

    head = {"model": "m", "created_at": "1970-01-01T00:00:00.000000Z"}
    end = {"done": True, "done_reason": "load"}
    message = {"role": "assistant", "content": ""}
    assert answer(Kind.CHAT) == {**head, "message": message, **end}
    assert answer(Kind.GENERATE) == {**head, "response": "", **end}
    assert answer(Kind.EMBED) == {"model": "m", "embeddings": []}
    assert answer(Kind.EMBEDDINGS) == {"embedding": []}


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize(
    "body", [{}, [], None, 1, {"choices": []}, {"choices": [1]}, {"data": [1]}, {"data": []}]
)
def test_what_is_no_answer_to_this_is_an_error_and_no_traceback(kind: Kind, body: Any) -> None:
    status, answer = whole(body, form_of(kind))
    if kind is Kind.EMBED and body == {"data": []}:
        assert answer["embeddings"] == []
    else:
        assert status == 502
        assert list(answer) == ["error"]


def test_an_error_with_status_200_is_one() -> None:
    assert whole({"error": {"message": "out of memory", "code": 500}}) == (
        500,
        {"error": "out of memory"},
    )


def test_a_refusal_says_what_the_server_said() -> None:
    def said_by(body: bytes) -> str:
        text: str = json.loads(refusal(body))["error"]
        return text

    assert said_by(b'{"error": {"message": "too long", "code": 400}}') == "too long"
    assert said_by(b'{"error": "too long"}') == "too long"
    assert said_by(b"<h1>Bad gateway</h1>") == "<h1>Bad gateway</h1>"
    assert said_by(b"\xff" * 9999).startswith("\ufffd")
    assert said_by(b"") == "the model's server has not said why"
