"""Live models whose weights are not those of the folder that they name."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, Gemma3ForCausalLM, MistralForCausalLM
from transformers.utils import logging

from minitron_nas.errors import CheckpointError
from minitron_nas.models import source
from minitron_nas.models.config import read_config
from minitron_nas.models.source import resolve_teacher
from minitron_nas.testing import rewrite_tensors, tiny_checkpoint, tiny_tokenizer


@pytest.fixture(autouse=True)
def _quiet():
    """Without transformers' report of what it made up."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(verbosity)


@pytest.mark.parametrize(("kind", "model_type"), [(Gemma3ForCausalLM, "gemma3"), (MistralForCausalLM, "mistral3")])
def test_a_text_class_that_found_nothing_in_a_wrappers_folder_is_refused(wrapper, tmp_path, kind, model_type):
    folder = wrapper(model_type, tied=True)
    live = kind.from_pretrained(folder, config=AutoConfig.for_model(**read_config(folder)))
    with pytest.raises(CheckpointError, match=rf"have nothing to do with what .*, a {model_type} whose text part is"):
        resolve_teacher((live, tiny_tokenizer()), tmp_path)


def test_a_live_model_without_a_matrix_of_its_folder_is_refused(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model", "llama")
    rewrite_tensors(folder, {"model.layers.1.mlp.up_proj.weight": None})
    live = AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(
        CheckpointError, match=r"1 matrices of the live model \(model\.layers\.1\.mlp\.up_proj\.weight\)"
    ):
        resolve_teacher((live, tiny_tokenizer()), tmp_path / "work")


def test_a_live_model_whose_hub_folder_is_in_the_local_cache_is_held_against_it(tmp_path, monkeypatch):
    folder = tiny_checkpoint(tmp_path / "model", "llama")
    live = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    live.name_or_path = live.config._name_or_path = "owner/tiny"
    monkeypatch.setattr(source, "cached_snapshot", lambda name, commit: folder if name == "owner/tiny" else None)
    with pytest.raises(CheckpointError, match="have nothing to do with"):
        resolve_teacher((live, tiny_tokenizer()), tmp_path / "work")


@pytest.mark.parametrize("change", ["none", "trained", "untied", "cut", "inner"])
def test_a_live_model_that_was_changed_since_is_taken(tmp_path, change):
    folder = tiny_checkpoint(tmp_path / "model", "llama", tied=change == "untied")
    if change == "inner":
        AutoModelForCausalLM.from_pretrained(folder).model.save_pretrained(folder)
        rewrite_tensors(folder, {"lm_head.weight": torch.eye(320, 48)})
    live = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        if change == "trained":
            for parameter in live.parameters():
                parameter.add_(torch.randn(parameter.shape) * parameter.std())
        if change == "untied":
            live.lm_head.weight = torch.nn.Parameter(live.model.embed_tokens.weight.clone())
            live.config.tie_word_embeddings = False
        if change == "cut":
            live.model.layers = live.model.layers[:2]
            live.config.num_hidden_layers = 2
    resolve_teacher((live, tiny_tokenizer()), tmp_path / "work")


def test_a_live_model_that_names_no_folder_is_taken(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model", "llama")
    live = AutoModelForCausalLM.from_config(AutoConfig.for_model(**read_config(folder)))
    assert resolve_teacher((live, tiny_tokenizer()), tmp_path / "work").architecture.hidden_size == 48
