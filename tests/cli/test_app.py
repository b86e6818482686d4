import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from minitron_nas import __main__ as entry
from minitron_nas.cli import app
from minitron_nas.errors import PreemptedError
from minitron_nas.pipeline.doctor import Finding
from minitron_nas.pipeline.family import Member
from minitron_nas.pipeline.plan import FamilyPlan, deciding, make_plan
from minitron_nas.pipeline.steps.align import Aligned
from minitron_nas.pipeline.steps.alignment_run import Held
from minitron_nas.storage.lineage import Proof
from minitron_nas.storage.run_folder import RunFolder

SHORT_TEXT = ("--set", "text.sequence_length=64", "--set", "text.calibration_samples=16")


class Output:
    """What a command left: exit code, stdout and stderr."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def json(self) -> Any:
        """The whole of stdout as JSON."""
        assert self.code == 0, self.err
        return json.loads(self.out)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Output]:
    """Call `minitron-nas` in this process."""

    def call(*arguments: object) -> Output:
        monkeypatch.setattr(sys, "argv", ["minitron-nas", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            app.main()
        captured = capsys.readouterr()
        return Output(int(stop.value.code or 0), captured.out, captured.err)

    return call


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[FamilyPlan, Path]]:
    """The plans that a build would carry out; a library that prints on stdout among them."""
    plans: list[tuple[FamilyPlan, Path]] = []
    teacher, student = (Member(name, tmp_path / name, 10, 0.25, 8.0) for name in ("teacher", "90k"))

    def run_plan(plan: FamilyPlan, out: Path, *rest: Any, **named: Any) -> SimpleNamespace:
        print("a library says hello")  # noqa: T201
        plans.append((plan, out))
        return SimpleNamespace(teacher=teacher, members=[student], report=out / "report.html")

    monkeypatch.setattr("minitron_nas.pipeline.build.run_plan", run_plan)
    monkeypatch.setattr("minitron_nas.pipeline.demo.run_plan", run_plan)
    return plans


# align


def test_align_asks_the_tasks_that_are_set_and_tells_what_the_student_got(
    run: Callable[..., Output], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[dict[str, Any]] = []
    rows = [
        {"task": "tiny_sums", "metric": "acc,none", "value": 0.4, "standard_error": 0.25},
        {"task": "wiki", "metric": "perplexity,none", "value": 9.0, "standard_error": None},
    ]

    def align(student: str, data: str, out: Path, **named: Any) -> Aligned:
        asked.append(named)
        return Aligned(out, "sft", Held(2.0), Held(1.5), None, 1.0, Proof(0.0, 1e-3), rows)

    monkeypatch.setattr("minitron_nas.pipeline.steps.align.align", align)
    command = ("align", "student", "--data", "chats.jsonl", "--out", tmp_path / "out", "--set", "evaluation.limit=5")
    told = run(*command, "--set", "evaluation.tasks=[tiny_sums@1]")
    assert told.out.splitlines() == [
        f"{tmp_path / 'out'}: held-out loss 2.0000 nats before, 1.5000 after",
        "tiny_sums acc,none: 0.4000 ± 0.2500",
        "wiki perplexity,none: 9.0000",
    ]
    assert (asked[0]["evaluation"].tasks, asked[0]["evaluation"].model_fields_set) == (
        ("tiny_sums@1",),
        {"limit", "tasks"},
    )
    assert run(*command, "--json").json()["benchmarks"] == rows
    assert asked[1]["evaluation"].model_fields_set == {"limit"}, "the rest is the run's"


# enumerate


def test_enumerate_lists_the_papers_candidates_as_json(run: Callable[..., Output]) -> None:
    found = run("enumerate", "--space", "minitron-15b-to-4b", "--size", "4B", "--json").json()
    assert set(found) == {"candidates", "excluded"}
    assert len(found["candidates"]) == 18
    assert set(found["candidates"][0]) == {
        "num_hidden_layers",
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "num_parameters",
    }
    assert found["excluded"] == {"size_window": 222}


def test_enumerate_lists_a_line_per_candidate_and_what_was_left_out(run: Callable[..., Output]) -> None:
    lines = run("enumerate", "--space", "minitron-15b-to-4b", "--size", "4B").out.splitlines()
    assert len(lines) == 19
    assert lines[-1] == "18 candidates; left out: 222 by size_window"


def test_enumerate_lists_shapes_of_a_size_in_memory_with_what_they_take(run: Callable[..., Output]) -> None:
    command = ("enumerate", "--space", "smollm2-135m", "--size", "memory=350MB", "--batch-size", 8)
    context = ("--context-tokens", "1k")
    found = run(*command, *context, "--json").json()["candidates"]
    assert len(found) > 5
    for row in found:
        keys = row["num_hidden_layers"] * row["num_key_value_heads"] * 64
        assert row["memory_bytes"] == 2 * row["num_parameters"] + 8000 * 4 * keys
        assert 336_000_000 <= row["memory_bytes"] <= 350_000_000
    *lines, last = run(*command, *context).out.splitlines()
    assert last.startswith(f"{len(found)} candidates; left out: ")
    assert [line.split()[-1] for line in lines] == [
        f"{row['memory_bytes'] / 1e6:.6f}".rstrip("0").rstrip(".") + "MB" for row in found
    ]


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (("--size", "memory=350Mb"), "--size: size 'memory=350Mb': Mb stands for bits; write bytes"),
        (("--size", "memory=1GB"), "size memory=1GB is not below the source's 363.401856MB of memory"),
        (("--size", "decode=1.5x"), "size decode=1.5x: that needs a latency model; `minitron-nas latency TEACHER"),
        (("--size", "94M", "--context-tokens", "long"), "--context-tokens: 'long' is not a count"),
    ],
)
def test_enumerate_refuses_a_size_that_it_cannot_measure(
    run: Callable[..., Output], arguments: tuple[str, ...], fault: str
) -> None:
    output = run("enumerate", "--space", "smollm2-135m", *arguments)
    assert (output.code, output.out, output.err.count("\n")) == (2, "", 1)
    assert output.err.startswith(f"minitron-nas: {fault}")


# prune, distill, evaluate


def test_prune_takes_sizes_in_parameters_alone(run: Callable[..., Output], tmp_path: Path) -> None:
    output = run("prune", "nowhere", "--size", "memory=6GB", "--data", "embedded", "--out", tmp_path / "out")
    assert output.code == 2
    assert "prune takes a size in total parameters, such as 94M, and memory=6GB is none" in output.err
    assert not (tmp_path / "out").exists()


def test_prune_distill_and_evaluate_follow_one_another(
    run: Callable[..., Output], trained_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    pruned, distilled = tmp_path / "pruned", tmp_path / "distilled"
    shape = "intermediate_size=48,num_hidden_layers=4"
    cut = run(
        *("prune", trained_teacher, "--shape", shape, "--data", text_file, "--out", pruned, *SHORT_TEXT),
        *("--repair", "none", "--json"),
    ).json()
    assert set(cut) == {"path", "num_parameters", "num_tower_parameters", "shape", "proof"}
    assert set(cut["proof"]) == {"max_abs_difference", "tolerance"}
    assert json.loads((pruned / "config.json").read_text())["intermediate_size"] == 48

    learning = ("--set", "distillation.learning_rate=0.002", "--set", "distillation.num_evaluations=1")
    trained = run(
        *("distill", pruned, "--teacher", trained_teacher, "--data", text_file, "--tokens", "1k"),
        *("--out", distilled, *SHORT_TEXT, "--set", "text.validation_samples=8", *learning, "--json"),
    ).json()
    assert set(trained) == {"path", "untrained_kl_nats", "kl_nats"}
    assert trained["kl_nats"] < trained["untrained_kl_nats"]

    file = tmp_path / "text.txt"
    file.write_text("The result of the call is the value of the expression. " * 4)
    before, after = (
        run("evaluate", model, "--text", file, "--teacher", trained_teacher, "--json").json()
        for model in (pruned, distilled)
    )
    assert {"loss_nats", "perplexity", "kl_nats", "num_tokens", "num_parameters"} == set(after)
    assert after["kl_nats"] < before["kl_nats"]
    assert after["num_parameters"] == cut["num_parameters"]


def test_a_teacher_is_corrected_on_a_blend(
    run: Callable[..., Output], trained_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    lines = (json.dumps({"body": f"{n} is the number of line {n}. " * 10}) for n in range(300))
    (tmp_path / "other.jsonl").write_text("\n".join(lines))
    learning = ("correct.learning_rate=0.001", "correct.batch_sequences=4", "text.validation_samples=8")
    data = ("--data", f"{text_file}=1", "--data", f"{tmp_path / 'other.jsonl'}=9,column=body")
    command = ("correct", trained_teacher, *data, "--tokens", "4k", *SHORT_TEXT)
    overrides = [word for each in learning for word in ("--set", each)]
    corrected = run(*command, *overrides, "--out", tmp_path / "out", "--json").json()
    assert set(corrected) == {"path", "loss_nats_before", "loss_nats"}
    assert corrected["loss_nats"] != corrected["loss_nats_before"]
    assert (tmp_path / "out" / "lineage.json").exists()
    told = run(*command, *overrides, "--out", tmp_path / "again")
    assert f"{corrected['loss_nats_before']:.4f} nats before, {corrected['loss_nats']:.4f} after" in told.out


def test_several_data_without_weights_are_refused(run: Callable[..., Output], tmp_path: Path) -> None:
    output = run("correct", "x", "--data", "a.txt", "--data", "b.txt", "--out", tmp_path / "out")
    assert output.code == 2
    assert "--data a.txt has no weight; a blend is written --data a.parquet=0.3 --data b.jsonl=0.7" in output.err


def test_scores_are_written_once_and_pruned_from(
    run: Callable[..., Output], trained_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    scores = tmp_path / "scores"
    score = ("score", trained_teacher, "--data", text_file, "--tokens", "1k", *SHORT_TEXT)
    told = run(*score, "--out", scores)
    assert (told.code, told.out) == (0, f"{scores}\n")
    assert run(*score, "--out", tmp_path / "again", "--json").json() == {"path": str(tmp_path / "again")}
    shape = ("--shape", "hidden_size=36,intermediate_size=64")
    cut = run("prune", trained_teacher, *shape, "--scores", scores, "--out", tmp_path / "student", "--json").json()
    assert cut["shape"]["hidden_size"] == 36
    assert cut["proof"]["max_abs_difference"] <= cut["proof"]["tolerance"]


@pytest.mark.parametrize("scores", ["magnitude", "random"])
def test_baselines_are_pruned_without_text(
    run: Callable[..., Output], trained_teacher: Path, tmp_path: Path, scores: str
) -> None:
    options = ("--scores", scores, "--start", "select", "--repair", "none")
    told = run("prune", trained_teacher, "--shape", "hidden_size=42", *options, "--out", tmp_path / "student")
    assert told.code == 0
    assert "score: importance" not in told.err


@pytest.mark.parametrize(
    "options",
    [("--shape", "hidden_size=42,drop_layers=1,3"), ("--shape", "hidden_size=42", "--drop-layers", "1,3-3")],
)
def test_layers_to_drop_are_named(
    run: Callable[..., Output], trained_teacher: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    out = tmp_path / "student"
    told = run("prune", trained_teacher, *options, "--scores", "random", "--out", out, "--json").json()
    assert (told["shape"]["num_hidden_layers"], told["shape"]["hidden_size"]) == (3, 42)
    assert json.loads((out / "lineage.json").read_text())["kept_layers"] == [0, 2, 4]


def test_layers_leave_by_the_criterion_that_is_set(
    run: Callable[..., Output], trained_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    out, depth = tmp_path / "student", ("importance.depth.criterion=kl", "importance.depth.mode=block")
    options = [option for setting in depth for option in ("--set", setting)]
    shape = ("--shape", "num_hidden_layers=3")
    told = run("prune", trained_teacher, *shape, "--data", text_file, *SHORT_TEXT, *options, "--out", out)
    assert told.code == 0, told.err
    assert "depth: kl, block" in told.err
    assert json.loads((out / "lineage.json").read_text())["kept_layers"] in ([0, 1, 4], [0, 3, 4])


def test_a_size_is_pruned_to_as_well_as_a_shape(
    run: Callable[..., Output], trained_teacher: Path, tmp_path: Path
) -> None:
    told = run("prune", trained_teacher, "--size", "100k", "--scores", "random", "--out", tmp_path / "s", "--json")
    assert abs(told.json()["num_parameters"] / 100_000 - 1) <= 0.05


def test_families_and_spaces_are_listed(run: Callable[..., Output]) -> None:
    names = [line.split()[0] for line in run("ls", "families").out.splitlines()]
    assert names == sorted(names)
    assert {"llama", "gpt2", "qwen3_moe"} <= set(names)
    rows = {row["name"]: row for row in run("ls", "families", "--json").json()}
    assert rows["mixtral"]["shape_fields"][-1] == "num_experts"
    assert "smollm2-135m" in run("ls", "spaces").out


def test_evaluate_gives_the_perplexity_that_transformers_gives(
    run: Callable[..., Output], trained_teacher: Path, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from minitron_nas.execution.device import compute_dtype

    file = tmp_path / "text.txt"
    file.write_text("The result of the call is the value of the expression.")
    tokenizer = AutoTokenizer.from_pretrained(trained_teacher)
    ids = torch.tensor([[*tokenizer(file.read_text())["input_ids"], tokenizer.eos_token_id]])
    model = AutoModelForCausalLM.from_pretrained(trained_teacher, dtype=compute_dtype(torch.device("cpu")))
    with torch.no_grad():
        expected = model(input_ids=ids, labels=ids).loss.exp().item()
    result = run("evaluate", trained_teacher, "--text", file, "--json").json()
    assert result["perplexity"] == pytest.approx(expected, rel=5e-3)
    assert (result["num_tokens"], result["kl_nats"]) == (ids.shape[1], None)


def test_evaluate_reads_the_column_and_the_split_that_it_is_told(
    run: Callable[..., Output], trained_teacher: Path, tmp_path: Path
) -> None:
    table, plain = tmp_path / "rows.jsonl", tmp_path / "text.txt"
    table.write_text(json.dumps({"body": "The result of the call is a value."}))
    plain.write_text("The result of the call is a value.")
    told = run("evaluate", trained_teacher, "--text", table)
    assert (told.code, "rows.jsonl has no column 'text' but body; choose one with --set text.column=" in told.err) == (
        2,
        True,
    )
    split = tmp_path / "rows" / "test.jsonl"
    split.parent.mkdir()
    split.write_text(table.read_text())
    (split.parent / "train.jsonl").write_text(json.dumps({"body": "Another."}))
    body = ("--set", "text.column=body")
    read = [
        run("evaluate", trained_teacher, "--text", file, *options, "--json").json()
        for file, options in ((plain, ()), (table, body), (split.parent, (*body, "--set", "text.split=test")))
    ]
    assert read[0] == read[1] == read[2]


def test_without_json_a_result_is_told_in_words(
    run: Callable[..., Output], trained_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "student"
    told = run("prune", trained_teacher, "--shape", "hidden_size=42", "--data", text_file, "--out", out, *SHORT_TEXT)
    assert (
        told.out
        == f"{out}: l5-h42-f128-q6-k2, 121,422 parameters; reloaded through AutoModelForCausalLM, logits differ by 0\n"
    )
    assert "score: importance over" in told.err
    file = tmp_path / "text.txt"
    file.write_text("a")
    lines = run("evaluate", trained_teacher, "--text", file).out.splitlines()
    assert [line.split()[0] for line in lines] == ["loss_nats", "perplexity", "num_tokens", "num_parameters"]
    assert lines[2].split() == ["num_tokens", "2"]


def test_a_student_that_keeps_its_tower_is_told_with_what_it_loads_through(
    run: Callable[..., Output], wrapper: Callable[..., Path], tmp_path: Path
) -> None:
    teacher, out = wrapper("gemma3"), tmp_path / "student"
    asked = ("prune", teacher, "--shape", "intermediate_size=40", "--scores", "random", "--with-tower")
    told, counts = run(*asked, "--out", out).out, run(*asked, "--out", tmp_path / "other", "--json").json()
    in_text, in_all = counts["num_parameters"], counts["num_parameters"] + counts["num_tower_parameters"]
    assert in_all > in_text
    assert (
        f"{in_all:,} parameters, {in_text:,} of them in its text part; reloaded through AutoModelForImageTextToText"
        in told
    )
    shown = run("show", out, "--json").json()
    assert (shown["parameters_of_the_text_part"], shown["parameters_of_the_whole"]) == (in_text, in_all)
    assert shown["loads_through"] == "AutoModelForImageTextToText"


def test_bars_of_libraries_do_not_stand_between_our_lines(
    run: Callable[..., Output], trained_teacher: Path, tmp_path: Path
) -> None:
    from transformers.utils import logging

    logging.enable_progress_bar()  # as it is in a new process
    out = tmp_path / "student"
    told = run(
        *("prune", trained_teacher, "--shape", "hidden_size=42", "--scores", "random", "--out", out),
        *("--start", "select", "--repair", "none"),
    )
    assert told.code == 0
    assert "prune: " in told.err or "student: " in told.err
    assert "Loading weights" not in told.err
    assert "Writing model shards" not in told.err


@pytest.mark.slow
def test_a_command_of_its_own_says_on_stderr_what_is_ours_alone(trained_teacher: Path, tmp_path: Path) -> None:
    shape = ("--shape", "hidden_size=42", "--scores", "random", "--start", "select", "--repair", "none")
    command = [
        sys.executable,
        "-m",
        "minitron_nas",
        "prune",
        str(trained_teacher),
        *shape,
        "--out",
        str(tmp_path / "s"),
    ]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = told.stderr.splitlines()
    assert lines
    assert not [line for line in lines if not re.match(r"[a-z ]+: ", line)], told.stderr


# build and demo


def test_build_turns_its_arguments_into_a_plan(
    run: Callable[..., Output], planned: list[Any], text_file: Path, tmp_path: Path
) -> None:
    told = run(
        *("build", "owner/name", "--size", "8B", "--size", "4B", "--data", text_file, "--out", tmp_path / "run"),
        *("--set", "runner=local", "--set", "distillation.tokens=100M", "--json"),
    )
    ((plan, out),) = planned
    assert (plan.teacher, [*map(str, plan.sizes)], plan.data) == ("owner/name", ["8B", "4B"], str(text_file))
    assert (plan.runner.kind, plan.distillation.tokens, out) == ("local", 10**8, tmp_path / "run")
    result = told.json()
    assert [member["name"] for member in result["members"]] == ["teacher", "90k"]
    assert set(result["members"][0]) == {"name", "path", "num_parameters", "kl_nats", "perplexity"}
    assert result["report"] == str(tmp_path / "run" / "report.html")
    assert "a library says hello" in told.err


def test_build_takes_a_blend(
    run: Callable[..., Output], planned: list[Any], trained_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    data = ("--data", f"{text_file}=0.3", "--data", "owner/name=0.7,config=en")
    run("build", trained_teacher, "--size", "90k", *data, "--out", tmp_path / "run")
    ((plan, _),) = planned
    assert [source.model_dump(exclude_none=True) for source in plan.data] == [
        {"path": str(text_file), "weight": 0.3},
        {"path": "owner/name", "weight": 0.7, "config": "en"},
    ]


def test_build_reads_a_plan_and_overrides_it(run: Callable[..., Output], planned: list[Any], tmp_path: Path) -> None:
    file = tmp_path / "family.yaml"
    file.write_text(yaml.safe_dump({"teacher": "owner/name", "sizes": ["8B"], "data": "embedded"}))
    told = run("build", "--plan", file, "--out", tmp_path / "run", "--set", "sizes=[4B]")
    ((plan, _),) = planned
    assert plan.to_dict()["sizes"] == [4 * 10**9]
    lines = told.out.splitlines()
    assert len(lines) == 3
    assert "KL 0.2500 nats   perplexity 8.00" in lines[1]


def test_demo_builds_the_demo(
    run: Callable[..., Output],
    planned: list[Any],
    trained_teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from minitron_nas.models.checkpoint import open_checkpoint

    monkeypatch.setattr(
        "minitron_nas.pipeline.demo.demo_teacher",
        lambda out, progress: (open_checkpoint(trained_teacher), "owner/name"),
    )
    told = run("demo", "--out", tmp_path / "run", "--set", "seed=3", "--json")
    assert (planned[0][0].teacher, planned[0][0].seed) == ("owner/name", 3)
    assert told.json()["members"]


# report


def test_report_writes_the_page_of_a_run_that_has_only_begun(run: Callable[..., Output], tmp_path: Path) -> None:
    plan = make_plan({"teacher": "owner/name", "sizes": ["8B"], "data": "embedded"})
    teacher = {"source": "owner/name", "fingerprint": "0" * 16, "num_parameters": 10**10}
    RunFolder(tmp_path).write_plan(plan.to_dict(), {"versions": {"torch": "2"}, "teacher": teacher}, deciding)
    assert run("report", tmp_path, "--json").json() == {"report": str(tmp_path / "report.html")}
    assert run("report", tmp_path).out == f"{tmp_path / 'report.html'}\n"
    assert "owner/name" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_report_writes_several_runs_where_it_is_told_to(run: Callable[..., Output], tmp_path: Path) -> None:
    plan = make_plan({"teacher": "owner/name", "sizes": ["8B"], "data": "embedded"})
    for name in ("one", "two"):
        folder = RunFolder(tmp_path / name)
        folder.path.mkdir()
        folder.write_plan(plan.to_dict(), {"versions": {}, "teacher": {"source": name}}, deciding)
    both = tmp_path / "both.html"
    assert run("report", tmp_path / "one", tmp_path / "two", "--out", both).out == f"{both}\n"
    assert "2 runs" in both.read_text(encoding="utf-8")


# Refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "build needs TEACHER, --size, --data (or --plan FILE)"),
        (("owner/name", "--size", "8B"), "build needs --data (or --plan FILE)"),
        (("owner/name", "--data", "embedded"), "build needs --size (or --plan FILE)"),
        (
            ("owner/name", "--plan", "family.yaml"),
            "--plan already says teacher, sizes and data; change them with --set",
        ),
        (("--plan", "nowhere.yaml"), "there is no plan nowhere.yaml"),
        (("owner/name", "--size", "huge", "--data", "embedded"), "the plan: sizes.0: 'huge' is not a count; write a"),
        (("o/n", "--size", "8B", "--data", "embedded", "--set", "seed"), "--set 'seed' is not of the form key=value"),
        (("o/n", "--size", "8B", "--data", "embedded", "--set", "a=[1"), "--set 'a=[1': the value is not YAML: while"),
        (("o/n", "--size", "8B", "--data", "no.txt"), "no file matches no.txt in "),
    ],
)
def test_a_build_that_cannot_be_is_refused_in_one_line_with_exit_code_2(
    run: Callable[..., Output], tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    told = run("build", *arguments, "--out", tmp_path / "run", "--json")
    assert (told.code, told.out) == (2, "")
    assert told.err.startswith(f"minitron-nas: {message}")
    assert told.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("prune", "owner/name", "--size", "4B", "--scores", "random", "--out", "x", "--set", "start=select"),
            "--set 'start=select': this command takes text.*, importance.*, space.* and seed; see its options for the",
        ),
        (
            ("correct", "owner/name", "--data", "x.txt", "--out", "x", "--set", "distillation.learning_rate=1"),
            "--set 'distillation.learning_rate=1': this command takes correct.*, text.* and seed; see its options",
        ),
        (("enumerate", "--space", "default", "--size", "4B"), "this space carries no source shape; name a teacher"),
        (("enumerate", "--space", "minitron-15b-to-4b", "--size", "4 apples"), "--size: '4 apples' is not a count"),
        (("prune", "x", "--shape", "a=1", "--out", "z", "--shape", "b=1"), "--shape is given 2 times; give it once"),
        (
            ("prune", "x", "--text-only", "--with-tower", "--out", "z"),
            "--text-only/--with-tower is given 2 times; give",
        ),
        (("evaluate", "nowhere", "--text", "x.txt"), "there is no teacher at 'nowhere'; give a folder"),
        (("prune", "x", "--shape", "wide", "--data", "y", "--out", "z"), "--shape 'wide' is not of the form"),
        (("prune", "x", "--drop-layers", "9-3", "--data", "y", "--out", "z"), "drop_layers '9-3' is neither a layer"),
        (("distill", "nowhere", "--teacher", "x", "--data", "embedded", "--out", "z"), "there is no teacher at 'now"),
        (("report", "nowhere", "--follow", "--out", "x"), "--follow writes nothing; leave out --out"),
        (("report", "nowhere", "--follow"), "there is no run folder nowhere; give the folder"),
        (("report", "nowhere"), "there is no run folder nowhere; give the folder that a build wrote to"),
    ],
)
def test_each_verb_refuses_in_one_line_with_exit_code_2(
    run: Callable[..., Output],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    told = run(*arguments)
    assert (told.code, told.out) == (2, "")
    *progress, line = told.err.splitlines()
    assert line.startswith(f"minitron-nas: {message}")
    assert all(said.startswith(("text: ", "student: ", "teacher: ")) for said in progress)
    assert list(tmp_path.iterdir()) == []


def test_a_setting_may_refine_another(
    run: Callable[..., Output], planned: list[tuple[FamilyPlan, Path]], tmp_path: Path
) -> None:
    sets = ("--set", "text={sequence_length: 64}", "--set", "text.bos=document")
    assert run("build", "o/n", "--size", "8B", "--data", "embedded", "--out", tmp_path / "run", *sets).code == 0
    ((plan, _),) = planned
    assert (plan.text.sequence_length, plan.text.bos) == (64, "document")


IN_ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize("place", ["argument", "folder"])
def test_a_name_that_the_locale_cannot_spell_is_told_with_what_to_set(tmp_path: Path, place: str) -> None:
    folder = tmp_path / "ünï"
    folder.mkdir()
    found = subprocess.run(
        [sys.executable, "-m", "minitron_nas", "show", str(folder) if place == "argument" else "model"],
        cwd=tmp_path if place == "argument" else folder,
        env={**os.environ, **IN_ASCII, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, filter(None, sys.path)))},
        capture_output=True,
        check=False,
        encoding="utf-8",
    )
    assert (found.returncode, found.stdout) == (2, "")
    told = f"this locale, whose encoding is ascii, cannot spell '{folder}'; set PYTHONUTF8=1 or another locale"
    assert found.stderr == f"minitron-nas: {told}\n"


def test_a_name_that_is_no_utf_8_is_told(run: Callable[..., Output]) -> None:
    told = run("show", os.fsdecode(b"r\xe9sum\xe9s"))
    assert (told.code, told.err) == (2, "minitron-nas: 'r\ufffdsum\ufffds' is no name in UTF-8; rename it\n")


def test_an_error_of_our_own_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr("minitron_nas.pipeline.listing.enumerate_size", broken)
    monkeypatch.setattr(sys, "argv", ["minitron-nas", "enumerate", "--space", "default", "--size", "4B"])
    with pytest.raises(ZeroDivisionError, match="a defect"):
        app.main()


def test_a_wrong_option_is_told_with_the_usage(run: Callable[..., Output]) -> None:
    told = run("evaluate", "model", "--txt", "x")
    assert (told.code, told.out) == (2, "")
    assert "No such option" in told.err
    assert "--txt" in told.err


def test_a_signal_ends_the_command_with_its_code_and_words(
    run: Callable[..., Output], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise PreemptedError("the same command goes on from checkpoint-3", signal.SIGHUP)

    monkeypatch.setattr("minitron_nas.pipeline.steps.distill.distill", stop)
    told = []
    monkeypatch.setattr(entry, "answer_signals", lambda: None)
    monkeypatch.setattr(entry, "leave", told.append)
    monkeypatch.setattr(
        sys, "argv", ["minitron-nas", "distill", "student", "--teacher", "t", "--data", "embedded", "--out", "out"]
    )
    entry.main()
    assert [(stopped.code, str(stopped)) for stopped in told] == [
        (129, "stopped by SIGHUP; the same command goes on from checkpoint-3")
    ]


def test_the_version_is_told_on_stdout(run: Callable[..., Output]) -> None:
    told = run("--version")
    assert (told.code, told.out, told.err) == (0, f"minitron-nas {version('minitron-nas')}\n", "")


def test_the_help_says_what_the_command_is_for(run: Callable[..., Output]) -> None:
    assert "Build a family of smaller models from one trained language model." in run("--help").out
    assert run("-h").out == run("--help").out
    verbs = run("--help").out.partition("Commands:\n")[2]
    assert "..." not in verbs  # each says in a line what it is for
    assert verbs.split()[0] == "demo"
    assert run("show", "-h").out == run("show", "--help").out


def test_the_page_of_the_commands_has_every_verb_in_both_of_its_tables(run: Callable[..., Output]) -> None:
    verbs = re.findall(r"^  (\w+)  ", run("--help").out.partition("Commands:\n")[2], re.MULTILINE)
    page = Path(app.__file__).with_name("README.md").read_text(encoding="utf-8")
    does, files = (
        page.partition(head)[2].partition("\n\n")[0] for head in ("| verb | does |", "| file | what it does |")
    )
    assert len(verbs) > 15
    for table in (does, files):
        assert [verb for verb in verbs if f"`{verb}`" not in table] == []


def test_shapes_that_the_page_of_the_commands_lists_are_there(run: Callable[..., Output]) -> None:
    page = Path(app.__file__).with_name("README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^minitron-nas (enumerate .*)$", page, re.MULTILINE)
    alone = [command.split() for command in commands if "TEACHER" not in command]
    assert len(alone) >= 2
    for command in alone:
        assert run(*command).code == 0, command


@pytest.mark.parametrize(
    "verb",
    [
        *("build", "correct", "demo", "distill", "doctor", "enumerate", "evaluate", "init", "latency", "ls", "plan"),
        *("align", "check-family", "draft-family", "prune", "report", "score"),
    ],
)
def test_every_verb_explains_itself_on_stdout(run: Callable[..., Output], verb: str) -> None:
    told = run(verb, "--help")
    assert (told.code, told.err) == (0, "")
    assert f"minitron-nas {verb}" in told.out
    assert "--json" in told.out


@pytest.mark.parametrize("needed", [False, True])
def test_doctor_exits_with_one_only_where_something_that_is_needed_is_missing(
    run: Callable[..., Output], monkeypatch: pytest.MonkeyPatch, needed: bool
) -> None:
    findings = [Finding("memory", True, True, "8 GB free"), Finding("ray", False, needed, "no answer", "pip install")]
    monkeypatch.setattr("minitron_nas.pipeline.doctor.examine", lambda plan: iter(findings))
    told = run("doctor")
    assert told.code == int(needed)
    assert [" ".join(line.split()) for line in told.out.splitlines()] == [
        "ok memory 8 GB free",
        f"{'missing' if needed else 'none'} ray no answer; to mend it: pip install",
    ]
    told = run("doctor", "--json")
    assert (told.code, json.loads(told.out)) == (int(needed), [asdict(finding) for finding in findings])


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(13, "Permission denied", "/x/report.html"), "/x/report.html: Permission denied; mend that"),
        (OSError(30, "Read-only file system", "/x"), "/x: Read-only file system; mend that"),
        (FileNotFoundError(2, "No such file or directory", "/x"), "/x: No such file or directory; mend that"),
        (ConnectionResetError(104, "Connection reset by peer"), "Connection reset by peer; mend that"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "I/O error: No space left on device"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_the_system_refuses_is_one_line_and_exit_code_2(
    run: Callable[..., Output], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, line: str
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("minitron_nas.reporting.html.write_report", refuse)
    output = run("report", tmp_path)
    assert (output.code, output.out) == (2, "")
    assert output.err.startswith(f"minitron-nas: {line}")
    assert output.err.count("\n") == 1


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ValueError("a defect")

    monkeypatch.setattr("minitron_nas.reporting.html.write_report", broken)
    monkeypatch.setattr(sys, "argv", ["minitron-nas", "report", str(tmp_path)])
    with pytest.raises(ValueError, match="a defect"):
        app.main()
