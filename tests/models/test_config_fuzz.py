"""A `config.json` with odd values: the model is taken, or refused by one of our errors; never anything else."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minitron_nas.errors import MinitronNasError
from minitron_nas.models.source import resolve_teacher
from minitron_nas.testing import tiny_checkpoint

FAMILIES = ("llama", "qwen2", "smollm3", "qwen3_moe", "gpt2")
MORE = (
    "num_labels",
    "id2label",
    "layer_types",
    "sliding_window",
    "auto_map",
    "text_config",
    "torch_dtype",
    "pruned_heads",
)
ODD: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from([None, True, False, 0, -1, 1, 2, 3, 10**12, 2**64, 0.0, -1.0, 1e30, float("nan"), float("inf")]),
    st.sampled_from(["", "llama", "x", "48", "float16", "full_attention", [], {}, [0], [None], ["x"] * 4, {"a": 1}]),
    st.sampled_from(
        [{"rope_type": "yarn"}, {"rope_type": "linear", "factor": 0}, {"rope_theta": -1.0}, [[[]]], {"0": {}}]
    ),
    st.integers(-5, 400),
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: tiny_checkpoint(tmp_path_factory.mktemp(name), name, num_hidden_layers=2) for name in FAMILIES}


def resolve(folder: Path, original: dict[str, Any], draw: Any) -> None:
    changes = draw.draw(st.dictionaries(st.sampled_from([*original, *MORE]), ODD, min_size=1, max_size=2))
    (folder / "config.json").write_text(json.dumps(original | changes))
    try:
        resolve_teacher(folder, folder, read_values=False)
    except MinitronNasError as error:
        refusal = str(error)
    else:
        refusal = ""
    finally:
        (folder / "config.json").write_text(json.dumps(original))
    assert "\n" not in refusal


@settings(max_examples=200)
@given(data=st.data())
def test_odd_values_of_a_config_are_taken_or_refused_on_one_line(data: Any, folders: dict[str, Path]) -> None:
    folder = folders[data.draw(st.sampled_from(FAMILIES))]
    resolve(folder, json.loads((folder / "config.json").read_text()), data)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=2_000)
@given(data=st.data())
def test_many_odd_values_of_a_config_are_taken_or_refused(data: Any, folders: dict[str, Path]) -> None:
    folder = folders[data.draw(st.sampled_from(FAMILIES))]
    resolve(folder, json.loads((folder / "config.json").read_text()), data)
