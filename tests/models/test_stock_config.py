import copy
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from minitron_nas.families.catalog import layouts
from minitron_nas.models.config import read_config
from minitron_nas.models.stock_config import finished_config, save_stock
from minitron_nas.storage.atomic import read_json
from minitron_nas.testing import tiny_config, tiny_model

FACTORS = {"short_factor": [1.0, 1.1, 1.3, 1.7], "long_factor": [1.0, 2.0, 4.0, 8.0]}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN = {"factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 16.0}
SCALINGS = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 2.0},
    "llama3": LLAMA3,
    "yarn": YARN,
    "longrope": {**FACTORS, "original_max_position_embeddings": 64},
}
FULL, SLIDING = "full_attention", "sliding_attention"


def rope(kind, theta=5e5, **more):
    return {"rope_type": kind, "rope_theta": theta, **copy.deepcopy(SCALINGS[kind]), **more}


def finished(config, dtype="float32"):
    return finished_config(config if isinstance(config, dict) else config.to_dict(), dtype)


def read_by_this_version(config):
    filled = AutoConfig.for_model(**copy.deepcopy(config))
    found = copy.deepcopy(filled.rope_parameters)
    for each in [found, *found.values()]:
        if isinstance(each, dict):
            each.pop("type", None)
    return found


@pytest.mark.parametrize("kind", SCALINGS)
@pytest.mark.parametrize("model_type", ["granite", "llama", "mistral", "qwen3", "starcoder2"])
def test_both_forms_of_rope_are_written_and_this_version_reads_what_it_read_before(model_type, kind):
    config = tiny_config(model_type, rope_parameters=rope(kind))
    written = finished(config)
    assert read_by_this_version(written) == read_by_this_version(config.to_dict())
    assert written["rope_theta"] == 5e5
    if kind == "default":
        assert written["rope_scaling"] is None
    else:
        assert written["rope_scaling"] == {"rope_type": kind, "type": kind, **SCALINGS[kind]}


@pytest.mark.parametrize("model_type", sorted(layouts()))
def test_the_old_form_alone_says_the_same_as_both(model_type):
    config = tiny_config(model_type).to_dict()
    written = finished(config)
    old = {key: value for key, value in written.items() if key != "rope_parameters"}
    if layouts()[model_type].kinds is None:  # else what layers are is told by no other key
        old.pop("layer_types", None)
    old.pop("no_rope_layers", None)
    assert AutoConfig.for_model(**old).to_dict() == AutoConfig.for_model(**copy.deepcopy(written)).to_dict()


@pytest.mark.parametrize("model_type", sorted(layouts()))
def test_finishing_twice_changes_nothing(model_type):
    once = finished(tiny_config(model_type))
    assert finished(once) == once


@pytest.mark.parametrize(
    ("stated", "layers", "written"),
    [
        ("LLLG", "LLLG", "LLLG"),
        ("LLLG", "LLLGLLL", "LLLG"),
        ("LLLG", "LLGLLG", "LLG"),
        ("LLLG", "LLGLLLG", "LLGL"),
        ("LLLG", "GGL", "GGL"),
        ("LLLG", "GGG", "G"),
        (4, "LLLG", 4),
        (4, "LLGLLG", 3),
        (None, "GGG", None),
    ],
)
def test_a_pattern_of_windows_says_what_the_list_of_layers_says(stated, layers, written):
    kinds = [{"L": SLIDING, "G": FULL}[letter] for letter in layers]
    shape = {"num_hidden_layers": len(kinds), "layer_types": kinds}
    found = finished(tiny_config("exaone4", **shape, sliding_window_pattern=stated))
    assert (found["sliding_window_pattern"], found["layer_types"]) == (written, kinds)


def test_kinds_of_layers_are_called_what_published_configs_call_them():
    written = finished(tiny_config("granitemoehybrid"))
    assert written["layer_types"] == ["mamba", "attention", "mamba", "attention"]
    assert AutoConfig.for_model(**written).layer_types == ["linear_attention", "full_attention"] * 2


def test_sizes_that_a_published_config_says_again_follow_what_was_pruned():
    again = {"block_dim": 1024, "conv_dim": 1024, "conv_dim_out": 1024, "num_heads": 16, "block_ff_dim": 6656}
    written = finished({**tiny_config("lfm2").to_dict(), **again})
    assert {written[key] for key in ("block_dim", "conv_dim", "conv_dim_out")} == {written["hidden_size"]}
    assert written["num_heads"] == written["num_attention_heads"]
    assert written["block_ff_dim"] == written["intermediate_size"]


@pytest.mark.parametrize("keys", [{"rope_theta": 3e4, "rope_scaling": {"type": "linear", "factor": 2.0}}, {}])
def test_a_config_in_the_old_form_gets_the_new_one(keys):
    config = {key: value for key, value in tiny_config("llama").to_dict().items() if key != "rope_parameters"}
    given_config = {**config, **copy.deepcopy(keys)}
    written = finished(given_config)
    scaling = keys.get("rope_scaling")
    expected = {"rope_type": "linear", "factor": 2.0} if scaling else {"rope_type": "default"}
    assert written["rope_parameters"] == {"rope_theta": keys.get("rope_theta", 1e4), **expected}
    assert given_config == {**config, **keys}


def test_gemma_3_has_one_rope_for_each_kind_of_layer_in_both_forms():
    ropes = {FULL: rope("linear", 1e6, factor=8.0), SLIDING: rope("default", 2e4)}
    written = finished(tiny_config("gemma3_text", rope_parameters=ropes))
    assert (written["rope_theta"], written["rope_local_base_freq"]) == (1e6, 2e4)
    assert written["rope_scaling"] == {"rope_type": "linear", "type": "linear", "factor": 8.0}
    assert read_by_this_version(written) == ropes


def test_keys_of_transformers_4_that_would_undo_the_rope_of_each_kind_are_not_written():
    kinds = {"layer_types": [SLIDING, FULL], "mlp_layer_types": ["sparse", "sparse"], "num_hidden_layers": 2}
    config = AutoConfig.for_model("mellum", **kinds)
    ropes = config.rope_parameters
    written = finished_config(config.to_dict(), "float32")
    assert "rope_scaling" not in written
    assert AutoConfig.for_model(**written).rope_parameters == ropes


@pytest.mark.parametrize(
    ("more", "scaling"),
    [
        ({}, {}),
        ({"factor": 4.0}, {}),
        ({"factor": 2.0}, {"factor": 2.0, "attention_factor": math.sqrt(1 + math.log(2.0) / math.log(64))}),
        ({"attention_factor": 1.5}, {"attention_factor": 1.5}),
    ],
)
def test_phi_3_has_three_keys_of_scaling_unless_the_older_reader_has_to_refuse_it(more, scaling):
    config = tiny_config(
        "phi3", original_max_position_embeddings=64, rope_parameters=rope("longrope", partial_rotary_factor=1.0, **more)
    )
    written = finished(config)
    assert written["rope_scaling"] == {"type": "longrope", **FACTORS, **scaling}
    assert (written["original_max_position_embeddings"], written["partial_rotary_factor"]) == (64, 1.0)


def test_gpt_neox_keeps_its_own_names_and_olmo_2_its_two_keys():
    neox = finished(tiny_config("gpt_neox", rope_parameters=rope("default", partial_rotary_factor=0.5)))
    assert (neox["rotary_pct"], neox["rotary_emb_base"]) == (0.5, 5e5)
    assert finished(tiny_config("olmo2", rope_parameters=rope("linear")))["rope_scaling"] == {
        "type": "linear",
        "factor": 4.0,
    }


def test_nothing_that_describes_where_the_model_came_from_is_written():
    foreign = {
        "auto_map": {"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"},
        "quantization_config": {"quant_method": "gptq"},
        "compression_config": {},
        "transformers_weights": "other.safetensors",
        "pretraining_tp": 2,
        "_name_or_path": "/home/me/model",
        "_attn_implementation": "flash_attention_2",
    }
    config = {**tiny_config("llama").to_dict(), "architectures": ["OwnForCausalLM"], **foreign}
    written = finished(config, "bfloat16")
    assert foreign.keys() & written.keys() == set()
    assert written["architectures"] == ["LlamaForCausalLM"]
    assert written["dtype"] == written["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("layers", "pattern"),
    [("SFSF", 2), ("SSFS", 3), ("SSSS", 6), ("FFFF", 1), ("SSFF", None), ("FSSF", None)],
)
def test_a_pattern_of_windows_is_written_where_the_layers_follow_one(layers, pattern):
    kinds = [FULL if kind == "F" else SLIDING for kind in layers]
    for stated in ({}, {"sliding_window_pattern": 6}):
        written = finished({**tiny_config("gemma3_text", layer_types=kinds).to_dict(), **stated})
        assert written.get("sliding_window_pattern") == pattern
        assert written["layer_types"] == kinds


@pytest.mark.parametrize(("layers", "first"), [("FFFF", 4), ("FFSS", 2), ("SSSS", 0)])
def test_the_first_layer_with_a_window_is_counted_anew(layers, first):
    kinds = [FULL if kind == "F" else SLIDING for kind in layers]
    config = tiny_config("qwen2", layer_types=kinds, use_sliding_window=True, sliding_window=8, max_window_layers=28)
    assert finished(config)["max_window_layers"] == first


@pytest.mark.parametrize(("layers", "interval"), [("LLLF", 4), ("LFLF", 2), ("LFFL", None)])
def test_the_interval_of_layers_with_attention_holds_or_goes(layers, interval):
    kinds = [FULL if kind == "F" else "linear_attention" for kind in layers]
    config = {**tiny_config("qwen3_5_text", layer_types=kinds).to_dict(), "full_attention_interval": 4}
    assert finished(config).get("full_attention_interval") == interval


def test_the_numbers_of_layers_with_attention_follow_the_list_of_kinds():
    config = {**tiny_config("lfm2").to_dict(), "full_attn_idxs": [2, 5]}
    assert finished(config)["full_attn_idxs"] == [1, 3]
    assert finished(config)["block_ff_dim"] == 96


@pytest.mark.parametrize(("layers", "first"), [("DSSS", 1), ("DDSS", 2), ("SSSS", 0), ("DSDS", None)])
def test_the_number_of_dense_layers_before_those_with_experts_follows_the_list_or_goes(layers, first):
    kinds = ["dense" if kind == "D" else "sparse" for kind in layers]
    config = {**tiny_config("glm4_moe_lite", mlp_layer_types=kinds).to_dict(), "first_k_dense_replace": 1}
    assert finished(config).get("first_k_dense_replace") == first


@pytest.mark.parametrize(("layers", "step"), [([1, 3], 2), ([3], 4), ([0, 3], None), ([0, 1, 2, 3], 1)])
def test_the_step_of_layers_with_experts_holds_or_goes(layers, step):
    config = tiny_config("llama4_text", moe_layers=layers).to_dict()
    assert finished(config).get("interleave_moe_layer_step") == step
    assert finished(config)["moe_layers"] == layers


@pytest.mark.parametrize(("k_eq_v", "groups"), [(True, 1), (False, None)])
def test_heads_of_layers_that_see_everything_are_said_for_other_readers_too(k_eq_v, groups):
    config = tiny_config("gemma4_text", attention_k_eq_v=k_eq_v).to_dict()
    assert "global_head_dim" not in config
    written = finished(config)
    assert (written["global_head_dim"], written.get("num_global_key_value_heads")) == (16, groups)
    assert AutoConfig.for_model(**written).to_dict()["per_layer_config"] == config["per_layer_config"]


def test_a_pattern_of_letters_follows_the_list_of_kinds():
    config = {**tiny_config("nemotron_h").to_dict(), "hybrid_override_pattern": "M-M-*-"}
    assert finished(config)["hybrid_override_pattern"] == "M-*-"


def test_infinity_is_written_as_json_has_it_and_read_again(tmp_path):
    save_stock(tiny_model(tiny_config("falcon_h1")), tmp_path)
    text = (tmp_path / "config.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["time_step_limit"] == [0.0, {"__float__": "Infinity"}]
    assert read_config(tmp_path)["time_step_limit"] == [0.0, math.inf]
    assert AutoConfig.from_pretrained(tmp_path).time_step_limit[1] == math.inf


@pytest.mark.parametrize(("rotary", "interval"), [([1, 1, 1, 0], 4), ([1, 0, 1, 0], 2), ([0, 1, 1, 0], None)])
def test_the_interval_of_layers_without_rope_holds_or_goes(rotary, interval):
    config = tiny_config("smollm3", no_rope_layers=rotary)
    assert finished(config).get("no_rope_layer_interval") == interval


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe"])
def test_the_number_of_experts_goes_by_both_names(model_type):
    written = finished(tiny_config(model_type, num_experts=6, num_local_experts=6))
    assert (written["num_experts"], written["num_local_experts"]) == (6, 6)


@given(
    kind=st.sampled_from(["linear", "dynamic", "llama3", "yarn", "longrope"]),
    theta=st.floats(1e3, 1e8),
    factor=st.floats(1.0, 64.0),
    original=st.sampled_from([16, 64, 128, 255]),
)
def test_whatever_the_scaling_this_version_computes_the_same_frequencies(kind, theta, factor, original):
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    more = {key: original for key in SCALINGS[kind] if key == "original_max_position_embeddings"}
    config = tiny_config("llama", rope_parameters={**rope(kind, theta), "factor": factor, **more})
    again = AutoConfig.for_model(**copy.deepcopy(finished(config)))
    before, after = (ROPE_INIT_FUNCTIONS[kind](each, seq_len=300) for each in (config, again))
    assert torch.equal(before[0], after[0])
    assert before[1] == after[1]


def test_saving_leaves_the_model_as_it_was_and_old_generation_settings_behind(tmp_path):
    config = tiny_config("llama", temperature=0.5, do_sample=True)
    model = tiny_model(config)
    before = copy.deepcopy(vars(model.config))
    save_stock(model, tmp_path)
    assert vars(model.config) == before
    assert "temperature" not in read_json(tmp_path / "config.json")
    ids = torch.arange(20).view(1, 20)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, model(ids).logits)
