"""The stages in which a source is scored and prepared: the same for however many workers, and after a kill."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from minitron_nas.execution.settings import RunnerSettings
from minitron_nas.execution.workers import Workers
from minitron_nas.importance.passes import CalibrationPass
from minitron_nas.importance.sums import SumsFolder
from minitron_nas.models.checkpoint import Checkpoint, open_checkpoint
from minitron_nas.pipeline.display import Quiet
from minitron_nas.pipeline.engine import Engine, Left, Stage
from minitron_nas.pipeline.plan import make_plan, with_overrides
from minitron_nas.pipeline.run import Run, RunTokens, Source
from minitron_nas.pipeline.stages import prepare as stages
from minitron_nas.pipeline.stages.prepare import prepare_source
from minitron_nas.storage.run_folder import RunFolder
from minitron_nas.testing import tiny_checkpoint
from minitron_nas.text.packing import pack

Prepare = Callable[..., RunFolder]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(tiny_checkpoint(tmp_path_factory.mktemp("model"), "llama"))


@pytest.fixture
def prepare(teacher: Checkpoint, tmp_path: Path) -> Prepare:
    """Score and prepare the teacher in a run folder of some name, over forty sequences: ten shards of text."""
    ids = torch.randint(3, 320, (640,), generator=torch.Generator().manual_seed(0)).numpy()
    pack([ids], 16).save(tmp_path / "calibration.safetensors")

    def call(name: str, *overrides: str, display: Quiet | None = None) -> RunFolder:
        plan = make_plan(with_overrides({"teacher": "x", "sizes": [1], "data": "x"}, overrides))
        engine = Engine(RunFolder(tmp_path / name), display or Quiet())
        (tmp_path / name).mkdir(exist_ok=True)
        text = engine.run(Stage("text", "tokens", {}), lambda progress: Left())
        run = Run(engine, plan, Source("teacher", teacher), RunTokens(tmp_path, text, 0))
        prepare_source(run, run.teacher, [3])
        return engine.folder

    return call


def left_in(folder: RunFolder) -> dict[str, bytes]:
    """What the two stages left."""
    roots = (folder.importance("teacher"), folder.prepared("teacher"))
    files = [file for root in roots for file in sorted(root.rglob("*")) if file.is_file()]
    return {str(file.relative_to(folder.path)): file.read_bytes() for file in files}


def give_room(monkeypatch: pytest.MonkeyPatch, num_jobs: int) -> None:
    monkeypatch.setattr(Workers, "room", lambda self: num_jobs)


def test_what_is_left_does_not_depend_on_the_number_of_workers(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = left_in(prepare("alone"))
    assert {"importance/teacher/scores.safetensors", "prepared/teacher/rotation.safetensors"} <= alone.keys()
    for num_jobs in (2, 3, 50):
        give_room(monkeypatch, num_jobs)
        shared = prepare(f"{num_jobs}")
        assert left_in(shared) == alone
        assert list((shared.path / "checkpoints").iterdir()) == list(shared.work.iterdir()) == []


def test_workers_share_shards_of_text_and_layers(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    give_room(monkeypatch, 3)
    shared, share = [], Workers.share

    def watched(self, function, parts, progress=None):
        shared.append((function.__name__, [part.get("share") or part.get("layers") for part in parts]))
        return share(self, function, parts, progress)

    monkeypatch.setattr(Workers, "share", watched)
    prepare("run")
    found = dict(shared)
    assert [[*each.of(range(10))] for each in found["sum_up"]] == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]
    assert found["measure_moments"] == [range(1), range(1, 2), range(2, 4)]


def test_passes_over_the_text_fill_one_bar(prepare: Prepare, told: Any) -> None:
    prepare("run", "importance.depth={criterion: loss, mode: greedy}", display=told)
    fractions = told.fractions["teacher prepare"]
    assert fractions == sorted(fractions)
    assert 0.5 in fractions
    assert fractions[-1] == 1.0


def test_nothing_is_measured_for_a_start_that_needs_nothing(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "keep_moments", None)
    folder = prepare("run", "start=select", "repair=none").prepared("teacher")
    assert {path.name for path in folder.iterdir()} == {"order.safetensors", "settings.json"}


def test_a_killed_score_goes_on_at_its_first_missing_shard(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, written, write = left_in(prepare("whole")), [], SumsFolder.write

    def killed(self, shard, sums):
        if len(written) == 6:
            raise KeyboardInterrupt
        written.append(shard)
        write(self, shard, sums)

    with monkeypatch.context() as patch:
        patch.setattr(SumsFolder, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare("run")
    assert written == [0, 1, 2, 3, 4, 5]
    give_room(monkeypatch, 2)
    monkeypatch.setattr(SumsFolder, "write", lambda *args: (written.append(args[1]), write(*args)))
    assert left_in(prepare("run")) == whole
    assert written == [0, 1, 2, 3, 4, 5, 6, 8, 7, 9]


def test_a_score_by_other_settings_does_not_go_on_with_what_was_summed_before(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = "importance.sequence_aggregation=mean"
    whole = left_in(prepare("whole", other))
    with monkeypatch.context() as patch:
        patch.setattr(stages, "scores_of", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare("run")
    assert left_in(prepare("run", other)) == whole


def test_a_killed_preparation_does_not_repeat_a_pass_that_is_done(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, passes, measure = left_in(prepare("whole")), [], CalibrationPass.moments

    def watched(self, readers, kept, progress, layers):
        passes.append((readers, layers))
        if passes == [("norms", {0, 1}), ("projections", {0, 1}), ("norms", {2, 3}), ("projections", {2, 3})]:
            raise KeyboardInterrupt
        measure(self, readers, kept, progress, layers)

    monkeypatch.setattr(CalibrationPass, "moments", watched)
    give_room(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        prepare("run")
    assert left_in(prepare("run")) == whole
    assert passes[4:] == [("projections", {2, 3})]


def test_a_worker_that_is_lost_when_moments_were_moved_is_taken_over_from(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, work, write, moved = left_in(prepare("whole")), stages.prepare, stages.write_prepared, list[Path]()

    def lost(folder: Path, order: object, rotation: object, moments: Path, **more: object) -> None:
        if not moved:
            moved.append(moments.rename(moments.with_name("moved")))
            raise ZeroDivisionError
        write(folder, order, rotation, moments, **more)

    def again(**arguments: object) -> None:
        with pytest.raises(ZeroDivisionError):
            work(**arguments)
        work(**arguments)

    monkeypatch.setattr(stages, "write_prepared", lost)
    monkeypatch.setattr(stages, "prepare", again)
    assert left_in(prepare("run")) == whole


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray warns of its own settings
def test_two_workers_of_a_cluster_leave_what_one_process_leaves(
    one_ray: object, prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    room = Workers.room
    monkeypatch.setattr(Workers, "room", lambda self: asked.append(room(self)) or asked[-1])
    alone = left_in(prepare("alone"))
    on_cluster = RunnerSettings(address="auto", cpus_per_trial=1, gpus_per_trial=0)
    there = prepare(
        "there", *(f"runner.{key}={value}" for key, value in on_cluster.model_dump(exclude_defaults=True).items())
    )
    assert left_in(there) == alone
    assert asked == [1, 1, 2, 2]
