"""The numbers of a grid's combinations follow the order of the candidates."""

from itertools import product
from typing import Any

import numpy as np
import pytest

from minitron_nas.architecture.spec import Architecture
from minitron_nas.errors import SpaceError
from minitron_nas.families.catalog import layout_of
from minitron_nas.space import grid as grid_module
from minitron_nas.space.axes import SpaceAxes
from minitron_nas.space.grid import Grid

LLAMA = Architecture("llama", 4, 48, 96, 6, 2, 8, 320)
GPT2 = Architecture("gpt2", 4, 48, 192, 6, 6, 8, 320, max_position_embeddings=64)


def grid_of(axes: dict[str, Any], source: Architecture = LLAMA) -> Grid:
    return Grid.of(SpaceAxes.model_validate(axes), source, layout_of(source.model_type))


def rows(grid: Grid, *names: str) -> list[tuple[int, ...]]:
    columns = grid.columns(np.arange(len(grid)))
    return list(zip(*(columns[name].tolist() for name in names), strict=True))


def test_a_space_without_axes_is_the_source_alone() -> None:
    columns = grid_of({}).columns(np.arange(1))
    assert {name: sizes.tolist() for name, sizes in columns.items()} == {
        "num_hidden_layers": [4],
        "num_attention_heads": [6],
        "num_key_value_heads": [2],
        "hidden_size": [48],
        "intermediate_size": [96],
    }


def test_the_last_axis_turns_fastest() -> None:
    axes = {
        "num_hidden_layers": {"values": [2, 3]},
        "num_attention_heads": {"values": [4, 2]},
        "num_key_value_heads": {"values": [2, 1]},
        "hidden_size": {"values": [24, 36]},
        "intermediate_size": {"values": [64, 32]},
    }
    names = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size", "intermediate_size")
    assert rows(grid_of(axes), *names) == list(product((3, 2), (2, 4), (1, 2), (36, 24), (32, 64)))


def test_heads_and_groups_move_each_other_along() -> None:
    groups = grid_of({"num_key_value_heads": {"values": [1, 2]}})
    assert rows(groups, "num_attention_heads", "num_key_value_heads") == [(3, 1), (6, 2)]
    heads = grid_of({"num_attention_heads": {"values": [6, 3]}}, GPT2)
    assert rows(heads, "num_attention_heads", "num_key_value_heads") == [(3, 3), (6, 6)]
    grouped = grid_of({"num_attention_heads": {"values": [6, 4]}})
    assert rows(grouped, "num_attention_heads", "num_key_value_heads") == [(4, 2), (6, 2)]


def test_equal_sizes_of_two_ratios_are_one_combination() -> None:
    neurons = {"ratios": [2.0, 1.9, 1.0], "multiple_of": 16}
    grid = grid_of({"hidden_size": {"values": [24, 40]}, "intermediate_size": neurons})
    # 40 x 1.9 = 76 and 40 x 2 = 80; 24 x 1.9 = 45.6 and 24 x 2 = 48, all rounded down to 16.
    assert rows(grid, "hidden_size", "intermediate_size") == [
        (40, 32),
        (40, 64),
        (40, 80),
        (24, 16),
        (24, 32),
        (24, 48),
    ]


def test_the_blocks_hold_every_number_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid_module, "BLOCK", 5)
    grid = grid_of({"intermediate_size": {"values": list(range(1, 13))}})
    assert [block.tolist() for block in grid.blocks()] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]]


def test_an_axis_that_the_family_lacks_is_refused() -> None:
    with pytest.raises(SpaceError, match="the space lists an axis 'num_experts', a size that family 'llama' lacks"):
        grid_of({"num_experts": {"values": [2]}})


def test_heads_that_stay_are_columns_of_one_size_each() -> None:
    source = Architecture("gemma4_text", 4, 48, 96, 6, 2, 8, 320)
    grid = grid_of({"num_attention_heads": {"min_fraction": 0.5}, "hidden_size": {"values": [24, 48]}}, source)
    assert rows(grid, "num_attention_heads", "num_key_value_heads", "hidden_size") == [(6, 2, 48), (6, 2, 24)]
    with pytest.raises(SpaceError, match="lists an axis 'num_attention_heads', a size that family 'gemma4_text' lacks"):
        grid_of({"num_attention_heads": {"values": [4]}}, source)


@pytest.mark.parametrize(("kinds", "neurons"), [(("experts",) * 4, [96]), (("experts", "dense") * 2, [48, 72, 96])])
def test_neurons_that_no_layer_has_stay_as_many(kinds: tuple[str, ...], neurons: list[int]) -> None:
    source = Architecture(
        "llama4_text", 4, 48, 96, 6, 2, 8, 320, num_experts=4, moe_intermediate_size=40, layer_kinds=kinds
    )
    grid = grid_of({"intermediate_size": {"min_fraction": 0.5, "step_fraction": 0.25}}, source)
    assert sorted(size for (size,) in rows(grid, "intermediate_size")) == neurons
