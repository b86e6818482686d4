"""Which students are repaired, and how."""

from pathlib import Path

import pytest
import torch

from minitron_nas.importance.baselines import random_scores
from minitron_nas.models.checkpoint import open_checkpoint
from minitron_nas.pruning.order import PruningOrder
from minitron_nas.pruning.prepare import PreparedTeacher, write_prepared
from minitron_nas.pruning.refit import cuts_inputs, needs_moments, repair_student
from minitron_nas.testing import tiny_checkpoint
from minitron_nas.text.packing import pack

TOKENS = pack([torch.randint(0, 320, (160,), generator=torch.Generator().manual_seed(0)).numpy()], 20)


def test_a_family_that_cannot_be_repaired_in_sequence_is_left_as_it_is_cut(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint(tmp_path / "teacher", "cohere"))
    scores = random_scores(checkpoint.architecture, checkpoint.layout, 0)
    write_prepared(tmp_path / "prepared", PruningOrder.from_scores(scores, checkpoint.architecture, ()))
    prepared = PreparedTeacher.open(checkpoint.path, tmp_path / "prepared")
    target = checkpoint.architecture.reshaped({"intermediate_size": 48})
    assert repair_student(prepared, target, lambda: TOKENS, tmp_path / "work") == {}


@pytest.mark.parametrize(
    ("model_type", "needed"), [("llama", False), ("mixtral", True), ("olmo2", False), ("cohere", True)]
)
def test_moments_are_measured_for_what_the_repair_in_sequence_leaves(
    tmp_path: Path, model_type: str, needed: bool
) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint(tmp_path / "teacher", model_type))
    shape = checkpoint.architecture.reshaped({"num_key_value_heads": 1})
    assert needs_moments(checkpoint, shape) == needed
    assert not needs_moments(checkpoint, checkpoint.architecture.reshaped({"num_hidden_layers": 3}))


def test_which_shapes_take_inputs_away_from_output_projections(trained_teacher: Path) -> None:
    checkpoint = open_checkpoint(trained_teacher)
    source, layout = checkpoint.architecture, checkpoint.layout
    assert cuts_inputs(layout, source, source.reshaped({"intermediate_size": 96}))
    assert cuts_inputs(layout, source, source.reshaped({"num_key_value_heads": 1}))
    assert not cuts_inputs(layout, source, source.reshaped({"hidden_size": 36, "num_hidden_layers": 3}))
