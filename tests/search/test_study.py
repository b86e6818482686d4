import gc
import json
import re
import threading
import urllib.request
from math import nan
from pathlib import Path
from wsgiref.simple_server import WSGIRequestHandler, make_server

import optuna
import optuna_dashboard
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

import minitron_nas.search
from minitron_nas.architecture.spec import SHAPE_FIELDS, Architecture
from minitron_nas.execution.runner import Outcome
from minitron_nas.search.contest import TrialRow
from minitron_nas.search.study import write_study
from minitron_nas.space.enumerate import Candidate

SOURCE = Architecture("llama", 4, 48, 96, 6, 2, 8, vocab_size=320)
CANDIDATES = [Candidate(SOURCE.reshaped({"intermediate_size": 90 - 10 * n}), 1000 - n) for n in range(5)]


def row(number, rung, kl, promoted=False, status="completed"):
    value = {"kl_nats": kl, "loss_nats": 2.0} if kl is not None else None
    outcome = Outcome("key", status, value, None if value else "Traceback\nValueError: a defect", 1.5)
    return TrialRow(CANDIDATES[number], rung, 100 * rung, outcome, promoted)


ROWS = [
    row(0, 1, 0.5, promoted=True),
    row(1, 1, 0.6, promoted=True),
    row(2, 1, 0.7),
    row(3, 1, None, status="infeasible"),
    row(0, 2, 0.3, promoted=True),
    row(1, 2, None, status="failed"),
    row(0, 3, 0.2, promoted=True),
]


UNTRAINED = [0.9, 0.8, 1.1, nan, None]
OTHERS = ("memory_bytes",)


def shapes(size="90k", candidates=CANDIDATES):
    """Rows of candidates.parquet that were screened."""
    return [
        {
            "size": size,
            "candidate": c.id,
            **dict.fromkeys(SHAPE_FIELDS),
            **c.architecture.sizes(),
            "num_parameters": c.num_parameters,
            "memory_bytes": 2 * c.num_parameters,
            "screen_kl_nats": UNTRAINED[number],
            "round": 1 + number // 3,
            "outcome": "stopped",
        }
        for number, c in enumerate(candidates)
    ]


def trials(rows=ROWS, size="90k"):
    """Rows of trials.parquet."""
    return [row.to_row(size) for row in rows]


def load(path, size="90k"):
    return optuna.load_study(study_name=size, storage=JournalStorage(JournalFileBackend(str(path))))


def told(study):
    return [(t.number, t.state, t.values, t.params, t.intermediate_values, t.user_attrs) for t in study.trials]


@pytest.fixture
def journal(tmp_path):
    path = tmp_path / "study.journal"
    write_study(path, shapes(), trials(), OTHERS)
    return path


def test_optuna_reads_one_trial_per_shape_with_its_fate(journal):
    found = load(journal).trials
    assert [trial.params["intermediate_size"] for trial in found] == [90, 80, 70, 60]
    assert [trial.state for trial in found] == [
        TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED, TrialState.FAIL,
    ]  # fmt: skip


def test_every_rung_is_an_intermediate_value_at_its_tokens_after_the_screening(journal):
    assert [trial.intermediate_values for trial in load(journal).trials] == [
        {0: 0.9, 100: 0.5, 200: 0.3, 300: 0.2},
        {0: 0.8, 100: 0.6},
        {0: 1.1, 100: 0.7},
        {},
    ]


def test_a_trial_that_begins_with_a_kl_that_is_no_number_has_failed_whatever_its_screening_said(tmp_path):
    path = tmp_path / "study.journal"
    write_study(path, shapes(), trials([row(0, 0, 0.5, promoted=True), row(1, 0, nan), row(0, 1, 0.4)]), OTHERS)
    assert [(trial.state, trial.intermediate_values) for trial in load(path).trials] == [
        (TrialState.COMPLETE, {0: 0.5, 100: 0.4}),
        (TrialState.FAIL, {0: 0.8}),
    ]


def test_the_best_trial_is_the_winner(journal):
    study = load(journal)
    assert (study.best_value, study.best_params["intermediate_size"]) == (0.2, 90)
    assert study.direction == optuna.study.StudyDirection.MINIMIZE
    assert study.metric_names == ["validation KL(teacher || student) in nats"]
    assert study.best_trial.user_attrs == {"num_parameters": 1000}


def test_parameters_are_the_five_sizes_over_the_range_of_all_candidates(journal):
    trial = load(journal).trials[0]
    ranges = {name: (d.low, d.high) for name, d in trial.distributions.items()}
    assert trial.params == CANDIDATES[0].architecture.sizes()
    assert ranges == {
        "num_hidden_layers": (4, 4),
        "hidden_size": (48, 48),
        "intermediate_size": (50, 90),
        "num_attention_heads": (6, 6),
        "num_key_value_heads": (2, 2),
    }


def test_what_was_screened_is_a_study_of_all_objectives_with_its_front(journal):
    study = load(journal, "90k screened")
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 3 + [TrialState.FAIL] * 2
    assert [trial.values for trial in study.trials[:3]] == [[0.9, 2000], [0.8, 1998], [1.1, 1996]]
    assert study.metric_names == ["untrained KL(teacher || candidate) in nats", "memory_bytes"]
    assert [trial.number for trial in study.best_trials] == [1, 2]
    assert study.trials[2].user_attrs == {"candidate": CANDIDATES[2].id, "round": 1, "outcome": "stopped"}


def test_two_sizes_lie_in_one_file(journal):
    before = told(load(journal))
    smaller = trials([row(0, 1, 0.9, promoted=True)], "70k")
    write_study(journal, [*shapes(), *shapes("70k", CANDIDATES[:1])], [*trials(), *smaller], OTHERS)
    assert sorted(optuna.get_all_study_names(JournalStorage(JournalFileBackend(str(journal))))) == [
        "70k",
        "70k screened",
        "90k",
        "90k screened",
    ]
    assert told(load(journal)) == before
    assert load(journal, "70k").best_value == 0.9


def test_learning_rates_are_a_study_of_their_own(journal):
    tried = [
        {"size": "90k", "candidate": "a", "tokens": 9, "chosen": kl == 0.3, "learning_rate": rate, "kl_nats": kl}
        | {"status": "diverged" if kl is None else "completed"}
        for rate, kl in ((3e-5, 0.4), (1e-4, 0.3), (3e-4, None))
    ]
    write_study(journal, [*shapes(), *shapes("70k", CANDIDATES[:1])], trials(), OTHERS, tried)
    study = load(journal, "90k rates")
    assert [(trial.params["learning_rate"], trial.value) for trial in study.trials] == [
        (row["learning_rate"], row["kl_nats"]) for row in tried
    ]
    assert study.trials[2].state == TrialState.FAIL
    assert study.best_trial.user_attrs == {"candidate": "a", "tokens": 9, "chosen": True, "status": "completed"}
    assert "70k rates" not in optuna.get_all_study_names(JournalStorage(JournalFileBackend(str(journal))))


@pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")  # Optuna keeps it open
def test_the_readmes_lines_copy_every_study_into_a_database_and_begin_another_with_it(journal, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = Path(minitron_nas.search.__file__).with_name("README.md").read_text(encoding="utf-8")
    (lines,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "copy_study" in block]
    names = {}
    exec(lines.replace("runs/smollm2/study.journal", str(journal)).replace("94M", "90k"), names)
    storage = JournalStorage(JournalFileBackend(str(journal)))
    for name in optuna.get_all_study_names(storage):
        copied = optuna.load_study(study_name=f"smollm2 {name}", storage="sqlite:///team.db")
        original = optuna.load_study(study_name=name, storage=storage)
        assert [trial.params for trial in copied.trials] == [trial.params for trial in original.trials]
        assert [trial.state for trial in copied.trials] == [trial.state for trial in original.trials]
    assert len(names["wider"].trials) == len(UNTRAINED)
    del copied, names
    gc.collect()


def test_writing_twice_leaves_the_same_study(journal):
    before = told(load(journal))
    write_study(journal, shapes(), trials(), OTHERS)
    assert told(load(journal)) == before


def test_nothing_but_the_journal_is_left(journal):
    assert [entry.name for entry in journal.parent.iterdir()] == ["study.journal"]


def test_a_study_that_breaks_off_leaves_the_old_one(journal):
    before = told(load(journal))
    with pytest.raises(KeyError):
        write_study(journal, shapes(candidates=CANDIDATES[:1]), trials(), OTHERS)
    assert told(load(journal)) == before
    assert [entry.name for entry in journal.parent.iterdir()] == ["study.journal"]


def test_a_last_kl_that_is_no_number_is_a_failure_to_optuna(tmp_path):
    rows = [row(0, 1, 0.5, promoted=True), row(1, 1, 0.4, promoted=True), row(0, 2, nan), row(1, 2, 0.3, promoted=True)]
    write_study(tmp_path / "study.journal", shapes(), trials(rows), OTHERS)
    found = load(tmp_path / "study.journal").trials
    assert [trial.state for trial in found] == [TrialState.FAIL, TrialState.COMPLETE]
    assert found[0].intermediate_values == {0: 0.9, 100: 0.5}


class _Quiet(WSGIRequestHandler):
    def log_message(self, *args):
        """Say nothing of what is asked."""


def test_optunas_dashboard_shows_what_was_searched(journal):
    app = optuna_dashboard.wsgi(JournalStorage(JournalFileBackend(str(journal))))
    with make_server("127.0.0.1", 0, app, handler_class=_Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def asked(path):
            with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/api/studies{path}") as answer:
                return json.load(answer)

        studies = {each["study_name"]: each["study_id"] for each in asked("")["study_summaries"]}
        assert sorted(studies) == ["90k", "90k screened"]
        shown = asked(f"/{studies['90k screened']}?after=0")
        assert len(shown["trials"]) == len(load(journal, "90k screened").trials)
        assert shown["best_trials"], "the front"
        server.shutdown()
