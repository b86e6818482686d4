import json
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest

from minitron_nas.architecture.config import architecture_of, with_sizes
from minitron_nas.architecture.costs import costs_of, count_parameters
from minitron_nas.architecture.spec import EXPERT_FIELDS, MAMBA_FIELDS, SHAPE_FIELDS, Architecture, shape_id
from minitron_nas.errors import InvalidArchitectureError, MinitronNasError
from minitron_nas.families.catalog import layout_of

SIZES = [name for name in SHAPE_FIELDS if name not in (*EXPERT_FIELDS, *MAMBA_FIELDS)]
NEMOTRON_15B = Architecture(
    model_type="nemotron",
    num_hidden_layers=32,
    hidden_size=6144,
    intermediate_size=24576,
    num_attention_heads=48,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=256000,
)
CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 30,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}


def test_a_config_is_read_and_head_dim_follows_from_it() -> None:
    assert architecture_of(CONFIG, layout_of("llama")) == Architecture(
        "llama", 30, 576, 1536, 9, 3, 64, 49152, tie_word_embeddings=True
    )


def test_an_explicit_head_dim_stands() -> None:
    assert architecture_of(CONFIG | {"head_dim": 128}, layout_of("llama")).head_dim == 128


@pytest.mark.parametrize("absent", [{"num_key_value_heads": None}, {}])
def test_without_groups_every_head_is_its_own_group(absent: dict[str, None]) -> None:
    config = {name: value for name, value in CONFIG.items() if name != "num_key_value_heads"} | absent
    assert architecture_of(config, layout_of("llama")).num_key_value_heads == 9


def test_biases_are_read() -> None:
    architecture = architecture_of(CONFIG | {"attention_bias": True, "mlp_bias": True}, layout_of("llama"))
    assert (architecture.attention_bias, architecture.mlp_bias) == (True, True)


def test_longrope_is_read_under_either_name_of_its_parameters() -> None:
    rope = {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}
    for config, longrope in (({"rope_parameters": rope}, True), ({"rope_scaling": rope}, True), ({}, False)):
        assert architecture_of(CONFIG | config, layout_of("llama")).longrope is longrope


def test_a_config_of_something_else_is_refused_by_the_missing_field() -> None:
    with pytest.raises(InvalidArchitectureError, match="the config has no 'num_hidden_layers'"):
        architecture_of({"model_type": "llama"}, layout_of("llama"))


@pytest.mark.parametrize("name", [*SIZES, "head_dim", "vocab_size"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "8", None])
def test_a_size_that_is_no_positive_integer_is_refused(name: str, value: object) -> None:
    with pytest.raises(InvalidArchitectureError, match=f"{name}={value!r} must be an integer of at least 1"):
        Architecture(**(NEMOTRON_15B.to_dict() | {name: value}))


def test_heads_that_do_not_fill_their_groups_are_refused() -> None:
    with pytest.raises(
        InvalidArchitectureError, match="num_attention_heads=20 is not a multiple of num_key_value_heads=8"
    ):
        Architecture(**(NEMOTRON_15B.to_dict() | {"num_attention_heads": 20}))


def test_the_error_is_also_a_value_error() -> None:
    with pytest.raises(ValueError, match="at least 1") as caught:
        Architecture(**(NEMOTRON_15B.to_dict() | {"hidden_size": 0}))
    assert isinstance(caught.value, MinitronNasError)


def test_a_shape_is_a_frozen_hashable_value() -> None:
    same = Architecture(**NEMOTRON_15B.to_dict())
    assert len({NEMOTRON_15B, same}) == 1
    with pytest.raises(FrozenInstanceError):
        same.hidden_size = 1  # type: ignore[misc]


def test_a_shape_survives_json() -> None:
    assert Architecture(**json.loads(json.dumps(NEMOTRON_15B.to_dict()))) == NEMOTRON_15B


def test_the_id_holds_the_five_prunable_sizes() -> None:
    assert NEMOTRON_15B.id == "l32-h6144-f24576-q48-k8"
    assert NEMOTRON_15B.sizes() == {
        "num_hidden_layers": 32,
        "hidden_size": 6144,
        "intermediate_size": 24576,
        "num_attention_heads": 48,
        "num_key_value_heads": 8,
    }


def test_the_id_holds_the_sizes_of_experts_and_mixers() -> None:
    experts = replace(NEMOTRON_15B, num_experts=8, num_experts_per_tok=2)
    assert experts.id == "l32-h6144-f24576-q48-k8-e8-m0"
    mixed = replace(NEMOTRON_15B, mamba_num_heads=6, mamba_head_dim=8, mamba_num_groups=2)
    assert mixed.id == shape_id({**mixed.sizes(), "num_experts": None}) == "l32-h6144-f24576-q48-k8-n6-p8"


def test_reshaping_replaces_only_what_is_named() -> None:
    pruned = NEMOTRON_15B.reshaped({"hidden_size": 4096, "intermediate_size": 16384})
    assert pruned.id == "l32-h4096-f16384-q48-k8"
    assert (pruned.head_dim, pruned.vocab_size, pruned.model_type) == (128, 256000, "nemotron")
    assert NEMOTRON_15B.id == "l32-h6144-f24576-q48-k8"


def test_reshaping_to_nothing_new_is_the_same_shape() -> None:
    assert NEMOTRON_15B.reshaped({}) == NEMOTRON_15B
    assert NEMOTRON_15B.reshaped(NEMOTRON_15B.sizes()) == NEMOTRON_15B


def test_fewer_groups_take_their_query_heads_along() -> None:
    assert NEMOTRON_15B.reshaped({"num_key_value_heads": 4}).num_attention_heads == 24


def test_fewer_query_heads_keep_the_groups() -> None:
    pruned = NEMOTRON_15B.reshaped({"num_attention_heads": 24})
    assert (pruned.num_key_value_heads, pruned.heads_per_group) == (8, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_dim": 64}, "'head_dim' is not a prunable size; choose from num_hidden_layers, hidden_size"),
        ({"hidden_size": 8192}, "hidden_size=8192 exceeds the source's 6144; pruning only removes"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0 must be an integer of at least 1"),
        ({"num_attention_heads": 20}, "num_attention_heads=20 is not a multiple of num_key_value_heads=8"),
        (
            {"num_attention_heads": 48, "num_key_value_heads": 4},
            "num_attention_heads=48 over num_key_value_heads=4 asks for 12 query heads a group; the source",
        ),
    ],
)
def test_a_shape_that_pruning_cannot_reach_is_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(InvalidArchitectureError, match=message):
        NEMOTRON_15B.reshaped(changes)


@pytest.mark.parametrize("name", SHAPE_FIELDS)
def test_something_of_everything_stays(name: str) -> None:
    mixers = {"mamba_num_heads": 6, "mamba_head_dim": 8, "mamba_num_groups": 2}
    source = replace(NEMOTRON_15B, **mixers, **dict.fromkeys(EXPERT_FIELDS, 8))
    with pytest.raises(InvalidArchitectureError, match=f"{name}=0 must be an integer of at least 1"):
        source.reshaped({name: 0})
    assert NEMOTRON_15B.reshaped(dict.fromkeys((*EXPERT_FIELDS, *MAMBA_FIELDS), 0)) == NEMOTRON_15B


def test_where_every_group_has_one_head_they_leave_together() -> None:
    source = Architecture("gpt2", 12, 768, 3072, 12, 12, 64, 50257)
    assert source.reshaped({"num_attention_heads": 8}).num_key_value_heads == 8


def test_experts_are_part_of_a_shape_where_there_are_any() -> None:
    source = Architecture("mixtral", 32, 4096, 14336, 32, 8, 128, 32000, num_experts=8, num_experts_per_tok=2)
    assert source.id == "l32-h4096-f14336-q32-k8-e8-m0"
    assert source.reshaped({"num_experts": 4}).sizes()["num_experts"] == 4


def test_gpt_2_names_its_sizes_otherwise_and_leaves_the_ffn_to_four_times_hidden() -> None:
    config = {
        "model_type": "gpt2",
        "n_layer": 12,
        "n_embd": 768,
        "n_head": 12,
        "vocab_size": 50257,
        "n_positions": 1024,
    }
    source = architecture_of(config, layout_of("gpt2"))
    assert (source.intermediate_size, source.head_dim, source.num_key_value_heads) == (3072, 64, 12)
    assert source.tie_word_embeddings
    target = source.reshaped({"hidden_size": 512, "num_attention_heads": 8})
    assert with_sizes(config, target, layout_of("gpt2")) == config | {"n_embd": 512, "n_head": 8, "n_inner": 3072}


def test_sizes_are_written_under_the_names_that_the_config_has_for_them() -> None:
    config = {"num_local_experts": 8, "hidden_size": 64}
    target = Architecture("mixtral", 2, 64, 96, 4, 2, 16, 100, num_experts=4, num_experts_per_tok=2)
    written = with_sizes(config, target, layout_of("mixtral"))
    assert written["num_local_experts"] == 4
    assert "num_experts" not in written


def test_what_a_table_does_not_describe_is_refused() -> None:
    config = CONFIG | {"model_type": "qwen3_moe", "mlp_only_layers": [3]}
    with pytest.raises(InvalidArchitectureError, match=r"mlp_only_layers=\[3\] is not described by the table"):
        architecture_of(config, layout_of("qwen3_moe"))
    config = CONFIG | {"model_type": "qwen3_next", "decoder_sparse_step": 2}
    with pytest.raises(
        InvalidArchitectureError,
        match="which needs decoder_sparse_step=1: name the layers without experts in mlp_only_layers",
    ):
        architecture_of(config, layout_of("qwen3_next"))


SHARED = Architecture(
    "qwen2_moe", 2, 16, 32, 4, 2, 4, 50, num_experts=4, moe_intermediate_size=8, shared_expert_intermediate_size=24
)
TIED = replace(SHARED, shared_expert_intermediate_size=0, num_shared_experts=3)


def test_shared_experts_have_a_size_of_their_own_or_one_that_follows_the_others() -> None:
    assert SHARED.num_shared_neurons == TIED.num_shared_neurons == 24
    narrower = {"moe_intermediate_size": 5}
    assert SHARED.reshaped(narrower).num_shared_neurons == 24
    assert TIED.reshaped(narrower).num_shared_neurons == 15
    assert SHARED.reshaped({"shared_expert_intermediate_size": 7}).num_shared_neurons == 7
    assert SHARED.id == "l2-h16-f32-q4-k2-e4-m8-s24"
    assert TIED.id == "l2-h16-f32-q4-k2-e4-m8"
    assert "shared_expert_intermediate_size" in SHARED.sizes()
    assert "shared_expert_intermediate_size" not in TIED.sizes()


def test_what_a_shared_expert_takes_counts_in_arrays_as_it_does_alone() -> None:
    for source, layout in ((SHARED, layout_of("qwen2_moe")), (TIED, layout_of("glm4_moe"))):
        kinds = ("dense", "experts") if layout.kinds else ()
        shape = replace(source, layer_kinds=kinds, fixed_sizes=dict.fromkeys(layout.switches(), False))
        targets = [shape, shape.reshaped({"moe_intermediate_size": 5, "num_experts": 3})]
        columns = {name: np.array([getattr(each, name) for each in targets]) for name in layout.shape_fields()}
        counted = costs_of(layout, shape, columns, 8)["num_parameters"].tolist()
        assert counted == [count_parameters(each, layout) for each in targets]
