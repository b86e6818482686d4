"""The rows and sentences of the report's sections."""

import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from minitron_nas.architecture.spec import SHAPE_FIELDS
from minitron_nas.reporting import search_figures, sections
from minitron_nas.reporting.html import render_report
from minitron_nas.reporting.numerals import MISSING
from minitron_nas.reporting.run_record import RunRecord, read_run
from minitron_nas.storage.lineage import Origin
from minitron_nas.storage.schemas import ALIGNMENT
from minitron_nas.storage.tables import write_rows


@pytest.fixture(scope="module")
def run(finished_run: Path) -> RunRecord:
    return read_run(finished_run)


def test_finalists_are_told_without_saying_that_all_are_trained(run: RunRecord) -> None:
    plan = {**run.plan, "search": {"max_screened": 64, "num_finalists": 12, "num_rungs": 3}}
    told = dict(sections.asked(replace(run, plan=plan)))
    assert told["Search"] == "a size: at most 64 shapes screened, 12 finalists, 3 rungs"


def test_outcomes_are_counted_in_words(run: RunRecord) -> None:
    assert sections.outcome_counts(run.candidates, "94M") == (
        "12 candidates: 1 chosen, 2 stopped, 1 failed, 4 screened out, 4 not sampled"
    )


def test_what_a_size_in_memory_or_speed_asks_is_said_in_words(run: RunRecord) -> None:
    asked = replace(run, plan={"search": {"batch_size": 8, "context_tokens": 32_000}})
    assert sections.asked_of(asked, "memory-6GB") == (
        "at most 6GB for 16-bit weights and the cache of 8 x 32,000 tokens"
    )
    assert sections.asked_of(asked, "decode-2.0x") == (
        "at least 2.0x of the teacher's decode speed, as the latency model predicts it"
    )
    assert sections.asked_of(asked, "94M") == ""


def test_candidates_past_the_limit_lose_those_never_sampled(run: RunRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sections, "MAX_CANDIDATE_ROWS", 16)
    rows = sections.candidate_rows(run)
    assert (len(rows), {row[1] for row in rows}) == (
        16,
        {"chosen", "stopped", "failed", "screened_out"},
    )


def test_candidates_that_came_equally_far_lose_the_furthest_from_the_teacher(
    run: RunRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sections, "MAX_CANDIDATE_ROWS", 13)
    worst_first = run.candidates.sort_values("screen_kl_nats", ascending=False)
    rows = sections.candidate_rows(replace(run, candidates=worst_first))
    screened_out = run.candidates[run.candidates["outcome"] == "screened_out"]["screen_kl_nats"]
    shown = [row[10] for row in rows if row[1] == "screened_out"]
    assert 0 < len(shown) < len(screened_out)
    assert sorted(shown) == sorted(screened_out)[: len(shown)]


def test_rank_correlations_are_told_where_they_are_known(run: RunRecord) -> None:
    known = {"earlier": "screen", "later": "rung 1", "num_candidates": 4, "spearman": 0.8, "kendall": 2 / 3}
    assert sections.correlation_rows(run, "110M") == [{"size": "110M", **known}]
    assert sections.correlation_rows(run, "94M") == []


def test_learning_rates_stand_in_their_order_where_they_were_tried(run: RunRecord) -> None:
    rows = sections.rate_rows(run, "110M")
    assert [(row["learning_rate"], row["kl_nats"], row["chosen"]) for row in rows] == [
        (1e-4, 0.302, False),
        (3e-4, 0.271, True),
        (1e-3, None, False),
    ]
    assert sections.rate_rows(run, "94M") == []


def test_what_each_rule_left_out_starts_with_the_largest_size_and_strictest_rule(run: RunRecord) -> None:
    rows = [(row["size"], row["num_shapes"]) for row in sections.exclusion_rows(run)]
    assert rows == [("110M", 129), ("110M", 34), ("110M", 12), ("94M", 138), ("94M", 43), ("94M", 21)]


def test_a_benchmark_has_a_cell_per_model_and_none_where_it_was_not_run(run: RunRecord) -> None:
    row = sections.benchmark_table(run, ["teacher", "unknown"])[0]
    assert (row["task"], row["limit"]) == ("arc_easy", 1000)
    assert row["cells"][0]["value"] == pytest.approx(0.553)
    assert row["cells"][1] is None


def test_a_benchmark_says_its_documents_and_where_that_is_not_known_its_limit(run: RunRecord) -> None:
    found = {row["task"]: row["documents"] for row in sections.benchmark_table(run, ["teacher"])}
    assert found == {"arc_easy": "1,000", "piqa": "1,838", "winogrande": "at most 1,000"}


def test_a_value_comes_with_its_difference_to_the_teacher_where_it_is_known(run: RunRecord) -> None:
    found = {row["task"]: row["cells"] for row in sections.benchmark_table(run, ["teacher", "110M", "94M"])}
    assert [cell["difference"] for cell in found["arc_easy"]] == [None, None, None]
    teacher, first, second = (cell["difference"] for cell in found["piqa"])
    assert teacher is None
    assert (round(first["difference"], 4), first["differs"]) == (-0.0235, False)
    assert (round(second["difference"], 4), second["differs"]) == (-0.0368, True)


def test_a_student_is_held_against_its_baselines_task_by_task(run: RunRecord) -> None:
    found = sections.against_others(run, "110M")
    assert found["others"] == ["110M-depth-only", "110M-random-weights"]
    ((task, cells),) = [(row["task"], row["cells"]) for row in found["rows"]]
    assert (task, [round(cell["difference"], 4) for cell in cells]) == ("piqa", [0.0093, 0.036])
    assert sections.against_others(run, "110M-depth-only") == {"others": [], "rows": []}


def test_checks_hold_for_a_proof_within_tolerance_and_the_plans_teacher(run: RunRecord) -> None:
    assert [holds for _, holds, _ in sections.checks(run)] == [True, True, True, True]


def test_a_check_fails_for_another_teacher_and_is_unknown_without_a_proof(run: RunRecord) -> None:
    lineage = replace(run.lineages["94M"], proof=None, teacher=Origin(None, "another"))
    told = sections.checks(replace(run, lineages={"94M": lineage}))
    assert [holds for _, holds, _ in told] == [None, False]


def test_a_students_teacher_may_be_the_plans_after_correction(run: RunRecord) -> None:
    correction = {"tokens": 1000, "teacher": run.teacher["fingerprint"]}
    lineage = replace(run.lineages["94M"], teacher=Origin(None, "of the corrected"), correction=correction)
    assert [holds for _, holds, _ in sections.checks(replace(run, lineages={"94M": lineage}))] == [True, True]


def last_rung(*trials: tuple[str, float | None, float | None]) -> pd.DataFrame:
    rows = [
        {"size": "94M", "candidate": name, "rung": 2, "kl_nats": kl, "agreement_tokens": shared}
        for name, kl, shared in trials
    ]
    early = [{**row, "rung": 1, "agreement_tokens": 32.0} for row in rows]
    return pd.DataFrame([*early, *rows])


def test_the_lowest_kl_is_held_against_what_trials_write() -> None:
    agreeing = last_rung(("a", 0.5, 7.25), ("b", 0.6, 4.0))
    told = sections.generation(agreeing, "94M")
    assert told.startswith("a has the lowest KL")
    assert told.endswith("7.2 tokens, the longest of 2 trials")
    disagreeing = last_rung(("a", 0.5, 3.0), ("b", 0.6, 4.5), ("c", 0.7, None))
    assert sections.generation(disagreeing, "94M") == (
        "KL and generation disagree: a has the lowest KL and follows the teacher's own continuations for 3.0 tokens, b "
        "for 4.5 with a KL of 0.600 against 0.500"
    )


def test_one_trial_or_none_that_has_written_is_held_against_nothing() -> None:
    assert sections.generation(last_rung(("a", 0.5, 7.2), ("b", 0.6, None)), "94M") == ""
    assert sections.generation(last_rung(("a", 0.5, 7.2)), "110M") == ""


def test_samples_stand_by_prompt_each_with_all_models_in_their_order(run: RunRecord) -> None:
    rows = [
        {
            "size": size,
            "model": model,
            "prompt": at,
            "prompt_text": f"beginning {at}",
            "text": f"{model} {at}",
        }
        for at in (2, 1)
        for size, model in (("94M", "94M"), (None, "teacher"), ("94M", "gone"))
    ]
    with_samples = replace(run, samples=pd.DataFrame(rows))
    assert sections.samples(with_samples, ["teacher", "110M", "94M"]) == [
        ("beginning 1", [("teacher", "teacher 1"), ("94M", "94M 1")]),
        ("beginning 2", [("teacher", "teacher 2"), ("94M", "94M 2")]),
    ]
    assert sections.samples(run, ["teacher"]) == []


def test_how_long_members_write_is_told_where_the_run_has_measured_it(run: RunRecord) -> None:
    row = {"size": None, "model": "teacher", "prompt": 1, "prompt_text": "a", "text": "b"}
    measured = run.evaluations.assign(agreement_tokens=4.0, repeated_share=0.5, written_tokens=90.25, ended_share=0.75)
    for evaluations, expected in (
        (measured, ["50\N{NO-BREAK SPACE}%", "90.2", "75\N{NO-BREAK SPACE}%"]),
        (measured.assign(written_tokens=None, ended_share=None), ["50\N{NO-BREAK SPACE}%", MISSING, MISSING]),
    ):
        page = render_report(replace(run, samples=pd.DataFrame([row]), evaluations=evaluations))
        told = page.partition('id="samples"')[2].partition("</section>")[0]
        cells = [cell.partition("</td>")[0] for cell in told.split('<td class="number">')[1:]]
        assert len(cells) > 4
        assert cells == [value for at in (MISSING, *["4.0"] * (len(cells) // 4 - 1)) for value in (at, *expected)]


def test_what_a_model_writes_cannot_write_into_the_page(run: RunRecord) -> None:
    text = "<script>alert(1)</script>"
    row = {"size": None, "model": "teacher", "prompt": 1, "prompt_text": text, "text": text}
    page = render_report(replace(run, samples=pd.DataFrame([row])))
    assert text not in page
    assert page.count("&lt;script&gt;alert(1)") == 2


def test_aligned_members_are_told_with_what_they_were_before(finished_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished_run, tmp_path / "run")
    assert 'id="aligned"' not in render_report(read_run(folder))
    held = {"model": "x", "method": "kd", "num_conversations": 30}
    looks = [{**held, "look": "before", "kl_nats": 0.75}, {**held, "look": "after", "kl_nats": 0.25}]
    write_rows(folder / "aligned" / "94M-instruct", ALIGNMENT, looks)
    write_rows(folder / "aligned" / "half", ALIGNMENT, looks[:1])
    (row,) = sections.alignment_rows(read_run(folder))
    assert (row["model"], row["before"]["kl_nats"], row["after"]["kl_nats"]) == ("94M-instruct", 0.75, 0.25)
    page = render_report(read_run(folder))
    told = page.partition('id="aligned"')[2].partition("</section>")[0]
    assert all(value in told for value in ("94M-instruct", "kd", "0.750", "0.250"))


def test_every_size_that_pruning_changes_is_told() -> None:
    assert {*SHAPE_FIELDS} <= {column for column, _, _ in sections.CANDIDATE_COLUMNS}
    assert {*SHAPE_FIELDS} <= {*search_figures._AXES}


def test_sizes_that_only_some_families_have_are_told_where_there_are_any(run: RunRecord) -> None:
    assert [heading for _, heading, _ in sections.candidate_columns(run)][5:10] == [
        "layers",
        "hidden",
        "FFN",
        "heads",
        "KV",
    ]
    assert sections.shape_letters(run) == "l layers, h hidden, f FFN, q heads, k KV"
    mixed = replace(run, candidates=run.candidates.assign(mamba_num_heads=16, mamba_head_dim=64))
    assert sections.shape_letters(mixed) == (
        "l layers, h hidden, f FFN, q heads, k KV, n Mamba heads, p channels of each"
    )
    rows, columns = sections.candidate_rows(mixed), [name for name, _, _ in sections.candidate_columns(mixed)]
    assert rows[0][columns.index("mamba_num_heads") : columns.index("mamba_head_dim") + 1] == [16, 64]
