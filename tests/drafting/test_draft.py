"""Drafts of families that are known are their tables, but for what no tiny model shows."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import minitron_nas.families
from minitron_nas.architecture.layout import Layout
from minitron_nas.drafting.draft import draft_family
from minitron_nas.errors import CheckpointError, TeacherNotFoundError
from minitron_nas.families.catalog import layout_of

NOT_SEEN: dict[str, dict[str, Any]] = {
    "llama": {"ignored": ()},
    "qwen2": {},
    "starcoder2": {},
    "phi3": {"longrope_follows_heads": False},
    "gpt_neox": {"ignored": (), "aliases": ()},
    "gemma2": {},
}


def written(python: str) -> Layout:
    names: dict[str, Any] = {}
    exec(python, names)
    layout = names["LAYOUT"]
    assert isinstance(layout, Layout)
    return layout


@pytest.mark.parametrize("name", NOT_SEEN)
def test_a_draft_is_the_table_that_was_written_by_hand(name: str) -> None:
    draft = draft_family(name)
    assert (draft.seen, draft.remarks) == ((), ())
    assert draft.layout == replace(layout_of(name), **NOT_SEEN[name])
    assert written(draft.to_python()) == draft.layout


def test_the_draft_of_a_type_that_is_not_known_is_the_readmes_table() -> None:
    readme = Path(minitron_nas.families.__file__).with_name("README.md").read_text(encoding="utf-8")
    (table,) = [part.split("```")[0] for part in readme.split("```python\n")[1:] if 'model_type="jais2"' in part]
    assert draft_family("jais2").layout == written(table)


def test_a_config_brings_its_own_oddities(tmp_path: Path) -> None:
    config = {"model_type": "llama", "attention_bias": True, "tie_word_embeddings": True, "num_key_value_heads": 32}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert draft_family(str(tmp_path)).layout == replace(layout_of("llama"), ignored=())


def test_what_no_row_explains_is_a_comment_that_says_what_was_seen() -> None:
    draft = draft_family("bloom")
    python = draft.to_python()
    assert {each.name for each in draft.seen} == {
        "transformer.h.{layer}.mlp.dense_h_to_4h.weight",
        "transformer.h.{layer}.mlp.dense_h_to_4h.bias",
        "transformer.h.{layer}.mlp.dense_4h_to_h.weight",
    }
    assert (
        "# transformer.h.{layer}.mlp.dense_h_to_4h.bias: of shape (192,): dimension 0 is 192, 384 with another"
        in python
    )
    assert written(python) == draft.layout


@pytest.mark.parametrize(("name", "key"), [("glm4_moe", "first_k_dense_replace"), ("afmoe", "num_dense_layers")])
def test_the_number_of_the_first_layers_is_told_as_such(name: str, key: str) -> None:
    draft = draft_family(name)
    (told,) = [each for each in draft.remarks if "FirstLayers" in each]
    assert key not in draft.layout.requires
    assert told.startswith(f"{key} is the number of the first layers, which are of a kind of their own: kinds=First")
    first, _, others = told.partition('only("others", ...)')
    assert "experts" not in first
    assert "mlp.experts.{expert}.down_proj.weight" in others
    assert f"# {told}" in draft.to_python()


def test_what_all_layers_have_or_none_is_told_as_such() -> None:
    draft = draft_family("granitemoeshared")
    (told,) = [each for each in draft.remarks if "AllOrNone" in each]
    assert told.startswith(
        "where shared_intermediate_size is not 0, all layers have shared_mlp.input_linear.weight, "
        'shared_mlp.output_linear.weight: kinds=AllOrNone("shared_intermediate_size", having='
    )


def test_layers_that_read_several_streams_at_once_are_drafted_as_far_as_can_be(tmp_path: Path) -> None:
    sizes = {
        "vocab_size": 320, "vocab_size_per_layer_input": 320, "hidden_size": 32, "hidden_size_per_layer_input": 8,
        "intermediate_size": [64] * 4, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 8, "num_kv_shared_layers": 0, "laurel_rank": 4, "altup_num_inputs": 2, "sliding_window": 16,
        "activation_sparsity_pattern": [0.0] * 4, "layer_types": [*["sliding_attention"] * 3, "full_attention"],
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3n_text", **sizes}))
    draft = draft_family(str(tmp_path))
    assert not draft.layout.scales_embeddings
    assert "altup" in draft.to_python()


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TeacherNotFoundError, match="nothing: no such folder or file here"):
        draft_family("nothing")
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_act": "none_such"}')
    with pytest.raises(CheckpointError, match="transformers makes no tiny model of .*, or cannot run it: .*none_such"):
        draft_family(str(tmp_path))
    with pytest.raises(CheckpointError, match="type 'nemotron_h' has no key for num_hidden_layers, so that no table"):
        draft_family("nemotron_h")
