"""An answer on its way: head, framing, events, and the loop that carries many.

Nothing heavy is imported here: each relay process imports this package and little else.
"""

from manager.streams.answer_head import (
    HOP_BY_HOP,
    AnswerHead,
    ClientHead,
    Headers,
    NotHttp,
    names_in,
    read_head,
)
from manager.streams.chunked import ChunkedDecoder, NotChunked
from manager.streams.event_stream import EventStream, data_of, error_in_event
from manager.streams.messages import MessageReader, encode
from manager.streams.relay_loop import RelayLoop
from manager.streams.relayed_exchange import AFTER_DONE_SECONDS, MAX_WHOLE

__all__ = [
    "AFTER_DONE_SECONDS",
    "HOP_BY_HOP",
    "MAX_WHOLE",
    "AnswerHead",
    "ChunkedDecoder",
    "ClientHead",
    "EventStream",
    "Headers",
    "MessageReader",
    "NotChunked",
    "NotHttp",
    "RelayLoop",
    "data_of",
    "encode",
    "error_in_event",
    "names_in",
    "read_head",
]
