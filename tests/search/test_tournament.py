import json
import time
from dataclasses import replace
from math import inf, nan
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from minitron_nas.distillation.job import StreamFiles, TrainingFiles
from minitron_nas.distillation.settings import DistillationSettings
from minitron_nas.errors import CacheError, TrialError
from minitron_nas.execution.local import LocalRunner
from minitron_nas.execution.runner import Jobs, Outcome
from minitron_nas.progress import silent
from minitron_nas.pruning.student import build_student
from minitron_nas.search import start as starting
from minitron_nas.search import tournament as module
from minitron_nas.search.choice import Choice
from minitron_nas.search.contest import TrialRow
from minitron_nas.search.start import Starts
from minitron_nas.search.tournament import ShortTraining, tournament, train_rung
from minitron_nas.storage.schemas import TRIALS
from minitron_nas.storage.sealed import read_sealed
from minitron_nas.storage.tables import read_rows, write_rows

DISTILLATION = DistillationSettings(batch_sequences=2, learning_rate=3e-4)
RUNGS = [32, 64, 128]
"""One, two and four optimizer steps of two sequences of sixteen tokens."""


def held(arena, folder, finalists=None, runner=None, rung_tokens=RUNGS, max_failures=9, progress=silent, reduction=2):
    (winner,), rows = tournament(
        arena.finalists if finalists is None else finalists,
        Starts(arena.prepared, arena.files, folder / "starts"),
        ShortTraining(DISTILLATION, tuple(rung_tokens), reduction, seed=3),
        Jobs(runner or LocalRunner(), folder / "results", max_failures),
        folder / "checkpoints",
        progress=progress,
    )
    return winner, rows


def told(rows):
    """What rows say but for when they ran, and how long."""
    return [{name: value for name, value in row.to_row("90k").items() if "seconds" not in name} for row in rows]


def rungs(rows):
    """For each rung, which neurons took part and which of them went on."""
    result = {}
    for row in rows:
        result.setdefault(row.rung, {})[row.candidate.architecture.intermediate_size] = row.promoted
    return list(result.values())


def result_of(kl):
    """What a trial returns that has this KL on each of three sequences of sixteen tokens."""
    by_sequence = {"sequence_kl_nats": [16 * kl] * 3}
    return {"kl_nats": kl, "loss_nats": 2 * kl, **by_sequence, "start_kl_nats": 5.0, "repair": "in_sequence"}


@pytest.fixture
def scripted(monkeypatch):
    """Replace training by a table: what each shape's rungs give, by neurons; an exception is raised."""

    def script(table):
        calls = []

        def train(architecture, stop_tokens, checkpoints, **others):
            neurons = architecture["intermediate_size"]
            calls.append({"neurons": neurons, "stop_tokens": stop_tokens, "checkpoints": Path(checkpoints), **others})
            Path(checkpoints).mkdir(parents=True, exist_ok=True)
            given = table[neurons]
            value = given[RUNGS.index(stop_tokens)] if isinstance(given, list) else given
            if isinstance(value, Exception):
                raise value
            return result_of(value)

        monkeypatch.setattr(module, "train_rung", train)
        return calls

    return script


def test_half_go_on_and_the_best_of_the_last_rung_wins(arena, tmp_path, scripted):
    scripted({20: [3.0, 2.0, 9.0], 4: [4.0], 46: [2.0, 2.5], 12: [9.0]})
    winner, rows = held(arena, tmp_path)
    assert rungs(rows) == [{20: True, 4: False, 46: True, 12: False}, {20: True, 46: False}]
    assert winner == arena.finalists[0]


@pytest.mark.parametrize(
    ("reduction", "num_finalists", "rung_tokens", "field_sizes"),
    [
        (2, 4, RUNGS, [4, 2]),  # one is left
        (2, 3, RUNGS, [3, 2]),
        (3, 4, RUNGS, [4, 2]),
        (4, 4, RUNGS, [4]),
        (2, 4, [64, 128], [4, 2]),
        (2, 4, [128], [4]),
        (2, 1, RUNGS, [1]),
        (2, 4, [0, *RUNGS], [4, 2]),
        (4, 4, [0, *RUNGS], [4, 2]),  # two at least are trained
        (2, 1, [0, *RUNGS], [1, 1]),
    ],
)
def test_the_field_shrinks_by_the_reduction_rounded_up(
    arena, tmp_path, scripted, reduction, num_finalists, rung_tokens, field_sizes
):
    scripted({20: 4.0, 4: 3.0, 46: 2.0, 12: 1.0})
    finalists = arena.finalists[:num_finalists]
    winner, rows = held(arena, tmp_path, finalists, rung_tokens=rung_tokens, reduction=reduction)
    assert [len(field) for field in rungs(rows)] == field_sizes
    assert sum(rungs(rows)[-1].values()) == 1
    assert winner == finalists[-1]


def test_equals_go_on_up_to_one_and_a_half_times_the_quota_the_better_screened_first(arena, tmp_path, scripted):
    scripted(dict.fromkeys((20, 4, 46, 12), 1.0))
    winner, rows = held(arena, tmp_path)
    assert [list(field) for field in rungs(rows)] == [[20, 4, 46, 12], [20, 4, 46], [20, 4]]
    assert winner == arena.finalists[0]
    assert {row.p_worse for row in rows if row.candidate != winner} == {1.0}


SIX = {20: 2.0, 4: 2.1, 46: 2.2, 12: 2.3, 28: 2.4, 36: 2.5}
"""Six shapes and their KL after the first rung."""


@pytest.mark.parametrize(
    ("second", "fields"), [((1.0, 1.1, 1.2), [6, 3]), ((1.0, 1.2, 1.1), [6, 3, 2])], ids=["same order", "another order"]
)
def test_when_the_best_three_keep_their_order_no_other_rung_is_trained(arena, tmp_path, scripted, second, fields):
    scripted({neurons: [first, kl, kl] for (neurons, first), kl in zip(SIX.items(), (*second, 9, 9, 9), strict=True)})
    said = []
    finalists = [arena.candidate(intermediate_size=neurons) for neurons in SIX]
    winner, rows = held(arena, tmp_path, finalists, progress=lambda done, total: said.append((done, total)))
    assert [len(field) for field in rungs(rows)] == fields
    assert winner == finalists[0]
    assert [row.candidate for row in rows if row.rung == len(fields) and row.promoted] == [winner]
    assert said[-1][0] == said[-1][1]
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_every_rung_trains_on_along_the_schedule_of_the_last(arena, tmp_path, scripted):
    calls = scripted({20: 4.0, 4: 3.0, 46: 2.0, 12: 1.0})
    held(arena, tmp_path)
    assert [(call["neurons"], call["stop_tokens"]) for call in calls] == [
        *((neurons, 32) for neurons in (20, 4, 46, 12)), (46, 64), (12, 64),
    ]  # fmt: skip
    assert [call["training"]["rung_tokens"] for call in calls] == [RUNGS] * 6
    assert {call["training"]["seed"] for call in calls} == {3}
    assert len({call["checkpoints"] for call in calls}) == 4


def test_what_a_worker_is_handed_is_plain_and_its_paths_are_absolute(arena, tmp_path, scripted, monkeypatch):
    calls = scripted({20: 4.0, 4: 3.0, 46: 2.0, 12: 1.0})
    monkeypatch.chdir(tmp_path)
    held(arena, Path("trials"))
    for call in calls:
        assert call["checkpoints"].parent == tmp_path / "trials" / "checkpoints"
        starts = call["starts"]
        streams = [*starts["files"]["train"].values(), *starts["files"]["validation"].values()]
        paths = [starts["folder"], starts["files"]["teacher"], *streams, *starts["prepared"].values()]
        assert all(Path(path).is_absolute() for path in paths)
        json.dumps({name: value for name, value in call.items() if name != "checkpoints"})


def test_checkpoints_go_when_a_trial_has_ended(arena, tmp_path, scripted):
    scripted({20: [3.0, 2.0, 9.0], 4: [4.0], 46: [2.0, 2.5], 12: [9.0]})
    there = []
    runner = LocalRunner()

    class Looking(LocalRunner):
        def execute(self, function, jobs, on_outcome):
            there.append(len(list(tmp_path.glob("checkpoints/*"))))
            runner.execute(function, jobs, on_outcome)

    held(arena, tmp_path, runner=Looking())
    there.append(len(list(tmp_path.glob("checkpoints/*"))))
    assert there == [0, 2, 0]


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (torch.OutOfMemoryError("no 80 GB"), "infeasible", "torch.OutOfMemoryError: no 80 GB"),
        (ValueError("a defect"), "failed", "ValueError: a defect"),
    ],
)
def test_a_trial_that_breaks_off_stops_nothing_and_says_why_in_its_row(arena, tmp_path, scripted, error, status, line):
    scripted({20: [3.0, 3.0, 3.0], 4: [4.0, 4.0], 46: error, 12: [9.0]})
    winner, rows = held(arena, tmp_path)
    assert rungs(rows) == [{20: True, 4: True, 46: False, 12: False}, {20: True, 4: False}]
    row = rows[2].to_row("90k")
    assert (row["status"], row["error"], row["kl_nats"], row["loss_nats"]) == (status, line, None, None)
    assert winner == arena.finalists[0]


@pytest.mark.parametrize("value", [nan, inf])
def test_a_kl_that_is_not_finite_never_goes_on(arena, tmp_path, scripted, value):
    scripted({20: value, 4: [4.0, 4.0, 4.0], 46: value, 12: [9.0, value]})
    winner, rows = held(arena, tmp_path)
    assert rungs(rows) == [{20: False, 4: True, 46: False, 12: False}]
    assert winner == arena.finalists[1]


def test_a_rung_that_nobody_completes_ends_the_search_with_the_reasons(arena, tmp_path, scripted):
    scripted({20: torch.OutOfMemoryError("no 80 GB"), 4: nan, 46: MemoryError("no 8 GB"), 12: MemoryError("no 8 GB")})
    message = (
        r"^no trial of rung 1 completed with a finite KL: MemoryError: no 8 GB; its KL is not finite; "
        r"torch\.OutOfMemoryError: no 80 GB$"
    )
    with pytest.raises(TrialError, match=message):
        held(arena, tmp_path)


def test_more_failures_than_allowed_end_the_search(arena, tmp_path, scripted):
    scripted({20: 1.0, 4: ValueError("one"), 46: ValueError("two"), 12: 1.0})
    with pytest.raises(TrialError, match=r"2 of 4 trials failed, more than runner\.max_failures=1 .*ValueError: two"):
        held(arena, tmp_path, max_failures=1)


def test_progress_counts_the_tokens_of_all_trials(arena, tmp_path, scripted):
    scripted({20: 4.0, 4: 3.0, 46: 2.0, 12: 1.0})
    said = []
    held(arena, tmp_path, progress=lambda done, total: said.append((done, total)))
    assert {total for _, total in said} == {4 * 32 + 2 * 32}
    assert [done for done, _ in said] == sorted(done for done, _ in said)
    assert said[-1] == (192, 192)


def test_rows_say_the_tokens_seen_which_are_whole_steps(arena, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "train_rung", lambda **arguments: result_of(1.0))
    _, rows = held(arena, tmp_path, rung_tokens=[5, 70, 100])
    assert sorted({(row.rung, row.tokens) for row in rows}) == [(1, 32), (2, 64), (3, 96)]


def test_rows_fill_their_table(arena, tmp_path, scripted):
    scripted({20: [3.0, 2.0, 1.0], 4: [4.0], 46: [2.0, 2.5], 12: ValueError("a defect")})
    _, rows = held(arena, tmp_path)
    rows[0].outcome.value["written"] = [[1, 2, 3], [4, 5, 6]]
    write_rows(tmp_path, TRIALS, [row.to_row("90k", [[1, 2, 9], [4, 5, 6]]) for row in rows])
    found = read_rows(tmp_path, TRIALS)
    assert found[1]["agreement_tokens"] is None
    assert found[0] == {
        "size": "90k",
        "candidate": "l2-h24-f20-q6-k2",
        "rung": 1,
        "tokens": 32,
        "kl_nats": 3.0,
        "loss_nats": 6.0,
        "start_kl_nats": 5.0,
        "repair": "in_sequence",
        "p_worse": 0.0,
        "promoted": True,
        "status": "completed",
        "error": None,
        "agreement_tokens": 2.5,
        "num_parameters": arena.finalists[0].num_parameters,
        "seconds": found[0]["seconds"],
        "began_seconds": rows[0].outcome.began,
    }
    assert 0 < time.time() - found[0]["began_seconds"] < 600
    keys = [tuple(row[name] for name in TRIALS.key) for row in found]
    assert len(keys) == len(set(keys)) == 6


def test_training_files_come_back_from_plain_values(tmp_path):
    train, validation = StreamFiles(tmp_path / "a"), StreamFiles(tmp_path / "b", tmp_path / "c")
    files = TrainingFiles(tmp_path, "print", train, validation)
    assert TrainingFiles.from_dict(json.loads(json.dumps(files.to_dict()))) == files


def test_training_files_are_named_by_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    streams = StreamFiles(Path("a"), Path("b")), StreamFiles(Path("c"), Path("d"))
    assert TrainingFiles(Path("teacher"), "print", *streams, Path("e")).to_dict() == {
        "teacher": str(tmp_path / "teacher"),
        "fingerprint": "print",
        "train": {"tokens": str(tmp_path / "a"), "cache": str(tmp_path / "b")},
        "validation": {"tokens": str(tmp_path / "c"), "cache": str(tmp_path / "d")},
        "correction": str(tmp_path / "e"),
    }


def test_a_short_training_comes_back_from_plain_values():
    training = ShortTraining(DISTILLATION, (32, 64), 2, seed=3)
    assert ShortTraining.from_dict(json.loads(json.dumps(training.to_dict()))) == training


def test_a_row_of_a_trial_without_an_error_text_has_none(arena):
    row = TrialRow(arena.finalists[0], 1, 32, Outcome("key", "failed", None, "", 0.0), promoted=False)
    assert row.to_row("90k")["error"] is None


@pytest.fixture(scope="module")
def undisturbed(arena, tmp_path_factory):
    """A real tournament, from beginning to end."""
    return held(arena, tmp_path_factory.mktemp("undisturbed"))


def test_a_real_tournament_promotes_the_lowest_kl_of_every_rung(arena, undisturbed):
    winner, rows = undisturbed
    fields = {rung: [row for row in rows if row.rung == rung] for rung in (1, 2, 3)}
    for rung, quota, most in ((1, 2, 3), (2, 1, 2), (3, 1, 1)):
        by_kl = sorted(fields[rung], key=lambda row: row.outcome.value["kl_nats"])
        assert all(row.promoted for row in by_kl[:quota])
        assert by_kl[0].p_worse is None
        num_promoted = sum(row.promoted for row in by_kl)
        cut = [row.p_worse for row in by_kl if not row.promoted]
        assert num_promoted == most or (num_promoted < most and max(cut) < 0.05)
    assert winner == arena.finalists[2]
    assert [row.candidate for row in fields[3] if row.promoted] == [winner]


def test_training_brings_a_trial_nearer_to_the_teacher(undisturbed):
    _, rows = undisturbed
    by_rung = [row.outcome.value["kl_nats"] for row in rows if row.candidate == undisturbed[0]]
    assert by_rung[0] > max(by_rung[1:])  # where it computes in bfloat16, the last two are equal to rounding
    assert min(by_rung) > 0


def test_a_trial_that_stops_at_every_rung_ends_where_one_that_never_stops_does(arena, undisturbed, tmp_path):
    winner, rows = undisturbed
    assert winner == arena.finalists[2]
    at_once = one_rung(arena, arena.files, tmp_path, stop_tokens=128)
    assert [at_once] == [row.outcome.value for row in rows if row.promoted and row.rung == 3]
    assert sum(at_once["sequence_kl_nats"]) == pytest.approx(3 * 16 * at_once["kl_nats"], rel=1e-9)


def test_a_tournament_that_is_repeated_trains_nothing_again(arena, tmp_path, scripted, counting_runner):
    scripted({20: [3.0, 2.0, 9.0], 4: [4.0], 46: [2.0, 2.5], 12: [9.0]})
    first, second = counting_runner(), counting_runner()
    winner, rows = held(arena, tmp_path, runner=first)
    again, same = held(arena, tmp_path, runner=second)
    assert (len(first.keys), second.keys) == (6, [])
    assert (again, [row.to_row("90k") for row in same]) == (winner, [row.to_row("90k") for row in rows])


def test_a_tournament_that_is_killed_in_its_second_rung_ends_as_if_it_had_not_been(
    arena, tmp_path, undisturbed, counting_runner
):
    winner, rows = undisturbed
    second, third = ([f"{row.candidate.id}.rung-{n}" for row in rows if row.rung == n] for n in (2, 3))
    killed, resumed = counting_runner(killed_before=second[1]), counting_runner()
    with pytest.raises(KeyboardInterrupt):
        held(arena, tmp_path, runner=killed)
    again, same = held(arena, tmp_path, runner=resumed)
    assert killed.keys == [*(f"{candidate.id}.rung-1" for candidate in arena.finalists), second[0]]
    assert resumed.keys == [*second[1:], *third]
    assert (again, told(same)) == (winner, told(rows))


def test_a_real_trial_that_runs_out_of_memory_is_infeasible_and_a_broken_one_fails(arena, tmp_path, monkeypatch):
    broken = {46: torch.OutOfMemoryError("no 80 GB"), 4: ArithmeticError("a defect")}

    def build(prepared, target, dtype):
        if target.intermediate_size in broken:
            raise broken[target.intermediate_size]
        return build_student(prepared, target, dtype)

    monkeypatch.setattr(starting, "build_student", build)
    winner, rows = held(arena, tmp_path, rung_tokens=[32])
    assert [row.outcome.status for row in rows] == ["completed", "failed", "infeasible", "completed"]
    assert "in build\n" in rows[1].outcome.error
    assert rows[1].to_row("90k")["error"] == "ArithmeticError: a defect"
    assert winner == arena.finalists[0]


def test_the_teacher_itself_is_as_good_as_a_cache_of_its_states(arena, tmp_path, undisturbed):
    _, rows = undisturbed
    online = one_rung(arena, without_cache(arena.files), tmp_path)
    assert online["kl_nats"] == pytest.approx(rows[2].outcome.value["kl_nats"], rel=1e-3)


def test_a_repaired_trial_begins_as_its_start_and_is_repaired_once(arena, tmp_path, monkeypatch):
    calls, repair = [], starting.refit_in_sequence
    monkeypatch.setattr(starting, "refit_in_sequence", lambda *args: calls.append(args) or repair(*args))
    values = [one_rung(arena, arena.files, tmp_path, stop, calibration=arena.calibration) for stop in (32, 64, 128)]
    start = tmp_path / "starts" / arena.finalists[2].architecture.id
    measured = read_sealed(start / "start.json")["measured"]
    assert [value["start_kl_nats"] for value in values] == [measured["kl_nats"]] * 3
    assert [value["repair"] for value in values] == [measured["repair"]] * 3
    assert len(calls) == 1


def test_a_trial_never_reads_the_teacher(arena, tmp_path, undisturbed, monkeypatch):
    """Its folder need not exist, and no model with its 48 neurons is built: what it says is in the caches."""
    _, rows = undisturbed
    neurons, make = [], LlamaForCausalLM.__init__

    def watched(self, config):
        neurons.append(config.intermediate_size)
        make(self, config)

    monkeypatch.setattr(LlamaForCausalLM, "__init__", watched)
    value = one_rung(arena, replace(arena.files, teacher=tmp_path / "nowhere"), tmp_path / "cached")
    assert value == rows[2].outcome.value
    assert set(neurons) == {46}
    one_rung(arena, without_cache(arena.files), tmp_path / "online")
    assert set(neurons) == {46, 48}


def test_a_trial_refuses_the_words_of_another_teacher(arena, tmp_path):
    mixed = replace(arena.files.train, cache=arena.files.validation.cache)
    for changes in ({"fingerprint": "other"}, {"train": mixed}):
        with pytest.raises(CacheError, match=r"is a cache of (teacher|tokens) \w+, not \w+; delete it or name another"):
            one_rung(arena, replace(arena.files, **changes), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("engine", [None, "zero-3"])
def test_a_trial_that_sees_two_devices_trains_on_both_and_goes_on(arena, undisturbed, tmp_path, monkeypatch, engine):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    alone = {row.tokens: row.outcome.value for row in undisturbed[1] if row.candidate == undisturbed[0]}
    for tokens in (32, 64):
        value = one_rung(arena, arena.files, tmp_path, tokens, deepspeed=engine)
        assert value["kl_nats"] == pytest.approx(alone[tokens]["kl_nats"], rel=2e-3)  # DeepSpeed rounds elsewhere
        assert value["sequence_kl_nats"] == pytest.approx(alone[tokens]["sequence_kl_nats"], rel=2e-2)
    job = json.loads((tmp_path / "training" / "job.json").read_text())
    assert (job["settings"]["deepspeed"], job["stop_step"]) == (engine, 2)
    assert not (tmp_path / "training" / "model.safetensors").exists()


def without_cache(files):
    """The same files, with the teacher beside the student."""
    return replace(files, train=StreamFiles(files.train.tokens))


def one_rung(arena, files, checkpoints, stop_tokens=32, calibration=None, **changes):
    """Train the largest finalist to the end of a rung."""
    settings = DistillationSettings(**{**DISTILLATION.model_dump(mode="json"), **changes})
    return train_rung(
        Starts(arena.prepared, files, checkpoints / "starts", calibration).to_dict(),
        arena.finalists[2].architecture.to_dict(),
        ShortTraining(settings, (128,), 2, seed=3).to_dict(),
        stop_tokens,
        str(checkpoints),
    )


def test_a_trial_that_learns_from_the_text_alone_opens_no_teacher_for_it(arena, tmp_path):
    files = replace(without_cache(arena.files), teacher=tmp_path / "nowhere")
    assert one_rung(arena, files, tmp_path, loss="lm")["kl_nats"] > 0


def test_two_members_are_the_best_and_the_one_of_the_front_that_is_far_from_it(arena, tmp_path):
    costs = {candidate.id: (float(candidate.architecture.intermediate_size),) for candidate in arena.finalists}
    chosen, rows = tournament(
        arena.finalists,
        Starts(arena.prepared, arena.files, tmp_path / "starts"),
        ShortTraining(DISTILLATION, tuple(RUNGS), 2, seed=3),
        Jobs(LocalRunner(), tmp_path / "results", 9),
        tmp_path / "checkpoints",
        choice=Choice(2, costs=costs, by_front=True),
    )
    assert [candidate.architecture.intermediate_size for candidate in chosen] == [46, 4]
    last = [row for row in rows if row.rung == len(RUNGS)]
    assert {row.candidate for row in last if row.promoted} == set(chosen)


def test_before_any_training_trials_are_compared_as_they_begin(arena, tmp_path, monkeypatch):
    trained, train = [], module.train_shortly
    monkeypatch.setattr(module, "train_shortly", lambda start, *others: trained.append(start) or train(start, *others))
    said = []
    winner, rows = held(
        arena, tmp_path, rung_tokens=[0, *RUNGS], progress=lambda done, total: said.append((done, total))
    )
    first = [row for row in rows if row.rung == 0]
    assert [row.candidate for row in first] == arena.finalists
    assert {row.tokens for row in first} == {0}
    for row in first:
        value = row.outcome.value
        assert value["kl_nats"] == value["start_kl_nats"]
        assert sum(value["sequence_kl_nats"]) == pytest.approx(3 * 16 * value["kl_nats"], rel=1e-9)
        assert value["loss_nats"] > 0
        assert row.to_row("90k")["agreement_tokens"] is None
    goes_on = {row.candidate for row in first if row.promoted}
    nearest = sorted(first, key=lambda row: row.outcome.value["kl_nats"])[:2]
    assert {row.candidate for row in nearest} <= goes_on < set(arena.finalists)
    assert {start.name for start in trained} == {candidate.architecture.id for candidate in goes_on}
    assert {row.candidate for row in rows if row.rung == 1} == goes_on
    assert winner in goes_on
    assert said[0][0] == 0
    assert said[-1] == (sum(32 if row.rung < 3 else 64 for row in rows if row.rung),) * 2


def test_a_trial_trains_from_the_start_that_it_was_compared_by(arena, tmp_path):
    at_once = one_rung(arena, arena.files, tmp_path / "once", calibration=arena.calibration)
    begun = one_rung(arena, arena.files, tmp_path / "twice", 0, calibration=arena.calibration)
    assert not (tmp_path / "twice" / "checkpoint-1").exists()
    assert begun["start_kl_nats"] == at_once["start_kl_nats"] == begun["kl_nats"]
    assert one_rung(arena, arena.files, tmp_path / "twice", calibration=arena.calibration) == at_once


def test_a_start_that_is_no_number_is_not_trained(arena, tmp_path, monkeypatch):
    def build(prepared, target, dtype):
        student = build_student(prepared, target, dtype)
        if target.intermediate_size == 46:
            student.lm_head.weight.data.fill_(nan)
        return student

    monkeypatch.setattr(starting, "build_student", build)
    _, rows = held(arena, tmp_path, rung_tokens=[0, *RUNGS])
    assert [row.rung for row in rows if row.candidate == arena.finalists[2]] == [0]
