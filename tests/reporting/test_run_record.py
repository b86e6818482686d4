"""A run folder is read whether it is finished, begun, old or broken."""

import copy
import functools
import math
import operator
import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from minitron_nas.errors import RunFolderError
from minitron_nas.reporting.html import write_report
from minitron_nas.reporting.run_record import best_trained, plain_rows, read_run
from minitron_nas.storage.schemas import CANDIDATES, EVALUATIONS
from minitron_nas.storage.tables import write_rows


def test_sizes_are_those_planned_and_those_found_largest_first(new_run: Path) -> None:
    write_rows(new_run, EVALUATIONS, [{"model": "1.2B", "size": "1.2B", "role": "student"}])
    assert read_run(new_run).sizes() == ["1.2B", "110M", "94M"]


def test_a_window_in_the_plan_replaces_the_tolerance(new_run: Path) -> None:
    plan = new_run / "plan.yaml"
    plan.write_text(plan.read_text().replace("window: null", "window: [90M, 112M]"))
    assert read_run(new_run).size_windows()["94M"] == (90_000_000, 112_000_000)


def test_a_plan_without_tolerance_takes_its_windows_from_the_candidates(finished_run: Path) -> None:
    run = read_run(finished_run)
    run.plan["space"].clear()  # type: ignore[attr-defined]
    counts = run.candidates[run.candidates["size"] == "110M"]["num_parameters"]
    assert run.size_windows()["110M"] == (counts.min(), counts.max())


def test_sizes_in_memory_and_speed_are_told_largest_first_with_windows_from_their_candidates(new_run: Path) -> None:
    plan = new_run / "plan.yaml"
    content = yaml.safe_load(plan.read_text())
    content["plan"]["sizes"] = ["memory=250MB", "memory=300MB"]
    plan.write_text(yaml.safe_dump(content))
    shapes = [{"size": "memory-300MB", "candidate": str(n), "num_parameters": n * 10**6} for n in (90, 110, 100)]
    write_rows(new_run, CANDIDATES, shapes)
    run = read_run(new_run)
    assert run.sizes() == ["memory-300MB", "memory-250MB"]
    assert run.size_windows() == {"memory-300MB": (90_000_000, 110_000_000)}
    content["plan"]["sizes"] = ["decode=2.0x", "decode=1.5x"]
    plan.write_text(yaml.safe_dump(content))
    (new_run / CANDIDATES.file_name).unlink()
    assert read_run(new_run).sizes() == ["decode-1.5x", "decode-2.0x"]


def test_the_best_rung_of_a_trial_is_the_one_with_the_least_kl(finished_run: Path) -> None:
    best = best_trained(read_run(finished_run).trials)
    assert len(best) == 7
    assert sorted(best[best["rung"] == 2]["kl_nats"]) == pytest.approx([0.402, 0.439, 0.603, 0.6585])


def test_columns_that_an_older_table_lacks_are_missing_values(new_run: Path) -> None:
    old = pa.table({"model": ["teacher"], "role": ["teacher"], "loss_nats": [2.9]})
    pq.write_table(old, new_run / EVALUATIONS.file_name)
    row = plain_rows(read_run(new_run).evaluations)[0]
    assert (row["loss_nats"], row["peak_memory_bytes"]) == (2.9, None)


def test_an_infinite_number_counts_as_missing(new_run: Path) -> None:
    write_rows(new_run, EVALUATIONS, [{"model": "94M", "size": "94M", "role": "student", "kl_nats": math.inf}])
    assert plain_rows(read_run(new_run).evaluations)[0]["kl_nats"] is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a list", "must hold a mapping with the key 'plan'"),
        ("teacher: one that was never built from", "must hold a mapping with the key 'plan'"),
        ("plan: 5", "must hold a mapping with the key 'plan'"),
        ("plan: {sizes: [huge]}", r"plan\.yaml: plan\.sizes\.0: 'huge' is not a count"),
        ("plan: {sizes: 5}", r"plan\.yaml: plan\.sizes: "),
        ("plan: {text: 64}", r"plan\.yaml: plan\.text: must be a mapping; restore it"),
        ("plan: {text: {sequence_length: [64]}}", r"plan\.yaml: plan\.text\.sequence_length: .* integer; restore it"),
        ("plan: {space: {window: [90k]}}", r"plan\.yaml: plan\.space\.window: "),
        ("plan: {space: {window: [90k, {a: 1}]}}", r"plan\.yaml: plan\.space\.window\.1: {'a': 1} is not a count"),
        ("plan: {data: {a: 1}, baselines: [1]}", r"plan\.yaml: plan\.baselines\.0: "),
        ("plan: {}\nteacher: x", r"plan\.yaml: teacher: must be a mapping; restore it"),
        ("plan: {}\ndevices: {name: cpu}", r"plan\.yaml: devices\.number: "),
        ("{", r"plan\.yaml is not YAML"),
    ],
)
def test_a_broken_plan_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(RunFolderError, match=message):
        read_run(tmp_path)


def test_a_plan_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(RunFolderError, match=r"plan\.yaml is no text"):
        read_run(tmp_path)


def test_parts_of_a_plan_that_are_none_say_nothing(new_run: Path) -> None:
    plan = new_run / "plan.yaml"
    plan.write_text(yaml.safe_dump({**yaml.safe_load(plan.read_text()), "teacher": None, "versions": None}))
    run = read_run(new_run)
    assert (run.teacher["source"], dict(run.versions)) == (None, {})


def leaves(node: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every key of a mapping and of those in it."""
    for key, value in node.items() if isinstance(node, dict) else ():
        yield (*path, key)
        yield from leaves(value, (*path, key))


@pytest.mark.slow
def test_a_report_is_written_or_the_odd_value_of_a_plan_is_named(finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    content = yaml.safe_load((run / "plan.yaml").read_text())
    refused = list[tuple[str, str]]()
    for path in leaves(content):
        for odd in ([1, {"a": "b"}], {"a": [1]}, "odd", -3.5):
            changed = copy.deepcopy(content)
            parent = functools.reduce(operator.getitem, path[:-1], changed)
            parent[path[-1]] = odd
            (run / "plan.yaml").write_text(yaml.safe_dump(changed))
            try:
                write_report(run)
            except RunFolderError as error:
                refused.append((path[-1], str(error)))
    assert len(refused) > 50
    assert all("plan.yaml" in told and key in told for key, told in refused)


@pytest.mark.parametrize("content", [b"", b"PAR1 and no more", b"PAR1" + bytes(100) + b"PAR1"])
def test_a_broken_table_is_refused_by_its_name(new_run: Path, content: bytes) -> None:
    (new_run / EVALUATIONS.file_name).write_bytes(content)
    with pytest.raises(RunFolderError, match=r"evaluations\.parquet cannot be read as a table \(.*\); the command"):
        read_run(new_run)


def test_a_broken_lineage_is_refused(new_run: Path) -> None:
    path = new_run / "students" / "94M" / "lineage.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(RunFolderError, match=r"lineage\.json is not JSON .*; distill this student again"):
        read_run(new_run)


def test_a_finalist_that_was_compared_untrained_has_no_best_rung(finished_run: Path) -> None:
    trials = read_run(finished_run).trials
    begun = trials[trials["rung"] == 1].assign(rung=0, tokens=0, kl_nats=0.001)
    both = pd.concat([trials, begun, begun.assign(candidate="another")])
    assert best_trained(both).equals(best_trained(trials))
