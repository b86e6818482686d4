"""The cache of final hidden states: as good as the teacher, one matrix product away from its logits."""

from weakref import WeakValueDictionary

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from xxhash import xxh3_128

from minitron_nas.distillation.signals.folder import WHOLE, Share, SignalFolder, SignalPlace
from minitron_nas.distillation.signals.head import OutputHead
from minitron_nas.distillation.signals.targets import HiddenTargets
from minitron_nas.distillation.signals.teacher import OnlineTeacher
from minitron_nas.errors import CacheError
from minitron_nas.execution.device import pick_device
from minitron_nas.models.causal_lm import CausalLM
from minitron_nas.progress import Progress, silent
from minitron_nas.storage.shards import Bytes
from minitron_nas.text.tokens import PackedTokens

_WEIGHTS: WeakValueDictionary[tuple[str, torch.device], Tensor] = WeakValueDictionary()
"""Heads in use, by checksum: a training and a validation cache of one teacher hold one head in memory."""


class HiddenCache:
    """Final hidden states of one token stream, read a sequence at a time."""

    kind = "hidden_cache"

    def __init__(self, place: SignalPlace, device: torch.device | None = None) -> None:
        """Open a cache that `write_hidden_cache` wrote.

        Args:
            place: Where it lies, whose words it must hold, and over what.
            device: Where they are wanted; the process' own device by default.

        Raises:
            CacheError: If the cache is not whole, of something else, or its head is damaged.
        """
        folder = SignalFolder.open(place, self.kind)
        self._device = device or pick_device()
        self._read = folder.reader(self._device)
        self._dtype: torch.dtype = getattr(torch, folder.about["dtype"])
        self._hidden_size: int = folder.about["hidden_size"]
        parts = {name: _read_shared(folder, name, self._device) for name in folder.about["shared"]}
        scaling, softcap = folder.about["logits_scaling"], folder.about["softcap"]
        self.head = OutputHead(parts["head"], scaling, softcap, parts.get("bias"))

    def targets(self, indices: Tensor, tokens: PackedTokens) -> HiddenTargets:
        """Read the sequences' states.

        Args:
            indices: (batch,), positions of the sequences in the token stream.
            tokens: The sequences themselves, which need not be read.

        Raises:
            CacheError: If they are not what was written.
        """
        values = self._read(indices.tolist()).view(self._dtype)
        return HiddenTargets(values.view(-1, self._hidden_size).to(self._device, non_blocking=True), self.head)


@torch.no_grad()
def write_hidden_cache(
    model: CausalLM,
    place: SignalPlace,
    batch_sequences: int = 4,
    dtype: torch.dtype | None = None,
    share: Share = WHOLE,
    progress: Progress = silent,
) -> None:
    """Run the teacher once over a token stream and keep its final hidden states, or go on with that.

    Args:
        model: The teacher, on its device and in its compute dtype.
        place: Where, and over what; with the fingerprint of the model's checkpoint.
        batch_sequences: Sequences of one forward pass.
        dtype: Of the stored states: bfloat16 or float32; by default bfloat16 for a bfloat16 teacher,
            else float32, which lose nothing.
        share: Which of the shards are written, where several processes write at once.
        progress: Told about tokens.

    Raises:
        DiskSpaceError: If the disk cannot hold the cache.
        CacheError: If a shard reads back otherwise than it was written.
    """
    online = OnlineTeacher(model)
    weight = online.head.weight
    stored = dtype or (torch.bfloat16 if weight.dtype == torch.bfloat16 else torch.float32)
    hidden_size, shared = weight.shape[1], {"head": weight.cpu().contiguous()}
    if online.head.bias is not None:
        shared["bias"] = online.head.bias.cpu().contiguous()
    folder = SignalFolder.lay_out(
        place,
        HiddenCache.kind,
        place.tokens.input_ids.shape[1] * hidden_size * stored.itemsize,
        batch_sequences,
        shared=list(shared),
        dtype=str(stored).removeprefix("torch."),
        hidden_size=hidden_size,
        logits_scaling=online.head.scaling,
        softcap=online.head.softcap,
        checksums={name: _checksum(tensor) for name, tensor in shared.items()},
    )

    @torch.no_grad()
    def encode(indices: Tensor, batch: PackedTokens) -> Bytes:
        states = online.targets(indices, batch).hidden.to(stored).cpu().contiguous()
        records: Bytes = states.view(len(indices), -1).view(torch.uint8).numpy()
        return records

    folder.write(place.tokens, encode, shared, "the cache of the teacher's hidden states", share, progress)


def _read_shared(folder: SignalFolder, name: str, device: torch.device) -> Tensor:
    checksum, file = folder.about["checksums"][name], folder.tensor_file(name)
    weight = _WEIGHTS.get((checksum, device))
    if weight is None:
        try:
            weight = load_file(file)[name]
        except (OSError, KeyError, SafetensorError) as error:
            raise CacheError(f"{file} cannot be read ({error}); delete it and repeat the command") from None
        if _checksum(weight) != checksum:
            raise CacheError(f"{file} is not what was written there; delete it and repeat the command")
        weight = weight.to(device)
        _WEIGHTS[checksum, device] = weight
    return weight


def _checksum(weight: Tensor) -> str:
    digest = xxh3_128(f"{weight.dtype} {tuple(weight.shape)}".encode())
    digest.update(weight.view(torch.uint8).numpy().data)
    return digest.hexdigest()
