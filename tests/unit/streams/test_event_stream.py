"""Server-sent events on their way through: whole, unchanged, however they arrive."""

from __future__ import annotations

import codecs
import itertools
import json
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.interfaces import ANY_STREAM, OPENAI_STREAM, AnswerError
from manager.streams.event_stream import MAX_BUFFERED, EventStream
from manager.tokens import TokenUsage

USAGE = {"prompt_tokens": 17, "completion_tokens": 3, "total_tokens": 20}
DONE = "[DONE]"
BOM = codecs.BOM_UTF8


def content(text: str, **more: Any) -> str:
    return json.dumps({"choices": [{"index": 0, "delta": {"content": text}}], **more})


def usage_chunk(**more: Any) -> str:
    return json.dumps({"choices": [], "usage": USAGE, **more})


FINISH = json.dumps({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
ERRORS = [
    json.dumps({"error": {"code": 500, "message": "out of memory", "type": "server_error"}}),
    json.dumps({"type": "error", "error": {"type": "overloaded_error", "message": "later"}}),
    json.dumps({"error": "something broke"}),
]


def event(data: str, end: str = "\n", blank: str | None = None) -> bytes:
    """``end`` is its line's, ``blank`` that of the empty line behind it, where it is another."""
    return f"data: {data}{end}{end if blank is None else blank}".encode()


def fed(stream: EventStream, *pieces: bytes) -> bytes:
    return b"".join(stream.feed(piece) for piece in pieces)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


# Events as servers write them: with either line end, with comments and names, with usage in a
# chunk of its own or in every chunk, and texts that only look like any of these.
SAID = st.text(max_size=12) | st.sampled_from(
    ["\n\n", "data: [DONE]", '{"usage": {', '"usage": {"prompt_tokens": 9}', "[DONE]", "\r\n\r\n"]
)
DATA = st.one_of(
    SAID.map(content),
    SAID.map(lambda text: content(text, usage=None)),
    SAID.map(lambda text: content(text, usage=USAGE)),
    SAID.map(lambda text: content(text, timings={"prompt_n": 5, "predicted_n": 2})),
    st.just(usage_chunk()),
    st.just(usage_chunk(id="cmpl-1")),
    st.just(FINISH),
    st.sampled_from(ERRORS),
)
# Of an event's line and of the empty line behind it. (CR and LF are the end of one line.)
LINE_ENDS = [
    (end, blank)
    for end in ("\n", "\r\n", "\r")
    for blank in ("\n", "\r\n", "\r")
    if (end, blank) != ("\r", "\n")
]
LINE_END = st.sampled_from(LINE_ENDS)


def event_of(data: str, ends: tuple[str, str]) -> bytes:
    return event(data, *ends)


ONE_EVENT = st.one_of(
    st.builds(event_of, DATA, LINE_END),
    st.builds(event_of, DATA, LINE_END),
    st.just(b": ping\n\n"),
    st.just(b"event: message\nid: 7\ndata: {}\n\n"),
    st.just(b'error: {"code": 500, "message": "out of memory"}\n\n'),
    st.just(b"error: no JSON\n\n"),
    st.just(b'event: error\ndata: {"message": "out of memory"}\n\n'),
    st.just(b"event:error\rdata: out of memory\r\r"),
    st.just(b"data: {\ndata: }\n\n"),
)
EVENTS = st.lists(ONE_EVENT, max_size=8)
BEHIND_DONE = st.sampled_from([b"", b": bye\n\n", b": " + b"." * 200 + b"\n\n"])
PLACES = st.lists(st.integers(0, 2**16), max_size=30)


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """A whole stream, with or without ``[DONE]`` at its end and a byte order mark before it."""
    whole = draw(st.sampled_from([b"", b"", BOM])) + b"".join(draw(EVENTS))
    if draw(st.booleans()):
        whole += event_of(DONE, draw(LINE_END)) + draw(BEHIND_DONE)
    return whole


@dataclass
class Seen:
    """All that can be known of a stream once it is over."""

    forwarded: bytes
    chunks: int
    done: bool
    has_ended: bool
    error: AnswerError | None
    usage: TokenUsage | None


def seen(pieces: list[bytes], strip_usage: bool) -> Seen:
    stream = EventStream(OPENAI_STREAM, strip_usage)
    forwarded = fed(stream, *pieces) + stream.flush()
    return Seen(
        forwarded, stream.chunks, stream.done, stream.has_ended, stream.error, stream.usage()
    )


# --- whatever the pieces are ------------------------------------------------------------


@given(streams(), PLACES, st.booleans())
def test_however_the_bytes_are_cut_all_is_the_same(
    whole: bytes, places: list[int], strip_usage: bool
) -> None:
    assert seen(cut(whole, places), strip_usage) == seen([whole], strip_usage)


@given(streams(), st.booleans())
def test_byte_by_byte_is_the_same_too(whole: bytes, strip_usage: bool) -> None:
    pieces = [whole[at : at + 1] for at in range(len(whole))]
    assert seen(pieces, strip_usage) == seen([whole], strip_usage)


@given(streams(), PLACES)
def test_nothing_is_changed_where_nothing_is_to_be_taken_out(
    whole: bytes, places: list[int]
) -> None:
    assert seen(cut(whole, places), strip_usage=False).forwarded == whole


@given(EVENTS, st.integers(0, 2**16), PLACES)
def test_a_stream_that_breaks_off_ends_behind_a_whole_event(
    events: list[bytes], end: int, places: list[int]
) -> None:
    whole = b"".join(events)
    broken = whole[: end % (len(whole) + 1)]
    stream = EventStream(OPENAI_STREAM)
    forwarded = fed(stream, *cut(broken, places))
    boundaries = [b"".join(events[:count]) for count in range(len(events) + 1)]
    # The CR of an empty line's CRLF ends the event already.
    boundaries += [one.removesuffix(b"\n") for one in boundaries if one.endswith(b"\r\n")]
    assert forwarded == max((b for b in boundaries if broken.startswith(b)), key=len)


@given(EVENTS, PLACES)
def test_only_the_usage_chunks_are_taken_out(events: list[bytes], places: list[int]) -> None:
    def is_usage_chunk(one: bytes) -> bool:
        is_silent = b'"content": ""' in one and b'"usage": {"' in one
        return is_silent or one.startswith(b'data: {"choices": [], "usage"')

    kept = b"".join(one for one in events if not is_usage_chunk(one))
    assert seen(cut(b"".join(events), places), strip_usage=True).forwarded == kept


@given(st.binary(max_size=200) | st.text("data: {}[DONE]\r\n", max_size=60).map(str.encode))
def test_no_bytes_are_so_odd_that_they_raise_or_are_lost(data: bytes) -> None:
    assert seen([data], strip_usage=False).forwarded == data
    assert seen([data], strip_usage=True).chunks <= data.count(b"data:")


# --- one promise at a time --------------------------------------------------------------


def test_a_whole_event_is_sent_at_once_and_a_part_waits_for_the_rest() -> None:
    stream = EventStream(OPENAI_STREAM)
    first, second = event(content("a")), event(content("b"))
    assert stream.feed(first + second[:9]) == first
    assert stream.feed(second[9:-1]) == b""
    assert stream.feed(second[-1:]) == second


@pytest.mark.parametrize("ends", LINE_ENDS)
def test_an_event_is_sent_and_read_as_soon_as_it_is_whole_however_its_lines_end(
    ends: tuple[str, str],
) -> None:
    stream = EventStream(OPENAI_STREAM, strip_usage=True)
    for text in ("a", "b"):
        assert stream.feed(event(content(text), *ends)) == event(content(text), *ends)
    assert stream.feed(event(usage_chunk(), *ends)) == b""
    assert stream.feed(event(DONE, *ends)) == event(DONE, *ends)
    assert (stream.done, stream.chunks, stream.usage()) == (True, 2, TokenUsage(17, 0, 3))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_each_line_of_an_event_is_read_however_it_ends(end: str) -> None:
    stream = EventStream(OPENAI_STREAM)
    lines = ["id: 1", 'data: {"choices": [],', f'data: "usage": {json.dumps(USAGE)}}}', "", ""]
    stream.feed(end.join(lines).encode())
    stream.feed(end.join(["event: error", "data: out of memory", "", ""]).encode())
    assert stream.usage() == TokenUsage(17, 0, 3)
    assert stream.error == AnswerError(502, "out of memory")


@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_the_blank_line_may_itself_come_in_parts_and_its_cr_is_enough(end: str) -> None:
    one = event("{}", end, "\r\n")
    stream = EventStream(OPENAI_STREAM)
    assert fed(stream, *(one[at : at + 1] for at in range(len(one) - 2))) == b""
    assert stream.feed(b"\r") == one[:-1]
    assert stream.feed(b"\n") == b"\n"
    assert stream.feed(event("[]")) == event("[]")
    assert stream.chunks == 2


def test_of_an_event_that_is_taken_out_the_lf_that_comes_late_is_too() -> None:
    stream = EventStream(OPENAI_STREAM, strip_usage=True)
    one, whole = event(content("a"), "\r\n"), event(usage_chunk(), "\r\n")
    assert stream.feed(one + whole[:-1]) == one
    assert stream.feed(b"\n" + one) == one


@pytest.mark.parametrize("cut_at", range(5))
def test_a_byte_order_mark_before_the_first_event_is_sent_on_and_hides_nothing(cut_at: int) -> None:
    stream = EventStream(OPENAI_STREAM, strip_usage=True)
    whole = BOM + event(usage_chunk()) + event(DONE)
    assert fed(stream, whole[:cut_at], whole[cut_at:]) == BOM + event(DONE)
    assert (stream.chunks, stream.usage()) == (0, TokenUsage(17, 0, 3))


def test_a_byte_order_mark_before_a_first_chunk_or_a_bare_error_hides_neither() -> None:
    stream = EventStream(OPENAI_STREAM)
    assert stream.feed(BOM + event(content("a"))) == BOM + event(content("a"))
    assert stream.estimate() == TokenUsage(completion_tokens=1, estimated=True)
    failed = EventStream(OPENAI_STREAM)
    error = ERRORS[0].encode()
    assert failed.feed(BOM + error) + failed.flush() == BOM + b"data: " + error + b"\n\n"
    assert failed.error == AnswerError(500, "out of memory")


def test_an_endless_event_does_not_fill_the_memory() -> None:
    stream = EventStream(OPENAI_STREAM)
    piece = b'data: {"usage": {"prompt_tokens": 1}, ' + b"x" * 65536
    sent = b""
    for _ in range(40):
        sent += stream.feed(piece)
    assert len(piece) * 40 - len(sent) <= MAX_BUFFERED
    assert sent + stream.flush() == piece * 40
    kept = sum(len(value) for value in vars(stream).values() if isinstance(value, bytes))
    assert kept <= MAX_BUFFERED


def test_a_last_event_without_its_blank_line_still_counts_at_a_clean_end() -> None:
    stream = EventStream(OPENAI_STREAM)
    assert stream.feed(b"data: {}\n\ndata: [DONE]\n") == b"data: {}\n\n"
    assert not stream.done
    assert stream.flush() == b"data: [DONE]\n"
    assert stream.done
    assert stream.flush() == b""


@pytest.mark.parametrize("end", [b"data: [DONE]\n\n", b"data:[DONE]\n\n", b"data: [DONE]\r\n\r\n"])
def test_done_is_seen_in_each_way_of_writing_it(end: bytes) -> None:
    stream = EventStream(OPENAI_STREAM)
    stream.feed(event(content("a")) + end)
    assert stream.done


def test_a_text_that_says_done_is_not_the_end() -> None:
    stream = EventStream(OPENAI_STREAM)
    stream.feed(event(content("data: [DONE]")) + event(content("[DONE]")))
    assert not stream.done


# --- tokens -----------------------------------------------------------------------------


def test_the_usage_chunk_that_only_the_manager_asked_for_is_read_and_taken_out() -> None:
    stream = EventStream(OPENAI_STREAM, strip_usage=True)
    first, last = event(content("a")), event(DONE)
    assert stream.feed(first + event(usage_chunk()) + last) == first + last
    assert stream.usage() == TokenUsage(17, 0, 3)


def test_the_usage_chunk_that_the_client_asked_for_is_read_and_stays() -> None:
    stream = EventStream(OPENAI_STREAM)
    whole = event(content("a")) + event(usage_chunk()) + event(DONE)
    assert stream.feed(whole) == whole
    assert stream.usage() == TokenUsage(17, 0, 3)


def test_usage_inside_of_a_chunk_with_content_is_read_and_stays() -> None:
    stream = EventStream(OPENAI_STREAM, strip_usage=True)
    whole = event(content("a", usage=USAGE))
    assert stream.feed(whole) == whole
    assert stream.usage() == TokenUsage(17, 0, 3)


def test_the_last_of_many_reports_counts() -> None:
    stream = EventStream(OPENAI_STREAM)
    for tokens in (1, 2, 3):
        counts = {"prompt_tokens": 5, "completion_tokens": tokens}
        stream.feed(event(content("a", usage=counts)))
    assert stream.usage() == TokenUsage(5, 0, 3)


def test_an_anthropic_stream_has_its_prompt_at_the_start_and_its_completion_at_the_end() -> None:
    start = {"type": "message_start", "message": {"usage": {"input_tokens": 25}}}
    delta = {"type": "message_delta", "usage": {"output_tokens": 15}}
    stream = EventStream(OPENAI_STREAM)
    stream.feed(b"event: message_start\n" + event(json.dumps(start)))
    stream.feed(b"event: message_delta\n" + event(json.dumps(delta)))
    assert stream.usage() == TokenUsage(25, 0, 15)


LONG = "x" * (MAX_BUFFERED + 100_000)


@pytest.mark.parametrize("size", [1 << 16, 65_521, 1 << 19])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    "chunk",
    [
        {"choices": [{"delta": {"content": LONG}}], "usage": USAGE, "id": "1"},
        {"usage": USAGE, "choices": [{"delta": {"content": LONG}}]},
        {"choices": [{"delta": {"content": LONG}}], "usage": USAGE, "prompt_logprobs": LONG},
        {"type": "response.completed", "response": {"output": LONG, "usage": USAGE, "user": "u"}},
    ],
)
def test_usage_in_an_event_that_is_too_long_to_hold_is_read_wherever_it_stands(
    chunk: dict[str, Any], end: str, size: int
) -> None:
    stream = EventStream(OPENAI_STREAM)
    whole = event(content("a"), end) + event(json.dumps(chunk), end)
    pieces = [whole[at : at + size] for at in range(0, len(whole), size)]
    assert fed(stream, *pieces) == whole
    assert stream.usage() == TokenUsage(17, 0, 3)
    assert stream.chunks == 2
    assert stream.feed(event(DONE)) == event(DONE)
    assert stream.done


def test_behind_an_event_that_is_too_long_to_hold_each_is_read_as_before() -> None:
    stream = EventStream(OPENAI_STREAM, strip_usage=True)
    long = event(content(LONG), "\r\n")
    assert fed(stream, long[:-70_000], long[-70_000:-1]) == long[:-1]
    last = event(DONE, "\r\n")
    assert stream.feed(b"\n" + event(usage_chunk(), "\r\n") + last) == b"\n" + last
    assert (stream.chunks, stream.usage()) == (1, TokenUsage(17, 0, 3))


def test_groqs_last_chunk_is_usage() -> None:
    stream = EventStream(OPENAI_STREAM)
    stream.feed(event(content("a")) + event(content("", x_groq={"id": "req_1", "usage": USAGE})))
    assert stream.usage() == TokenUsage(17, 0, 3)


def test_a_stream_that_reports_no_tokens_has_no_usage() -> None:
    stream = EventStream(OPENAI_STREAM)
    stream.feed(event(content("a")) + event(content("b", usage=None)) + event(DONE))
    assert stream.usage() is None


@given(st.integers(0, 20), st.booleans(), st.booleans(), PLACES)
def test_a_stream_that_is_cut_short_counts_a_token_for_each_chunk(
    chunks: int, has_usage: bool, has_done: bool, places: list[int]
) -> None:
    """Neither a usage chunk that is taken out nor [DONE] is a token."""
    whole = b"".join(event(content(f"t{number}")) for number in range(chunks))
    whole += event(usage_chunk()) * has_usage + event(DONE) * has_done
    stream = EventStream(OPENAI_STREAM, strip_usage=True)
    fed(stream, *cut(whole, places))
    assert stream.estimate() == TokenUsage(completion_tokens=chunks, estimated=True)


# --- errors -----------------------------------------------------------------------------


def test_an_answer_that_has_ended_is_complete_without_done() -> None:
    stream = EventStream(OPENAI_STREAM)
    stream.feed(event(content("a", finish_reason=None)))
    assert not stream.has_ended
    stream.feed(event(FINISH))
    stream.feed(event(usage_chunk()))
    stream.feed(b": bye\n\n")
    assert (stream.done, stream.has_ended) == (False, True)


@pytest.mark.parametrize(
    "last",
    [
        content("a"),
        json.dumps({"choices": [{"delta": {"content": "b"}, "finish_reason": None}]}),
        content('"finish_reason": "stop"'),
        json.dumps({"finish_reason": "stop"}),
    ],
)
def test_a_stream_whose_last_choice_goes_on_was_cut_short(last: str) -> None:
    stream = EventStream(OPENAI_STREAM)
    stream.feed(event(content("a")) + event(last))
    assert not stream.has_ended


def test_a_second_choice_that_goes_on_after_the_first_has_finished_is_not_the_end() -> None:
    stream = EventStream(OPENAI_STREAM)
    goes_on = {"choices": [{"index": 1, "delta": {"content": "b"}, "finish_reason": None}]}
    stream.feed(event(FINISH) + event(json.dumps(goes_on)))
    assert not stream.has_ended


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_of_the_server_ends_its_stream_and_is_no_token(error: str) -> None:
    stream = EventStream(OPENAI_STREAM)
    whole = event(content("a")) + event(content("b")) + event(error)
    assert stream.feed(whole) == whole
    assert stream.has_ended
    assert stream.error is not None
    assert stream.error.status in (500, 502)
    assert stream.error.message in error
    assert stream.estimate() == TokenUsage(completion_tokens=2, estimated=True)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_an_error_in_a_field_of_its_own_is_one_too(end: str) -> None:
    stream = EventStream(OPENAI_STREAM)
    error = f'error: {{"code": 500, "message": "out of memory"}}{end}{end}'.encode()
    whole = event(content("error: no"), end) + error + event(DONE, end)
    assert stream.feed(whole) == whole
    assert stream.error == AnswerError(500, "out of memory")
    assert stream.estimate() == TokenUsage(completion_tokens=1, estimated=True)


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        ('event: error\ndata: {"message": "too long", "code": 400}', AnswerError(400, "too long")),
        ('event: error\ndata: {"message": "out of memory"}', AnswerError(502, "out of memory")),
        ('data: {"message": "m", "error": null}\nevent:error', AnswerError(502, "m")),
        ('event: error\ndata: {"detail": "odd"}', AnswerError(502, '{"detail": "odd"}')),
        ("event: error\ndata: out of\ndata: memory", AnswerError(502, "out of\n memory")),
        ('event: error\ndata: "a text"', AnswerError(502, "a text")),
        ("event: error\ndata: [1]", AnswerError(502, "[1]")),
        ('event: error\ndata: {"error": {"code": 500, "message": "m"}}', AnswerError(500, "m")),
        ('data: {"type": "error", "code": "server_error", "message": "m"}', AnswerError(502, "m")),
        ('data: {"object":"error","message":"m","code":400}', AnswerError(400, "m")),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_an_event_that_is_called_an_error_is_one_whatever_its_data_are(
    lines: str, error: AnswerError, end: str
) -> None:
    stream = EventStream(OPENAI_STREAM)
    whole = event(content("a"), end) + (lines + "\n\n").replace("\n", end).encode()
    assert stream.feed(whole) == whole
    assert (stream.error, stream.has_ended) == (error, True)
    assert stream.estimate() == TokenUsage(completion_tokens=1, estimated=True)


def test_an_error_that_says_nothing_is_one_too() -> None:
    stream = EventStream(OPENAI_STREAM)
    stream.feed(event(content("a")) + b"event: error\nid: 1\n\n")
    assert stream.error is not None
    assert stream.error.message
    assert stream.estimate() == TokenUsage(completion_tokens=1, estimated=True)


@pytest.mark.parametrize("end", [b"", b"\n", b"\r", b"\n\n", b"\r\n\r\n"])
def test_an_error_that_is_sent_without_any_event_reaches_the_client_as_one(end: bytes) -> None:
    stream = EventStream(OPENAI_STREAM)
    first, error = event(content("a")), ERRORS[0].encode()
    sent = stream.feed(first + error + end) + stream.flush()
    assert sent == first + b"data: " + error + b"\n\n"
    assert stream.error == AnswerError(500, "out of memory")
    assert stream.has_ended
    assert stream.estimate() == TokenUsage(completion_tokens=1, estimated=True)


@pytest.mark.parametrize("end", ["\n", "\r"])
def test_an_error_of_many_lines_reaches_the_client_with_all_of_them(end: str) -> None:
    stream = EventStream(OPENAI_STREAM)
    error = json.dumps(json.loads(ERRORS[0]), indent=1).replace("\n", end).encode()
    sent = stream.feed(event(content("a")) + error) + stream.flush()
    lines = sent.removeprefix(event(content("a"))).splitlines()
    data = b"\n".join(line.removeprefix(b"data: ") for line in lines)
    assert json.loads(data) == json.loads(ERRORS[0])


@pytest.mark.parametrize("error", ERRORS)
def test_a_stream_that_failed_before_its_first_token_has_none(error: str) -> None:
    stream = EventStream(OPENAI_STREAM)
    stream.feed(event(error) + event(DONE))
    assert stream.estimate() is None


@pytest.mark.parametrize(
    "harmless",
    [
        content("a", error=None),
        content('{"error": {"message": "quoted"}}'),
        json.dumps({"choices": [{"delta": {"error": {"message": "deeper"}}}]}),
        json.dumps({"error": {}, "choices": []}),
        json.dumps({"choices": [{"delta": {"type": "error", "message": "deeper"}}]}),
        content("event: error\n\nerror: {}"),
        content("a", type="error_free") + "\nevent: errors",
        content("a") + "\nid: event: error",
        "[1]",
    ],
)
def test_what_only_looks_like_an_error_is_none(harmless: str) -> None:
    stream = EventStream(OPENAI_STREAM)
    stream.feed(event(harmless))
    assert stream.error is None


@pytest.mark.parametrize(
    "choices",
    [
        [],
        None,
        [{"index": 0, "delta": {}, "finish_reason": None}],
        [{"index": 0, "delta": {"content": ""}, "logprobs": None}],
        [{"index": 0, "text": "", "finish_reason": None}],
        {},
        "",
        0,
        False,
        [None],
        [[]],
        [{}],
        {"index": 0, "delta": {"content": ""}},
    ],
)
def test_a_usage_chunk_is_taken_out_whatever_its_choices_are(choices: Any) -> None:
    stream = EventStream(OPENAI_STREAM, strip_usage=True)
    assert stream.feed(event(usage_chunk(choices=choices))) == b""
    assert stream.usage() == TokenUsage(17, 0, 3)


@pytest.mark.parametrize(
    "choice",
    [
        {"index": 0, "delta": {"role": "assistant", "content": ""}},
        {"index": 0, "delta": {}, "finish_reason": "stop"},
        {"index": 0, "delta": {"content": "a"}},
        {"index": 0, "delta": {"tool_calls": [{"index": 0}]}},
        {"index": 0, "text": "a"},
        "odd",
        ["a"],
    ],
)
def test_a_chunk_that_says_something_stays_though_it_has_usage(choice: Any) -> None:
    stream = EventStream(OPENAI_STREAM, strip_usage=True)
    whole = event(usage_chunk(choices=[choice])) + event(usage_chunk(choices=choice))
    assert stream.feed(whole) == whole


def test_of_a_stream_of_another_kind_no_end_is_known() -> None:
    stream = EventStream(ANY_STREAM)
    stream.feed(event(FINISH) + event(DONE))
    assert (stream.done, stream.has_ended) == (False, False)
