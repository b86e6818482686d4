"""What settings of text and distillation accept, refuse and cost to import."""

import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from minitron_nas.distillation.settings import CorrectionSettings, DistillationSettings, num_recomputed
from minitron_nas.text.settings import TextSettings


@pytest.mark.parametrize(("written", "tokens"), [("100M", 100_000_000), (64_000, 64_000), ("1.5k", 1500), (None, None)])
def test_tokens_may_be_written_with_a_suffix(written, tokens):
    assert DistillationSettings(tokens=written).tokens == tokens


@pytest.mark.parametrize(
    ("written", "rate", "peak"), [("auto", "auto", 1e-4), ("1e-3", 1e-3, 1e-3), (2e-4, 2e-4, 2e-4), (1, 1.0, 1.0)]
)
def test_a_learning_rate_is_a_number_or_is_looked_for(written, rate, peak):
    settings = DistillationSettings(learning_rate=written)
    assert (settings.learning_rate, settings.peak_learning_rate) == (rate, peak)
    assert settings.at_rate(0.5).learning_rate == 0.5


@pytest.mark.parametrize("written", ["fast", 0, -1e-4, "nan", "inf", True, None, [1e-4]])
def test_what_is_no_learning_rate_is_refused_in_one_line(written):
    with pytest.raises(
        ValidationError, match=r"is no learning rate; write a number above 0 such as 1e-4, or auto|True is no number"
    ) as e:
        DistillationSettings(learning_rate=written)
    assert len(e.value.errors()) == 1


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
        (DistillationSettings, "num_evaluations", 0),
        (DistillationSettings, "checkpoint_minutes", -1.0),
        (DistillationSettings, "loss", "kl"),
        (DistillationSettings, "temperature", 0.0),
        (DistillationSettings, "jsd_beta", 0.0),
        (DistillationSettings, "jsd_beta", 1.0),
        (DistillationSettings, "top_k", 0),
        (DistillationSettings, "intermediate", True),
        (DistillationSettings, "intermediate_layers", []),
        (DistillationSettings, "intermediate_loss", "kl"),
        (DistillationSettings, "torch_compile", "maybe"),
        (DistillationSettings, "torch_compile", None),
        (DistillationSettings, "gradient_checkpointing", 1.5),
        (DistillationSettings, "gradient_checkpointing", -0.5),
        (DistillationSettings, "gradient_checkpointing", "some"),
        (DistillationSettings, "label_smoothing", 0.1),
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


def test_what_is_no_answer_to_torch_compile_is_told_what_is():
    with pytest.raises(ValidationError, match="'maybe' is neither yes nor no; write true, false or auto"):
        DistillationSettings(torch_compile="maybe")


@pytest.mark.parametrize(
    ("value", "kept"), [(True, True), (False, False), (1, True), (0, False), (0.5, 0.5), ("0.5", 0.5)]
)
def test_activations_are_computed_again_in_all_layers_in_none_or_in_a_share(value, kept):
    told = DistillationSettings(gradient_checkpointing=value).gradient_checkpointing
    assert (told, type(told)) == (kept, type(kept))


@pytest.mark.parametrize(
    ("recomputed", "layers"), [(False, 0), (True, 30), (0.5, 15), (0.01, 1), (0.99, 30), (0.34, 10)]
)
def test_a_share_of_the_layers_is_one_at_least(recomputed, layers):
    assert num_recomputed(recomputed, 30) == layers


def test_the_papers_found_the_pure_forward_kl_of_all_logits_best_so_it_is_the_default():
    settings = DistillationSettings()
    assert (settings.loss, settings.temperature, settings.top_k) == ("forward_kl", 1, None)
    assert (settings.lm_loss_weight, settings.intermediate) == (0, "none")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loss": "lm", "lm_loss_weight": 0.5}, "loss=lm is the next-token loss alone, and lm_loss_weight=0.5 weighs"),
        ({"loss": "lm", "top_k": 500}, "top_k=500 is of a divergence, and loss=lm is none; leave top_k out"),
        ({"loss": "mse", "top_k": 500}, "top_k=500 is of a divergence, and loss=mse is none; leave top_k out"),
        (
            {"loss": "lm", "intermediate": "always", "teacher_signal": "online"},
            "intermediate=always is weighed against a loss on the teacher's logits, and loss=lm has none; set",
        ),
        (
            {"loss": "cosine", "teacher_signal": "top_k"},
            "loss=cosine compares whole distributions, which teacher_signal=top_k does not hold; set teacher_signal to",
        ),
        (
            {"intermediate": "auto", "teacher_signal": "hidden_cache"},
            "intermediate=auto learns from hidden states inside the teacher, which teacher_signal=hidden_cache does",
        ),
        (
            {"intermediate": "always", "teacher_signal": "online", "torch_compile": True},
            "intermediate=always watches hidden states inside the student's layers, which torch_compile=true compiles",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        DistillationSettings(**values)


@pytest.mark.parametrize("top_k", [1, 63])
def test_few_of_the_teachers_tokens_are_warned_of_with_what_they_cost(top_k):
    with pytest.warns(UserWarning, match=rf"top_k={top_k}: 64 tokens cost a student half a percent of its KL, fewer"):
        DistillationSettings(top_k=top_k)


def test_more_of_them_are_not():
    assert DistillationSettings(top_k=64).top_k == 64  # a warning would fail this test


@pytest.mark.parametrize(
    ("values", "asks", "caches"),
    [
        ({}, True, True),
        ({"teacher_signal": "online"}, True, False),
        ({"loss": "lm"}, False, False),
    ],
)
def test_the_next_token_loss_alone_asks_no_teacher(values, asks, caches):
    settings = DistillationSettings(**values)
    assert (settings.asks_teacher, settings.caches_training) == (asks, caches)


def test_by_default_a_cache_of_hidden_states_is_meant_until_the_signal_is_settled():
    assert DistillationSettings().teacher_signal == "auto"


def test_a_cache_of_the_most_probable_tokens_keeps_256_unless_told_otherwise():
    assert DistillationSettings().cached_top_k is None
    assert DistillationSettings(top_k=500).cached_top_k is None
    assert DistillationSettings(teacher_signal="top_k").cached_top_k == 256
    assert DistillationSettings(teacher_signal="top_k", top_k=500).cached_top_k == 500


def test_reading_settings_imports_no_torch():
    program = (
        "import sys, minitron_nas.distillation.settings\n"
        "print({'torch', 'transformers', 'datasets'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize(
    "values",
    [
        {"loss": "reverse_kl"},
        {"temperature": 2.0},
        {"lm_loss_weight": 0.1},
        {"top_k": 128},
        {"teacher_signal": "top_k"},
        {"intermediate": "auto", "teacher_signal": "online"},
    ],
)
def test_only_the_forward_kl_of_whole_distributions_is_called_kl(values):
    assert DistillationSettings().minimises_kl
    assert DistillationSettings(teacher_signal="online").minimises_kl
    assert not DistillationSettings(**values).minimises_kl


@pytest.mark.parametrize(
    ("asked", "intermediate", "device", "compiled"),
    [
        ("auto", "none", "cuda", True),
        ("auto", "none", "cpu", False),
        ("auto", "auto", "cuda", False),  # hidden states are watched, which compiled layers would not show
        (True, "none", "cpu", True),
        (False, "none", "cuda", False),
    ],
)
def test_layers_are_compiled_where_it_pays_unless_it_is_said(
    asked: Any, intermediate: Any, device: str, compiled: bool
) -> None:
    settings = DistillationSettings(torch_compile=asked, intermediate=intermediate)
    assert settings.compiles_layers(device) is compiled
