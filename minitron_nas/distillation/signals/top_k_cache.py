"""The cache of the K most probable next tokens, and of what is left for all others: small, but lossy."""

import torch
from torch import Tensor

from minitron_nas.distillation.signals.folder import WHOLE, Share, SignalFolder, SignalPlace
from minitron_nas.distillation.signals.targets import HiddenTargets, TopKTargets
from minitron_nas.distillation.signals.teacher import OnlineTeacher
from minitron_nas.execution.device import pick_device
from minitron_nas.models.causal_lm import CausalLM
from minitron_nas.progress import Progress, silent
from minitron_nas.storage.shards import Bytes
from minitron_nas.text.tokens import PackedTokens

_CHUNK_TOKENS = 256

INDEX_DTYPE = torch.int32
LOG_PROB_DTYPE = torch.float16
"""KL of the exact distribution within the K to the rounded one is at most 2.5e-6 nats a token in
float16 and up to 1.6e-4 in bfloat16 (K of 128 and 1024 among 49,152 normal, Zipf and peaked logits)."""


def top_k_bytes(k: int) -> int:
    """Return the bytes of what is kept for one token: K entries, and the probability of all others.

    Args:
        k: Entries of one token.
    """
    return k * (INDEX_DTYPE.itemsize + LOG_PROB_DTYPE.itemsize) + LOG_PROB_DTYPE.itemsize


class TopKCache:
    """The K most probable next tokens over one token stream, read a sequence at a time."""

    kind = "top_k_and_rest"

    def __init__(self, place: SignalPlace, device: torch.device | None = None) -> None:
        """Open a cache that `write_top_k_cache` wrote.

        Args:
            place: Where it lies, whose words it must hold, and over what.
            device: Where the targets are wanted; the process' own device by default.

        Raises:
            CacheError: If the cache is not whole, or of something else.
        """
        folder = SignalFolder.open(place, self.kind)
        self._k, self._vocab_size = folder.about["k"], folder.about["vocab_size"]
        self._device = device or pick_device()
        self._read = folder.reader(self._device)

    def targets(self, indices: Tensor, tokens: PackedTokens) -> TopKTargets:
        """Read the sequences' log-probabilities.

        Args:
            indices: (batch,), positions of the sequences in the token stream.
            tokens: The sequences themselves, which need not be read.

        Raises:
            CacheError: If they are not what was written.
        """
        values = self._read(indices.tolist()).to(self._device, non_blocking=True)
        border = values.shape[1] // top_k_bytes(self._k) * self._k * INDEX_DTYPE.itemsize
        entries, log_probs = values[:, :border].view(INDEX_DTYPE), values[:, border:].view(LOG_PROB_DTYPE)
        log_probs = log_probs.reshape(-1, self._k + 1).float()
        return TopKTargets(log_probs[:, :-1], log_probs[:, -1], entries.reshape(-1, self._k).long(), self._vocab_size)


@torch.no_grad()
def write_top_k_cache(
    model: CausalLM,
    place: SignalPlace,
    k: int,
    batch_sequences: int = 4,
    share: Share = WHOLE,
    progress: Progress = silent,
) -> None:
    """Run the teacher once over a token stream and keep its K most probable next tokens, or go on with that.

    Logits exist for a chunk of tokens only.

    Args:
        model: The teacher, on its device and in its compute dtype.
        place: Where, and over what; with the fingerprint of the model's checkpoint.
        k: Entries of one token; a vocabulary that has no more is kept whole.
        batch_sequences: Sequences of one forward pass.
        share: Which of the shards are written, where several processes write at once.
        progress: Told about tokens.

    Raises:
        DiskSpaceError: If the disk cannot hold the cache.
        CacheError: If a shard reads back otherwise than it was written.
    """
    online = OnlineTeacher(model)
    vocab_size = len(online.head.weight)
    k = min(k, vocab_size)
    folder = SignalFolder.lay_out(
        place,
        TopKCache.kind,
        place.tokens.input_ids.shape[1] * top_k_bytes(k),
        batch_sequences,
        shared=(),
        k=k,
        vocab_size=vocab_size,
    )

    @torch.no_grad()
    def encode(indices: Tensor, batch: PackedTokens) -> Bytes:
        targets = most_probable(online.targets(indices, batch), batch.num_tokens, k)
        log_probs = torch.cat([targets.log_probs, targets.rest[:, None]], dim=1)
        parts = (targets.indices.to(INDEX_DTYPE).cpu(), log_probs.to(LOG_PROB_DTYPE).cpu())
        records: Bytes = torch.cat([part.view(len(indices), -1).view(torch.uint8) for part in parts], dim=1).numpy()
        return records

    folder.write(place.tokens, encode, {}, f"the cache of the teacher's {k} most probable tokens", share, progress)


def most_probable(targets: HiddenTargets, num_tokens: int, k: int) -> TopKTargets:
    """Return the K most probable tokens of each position, and what is left for all others.

    Args:
        targets: The full distribution.
        num_tokens: Positions.
        k: At most the size of the vocabulary.
    """
    log_probs, rest, indices = [], [], []
    for start in range(0, num_tokens, _CHUNK_TOKENS):
        logits = targets.of(slice(start, start + _CHUNK_TOKENS)).logits()
        (values, places), whole = logits.topk(k), logits.logsumexp(dim=-1)
        log_probs.append((values - whole[:, None]).float())
        rest.append((logits.scatter_(1, places, -torch.inf).logsumexp(dim=-1) - whole).float())
        indices.append(places)
    return TopKTargets(torch.cat(log_probs), torch.cat(rest), torch.cat(indices), targets.vocab_size)
