"""Shapes of a teacher and its students, and what arithmetic says of training them; no torch."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from minitron_nas.architecture.config import architecture_of
from minitron_nas.architecture.costs import count_parameters, forward_flops_per_token
from minitron_nas.architecture.layout import Layout
from minitron_nas.architecture.spec import Architecture
from minitron_nas.families.catalog import layout_of

Config = Mapping[str, Any]

STATE_BYTES = 16
"""Of one parameter of a student: weight, gradient and AdamW's two moments, all in float32."""

DATA_SHEETS = {
    r"H100 80GB HBM3$|H200$|GH200": 989e12,
    r"A100.*(GB|PCIe)$": 312e12,
    r"L40S$": 362e12,
    r"RTX 4090$": 165e12,
}
"""Floating-point operations a second of matrix products in bfloat16, without sparsity, by the end of torch's name of a
card; slower editions and parts of a card (PCIe, NVL, laptops, MIG) have other names, and are measured."""


@dataclass(frozen=True)
class Student:
    """A student's shape and how it is trained.

    Attributes:
        sizes: What its config says otherwise than the teacher's.
        micro_batch_sequences: Sequences of one forward pass.
        gradient_checkpointing: Whether activations are computed again in the backward pass.
    """

    sizes: Mapping[str, int]
    micro_batch_sequences: int
    gradient_checkpointing: bool = False


@dataclass(frozen=True)
class Scale:
    """A teacher, its students and the batches that they are trained on.

    Attributes:
        teacher: The content of its config.
        students: By name.
        sequence_length: Tokens of a sequence.
        batch_sequences: Sequences of one optimizer step.
        validation_sequences: Held-out sequences on which candidates are screened.
        product_size: Rows and columns of the matrices whose product tells what an unknown device can do.
    """

    teacher: Config
    students: Mapping[str, Student]
    sequence_length: int
    batch_sequences: int
    validation_sequences: int
    product_size: int

    @cached_property
    def layout(self) -> Layout:
        return layout_of(self.teacher["model_type"])

    @property
    def tokens_per_step(self) -> int:
        return self.batch_sequences * self.sequence_length

    def config(self, name: str) -> Config:
        """Return the content of a student's config."""
        return {**self.teacher, **self.students[name].sizes}

    def shape(self, config: Config) -> Architecture:
        return architecture_of(config, self.layout)

    def num_parameters(self, config: Config) -> int:
        return count_parameters(self.shape(config), self.layout)

    def largest(self) -> str:
        """Return the student that has most parameters."""
        return max(self.students, key=lambda name: self.num_parameters(self.config(name)))

    def teacher_flops(self) -> int:
        """Operations of the teacher up to its output head, per token."""
        return self._forward_flops(self.teacher) - self._head_flops()

    def training_flops(self, name: str, teacher_is_cached: bool) -> int:
        """Operations of a training step that no loop can do without, per token.

        The student forward and twice as many backward, the teacher's head, and the teacher unless what it said is
        cached. What is computed again because activations are not kept does not count.
        """
        student = 3 * self._forward_flops(self.config(name))
        return student + self._head_flops() + (0 if teacher_is_cached else self.teacher_flops())

    def weights_bytes(self, name: str, teacher_is_cached: bool, itemsize: int) -> int:
        """Bytes of weights and what belongs to them that no loop can do without.

        The student's weights, gradients and moments, and the teacher's weights: of a cached one the head's.

        Args:
            name: The student.
            teacher_is_cached: Whether the teacher is not there.
            itemsize: Bytes of one of the teacher's numbers.
        """
        head = self.teacher["vocab_size"] * self.teacher["hidden_size"]
        teacher = head if teacher_is_cached else self.num_parameters(self.teacher)
        return STATE_BYTES * self.num_parameters(self.config(name)) + itemsize * teacher

    def _forward_flops(self, config: Config) -> int:
        """Per token; a token of a sequence sees half of it on average."""
        return forward_flops_per_token(self.shape(config), self.layout, self.sequence_length // 2)

    def _head_flops(self) -> int:
        return 2 * int(self.teacher["vocab_size"] * self.teacher["hidden_size"])


def _sizes(layers: int, hidden: int, neurons: int, heads: int) -> dict[str, int]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": neurons,
        "num_attention_heads": heads,
    }


FULL = Scale(
    teacher={
        "model_type": "llama",
        **_sizes(32, 4096, 14336, 32),
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
    },
    students={
        "0.5B": Student(_sizes(16, 1024, 3584, 8), 4),
        "1.7B": Student(_sizes(20, 2048, 7680, 16), 2),
        "4B": Student(_sizes(28, 3072, 9216, 32), 2, gradient_checkpointing=True),
    },
    sequence_length=2048,
    batch_sequences=16,
    validation_sequences=32,
    product_size=8192,
)
"""Llama 3.1 8B. On a card of 80 GB the largest student leaves no room for its activations, nor for a teacher beside."""

TINY = Scale(
    teacher={
        **FULL.teacher,
        **_sizes(4, 64, 128, 4),
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 512,
        "max_position_embeddings": 64,
        "initializer_range": 0.1,
    },
    students={"tiny": Student(_sizes(3, 48, 96, 4), 2, gradient_checkpointing=True)},
    sequence_length=64,
    batch_sequences=4,
    validation_sequences=4,
    product_size=1024,
)
"""For tests, on a CPU; weights so large that the models are as far apart as those of full size."""


def data_sheet_flops(card: str) -> float | None:
    """Return what a card's maker says that it multiplies, in operations a second; None of an unknown card."""
    return next((flops for pattern, flops in DATA_SHEETS.items() if re.search(pattern, card)), None)
