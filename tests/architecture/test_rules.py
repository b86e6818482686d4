import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoConfig

from minitron_nas.architecture.config import architecture_of, require_described, with_sizes
from minitron_nas.architecture.layout import Axis
from minitron_nas.architecture.rules import (
    RULES,
    check_architecture,
    check_changes,
    fewest_with_attention,
    require_latents,
)
from minitron_nas.architecture.spec import EXPERT_FIELDS, Architecture
from minitron_nas.errors import InvalidArchitectureError
from minitron_nas.families.catalog import layout_of, layouts
from minitron_nas.testing import tiny_config, tiny_model

DENSE = sorted(
    name
    for name, layout in layouts().items()
    if not (layout.has_experts or layout.head_dim_is_derived or layout.fixed_keys())
)


def shape(model_type: str, hidden_size: int) -> Architecture:
    return Architecture(model_type, 2, hidden_size, 64, 6, 2, 8, 100)


def refusal(action: Callable[[], object]) -> str:
    """Return the message with which an action fails, or nothing."""
    try:
        action()
    except Exception as error:  # noqa: BLE001 - the class of transformers' refusal is not documented
        return str(error)
    return ""


@pytest.mark.parametrize("model_type", DENSE)
@pytest.mark.parametrize("hidden_size", [4, 6, 46, 47, 48, 50, 54])
def test_a_shape_is_refused_exactly_when_transformers_refuses_it(model_type: str, hidden_size: int) -> None:
    architecture = shape(model_type, hidden_size)
    fields = architecture.to_dict()
    ours = refusal(lambda: check_architecture(architecture, layouts()[model_type]))
    theirs = refusal(lambda: AutoConfig.for_model(fields.pop("model_type"), **fields))
    assert ours.startswith(f"hidden_size={hidden_size} with num_attention_heads=6") == bool(ours)
    assert ("is not a multiple of the number of attention" in theirs) == bool(theirs)
    assert bool(ours) == bool(theirs)


def test_at_least_one_family_is_bound_and_one_is_free() -> None:
    assert {layouts()["llama"].hidden_multiple_of_heads, layouts()["nemotron"].hidden_multiple_of_heads} == {
        True,
        False,
    }


def test_the_refusal_names_the_rule_and_the_nearest_legal_sizes() -> None:
    message = (
        "hidden_size=50 with num_attention_heads=6 breaks the rule hidden_size_multiple_of_heads: stock "
        "transformers refuses a config whose hidden_size is no multiple of num_attention_heads; "
        "nearest legal hidden_size: 48 or 54"
    )
    with pytest.raises(InvalidArchitectureError, match=f"^{re.escape(message)}$"):
        check_architecture(shape("llama", 50), layouts()["llama"])


def test_zero_is_not_offered_as_a_legal_size() -> None:
    with pytest.raises(InvalidArchitectureError, match=r"nearest legal hidden_size: 6$"):
        check_architecture(shape("llama", 4), layouts()["llama"])


def test_a_rule_judges_arrays_entry_by_entry() -> None:
    (rule,) = [rule for rule in RULES if rule.name == "hidden_size_multiple_of_heads"]
    sizes = {Axis.HIDDEN: np.array([46, 48, 54]), Axis.KV_GROUPS: np.array([2, 2, 3]), Axis.GROUP_HEADS: 3}
    assert rule.keeps(sizes, shape("llama", 48)).tolist() == [False, True, True]


@pytest.mark.parametrize(("hidden_size", "legal"), [(48, True), (40, False), (54, False)])
def test_without_a_head_dim_of_its_own_a_family_binds_channels_to_heads(hidden_size: int, legal: bool) -> None:
    message = refusal(lambda: check_architecture(shape("gpt2", hidden_size), layouts()["gpt2"]))
    assert message.endswith("nearest legal hidden_size: 48") is not legal
    assert bool(message) is not legal


@pytest.mark.parametrize("hidden_size", [24, 36, 40, 47, 48])
@pytest.mark.parametrize("partial_rotary_factor", [1.0, 0.5])
def test_longrope_binds_channels_to_heads_as_transformers_does(hidden_size: int, partial_rotary_factor: float) -> None:
    factors = [1.0] * int(4 * partial_rotary_factor)
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": factors, "long_factor": factors}
    config = AutoConfig.for_model(
        "phi3",
        hidden_size=48,
        num_attention_heads=6,
        rope_parameters={**rope, "partial_rotary_factor": partial_rotary_factor},
    )
    layout = layouts()["phi3"]
    source = architecture_of(config.to_dict(), layout)
    target = source.reshaped({"hidden_size": hidden_size})
    ours = refusal(lambda: check_architecture(target, layout))
    theirs = refusal(lambda: AutoConfig.for_model(**with_sizes(config.to_dict(), target, layout)))
    assert bool(ours) == bool(theirs) == (hidden_size < 48)
    assert ours.endswith("nearest legal hidden_size: 48") == bool(ours)
    assert not refusal(lambda: check_architecture(replace(target, longrope=False), layout))


@pytest.mark.parametrize("hidden_size", [24, 32, 33, 36, 48, 96])
def test_the_channels_of_a_mixer_bind_hidden_size_as_transformers_does(hidden_size: int) -> None:
    layout, config = layouts()["granitemoehybrid"], tiny_config("granitemoehybrid").to_dict()  # 12 heads of 8 channels
    target = replace(architecture_of(config, layout), hidden_size=hidden_size)
    ours = refusal(lambda: check_architecture(target, layout))
    theirs = refusal(lambda: AutoConfig.for_model(**with_sizes(config, target, layout)))
    assert bool(ours) == bool(theirs) == (96 % hidden_size != 0)
    if ours:
        assert ours.endswith(f"nearest legal hidden_size: {24 if hidden_size < 32 else 32} or {48}")


def test_channels_of_a_mixer_below_hidden_size_are_the_one_that_is_legal() -> None:
    layout = layout_of("granitemoehybrid")
    source = architecture_of(tiny_config("granitemoehybrid").to_dict(), layout)
    with pytest.raises(InvalidArchitectureError, match="nearest legal hidden_size: 8$"):
        check_architecture(source.reshaped({"mamba_num_heads": 2, "mamba_head_dim": 4}), layout)


def test_a_token_needs_as_many_experts_as_it_is_sent_to() -> None:
    (rule,) = [rule for rule in RULES if rule.name == "experts_cover_a_token"]
    source = Architecture("mixtral", 2, 48, 64, 6, 2, 8, 100, num_experts=4, num_experts_per_tok=2)
    assert rule.keeps({Axis.EXPERTS: np.array([1, 2, 4])}, source).tolist() == [False, True, True]


def test_a_config_has_as_many_experts_as_a_token_is_sent_to() -> None:
    config = tiny_config("mixtral").to_dict() | {"num_local_experts": 1}
    source = Architecture("mixtral", 2, 48, 64, 6, 2, 8, 100, num_experts=1, num_experts_per_tok=2)
    with pytest.raises(InvalidArchitectureError, match="num_experts=1 is below num_experts_per_tok=2"):
        architecture_of(config, layout_of("mixtral"))
    with pytest.raises(InvalidArchitectureError, match="num_experts=1 is below num_experts_per_tok=2"):
        require_described(source, layout_of("mixtral"))


def test_rows_of_expert_matrices_fill_sixteen_bytes() -> None:
    layout = layouts()["mixtral"]
    source = Architecture("mixtral", 2, 48, 64, 6, 2, 8, 100, num_experts=4, num_experts_per_tok=2)
    check_architecture(source, layout)
    message = (
        r"^intermediate_size=60 breaks the rule expert_matrices_aligned: .*; nearest legal intermediate_size: 56 or 64$"
    )
    with pytest.raises(InvalidArchitectureError, match=message):
        check_architecture(source.reshaped({"intermediate_size": 60}), layout)
    message = (
        "^hidden_size=44 with moe_intermediate_size=20 breaks the rule expert_matrices_aligned: .*; nearest legal "
        "hidden_size: 40 or 48; moe_intermediate_size: 16 or 24$"
    )
    narrow = replace(source, model_type="qwen3_moe", hidden_size=44, moe_intermediate_size=20)
    with pytest.raises(InvalidArchitectureError, match=message):
        check_architecture(narrow, layouts()["qwen3_moe"])


def test_a_size_that_the_family_lacks_is_refused_with_those_that_it_has() -> None:
    with pytest.raises(InvalidArchitectureError, match="'num_experts' is not a prunable size of family 'llama'"):
        check_changes(["hidden_size", "num_experts"], shape("llama", 48), layouts()["llama"])


def test_a_size_of_which_the_model_has_nothing_is_refused_with_its_kinds_of_layers() -> None:
    layout = layout_of("nemotron_h")
    config = tiny_config("nemotron_h", layers_block_type=["full_attention", "moe"])
    source = architecture_of(config.to_dict(), layout)
    check_changes(["hidden_size", "num_experts"], source, layout)
    message = "'mamba_num_heads' is the size of nothing in this model, whose layers are of kind full_attention, moe;"
    with pytest.raises(InvalidArchitectureError, match=message):
        check_changes(["mamba_num_heads"], source, layout)


def test_the_groups_that_a_router_picks_hold_as_many_experts_as_a_token_is_sent_to() -> None:
    layout = layout_of("nemotron_h")
    sizes = {"n_group": 4, "topk_group": 1, "num_local_experts": 16, "num_experts_per_tok": 4}
    config = tiny_config("nemotron_h", layers_block_type=["full_attention", "moe"], **sizes)
    source = architecture_of(config.to_dict(), layout)
    check_architecture(source, layout)
    with pytest.raises(InvalidArchitectureError, match=r"picked_groups_cover_a_token: .* legal num_experts: 16"):
        check_architecture(source.reshaped({"num_experts": 12}), layout)
    (rule,) = [rule for rule in RULES if rule.name == "picked_groups_cover_a_token"]
    assert rule.keeps({Axis.EXPERTS: np.array([8, 12, 16])}, source).tolist() == [False, False, True]


def test_groups_of_experts_keep_equally_many_and_at_least_two() -> None:
    layout = layout_of("deepseek_v3")
    kept = Architecture(
        "deepseek_v3", 2, 48, 64, 6, 6, 8, 100, num_experts=12, num_experts_per_tok=2, moe_intermediate_size=8,
        num_expert_groups=4, layer_kinds=("dense", "experts"), fixed_sizes=LATENTS,
    )  # fmt: skip
    check_architecture(kept, layout)
    rules = {10: ("experts_fill_their_groups", "8 or 12"), 4: ("groups_hold_their_best_two", "8")}
    for number, (rule, nearest) in rules.items():
        message = rf"num_experts={number} breaks the rule {rule}: .* num_experts: {nearest}$"
        with pytest.raises(InvalidArchitectureError, match=message):
            check_architecture(replace(kept, num_experts=number), layout)


LIMITED = {"topk_method": "group_limited_greedy"}


@pytest.mark.parametrize(
    ("model_type", "sizes"),
    [
        ("deepseek_v2", LIMITED),
        ("deepseek_v2", {"topk_method": "greedy"}),
        ("deepseek_v3", {}),
        ("dots1", {}),
        ("exaone_moe", {}),
        ("glm4_moe", {}),
        ("glm4_moe_lite", {}),
        ("solar_open", {}),
    ],
)
@pytest.mark.parametrize("num_groups", [1, 4])
def test_a_router_gets_as_many_experts_a_group_as_transformers_computes_with(
    model_type: str, sizes: dict[str, str], num_groups: int
) -> None:
    layout, ids = layout_of(model_type), torch.arange(7)[None]  # of 8, experts of several tokens would fill a group
    sizes = {"n_group": num_groups, "topk_group": 1, "num_experts_per_tok": 1, **sizes}
    config = tiny_config(model_type, num_local_experts=8, n_routed_experts=8, num_experts=8, **sizes).to_dict()
    source = architecture_of(config, layout)
    assert source.num_experts == 8
    for number in range(1, 9):
        target = replace(source, num_experts=number)
        ours = refusal(lambda: check_architecture(target, layout))  # noqa: B023 - called here
        student = AutoConfig.for_model(**with_sizes(config, target, layout))
        theirs = refusal(lambda: tiny_model(student)(ids))  # noqa: B023 - called here
        assert bool(ours) == bool(theirs), (number, ours, theirs)


def test_groups_that_a_router_does_not_look_at_are_none() -> None:
    sizes = {"n_group": 4, "topk_group": 2, "n_routed_experts": 8}
    read = [
        architecture_of(tiny_config("deepseek_v2", **sizes, **method).to_dict(), layout_of("deepseek_v2"))
        for method in (LIMITED, {"topk_method": "greedy"})
    ]
    assert [(each.num_expert_groups, each.num_groups_per_tok) for each in read] == [(4, 2), (0, 0)]


EXPERTS_OF_GRANITE = {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 40}


@pytest.mark.parametrize(
    ("model_type", "config", "change", "rule", "nearest"),
    [
        (  # 72 channels of a mixer: 36 would divide them, 40 would be in steps
            "granitemoehybrid",
            EXPERTS_OF_GRANITE,
            {"mamba_head_dim": 6, "hidden_size": 40},
            "hidden_size_divides_mixer",
            "hidden_size: 24 or 72",
        ),
        (
            "granitemoehybrid",
            EXPERTS_OF_GRANITE,
            {"hidden_size": 12},
            "expert_matrices_aligned",
            "hidden_size: 8 or 16",
        ),
        ("deepseek_v2", {}, {"hidden_size": 44}, "hidden_size_multiple_of_heads", "hidden_size: 24 or 48"),
        ("deepseek_v2", {}, {"hidden_size": 36}, "expert_matrices_aligned", "hidden_size: 24 or 48"),
        (
            "nemotron_h",
            {"n_group": 4, "topk_group": 1, "num_local_experts": 16, "num_experts_per_tok": 4},
            {"num_experts": 10},
            "experts_fill_their_groups",
            "num_experts: 16",
        ),
        (  # 4 would be as many as a token is sent to, and one a group
            "nemotron_h",
            {"n_group": 4, "topk_group": 1, "num_local_experts": 16, "num_experts_per_tok": 4},
            {"num_experts": 2},
            "experts_cover_a_token",
            "num_experts: 16",
        ),
    ],
)
def test_what_one_rule_advises_no_other_rule_refuses(
    model_type: str, config: dict[str, int], change: dict[str, int], rule: str, nearest: str
) -> None:
    layout = layout_of(model_type)
    listed = {"layers_block_type": ["full_attention", "moe"]} if model_type == "nemotron_h" else {}
    source = architecture_of(tiny_config(model_type, **listed, **config).to_dict(), layout)
    target = replace(source, **change)
    with pytest.raises(InvalidArchitectureError, match=f"breaks the rule {rule}: .*; nearest legal {nearest}$"):
        check_architecture(target, layout)
    name, _, told = nearest.partition(": ")
    for size in told.split(" or "):
        check_architecture(replace(target, **{name: int(size)}), layout)


OF_LATENTS = {"layers_block_type": ["full_attention", "moe"], "moe_latent_size": 24}


@pytest.mark.parametrize("latents", [16, 18, 20, 24])
def test_latents_fill_sixteen_bytes_as_transformers_asks(latents: int) -> None:
    config = tiny_config("nemotron_h", **{**OF_LATENTS, "moe_latent_size": latents})
    source = architecture_of(config.to_dict(), layout_of("nemotron_h"))
    theirs = refusal(lambda: tiny_model(config).bfloat16()(torch.arange(8)[None]))
    ours = refusal(lambda: require_latents(source))
    assert bool(ours) == bool(theirs) == bool(latents % 8)
    assert ours.startswith(f"moe_latent_size={latents} is no multiple of 8: ") == bool(ours)


def test_experts_that_read_latents_leave_hidden_size_free() -> None:
    layout, config = layout_of("nemotron_h"), tiny_config("nemotron_h", **OF_LATENTS, hidden_size=42)
    target = architecture_of(config.to_dict(), layout)
    check_architecture(target, layout)
    assert not refusal(lambda: tiny_model(config).bfloat16()(torch.arange(8)[None]))
    message = r"^moe_intermediate_size=20 breaks the rule expert_matrices_aligned: .* moe_intermediate_size: 16 or 24$"
    with pytest.raises(InvalidArchitectureError, match=message):
        check_architecture(replace(target, moe_intermediate_size=20), layout)


def test_no_more_is_advised_than_there_is() -> None:
    source = shape("llama", 48)
    narrow = source.reshaped({"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 47})
    with pytest.raises(InvalidArchitectureError, match="nearest legal hidden_size: 44 or 48$"):
        check_architecture(narrow, layout_of("llama"), source)
    with pytest.raises(InvalidArchitectureError, match="nearest legal hidden_size: 44$"):
        check_architecture(narrow, layout_of("llama"), replace(source, hidden_size=47))


def test_where_no_size_is_legal_beside_the_others_it_is_said() -> None:
    layout = layout_of("granitemoehybrid")
    source = architecture_of(tiny_config("granitemoehybrid", **EXPERTS_OF_GRANITE).to_dict(), layout)
    message = "no hidden_size is legal beside the other sizes; choose others of these, too$"
    with pytest.raises(InvalidArchitectureError, match=message):
        check_architecture(replace(source, mamba_head_dim=3), layout)


@pytest.mark.parametrize("model_type", ["bamba", "lfm2", "nemotron_h", "qwen3_next"])
def test_a_layer_with_attention_stays_among_those_that_hand_on_states(model_type: str) -> None:
    layout = layout_of(model_type)
    source = architecture_of(tiny_config(model_type).to_dict(), layout)
    check_architecture(source, layout)
    without = [layer for layer, kind in enumerate(source.kinds) if not kind.startswith("full_attention")]
    with pytest.raises(InvalidArchitectureError, match=r"has attention, .*; keep a layer of kind full_attention"):
        check_architecture(source.with_layers(without), layout)
    fewest = fewest_with_attention(source, layout)
    check_architecture(source.reshaped({"num_hidden_layers": fewest}), layout)
    for fewer in range(1, fewest):
        with pytest.raises(InvalidArchitectureError, match=r"has attention"):
            check_architecture(source.reshaped({"num_hidden_layers": fewer}), layout)


@pytest.mark.parametrize(
    ("model_type", "all_dense"),
    [("deepseek_v3", {"first_k_dense_replace": 4}), ("qwen3_next", {"mlp_only_layers": [0, 1, 2, 3]})],
)
def test_where_no_layer_has_experts_nothing_of_experts_is_offered(
    model_type: str, all_dense: dict[str, object]
) -> None:
    layout = layout_of(model_type)
    of_experts = set(EXPERT_FIELDS) & set(layout.shape_fields())
    mixed, dense = (
        architecture_of(tiny_config(model_type, **changes).to_dict(), layout) for changes in ({}, all_dense)
    )
    assert of_experts <= set(layout.shape_fields_of(mixed))
    assert of_experts.isdisjoint(layout.shape_fields_of(dense))


@pytest.mark.parametrize("model_type", ["afmoe", "deepseek_v3", "ernie4_5_moe", "solar_open"])
def test_a_config_without_shared_experts_is_refused_by_its_key(model_type: str) -> None:
    layout = layout_of(model_type)
    (key,) = layout.config_names("num_shared_experts")
    with pytest.raises(InvalidArchitectureError, match=rf"^{key}=0 is not described .*; {key} must be at least 1$"):
        architecture_of(tiny_config(model_type, **{key: 0}).to_dict(), layout)


LATENTS = {"q_lora_rank": 4, "kv_lora_rank": 4, "qk_rope_head_dim": 2, "qk_nope_head_dim": 4, "v_head_dim": 4}
