"""What stands for the config of a model of which nothing else is needed."""

from math import inf
from pathlib import Path

import pytest
from transformers import AutoConfig

from minitron_nas.errors import TeacherNotFoundError
from minitron_nas.models.config_alone import config_alone


@pytest.mark.parametrize("source", ["nowhere", "~no_such_user/model"])
def test_what_is_no_folder_hub_name_or_type_is_refused_in_one_line(source: str) -> None:
    with pytest.raises(TeacherNotFoundError, match=r"no hub name \(owner/name\), and no model type") as refused:
        config_alone(source)
    assert "\n" not in str(refused.value)


def test_numbers_that_json_has_none_for_are_numbers(tmp_path: Path) -> None:
    AutoConfig.for_model("nemotron_h", layers_block_type=["linear_attention"]).save_pretrained(tmp_path)
    assert "Infinity" in (tmp_path / "config.json").read_text()
    for source in (tmp_path, tmp_path / "config.json"):
        assert config_alone(str(source))[1]["time_step_limit"] == [0.0, inf]
