"""Teacher signals: where the teacher's final hidden states come from during training.

The teacher's logits are one matrix product away from its final hidden states, so a cache of those
is as good as the teacher, and N students pay for it once.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from minitron_nas.distillation.head import OutputHead
from minitron_nas.distillation.tokens import PackedTokens
from minitron_nas.execution.device import compute_dtype, pick_device
from minitron_nas.progress import Progress, silent
from minitron_nas.storage.atomic import read_json, require_free_bytes, whole_folder, write_json


class TeacherSignal(Protocol):
    """What a student learns from."""

    @property
    def head(self) -> OutputHead:
        """The teacher's output head, on the compute device."""

    def hidden(self, indices: Tensor, tokens: PackedTokens) -> Tensor:
        """Return (batch, seq_len, teacher_hidden_size) for sequences of the stream.

        Args:
            indices: (batch,), positions of the sequences in the token stream.
            tokens: The sequences themselves.
        """


def final_hidden(model: Any, input_ids: Tensor, position_ids: Tensor) -> Tensor:
    """Run a causal LM up to its output head.

    Args:
        model: A transformers causal LM.
        input_ids: (batch, seq_len).
        position_ids: (batch, seq_len), restarting at each document.

    Returns:
        (batch, seq_len, hidden_size), after the final norm.
    """
    output = model.get_decoder()(input_ids=input_ids, position_ids=position_ids, use_cache=False)
    hidden: Tensor = output.last_hidden_state
    return hidden


class OnlineTeacher:
    """The teacher itself, run beside the student."""

    def __init__(self, model: Any) -> None:
        """Wrap a causal LM that stays as it is."""
        self._model = model.eval()

    @property
    def model(self) -> Any:
        """The teacher."""
        return self._model

    @property
    def head(self) -> OutputHead:
        """The teacher's output head."""
        return OutputHead.of(self._model).detached()

    @torch.no_grad()
    def hidden(self, indices: Tensor, tokens: PackedTokens) -> Tensor:
        """Run the teacher on the sequences."""
        device = self.head.weight.device
        return final_hidden(self._model, tokens.input_ids.to(device), tokens.position_ids.to(device))


class HiddenCache:
    """Final hidden states of one token stream, read from a file without loading it whole."""

    def __init__(self, folder: Path, device: torch.device | None = None) -> None:
        """Open a cache that `write_hidden_cache` wrote.

        Args:
            folder: The cache.
            device: Where hidden states are wanted; the process' own device by default.
        """
        self._device = device or pick_device()
        about = read_json(folder / "about.json")
        self._dtype: torch.dtype = getattr(torch, about["dtype"])
        storage = np.uint16 if self._dtype == torch.bfloat16 else np.float32
        shape = tuple(about["shape"])
        self._states = np.memmap(folder / "hidden.bin", dtype=storage, mode="r", shape=shape)
        weight = load_file(folder / "head.safetensors")["head"].to(self._device)
        self._head = OutputHead(weight, about["logits_scaling"], about["softcap"])

    @property
    def head(self) -> OutputHead:
        """The teacher's output head."""
        return self._head

    def hidden(self, indices: Tensor, tokens: PackedTokens) -> Tensor:
        """Read the sequences' states."""
        states = torch.from_numpy(self._states[indices.cpu().numpy()])
        return states.view(self._dtype).to(self._device)


@dataclass(frozen=True, slots=True)
class CacheSize:
    """What a cache will take on disk."""

    num_tokens: int
    hidden_size: int
    bytes_per_value: int

    @property
    def num_bytes(self) -> int:
        """Bytes of the hidden states."""
        return self.num_tokens * self.hidden_size * self.bytes_per_value


@torch.no_grad()
def write_hidden_cache(
    model: Any, tokens: PackedTokens, folder: Path, batch_sequences: int = 4, progress: Progress = silent
) -> None:
    """Run the teacher once over a token stream and keep its final hidden states.

    Args:
        model: The teacher, on its device and in its compute dtype.
        tokens: The stream.
        folder: Where the cache goes; it appears when it is whole.
        batch_sequences: Sequences of one forward pass.
        progress: Told about tokens.

    Raises:
        DiskSpaceError: If the disk cannot hold the cache.
    """
    output_head = OutputHead.of(model)
    head = output_head.weight.detach()
    dtype = torch.bfloat16 if head.dtype == torch.bfloat16 else torch.float32
    shape = (*tokens.input_ids.shape, head.shape[1])
    size = CacheSize(tokens.num_tokens, head.shape[1], dtype.itemsize)
    require_free_bytes(folder, size.num_bytes, "the cache of the teacher's hidden states")
    with whole_folder(folder) as partial, open(partial / "hidden.bin", "wb") as file:
        done = 0
        for _, batch in tokens.batches(batch_sequences):
            states = final_hidden(model, batch.input_ids.to(head.device), batch.position_ids.to(head.device))
            plain = states.to(dtype).cpu()
            file.write(
                plain.view(torch.uint16).numpy().tobytes() if dtype == torch.bfloat16 else plain.numpy().tobytes()
            )
            done += batch.num_tokens
            progress(done, tokens.num_tokens)
        save_file({"head": head.to(dtype).cpu().contiguous()}, partial / "head.safetensors")
        about = {
            "shape": shape,
            "dtype": str(dtype).removeprefix("torch."),
            "tokens": tokens.fingerprint,
            "logits_scaling": output_head.scaling,
            "softcap": output_head.softcap,
        }
        write_json(partial / "about.json", about)


def load_for_inference(path: Path) -> Any:
    """Load a stock folder on this process' device, in the dtype it computes best with."""
    return _load(path, compute_dtype(pick_device()))


def load_for_training(path: Path) -> Any:
    """Load a stock folder on this process' device, with float32 weights."""
    return _load(path, torch.float32)


def _load(path: Path, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM  # deferred: importing model classes takes seconds

    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, trust_remote_code=False)
    placed: Any = model.eval()
    return placed.to(pick_device())


def open_signal(teacher: Path, cache: Path | None) -> TeacherSignal:
    """Open the cache, or load the teacher itself where there is none.

    Args:
        teacher: A stock folder.
        cache: What `write_hidden_cache` wrote, or None.
    """
    return HiddenCache(cache) if cache is not None else OnlineTeacher(load_for_inference(teacher))
