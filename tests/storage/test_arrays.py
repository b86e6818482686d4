"""Arrays written before their length is known: what comes back, in which format, and what a failure leaves."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from minitron_nas.errors import CheckpointError
from minitron_nas.storage.arrays import map_arrays, write_arrays

ROWS = {"a": ((2,), np.dtype(np.uint16)), "b": ((), np.dtype(np.int64))}


def blocks_of(*sizes):
    start = 0
    for size in sizes:
        numbers = np.arange(start, start + size)
        yield {"a": np.stack([numbers, numbers + 1], axis=1).astype(np.uint16), "b": numbers * 10**10}
        start += size


@pytest.mark.parametrize("sizes", [(), (3,), (2, 0, 5, 1)])
def test_blocks_of_rows_come_back_as_whole_arrays(tmp_path, sizes):
    write_arrays(tmp_path / "x.safetensors", blocks_of(*sizes), ROWS, lambda: {"made": "here"})
    arrays, about = map_arrays(tmp_path / "x.safetensors")
    numbers = np.arange(sum(sizes))
    assert about == {"made": "here"}
    assert {name: (array.dtype, array.shape) for name, array in arrays.items()} == {
        "a": (np.uint16, (len(numbers), 2)),
        "b": (np.int64, (len(numbers),)),
    }
    assert arrays["a"].tolist() == [[n, n + 1] for n in numbers.tolist()]
    assert arrays["b"].tolist() == [n * 10**10 for n in numbers.tolist()]
    for name, array in load_file(tmp_path / "x.safetensors").items():
        assert np.array_equal(array, arrays[name])


def test_a_file_that_safetensors_wrote_is_mapped_too(tmp_path):
    save_file({"a": np.arange(6, dtype=np.int32).reshape(2, 3)}, tmp_path / "x.safetensors")
    arrays, about = map_arrays(tmp_path / "x.safetensors")
    assert (arrays["a"].tolist(), about) == ([[0, 1, 2], [3, 4, 5]], {})


def test_a_type_that_is_never_written_is_refused(tmp_path):
    save_file({"a": np.ones(3, dtype=np.float32)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"x\.safetensors holds 'a' as F32"):
        map_arrays(tmp_path / "x.safetensors")


def test_metadata_is_asked_for_when_all_rows_are_written(tmp_path):
    seen = []

    def counted():
        for block in blocks_of(2, 3):
            seen.append(len(block["b"]))
            yield block

    write_arrays(tmp_path / "x.safetensors", counted(), ROWS, lambda: {"rows": str(sum(seen))})
    assert map_arrays(tmp_path / "x.safetensors")[1] == {"rows": "5"}


def test_a_failure_leaves_neither_the_file_nor_a_part_of_it(tmp_path):
    def failing():
        yield from blocks_of(2)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_arrays(tmp_path / "x.safetensors", failing(), ROWS, dict)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_cut_short_is_refused(tmp_path):
    write_arrays(tmp_path / "x.safetensors", blocks_of(4), ROWS, dict)
    content = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match="is cut short"):
        map_arrays(tmp_path / "x.safetensors")
