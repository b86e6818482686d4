from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from minitron_nas.architecture.spec import Architecture
from minitron_nas.importance.scores import ImportanceScores
from minitron_nas.models.checkpoint import Checkpoint, open_checkpoint
from minitron_nas.pruning.order import PruningOrder
from minitron_nas.pruning.prepare import PreparedTeacher, write_prepared
from minitron_nas.testing import tiny_checkpoint, tiny_config, tiny_model


@dataclass(frozen=True)
class Source:
    """A tiny teacher on disk and in memory, random scores of it, and the two together."""

    checkpoint: Checkpoint
    model: Any
    scores: ImportanceScores
    order: PruningOrder
    prepared: PreparedTeacher

    @property
    def architecture(self) -> Architecture:
        return self.checkpoint.architecture

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        return self.model.state_dict()


def random_scores(architecture: Architecture, seed: int = 0) -> ImportanceScores:
    """Distinct scores, so that no ranking rests on the order of ties."""
    generator = torch.Generator().manual_seed(seed)
    layers = architecture.num_hidden_layers
    experts = (architecture.num_experts,) if architecture.num_experts else ()

    def shuffled(*shape: int) -> torch.Tensor:
        return torch.argsort(torch.rand(shape, generator=generator), dim=-1).float()

    return ImportanceScores(
        hidden=shuffled(architecture.hidden_size),
        neurons=shuffled(layers, *experts, architecture.intermediate_size),
        heads=shuffled(layers, architecture.num_attention_heads),
        kv_groups=shuffled(layers, architecture.num_key_value_heads),
        experts=shuffled(layers, architecture.num_experts),
        layers=shuffled(layers),
    )


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """Return a function that makes a `Source`, each of its kind once."""
    made: dict[Any, Source] = {}

    def make(model_type: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Source:
        key = (model_type, dtype, repr(sorted(changes.items())))
        if key not in made:
            folder: Path = tmp_path_factory.mktemp(model_type)
            checkpoint = open_checkpoint(tiny_checkpoint(folder / "teacher", model_type, dtype=dtype, **changes))
            scores = random_scores(checkpoint.architecture)
            order = PruningOrder.from_scores(scores, checkpoint.architecture, (0, -1))
            write_prepared(folder / "prepared", order)
            prepared = PreparedTeacher.open(checkpoint.path, folder / "prepared")
            model = tiny_model(tiny_config(model_type, **changes), dtype=dtype)
            made[key] = Source(checkpoint, model, scores, order, prepared)
        return made[key]

    return make


@pytest.fixture(scope="session")
def prompt() -> torch.Tensor:
    return torch.randint(0, 320, (2, 16), generator=torch.Generator().manual_seed(5))
