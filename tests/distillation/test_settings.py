"""What settings of text and distillation accept, refuse and cost to import."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from minitron_nas.distillation.settings import CorrectionSettings, DistillationSettings, TextSettings


@pytest.mark.parametrize(("written", "tokens"), [("100M", 100_000_000), (64_000, 64_000), ("1.5k", 1500), (None, None)])
def test_tokens_may_be_written_with_a_suffix(written, tokens):
    assert DistillationSettings(tokens=written).tokens == tokens


@pytest.mark.parametrize(
    ("model", "field", "value"),
    [
        (TextSettings, "sequence_length", 7),
        (TextSettings, "calibration_samples", 0),
        (TextSettings, "validation_samples", 0),
        (TextSettings, "max_epochs", 0),
        (DistillationSettings, "tokens", 0),
        (DistillationSettings, "learning_rate", 0.0),
        (DistillationSettings, "min_learning_rate_fraction", 1.1),
        (DistillationSettings, "warmup_fraction", 1.0),
        (DistillationSettings, "weight_decay", -0.1),
        (DistillationSettings, "adam_beta2", 1.0),
        (DistillationSettings, "batch_sequences", 0),
        (DistillationSettings, "micro_batch_sequences", 0),
        (DistillationSettings, "lm_loss_weight", -1.0),
        (DistillationSettings, "max_grad_norm", 0.0),
        (DistillationSettings, "teacher_signal", "top_k"),
        (DistillationSettings, "num_evaluations", 0),
        (DistillationSettings, "checkpoint_minutes", -1.0),
        (DistillationSettings, "temperature", 2.0),
        (CorrectionSettings, "tokens", 0),
        (CorrectionSettings, "learning_rate", 0.0),
        (CorrectionSettings, "warmup_steps", -1),
        (CorrectionSettings, "batch_sequences", 0),
        (CorrectionSettings, "weights", "some"),
        (CorrectionSettings, "lora_rank", 0),
    ],
)
def test_a_value_out_of_range_is_refused_under_its_name(model, field, value):
    with pytest.raises(ValidationError) as caught:
        model(**{field: value})
    assert [fault["loc"] for fault in caught.value.errors()] == [(field,)]


def test_the_papers_found_pure_kl_best_so_the_next_token_loss_is_left_out_by_default():
    assert DistillationSettings().lm_loss_weight == 0


def test_reading_settings_imports_no_torch():
    program = (
        "import sys, minitron_nas.distillation.settings\n"
        "print({'torch', 'transformers', 'datasets'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
