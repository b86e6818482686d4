"""`Subject`: the tiny teacher that the conformance checks are made on."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from minitron_nas.architecture.config import architecture_of
from minitron_nas.architecture.layout import Layout
from minitron_nas.architecture.spec import Architecture
from minitron_nas.importance.baselines import random_scores
from minitron_nas.models.causal_lm import CausalLM
from minitron_nas.models.checks import check_tensors
from minitron_nas.models.config import read_config
from minitron_nas.models.expected import ExpectedTensors
from minitron_nas.models.stock import read_tensor
from minitron_nas.pruning.order import PruningOrder
from minitron_nas.pruning.prepare import PreparedTeacher
from minitron_nas.testing.tiny import tiny_model, tiny_tokenizer
from minitron_nas.text.tokens import PackedTokens

_SEQ_LEN = 12


@dataclass(frozen=True)
class Subject:
    """A tiny teacher of the family, in memory and on disk, ranked at random.

    Attributes:
        layout: The table under test.
        model: The teacher, float64.
        tensors: What it stored, by the table's names.
        prepared: The teacher on disk.
        prompt: (2, seq_len), token ids.
        folder: Where checks may write.
    """

    layout: Layout
    model: CausalLM
    tensors: dict[str, Tensor]
    prepared: PreparedTeacher
    prompt: Tensor
    folder: Path

    @property
    def architecture(self) -> Architecture:
        """The teacher's shape."""
        return self.prepared.architecture

    @property
    def tolerance(self) -> float:
        """By how much logits may be off where they have to be equal."""
        return self.layout.logits_tolerance

    @property
    def text(self) -> PackedTokens:
        """The prompt as text to measure on."""
        return PackedTokens(self.prompt, torch.arange(_SEQ_LEN).expand_as(self.prompt))

    @classmethod
    def make(
        cls, layout: Layout, config: PreTrainedConfig, folder: Path, seed: int = 0, dtype: torch.dtype = torch.float64
    ) -> "Subject":
        """Build and store a random teacher, norms and biases random too.

        Args:
            layout: The table under test.
            config: A config of its family.
            folder: Where checks may write; gets the teacher.
            seed: Of weights, ranking and prompt.
            dtype: Of the teacher.

        Raises:
            CheckpointError: If the table does not name every tensor with its shape.
            InvalidArchitectureError: If the config is not one that the table describes.
        """
        model = plain_experts(tiny_model(config, seed, dtype=dtype))
        path = folder / "teacher"
        path.mkdir(parents=True)
        model.save_pretrained(path)
        tiny_tokenizer(config.vocab_size).save_pretrained(path)
        content = read_config(path)
        architecture = architecture_of({**config.to_dict(), **content}, layout)
        headers = check_tensors(path, ExpectedTensors.of(architecture, layout))
        order = PruningOrder.from_scores(random_scores(architecture, layout, seed), architecture, (0, -1))
        prepared = PreparedTeacher(path, content, architecture, layout, headers, folder / "prepared", order)
        prompt = torch.randint(0, config.vocab_size, (2, _SEQ_LEN), generator=torch.Generator().manual_seed(seed))
        tensors = {name: read_tensor(header) for name, header in headers.items()}
        return cls(layout, model, tensors, prepared, prompt, folder)

    @torch.no_grad()
    def logits(self, model: CausalLM) -> Tensor:
        """Run a model on the prompt; (2, seq_len, vocab_size)."""
        logits: Tensor = model(input_ids=self.prompt, use_cache=False).logits
        return logits


def plain_experts(model: CausalLM) -> CausalLM:
    """Let experts compute one after the other: fused kernels know no float64."""
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    return model
