"""What a teacher says, a chunk of tokens at a time."""

import torch

from minitron_nas.distillation.signals.head import OutputHead
from minitron_nas.distillation.signals.targets import HiddenTargets


def test_chunks_of_logits_are_rows_of_the_whole():
    hidden, head = torch.randn(7, 3), OutputHead(torch.randn(5, 3), scaling=2.0, softcap=4.0)
    targets = HiddenTargets(hidden, head)
    chunks = [targets.of(slice(start, start + 3)).logits() for start in (0, 3, 6)]
    torch.testing.assert_close(torch.cat(chunks), head.logits(hidden))
