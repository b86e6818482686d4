import functools
import gzip
import shutil
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from lm_eval.tasks import TaskManager

from minitron_nas.errors import DiskSpaceError, InvalidArchitectureError, PlanError, SpaceError
from minitron_nas.evaluation import lm_eval
from minitron_nas.models.checkpoint import Checkpoint, open_checkpoint
from minitron_nas.pipeline.build import build_family
from minitron_nas.pipeline.devices import Devices
from minitron_nas.pipeline.display import Quiet
from minitron_nas.pipeline.plan import FamilyPlan, make_plan, with_overrides
from minitron_nas.pipeline.preflight import preflight
from minitron_nas.space.enumerate import Enumeration, enumerate_candidates
from minitron_nas.storage.run_folder import RunFolder

ADAM_BYTES = 12
"""Of one parameter in training: its float32 weight and two moments."""

MOMENTS_BYTES = 5 * 4 * (48**2 + 128**2)
"""The second moments of the teacher's output projections."""

REPORT_BYTES = 100_000
"""Less than here the training of so small a model takes."""

TRAINING_BYTES = 2 * ADAM_BYTES + 4 * 4
"""Of one parameter in full distillation: the last two checkpoints, and float32 weights before, after and, twice, at its
best."""


def beside_bytes(teacher: Checkpoint, num_sizes: int = 1, members: int = 1, state_bytes: int = 2) -> int:
    """Report, tokens, rankings, tokenizers: 32 sequences of 64 tokens score, 16 are held out, four bytes a token."""
    tokens = 4 * (1000 + (32 + 16) * 64) + 16 * 64 * 48 * state_bytes
    heads = teacher.architecture.num_attention_heads + teacher.architecture.num_key_value_heads
    rankings = num_sizes * (4 * 32 * 64 + 24 * (48 + 5 * (128 + heads + 1)) + 8 * 48**2)
    small = sum(file.stat().st_size for file in teacher.path.iterdir() if file.suffix != ".safetensors")
    return REPORT_BYTES + tokens + rankings + num_sizes * members * small


@pytest.fixture(scope="module")
def teacher(trained_teacher: Path) -> Checkpoint:
    return open_checkpoint(trained_teacher)


@pytest.fixture(autouse=True)
def _bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """States take two bytes a value, as on a machine that computes in bfloat16."""
    monkeypatch.setattr("minitron_nas.pipeline.devices.compute_dtype", lambda device: torch.bfloat16)
    monkeypatch.setattr("minitron_nas.pipeline.room._REPORT_BYTES", REPORT_BYTES)


def plan_of(settings: dict[str, Any], *overrides: str) -> FamilyPlan:
    values = {"teacher": "x", "sizes": ["90k"], "data": "x", **settings, "baselines": False}
    return make_plan(with_overrides(values, ("distillation.tokens=1k", "search.num_finalists=1", *overrides)))


def checked(plan: FamilyPlan, teacher: Checkpoint, folder: RunFolder) -> dict[int, Enumeration]:
    """The preflight of a text that is read as it lies, on this machine."""
    return preflight(plan, teacher.outline(), "embedded", folder, Devices.here(), folder.path / "work")


def give_disk(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    usage = shutil._ntuple_diskusage(total=2 * free, used=free, free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)


@pytest.mark.parametrize(
    ("overrides", "needed"),
    [
        # one student, what its training leaves, the cache of the teacher's states
        ((), 90_000 * 4 + 90_000 * TRAINING_BYTES + 1000 * 48 * 2),
        # whatever students learn from, trials have a cache of their own thousand tokens
        (("distillation.teacher_signal=online",), 90_000 * 4 + 90_000 * TRAINING_BYTES + 1000 * 48 * 2),
        (
            ("distillation.teacher_signal=online", "search.num_rungs=0"),
            90_000 * 4 + 90_000 * TRAINING_BYTES,
        ),
        (("distillation.loss=lm",), 90_000 * 4 + 90_000 * TRAINING_BYTES),
        (
            ("distillation.teacher_signal=top_k", "distillation.top_k=100"),
            90_000 * 4 + 90_000 * TRAINING_BYTES + 1000 * (100 * 6 + 2) + 1000 * 48 * 2,
        ),
        (
            ("distillation.teacher_signal=top_k", "distillation.top_k=1024"),
            90_000 * 4 + 90_000 * TRAINING_BYTES + 1000 * (320 * 6 + 2 + 48 * 2),
        ),
        (("search.num_finalists=3",), 90_000 * 4 + 3 * 90_000 * (ADAM_BYTES + 4) + 1000 * 48 * 2),
        (("baselines=true",), 3 * 90_000 * 4 + 90_000 * TRAINING_BYTES + 1000 * 48 * 2),
        (("correct.tokens=1k",), 90_000 * 4 + 138_768 * 4 + 138_768 * TRAINING_BYTES + 1000 * 48 * 2),
        (
            ("sizes=[60k, 90k]",),
            150_000 * 4 + 90_000 * TRAINING_BYTES + 1000 * 48 * 2,
        ),
        # the student that teaches the next one speaks over training and held-out text, too
        (
            ("sizes=[60k, 90k]", "kd_teacher=previous"),
            150_000 * 4 + 90_000 * TRAINING_BYTES + 2 * 1000 * 48 * 2 + 16 * 64 * 48 * 2,
        ),
    ],
    ids=[
        "least",
        "online",
        "online, no trials",
        "no teacher",
        "top 100",
        "top 1024 of 320",
        "more trials",
        "baselines",
        "correction",
        "two sizes",
        "two teachers",
    ],
)
def test_the_disk_must_hold_what_the_run_will_write(
    teacher: Checkpoint,
    tiny_settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    overrides: tuple[str, ...],
    needed: int,
) -> None:
    plan, folder = plan_of(tiny_settings, *overrides), RunFolder(tmp_path / "run")
    needed += int(MOMENTS_BYTES * (1 if len(plan.sizes) == 1 else 1 + 90_000 / 138_768))
    needed += beside_bytes(teacher, len(plan.sizes), 3 if plan.baselines else 1)
    give_disk(monkeypatch, needed)
    checked(plan, teacher, folder)
    give_disk(monkeypatch, needed - 1)
    with pytest.raises(
        DiskSpaceError, match=r"this run \(\d finalists and \d students\) needs [\d.]+ MB in .*free some"
    ):
        checked(plan, teacher, folder)
    assert not folder.path.exists()


def test_states_that_are_computed_in_float32_take_twice_the_disk(
    teacher: Checkpoint, tiny_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minitron_nas.pipeline.devices.compute_dtype", lambda device: torch.float32)
    needed = 90_000 * 4 + 90_000 * TRAINING_BYTES + 1000 * 48 * 4 + MOMENTS_BYTES + beside_bytes(teacher, state_bytes=4)
    give_disk(monkeypatch, needed - 1)
    with pytest.raises(DiskSpaceError):
        checked(plan_of(tiny_settings), teacher, RunFolder(tmp_path))
    give_disk(monkeypatch, needed)
    checked(plan_of(tiny_settings), teacher, RunFolder(tmp_path))


def test_what_an_earlier_process_wrote_is_not_asked_for_again(
    teacher: Checkpoint, tiny_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "signals").write_bytes(bytes(1000 * 48 * 2))
    give_disk(monkeypatch, 90_000 * 4 + 90_000 * TRAINING_BYTES + MOMENTS_BYTES + beside_bytes(teacher))
    checked(plan_of(tiny_settings), teacher, RunFolder(tmp_path))


def test_a_deepspeed_profile_that_cannot_be_used_is_refused_before_any_work(
    teacher: Checkpoint, tiny_settings: dict[str, Any], tmp_path: Path
) -> None:
    checked(plan_of(tiny_settings, "distillation.deepspeed=zero-3"), teacher, RunFolder(tmp_path))
    with pytest.raises(PlanError, match="'zero-9' is neither a file nor one of zero-0"):
        checked(plan_of(tiny_settings, "distillation.deepspeed=zero-9"), teacher, RunFolder(tmp_path))


@pytest.mark.parametrize("layer", [5, -6])
def test_a_protected_layer_must_exist(
    teacher: Checkpoint, tiny_settings: dict[str, Any], tmp_path: Path, layer: int
) -> None:
    with pytest.raises(InvalidArchitectureError, match=f"protected layer {layer} does not exist"):
        checked(plan_of(tiny_settings, f"space.protected_layers=[{layer}]"), teacher, RunFolder(tmp_path))


def test_blocks_of_layers_must_find_room_between_protected_layers(
    teacher: Checkpoint, tiny_settings: dict[str, Any], tmp_path: Path
) -> None:
    overrides = ("importance.depth.mode=block", "space.axes.num_hidden_layers.values=[5, 3]")
    checked(plan_of(tiny_settings, *overrides), teacher, RunFolder(tmp_path))
    with pytest.raises(
        InvalidArchitectureError, match=r"no 2 layers in a row are free of the protected layers \[0, 2, 4"
    ):
        checked(plan_of(tiny_settings, *overrides, "space.protected_layers=[0, 2, 4]"), teacher, RunFolder(tmp_path))


def test_layers_are_measured_only_on_a_teacher_that_fits_into_memory(
    teacher: Checkpoint, tiny_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000, total=2**40))
    checked(plan_of(tiny_settings), teacher, RunFolder(tmp_path))
    measured = plan_of(tiny_settings, "importance.depth.criterion=kl")
    with pytest.raises(PlanError, match=r"importance\.depth criterion=kl with mode=layers runs the whole model"):
        checked(measured, teacher, RunFolder(tmp_path))
    same_depth = plan_of(tiny_settings, "importance.depth.criterion=kl", "space.axes.num_hidden_layers.values=[5]")
    checked(same_depth, teacher, RunFolder(tmp_path))


def test_layers_that_the_depth_only_baseline_drops_are_measured_too(
    teacher: Checkpoint, tiny_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000, total=2**40))
    overrides = ("importance.depth.criterion=kl", "space.axes.num_hidden_layers.values=[5]", "baselines=true")
    with pytest.raises(PlanError, match="runs the whole model"):
        checked(plan_of(tiny_settings, *overrides), teacher, RunFolder(tmp_path))


def test_a_batch_must_divide_before_any_work(
    teacher: Checkpoint, tiny_settings: dict[str, Any], tmp_path: Path
) -> None:
    overrides = ("distillation.batch_sequences=4", "distillation.micro_batch_sequences=3")
    with pytest.raises(PlanError, match="a batch of 4 sequences does not divide into micro-batches of 3"):
        checked(plan_of(tiny_settings, *overrides), teacher, RunFolder(tmp_path))


def test_every_size_is_enumerated_before_the_first_is_built(
    teacher: Checkpoint, tiny_settings: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(SpaceError, match=r"no shape has between 9,500 and 10,500 parameters \(size 10k\)"):
        checked(plan_of(tiny_settings, "sizes=[90k, 10k]"), teacher, RunFolder(tmp_path))


def test_a_correction_that_cannot_be_is_refused(
    teacher: Checkpoint, tiny_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PlanError, match=r"correct.tokens=1,001 is more than the 1,000 tokens of distillation"):
        checked(plan_of(tiny_settings, "correct.tokens=1001"), teacher, RunFolder(tmp_path))
    checked(plan_of(tiny_settings, "correct.weights=lora"), teacher, RunFolder(tmp_path))
    monkeypatch.setattr("minitron_nas.distillation.training.lora.find_spec", lambda name: None)
    with pytest.raises(PlanError, match="correct.weights=lora needs peft"):
        checked(plan_of(tiny_settings, "correct.weights=lora"), teacher, RunFolder(tmp_path))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluation.tasks=[arc_esy]", r"evaluation\.tasks: lm-eval knows no task arc_esy; list its tasks"),
        (
            "importance.depth={criterion: task, task: winogande}",
            r"importance\.depth\.task: lm-eval knows no task winogande; .* importance\.depth\.include_path",
        ),
    ],
)
def test_a_task_that_lm_eval_does_not_know_is_refused(
    teacher: Checkpoint,
    tiny_settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    override: str,
    message: str,
) -> None:
    monkeypatch.setattr(lm_eval, "TaskManager", functools.partial(TaskManager, include_defaults=False))
    with pytest.raises(PlanError, match=message):
        checked(plan_of(tiny_settings, override), teacher, RunFolder(tmp_path))


def test_a_cluster_that_does_not_answer_is_refused_at_once(
    teacher: Checkpoint, tiny_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(address: str) -> None:
        raise ConnectionError("nobody there")

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("minitron_nas.execution.ray_session.services.canonicalize_bootstrap_address", refuse)
    plan = plan_of(tiny_settings, "runner={kind: ray, address: auto}")
    with pytest.raises(PlanError, match=r"runner\.address=auto: no Ray cluster can be reached \(nobody there\)"):
        checked(plan, teacher, RunFolder(tmp_path))


@pytest.mark.parametrize(
    ("overrides", "gpus", "bytes_per_parameter"),
    [
        ((), 1, 16),
        (("distillation.deepspeed=zero-3",), 1, 16),
        (("runner.gpus_per_trial=4",), 4, 16),
        (("runner.gpus_per_trial=4", "distillation.deepspeed=zero-3"), 4, 5),
        (("runner=local", "distillation.deepspeed=zero-3"), 2, 10),
    ],
)
def test_a_trial_that_no_device_can_hold_is_refused(
    teacher: Checkpoint,
    tiny_settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    overrides: tuple[str, ...],
    gpus: int,
    bytes_per_parameter: int,
) -> None:
    plan = plan_of(tiny_settings, "runner=ray", *overrides)
    candidates = enumerate_candidates(plan.space, 90_000, teacher.architecture, teacher.layout).candidates
    needed = bytes_per_parameter * min(candidate.num_parameters for candidate in candidates)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr("minitron_nas.pipeline.devices.total_bytes", lambda device: needed)
    checked(plan, teacher, RunFolder(tmp_path))
    monkeypatch.setattr("minitron_nas.pipeline.devices.total_bytes", lambda device: needed - 1)
    with pytest.raises(PlanError, match=r"a trial of 90k takes at least [\d.]+ [kM]B on each device .* and \S+ has"):
        checked(plan, teacher, RunFolder(tmp_path))


def test_text_that_is_unpacked_needs_its_own_disk(
    teacher: Checkpoint, tiny_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = tmp_path / "text.txt.gz"
    packed.write_bytes(gzip.compress(bytes(5_000_000)))
    give_disk(monkeypatch, 4_999_999)
    plan, folder, here = plan_of(tiny_settings, "distillation.tokens=1k"), RunFolder(tmp_path / "run"), Devices.here()
    with pytest.raises(DiskSpaceError, match=r"text that is unpacked .* needs 5 MB in .* or set HF_DATASETS_CACHE"):
        preflight(plan, teacher.outline(), str(packed), folder, here, tmp_path)
    give_disk(monkeypatch, 5_000_000)
    preflight(plan, teacher.outline(), str(packed), folder, here, tmp_path)
    folder.tokens.mkdir(parents=True)
    give_disk(monkeypatch, 4_900_000)
    preflight(plan, teacher.outline(), str(packed), folder, here, tmp_path)  # it has been read


def test_all_faults_of_a_plan_are_told_at_once(
    teacher: Checkpoint, tiny_settings: dict[str, Any], tmp_path: Path
) -> None:
    plan = plan_of(
        tiny_settings,
        "sizes=[90k, 10k]",
        "space.protected_layers=[7]",
        "distillation.batch_sequences=4",
        "distillation.micro_batch_sequences=3",
        "distillation.deepspeed=zero-9",
    )
    with pytest.raises(PlanError, match=r"^the plan has 5 faults: ") as told:
        preflight(plan, teacher.outline(), str(tmp_path / "no.txt"), RunFolder(tmp_path), Devices.here(), tmp_path)
    for fault in ("no file matches", "'zero-9' is neither", "does not divide", "protected layer 7", "size 10k"):
        assert str(told.value).count(fault) == 1


def test_of_devices_elsewhere_only_their_memory_counts(
    teacher: Checkpoint, tiny_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_disk(monkeypatch, 0)
    plan, folder = plan_of(tiny_settings, "runner={kind: ray, address: nowhere}"), RunFolder(tmp_path / "run")
    there = Devices("a device", 8, 10**9, are_here=False)
    assert [*map(str, preflight(plan, teacher.outline(), None, folder, there, tmp_path))] == ["90k"]
    with pytest.raises(
        PlanError, match=r"a trial of 90k takes at least [\d.]+ [kM]B on each device .* a device has 0 bytes"
    ):
        preflight(plan, teacher.outline(), None, folder, replace(there, memory_bytes=0), tmp_path)


def test_a_trial_takes_no_more_devices_than_there_are_elsewhere(
    teacher: Checkpoint, tiny_settings: dict[str, Any], tmp_path: Path
) -> None:
    plan = plan_of(tiny_settings, "runner={kind: ray, gpus_per_trial: 5}")
    there, folder = Devices("a device", 5, 10**9, are_here=False), RunFolder(tmp_path / "run")
    preflight(plan, teacher.outline(), None, folder, there, tmp_path)
    with pytest.raises(
        PlanError, match=r"^a trial asks for 5 GPUs, and the plan is held against 4; lower runner\.gpus_"
    ):
        preflight(plan, teacher.outline(), None, folder, replace(there, number=4), tmp_path)


@pytest.mark.slow
def test_what_a_run_is_said_to_need_lies_a_little_above_what_it_takes(
    trained_teacher: Path,
    text_file: Path,
    tiny_settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()  # the real size of a report
    told: list[int] = []
    monkeypatch.setattr(
        "minitron_nas.pipeline.preflight.require_free_bytes", lambda folder, needed, *words: told.append(needed)
    )
    out, peak, over = tmp_path / "run", 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.005):
            with suppress(FileNotFoundError):  # a folder that goes while it is looked into
                peak = max(peak, used(out))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        build_family(trained_teacher, ["90k", "60k"], text_file, out, display=Quiet(), **tiny_settings)
    finally:
        over.set()
        watching.join()
    # A report is written beside the one before it, within milliseconds that nobody may have looked in.
    peak = max(peak, used(out) + (out / "report.html").stat().st_size)
    assert peak <= told[0] <= 1.2 * peak, f"{told[0]:,} bytes were asked for and {peak:,} taken"


def used(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += file.stat().st_size if file.is_file() else 0
    return total
