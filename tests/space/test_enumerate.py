"""The paper's candidates, and the laws that every enumeration keeps."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from math import prod
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from minitron_nas.architecture.config import architecture_of
from minitron_nas.architecture.rules import RULES, check_architecture
from minitron_nas.architecture.spec import Architecture
from minitron_nas.errors import InvalidArchitectureError, SpaceError
from minitron_nas.families.catalog import count_parameters, layout_of
from minitron_nas.space.axes import AxisValues, SearchSpace, SpaceAxes, load_space
from minitron_nas.space.enumerate import (
    RULE_REASONS,
    Candidates,
    Enumeration,
    enumerate_candidates,
    legal_columns,
    parameters_of,
)
from minitron_nas.space.grid import BLOCK
from minitron_nas.testing import tiny_config

# arXiv 2407.14679, table T19: (layers, heads, MLP, embedding), in the paper's order.
MINITRON_8B = [
    (32, 32, 12800, 5120),
    (32, 32, 13824, 4608),
    (32, 48, 11520, 4608),
    (32, 48, 16384, 4096),
    (31, 32, 12800, 5120),
    (31, 32, 16128, 4608),
    (31, 48, 13824, 4608),
    (31, 48, 16384, 4096),
    (30, 32, 12800, 5120),
    (30, 32, 16128, 4608),
    (30, 48, 13824, 4608),
    (30, 48, 16384, 4096),
    (29, 32, 12800, 5120),
    (29, 32, 16128, 4608),
    (29, 48, 13824, 4608),
]
LLAMA = Architecture("llama", 4, 48, 96, 6, 2, 8, 320)
LLAMA_SIZE = count_parameters(LLAMA)
EXPERTS = Architecture(
    "qwen3_moe", 3, 48, 96, 6, 2, 8, 320, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=32
)
GPT2 = Architecture("gpt2", 4, 48, 192, 6, 6, 8, 320, tie_word_embeddings=True, max_position_embeddings=64)
FALCON = Architecture(
    "falcon_h1", 4, 48, 96, 6, 2, 8, 320, mamba_num_heads=6, mamba_head_dim=8, mamba_num_groups=2,
    fixed_sizes={"mamba_d_state": 16, "mamba_d_conv": 3, "mamba_proj_bias": 0, "mamba_conv_bias": 1,
                 "mamba_rms_norm": 0, "projectors_bias": 0},
)  # fmt: skip
SHARED = {"num_hidden_layers": 5, "num_kv_shared_layers": 1, "hidden_size_per_layer_input": 12}
SHAPE = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size", "intermediate_size")


def paper(name: str, size: int) -> Enumeration:
    space = load_space(name)
    return enumerate_candidates(space, size, space.source_architecture(), layout_of("nemotron"))


def small(axes: dict[str, Any], size: int, source: Architecture = LLAMA, **fields: Any) -> Enumeration:
    space = SearchSpace.model_validate({"axes": axes, **fields})
    return enumerate_candidates(space, size, source, layout_of(source.model_type))


def columns(enumeration: Enumeration, *names: str) -> list[tuple[int, ...]]:
    return [tuple(getattr(c.architecture, name) for name in names) for c in enumeration.candidates]


def test_depths_without_room_for_a_last_layer_that_has_to_stay_are_not_offered() -> None:
    changes = {"layer_types": ["full_attention", *["sliding_attention"] * 3, "full_attention"], **SHARED}
    layout = layout_of("gemma4_text")
    source = architecture_of(tiny_config("gemma4_text", **changes).to_dict(), layout)
    axes = {"num_hidden_layers": {"values": [1, 2, 3, 4, 5]}}
    space = SearchSpace.model_validate({"axes": axes, "protected_layers": []})
    assert legal_columns(space, source, layout)["num_hidden_layers"].tolist() == [4, 3, 2]
    assert legal_columns(space, source, replace(layout, last_kind=""))["num_hidden_layers"].tolist() == [4, 3, 2, 1]


def test_the_15_candidates_of_minitron_8b_come_in_the_papers_order() -> None:
    names = ("num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_size")
    assert columns(paper("minitron-15b-to-8b", 8_000_000_000), *names) == MINITRON_8B


def test_the_paper_prints_18_candidates_within_5_percent_of_4b() -> None:
    enumeration = paper("minitron-15b-to-4b", 4_000_000_000)
    assert len(enumeration.candidates) == 18
    assert all(3_800_000_000 <= c.num_parameters <= 4_200_000_000 for c in enumeration.candidates)
    assert enumeration.excluded == {"size_window": 4 * 3 * 4 * 5 - 18}


def test_the_published_minitron_4b_is_one_of_them() -> None:
    by_id = {c.id: c.num_parameters for c in paper("minitron-15b-to-4b", 4_000_000_000).candidates}
    assert by_id["l32-h3072-f9216-q24-k8"] == 4_190_509_056


def test_a_candidate_keeps_what_pruning_cannot_change() -> None:
    for candidate in paper("minitron-15b-to-4b", 4_000_000_000).candidates:
        kept = candidate.architecture
        assert (kept.model_type, kept.num_key_value_heads, kept.head_dim, kept.vocab_size) == (
            "nemotron",
            8,
            128,
            256000,
        )


def test_an_axis_that_is_left_out_keeps_the_sources_size() -> None:
    enumeration = small({"num_hidden_layers": {"values": [2]}}, LLAMA_SIZE // 2, tolerance=0.3)
    assert columns(enumeration, *SHAPE) == [(2, 6, 2, 48, 96)]


def test_query_heads_follow_their_groups_unless_the_space_names_them() -> None:
    following = small({"num_key_value_heads": {"values": [1]}}, LLAMA_SIZE - 1, tolerance=0.5)
    assert columns(following, "num_attention_heads", "num_key_value_heads") == [(3, 1)]
    named = {"num_key_value_heads": {"values": [2]}, "num_attention_heads": {"values": [2, 4]}}
    own = small(named, LLAMA_SIZE - 1, tolerance=0.5)
    assert columns(own, "num_attention_heads", "num_key_value_heads") == [(2, 2), (4, 2)]


def test_groups_of_one_head_follow_their_heads_unless_the_space_names_them() -> None:
    axes = {"num_attention_heads": {"values": [3, 4, 7]}, "hidden_size": {"values": [24, 32]}}
    following = small(axes, count_parameters(GPT2) - 1, GPT2, tolerance=0.9)
    assert columns(following, "num_attention_heads", "num_key_value_heads", "hidden_size") == [(3, 3, 24), (4, 4, 32)]
    assert following.excluded == {"pruning_only_removes": 2, "hidden_size_fills_heads": 2}
    named = small(axes | {"num_key_value_heads": {"values": [3]}}, count_parameters(GPT2) - 1, GPT2, tolerance=0.9)
    assert columns(named, "num_attention_heads", "num_key_value_heads") == [(3, 3)]
    assert named.excluded == {"heads_fill_groups": 4, "hidden_size_fills_heads": 1}


def test_more_experts_and_fewer_neurons_of_each_come_first() -> None:
    axes = {"num_experts": {"values": [1, 4, 8]}, "moe_intermediate_size": {"values": [16, 32, 64]}}
    found = small(axes, count_parameters(EXPERTS) - 1, EXPERTS, tolerance=0.9)
    assert columns(found, "num_experts", "moe_intermediate_size") == [(8, 16), (4, 16), (4, 32)]
    assert found.excluded == {
        "pruning_only_removes": 3,
        "pruning_removes_something": 1,
        "experts_cover_a_token": 2,
    }


@pytest.mark.parametrize(
    ("source", "axis", "sizes"),
    [
        (LLAMA, "num_experts", "intermediate_size, num_attention_heads, num_key_value_heads"),
        (LLAMA, "moe_intermediate_size", "intermediate_size, num_attention_heads, num_key_value_heads"),
        (
            EXPERTS,
            "intermediate_size",
            "num_attention_heads, num_key_value_heads, num_experts, moe_intermediate_size",
        ),
    ],
)
def test_an_axis_that_the_family_lacks_is_refused(source: Architecture, axis: str, sizes: str) -> None:
    message = (
        f"the space lists an axis '{axis}', a size that family '{source.model_type}' lacks; "
        f"its axes may be num_hidden_layers, hidden_size, {sizes}$"
    )
    with pytest.raises(SpaceError, match=message):
        small({axis: {"values": [2]}}, 1000, source)


def test_ratios_multiply_the_candidates_own_hidden_size() -> None:
    axes = {
        "hidden_size": {"values": [24, 48]},
        "intermediate_size": {"ratios": [1.25, 2.0], "multiple_of": 8},
    }
    enumeration = small(axes, LLAMA_SIZE // 2, tolerance=0.99)
    # 24 x 1.25 = 30, rounded down to 24; 48 x 2 is the source itself.
    assert columns(enumeration, "hidden_size", "intermediate_size") == [(48, 56), (24, 24), (24, 48)]
    assert enumeration.excluded == {"pruning_removes_something": 1}


def test_shapes_are_left_out_by_the_first_rule_that_they_break() -> None:
    axes = {
        "num_attention_heads": {"values": [3, 4, 6]},  # 3 heads do not fill 2 groups
        "hidden_size": {"values": [46, 48, 60]},  # 46 is no multiple of 4 or 6; 60 exceeds the source
        "num_hidden_layers": {"values": [3]},
    }
    assert small(axes, LLAMA_SIZE - 1, tolerance=0.5).excluded == {
        "heads_fill_groups": 3,
        "pruning_only_removes": 2,
        "hidden_size_multiple_of_heads": 2,
    }


def test_more_query_heads_in_a_group_than_the_source_has_are_left_out() -> None:
    axes = {"num_attention_heads": {"values": [6, 3]}, "num_key_value_heads": {"values": [1]}}
    enumeration = small(axes, LLAMA_SIZE - 1, tolerance=0.5)
    assert columns(enumeration, "num_attention_heads") == [(3,)]
    assert enumeration.excluded == {"heads_fill_groups": 1}


def test_every_group_of_a_mamba_mixer_keeps_as_many_heads() -> None:
    axes = {"mamba_num_heads": {"values": [2, 3, 4, 6]}, "mamba_head_dim": {"values": [6, 8]}}
    found = small(axes, count_parameters(FALCON) - 1, FALCON, tolerance=0.9)
    assert columns(found, "mamba_num_heads", "mamba_head_dim") == [(6, 6), (4, 8), (4, 6), (2, 8), (2, 6)]
    assert found.excluded == {"mamba_heads_fill_groups": 2, "pruning_removes_something": 1}


def test_the_source_itself_is_no_candidate() -> None:
    axes = {"num_hidden_layers": {"values": [3, 4]}}
    enumeration = small(axes, LLAMA_SIZE - 1, tolerance=0.5)
    assert columns(enumeration, "num_hidden_layers") == [(3,)]
    assert enumeration.excluded == {"pruning_removes_something": 1}


def test_more_layers_fewer_heads_wider_channels_fewer_neurons_come_first() -> None:
    axes = {
        "num_hidden_layers": {"values": [2, 3]},
        "num_attention_heads": {"values": [4, 2]},
        "hidden_size": {"values": [24, 36]},
        "intermediate_size": {"values": [64, 32]},
    }
    names = ("num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size")
    found = columns(small(axes, LLAMA_SIZE // 3, tolerance=0.99), *names)
    assert found == sorted(found, key=lambda row: (-row[0], row[1], -row[2], row[3]))
    assert len(found) == 16


@pytest.mark.parametrize("size", [LLAMA_SIZE, 10 * LLAMA_SIZE])
def test_a_size_that_is_not_below_the_source_is_refused(size: int) -> None:
    with pytest.raises(SpaceError, match=f"is not below the source's {LLAMA_SIZE:,} parameters; choose a smaller"):
        small({}, size)


def test_an_empty_window_is_answered_with_the_nearest_sizes_on_both_sides() -> None:
    three, two = (count_parameters(LLAMA.reshaped({"num_hidden_layers": n})) for n in (3, 2))
    size = (three + two) // 2
    with pytest.raises(SpaceError) as caught:
        small({"num_hidden_layers": {"values": [2, 3]}}, size, tolerance=0.01)
    assert f"nearest reachable: {two:,} and {three:,}; left out by: size_window (2 shapes);" in str(caught.value)
    assert f"no shape has between {round(size * 0.99):,} and {round(size * 1.01):,} parameters" in str(caught.value)


def test_a_space_for_another_model_says_for_which() -> None:
    message = (
        r"nearest reachable: none; left out by: .*; the space is for num_hidden_layers=36, hidden_size=4096, .*, and "
        r"this model has num_hidden_layers=4, hidden_size=48, .*; choose a space for this model, such as default$"
    )
    with pytest.raises(SpaceError, match=message):
        enumerate_candidates(load_space("qwen3-8b"), LLAMA_SIZE // 2, LLAMA, layout_of("llama"))


@pytest.mark.parametrize("axes", [{}, {"hidden_size": {"values": [48]}}, {"num_hidden_layers": {"min_fraction": 1}}])
def test_a_space_of_the_source_alone_is_answered_with_what_it_lacks(axes: dict[str, dict[str, object]]) -> None:
    told = "the space holds the source and nothing smaller; give it an axis with smaller sizes, such as hidden_size"
    with pytest.raises(SpaceError, match=f"nearest reachable: none; .*; {told}"):
        small(axes, LLAMA_SIZE - 1)


def test_an_unreachable_size_is_answered_with_the_rule_that_blocks() -> None:
    with pytest.raises(SpaceError, match=r"nearest reachable: none; left out by: pruning_only_removes \(1 shapes\)"):
        small({"hidden_size": {"values": [96]}}, LLAMA_SIZE - 1)


def wide() -> Candidates:
    axes = {
        "num_hidden_layers": {"values": [1, 2, 3, 4]},
        "hidden_size": {"values": [24, 36]},
        "intermediate_size": {"values": list(range(1, 97))},
    }
    return small(axes, LLAMA_SIZE // 2, tolerance=0.99, protected_layers=[]).candidates


def test_candidates_are_counted_indexed_sliced_and_repeated() -> None:
    found = wide()
    listed = list(found)
    assert len(found) == len(listed) == 4 * 2 * 96
    assert [found[i] for i in (0, 5, -1)] == [listed[0], listed[5], listed[-1]]
    assert list(found[10:40:7]) == listed[10:40:7]
    assert listed[3] in found
    assert list(found) == listed
    with pytest.raises(IndexError):
        found[len(found)]


def test_candidates_are_equal_to_the_same_ones_alone() -> None:
    found = wide()
    assert found == wide()
    assert found[1:] != found
    assert found[1:] != found[:-1]
    assert found != list(found)


def test_candidates_hold_plain_numbers() -> None:
    candidate = wide()[0]
    assert type(candidate.num_parameters) is int
    assert {type(size) for size in candidate.architecture.sizes().values()} == {int}


def test_a_space_of_several_blocks_is_counted_as_a_whole() -> None:
    axes = {
        "num_hidden_layers": {"values": [2, 3, 4]},
        "hidden_size": {"values": list(range(1, 49))},
        "intermediate_size": {"values": list(range(1, 97))},
        "num_attention_heads": {"values": [1, 2, 3, 4, 5, 6]},
    }
    raw = 3 * 48 * 96 * 6
    assert raw > BLOCK
    found = small(axes, LLAMA_SIZE // 2, tolerance=0.001)
    assert len(found.candidates) + sum(found.excluded.values()) == raw
    space = SearchSpace.model_validate({"axes": axes, "tolerance": 0.001})
    assert (shapes_of(found.candidates), Counter(found.excluded)) == reference(space, LLAMA_SIZE // 2, LLAMA)


def sizes_of(*sizes: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.sampled_from(sizes), min_size=1, unique=True)


# Each axis holds sizes that the source reaches, that exceed it, and that some rule forbids.
AXES = st.fixed_dictionaries(
    {"num_hidden_layers": sizes_of(1, 2, 3, 4, 5)},
    optional={
        "hidden_size": sizes_of(12, 24, 30, 36, 46, 48, 60),
        "intermediate_size": sizes_of(1, 40, 64, 96, 97),
        "num_attention_heads": sizes_of(1, 2, 3, 4, 6, 8),
        "num_key_value_heads": sizes_of(1, 2, 3),
    },
)


@given(axes=AXES, size=st.integers(LLAMA_SIZE // 10, LLAMA_SIZE - 1), tolerance=st.floats(0.1, 0.9))
def test_every_enumeration_keeps_the_laws(axes: dict[str, list[int]], size: int, tolerance: float) -> None:
    space = SearchSpace.model_validate(
        {"axes": {name: {"values": values} for name, values in axes.items()}, "tolerance": tolerance}
    )
    try:
        enumeration = enumerate_candidates(space, size, LLAMA, layout_of("llama"))
    except SpaceError:
        assume(False)
    low, high = space.size_window(size)
    for candidate in enumeration.candidates:
        assert low <= candidate.num_parameters <= high
        assert candidate.num_parameters == count_parameters(candidate.architecture)
        assert candidate.architecture != LLAMA
        assert LLAMA.reshaped(candidate.architecture.sizes()) == candidate.architecture
        check_architecture(candidate.architecture, layout_of("llama"))
    ids = [candidate.id for candidate in enumeration.candidates]
    assert len(set(ids)) == len(ids) > 0
    assert len(ids) + sum(enumeration.excluded.values()) == prod(len(values) for values in axes.values())
    assert enumerate_candidates(space, size, LLAMA, layout_of("llama")) == enumeration


@given(size=st.integers(LLAMA_SIZE // 4, LLAMA_SIZE - 1), tolerance=st.floats(0.01, 0.2))
def test_a_candidate_is_missing_only_for_a_reason(size: int, tolerance: float) -> None:
    """Brute force over the grid, one `Architecture` at a time, finds the same shapes."""
    hidden, neurons, layers = (24, 36, 48), (32, 64, 96), (2, 3, 4)
    space = SearchSpace.model_validate(
        {
            "axes": {
                "hidden_size": {"values": hidden},
                "intermediate_size": {"values": neurons},
                "num_hidden_layers": {"values": layers},
            },
            "tolerance": tolerance,
        }
    )
    low, high = space.size_window(size)
    shapes = [
        LLAMA.reshaped({"hidden_size": h, "intermediate_size": f, "num_hidden_layers": n})
        for h in hidden
        for f in neurons
        for n in layers
    ]
    expected = {shape.id for shape in shapes if shape != LLAMA and low <= count_parameters(shape) <= high}
    try:
        found = {c.id for c in enumerate_candidates(space, size, LLAMA, layout_of("llama")).candidates}
    except SpaceError:
        found = set()
    assert found == expected


EXPERT_AXES = st.fixed_dictionaries(
    {"num_experts": sizes_of(1, 2, 4, 8, 9)},
    optional={
        "moe_intermediate_size": sizes_of(1, 16, 24, 32, 40),
        "num_key_value_heads": sizes_of(1, 2, 3),
        "hidden_size": sizes_of(24, 36, 48),
    },
)
GPT2_AXES = st.fixed_dictionaries(
    {"num_attention_heads": sizes_of(1, 2, 3, 4, 5, 6, 7)},
    optional={
        "hidden_size": sizes_of(8, 16, 24, 32, 40, 44, 48),
        "num_key_value_heads": sizes_of(1, 2, 3, 6),
        "intermediate_size": sizes_of(64, 128, 192),
    },
)
SOURCES_AND_AXES = st.one_of(
    [st.tuples(st.just(source), axes) for source, axes in ((LLAMA, AXES), (EXPERTS, EXPERT_AXES), (GPT2, GPT2_AXES))]
)


@given(drawn=SOURCES_AND_AXES, tolerance=st.floats(0.3, 0.9))
def test_candidates_order_and_counts_are_those_of_plain_loops(
    drawn: tuple[Architecture, dict[str, list[int]]], tolerance: float
) -> None:
    source, axes = drawn
    size = count_parameters(source) * 2 // 3
    space = SearchSpace.model_validate(
        {"axes": {name: {"values": values} for name, values in axes.items()}, "tolerance": tolerance}
    )
    shapes, excluded = reference(space, size, source)
    if not shapes:
        with pytest.raises(SpaceError, match="no shape has between"):
            enumerate_candidates(space, size, source, layout_of(source.model_type))
        return
    found = enumerate_candidates(space, size, source, layout_of(source.model_type))
    assert (shapes_of(found.candidates), Counter(found.excluded)) == (shapes, excluded)


def shapes_of(candidates: Candidates) -> list[Architecture]:
    return [candidate.architecture for candidate in candidates]


def reference(space: SearchSpace, size: int, source: Architecture) -> tuple[list[Architecture], Counter[str]]:
    """Build every combination on its own, and name the first rule that it breaks."""
    shapes, excluded = [], Counter[str]()
    for sizes in combinations(space, source):
        if rule := first_broken(space, size, source, sizes):
            excluded[rule] += 1
        else:
            shapes.append(source.reshaped(sizes))
    return sorted(shapes, key=place), excluded


def combinations(space: SearchSpace, source: Architecture) -> Iterator[dict[str, int]]:
    axes = {name: axis.values or () for name, axis in space.axes.given().items()}
    for values in product(*axes.values()):
        sizes = source.sizes() | dict(zip(axes, values, strict=True))
        if "num_attention_heads" not in axes:
            sizes["num_attention_heads"] = sizes["num_key_value_heads"] * source.heads_per_group
        elif "num_key_value_heads" not in axes and source.heads_per_group == 1:
            sizes["num_key_value_heads"] = sizes["num_attention_heads"]
        yield sizes


def first_broken(space: SearchSpace, size: int, source: Architecture, sizes: dict[str, int]) -> str | None:
    heads, groups = sizes["num_attention_heads"], sizes["num_key_value_heads"]
    broken = {
        "heads_fill_groups": heads % groups > 0 or heads // groups > source.heads_per_group,
        "pruning_only_removes": any(not 1 <= sizes[name] <= most for name, most in source.sizes().items()),
        "pruning_removes_something": sizes == source.sizes(),
        "protected_layers_stay": sizes["num_hidden_layers"] < len(space.protected_layers),
        "experts_cover_a_token": sizes.get("num_experts", 0) < source.num_experts_per_tok,
    }
    if any(broken.values()):
        return next(rule for rule in broken if broken[rule])
    shape = source.reshaped(sizes)
    try:
        check_architecture(shape, layout_of(source.model_type))
    except InvalidArchitectureError as error:
        return next(rule.name for rule in RULES if rule.name in str(error))
    low, high = space.size_window(size)
    return None if low <= count_parameters(shape) <= high else "size_window"


def place(shape: Architecture) -> tuple[int, ...]:
    """More layers, fewer heads, fewer groups, wider channels, fewer neurons, more experts, narrower ones."""
    return (
        -shape.num_hidden_layers,
        shape.num_attention_heads,
        shape.num_key_value_heads,
        -shape.hidden_size,
        shape.intermediate_size,
        -shape.num_experts,
        shape.moe_intermediate_size,
    )


def test_with_longrope_channels_and_heads_shrink_together() -> None:
    source = replace(LLAMA, model_type="phi3", longrope=True)
    axes = {"hidden_size": {"values": [24, 32, 48]}, "num_key_value_heads": {"values": [1, 2]}}
    found = small(axes, count_parameters(source) // 2, source, window=(1, count_parameters(source)))
    assert columns(found, "hidden_size", "num_attention_heads") == [(24, 3)]
    assert found.excluded["longrope_fixes_channels_per_head"] == 4


def test_every_rule_has_a_reason() -> None:
    assert set(RULE_REASONS) == {rule.name for rule in RULES} | {
        "heads_fill_groups",
        "mamba_heads_fill_groups",
        "pruning_only_removes",
        "pruning_removes_something",
        "protected_layers_stay",
        "last_layer_stays",
        "attention_stays",
        "size_window",
    }
    assert all(RULE_REASONS.values())


def test_no_candidate_has_fewer_layers_than_are_protected() -> None:
    axes = SpaceAxes(num_hidden_layers=AxisValues(values=tuple(range(1, LLAMA.num_hidden_layers + 1))))
    smallest = replace(LLAMA, num_hidden_layers=1)
    low, high = count_parameters(smallest), count_parameters(LLAMA)
    space = SearchSpace(axes=axes, window=(low, high), protected_layers=(0, 1, -1))
    found = enumerate_candidates(space, low, LLAMA, layout_of("llama"))
    assert min(candidate.architecture.num_hidden_layers for candidate in found.candidates) == 3
    assert found.excluded["protected_layers_stay"] == 2


def test_legal_shapes_are_those_of_every_size_and_count_their_parameters() -> None:
    axes = {"hidden_size": {"values": [24, 36, 48]}, "num_attention_heads": {"values": [2, 4, 6]}}
    space, layout = SearchSpace.model_validate({"axes": axes}), layout_of("llama")
    source = Architecture("llama", 4, 48, 96, 6, 2, 8, 320)
    found = legal_columns(space, source, layout)
    shapes = set(zip(found["hidden_size"].tolist(), found["num_attention_heads"].tolist(), strict=True))
    # The source itself, 48 with 6 heads, is no candidate; llama needs channels that are a multiple of the heads.
    assert shapes == {(h, q) for h, q in product((24, 36, 48), (2, 4, 6)) if h % q == 0 and (h, q) != (48, 6)}
    counts = parameters_of(found, source, layout).tolist()
    rows = zip(*(sizes.tolist() for sizes in found.values()), strict=True)
    assert counts == [count_parameters(source.reshaped(dict(zip(found, row, strict=True)))) for row in rows]


def test_of_a_large_space_some_legal_shapes_are_drawn_the_same_each_time() -> None:
    space, layout = load_space("default"), layout_of("llama")
    some = legal_columns(space, LLAMA, layout, most=5)
    whole = legal_columns(space, LLAMA, layout)
    assert 0 < len(some["hidden_size"]) <= 5 < len(whole["hidden_size"])
    again = legal_columns(space, LLAMA, layout, most=5)
    assert all((some[name] == again[name]).all() for name in some)


def test_a_space_without_a_legal_shape_says_which_rule_leaves_all_out() -> None:
    space = SearchSpace.model_validate({"axes": {"hidden_size": {"values": [9999]}}})
    with pytest.raises(
        SpaceError, match=r"no shape of the space is legal; left out by: pruning_only_removes \(1 shapes\)"
    ):
        legal_columns(space, Architecture("llama", 4, 48, 96, 6, 2, 8, 320), layout_of("llama"))


def test_no_candidate_of_a_hybrid_is_without_attention() -> None:
    kinds = ["linear_attention", "full_attention", "full_attention", "moe", "mlp"]
    layout = layout_of("nemotron_h")
    source = architecture_of(tiny_config("nemotron_h", layers_block_type=kinds).to_dict(), layout)
    axes = SpaceAxes(num_hidden_layers=AxisValues(values=(1, 2, 3, 4, 5)))
    most = count_parameters(source)
    found = enumerate_candidates(
        SearchSpace(axes=axes, window=(1, most), protected_layers=()), most - 1, source, layout
    )
    assert [candidate.architecture.num_hidden_layers for candidate in found.candidates] == [4]
    assert found.excluded == {"pruning_removes_something": 1, "attention_stays": 3}
