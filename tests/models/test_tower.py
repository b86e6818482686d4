"""What stands beside the text part of a wrapper."""

import json
from collections.abc import Callable
from math import prod
from pathlib import Path

import pytest
from transformers import AutoModelForImageTextToText

from minitron_nas.families.wrappers import WRAPPERS
from minitron_nas.models.checkpoint import open_checkpoint
from minitron_nas.models.source import outline_teacher
from minitron_nas.models.tower import tower_in, tower_tensors


@pytest.mark.parametrize("vision", [{"depth": 27}, {}, None])
def test_a_tower_feeds_as_many_layers_as_transformers_takes_where_the_config_says_nothing(
    wrapper: Callable[..., Path], tmp_path: Path, vision: dict[str, int] | None
) -> None:
    config = json.loads((wrapper("qwen3_vl") / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "vision_config": vision}))
    tower = outline_teacher(tmp_path, tmp_path / "work").tower
    assert tower is not None
    assert (tower.num_fed_layers, tower.num_parameters, tower.num_bytes) == (3, 0, 0)


@pytest.mark.parametrize("model_type", [*WRAPPERS, "gemma4 e2b"])
def test_a_tower_and_its_text_part_are_all_that_a_wrapper_holds(wrapper: Callable[..., Path], model_type: str) -> None:
    folder = wrapper(model_type)
    checkpoint, whole = open_checkpoint(folder), AutoModelForImageTextToText.from_pretrained(folder)
    tower = tower_in(folder)
    assert tower == checkpoint.tower is not None
    assert checkpoint.num_parameters + tower.num_parameters == sum(p.numel() for p in whole.parameters())
    assert tower.num_bytes == sum(4 * prod(header.shape) for header in tower_tensors(folder).values())


def test_a_text_model_has_none(trained_teacher: Path) -> None:
    assert (tower_in(trained_teacher), tower_tensors(trained_teacher)) == (None, {})
