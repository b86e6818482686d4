"""GGUF files that are damaged or made to mislead: read, or refused by one of our errors; never anything else."""

import math
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minitron_nas.errors import MinitronNasError
from minitron_nas.models.gguf import described
from minitron_nas.models.gguf_config import FAMILIES
from minitron_nas.models.gguf_file import GgufFile, parts_of, reading

VALUES = np.arange(64, dtype=np.float32)
LENGTHS = st.sampled_from([0, 1, 2, 7, 255, 2**16, 2**31, 2**32, 2**40, 2**60, 2**63, 2**64 - 1])
WORTH = [
    None,
    True,
    0,
    -1,
    1,
    2,
    3,
    7,
    10**12,
    2**63,
    0.0,
    -1.0,
    1e30,
    math.nan,
    math.inf,
    "",
    "yarn",
    [],
    [1, 2],
    [[1]],
]
ODD: st.SearchStrategy[Any] = st.sampled_from(WORTH)
KEYS = {
    "block_count": 2,
    "context_length": 64,
    "embedding_length": 8,
    "feed_forward_length": 16,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.key_length": 2,
    "rope.dimension_count": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "attention.sliding_window": 0,
    "expert_count": 0,
    "rope.freq_base": 10000.0,
    "rope.scaling.factor": 1.0,
    "vocab_size": 32,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small file with values of every kind and two tensors of 32 bytes."""
    file = tmp_path_factory.mktemp("gguf") / "whole.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_uint32("llama.block_count", 2)
    writer.add_bool("a.flag", True)
    writer.add_array("a.words", ["one", "two", ""])
    writer.add_array("a.numbers", [1.0, 2.0, 3.0])
    writer.add_tensor("first", VALUES[:8].reshape(2, 4))
    writer.add_tensor("second", VALUES[8:16])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file.read_bytes()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "model.gguf"


@st.composite
def damages(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """Lengths, types, offsets or any bytes are others, at up to three places; some are missing."""
    places = draw(st.lists(st.tuples(st.floats(0, 1), st.one_of(LENGTHS, st.binary(max_size=8))), max_size=3))
    kept = draw(st.sampled_from([1.0, 1.0, 1.0, 0.0, 0.3, 0.9, 0.99]))

    def damage(content: bytes) -> bytes:
        header = content.index(b"second") + 40
        for where, new in places:
            written = struct.pack("<Q", new) if isinstance(new, int) else new
            place = 4 + int(where * (header - 4))
            content = content[:place] + written + content[place + len(written) :]
        return content[: max(4, int(kept * len(content)))]

    return damage


def read(content: bytes, file: Path) -> str:
    """Open a file and read its tensors; returns why it was refused."""
    file.write_bytes(content)
    try:
        opened = GgufFile.open(parts_of(file))
        with reading(file):
            assert all(tensor.values().nbytes <= 16 * len(content) for tensor in opened.tensors.values())
    except MinitronNasError as error:
        refusal = str(error)
    else:
        refusal = ""
    assert "\n" not in refusal
    return refusal


def test_the_whole_file_is_read(whole: bytes, file: Path) -> None:
    assert read(whole, file) == ""
    assert np.array_equal(GgufFile.open([file]).tensors["second"].values(), VALUES[8:16])


@settings(max_examples=200)
@given(damage=damages())
def test_a_damaged_file_is_read_or_refused_on_one_line(
    damage: Callable[[bytes], bytes], whole: bytes, file: Path
) -> None:
    read(damage(whole), file)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=20_000)
@given(damage=damages())
def test_many_damaged_files_are_read_or_refused(damage: Callable[[bytes], bytes], whole: bytes, file: Path) -> None:
    read(damage(whole), file)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (struct.pack("<IQ", 6, 3), struct.pack("<IQ", 6, 2**60), "says that 4,611,686,018,427,387,904 bytes follow"),
        (struct.pack("<Q", 7) + b"a.words", struct.pack("<Q", 2**64 - 1) + b"a.words", "bytes follow, and"),
        (struct.pack("<IQ", 6, 3), struct.pack("<IQ", 9, 3), "holds a value of type 9"),
        (struct.pack("<IQQ", 2, 4, 2), struct.pack("<IQQ", 2, 2**32, 2**32), "a tensor of 18,446,744,073,709,551,616"),
        (struct.pack("<IQQ", 2, 4, 2), struct.pack("<IQQ", 2**31, 4, 2), "a tensor of 2,147,483,648 dimensions"),
        (
            struct.pack("<IQ", 0, 32),
            struct.pack("<IQ", 0, 2**64 - 32),
            "at byte 18,446,744,073,709,551,584 of ",
        ),
        (struct.pack("<IQ", 0, 32), struct.pack("<IQ", 0, 0), "its tensors 'first' and 'second' share bytes"),
    ],
    ids=["array", "string", "nested", "elements", "dimensions", "offset", "overlap"],
)
def test_what_does_not_fit_is_said(whole: bytes, file: Path, old: bytes, new: bytes, message: str) -> None:
    assert whole.count(old) == 1
    assert message in read(whole.replace(old, new), file)


def described_file(keys: dict[str, Any], tensors: dict[str, Any], arch: str) -> str:
    said = {"general.architecture": arch, "tokenizer.ggml.tokens": 32} | {f"{arch}.{key}": keys[key] for key in keys}
    try:
        with reading(Path("tiny.gguf")):
            described(GgufFile(Path("tiny.gguf"), said, tensors))
    except MinitronNasError as error:
        refusal = str(error)
    else:
        refusal = ""
    assert "\n" not in refusal
    return refusal


@pytest.fixture(scope="module")
def tensors(whole: bytes, file: Path) -> dict[str, Any]:
    """Of a Llama of two layers; only their shapes are looked at."""
    file.write_bytes(whole)
    (one, *_) = GgufFile.open([file]).tensors.values()
    shapes = {"token_embd": (32, 8), "output_norm": (8,)}
    for layer in range(2):
        norms = {f"blk.{layer}.{name}": (8,) for name in ("attn_norm", "ffn_norm")}
        attention = {"attn_q": (8, 8), "attn_k": (4, 8), "attn_v": (4, 8), "attn_output": (8, 8)}
        ffn = {"ffn_gate": (16, 8), "ffn_up": (16, 8), "ffn_down": (8, 16)}
        shapes |= norms | {f"blk.{layer}.{name}": shape for name, shape in (attention | ffn).items()}
    return {f"{name}.weight": replace(one, shape=shape) for name, shape in shapes.items()}


def test_the_keys_as_they_should_be_are_taken(tensors: dict[str, Any]) -> None:
    assert described_file(KEYS, tensors, "llama") == ""


@settings(max_examples=150)
@given(
    changes=st.dictionaries(st.sampled_from(sorted(KEYS)), ODD, min_size=1, max_size=2),
    arch=st.sampled_from(sorted(FAMILIES)),
)
def test_odd_values_of_keys_are_taken_or_refused_on_one_line(
    changes: dict[str, Any], arch: str, tensors: dict[str, Any]
) -> None:
    described_file(KEYS | changes, tensors, arch)
