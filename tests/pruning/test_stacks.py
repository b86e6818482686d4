"""Experts that each have matrices of their own, put together by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from minitron_nas.families.catalog import layout_of
from minitron_nas.pruning.parts import Cut, whole
from minitron_nas.pruning.stacks import Joined, in_stacks
from minitron_nas.storage.weights import read_headers

EXPERTS = "model.layers.{}.mlp.experts."


@pytest.fixture
def tensors(tmp_path: Path) -> dict[str, torch.Tensor]:
    """Two layers, the second with eleven experts, so that their numbers are no order of words."""
    draw = torch.Generator().manual_seed(0)
    made = {
        f"{EXPERTS.format(layer)}{expert}.{part}_proj.weight": torch.randn(*shape, generator=draw)
        for layer, count in enumerate((2, 11))
        for expert in range(count)
        for part, shape in (("gate", (3, 4)), ("up", (3, 4)), ("down", (4, 3)))
    }
    made["model.norm.weight"] = torch.ones(4)
    save_file(made, tmp_path / "model.safetensors")
    return made


@pytest.mark.parametrize("is_turned", [False, True])
def test_the_experts_of_a_layer_follow_one_another_as_slices_of_stacks(
    tensors: dict[str, torch.Tensor], tmp_path: Path, is_turned: bool
) -> None:
    cuts = {name: Cut.all_of(f"language.{name}", header) for name, header in read_headers(tmp_path).items()}
    asked = []

    def lies_turned(name: str, *sizes: int) -> bool:
        asked.append((name.rpartition(".")[2], sizes))
        return is_turned

    parts = in_stacks(cuts, layout_of("qwen3_moe"), lies_turned)
    assert set(asked) == {("gate_up_proj", (4, 6)), ("down_proj", (3, 4))}
    assert [part.name for part in parts if ".1." in part.name and "down" in part.name] == [
        f"language.{EXPERTS.format(1)}down_proj[{expert}]" for expert in range(11)
    ]
    found = {part.name: whole(part) for part in parts}
    assert torch.equal(found.pop("language.model.norm.weight"), tensors["model.norm.weight"])
    assert len(found) == 2 * 13
    for layer, count in enumerate((2, 11)):
        before = EXPERTS.format(layer)
        for expert in range(count):
            gate, up, down = (tensors[f"{before}{expert}.{part}_proj.weight"] for part in ("gate", "up", "down"))
            for name, both in (("gate_up_proj", torch.cat([gate, up])), ("down_proj", down)):
                expected = both.T if is_turned else both
                assert torch.equal(found[f"language.{before}{name}[{expert}]"], expected)


def test_a_slice_is_had_some_rows_at_a_time(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    names = [f"{EXPERTS.format(0)}0.{part}_proj.weight" for part in ("gate", "up")]
    headers = read_headers(tmp_path)
    joined = Joined("stack[0]", tuple(Cut.all_of(name, headers[name]) for name in names), is_turned=True)
    assert (joined.shape, joined.dtype, joined.itemsize, list(joined.blocks())) == ((4, 6), "F32", 4, [(0, 4)])
    rows = joined.read((1, 3)).view("f4")
    assert rows.flags.c_contiguous
    assert np.array_equal(rows, torch.cat([tensors[name] for name in names]).T[1:3].numpy())
