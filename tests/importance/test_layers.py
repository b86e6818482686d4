from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minitron_nas.architecture.spec import Architecture
from minitron_nas.errors import InvalidArchitectureError, PlanError
from minitron_nas.families.catalog import layout_of
from minitron_nas.importance import layers as module
from minitron_nas.importance.baselines import random_scores
from minitron_nas.importance.depth import WholeModel, kl_to_whole
from minitron_nas.importance.layer_removal import without_layers
from minitron_nas.importance.layers import Depths, choose_layers, drop_from
from minitron_nas.importance.scores import ImportanceScores
from minitron_nas.importance.settings import DepthSettings
from minitron_nas.models.checkpoint import Checkpoint, open_checkpoint
from minitron_nas.testing import tiny_checkpoint, tiny_config, tiny_model
from minitron_nas.text.packing import pack

SOURCE = Architecture("llama", 28, 64, 128, 4, 2, 16, vocab_size=100)
LLAMA, GEMMA = layout_of("llama"), layout_of("gemma4_text")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(tiny_checkpoint(tmp_path_factory.mktemp("teacher"), "llama", num_hidden_layers=5))


@pytest.fixture(scope="module")
def scores(checkpoint: Checkpoint) -> ImportanceScores:
    return random_scores(checkpoint.architecture, checkpoint.layout, 0)


TEXT = pack([torch.randint(0, 320, (60,), generator=torch.Generator().manual_seed(0)).numpy()], 12)


def chosen(checkpoint: Checkpoint, scores: ImportanceScores, counts: list[int], **settings: object) -> torch.Tensor:
    return choose_layers(checkpoint, scores, Depths(DepthSettings(**settings), counts, (0, -1), 0), lambda: TEXT)


def measured_numbers(table: torch.Tensor) -> list[int]:
    return [row + 1 for row, known in enumerate(table.any(dim=1).tolist()) if known]


def test_block_importance_of_single_layers_needs_neither_text_nor_model(
    checkpoint: Checkpoint, scores: ImportanceScores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "load_whole", None)
    depths = Depths(DepthSettings(), [3], (0, -1), 0)
    table = choose_layers(checkpoint, scores, depths, lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    best = max((1, 2, 3), key=lambda layer: scores.layers[layer].item())
    assert table[2].nonzero().flatten().tolist() == [0, best, 4]


def test_only_what_is_wanted_is_measured(checkpoint: Checkpoint, scores: ImportanceScores) -> None:
    assert measured_numbers(chosen(checkpoint, scores, [3, 5], mode="block")) == [3, 5]
    assert measured_numbers(chosen(checkpoint, scores, [3, 5], mode="greedy")) == [3, 4, 5]
    assert measured_numbers(chosen(checkpoint, scores, [3], criterion="kl")) == [1, 2, 3, 4, 5]
    assert measured_numbers(chosen(checkpoint, scores, [5], criterion="kl")) == [5]


def test_layers_are_measured_on_as_much_text_as_the_settings_say(
    checkpoint: Checkpoint, scores: ImportanceScores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minitron_nas.models.loading.compute_dtype", lambda device: torch.float32)
    monkeypatch.setattr("minitron_nas.distillation.loss.validation.compute_dtype", lambda device: torch.float32)
    table = chosen(checkpoint, scores, [3], criterion="kl", mode="block", num_sequences=2)
    model = tiny_model(tiny_config("llama", num_hidden_layers=5))
    whole = WholeModel.of(model, TEXT.first(2))
    costs = {}
    for start in (1, 2):
        with without_layers(model, checkpoint.layout, [start, start + 1]):
            costs[start] = kl_to_whole(model, TEXT.first(2), whole)
    best = min(costs, key=costs.__getitem__)
    assert table[2].nonzero().flatten().tolist() == [layer for layer in range(5) if layer not in (best, best + 1)]


def test_what_is_not_dropped_stays_also_counted_from_the_end() -> None:
    assert drop_from(SOURCE, LLAMA, {}, [*range(20, 28), 3, 3]) == [layer for layer in range(20) if layer != 3]
    assert drop_from(SOURCE, LLAMA, {"num_hidden_layers": 26}, [-1, -28]) == list(range(1, 27))


@pytest.mark.parametrize(
    ("layers", "shape", "error", "message"),
    [
        (
            [28],
            {},
            InvalidArchitectureError,
            r"drop_layers names layer 28, which does not exist; .* 28 layers \(0 to 27",
        ),
        ([-29], {}, InvalidArchitectureError, r"drop_layers names layer -29, which does not exist"),
        (range(28), {}, InvalidArchitectureError, r"drop_layers names all 28 layers of the source; keep at least one"),
        (
            [1, 2],
            {"num_hidden_layers": 22},
            PlanError,
            r"drop_layers leaves 26 of 28 layers, but the shape has num_hidden_layers=22; leave num_hidden_layers out",
        ),
    ],
)
def test_layers_that_cannot_be_dropped_are_refused(
    layers: list[int], shape: dict[str, int], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        drop_from(SOURCE, LLAMA, shape, layers)


def test_a_layer_whose_keys_others_read_is_dropped_with_these_alone() -> None:
    kinds = ("full_attention", "full_attention giving", "full_attention sharing", "full_attention sharing")
    source = replace(SOURCE, num_hidden_layers=4, layer_kinds=kinds)
    assert drop_from(source, GEMMA, {}, [0, 3]) == [1, 2]
    assert drop_from(source, GEMMA, {}, [1, 2, 3]) == [0]
    with pytest.raises(InvalidArchitectureError, match="layers of kind 'full_attention' have no keys .* is not there"):
        drop_from(source, GEMMA, {}, [1, 2])


def test_the_last_layer_is_dropped_with_all_behind_another_of_the_kind_that_it_has_to_be_of() -> None:
    source = replace(SOURCE, num_hidden_layers=4, layer_kinds=("sliding_attention", "full_attention") * 2)
    assert drop_from(source, GEMMA, {}, [2, 3]) == [0, 1]
    assert drop_from(source, LLAMA, {}, [3]) == [0, 1, 2]
    said = "the last of the 3 layers is of kind 'sliding_attention', and .* takes .* for a 'full_attention'.*; let the"
    with pytest.raises(InvalidArchitectureError, match=said):
        drop_from(source, GEMMA, {}, [3])


@pytest.mark.parametrize(("criterion", "mode"), [("block_importance", "layers"), ("kl", "layers"), ("loss", "greedy")])
def test_the_last_layer_stays_where_transformers_takes_it_for_one_kind(
    tmp_path: Path, criterion: str, mode: str
) -> None:
    source = open_checkpoint(tiny_checkpoint(tmp_path, "gemma4_text"))
    ranked = random_scores(source.architecture, source.layout, 0)
    ranked.layers[:] = torch.tensor([4.0, 3.0, 2.0, 1.0])
    depths = Depths(DepthSettings(criterion=criterion, mode=mode), [2, 3], (), 0)
    table = choose_layers(source, ranked, depths, lambda: TEXT)
    assert all(table[count - 1, -1] for count in (2, 3))
