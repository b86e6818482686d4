import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import log_softmax

from minitron_nas.distillation.job import StreamFiles
from minitron_nas.distillation.loss import validation
from minitron_nas.distillation.signals.folder import SignalPlace
from minitron_nas.distillation.signals.hidden_cache import write_hidden_cache
from minitron_nas.execution.local import LocalRunner
from minitron_nas.execution.runner import Jobs
from minitron_nas.execution.settings import RunnerSettings
from minitron_nas.models import loading
from minitron_nas.models.loading import load_for_inference
from minitron_nas.pruning.prepare import PreparedTeacher
from minitron_nas.pruning.student import build_student
from minitron_nas.search import screen as module
from minitron_nas.search.screen import screen


def screened(arena, candidates, results, runner=None, max_failures=0, files=None, num_sequences=None):
    jobs = Jobs(runner or LocalRunner(), results, max_failures)
    return screen(candidates, arena.prepared, files or arena.files, num_sequences, jobs)


@pytest.fixture
def in_float32(monkeypatch):
    """Compute in float32 on CPUs that have bfloat16 too."""
    for place in (loading, validation, module):
        monkeypatch.setattr(place, "compute_dtype", lambda device: torch.float32)


def test_the_teachers_own_shape_is_no_different_from_the_teacher(arena, tmp_path):
    itself = arena.candidate()
    outcome = screened(arena, [itself], tmp_path)[itself.id]
    assert (outcome.status, outcome.value["kl_nats"]) == ("completed", 0.0)


def test_the_kl_and_the_loss_are_those_of_the_plain_formulas(arena, tmp_path, in_float32):
    teacher, stored = load_for_inference(arena.files.teacher), arena.files.validation.open()
    tokens = stored.in_memory()
    write_hidden_cache(teacher, SignalPlace(tmp_path / "cache", "teacher", tokens))
    candidate = arena.candidate(hidden_size=12, num_attention_heads=4)
    held_out = StreamFiles(arena.files.validation.tokens, tmp_path / "cache")
    files = replace(arena.files, validation=held_out, fingerprint="teacher")
    outcomes = screened(arena, [candidate], tmp_path / "results", files=files)
    student = build_student(arena.prepared, candidate.architecture, torch.float32)
    with torch.no_grad():
        teacher_log, student_log = (
            log_softmax(model(tokens.input_ids, position_ids=tokens.position_ids, use_cache=False).logits, dim=-1)
            for model in (teacher, student)
        )
    kl = (teacher_log.exp() * (teacher_log - student_log)).sum(dim=-1).mean().item()
    losses = [
        -student_log[sequence, place - 1, tokens.input_ids[sequence, place]].item()
        for sequence in range(3)
        for place in range(1, 16)
        if tokens.position_ids[sequence, place] > 0
    ]
    value = outcomes[candidate.id].value
    assert value["kl_nats"] == pytest.approx(kl, rel=1e-4)
    assert value["loss_nats"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_more_neurons_are_nearer_to_the_teacher(arena, tmp_path):
    outcomes = screened(arena, arena.finalists, tmp_path)
    by_neurons = sorted(arena.finalists, key=lambda candidate: candidate.architecture.intermediate_size)
    kls = [outcomes[candidate.id].value["kl_nats"] for candidate in by_neurons]
    assert kls == sorted(kls, reverse=True)
    assert list(outcomes) == [candidate.id for candidate in arena.finalists]


def test_fewer_sequences_are_the_first_ones(arena, tmp_path):
    tokens = arena.files.validation.open().first(2)
    tokens.save(tmp_path / "two.safetensors")
    write_hidden_cache(load_for_inference(arena.files.teacher), SignalPlace(tmp_path / "two", "teacher", tokens))
    candidate = arena.finalists[0]
    fewer = screened(arena, [candidate], tmp_path / "fewer", num_sequences=2)
    held_out = StreamFiles(tmp_path / "two.safetensors", tmp_path / "two")
    files = replace(arena.files, validation=held_out, fingerprint="teacher")
    two = screened(arena, [candidate], tmp_path / "results", files=files)
    assert fewer[candidate.id].value == two[candidate.id].value


def test_what_was_screened_is_not_screened_again(arena, tmp_path, counting_runner):
    first, second = counting_runner(), counting_runner()
    outcomes = screened(arena, arena.finalists[:2], tmp_path, first)
    assert screened(arena, arena.finalists, tmp_path, second)[arena.finalists[0].id] == outcomes[arena.finalists[0].id]
    assert first.keys == [candidate.id for candidate in arena.finalists[:2]]
    assert second.keys == [candidate.id for candidate in arena.finalists[2:]]


def test_a_worker_in_another_folder_finds_the_files(arena, tmp_path, monkeypatch):
    class Elsewhere(LocalRunner):
        def execute(self, function, jobs, on_outcome):
            monkeypatch.chdir(tmp_path)
            super().execute(function, jobs, on_outcome)

    monkeypatch.chdir(arena.prepared.folder.parent)
    held_out = StreamFiles(Path("validation.safetensors"), Path("validation"))
    files = replace(arena.files, validation=held_out)
    candidate = arena.finalists[0]
    prepared = PreparedTeacher.open(Path("teacher"), Path("prepared"))
    jobs = Jobs(Elsewhere(), tmp_path / "results", 0)
    outcomes = screen([candidate], prepared, files, None, jobs)
    assert os.getcwd() == str(tmp_path)
    assert outcomes[candidate.id].status == "completed"


@pytest.mark.slow
def test_ray_measures_what_this_process_does(arena, tmp_path):
    from minitron_nas.execution.ray_tune import RayTuneRunner

    runner = RayTuneRunner(RunnerSettings(cpus_per_trial=1, gpus_per_trial=0), tmp_path / "ray")
    candidate = arena.finalists[0]
    here = screened(arena, [candidate], tmp_path / "here")[candidate.id]
    there = screened(arena, [candidate], tmp_path / "there", runner)[candidate.id]
    assert there.value.keys() == here.value.keys()
    for name, value in here.value.items():
        assert there.value[name] == pytest.approx(value, rel=1e-3)


def test_a_shape_that_does_not_fit_into_memory_stops_nothing(arena, tmp_path, monkeypatch):
    large = arena.finalists[2]
    out_of_memory_for(monkeypatch, large.architecture.intermediate_size)
    outcomes = screened(arena, arena.finalists, tmp_path)
    assert [outcome.status for outcome in outcomes.values()] == ["completed", "completed", "infeasible", "completed"]
    assert outcomes[large.id].value is None


def out_of_memory_for(monkeypatch, *neurons):
    def build(prepared, target, dtype):
        if target.intermediate_size in neurons:
            raise torch.OutOfMemoryError("80 GB are not enough")
        return build_student(prepared, target, dtype)

    monkeypatch.setattr(module, "build_student", build)
