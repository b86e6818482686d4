from contextlib import contextmanager
from dataclasses import fields
from types import SimpleNamespace

import psutil
import pytest
import torch

from minitron_nas.families.catalog import layouts
from minitron_nas.importance.moments import second_moments, sweep_moments
from minitron_nas.importance.passes import CalibrationPass
from minitron_nas.importance.score import score_importance
from minitron_nas.importance.settings import ImportanceSettings
from minitron_nas.importance.sweep import Section, sweep
from minitron_nas.importance.tensor_folder import TensorFolder
from minitron_nas.models.checkpoint import open_checkpoint
from minitron_nas.models.loading import load_whole
from minitron_nas.progress import silent
from minitron_nas.testing import tiny_checkpoint
from minitron_nas.testing.tiny import TINY_E2B, TINY_E4B
from minitron_nas.text.packing import pack

IDS = torch.randint(0, 320, (60,), generator=torch.Generator().manual_seed(0)).numpy()
TEXT = pack([IDS[:7], IDS[7:12], IDS[12:36], IDS[36:40], IDS[40:51], IDS[51:]], 12)
"""Five sequences of twelve tokens; documents end inside three of them."""

MIXED = {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 5}


@pytest.fixture(autouse=True)
def _float32(monkeypatch):
    compute_in(monkeypatch, torch.float32)


def compute_in(monkeypatch, dtype):
    for place in ("minitron_nas.models.loading", "minitron_nas.importance.layered_model"):
        monkeypatch.setattr(f"{place}.compute_dtype", lambda device: dtype)


def loaded(folder):
    """Weights begin in memory where layers read one by one have them: grouped products round by that."""
    model = load_whole(folder)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


def both_scores(folder, settings=None):
    checkpoint, settings = open_checkpoint(folder), settings or ImportanceSettings()
    model = loaded(folder)
    whole = score_importance(model, checkpoint.architecture, checkpoint.layout, TEXT, settings)
    return whole, CalibrationPass(checkpoint, TEXT, whole=False, folder=folder).score(settings, silent)


def assert_equal(one, other):
    for field in fields(one):
        scores, others = getattr(one, field.name), getattr(other, field.name)
        assert torch.equal(scores.isnan(), others.isnan()), field.name  # what layers of other kinds have
        assert torch.equal(scores.nan_to_num(), others.nan_to_num()), field.name


@pytest.mark.parametrize(
    ("model_type", "tied"),
    [
        pytest.param(name, tied, marks=pytest.mark.slow if tied else [])
        for name, layout in layouts().items()
        for tied in layout.requires.get("tie_word_embeddings", (False, True))
    ],
)
def test_the_scores_are_those_of_one_pass_to_the_bit(tmp_path, model_type, tied):
    assert_equal(*both_scores(tiny_checkpoint(tmp_path, model_type, tied=tied)))


@pytest.mark.parametrize("model_type", ["gemma2", "gpt2", "granite", "llama", "mixtral"])
def test_so_they_are_in_bfloat16(tmp_path, monkeypatch, model_type):
    compute_in(monkeypatch, torch.bfloat16)
    assert_equal(*both_scores(tiny_checkpoint(tmp_path, model_type, dtype=torch.bfloat16)))


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("gemma3_text", MIXED),
        ("gemma4_text", {"hidden_size_per_layer_input": 12, "tied": True}),
        ("gemma4_text", {**TINY_E2B, "sliding_window": 5}),
        ("gemma4_text", {**TINY_E4B, "sliding_window": 5}),
        ("smollm3", {"no_rope_layers": [1, 0] * 2}),
    ],
)
def test_so_they_are_where_layers_differ(tmp_path, model_type, changes):
    assert_equal(*both_scores(tiny_checkpoint(tmp_path, model_type, **changes)))


def test_so_they_are_with_other_aggregations(tmp_path):
    settings = ImportanceSettings(batch_aggregation="variance", sequence_aggregation="l2")
    assert_equal(*both_scores(tiny_checkpoint(tmp_path, "llama"), settings))


def test_so_they_are_with_keys_and_values_of_other_layers_in_a_file(tmp_path, monkeypatch):
    compute_in(monkeypatch, torch.bfloat16)
    monkeypatch.setattr("minitron_nas.importance.hidden_states.available_memory", lambda: 0)
    monkeypatch.setattr("minitron_nas.importance.layered_model._ROWS_OF_ALL_LAYERS", 7)
    assert_equal(*both_scores(tiny_checkpoint(tmp_path, "gemma4_text", dtype=torch.bfloat16, **TINY_E2B)))
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == set()


def test_so_they_are_with_hidden_states_in_a_file(tmp_path, monkeypatch):
    folder = tiny_checkpoint(tmp_path / "teacher", "llama")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=0))
    before = sorted(folder.iterdir())
    assert_equal(*both_scores(folder))
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(("model_type", "changes"), [*((name, {}) for name in layouts()), ("gemma4_text", TINY_E2B)])
def test_the_second_moments_are_those_of_one_pass_to_the_bit(tmp_path, model_type, changes):
    checkpoint = open_checkpoint(tiny_checkpoint(tmp_path, model_type, **changes))
    layout, shape = checkpoint.layout, checkpoint.architecture
    whole, swept = {}, TensorFolder(tmp_path / "moments")
    second_moments(loaded(tmp_path), layout, TEXT, whole)
    sweep_moments(checkpoint, TEXT, tmp_path, swept)
    assert set(swept) == set(whole)
    assert set(whole) == {
        place.name for place in layout.tensors(shape) if place.row in (*layout.stream_norms(), *layout.writers())
    }
    assert all(torch.equal(swept[name], whole[name]) for name in whole)


def test_every_layer_is_visited_once_in_order_alone_and_the_final_norm_with_the_last(tmp_path):
    checkpoint, seen = open_checkpoint(tiny_checkpoint(tmp_path, "llama")), []

    @contextmanager
    def watch(section):
        seen.append((section.layers, section.is_last, section.model.config.num_hidden_layers))
        assert section.module("model.layers.{layer}.mlp", section.layers.start) is section.model.model.layers[0].mlp
        assert section.module("model.norm") is section.model.model.norm
        yield

    sweep(checkpoint, TEXT, [(TEXT.num_sequences, watch)], tmp_path, 2, lambda done, total: None)
    assert seen == [(range(layer, layer + 1), layer == 3, 1) for layer in range(4)]


def test_all_of_a_model_is_a_section(tmp_path):
    section = Section.whole(loaded(tiny_checkpoint(tmp_path, "gpt2")))
    assert (section.layers, section.is_last) == (range(4), True)
    assert section.module("transformer.h.{layer}", 2) is section.model.transformer.h[2]


def test_progress_counts_the_tokens_of_every_layer(tmp_path):
    told, checkpoint = [], open_checkpoint(tiny_checkpoint(tmp_path, "llama", num_hidden_layers=2))
    along = CalibrationPass(checkpoint, TEXT, whole=False, folder=tmp_path)
    along.score(ImportanceSettings(), lambda *pair: told.append(pair))
    assert told == [(done, 120) for done in (48, 60, 108, 120)]
