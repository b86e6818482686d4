import re
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from pydantic import ValidationError

from minitron_nas.architecture.config import require_described
from minitron_nas.architecture.spec import SHAPE_FIELDS, Architecture
from minitron_nas.errors import InvalidArchitectureError, SpaceError
from minitron_nas.families.catalog import layout_of
from minitron_nas.resources import resource_names
from minitron_nas.space.axes import AxisValues, SearchSpace, SpaceAxes, load_space


def space_file(folder: Path, text: str) -> Path:
    path = folder / "space.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_listed_sizes_come_descending_and_once() -> None:
    assert AxisValues(values=(24, 48, 32, 24)).sizes(48) == [48, 32, 24]


def test_a_listed_axis_holds_the_source_only_if_it_names_it() -> None:
    assert AxisValues(values=(24,)).sizes(48) == [24]


@pytest.mark.parametrize(
    ("axis", "source", "sizes"),
    [
        (AxisValues(min_fraction=0.5), 4096, [4096, 3584, 3072, 2560, 2048]),
        (AxisValues(min_fraction=0.5, step_fraction=0.25), 32, [32, 24, 16]),
        (AxisValues(min_fraction=0.7, step_fraction=0.1), 10, [10, 9, 8, 7]),
        (AxisValues(min_fraction=0.6, step_fraction=0.25), 32, [32, 24]),
        (AxisValues(min_fraction=0.75, step_fraction=0.125, multiple_of=64), 1536, [1536, 1344, 1152]),
        (AxisValues(min_fraction=0.75, step_fraction=0.125, multiple_of=256), 1536, [1536, 1280, 1024]),
        (AxisValues(min_fraction=1.0), 7, [7]),
        (AxisValues(min_fraction=0.5, multiple_of=8), 8, [8]),
    ],
)
def test_a_walk_goes_down_in_steps_of_the_source_rounded_down(axis: AxisValues, source: int, sizes: list[int]) -> None:
    assert axis.sizes(source) == sizes


@pytest.mark.parametrize(
    ("fields", "given"),
    [
        ({}, "none"),
        ({"values": [1], "ratios": [2.0]}, r"\['values', 'ratios'\]"),
        ({"values": [1], "min_fraction": 0.5}, r"\['values', 'min_fraction'\]"),
    ],
)
def test_an_axis_takes_exactly_one_form(fields: dict[str, Any], given: str) -> None:
    message = rf"give exactly one of values, min_fraction and ratios \(given: {given}\)"
    with pytest.raises(ValidationError, match=message):
        AxisValues.model_validate(fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"values": []},
        {"values": [32, 0]},
        {"ratios": []},
        {"ratios": [0.0]},
        {"min_fraction": 0.0},
        {"min_fraction": 1.5},
        {"min_fraction": 0.5, "step_fraction": 0.0},
        {"min_fraction": 0.5, "step_fraction": 1e-12},
        {"min_fraction": 0.5, "multiple_of": 0},
    ],
)
def test_an_axis_that_holds_no_positive_size_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"greater than|less than|at least 1 item"):
        AxisValues.model_validate(fields)


@pytest.mark.parametrize("name", sorted({*SHAPE_FIELDS} - {"intermediate_size"}))
def test_ratios_belong_to_the_neurons_alone(name: str) -> None:
    with pytest.raises(ValidationError, match=f"{name} takes values or min_fraction; ratios are for inter"):
        SearchSpace.model_validate({"axes": {name: {"ratios": [2.0]}}})


def test_every_prunable_size_has_an_axis() -> None:
    assert set(SpaceAxes.model_fields) == set(SHAPE_FIELDS)


def test_a_space_knows_which_axes_it_was_given() -> None:
    axes = SpaceAxes.model_validate({"num_experts": {"values": [4]}, "hidden_size": {"values": [24]}})
    assert axes.given() == {"hidden_size": AxisValues(values=(24,)), "num_experts": AxisValues(values=(4,))}


def test_an_axis_that_was_not_given_is_the_sources_size() -> None:
    source = Architecture("llama", 4, 48, 96, 6, 2, 8, 320)
    axes = SpaceAxes(hidden_size=AxisValues(min_fraction=0.5, step_fraction=0.25))
    assert axes.sizes("hidden_size", source) == [48, 36, 24]
    assert axes.sizes("num_hidden_layers", source) == [4]


def test_the_tolerance_spans_the_window() -> None:
    assert SearchSpace().size_window(4_000_000_000) == (3_800_000_000, 4_200_000_000)
    assert SearchSpace(tolerance=0.1).size_window(110) == (99, 121)


def test_an_explicit_window_replaces_the_tolerance() -> None:
    space = SearchSpace.model_validate({"window": ["7.8B", "8.5B"]})
    assert space.size_window(8_000_000_000) == (7_800_000_000, 8_500_000_000)


@pytest.mark.parametrize("size", [3_870_000_000, 4_000_000_000, 4_800_000_000])
def test_a_window_serves_sizes_up_to_a_tenth_below_it(size: int) -> None:
    assert load_space("llama-3.1-8b-to-4b").size_window(size) == (4_300_000_000, 4_800_000_000)


@pytest.mark.parametrize(
    ("size", "written"), [(6_000_000_000, "6B"), (3_860_000_000, "3.86B"), (4_810_000_000, "4.81B")]
)
def test_a_size_outside_of_the_window_is_refused(size: int, written: str) -> None:
    message = (
        f"size {written} is outside of the space's window of 4.3B to 4.8B, which serves sizes from 3.87B to 4.8B; "
        "choose such a size, or a space with a tolerance instead of a window"
    )
    with pytest.raises(SpaceError, match=f"^{re.escape(message)}$"):
        load_space("llama-3.1-8b-to-4b").size_window(size)


def test_a_window_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(ValidationError, match="window: 8500 exceeds 7800; write the least size first"):
        SearchSpace.model_validate({"window": [8500, 7800]})


def test_a_shipped_space_carries_the_shape_it_was_made_for() -> None:
    space = load_space("minitron-15b-to-8b")
    assert space.source_architecture() == Architecture("nemotron", 32, 6144, 24576, 48, 8, 128, 256000)


@pytest.mark.parametrize("name", resource_names("search_spaces", ".yaml"))
def test_every_shipped_space_can_be_read_and_says_what_it_is_for(name: str) -> None:
    assert load_space(name).description


def test_a_space_without_a_shape_says_so() -> None:
    with pytest.raises(SpaceError, match="this space carries no source shape; name a teacher to enumerate it"):
        SearchSpace().source_architecture()


def test_a_shape_with_a_size_missing_says_which() -> None:
    space = SearchSpace.model_validate({"source": {"model_type": "llama", "hidden_size": 48}})
    with pytest.raises(SpaceError, match="the space's source is no shape: .*missing.*'num_hidden_layers'"):
        space.source_architecture()


HYBRID = {
    "model_type": "lfm2", "num_hidden_layers": 6, "hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 12, "vocab_size": 100, "fixed_sizes": {"conv_L_cache": 3, "conv_bias": False},
}  # fmt: skip


@pytest.mark.parametrize("kinds", [["conv", "full_attention"] * 3, ["conv", "full_attention"]])
def test_the_kinds_of_a_shapes_layers_are_listed_whole_or_as_a_period(kinds: list[str]) -> None:
    shape = SearchSpace.model_validate({"source": {**HYBRID, "layer_kinds": kinds}}).source_architecture()
    assert shape.layer_kinds == ("conv", "full_attention") * 3
    assert shape.fixed_sizes == {"conv_L_cache": 3, "conv_bias": False}
    assert shape.fixed_sizes["conv_bias"] is False


@pytest.mark.parametrize("count", [0, 4, 7])
def test_kinds_of_layers_that_are_no_period_are_refused(count: int) -> None:
    space = SearchSpace.model_validate({"source": {**HYBRID, "layer_kinds": ["conv"] * count}})
    with pytest.raises(
        SpaceError, match=f"names {count} layers, but num_hidden_layers=6; name a kind for each layer, or"
    ):
        space.source_architecture()


@pytest.mark.parametrize("kinds", ["conv", [1, 2], None, {"conv": 3}])
def test_kinds_of_layers_are_a_list_of_words(kinds: Any, tmp_path: Path) -> None:
    file = space_file(tmp_path, yaml.safe_dump({"source": {**HYBRID, "layer_kinds": kinds}}))
    with pytest.raises(SpaceError, match=r"layer_kinds=.* must be a list of words: the kind of each layer"):
        load_space(file)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_kinds": ("conv", "foo") * 3}, "layers of kind 'foo' are not described by the table of family 'lfm2'"),
        (
            {"layer_kinds": ()},
            r"layer_kinds=\[\] is not what family 'lfm2' wants, which is one of conv, full_attention for",
        ),
        ({"model_type": "llama"}, "is not what family 'llama' wants, which is none"),
        ({"fixed_sizes": {"conv_bias": False}}, "fixed_sizes lacks conv_L_cache, by which tensors of family 'lfm2'"),
        ({"fixed_sizes": {"conv_L_cache": 3}}, "fixed_sizes lacks conv_bias"),
    ],
)
def test_a_shape_that_its_familys_table_does_not_describe_is_refused(changes: dict[str, Any], message: str) -> None:
    shape = Architecture(**{**HYBRID, "layer_kinds": ("conv", "full_attention") * 3, **changes})
    with pytest.raises(InvalidArchitectureError, match=message):
        require_described(shape, layout_of(shape.model_type))


def test_a_source_that_tells_mixers_among_fixed_sizes_is_refused() -> None:
    space = load_space("nemotron-nano-9b-v2")
    assert space.source is not None
    source = dict(space.source)
    mixers = {name: source.pop(name) for name in ("mamba_num_heads", "mamba_head_dim", "mamba_num_groups")}
    fixed = {**cast("dict[str, int]", source["fixed_sizes"]), **mixers}
    shape = space.model_copy(update={"source": {**source, "fixed_sizes": fixed}}).source_architecture()
    message = "mamba_num_heads=0, mamba_head_dim=0, mamba_num_groups=0 is no shape of family 'nemotron_h'.*beside"
    with pytest.raises(InvalidArchitectureError, match=message):
        require_described(shape, layout_of(shape.model_type))


def test_a_space_is_read_from_a_file(tmp_path: Path) -> None:
    path = space_file(tmp_path, "axes: {num_hidden_layers: {values: [2, 4]}}\ntolerance: 0.1\n")
    assert (
        load_space(path)
        == load_space(str(path))
        == SearchSpace.model_validate({"axes": {"num_hidden_layers": {"values": [2, 4]}}, "tolerance": 0.1})
    )


def test_an_unknown_space_is_answered_with_the_shipped_ones() -> None:
    with pytest.raises(
        SpaceError,
        match=r"no search space 'absent'; give the path of a YAML file or one of: .*minitron-15b-to-4b",
    ):
        load_space("absent")


@pytest.mark.parametrize("text", ["axes: [", "axes: !!python/object:os.system {}", "\x00"])
def test_what_is_not_plain_yaml_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(SpaceError, match=r"space\.yaml is not YAML: "):
        load_space(space_file(tmp_path, text))


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(SpaceError, match=r"space\.yaml is not YAML: "):
        load_space(path)


@pytest.mark.parametrize("text", ["", "- 1", "text"])
def test_yaml_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(SpaceError, match=r"space\.yaml must hold a mapping with the key 'axes'"):
        load_space(space_file(tmp_path, text))


def test_all_faults_of_a_space_are_shown_at_once_with_the_nearest_keys(tmp_path: Path) -> None:
    path = space_file(tmp_path, "axes: {hiden_size: {values: [8]}, hidden_size: {value: [8]}}\ntolerance: 2\n")
    message = (
        "space.yaml: axes.hidden_size: give exactly one of values, min_fraction and ratios (given: none); "
        "unknown key 'axes.hiden_size'; did you mean 'hidden_size'? known keys: hidden_size, "
        "intermediate_size, mamba_head_dim, mamba_num_heads, moe_intermediate_size, num_attention_heads, "
        "num_experts, num_hidden_layers, num_key_value_heads, shared_expert_intermediate_size; "
        "tolerance: Input should be less than 1"
    )
    unknown = (
        "space.yaml: unknown key 'axes.hidden_size.value'; did you mean 'values'? known keys: min_fraction, "
        "multiple_of, ratios, step_fraction, values; " + message.split("; ", 1)[1]
    )
    with pytest.raises(SpaceError, match=f"^{re.escape(unknown)}$"):
        load_space(path)
