"""Our reader of safetensors against the library's own, over files that are damaged or made to mislead."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize

from minitron_nas.errors import CheckpointError
from minitron_nas.storage.weights import file_headers

SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I16": 2, "U8": 1, "BOOL": 1, "F8_E4M3": 1}
NAMES = st.sampled_from(["a", "b", "model.norm.weight", "é", "", "__metadata", "a\n", 'quo"te'])
ODD: st.SearchStrategy[Any] = st.one_of(
    st.integers(-3, 40),
    st.sampled_from(
        [2**31, 2**63, 2**64 - 1, 2**64, 10**30, 1.0, 0.5, -0.0, None, True, "F32", "BF16", "F4", "", [], {}]
    ),
    st.lists(st.integers(-1, 12), max_size=3),
)


@st.composite
def whole_files(draw: st.DrawFn) -> tuple[dict[str, Any], bytes]:
    """Headers that are right, and the data that belongs to them."""
    header: dict[str, Any] = {}
    begin = 0
    for name in draw(st.lists(NAMES, unique=True, max_size=4)):
        dtype = draw(st.sampled_from(sorted(SIZES)))
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        size = SIZES[dtype]
        for length in shape:
            size *= length
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, begin + size]}
        begin += size
    if draw(st.booleans()):
        header["__metadata__"] = draw(st.dictionaries(st.text(max_size=2), st.text(max_size=2), max_size=2))
    return header, draw(st.binary(min_size=begin, max_size=begin))


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """Files of which some are whole and most are not."""
    header, data = draw(whole_files())
    for _ in range(draw(st.integers(0, 2))):
        if not header:
            break
        entry = header[draw(st.sampled_from(sorted(header)))]
        change = draw(st.sampled_from(["value", "number", "drop", "add", "copy"]))
        if change == "copy":
            header[draw(NAMES)] = json.loads(json.dumps(entry))
        elif isinstance(entry, dict) and entry:
            key = draw(st.sampled_from(sorted(entry)))
            if change == "value":
                entry[key] = draw(ODD)
            elif change == "number" and isinstance(entry[key], list) and entry[key]:
                entry[key][draw(st.integers(0, len(entry[key]) - 1))] = draw(ODD)
            elif change == "drop":
                del entry[key]
            elif change == "add":
                entry[draw(st.sampled_from(["dtype ", "extra"]))] = draw(ODD)
    text = json.dumps(header, ensure_ascii=draw(st.booleans())).encode()
    text += draw(st.sampled_from([b"", b" ", b"\n", b"\0", b"x"]))
    if draw(st.integers(0, 3)) == 0 and text:
        place = draw(st.integers(0, len(text) - 1))
        text = text[:place] + draw(st.binary(max_size=2)) + text[place + draw(st.integers(0, 2)) :]
    length = len(text) + draw(st.sampled_from([0, 0, 0, 0, 0, 0, -1, 1, 8, 2**40]))
    cut = draw(st.sampled_from([0, 0, 0, 0, 1, 5]))
    content = struct.pack("<Q", length % 2**64) + text + data + draw(st.sampled_from([b"", b"", b"", b"\0", b"1234"]))
    return content[: len(content) - cut]


def compare(content: bytes, file: Path) -> bool:
    """Hold our reader to the library's over one file; returns whether it was accepted."""
    file.write_bytes(content)
    try:
        wanted = {
            name: (list(info["shape"]), info["dtype"], bytes(info["data"])) for name, info in deserialize(content)
        }
    except SafetensorError:
        wanted = None
    try:
        headers = file_headers(file)
    except CheckpointError as error:
        refused = str(error)
    else:
        refused = ""
    if refused:  # the library takes the second of two tensors of one name
        assert wanted is None or "twice" in refused, content
        return False
    found = {
        name: (list(header.shape), header.dtype, content[header.offset : header.offset + header.num_bytes])
        for name, header in headers.items()
    }
    assert found == wanted, content
    return True


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "model.safetensors"


@settings(max_examples=200)
@given(content=files())
def test_our_reader_takes_what_the_library_takes_and_reads_the_same(content: bytes, file: Path) -> None:
    compare(content, file)


@given(whole=whole_files())
def test_whole_files_are_taken(whole: tuple[dict[str, Any], bytes], file: Path) -> None:
    text = json.dumps(whole[0]).encode()
    assert compare(struct.pack("<Q", len(text)) + text + whole[1], file)


@pytest.mark.slow
@settings(max_examples=3_000)
@given(content=files())
def test_our_reader_takes_what_the_library_takes_over_many_files(content: bytes, file: Path) -> None:
    compare(content, file)
