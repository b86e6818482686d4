"""How much text there is, and how much disk reading it takes."""

import bz2
import gzip
import lzma
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from minitron_nas.errors import DataError
from minitron_nas.text.settings import TextSettings
from minitron_nas.text.unpacked import text_bytes, unpacked_bytes

TEXT = TextSettings()
PROSE = b"The result of the call is the value of the expression.\n" * 1000


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as packed:
        packed.write(content)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("suffix", "pack"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress), ("zst", zstd)]
)
def test_a_compressed_file_takes_what_it_unpacks_to(
    tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    file = tmp_path / f"a.txt.{suffix}"
    file.write_bytes(pack(PROSE))
    assert unpacked_bytes(str(file), TEXT) == text_bytes(str(file), TEXT) == len(PROSE)


def test_a_large_file_is_judged_by_its_beginning(tmp_path: Path) -> None:
    file, words = tmp_path / "a.txt.gz", random.Random(0).choices(["one", "other", "third", "\n"], k=2_500_000)
    content = " ".join(words).encode()
    assert len(content) > 10 << 20
    file.write_bytes(gzip.compress(content, 1))
    assert unpacked_bytes(str(file), TEXT) == pytest.approx(len(content), rel=0.05)


def test_plain_files_are_read_as_they_lie(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(PROSE)
    (tmp_path / "b.txt").write_bytes(PROSE)
    assert unpacked_bytes(str(tmp_path), TEXT) == 0
    assert text_bytes(str(tmp_path), TEXT) == 2 * len(PROSE)


def test_of_parquet_the_column_that_is_read_is_copied(tmp_path: Path) -> None:
    file, rows = tmp_path / "a.parquet", [f"document {number} " * 100 for number in range(200)]
    pq.write_table(pa.table({"text": rows, "noise": [str(n) * 5000 for n in range(200)]}), file)
    size = sum(map(len, rows))
    assert unpacked_bytes(str(file), TEXT) == pytest.approx(size, rel=0.05)
    assert text_bytes(str(file), TEXT) == pytest.approx(size, rel=0.05)


def test_each_source_of_a_blend_counts(tmp_path: Path) -> None:
    for name in ("a.txt.gz", "b.txt.gz"):
        (tmp_path / name).write_bytes(gzip.compress(PROSE))
    blend = {str(tmp_path / "a.txt.gz"): 0.9, str(tmp_path / "b.txt.gz"): 0.1}
    assert unpacked_bytes(blend, TEXT) == 2 * len(PROSE)


def test_how_much_a_hub_dataset_holds_is_not_known(tmp_path: Path) -> None:
    assert text_bytes("owner/name", TEXT) is None
    assert unpacked_bytes("owner/name", TEXT) == 0


def test_what_is_broken_counts_nothing_here_and_what_is_missing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(b"no gzip")
    assert unpacked_bytes(str(tmp_path / "a.txt.gz"), TEXT) == 0
    with pytest.raises(DataError, match="no file matches"):
        unpacked_bytes(str(tmp_path / "b.txt.gz"), TEXT)
