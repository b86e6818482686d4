from importlib.util import find_spec
from pathlib import Path

import pytest

from minitron_nas.alignment.preference import UNTRAINED_LOSS, Pair, Preferences, prefer
from minitron_nas.alignment.settings import AlignmentSettings
from minitron_nas.distillation.training.schedule import Schedule
from minitron_nas.testing import tiny_checkpoint, tiny_tokenizer


@pytest.mark.skipif(find_spec("trl") is None, reason="trl is an extra")
def test_from_point_to_point_the_loss_falls_and_the_margin_rises(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    better, worse = (tokenizer(text)["input_ids"] for text in ("It is so.", "No and no."))
    pairs = [Pair(tokenizer(f"Tell me {number}")["input_ids"], better, worse) for number in range(8)]
    settings = AlignmentSettings(method="dpo", learning_rate=1e-3, micro_batch_sequences=4, num_evaluations=3)
    asked = Preferences(pairs[:6], pairs[6:], settings, Schedule(6, 4, 1), seed=0)
    student = tiny_checkpoint(tmp_path / "student", "llama")
    found = prefer(student, asked, tmp_path / "checkpoints", tokenizer)
    assert [point.step for point in found.curve] == [0, 2, 4, 6]
    losses, margins = ([getattr(point, name) for point in found.curve] for name in ("loss", "margin"))
    assert losses == sorted(losses, reverse=True)
    assert margins == sorted(margins)
    assert losses[0] == UNTRAINED_LOSS
    assert losses[-1] < 0.9 * losses[0]
    assert (margins[0], found.curve[-1].accuracy) == (0.0, 1.0)
    assert found.weights == tmp_path / "checkpoints" / "checkpoint-6"
