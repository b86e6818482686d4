"""Every shipped space carries the published shape it was made for, and holds the shapes it promises."""

from typing import NamedTuple

import pytest

from minitron_nas.architecture.config import require_described
from minitron_nas.architecture.rules import check_architecture
from minitron_nas.families.catalog import count_parameters, layout_of
from minitron_nas.resources import resource, resource_names
from minitron_nas.settings import parse_count
from minitron_nas.space.axes import load_space
from minitron_nas.space.enumerate import Candidates, enumerate_candidates


class Preset(NamedTuple):
    """The source's published total parameters, and the sizes that the description names."""

    num_parameters: int
    sizes: tuple[str, ...]


PRESETS = {
    # Without the vision tower and projector, 419,816,304 of the 4,300,079,472 parameters of the checkpoint.
    "gemma-3-4b": Preset(3_880_263_168, ("3B", "2.5B")),
    "gemma-3-1b": Preset(999_885_952, ("800M", "650M")),
    "llama-3.1-8b": Preset(8_030_261_248, ("6B", "5B", "4B")),
    "llama-3.1-8b-to-4b": Preset(8_030_261_248, ("4B",)),
    "llama-3.2-3b": Preset(3_212_749_824, ("2.5B", "2B")),
    "minitron-15b-to-4b": Preset(15_628_775_424, ("4B",)),
    "minitron-15b-to-8b": Preset(15_628_775_424, ("8B",)),
    "mistral-7b-v0.3": Preset(7_248_023_552, ("5B", "4B")),
    "mistral-nemo-12b": Preset(12_247_782_400, ("8B", "4B")),
    "mistral-nemo-12b-to-8b": Preset(12_247_782_400, ("8B",)),
    "qwen3-30b-a3b": Preset(30_532_122_624, ("20B", "15B")),
    "qwen3-4b": Preset(4_022_468_096, ("3B", "2B")),
    "qwen3-8b": Preset(8_190_735_360, ("7B", "6B", "4B")),
    "smollm2-1.7b": Preset(1_711_376_384, ("1.3B", "1B")),
    "smollm2-135m": Preset(134_515_008, ("90M",)),
    "smollm2-360m": Preset(361_821_120, ("280M", "230M")),
    # Without the towers for pictures and sound.
    "gemma-4-e2b": Preset(4_628_569_344, ("4B", "3.5B")),
    "gemma-4-e4b": Preset(7_463_013_376, ("6B", "5B")),
    "gpt-oss-20b": Preset(20_914_757_184, ("16B", "12B")),
    # Without the vision tower and projector.
    "gemma-3-12b": Preset(11_766_034_176, ("9B", "7B")),
    "llama-3.3-70b": Preset(70_553_706_496, ("50B", "35B")),
    "mistral-small-24b": Preset(23_572_403_200, ("16B", "12B")),
    "olmo-2-7b": Preset(7_298_617_344, ("5B", "4B")),
    "phi-4": Preset(14_659_507_200, ("10B", "7B")),
    "qwen3-1.7b": Preset(1_720_574_976, ("1.2B", "900M")),
    "qwen3-14b": Preset(14_768_307_200, ("10B", "8B")),
    "qwen3-32b": Preset(32_762_123_264, ("24B", "16B")),
    # Text models with layers of several kinds.
    "gemma-4-26b-a4b": Preset(25_233_141_760, ("18B", "14B")),
    "gemma-4-31b": Preset(30_697_345_280, ("24B", "18B")),
    "granite-4.0-h-tiny": Preset(6_939_037_248, ("5B", "4B")),
    "lfm2-1.2b": Preset(1_170_340_608, ("900M", "700M")),
    "nemotron-3-nano-30b-a3b": Preset(31_577_937_344, ("24B", "16B")),
    "nemotron-nano-9b-v2": Preset(8_888_227_328, ("7B", "5B")),
    "qwen3-next-80b-a3b": Preset(79_674_391_296, ("60B", "40B")),
    "qwen3.5-9b": Preset(8_953_803_264, ("7B", "5B")),
    "qwen3.5-35b-a3b": Preset(34_660_610_688, ("24B", "18B")),
}
SIZES = [(name, size) for name, preset in PRESETS.items() for size in preset.sizes]

# What NVIDIA published, by preset: (size, shape's id, total parameters).
PUBLISHED = {
    "Minitron 8B": ("minitron-15b-to-8b", "8B", "l32-h4096-f16384-q48-k8", 8_271_699_968),
    "Minitron 4B": ("minitron-15b-to-4b", "4B", "l32-h3072-f9216-q24-k8", 4_190_509_056),
    "Llama-3.1-Minitron-4B-Width": ("llama-3.1-8b-to-4b", "4B", "l32-h3072-f9216-q32-k8", 4_512_746_496),
    "Llama-3.1-Minitron-4B-Depth": ("llama-3.1-8b-to-4b", "4B", "l16-h4096-f14336-q32-k8", 4_540_469_248),
    "MN-Minitron-8B": ("mistral-nemo-12b-to-8b", "8B", "l40-h4096-f11520-q32-k8", 8_414_105_600),
}


def candidates(name: str, size: str) -> Candidates:
    space = load_space(name)
    source = space.source_architecture()
    return enumerate_candidates(space, parse_count(size), source, layout_of(source.model_type)).candidates


def test_every_shipped_space_is_held_to_its_promises() -> None:
    assert {*PRESETS, "default"} == set(resource_names("search_spaces", ".yaml"))


@pytest.mark.parametrize("name", resource_names("search_spaces", ".yaml"))
def test_the_table_of_spaces_names_every_one(name: str) -> None:
    assert f"| `{name}` |" in resource("search_spaces", "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PRESETS)
def test_the_source_has_the_published_parameters(name: str) -> None:
    source = load_space(name).source_architecture()
    require_described(source, layout_of(source.model_type))
    assert count_parameters(source) == PRESETS[name].num_parameters


@pytest.mark.parametrize(("name", "size"), SIZES)
def test_the_sizes_of_the_description_have_candidates_that_transformers_loads(name: str, size: str) -> None:
    assert size in load_space(name).description.split(" to ", 1)[1]
    found = candidates(name, size)
    assert found
    for candidate in found:
        check_architecture(candidate.architecture, layout_of(candidate.architecture.model_type))


@pytest.mark.parametrize("name", PRESETS)
def test_every_listed_size_is_at_most_the_sources(name: str) -> None:
    space = load_space(name)
    source = space.source_architecture()
    for axis, values in space.axes.given().items():
        assert max(values.values or (1,)) <= getattr(source, axis)


@pytest.mark.parametrize("model", PUBLISHED)
def test_a_published_model_is_a_candidate(model: str) -> None:
    name, size, shape_id, num_parameters = PUBLISHED[model]
    assert {candidate.id: candidate.num_parameters for candidate in candidates(name, size)}[shape_id] == num_parameters
