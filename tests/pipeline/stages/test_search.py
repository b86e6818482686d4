"""A search with several objectives and a constraint, in a run; small searches are part of every other run."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from minitron_nas.architecture.spec import Architecture
from minitron_nas.errors import LatencyError, PlanError, RunFolderError, SpaceError
from minitron_nas.models.checkpoint import open_checkpoint
from minitron_nas.pipeline.display import default_display
from minitron_nas.search.pareto import pareto_front
from minitron_nas.search.screen import screen
from minitron_nas.storage.lineage import read_lineage
from minitron_nas.storage.schemas import CANDIDATES, EXCLUSIONS, TRIALS
from minitron_nas.storage.tables import read_rows

NEURONS = {"min_fraction": 0.25, "step_fraction": 0.03125, "multiple_of": 2}
SPACE = {
    "axes": {
        "num_hidden_layers": {"values": [3, 4, 5]},
        "hidden_size": {"values": [36, 42, 48]},
        "intermediate_size": NEURONS,
        "num_attention_heads": {"values": [3, 6]},
        "num_key_value_heads": {"values": [1, 2]},
    },
    "tolerance": 0.15,
}
BOUND = "decode_speedup >= 1.2"


@pytest.fixture(scope="module")
def search(build, latency):
    def call(out, *overrides, **changes):
        return build(
            out,
            "search.num_rungs=0",
            "search.max_screened=20",
            "search.screen_sequences=4",
            "search.objectives=[kl,memory_bytes,decode_seconds]",
            f"search.constraints=[{BOUND}]",
            f"search.latency={latency}",
            *overrides,
            **{"space": SPACE, **changes},
        )

    return call


@pytest.fixture(scope="module")
def searched(search, tmp_path_factory):
    return search(tmp_path_factory.mktemp("searched") / "run")


@pytest.fixture
def rows(searched):
    return read_rows(searched.path, CANDIDATES)


def test_what_the_constraint_forbids_is_no_candidate_and_is_counted(searched, rows, trained_teacher):
    layers = open_checkpoint(trained_teacher, read_values=False).architecture.num_hidden_layers
    assert {row["num_hidden_layers"] for row in rows} == {
        number for number in SPACE["axes"]["num_hidden_layers"]["values"] if (layers + 1) / (number + 1) >= 1.2
    }
    excluded = {row["rule"]: row["num_shapes"] for row in read_rows(searched.path, EXCLUSIONS)}
    assert excluded[BOUND] > 0


def test_every_candidate_has_its_costs_and_what_the_surrogate_expects(rows):
    assert len(rows) > 20
    for row in rows:
        assert row["decode_seconds"] == pytest.approx(0.001 * (row["num_hidden_layers"] + 1))
        assert row["prefill_seconds"] == pytest.approx(0.002 * (row["num_hidden_layers"] + 1))
        assert row["memory_bytes"] == 2 * row["num_parameters"] + 4096 * row["kv_cache_bytes_per_token"]
        assert row["predicted_kl_nats"] > 0


def test_the_screening_went_in_rounds_and_its_front_is_told(rows):
    screened = [row for row in rows if row["round"] is not None]
    assert sorted(row["round"] for row in screened) == [1] * 8 + [2] * 8 + [3] * 4
    front = pareto_front([(row["screen_kl_nats"], row["memory_bytes"], row["decode_seconds"]) for row in screened])
    assert [row["on_front"] for row in screened] == front
    assert 1 < sum(front) < len(screened)
    assert not any(row["on_front"] for row in rows if row["round"] is None)
    known = np.array([(row["predicted_kl_nats"], row["screen_kl_nats"]) for row in screened])
    assert np.corrcoef(np.log(known.T))[0, 1] > 0.9


def test_a_random_shape_and_the_largest_stand_beside_the_choice(searched, rows):
    held_against = {row["reference"]: row for row in rows if row["reference"] is not None}
    assert set(held_against) == {"random", "largest"}
    assert held_against["largest"]["num_parameters"] == max(row["num_parameters"] for row in rows)
    chosen = next(row["screen_kl_nats"] for row in rows if row["outcome"] == "chosen")
    assert all(chosen <= row["screen_kl_nats"] for row in held_against.values())
    told = " ".join(searched.report.read_text().split())
    random, largest = (held_against[name]["screen_kl_nats"] for name in ("random", "largest"))
    assert (
        f"Untrained KL: the choice {chosen:.3f}, a random shape {random:.3f}, "
        f"the one with the most parameters {largest:.3f}." in told
    )


def test_without_rungs_the_best_of_the_screening_is_the_student(searched, rows):
    best = min((row for row in rows if row["round"] is not None), key=lambda row: row["screen_kl_nats"])
    assert best["outcome"] == "chosen"
    assert read_rows(searched.path, TRIALS) == []
    assert Architecture(**read_lineage(searched.members[0].path).architecture).id == best["candidate"]


def test_optuna_reads_what_was_screened_against_all_objectives(searched, rows):
    storage = JournalStorage(JournalFileBackend(str(searched.path / "study.journal")))
    study = optuna.load_study(study_name="90k screened", storage=storage)
    assert len(study.trials) == 20
    front = {row["candidate"] for row in rows if row["on_front"]}
    assert {trial.user_attrs["candidate"] for trial in study.best_trials} == front


def test_a_search_goes_on_from_that_of_another_run_in_a_wider_space(search, searched, rows, tmp_path, monkeypatch):
    measured = []
    monkeypatch.setattr(
        "minitron_nas.pipeline.stages.search.screen",
        lambda candidates, *given: measured.extend(each.id for each in candidates) or screen(candidates, *given),
    )
    wider = {**SPACE, "axes": {**SPACE["axes"], "intermediate_size": {**NEURONS, "step_fraction": 0.015625}}}
    found = search(tmp_path / "run", "search.max_screened=4", f"search.extends={searched.path}", space=wider)
    known = {row["candidate"]: row["screen_kl_nats"] for row in rows if row["round"] is not None}
    now = {row["candidate"]: row for row in read_rows(found.path, CANDIDATES) if row["round"] is not None}
    assert {key: row["screen_kl_nats"] for key, row in now.items() if row["round"] == 0} == known
    assert sorted(measured) == sorted(key for key, row in now.items() if row["round"] == 1)
    assert len(measured) == 4
    assert len(read_rows(found.path, CANDIDATES)) > len(rows)


def test_what_was_measured_on_other_text_is_not_taken_over(search, searched, tmp_path, capsys):
    found = search(
        tmp_path / "run",
        "search.max_screened=4",
        f"search.extends={searched.path}",
        "text.validation_samples=5",
        display=default_display(),
    )
    assert "nothing is taken over from" in (told := capsys.readouterr().err)
    assert "not the same: how they are cut, the held-out text" in " ".join(told.split())
    assert {row["round"] for row in read_rows(found.path, CANDIDATES)} == {None, 1}


def test_a_run_whose_screening_was_changed_is_not_gone_on_from(search, searched, tmp_path):
    earlier = tmp_path / "earlier"
    shutil.copytree(searched.path, earlier)
    file = earlier / "screened" / "90k.json"
    file.write_text(file.read_text().replace('"completed"', '"completeD"', 1))
    with pytest.raises(RunFolderError, match=r"90k.json is not what a screening wrote"):
        search(tmp_path / "run", f"search.extends={earlier}")


@pytest.mark.slow
def test_a_size_learns_from_what_was_measured_of_another(search, searched, tmp_path, capsys):
    extends = f"search.extends={searched.path}"
    search(tmp_path / "run", "search.max_screened=4", extends, sizes=["70k"], display=default_display())
    told = " ".join(capsys.readouterr().err.split())
    match = re.search(r"70k: (\d+) of its candidates were screened in .* and (\d+) other shapes tell what", told)
    assert match is not None
    assert int(match[1]) + int(match[2]) == 20
    assert int(match[2]) >= 10


def test_what_has_screened_nothing_is_refused_before_anything_is_written(search, searched, tmp_path):
    begun = tmp_path / "begun"
    for folder, message in ((tmp_path, "is no run"), (begun, "has screened no size yet")):
        begun.mkdir(exist_ok=True)
        shutil.copy(searched.path / "plan.yaml", begun)
        with pytest.raises(PlanError, match=f"search.extends={folder} {message}"):
            search(tmp_path / "run", f"search.extends={folder}")
    assert not (tmp_path / "run" / "plan.yaml").exists()


@pytest.mark.slow
def test_a_latency_model_that_says_something_else_makes_the_search_again(search, searched, latency, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(searched.path, folder)
    before = (folder / "ledger.jsonl").read_text().count('"90k screen"')
    search(folder)
    assert (folder / "ledger.jsonl").read_text().count('"90k screen"') == before == 1
    content = latency.read_text()
    try:
        latency.write_text(json.dumps({**json.loads(content), "num_measurements": 50}))
        search(folder)
    finally:
        latency.write_text(content)
    assert (folder / "ledger.jsonl").read_text().count('"90k screen"') == 2


def test_a_constraint_that_nothing_keeps_to_is_refused_with_the_nearest(search, tmp_path):
    with pytest.raises(SpaceError, match="no candidate keeps to decode_speedup >= 9: of .* the nearest has"):
        search(tmp_path / "run", "search.constraints=['decode_speedup >= 9']")
    assert not (tmp_path / "run" / "plan.yaml").exists()


def test_a_latency_model_of_another_family_is_refused_before_anything_is_written(search, latency, tmp_path):
    other = Path(tmp_path / "other.json")
    content = json.loads(latency.read_text())
    other.write_text(json.dumps({**content, "setting": {**content["setting"], "vocab_size": 7}}))
    with pytest.raises(LatencyError, match="vocab_size=7 where"):
        search(tmp_path / "run", f"search.latency={other}")
    assert not (tmp_path / "run" / "plan.yaml").exists()


def test_two_members_of_a_size_are_points_of_its_front(search, searched, latency, tmp_path):
    found = search(tmp_path / "run", "members_per_size=2", "search.num_finalists=6", "search.screen_sequences=2")
    rows = read_rows(found.path, CANDIDATES)
    chosen = {row["candidate"]: row for row in rows if row["outcome"] == "chosen"}
    shapes = [Architecture(**read_lineage(found.path / "students" / name).architecture).id for name in ("90k", "90k-2")]
    assert set(shapes) == set(chosen)
    first, second = (chosen[shape] for shape in shapes)
    assert first["screen_kl_nats"] < second["screen_kl_nats"]
    assert second["memory_bytes"] < first["memory_bytes"] or second["decode_seconds"] < first["decode_seconds"]
    assert {member.name for member in found.members} == {"90k", "90k-2"}
    done = [json.loads(line)["stage"] for line in (found.path / "ledger.jsonl").read_text().splitlines()]
    assert [stage for stage in done if stage.endswith("distil")] == ["90k distil", "90k-2 distil"]
    assert "on the front with an untrained KL of" in second["reason"]
    told = found.report.read_text()
    assert "90k-2" in told
    assert "no candidate was trained yet" not in told
    assert "90k-2" in (found.path / "students" / "90k-2" / "README.md").read_text()
