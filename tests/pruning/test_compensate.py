from math import sqrt

import pytest
import torch

from minitron_nas.architecture.layout import HIDDEN, VOCAB, norm, row
from minitron_nas.architecture.spec import Architecture
from minitron_nas.families.catalog import layout_of
from minitron_nas.pruning.compensate import Scaling, scaled_constants, scaling_of
from minitron_nas.pruning.student import build_student
from minitron_nas.testing import Subject, tiny_config
from minitron_nas.testing.masked import masked
from minitron_nas.testing.tiny import TINY_E2B

SOURCE = Architecture("any", 2, 64, 96, 4, 2, 16, 100)
TARGET = SOURCE.reshaped({"hidden_size": 16})
TIED = Architecture(**(SOURCE.to_dict() | {"tie_word_embeddings": True}))
LAYER_NORM = norm("model.layers.{layer}.input_layernorm.weight", HIDDEN)
FINAL_NORM = norm("model.norm.weight", HIDDEN)
EMBEDDING = row("model.embed_tokens.weight", VOCAB, HIDDEN)
HEAD = row("lm_head.weight", VOCAB, HIDDEN, unless="tie_word_embeddings")
MATRIX = row("model.layers.{layer}.mlp.up_proj.weight", HIDDEN, HIDDEN)


def scaling(family, table_row, source=SOURCE):
    return scaling_of(table_row, layout_of(family), source, source.reshaped({"hidden_size": 16}))


@pytest.mark.parametrize("table_row", [LAYER_NORM, FINAL_NORM])
def test_gains_of_rms_norms_grow_by_the_root_of_the_ratio(table_row):
    assert scaling("llama", table_row) == Scaling(sqrt(64 / 16), 0.0)


def test_gemmas_gains_are_one_more_than_what_is_stored():
    assert scaling("gemma2", LAYER_NORM) == Scaling(2.0, 1.0)


def test_layer_norms_stay():
    assert scaling("nemotron", LAYER_NORM).factor == scaling("gpt2", LAYER_NORM).factor == 1
    assert scaled_constants({"norm_eps": 1e-5}, layout_of("nemotron"), SOURCE, TARGET) == {}


def test_epsilon_grows_by_the_ratio():
    constants = scaled_constants({"rms_norm_eps": 1e-6}, layout_of("llama"), SOURCE, TARGET)
    assert constants == {"rms_norm_eps": pytest.approx(4e-6)}
    assert scaled_constants({"rms_norm_eps": 1e-6}, layout_of("llama"), SOURCE, SOURCE) == {}


def test_gemmas_embeddings_grow_and_a_tied_head_is_made_up_for_by_the_final_norm():
    assert scaling("gemma2", EMBEDDING).factor == scaling("gemma2", EMBEDDING, TIED).factor == 2
    assert scaling("gemma2", FINAL_NORM).factor == 2
    assert scaling("gemma2", FINAL_NORM, TIED).factor == 1
    assert scaling("gemma2", HEAD).factor == 1


@pytest.mark.parametrize("table_row", [EMBEDDING, HEAD, MATRIX])
def test_matrices_of_other_families_stay(table_row):
    assert scaling("llama", table_row).factor == 1


def test_where_no_channel_leaves_nothing_changes():
    assert scaling_of(LAYER_NORM, layout_of("llama"), SOURCE, SOURCE.reshaped({"intermediate_size": 8})).factor == 1


def test_what_is_made_of_embeddings_for_single_layers_stays_exact_with_an_epsilon_that_matters(tmp_path):
    config = tiny_config("gemma4_text", **TINY_E2B, rms_norm_eps=0.05)
    subject = Subject.make(layout_of("gemma4_text"), config, tmp_path)
    target = subject.architecture.reshaped({"hidden_size": 36})
    student = build_student(subject.prepared, target, torch.float64)
    with masked(subject, target) as teacher:
        for name, module in teacher.named_modules():
            if name.endswith(".v_norm"):  # has no gain, so no row, and shares the epsilon of all norms
                module.eps *= 48 / 36
        torch.testing.assert_close(subject.logits(student), subject.logits(teacher), rtol=0, atol=subject.tolerance)
