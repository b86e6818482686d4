"""Models that are larger than the device they compute on, against the same models where it has room."""

import gc
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import check_device_map
from transformers import AutoConfig, AutoModelForCausalLM

from minitron_nas.architecture.config import architecture_of
from minitron_nas.distillation.loss.validation import validate
from minitron_nas.distillation.signals.folder import SignalPlace
from minitron_nas.distillation.signals.hidden_cache import HiddenCache, write_hidden_cache
from minitron_nas.distillation.signals.teacher import OnlineTeacher
from minitron_nas.errors import DiskSpaceError
from minitron_nas.evaluation.continuations import continuations
from minitron_nas.families.catalog import layout_of
from minitron_nas.models import placement
from minitron_nas.models.checkpoint import open_checkpoint
from minitron_nas.models.loading import load_for_inference
from minitron_nas.models.placement import (
    about_spread,
    find_places,
    places_of,
    rewritten_bytes,
    running_bytes,
    whole_model_bytes,
)
from minitron_nas.storage import atomic
from minitron_nas.testing import tiny_checkpoint
from minitron_nas.text.packing import pack

GB = 10**9


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, int], None]:
    """Leave room for all but the last layers of a model."""

    def leave(folder: Path, num_layers: int) -> None:
        checkpoint = open_checkpoint(folder)
        *layers, others = placement._sizes(
            checkpoint.architecture, checkpoint.layout, placement.compute_dtype(torch.device("cpu")).itemsize
        )
        room = sum(layers[: len(layers) - num_layers]) + max(layers) + others
        monkeypatch.setattr(placement, "_rooms", lambda: [("cpu", running_bytes(room + 1))])

    return leave


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "mixtral", "qwen3_5_moe_text", "nemotron_h"])
def test_a_model_whose_last_layers_stay_in_its_files_computes_the_same(
    tmp_path: Path, little_memory: Callable[[Path, int], None], caplog: pytest.LogCaptureFixture, family: str
) -> None:
    folder = tiny_checkpoint(tmp_path, family)
    ids = torch.arange(3, 67).view(2, 32)
    whole = load_for_inference(folder)
    assert find_places(folder) is None
    little_memory(folder, 2)
    spread: Any = load_for_inference(folder)
    assert list(spread.hf_device_map.values()).count("disk") == 2
    assert sum(parameter.is_meta for parameter in spread.parameters()) > 2
    assert caplog.messages == []
    with torch.no_grad():
        assert torch.equal(spread(input_ids=ids).logits, whole(input_ids=ids).logits)


@pytest.mark.parametrize(("limit_bytes", "fits"), [(300, True), (299, False)])
def test_a_tiny_model_is_whole_where_little_memory_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit_bytes: int, fits: bool
) -> None:
    folder = tiny_checkpoint(tmp_path, "llama")
    monkeypatch.setattr(placement, "_sizes", lambda *_: [60, 60, 60, 20])
    monkeypatch.setattr(placement, "_rooms", lambda: [("cpu", limit_bytes)])
    assert (find_places(folder) is None) == fits


@pytest.mark.parametrize(("weights_gb", "beside_gb"), [(0, 0), (1, 0.5), (100, 20 + (1 << 30) / GB)])
def test_a_model_needs_half_as_much_again_and_a_large_one_less(weights_gb: int, beside_gb: float) -> None:
    needed = running_bytes(weights_gb * GB)
    assert needed == int((weights_gb + beside_gb) * GB)
    assert placement._weight_bytes(needed) == pytest.approx(weights_gb * GB)


@pytest.mark.parametrize(("family", "tied"), [("llama", True), ("llama", False), ("gpt2", True), ("glm4_moe", False)])
def test_a_model_is_taken_for_what_it_is_once_loaded(tmp_path: Path, family: str, tied: bool) -> None:
    folder = tiny_checkpoint(tmp_path, family, tied=tied)
    model = load_for_inference(folder)
    loaded = {tensor.data_ptr(): tensor.numel() for tensor in model.state_dict().values()}
    needed = running_bytes(sum(loaded.values()) * model.dtype.itemsize)
    assert whole_model_bytes(open_checkpoint(folder)) == needed
    assert whole_model_bytes(folder) == needed


@pytest.mark.parametrize(("family", "rewrites"), [("mixtral", True), ("qwen3_moe", True), ("gpt_oss", False)])
def test_experts_that_lie_one_by_one_in_files_are_put_together_where_there_is_room(
    tmp_path: Path,
    little_memory: Callable[[Path, int], None],
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    rewrites: bool,
) -> None:
    folder, temporary = tiny_checkpoint(tmp_path / "model", family), tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    little_memory(folder, 2)
    places = find_places(folder)
    assert places is not None
    needed = rewritten_bytes(folder, places)
    assert (needed > 0) == rewrites
    assert (f"put together in {temporary}, " in about_spread(folder)) == rewrites
    spread = load_for_inference(folder)
    assert needed <= sum(file.stat().st_size for file in temporary.rglob("*") if file.is_file()) <= needed + 10_000
    del spread
    gc.collect()
    assert not list(temporary.iterdir())
    if rewrites:
        monkeypatch.setattr(atomic, "free_bytes", lambda folder: needed - 1)
        with pytest.raises(DiskSpaceError, match=r"^the experts of .* free some space or name another .*TMPDIR$"):
            load_for_inference(folder)


def test_it_speaks_validates_and_writes_as_the_whole_model_does(
    trained_teacher: Path, tmp_path: Path, little_memory: Callable[[Path, int], None]
) -> None:
    ids = torch.randint(3, 320, (256,), generator=torch.Generator().manual_seed(0)).numpy()
    text = pack([ids[:100], ids[100:]], 64)
    whole = load_for_inference(trained_teacher)
    little_memory(trained_teacher, 3)
    spread = load_for_inference(trained_teacher)
    for name, model in (("whole", whole), ("spread", spread)):
        write_hidden_cache(model, SignalPlace(tmp_path / name, "teacher", text))
    files = {file.relative_to(tmp_path / "whole") for file in (tmp_path / "whole").rglob("*") if file.is_file()}
    assert files
    assert all((tmp_path / "whole" / file).read_bytes() == (tmp_path / "spread" / file).read_bytes() for file in files)
    signals = (OnlineTeacher(spread), HiddenCache(SignalPlace(tmp_path / "whole", "teacher", text)))
    assert [validate(whole, text, signal).kl_nats for signal in signals] == [0, 0]
    assert validate(spread, text, None).loss_nats == validate(whole, text, None).loss_nats
    assert continuations(spread, text) == continuations(whole, text)


def test_the_text_part_of_a_wrapper_is_spread_too(
    wrapper: Callable[..., Path], little_memory: Callable[[Path, int], None]
) -> None:
    folder, ids = wrapper("mistral3"), torch.arange(10, 40)[None]
    whole = load_for_inference(folder)
    little_memory(folder, 2)
    spread: Any = load_for_inference(folder)
    assert "disk" in spread.hf_device_map.values()
    with torch.no_grad():
        assert torch.equal(spread(input_ids=ids).logits, whole(input_ids=ids).logits)


@pytest.mark.parametrize(
    ("rooms", "counts"),
    [
        ([(0, 80), (1, 80), ("cpu", 500)], {0: 34, 1: 38, "cpu": 8}),
        ([(0, 80), ("cpu", 200)], {0: 34, "cpu": 46}),
        ([(0, 80), ("cpu", 40)], {0: 34, "cpu": 18, "disk": 28}),
        ([("cpu", 64)], {"cpu": 27, "disk": 53}),
        ([(1, 80), (0, 80), (2, 80), ("cpu", 500)], {1: 34, 0: 38, 2: 8}),
    ],
)
def test_a_model_of_seventy_billion_is_spread_in_the_order_of_its_layers(
    rooms: list[tuple[int | str, int]], counts: dict[int | str, int]
) -> None:
    layout = layout_of("llama")
    config = AutoConfig.for_model(
        "llama", hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64,
        num_key_value_heads=8, vocab_size=128256, tie_word_embeddings=False,
    )  # fmt: skip
    shape = architecture_of(config.to_dict(), layout)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    sizes = placement._sizes(shape, layout, 2)
    assert sum(sizes) == sum(parameter.numel() * 2 for parameter in model.parameters())
    places = places_of(model, layout, sizes, [(place, size * GB) for place, size in rooms])
    check_device_map(model, places)
    layers = [places[f"model.layers.{layer}"] for layer in range(80)]
    assert {place: layers.count(place) for place in dict.fromkeys(layers)} == counts
    assert layers == sorted(layers, key=list(counts).index)
    assert {places[name] for name in places if "layers" not in name} == {rooms[0][0]}


def test_where_it_lies_is_told() -> None:
    layers: list[int | str] = [0, 0, "cpu", "disk", "disk"]
    places = {"model.embed_tokens": 0, **{f"model.layers.{number}": place for number, place in enumerate(layers)}}
    assert placement._about_places(places, layout_of("llama")) == (
        "the model is larger than the memory that it computes in: of its 5 layers 2 on GPU 0, 1 in main memory, 2 in "
        "its files; what lies elsewhere is fetched for every batch, which takes longer"
    )
