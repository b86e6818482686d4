"""Validation: KL to the teacher and next-token loss on held-out tokens."""

from dataclasses import replace

import torch

from minitron_nas.distillation.loss.losses import Losses, LossSums
from minitron_nas.distillation.signals.head import OutputHead
from minitron_nas.distillation.signals.targets import TopKTargets
from minitron_nas.distillation.signals.teacher import TeacherSignal, final_hidden
from minitron_nas.errors import CacheError
from minitron_nas.execution.device import autocast, compute_dtype
from minitron_nas.models.causal_lm import CausalLM
from minitron_nas.progress import Progress, silent
from minitron_nas.text.tokens import PackedTokens


@torch.no_grad()
def validate(
    model: CausalLM,
    tokens: PackedTokens,
    signal: TeacherSignal | None,
    batch_sequences: int = 4,
    progress: Progress = silent,
) -> Losses:
    """Measure a model on held-out tokens, whole and by sequence, in the device's dtype whatever the weights' is.

    Args:
        model: On its device.
        tokens: The held-out sequences.
        signal: The teacher over the same sequences, online or as a cache of hidden states; without it
            there is no KL.
        batch_sequences: Sequences of one forward pass.
        progress: Told about tokens.

    Raises:
        CacheError: If the signal holds the most probable tokens only: the KL is over the whole vocabulary.
    """
    training = model.training
    model.eval()
    head = OutputHead.of(model)
    device = head.weight.device
    dtype = compute_dtype(device)
    cast_head = head.detached(dtype)
    sums, by_sequence = LossSums(), torch.zeros(2, tokens.num_sequences, dtype=torch.float64)
    done = 0
    try:
        for indices, batch in tokens.batches(batch_sequences):
            with autocast(device, dtype, head.weight.dtype):
                hidden = final_hidden(model, batch.input_ids.to(device), batch.position_ids.to(device))
            labels = batch.labels().flatten().to(device)
            flat = hidden.flatten(0, 1)
            targets = signal.targets(indices, batch) if signal is not None else None
            if isinstance(targets, TopKTargets):
                raise CacheError(
                    "validation takes the KL over the whole vocabulary, and the signal holds the most probable tokens "
                    "only; give it a cache of hidden states, or the teacher itself"
                )
            counted = batch.counted()
            found = sums.add(flat, cast_head, labels, targets, counted.flatten().to(device))
            by_sequence.index_add_(1, indices[counted.nonzero()[:, 0]], torch.stack(found))
            done += batch.num_tokens
            progress(done, tokens.num_tokens)
    finally:
        model.train(training)
    kls, losses = by_sequence.tolist()
    return replace(sums.means(), sequence_kl_nats=tuple(kls), sequence_loss_nats=tuple(losses))
