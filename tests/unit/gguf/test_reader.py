"""The header of a GGUF is read, whoever wrote the file."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manager.gguf import GgufError, Header, read_header, reader
from manager.gguf.ggml import FILE_TYPES, TYPES
from manager.gguf.reader import MAX_TENSORS, Skipped
from tests.support.gguf_files import Type, write_gguf, write_model

ENTRIES = {"llama.block_count": 3, "general.name": "A ü model", "llama.per_layer": [1, 2, 3]}
TENSORS = [("token_embd.weight", (64, 10), Type.Q8_0), ("norm.weight", (64,), Type.F32)]


def header_of(content: bytes, path: Path) -> Header:
    path.write_bytes(content)
    return read_header(path)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("good") / "good.gguf"
    return write_gguf(path, "llama", ENTRIES, TENSORS).read_bytes()


@pytest.mark.parametrize("big_endian", [False, True])
def test_what_the_gguf_package_writes_is_read(tmp_path: Path, big_endian: bool) -> None:
    path = write_gguf(tmp_path / "a.gguf", "llama", ENTRIES, TENSORS, big_endian=big_endian)
    header = read_header(path)
    assert header.metadata == {
        "general.architecture": "llama",
        "llama.block_count": 3,
        "general.name": "A ü model",
        "llama.per_layer": (1, 2, 3),
    }
    assert [(each.name, each.shape, each.nbytes) for each in header.tensors] == [
        ("token_embd.weight", (64, 10), 2 * 34 * 10),
        ("norm.weight", (64,), 256),
    ]
    assert header.size == path.stat().st_size


def test_of_a_vocabulary_only_the_length_is_kept(tmp_path: Path) -> None:
    header = read_header(write_model(tmp_path / "a.gguf", tokens=5000))
    assert header.metadata["tokenizer.ggml.tokens"] == Skipped(5000)
    assert header.metadata["tokenizer.ggml.scores"] == Skipped(5000)
    assert header.metadata["tokenizer.ggml.eos_token_id"] == 2


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf", "llama", {"general.name": "one"}, TENSORS)
    assert read_header(path).metadata["general.name"] == "one"
    write_gguf(path, "llama", {"general.name": "another"}, TENSORS)
    assert read_header(path).metadata["general.name"] == "another"


def test_the_tables_agree_with_those_of_the_gguf_package() -> None:
    sizes = {int(kind): (kind.name, *each) for kind, each in gguf.GGML_QUANT_SIZES.items()}
    for number, each in TYPES.items():
        assert (each.name, each.block, each.block_bytes) == sizes[number]
    for number, name in FILE_TYPES.items():
        assert gguf.LlamaFileType(number).name.partition("_")[2] == name


def test_a_tensor_of_a_type_to_come_ends_where_the_next_one_begins(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf", "llama", {}, TENSORS)
    content = path.read_bytes()
    at = content.index(b"token_embd.weight") + 17 + 4 + 16
    header = header_of(
        content[:at] + struct.pack("<I", 99) + content[at + 4 :], tmp_path / "b.gguf"
    )
    assert header.tensors[0].type == 99
    assert header.tensors[0].nbytes == header.tensors[1].offset


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not a GGUF"),
        (b"PK\x03\x04" + bytes(64), "not a GGUF"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
        (b"GGUF" + struct.pack("<IQQ", 3, MAX_TENSORS + 1, 0), "tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63), "metadata entries"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + struct.pack("<Q", 2**62), "tensor name"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**62), "key"),
    ],
    ids=["empty", "a zip", "version 1", "tensors", "entries", "a tensor's name", "a key"],
)
def test_what_is_no_model_is_named_as_such(tmp_path: Path, content: bytes, says: str) -> None:
    with pytest.raises(GgufError, match=says) as error:
        header_of(content, tmp_path / "bad.gguf")
    assert str(tmp_path / "bad.gguf") in str(error.value)


def entry(kind: int, value: bytes) -> bytes:
    """A file with one entry, of this type."""
    return (
        b"GGUF"
        + struct.pack("<IQQ", 3, 0, 1)
        + struct.pack("<Q", 1)
        + b"k"
        + struct.pack("<I", kind)
        + value
    )


@pytest.mark.parametrize(
    "content",
    [
        entry(8, struct.pack("<Q", 2**64 - 1)),
        entry(9, struct.pack("<IQ", 8, 2**64 - 1)),
        entry(9, struct.pack("<IQ", 8, 2) + struct.pack("<QQ", 2**64 - 1, 0)),
        entry(9, struct.pack("<IQ", 10, 2**61)),
        entry(9, struct.pack("<IQ", 0, 2**40)),
    ],
    ids=["a text", "texts", "a text in an array", "numbers", "bytes"],
)
def test_a_length_that_lies_takes_no_memory(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(GgufError, match="cut off"):
        header_of(content, tmp_path / "bad.gguf")


@pytest.mark.parametrize(
    ("name", "value"),
    [("k" * 900, 1), ("k", "\U0001f600" * 300), ("k", [1] * 100)],
    ids=["keys", "texts", "numbers"],
)
def test_what_is_kept_of_a_header_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: Any
) -> None:
    path = write_gguf(tmp_path / "a.gguf", "llama", {f"{name}{at}": value for at in range(20)}, [])
    assert 20_000 < read_header(path).kept_bytes < 100_000
    monkeypatch.setattr(reader, "MAX_KEPT_BYTES", 10_000)
    os.utime(path, (0, 0))
    with pytest.raises(GgufError, match="more names and values than any model"):
        read_header(path)


def test_the_tensors_of_a_header_count_as_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_gguf(tmp_path / "a.gguf", "llama", {}, TENSORS)
    monkeypatch.setattr(reader, "MAX_KEPT_BYTES", 1000)
    with pytest.raises(GgufError, match="more names and values than any model"):
        read_header(path)


def test_no_more_headers_are_kept_than_there_is_memory_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (write_gguf(tmp_path / f"{name}.gguf", "llama", {}, TENSORS) for name in "ab")
    monkeypatch.setattr(reader, "MAX_CACHED_BYTES", int(1.5 * read_header(one).kept_bytes))
    first = read_header(one)
    assert read_header(one) is first
    read_header(other)
    assert read_header(one) is not first


def test_arrays_in_arrays_are_refused_at_the_first(tmp_path: Path) -> None:
    nested = struct.pack("<IQ", 9, 1) * 100_000
    with pytest.raises(GgufError, match="unknown type 9"):
        header_of(entry(9, nested), tmp_path / "bad.gguf")


def test_only_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.gguf")
    for path in (tmp_path / "fifo.gguf", tmp_path, Path("/dev/zero")):
        with pytest.raises(GgufError, match="not a regular file"):
            read_header(path)
    with pytest.raises(GgufError, match="No such file"):
        read_header(tmp_path / "none.gguf")
    with pytest.raises(GgufError, match="null"):
        read_header(tmp_path / "a\0b.gguf")


def test_a_file_cut_off_anywhere_is_named_as_such(good: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    for length in range(len(good)):
        with pytest.raises(GgufError, match=r"cut off|not a GGUF"):
            header_of(good[:length], path)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=8))
def test_damaged_bytes_are_an_error_or_a_header(
    good: bytes, tmp_path: Path, changes: list[tuple[int, int]]
) -> None:
    content = bytearray(good)
    for at, value in changes:
        content[at % len(content)] = value
    try:
        header = header_of(bytes(content), tmp_path / "damaged.gguf")
    except GgufError:
        return
    assert len(header.tensors) <= MAX_TENSORS
