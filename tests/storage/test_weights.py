import json
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from minitron_nas.errors import CheckpointError
from minitron_nas.memory import parse_memory
from minitron_nas.storage import weights
from minitron_nas.storage.weights import (
    float_rows,
    in_threads,
    read_headers,
    read_rows,
    row_blocks,
    safetensors_header,
    sample_bytes,
    weight_files,
)

TENSORS = {
    "embed.weight": torch.arange(12, dtype=torch.float32).reshape(4, 3),
    "norm.weight": torch.ones(3, dtype=torch.bfloat16),
    "steps": torch.tensor([1, 2, 3], dtype=torch.int16),
}


def single(folder: Path) -> Path:
    save_file(TENSORS, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def sharded(folder: Path) -> Path:
    weight_map = {}
    for number, (name, tensor) in enumerate(TENSORS.items(), start=1):
        weight_map[name] = f"model-0000{number}-of-00003.safetensors"
        save_file({name: tensor}, folder / weight_map[name])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


both = pytest.mark.parametrize("layout", [single, sharded])


def test_a_folder_has_the_files_that_its_index_names(tmp_path: Path) -> None:
    sharded(tmp_path)
    save_file(TENSORS, tmp_path / "model-00009-of-00009.safetensors")
    assert [file.name for file in weight_files(tmp_path)] == [
        f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)
    ]


def test_the_single_file_goes_before_any_index_as_in_transformers(tmp_path: Path) -> None:
    assert weight_files(single(sharded(tmp_path))) == [tmp_path / "model.safetensors"]


def test_a_folder_without_index_has_the_single_file(tmp_path: Path) -> None:
    assert weight_files(single(tmp_path)) == [tmp_path / "model.safetensors"]


@both
def test_headers_tell_shape_type_and_bytes(tmp_path: Path, layout: object) -> None:
    headers = read_headers(layout(tmp_path))
    assert {name: (header.shape, header.dtype, header.num_bytes) for name, header in headers.items()} == {
        "embed.weight": ((4, 3), "F32", 48),
        "norm.weight": ((3,), "BF16", 6),
        "steps": ((3,), "I16", 6),
    }


@both
def test_rows_are_read_to_the_bit(tmp_path: Path, layout: object) -> None:
    headers = read_headers(layout(tmp_path))
    for name, tensor in TENSORS.items():
        bits = torch.from_numpy(read_rows(headers[name], 0, len(tensor)))
        assert torch.equal(bits.view(tensor.dtype), tensor)
    assert read_rows(headers["embed.weight"], 1, 3).view("f4").tolist() == [[3, 4, 5], [6, 7, 8]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rows_are_read_as_numbers(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = torch.linspace(-3, 3, 12, dtype=torch.float64).reshape(4, 3).to(dtype)
    save_file({"weight": tensor}, tmp_path / "model.safetensors")
    (header,) = read_headers(tmp_path).values()
    assert torch.equal(torch.from_numpy(float_rows(header, 1, 3)).double(), tensor[1:3].double())


def test_blocks_cover_every_row_once_and_stay_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "BLOCK_BYTES", 30)
    header = read_headers(single(tmp_path))["embed.weight"]
    assert list(row_blocks(header)) == [(0, 2), (2, 4)]
    monkeypatch.setattr(weights, "BLOCK_BYTES", 1)
    assert list(row_blocks(header)) == [(0, 1), (1, 2), (2, 3), (3, 4)]


def test_a_sample_is_a_tensors_beginning_middle_and_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = read_headers(single(tmp_path))["embed.weight"]
    data = TENSORS["embed.weight"].numpy().tobytes()
    assert list(sample_bytes(header)) == [data]
    monkeypatch.setattr(weights, "_SAMPLE_BYTES", 4)
    assert list(sample_bytes(header)) == [data[:4], data[22:26], data[-4:]]


def test_threads_give_results_in_the_items_order_and_pass_an_error_on() -> None:
    assert list(in_threads(lambda item: item * item, range(100))) == [item * item for item in range(100)]
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda item: 1 // (item - 50), range(100)))


@pytest.mark.parametrize(("memory", "threads"), [("300MB", 1), ("1200MB", 2), ("64GB", 16)])
def test_where_memory_is_little_so_are_the_threads(monkeypatch: pytest.MonkeyPatch, memory: str, threads: int) -> None:
    monkeypatch.setattr(weights.os, "cpu_count", lambda: 32)
    monkeypatch.setattr(weights, "available_memory", lambda: parse_memory(memory))
    asked = list[int]()

    class Pool(ThreadPoolExecutor):
        def __init__(self, workers: int) -> None:
            asked.append(workers)
            super().__init__(workers)

    monkeypatch.setattr(weights, "ThreadPoolExecutor", Pool)
    assert list(in_threads(str, range(3))) == ["0", "1", "2"]
    assert asked == [threads]


def test_a_header_that_is_written_is_read_by_safetensors(tmp_path: Path) -> None:
    sizes = [(name, tensor.numel() * tensor.element_size()) for name, tensor in TENSORS.items()]
    dtypes = {"embed.weight": "F32", "norm.weight": "BF16", "steps": "I16"}
    header = safetensors_header((name, dtypes[name], tuple(TENSORS[name].shape), size) for name, size in sizes)
    data = b"".join(tensor.view(torch.uint8).numpy().tobytes() for tensor in TENSORS.values())
    (tmp_path / "model.safetensors").write_bytes(header + data)
    found = load_file(tmp_path / "model.safetensors")
    assert len(header) % 8 == 0
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(
        CheckpointError, match=r"holds no safetensors weights, but pytorch_model\.bin; load the model in"
    ):
        weight_files(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    (sharded(tmp_path) / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks model-00002-of-00003\.safetensors, which its index names"):
        read_headers(tmp_path)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "is empty"),
        ('{"weight_map": {"a"', "is not JSON"),
        ("{}", "is no safetensors index, or is cut short; copy it"),
        ('{"weight_map": {}}', "is no safetensors index"),
        ('{"weight_map": ["a"]}', "is no safetensors index"),
        ('{"weight_map": {"a": "../b.safetensors"}}', r"names '\.\./b\.safetensors', which is no file inside"),
        ('{"weight_map": {"a": "/b.safetensors"}}', "names '/b"),
        ('{"weight_map": {"a": "inner/../../b"}}', "names 'inner"),
        ('{"weight_map": {"a": "b\\\\c"}}', "names 'b"),
        ('{"weight_map": {"a": 3, "b": "c"}}', "names 3"),
        ('{"weight_map": {"a": ["b"]}}', r"names \['b'\]"),
        ('{"weight_map": {"a": ""}}', "names ''"),
        ("[" * 100_000, "nests deeper than 64 levels"),
        ('{"weight_map":' * 70 + "{}" + "}" * 70, "nests deeper than 64 levels"),
        ("<!DOCTYPE html>", "is a web page"),
    ],
)
def test_an_index_that_cannot_be_meant_is_refused(tmp_path: Path, text: str, fault: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=rf"index\.json {fault}"):
        weight_files(tmp_path)


def test_a_tensor_in_two_shards_is_refused_with_both(tmp_path: Path) -> None:
    sharded(tmp_path)
    save_file(TENSORS, tmp_path / "model-00003-of-00003.safetensors")
    with pytest.raises(
        CheckpointError, match=r"model-00001-of-00003\.safetensors and model-00003.* both hold tensor 'emb"
    ):
        read_headers(tmp_path)


@pytest.mark.parametrize(("more", "wrong"), [(-1, "cut short"), (2, "longer than its header says")])
def test_a_file_of_another_size_than_its_header_says_is_refused_with_both(
    tmp_path: Path, more: int, wrong: str
) -> None:
    path = single(tmp_path) / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes((whole + b"  ")[: len(whole) + more])
    message = rf"is {wrong} \({len(whole) + more} bytes instead of {len(whole)}\); copy it again$"
    with pytest.raises(CheckpointError, match=message):
        read_headers(tmp_path)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "is empty"),
        (b"\x01\x02", "is not a safetensors file, or is cut short"),
        (struct.pack("<Q", 100) + b'{"a": {"dtype"', "is not a safetensors file, or is cut short"),
        (struct.pack("<Q", 2**63) + b"{}", "is not a safetensors file"),
        (struct.pack("<Q", 100_000_001) + b"{}", "is not a safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "is a Git LFS pointer"),
        (b"\xef\xbb\xbf\n<!DOCTYPE HTML><title>Sign in</title>", "is a web page"),
        (b"Entry not found", "is what a server says"),
        (b"GGUF\x03\0\0\0", "is a GGUF file"),
        (b"PK\x03\x04", "is a file of torch.save"),
        (b"\x1f\x8b\x08", "is compressed"),
        (b"\x89HDF\r\n", "is an HDF5 file"),
    ],
)
def test_a_file_that_is_no_safetensors_file_is_refused_by_what_it_is(
    tmp_path: Path, content: bytes, fault: str
) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"model\.safetensors {fault}"):
        read_headers(tmp_path)


FLOATS = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "fault"),
    [
        ({"a": FLOATS, "b": FLOATS}, "tensors 'a' and 'b' share bytes"),
        ({"a": FLOATS | {"data_offsets": [4, 12]}}, "is cut short"),
        ({"a": FLOATS | {"dtype": "BF16"}}, "is refused by safetensors"),
        ({"a": FLOATS | {"dtype": "F64"}}, "is refused by safetensors"),
        ({"a": FLOATS | {"dtype": "X8"}}, "is refused by safetensors"),
        ({"a": FLOATS | {"dtype": None}}, "is refused by safetensors"),
        ({"a": FLOATS | {"shape": [2.0]}}, "is refused by safetensors"),
        ({"a": FLOATS | {"shape": [-2]}}, "is refused by safetensors"),
        ({"a": FLOATS | {"shape": [2**63, 2]}}, "is refused by safetensors"),
        ({"a": FLOATS | {"data_offsets": [0]}}, "is not a safetensors file"),
        ({"a": FLOATS | {"data_offsets": [8, 0]}}, "is longer than|refused by safetensors"),
        ({"a": {"dtype": "F32"}}, "is not a safetensors file"),
        ({"a": None}, "is not a safetensors file"),
        ({"a": ["F32", [2], [0, 8]]}, "is not a safetensors file"),
        ([FLOATS], "is not a safetensors file"),
        (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}' + b' , "b": ' + b"[" * 5000, "is not a"),
        (
            b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "a": %s}' % json.dumps(FLOATS).encode(),
            "names tensor 'a' twice",
        ),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, header: object, fault: str) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(CheckpointError, match=rf"model\.safetensors:? ({fault})"):
        read_headers(tmp_path)


def test_a_header_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", 4 << 30))
        file.truncate(5 << 30)  # without taking room on the disk
    with pytest.raises(CheckpointError, match="header too large"):
        read_headers(tmp_path)


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        (["adapter_config.json", "adapter_model.safetensors"], r"holds an adapter \(LoRA .*merge_and_unload"),
        (["a.Q4_K.gguf", "b.gguf"], r"holds GGUF files \(a\.Q4_K\.gguf, b\.gguf\)"),
        (["model.fp16.safetensors"], r"holds model\.fp16\.safetensors, but no"),
        (["consolidated.safetensors", "params.json"], r"holds consolidated\.safetensors, but no"),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], "holds model-00001.*, but no"),
        (["checkpoint-9/config.json", "checkpoint-9/model.safetensors"], r"no model itself, .* \(checkpoint-9\)"),
        (["pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin"], "no safetensors weights, but pytorch"),
        (["tf_model.h5"], r"no safetensors weights, but tf_model\.h5"),
        (["x1.ckpt", "x2.ckpt", "x3.ckpt", "x4.ckpt"], r"x1\.ckpt, x2\.ckpt, x3\.ckpt and 1 more"),
        (["README.md"], "holds no safetensors weights; load"),
    ],
)
def test_a_folder_without_weights_is_refused_by_what_it_holds(tmp_path: Path, names: list[str], fault: str) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=fault):
        weight_files(tmp_path)


def test_a_link_to_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "blobs")
    with pytest.raises(CheckpointError, match=r"holds links to files that are gone \(model\.safetensors\)"):
        weight_files(tmp_path)


def test_a_stack_that_lies_the_other_way_round_is_read_as_if_it_did_not(tmp_path: Path) -> None:
    stack = torch.arange(2 * 4 * 6, dtype=torch.float32).reshape(2, 4, 6)
    save_file({"stack": stack}, tmp_path / "model.safetensors")
    turned = read_headers(tmp_path)["stack"].turned()
    assert (turned.shape, turned.num_bytes) == ((2, 6, 4), stack.nbytes)
    ups = turned.slice(1).rows(3, 6)
    assert (ups.shape, ups.num_bytes, ups.num_rows) == ((3, 4), 4 * 12, 3)
    assert torch.equal(torch.from_numpy(float_rows(ups, 0, 3)), stack[1].T[3:])
    assert torch.equal(torch.from_numpy(float_rows(ups, 1, 2)), stack[1].T[4:5])
    assert torch.equal(torch.from_numpy(float_rows(turned.slice(0), 0, 6)), stack[0].T)


def test_of_what_lies_the_other_way_round_all_between_is_sampled(tmp_path: Path) -> None:
    stack = torch.arange(2 * 4 * 6, dtype=torch.float32).reshape(2, 4, 6)
    save_file({"stack": stack}, tmp_path / "model.safetensors")
    gates = read_headers(tmp_path)["stack"].turned().slice(1).rows(0, 3)
    (sample,) = sample_bytes(gates)
    assert sample == stack[1].numpy().tobytes()[: -3 * 4]
