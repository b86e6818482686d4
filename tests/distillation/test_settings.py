"""What settings of text and distillation accept, refuse and cost to import."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from minitron_nas.distillation.settings import DistillationSettings, TextSettings


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
        (DistillationSettings, "teacher_signal", "hidden"),
        (DistillationSettings, "top_k", 0),
        (DistillationSettings, "num_evaluations", 0),
        (DistillationSettings, "checkpoint_minutes", -1.0),
        (DistillationSettings, "temperature", 2.0),
    ],
)
def test_a_value_out_of_range_is_refused_under_its_name(model, field, value):
    with pytest.raises(ValidationError) as caught:
        model(**{field: value})
    assert [fault["loc"] for fault in caught.value.errors()] == [(field,)]


def test_the_papers_found_pure_kl_best_so_the_next_token_loss_is_left_out_by_default():
    assert DistillationSettings().lm_loss_weight == 0


def test_the_search_learns_from_a_cache_of_hidden_states_by_default():
    assert DistillationSettings().teacher_signal == "hidden_cache"


def test_few_logits_are_warned_of_with_the_papers_finding_where_they_are_used():
    with pytest.warns(UserWarning, match=r"distillation\.top_k=99: .*2407\.14679.*100 logits or fewer hurts a student"):
        assert DistillationSettings(teacher_signal="top_k", top_k=99).top_k == 99
    assert DistillationSettings(teacher_signal="top_k", top_k=100).top_k == 100
    assert DistillationSettings(teacher_signal="hidden_cache", top_k=1).top_k == 1


def test_reading_settings_imports_no_torch():
    program = (
        "import sys, minitron_nas.distillation.settings\n"
        "print({'torch', 'transformers', 'datasets'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
