"""The folder of a cached teacher signal: what it is of, and one record for every sequence.

    about.json        the teacher, the token stream and the layout, with a checksum of its own
    *.safetensors     tensors that all sequences share, such as the output head
    00000.shard ...   the records

The folder is whole when all shards are there. A killed writer goes on at the first that is not.
Several writers at once have a share of the shards each; a second writer of the same share waits for
the first, and one of another cache for all of them. Readers need no lock: every file is whole or absent.
"""

import fcntl
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain, islice, starmap
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import save_file
from torch import Tensor
from xxhash import xxh3_64_intdigest

from minitron_nas.errors import CacheError
from minitron_nas.progress import Progress
from minitron_nas.storage.ahead import ReadAhead, made_ahead
from minitron_nas.storage.atomic import require_free_bytes, whole_file
from minitron_nas.storage.sealed import read_sealed, write_sealed
from minitron_nas.storage.shards import Bytes, Shards
from minitron_nas.text.tokens import PackedTokens

FORMAT = 2
"""A cache of another format is written again."""

_SHARD_BYTES = 64 * 2**20
_BATCHES_AHEAD = 2
_ABOUT = "about.json"
_LOCK = ".lock"


@dataclass(frozen=True, slots=True)
class Share:
    """What one of several writers of a cache writes: every so many shards one.

    Attributes:
        number: Which writer, from 0.
        count: How many there are.
    """

    number: int = 0
    count: int = 1

    def of(self, shards: Iterable[int]) -> list[int]:
        """Return the shards among these that are this writer's."""
        return [shard for shard in shards if shard % self.count == self.number]


WHOLE = Share()


@dataclass(frozen=True, slots=True)
class SignalPlace:
    """Where what one checkpoint says over one token stream is kept.

    Attributes:
        path: The folder.
        fingerprint: Of the checkpoint.
        tokens: The stream.
    """

    path: Path
    fingerprint: str
    tokens: PackedTokens

    def about(self, kind: str) -> dict[str, str]:
        """Return what a cache there is of, as its `about.json` has it.

        Args:
            kind: What its records hold.
        """
        return {"kind": kind, "teacher": self.fingerprint, "tokens": self.tokens.fingerprint}


@dataclass(frozen=True, slots=True)
class SignalFolder:
    """A cache on disk.

    Attributes:
        path: The folder.
        about: The content of its `about.json`, which every record's checksum covers.
    """

    path: Path
    about: Mapping[str, Any]

    @classmethod
    def lay_out(
        cls,
        place: SignalPlace,
        kind: str,
        record_bytes: int,
        batch_sequences: int,
        shared: Sequence[str],
        **reading: Any,
    ) -> Self:
        """Say what a cache will be, before anything is written.

        A shard holds whole batches, so that its bytes do not depend on where a writer went on.

        Args:
            place: The folder, who speaks and over what.
            kind: What the records hold.
            record_bytes: Bytes of one sequence.
            batch_sequences: Sequences of one of the teacher's forward passes.
            shared: Names of tensors that all sequences share.
            **reading: Plain values that are needed to read a record.
        """
        batches_per_shard = max(_SHARD_BYTES // (record_bytes * batch_sequences), 1)
        about = {
            "format": FORMAT,
            **place.about(kind),
            "num_sequences": place.tokens.num_sequences,
            "record_bytes": record_bytes,
            "batch_sequences": batch_sequences,
            "sequences_per_shard": batches_per_shard * batch_sequences,
            "shared": list(shared),
            **reading,
        }
        return cls(place.path, about)

    @classmethod
    def open(cls, place: SignalPlace, kind: str) -> Self:
        """Open a whole cache.

        Args:
            place: The folder, who must have spoken and over what.
            kind: What its records must hold.

        Raises:
            CacheError: If it is not whole, or of something else.
        """
        path, about = place.path, read_about(place.path)
        if about is None:
            raise CacheError(f"{path} holds no cache of what a teacher says; repeat the command that writes it")
        wanted = place.about(kind)
        differences = [f"{key} {about[key]}, not {wanted[key]}" for key in wanted if about[key] != wanted[key]]
        if differences:
            raise CacheError(f"{path} is a cache of {' and '.join(differences)}; delete it or name another folder")
        folder = cls(path, about)
        missing, files = folder.shards.missing(), folder.shards.files
        if missing:
            raise CacheError(
                f"{path} is not whole: {len(missing)} of {len(files)} shards are missing or cut short, the first of "
                f"them {files[missing[0]].name}; delete what is cut short and repeat the command, which goes on there"
            )
        return folder

    @property
    def shards(self) -> Shards:
        """The records."""
        about = self.about
        seed = xxh3_64_intdigest(json.dumps(about, sort_keys=True).encode())
        return Shards(self.path, about["num_sequences"], about["record_bytes"], about["sequences_per_shard"], seed)

    def tensor_file(self, name: str) -> Path:
        """Return the file of a tensor that all sequences share.

        Args:
            name: One of those that `about` lists as shared.
        """
        return self.path / f"{name}.safetensors"

    @property
    def files(self) -> list[Path]:
        """What must be there for the cache to be whole."""
        shared = [self.tensor_file(name) for name in self.about["shared"]]
        return [self.path / _ABOUT, *shared, *self.shards.files]

    @property
    def is_whole(self) -> bool:
        """Whether all is there and nothing is cut short."""
        return all(file.exists() for file in self.files) and not self.shards.missing()

    def reader(self, device: torch.device) -> ReadAhead[Tensor]:
        """Return what reads records, (num_records, record_bytes) uint8 on the CPU, with the next ones read ahead.

        Args:
            device: Where they go from there; for a GPU they lie in memory that it copies from by itself.
        """

        def read(records: Sequence[int]) -> Tensor:
            values = torch.from_numpy(self.shards.read(records))
            return values.pin_memory() if device.type == "cuda" else values

        return ReadAhead(read, self.shards.num_records)

    def write(
        self,
        tokens: PackedTokens,
        encode: Callable[[Tensor, PackedTokens], Bytes],
        shared: Mapping[str, Tensor],
        purpose: str,
        share: Share,
        progress: Progress,
    ) -> None:
        """Write what is missing of a share; a cache of something else in the same folder gives way.

        Args:
            tokens: The stream.
            encode: From a batch's indices and tokens to its records, (batch, record_bytes); it is called in a thread of
                its own.
            shared: Tensors that all sequences share, by name; on the CPU.
            purpose: Names the cache where the disk is short.
            share: Which of the shards.
            progress: Told about tokens of the share.

        Raises:
            DiskSpaceError: If the disk cannot hold it.
            CacheError: If a shard reads back otherwise than it was written.
        """
        own = self.path / f"{_LOCK}-{share.number}-of-{share.count}"
        with self._laid_out(shared, share, purpose), _held(own):
            self._require_room({}, share, purpose)
            shards = self.shards
            missing = share.of(shards.missing())
            size: int = self.about["batch_sequences"]
            length = tokens.input_ids.shape[1]
            total, left = (
                length * sum(len(shards.records(shard)) for shard in some)
                for some in (share.of(range(len(shards.files))), missing)
            )
            done = total - left

            def batches(shard: int) -> Iterator[tuple[Tensor, PackedTokens]]:
                return islice(tokens.batches(size, shards.records(shard).start), num_batches(shard))

            def num_batches(shard: int) -> int:
                return -(-len(shards.records(shard)) // size)

            def told(parts: Iterable[Bytes]) -> Iterator[Bytes]:
                nonlocal done
                for records in parts:
                    yield records
                    done += length * len(records)
                    progress(done, total)

            spoken = made_ahead(starmap(encode, chain.from_iterable(map(batches, missing))), _BATCHES_AHEAD)
            with closing(spoken):  # the teacher goes on while the disk writes, and reads back
                for shard in missing:
                    shards.write(shard, told(islice(spoken, num_batches(shard))))

    @contextmanager
    def _laid_out(self, shared: Mapping[str, Tensor], share: Share, purpose: str) -> Iterator[None]:
        """Hold the folder as a cache of this and nothing else, beside writers of other shares."""
        lock = self.path / _LOCK
        while True:
            with _held(lock, fcntl.LOCK_SH):
                if read_about(self.path) == self.about and all(self.tensor_file(name).exists() for name in shared):
                    yield
                    return
            with _held(lock):
                if read_about(self.path) != self.about:
                    _clear(self.path)
                absent = {name: tensor for name, tensor in shared.items() if not self.tensor_file(name).exists()}
                self._require_room(absent, share, purpose)
                for name, tensor in absent.items():
                    with whole_file(self.tensor_file(name)) as partial:
                        save_file({name: tensor}, partial)
                write_sealed(self.path / _ABOUT, self.about)

    def _require_room(self, shared: Mapping[str, Tensor], share: Share, purpose: str) -> None:
        """Refuse a disk that has no room for what is missing of a share, and for tensors that all share."""
        missing = sum(self.shards.num_bytes(shard) for shard in share.of(self.shards.missing()))
        require_free_bytes(self.path, missing + sum(tensor.nbytes for tensor in shared.values()), purpose)


def read_about(path: Path) -> dict[str, Any] | None:
    """Return what the cache in a folder is of, or None if there is none, or its `about.json` is not what was written.

    Args:
        path: The folder.
    """
    about = read_sealed(path / _ABOUT)
    return about if about is not None and about.get("format") == FORMAT else None


@contextmanager
def _held(lock: Path, how: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Hold a lock in a folder; others wait."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with open(lock, "w") as file:
        fcntl.flock(file, how)
        yield


def _clear(path: Path) -> None:
    """Remove what lies in a folder, first of all what says that it is a cache."""
    (path / _ABOUT).unlink(missing_ok=True)
    for file in path.iterdir():
        if not file.name.startswith(_LOCK):
            file.unlink()
