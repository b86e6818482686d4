"""Learning rates that are tried on a student: which, how long, and which is taken."""

from dataclasses import asdict, replace
from math import isnan, nan

import pytest

from minitron_nas.distillation.settings import DistillationSettings
from minitron_nas.distillation.training.schedule import Schedule
from minitron_nas.errors import TrialError
from minitron_nas.execution.local import LocalRunner
from minitron_nas.execution.runner import Jobs
from minitron_nas.search import rates as module
from minitron_nas.search.rates import (
    MOST_PROBES,
    Probing,
    find_rate,
    probe_schedule,
    told_rates,
    train_probe,
)
from minitron_nas.search.start import Starts
from minitron_nas.storage.schemas import RATES
from minitron_nas.storage.sealed import read_sealed
from minitron_nas.storage.tables import read_rows, write_rows

SETTINGS = DistillationSettings(learning_rate="auto")
STUDENT = Schedule(num_steps=200, batch_sequences=8, sequence_length=16)
PROBING = Probing(SETTINGS, Schedule(20, 2, 16), seed=3, untrained={"kl_nats": 0.6, "loss_nats": 2.4})


@pytest.fixture
def scripted(monkeypatch, arena, tmp_path):
    """Replace training by a table of KLs by rate; an exception is raised. Returns how to search with it, and the rates
    in the order in which they were trained."""
    trained = []

    def script(table, folder=tmp_path, max_failures=9, probing=PROBING):
        def train(settings, **_):
            rate = settings["learning_rate"]
            trained.append(rate)
            value = table[rate]
            if isinstance(value, BaseException):
                raise value
            lost = {"kl_nats": None, "loss_nats": None, "diverged": "its KL is nan"}
            return lost if isnan(value) else {"kl_nats": value, "loss_nats": 3 - value}

        monkeypatch.setattr(module, "train_probe", train)
        jobs = Jobs(LocalRunner(), folder / "results", max_failures)
        return find_rate(folder / "start", arena.files, probing, jobs, folder / "checkpoints")

    return script, trained


@pytest.mark.parametrize(
    ("kls", "chosen", "order"),
    [
        ({1e-4: 0.3, 3e-4: 0.4, 1e-3: 0.6}, 1e-4, [1e-4, 3e-4, 1e-3]),
        ({1e-4: 0.5, 3e-4: 0.4, 1e-3: 0.6}, 3e-4, [1e-4, 3e-4, 1e-3]),
        ({1e-4: 0.5, 3e-4: 0.4, 1e-3: 0.3, 3e-3: 0.2}, 3e-3, [1e-4, 3e-4, 1e-3, 3e-3]),
        ({1e-4: 0.5, 3e-4: 0.4, 1e-3: 0.3, 3e-3: 0.7}, 1e-3, [1e-4, 3e-4, 1e-3, 3e-3]),
        ({1e-4: 0.4, 3e-4: 0.4, 1e-3: 0.4}, 1e-4, [1e-4, 3e-4, 1e-3]),
        ({1e-4: nan, 3e-4: nan, 1e-3: nan, 1e-5: 0.7}, 1e-5, [1e-4, 3e-4, 1e-3, 1e-5]),
        ({1e-4: 0.7, 3e-4: 0.9, 1e-3: nan, 1e-5: 0.5}, 1e-5, [1e-4, 3e-4, 1e-3, 1e-5]),
        ({1e-4: 0.7, 3e-4: 0.9, 1e-3: nan, 1e-5: 0.8}, 1e-4, [1e-4, 3e-4, 1e-3, 1e-5]),
        ({1e-4: 0.9, 3e-4: 0.8, 1e-3: 0.7, 1e-5: 0.5}, 1e-5, [1e-4, 3e-4, 1e-3, 1e-5]),
        ({1e-4: 0.65, 3e-4: 0.7, 1e-3: 0.8}, 1e-4, [1e-4, 3e-4, 1e-3]),
    ],
    ids=[
        "the lowest",
        "the middle",
        "above all",
        "the highest",
        "the lowest of equals",
        "below those that diverge",
        "below those that harm",
        "none that harms less",
        "the highest harms least",
        "little harm",
    ],
)
def test_three_rates_are_tried_and_one_more_where_they_leave_it_open(scripted, kls, chosen, order):
    script, trained = scripted
    rate, probes = script(kls)
    assert (rate, trained) == (chosen, order)
    assert [probe.learning_rate for probe in probes] == sorted(order)
    reached = [probe.outcome.number("kl_nats") for probe in probes]
    assert reached == [None if isnan(kls[each]) else kls[each] for each in sorted(order)]


def test_what_asks_no_teacher_is_compared_by_its_loss(scripted):
    script, _ = scripted
    lm = replace(PROBING, settings=DistillationSettings(learning_rate="auto", loss="lm"))
    assert script({1e-4: 0.4, 3e-4: 0.5, 1e-3: 0.3}, probing=lm)[0] == 3e-4


def test_a_rate_that_diverges_or_fails_is_a_row_and_the_best_of_the_others_is_taken(scripted, tmp_path):
    script, _ = scripted
    rate, probes = script({1e-4: 0.5, 3e-4: 0.4, 1e-3: nan})
    assert rate == 3e-4
    assert [probe.status for probe in probes] == ["completed", "completed", "diverged"]
    write_rows(tmp_path, RATES, [{"size": "90k", **probe.to_row(rate)} for probe in probes])
    rows = read_rows(tmp_path, RATES)
    assert [(row["learning_rate"], row["chosen"], row["error"]) for row in rows] == [
        (1e-4, False, None),
        (3e-4, True, None),
        (1e-3, False, "its KL is nan"),
    ]
    assert told_rates(rate, probes, "kl_nats") == (
        "learning rate 0.0003; KL in nats after 640 tokens at each: 0.0001 0.500, 0.0003 0.400, 0.001 diverged"
    )
    assert "; next-token loss in nats after 640 tokens at each: 0.0001 2.500, " in told_rates(rate, probes, "loss_nats")
    rate, probes = script(
        {1e-4: MemoryError("out of memory"), 3e-4: 0.5, 1e-3: 0.4, 3e-3: 0.6}, folder=tmp_path / "other"
    )
    assert (rate, [probe.status for probe in probes]) == (1e-3, ["infeasible", "completed", "completed", "completed"])


def test_where_every_rate_diverges_there_is_one_error(scripted):
    script, trained = scripted
    with pytest.raises(TrialError, match=r"no learning rate .* 1e-05 diverged \(its KL is nan\); give one that does"):
        script(dict.fromkeys((1e-4, 3e-4, 1e-3, 1e-5), nan))
    assert len(trained) == 4


def test_probes_that_have_ended_are_not_trained_again(scripted):
    script, trained = scripted
    kls = {1e-4: 0.6, 3e-4: 0.5, 1e-3: 0.4, 3e-3: 0.7}
    for killed in (3e-4, 3e-3):
        with pytest.raises(KeyboardInterrupt):
            script({**kls, killed: KeyboardInterrupt()})
    assert script(kls)[0] == 1e-3
    assert trained == [1e-4, 3e-4, 3e-4, 1e-3, 3e-3, 3e-3]


def test_all_probes_together_take_at_most_a_tenth_of_the_tokens_and_a_tenth_of_the_steps():
    for student in (STUDENT, Schedule(200, 1, 512), Schedule(480, 1152, 4096), Schedule(400, 5, 64)):
        probe = probe_schedule(SETTINGS, student)
        assert probe is not None
        assert MOST_PROBES * probe.num_tokens <= 0.1 * student.num_tokens
        assert MOST_PROBES * (probe.num_tokens + probe.tokens_per_step) > 0.1 * student.num_tokens
    assert probe_schedule(SETTINGS, STUDENT) == Schedule(20, 2, 16)


def test_a_batch_of_probes_divides_into_micro_batches():
    settings = DistillationSettings(learning_rate="auto", micro_batch_sequences=8)
    assert probe_schedule(settings, Schedule(200, 120, 64)) == Schedule(25, 24, 64)
    assert probe_schedule(settings, Schedule(200, 16, 64)) == Schedule(20, 4, 64)


def test_a_probe_makes_at_most_fifty_steps():
    assert probe_schedule(SETTINGS, Schedule(19_921, 1152, 4096)) == Schedule(50, 288, 4096)


def test_a_probe_has_no_more_tokens_than_a_trial():
    assert probe_schedule(SETTINGS, STUDENT, 640) == Schedule(20, 2, 16)
    assert probe_schedule(SETTINGS, STUDENT, 320) == Schedule(10, 2, 16)
    assert probe_schedule(SETTINGS, STUDENT, 127) is None


def test_a_tenth_that_is_less_than_a_few_steps_is_not_tried():
    assert probe_schedule(SETTINGS, Schedule(160, 1, 64)) == Schedule(4, 1, 64)
    assert probe_schedule(SETTINGS, Schedule(159, 1, 64)) is None
    assert probe_schedule(SETTINGS.at_rate(1e-4), STUDENT) is None


@pytest.fixture
def start(arena, tmp_path):
    shape = arena.candidate(intermediate_size=20).architecture
    starts = Starts(arena.prepared, arena.files, tmp_path / "starts")
    starts.write(shape)
    return starts.of(shape)


def probe_of(arena, start, folder, rate):
    settings = DistillationSettings(learning_rate=rate).model_dump(mode="json")
    steps = asdict(Schedule(3, 2, 16))
    return train_probe(str(start), arena.files.to_dict(), settings, steps, 3, str(folder))


def test_a_probe_begins_with_the_start_and_the_same_seed_gives_the_same_kl(arena, start, tmp_path):
    first, again = (probe_of(arena, start, tmp_path / name, 1e-3) for name in ("a", "b"))
    assert first == again
    nothing = probe_of(arena, start, tmp_path / "c", 1e-12)
    assert nothing["kl_nats"] == pytest.approx(read_sealed(start / "start.json")["measured"]["kl_nats"], rel=1e-4)
    assert first["kl_nats"] != pytest.approx(nothing["kl_nats"], rel=1e-4)


def test_training_that_diverges_says_so_and_does_not_fail(arena, start, tmp_path):
    value = probe_of(arena, start, tmp_path / "a", 1e30)
    assert (value["kl_nats"], value["loss_nats"]) == (None, None)
    assert "nan" in value["diverged"]
