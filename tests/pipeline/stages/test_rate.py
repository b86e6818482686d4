"""The stage that finds a learning rate, in a run."""

import json

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from minitron_nas.distillation.settings import DEFAULT_LEARNING_RATE
from minitron_nas.distillation.training.schedule import Schedule
from minitron_nas.execution.runner import Outcome
from minitron_nas.pipeline.display import Quiet
from minitron_nas.pipeline.stages import rate as stage
from minitron_nas.pipeline.stages import search
from minitron_nas.search import rates
from minitron_nas.search.rates import Probe
from minitron_nas.storage.lineage import read_lineage
from minitron_nas.storage.schemas import RATES
from minitron_nas.storage.tables import read_rows

UNTRIED = ("search.num_rungs=0", "search.max_screened=1", "distillation.learning_rate=auto")
AUTO = (*UNTRIED, "distillation.tokens=10240")
"""Four steps of one sequence for a probe, forty steps of four for the student."""


class Notes(Quiet):
    """Remembers what a run tells."""

    def __init__(self):
        super().__init__()
        self.told = []

    def note(self, text):
        self.told.append(text)


def stages(run):
    return [json.loads(line)["stage"] for line in (run / "ledger.jsonl").read_text().splitlines()]


def rate_of(run, name="90k"):
    return read_lineage(run / "students" / name).learning_rate


@pytest.fixture(scope="module")
def found(build, tmp_path_factory):
    """A run whose second probe was killed, and the rates in the order in which training at them began."""
    out, train, trained = tmp_path_factory.mktemp("found") / "run", rates.train_probe, []

    def killed(settings, **others):
        trained.append(settings["learning_rate"])
        if len(trained) == 2:
            raise KeyboardInterrupt
        return train(settings=settings, **others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rates, "train_probe", killed)
        with pytest.raises(KeyboardInterrupt):
            build(out, *AUTO)
        assert not (out / "students").exists()
        return build(out, *AUTO).path, trained


def test_the_rate_with_the_lowest_kl_is_that_of_the_student(found):
    run, _ = found
    rows = read_rows(run, RATES)
    best = min(rows, key=lambda row: row["kl_nats"])
    assert [row for row in rows if row["chosen"]] == [best]
    assert rate_of(run) == best["learning_rate"]
    assert {(row["tokens"], row["status"], row["size"]) for row in rows} == {(256, "completed", "90k")}
    assert len({row["start_kl_nats"] for row in rows}) == 1


def test_a_search_of_rates_that_was_killed_goes_on_where_it_was(found):
    run, trained = found
    assert trained[:3] == [1e-4, 3e-4, 3e-4]
    assert sorted(trained) == sorted([*(row["learning_rate"] for row in read_rows(run, RATES)), 3e-4])
    assert not list(run.rglob("rate-*"))


def test_a_run_that_is_repeated_tries_nothing_again(found, build):
    run, _ = found
    before = stages(run)
    build(run, *AUTO)
    assert stages(run) == before
    assert before.index("90k screen") < before.index("90k rate") < before.index("90k tournament")


def test_people_and_optuna_are_told_what_was_tried(found):
    run, _ = found
    rows = read_rows(run, RATES)
    storage = JournalStorage(JournalFileBackend(str(run / "study.journal")))
    study = optuna.load_study(study_name="90k rates", storage=storage)
    assert [(trial.params["learning_rate"], trial.value) for trial in study.trials] == [
        (row["learning_rate"], row["kl_nats"]) for row in rows
    ]
    assert "Learning rates that were tried" in (run / "report.html").read_text()


def test_students_of_few_tokens_take_the_default_rate_and_say_so(build, tmp_path):
    notes = Notes()
    run = build(tmp_path / "run", *UNTRIED, "distillation.tokens=1k", display=notes).path
    assert rate_of(run) == DEFAULT_LEARNING_RATE
    assert "90k rate" not in stages(run)
    (told,) = [each for each in notes.told if "learning rate" in each]
    assert told == (
        "90k: no learning rate is looked for: a fortieth of 768 tokens, or those of a trial, are fewer than 4 "
        "steps; 0.0001 is taken (distillation.learning_rate)"
    )


@pytest.mark.slow
def test_trials_and_members_of_each_size_take_its_rate(build, tmp_path, monkeypatch):
    trained_at, hold = [], search.tournament

    def watched(finalists, starts, training, *others):
        trained_at.append(training.distillation.learning_rate)
        return hold(finalists, starts, training, *others)

    def find_rate(*_):
        rate = 1e-3 if trained_at else 3e-4
        return rate, [Probe(rate, 256, Outcome("rate", "completed", {"kl_nats": 0.5, "loss_nats": 2.0}, None, 1.0))]

    monkeypatch.setattr(search, "tournament", watched)
    monkeypatch.setattr(stage, "find_rate", find_rate)
    monkeypatch.setattr(stage, "probe_schedule", lambda *_: Schedule(4, 1, 64))
    least = ("search.num_rungs=1", "search.max_screened=1", "baselines=[depth_only]")
    run = build(tmp_path / "run", "distillation.learning_rate=auto", *least, sizes=["90k", "60k"]).path
    assert trained_at == [3e-4, 1e-3]
    assert (rate_of(run), rate_of(run, "60k")) == (3e-4, 1e-3)
    assert read_lineage(run / "baselines" / "60k-depth-only").learning_rate == 1e-3
