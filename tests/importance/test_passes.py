from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from minitron_nas.errors import PlanError
from minitron_nas.importance import passes
from minitron_nas.importance.passes import CalibrationPass, require_whole_model
from minitron_nas.importance.scores import ImportanceScores
from minitron_nas.importance.settings import DepthSettings, ImportanceSettings
from minitron_nas.models import placement
from minitron_nas.models.checkpoint import open_checkpoint
from minitron_nas.models.placement import fits_in_memory, whole_model_bytes
from minitron_nas.pipeline.display import Quiet
from minitron_nas.pipeline.engine import Engine, Left, Stage
from minitron_nas.pipeline.plan import make_plan
from minitron_nas.pipeline.run import Run, RunTokens, Source
from minitron_nas.pipeline.stages.prepare import prepare_source
from minitron_nas.pipeline.steps.prune import prune
from minitron_nas.pipeline.steps.score import score
from minitron_nas.progress import Progress, silent
from minitron_nas.pruning.prepare import PreparedTeacher
from minitron_nas.storage.run_folder import RunFolder
from minitron_nas.text.packing import pack
from minitron_nas.text.settings import TextSettings

TEXT = TextSettings(sequence_length=64, calibration_samples=8)


@pytest.fixture(autouse=True)
def _float32(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("importance.layered_model", "models.loading", "models.placement"):
        monkeypatch.setattr(f"minitron_nas.{place}.compute_dtype", lambda device: torch.float32)


def give_memory(monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=num_bytes))


class Recorder:
    """Remembers the stages' titles."""

    def __init__(self) -> None:
        self.titles: list[str] = []

    def expect(self, workload: Any) -> None:
        pass

    def skip(self, stage: str) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    @contextmanager
    def stage(self, stage: str, title: str) -> Iterator[Progress]:
        self.titles.append(title)
        yield silent


def test_a_model_fits_where_its_weights_and_a_margin_do(trained_teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(trained_teacher)
    needed = int(1.5 * 4 * checkpoint.num_parameters)
    assert whole_model_bytes(checkpoint) == needed
    give_memory(monkeypatch, needed)
    assert fits_in_memory(checkpoint)
    assert not fits_in_memory(checkpoint, more_bytes=1)
    give_memory(monkeypatch, needed - 1)
    assert not fits_in_memory(checkpoint)


@pytest.mark.parametrize(("main", "device", "fits"), [(1, 1, True), (0, 1, False), (1, 0, False)])
def test_it_has_to_fit_into_main_memory_and_the_devices(
    trained_teacher: Path, monkeypatch: pytest.MonkeyPatch, main: int, device: int, fits: bool
) -> None:
    checkpoint = open_checkpoint(trained_teacher)
    needed = whole_model_bytes(checkpoint)
    give_memory(monkeypatch, main * needed)
    monkeypatch.setattr(placement, "pick_device", lambda: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda place: (device * needed, 2 * needed))
    assert fits_in_memory(checkpoint) == fits


def test_a_model_that_does_not_fit_gets_the_same_scores_layer_by_layer_and_the_user_is_told(
    trained_teacher: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, told = open_checkpoint(trained_teacher), Recorder()
    score(trained_teacher, text_file, tmp_path / "whole", TEXT, display=told)
    assert told.titles[-1] == "importance over 512 tokens"
    give_memory(monkeypatch, 1000)
    monkeypatch.setattr(passes, "load_whole", None)
    score(trained_teacher, text_file, tmp_path / "swept", TEXT, display=told)
    assert told.titles[-1] == ("importance over 512 tokens, layer by layer, because the model does not fit into memory")
    whole, swept = (ImportanceScores.load(tmp_path / name, checkpoint.fingerprint) for name in ("whole", "swept"))
    assert all(torch.equal(getattr(whole, field.name), getattr(swept, field.name)) for field in fields(whole))
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "swept"}


def test_both_ways_measure_the_same_second_moments_of_what_is_asked_for(trained_teacher: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(trained_teacher)
    ids = torch.randint(0, 320, (64,), generator=torch.Generator().manual_seed(0)).numpy()
    names = {}
    for readers in ("norms", "projections", "all"):
        found: list[dict[str, torch.Tensor]] = [{}, {}]
        for whole, kept in zip((True, False), found, strict=True):
            CalibrationPass(checkpoint, pack([ids], 16), whole, tmp_path).moments(readers, kept, silent)
        assert found[0].keys() == found[1].keys()
        assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
        names[readers] = set(found[0])
    assert names["all"] == names["norms"] | names["projections"]
    assert not names["norms"] & names["projections"]
    assert all("norm" in name for name in names["norms"])


def test_pruning_on_text_gives_the_same_student_layer_by_layer(
    trained_teacher: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = {"hidden_size": 42, "num_hidden_layers": 4}
    prune(trained_teacher, tmp_path / "whole", shape, data=text_file, text=TEXT, display=Quiet())
    give_memory(monkeypatch, 400_000)  # what the widest matrix is refitted with, and no whole model
    monkeypatch.setattr(passes, "load_whole", None)
    prune(trained_teacher, tmp_path / "swept", shape, data=text_file, text=TEXT, display=Quiet())
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "swept")]
    assert files[0] == files[1]


def test_a_run_scores_a_source_that_does_not_fit_layer_by_layer(
    trained_teacher: Path, tiny_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source("teacher", open_checkpoint(trained_teacher))
    ids = torch.randint(0, 320, (256,), generator=torch.Generator().manual_seed(0)).numpy()
    pack([ids], 64).save(tmp_path / "calibration.safetensors")
    plan = make_plan({"teacher": "x", "sizes": ["90k"], "data": "x", **tiny_settings})
    told, orders = Recorder(), []
    for name, memory in (("whole", 1 << 40), ("swept", 1000)):
        give_memory(monkeypatch, memory)
        (tmp_path / name).mkdir()
        engine = Engine(RunFolder(tmp_path / name), told)
        packed = engine.run(Stage("text", "read", {}), lambda progress: Left())
        run = Run(engine, plan, source, RunTokens(tmp_path, packed, 0))
        prepare_source(run, source, [4])
        prepared = PreparedTeacher.open(trained_teacher, engine.folder.prepared("teacher"))
        orders.append(prepared.order)
        left = {"importance", "prepared", "ledger.jsonl", "work", "checkpoints"}
        assert {path.name for path in engine.folder.path.iterdir()} == left
        assert list(engine.folder.work.iterdir()) == list((engine.folder.path / "checkpoints").iterdir()) == []
    assert [title for title in told.titles if "importance" in title] == [
        "importance of every part",
        "importance of every part, layer by layer, because the model does not fit into memory",
    ]
    assert all(
        torch.equal(getattr(orders[0], field.name), getattr(orders[1], field.name)) for field in fields(orders[0])
    )


def test_layers_are_not_measured_on_a_model_that_does_not_fit(
    trained_teacher: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_memory(monkeypatch, 1000)
    told, depth = Recorder(), DepthSettings(criterion="kl", mode="greedy")
    message = (
        r"importance\.depth criterion=kl with mode=greedy runs the whole model, which needs "
        r"\d+ kB of free memory for .*; choose criterion=block_importance with mode=layers"
    )
    with pytest.raises(PlanError, match=message):
        require_whole_model(open_checkpoint(trained_teacher), depth)
    with pytest.raises(PlanError, match=message):
        prune(
            trained_teacher,
            tmp_path / "student",
            {"num_hidden_layers": 4},
            data=text_file,
            text=TEXT,
            importance=ImportanceSettings(depth=depth),
            display=told,
        )
    assert told.titles == ["load teacher"]
    assert list(tmp_path.iterdir()) == []
