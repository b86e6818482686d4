import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import log_softmax

from minitron_nas.architecture.spec import Architecture
from minitron_nas.distillation.job import StreamFiles
from minitron_nas.distillation.loss import validation
from minitron_nas.distillation.signals.hidden_cache import write_hidden_cache
from minitron_nas.errors import TrialError
from minitron_nas.execution.local import LocalRunner
from minitron_nas.execution.runner import Jobs
from minitron_nas.execution.settings import RunnerSettings
from minitron_nas.models import loading
from minitron_nas.models.loading import load_for_inference
from minitron_nas.pruning.prepare import PreparedTeacher
from minitron_nas.pruning.student import build_student
from minitron_nas.search import screen as module
from minitron_nas.search.screen import sample_candidates, screen
from minitron_nas.search.settings import SearchSettings
from minitron_nas.space.enumerate import Candidate


def screened(arena, candidates, results, runner=None, max_failures=0, files=None, **settings):
    jobs = Jobs(runner or LocalRunner(), results, max_failures)
    return screen(candidates, arena.prepared, files or arena.files, SearchSettings(**settings), jobs)


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
    write_hidden_cache(teacher, tokens, tmp_path / "cache", "teacher")
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
    write_hidden_cache(load_for_inference(arena.files.teacher), tokens, tmp_path / "two", "teacher")
    candidate = arena.finalists[0]
    fewer = screened(arena, [candidate], tmp_path / "fewer", screen_sequences=2)
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
    outcomes = screen([candidate], prepared, files, SearchSettings(), jobs)
    assert os.getcwd() == str(tmp_path)
    assert outcomes[candidate.id].status == "completed"


@pytest.mark.slow
def test_ray_measures_what_this_process_does(arena, tmp_path):
    from minitron_nas.execution.ray_tune import RayTuneRunner

    runner = RayTuneRunner(RunnerSettings(cpus_per_trial=1, gpus_per_trial=0), tmp_path / "ray")
    candidate = arena.finalists[0]
    here = screened(arena, [candidate], tmp_path / "here")[candidate.id]
    there = screened(arena, [candidate], tmp_path / "there", runner)[candidate.id]
    assert there.value == pytest.approx(here.value, rel=1e-3)


def test_a_shape_that_does_not_fit_into_memory_stops_nothing(arena, tmp_path, monkeypatch):
    large = arena.finalists[2]
    out_of_memory_for(monkeypatch, large.architecture.intermediate_size)
    outcomes = screened(arena, arena.finalists, tmp_path)
    assert [outcome.status for outcome in outcomes.values()] == ["completed", "completed", "infeasible", "completed"]
    assert outcomes[large.id].value is None


def test_without_any_shape_that_fits_the_search_ends_with_the_reason(arena, tmp_path, monkeypatch):
    out_of_memory_for(monkeypatch, *range(100))
    message = r"^no candidate could be measured: torch\.OutOfMemoryError: 80 GB are not enough$"
    with pytest.raises(TrialError, match=message):
        screened(arena, arena.finalists, tmp_path)


def out_of_memory_for(monkeypatch, *neurons):
    def build(prepared, target, dtype):
        if target.intermediate_size in neurons:
            raise torch.OutOfMemoryError("80 GB are not enough")
        return build_student(prepared, target, dtype)

    monkeypatch.setattr(module, "build_student", build)


def numbered(count):
    shape = Architecture("llama", 1, 1, 1, 1, 1, 1, vocab_size=1)
    return [Candidate(shape, number) for number in range(count)]


def test_a_small_space_is_screened_whole():
    candidates = numbered(5)
    assert sample_candidates(candidates, SearchSettings(max_screened=5), seed=0) == candidates


def test_of_a_large_space_a_sample_is_drawn_in_its_own_order():
    sample = sample_candidates(numbered(100), SearchSettings(max_screened=7), seed=0)
    numbers = [candidate.num_parameters for candidate in sample]
    assert len(set(numbers)) == 7
    assert numbers == sorted(numbers)


def test_the_sample_rests_on_its_seed_alone():
    settings, candidates = SearchSettings(max_screened=7), numbered(100)
    zero, again, one = (sample_candidates(candidates, settings, seed) for seed in (0, 0, 1))
    assert zero == again
    assert zero != one
    assert [candidate.num_parameters for candidate in zero] == [5, 33, 49, 53, 62, 65, 97]
