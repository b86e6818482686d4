import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertForMaskedLM, BloomConfig, BloomForCausalLM

from minitron_nas.errors import (
    CheckpointError,
    DataError,
    DiskSpaceError,
    InvalidArchitectureError,
    MinitronNasError,
    PlanError,
    RunFolderError,
    SpaceError,
    TeacherNotFoundError,
    UnknownFamilyError,
)
from minitron_nas.families.catalog import count_parameters
from minitron_nas.importance.scores import load_calibration
from minitron_nas.pipeline import build as building
from minitron_nas.pipeline.build import build_family
from minitron_nas.pipeline.display import ConsoleDisplay, Quiet
from minitron_nas.pipeline.family import Family
from minitron_nas.pruning.order import PruningOrder
from minitron_nas.storage.run_folder import RunFolder
from minitron_nas.storage.schemas import CANDIDATES, CURVES, EVALUATIONS, EXCLUSIONS, SCORES, TRIALS
from minitron_nas.testing import rewrite_tensors, tiny_checkpoint, tiny_tokenizer
from minitron_nas.text.tokens import PackedTokens

SIZES = {"90k": 90_000, "60k": 60_000}
PLAIN = ("start=select", "repair=none")
"""A start that leaves something to learn within a few steps."""

STUDENT_FILES = (
    "README.md",
    "config.json",
    "generation_config.json",
    "lineage.json",
    "model.safetensors",
    "proof.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
ROOT_FILES = (
    "candidates.parquet",
    "correlations.parquet",
    "curves.parquet",
    "evaluations.parquet",
    "exclusions.parquet",
    "ledger.jsonl",
    "plan.yaml",
    "report.html",
    "study.journal",
    "trials.parquet",
)


def stages(run: Path) -> list[str]:
    return [json.loads(line)["stage"] for line in (run / "ledger.jsonl").read_text().splitlines()]


def lineage(run: Path, size: str) -> dict[str, Any]:
    return json.loads((run / "students" / size / "lineage.json").read_text())


def row(family: Family, model: str) -> dict[str, Any]:
    (found,) = family.evaluations[family.evaluations["model"] == model].to_dict("records")
    return found


def left_behind(folder: Path) -> set[str]:
    """What a refusal left in a folder; a lock file says nothing."""
    return {path.name for path in folder.rglob("*")} - {".lock"} if folder.exists() else set()


# What a run leaves


@pytest.mark.parametrize("name", ROOT_FILES)
def test_a_run_leaves_every_file_of_its_kind(family: Family, name: str) -> None:
    assert (family.path / name).stat().st_size > 0


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", STUDENT_FILES)
def test_a_student_folder_is_complete(family: Family, size: str, name: str) -> None:
    assert (family.path / "students" / size / name).stat().st_size > 0


def test_a_finished_run_keeps_neither_checkpoints_nor_half_written_files(family: Family) -> None:
    names = [path.name for path in family.path.rglob("*")]
    assert not [name for name in names if "partial" in name or name.startswith("checkpoint")]


@pytest.mark.parametrize("table", [CANDIDATES, CURVES, EVALUATIONS, EXCLUSIONS, TRIALS], ids=lambda t: t.file_name)
def test_a_table_has_its_schema_with_descriptions(family: Family, table: Any) -> None:
    assert pq.read_schema(family.path / table.file_name).equals(table.arrow_schema(), check_metadata=True)


@pytest.mark.parametrize("source", ["teacher", "90k"])
def test_the_scores_of_each_source_have_their_schema(family: Family, source: str) -> None:
    file = family.path / "importance" / source / SCORES.file_name
    assert pq.read_schema(file).equals(SCORES.arrow_schema(), check_metadata=True)


def test_the_report_is_one_page_that_names_every_member(family: Family) -> None:
    page = family.report.read_text(encoding="utf-8")
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert all(member.name in page for member in family.members)


def test_the_family_lists_the_teacher_and_its_students_largest_first(family: Family) -> None:
    assert [member.name for member in family.members] == ["90k", "60k"]
    assert (family.teacher.name, family.teacher.num_parameters, family.teacher.kl_nats) == ("teacher", 138_768, 0.0)
    assert family.members[0].path == family.path / "students" / "90k"


# What the students are


@pytest.mark.parametrize("size", SIZES)
def test_a_student_is_within_the_tolerance_of_its_size(family: Family, size: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(family.path / "students" / size)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    assert abs(num_parameters - SIZES[size]) <= 0.05 * SIZES[size]
    assert num_parameters == row(family, size)["num_parameters"] == count_parameters(model.config)


@pytest.mark.parametrize("size", SIZES)
def test_a_student_reproduces_the_logits_of_its_proof_exactly(family: Family, size: str) -> None:
    folder = family.path / "students" / size
    proof = json.loads((folder / "proof.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    assert str(model.dtype) == f"torch.{proof['dtype']}"
    with torch.no_grad():
        logits = model(torch.tensor(proof["input_ids"]), use_cache=False).logits[0].float()
    values, ids = logits.topk(8, dim=-1)
    assert values.tolist() == proof["top_logits"]
    assert ids.tolist() == proof["top_logit_ids"]


@pytest.mark.parametrize("size", SIZES)
def test_a_student_generates_text_with_the_teachers_tokenizer(family: Family, trained_teacher: Path, size: str) -> None:
    folder = family.path / "students" / size
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(trained_teacher).chat_template
    prompt = tokenizer("The value of the", return_tensors="pt")
    output = AutoModelForCausalLM.from_pretrained(folder).generate(**prompt, max_new_tokens=8, do_sample=False)
    assert tokenizer.decode(output[0]).startswith("The value of the")
    assert output.shape[1] > prompt["input_ids"].shape[1]


@pytest.mark.parametrize("size", SIZES)
def test_a_student_is_closer_to_the_teacher_than_untrained_and_far_closer_than_from_a_random_start(
    family: Family, size: str
) -> None:
    student, random_start = row(family, size), row(family, f"{size}-random-weights")
    assert student["kl_nats"] < 0.95 * student["untrained_kl_nats"]
    assert student["kl_nats"] < 0.5 * random_start["kl_nats"]
    assert student["tokens_trained"] == random_start["tokens_trained"] > 0


@pytest.mark.slow
def test_how_work_is_done_may_change_and_repeats_nothing(
    family: Family, trained_teacher: Path, text_file: Path, tiny_settings: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(family.path, run)
    before = stages(run)
    other = ("distillation.micro_batch_sequences=1", "distillation.gradient_checkpointing=true", "runner=ray")
    build_family(trained_teacher, ["90k", "60k"], text_file, run, overrides=other, display=Quiet(), **tiny_settings)
    assert stages(run) == before
    assert yaml.safe_load((run / "plan.yaml").read_text())["plan"]["distillation"]["gradient_checkpointing"] is True


def test_candidates_are_screened_and_students_trained_from_the_better_start(
    build: Callable[..., Family], family: Family, tmp_path: Path
) -> None:
    plain = build(tmp_path / "run", *PLAIN)
    better = family.candidates[family.candidates["size"] == "90k"].set_index("candidate")["screen_kl_nats"]
    screened = plain.candidates.set_index("candidate")["screen_kl_nats"].dropna()
    assert len(screened) > 1
    assert (better[screened.index] < screened).all()
    prepared = RunFolder(family.path).prepared("teacher")
    assert {path.name for path in prepared.iterdir()} >= {"rotation.safetensors", "moments"}
    assert {path.name for path in RunFolder(plain.path).prepared("teacher").iterdir()} == {
        "order.safetensors",
        "settings.json",
    }
    assert row(family, "90k")["untrained_kl_nats"] < 0.5 * row(plain, "90k")["untrained_kl_nats"]


@pytest.mark.slow
def test_layers_leave_in_blocks_where_the_plan_says_so_those_of_the_depth_only_baseline_too(
    build: Callable[..., Family], tmp_path: Path
) -> None:
    depth = ("criterion=kl", "mode=block", "num_sequences=4")
    run = build(tmp_path / "run", "baselines=true", *(f"importance.depth.{each}" for each in depth)).path
    order = PruningOrder.load(RunFolder(run).prepared("teacher") / "order.safetensors")
    baseline = json.loads((run / "baselines" / "90k-depth-only" / "lineage.json").read_text())
    count = baseline["architecture"]["num_hidden_layers"]
    assert count == 3
    assert {row + 1 for row, known in enumerate(order.layers.any(dim=1).tolist()) if known} == {3, 4, 5}
    assert baseline["kept_layers"] in ([0, 1, 4], [0, 3, 4])
    text = load_calibration(RunFolder(run).importance("teacher"))
    assert text.fingerprint == PackedTokens.load(run / "tokens" / "calibration.safetensors").fingerprint


@pytest.mark.parametrize("size", SIZES)
def test_the_random_weights_have_the_students_shape_and_the_other_one_fewer_layers_only(
    family: Family, size: str
) -> None:
    shape = ["num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"]
    student, depth, random_start = (
        row(family, name) for name in (size, f"{size}-depth-only", f"{size}-random-weights")
    )
    source = row(family, "teacher" if size == "90k" else "90k")
    assert [random_start[name] for name in shape] == [student[name] for name in shape]
    assert [depth[name] for name in shape[1:]] == [source[name] for name in shape[1:]]
    assert depth["num_hidden_layers"] < source["num_hidden_layers"]


@pytest.mark.slow
def test_the_choice_is_held_against_other_shapes_of_its_pool_cut_and_trained_as_it_was(
    build: Callable[..., Family], tmp_path: Path
) -> None:
    wanted = "baselines=[depth_only,random_shape,largest_shape]"
    of_two_widths = "space.axes.hidden_size.values=[36, 42]"  # the largest has fewer layers, the best has not
    run = build(tmp_path / "run", wanted, of_two_widths, "search.max_screened=4", "seed=2")
    pool = run.candidates.set_index("candidate")
    models = run.evaluations.set_index("role")
    assert set(models.index) == {"teacher", "student", "depth_only", "random_shape", "largest_shape"}
    for role, name in (("random_shape", "random"), ("largest_shape", "largest")):
        drawn = pool[pool["reference"] == name].iloc[0]
        assert models.loc[role, "num_parameters"] == drawn["num_parameters"]
        # Nothing is repaired; where products are in bfloat16, the two are rounded otherwise.
        assert models.loc[role, "untrained_kl_nats"] == pytest.approx(drawn["screen_kl_nats"], rel=1e-2)
        assert models.loc[role, "tokens_trained"] == models.loc["student", "tokens_trained"]


@pytest.mark.slow
def test_a_shape_is_not_trained_twice_as_its_own_baseline(
    build: Callable[..., Family], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shapes = {"num_hidden_layers": {"values": [5]}, "hidden_size": {"values": [36]}}
    space = {"axes": shapes, "tolerance": 0.2}
    run = build(tmp_path / "run", "baselines=[random_shape,largest_shape]", space=space, display=ConsoleDisplay())
    assert len(run.candidates) == 1
    assert list(run.evaluations["role"]) == ["teacher", "student"]
    told = capsys.readouterr().err.replace("\n", " ")
    assert "90k: random-shape baseline is not trained: its shape is that of the student" in told
    assert "90k: largest-shape baseline is not trained: its shape is that of the student" in told


def test_the_second_size_is_pruned_from_the_first_student(family: Family) -> None:
    first, second = lineage(family.path, "90k"), lineage(family.path, "60k")
    assert first["source"] == {"name": "teacher", "fingerprint": first["teacher"]["fingerprint"]}
    assert second["source"]["name"] == "90k"
    assert second["source_architecture"] == first["architecture"]
    assert second["teacher"] == first["teacher"]
    assert second["kept_layers"][0] == 0
    assert second["kept_layers"][-1] == first["architecture"]["num_hidden_layers"] - 1


@pytest.mark.parametrize("size", SIZES)
def test_the_student_has_the_shape_that_won_the_tournament(family: Family, size: str) -> None:
    trials = family.trials[family.trials["size"] == size]
    last = trials[trials["rung"] == trials["rung"].max()].sort_values("kl_nats")
    assert last["tokens"].min() > 0
    assert list(last["promoted"]) == [True] + [False] * (len(last) - 1)
    candidates = family.candidates[family.candidates["size"] == size]
    (chosen,) = candidates[candidates["outcome"] == "chosen"].to_dict("records")
    assert chosen["candidate"] == last.iloc[0]["candidate"]
    assert chosen["num_parameters"] == row(family, size)["num_parameters"]


@pytest.mark.parametrize("size", SIZES)
def test_a_student_begins_as_the_trial_that_chose_it_did_and_is_no_worse(family: Family, size: str) -> None:
    chosen = family.candidates[(family.candidates["size"] == size) & (family.candidates["outcome"] == "chosen")]
    trials = family.trials[family.trials["size"] == size]
    starts = trials[trials["candidate"] == chosen["candidate"].item()]["start_kl_nats"]
    assert set(starts) == {row(family, size)["untrained_kl_nats"]}
    assert row(family, size)["kl_nats"] <= 1.01 * starts.iloc[0]  # the student's weights are rounded


@pytest.mark.parametrize("size", SIZES)
def test_trials_on_one_device_begin_one_after_the_other(family: Family, size: str) -> None:
    trials = family.trials[family.trials["size"] == size].sort_values("began_seconds")
    ends = trials["began_seconds"] + trials["seconds"]
    assert (trials["began_seconds"].iloc[1:].to_numpy() >= ends.iloc[:-1].to_numpy() - 0.05).all()


def test_the_curves_begin_untrained_and_end_with_what_is_evaluated(family: Family) -> None:
    curve = family.curves[(family.curves["model"] == "60k") & (family.curves["split"] == "validation")]
    curve, measured = curve.sort_values("tokens"), row(family, "60k")
    assert curve["kl_nats"].iloc[0] == measured["untrained_kl_nats"]
    exported = curve[curve["tokens"] == measured["exported_tokens"]]
    assert exported["kl_nats"].item() == curve["kl_nats"].min() == pytest.approx(measured["kl_nats"], rel=0.02)
    assert curve["tokens"].iloc[-1] == measured["tokens_trained"]


# Going on with a run


@pytest.mark.slow
def test_a_finished_run_that_was_moved_is_finished_still(
    family: Family, tmp_path: Path, trained_teacher: Path, text_file: Path, tiny_settings: dict[str, Any]
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(family.path, moved)
    before = stages(moved)
    again = build_family(trained_teacher, ["90k", "60k"], text_file, moved, display=Quiet(), **tiny_settings)
    assert stages(moved) == before
    assert again.members[1].path == moved / "students" / "60k"


@pytest.mark.slow
def test_a_student_that_was_deleted_is_made_again_byte_for_byte(
    family: Family, tmp_path: Path, trained_teacher: Path, text_file: Path, tiny_settings: dict[str, Any]
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(family.path, moved)
    shutil.rmtree(moved / "students" / "60k")
    build_family(trained_teacher, ["90k", "60k"], text_file, moved, display=Quiet(), **tiny_settings)
    assert stages(moved)[len(stages(family.path)) :] == ["60k distil"]
    weights = Path("students/60k/model.safetensors")
    assert (moved / weights).read_bytes() == (family.path / weights).read_bytes()


def test_the_plan_in_the_folder_can_be_run_again(family: Family) -> None:
    content = yaml.safe_load((family.path / "plan.yaml").read_text())
    assert content["teacher"]["num_parameters"] == 138_768
    assert content["devices"]["number"] >= 1
    assert Path(content["plan"]["teacher"]).is_dir()
    assert Path(content["plan"]["data"]).is_file()


def test_what_the_teachers_card_says_of_its_licence_is_in_the_plan_and_in_the_students_card(
    build: Callable[..., Family], trained_teacher: Path, tmp_path: Path
) -> None:
    teacher = shutil.copytree(trained_teacher, tmp_path / "teacher")
    terms = {"license": "other", "license_name": "mine-1.0", "license_link": "LICENSE", "language": ["en"]}
    (teacher / "README.md").write_text(f"---\n{yaml.safe_dump(terms)}---\n\n# A teacher\n")
    (teacher / "LICENSE").write_text("the terms")
    family = build(tmp_path / "run", teacher=teacher)
    assert yaml.safe_load((family.path / "plan.yaml").read_text())["teacher"]["card"] == terms
    student = family.members[0].path
    head = yaml.safe_load((student / "README.md").read_text().split("---\n")[1])
    assert {key: head[key] for key in terms} == terms
    assert (student / "LICENSE").read_text() == "the terms"
    build(tmp_path / "run", teacher=teacher, card={"license": "mit"})  # which decides nothing
    head = yaml.safe_load((student / "README.md").read_text().split("---\n")[1])
    assert (head["license"], head.get("license_name"), head["language"]) == ("mit", None, ["en"])


def test_a_students_card_is_there_as_soon_as_the_student_is(
    build: Callable[..., Family], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = building.evaluate_member

    def die(run: Any, member: Any, *arguments: Any) -> Any:
        if member.name == "90k":
            raise KeyboardInterrupt
        return measure(run, member, *arguments)

    monkeypatch.setattr(building, "evaluate_member", die)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "run")
    card = (tmp_path / "run" / "students" / "90k" / "README.md").read_text()
    assert "Not evaluated yet." in card
    assert "by how much was not measured" in card
    assert "model-index" not in card


# Other ways of saying what to build


@pytest.mark.slow
def test_each_student_can_learn_from_the_one_before(build: Callable[..., Family], tmp_path: Path) -> None:
    changes = ("kd_teacher=previous", "distillation.tokens=6k", *PLAIN)
    family = build(tmp_path / "run", *changes, sizes=["60k", "90k"])
    signals = {path.name for path in (tmp_path / "run" / "signals").iterdir()}
    prints = {lineage(family.path, size)["source"]["fingerprint"] for size in SIZES}
    assert signals == prints
    for size in SIZES:
        assert row(family, size)["kl_nats"] < 0.7 * row(family, size)["untrained_kl_nats"]


def test_a_live_model_and_a_dataset_are_taken_as_they_are(
    build: Callable[..., Family], tmp_path: Path, trained_teacher: Path, text_file: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(trained_teacher)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pair = (model, AutoTokenizer.from_pretrained(trained_teacher))
    texts = [json.loads(line)["text"] for line in text_file.read_text(encoding="utf-8").splitlines()]
    data = datasets.Dataset.from_dict({"text": texts})
    family = build(tmp_path / "run", teacher=pair, data=data)
    assert [member.name for member in family.members] == ["90k"]
    assert family.teacher.path == tmp_path / "run" / "teacher"
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    done = stages(family.path)
    build(tmp_path / "run", teacher=pair, data=data)
    assert stages(family.path) == done


@pytest.mark.slow
def test_a_teacher_beside_the_student_needs_no_cache_of_the_training_text(
    build: Callable[..., Family], tmp_path: Path
) -> None:
    family = build(tmp_path / "run", "distillation.teacher_signal=online", *PLAIN)
    (signals,) = (tmp_path / "run" / "signals").iterdir()
    assert sorted(path.name for path in signals.iterdir()) == ["trials", "validation"]
    assert row(family, "90k")["kl_nats"] < row(family, "90k")["untrained_kl_nats"]


# Refusals, all before any work


@pytest.mark.parametrize("size", ["138768", "1M"])
def test_a_size_that_is_not_below_the_teachers_is_refused(
    build: Callable[..., Family], tmp_path: Path, size: str
) -> None:
    with pytest.raises(SpaceError, match=r"is not below the source's 138,768 parameters; choose a smaller size"):
        build(tmp_path / "run", sizes=["90k", size])
    assert not left_behind(tmp_path / "run")


@pytest.mark.parametrize("size", ["1M", 1e6, 1_000_000])
def test_one_size_is_a_list_of_one(build: Callable[..., Family], tmp_path: Path, size: float | str) -> None:
    with pytest.raises(SpaceError, match="size 1M is not below the source's 138,768 parameters"):
        build(tmp_path / "run", sizes=size)


def test_a_size_without_candidates_names_the_nearest_sizes_and_the_rule_that_blocks(
    build: Callable[..., Family], tmp_path: Path
) -> None:
    message = (
        r"no shape has between 89,910 and 90,090 parameters \(size 90k\); nearest reachable: 86,796 and 91,182; "
        r"left out by: .*size_window \(41 shapes\); widen the space's axes, its tolerance, or choose a nearby size"
    )
    with pytest.raises(SpaceError, match=message):
        build(tmp_path / "run", "space.tolerance=0.001")
    assert not left_behind(tmp_path / "run")


def test_an_unknown_family_lists_the_known_ones(build: Callable[..., Family], tmp_path: Path) -> None:
    teacher = BloomForCausalLM(BloomConfig(hidden_size=8, n_layer=1, n_head=1, vocab_size=320))
    teacher.save_pretrained(tmp_path / "teacher")
    tiny_tokenizer().save_pretrained(tmp_path / "teacher")
    message = r"model type 'bloom' is no known family; .*ls families` .*draft-family MODEL` prints .* how to add one"
    with pytest.raises(UnknownFamilyError, match=message):
        build(tmp_path / "run", teacher=tmp_path / "teacher")
    assert not left_behind(tmp_path / "run")


def test_a_teacher_that_is_no_causal_model_is_refused(build: Callable[..., Family], tmp_path: Path) -> None:
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=320)
    BertForMaskedLM(config).save_pretrained(tmp_path / "teacher")
    with pytest.raises(CheckpointError, match=r"holds a BertForMaskedLM, which is no causal language model"):
        build(tmp_path / "run", teacher=tmp_path / "teacher")
    assert not left_behind(tmp_path / "run")


def test_a_teacher_with_nan_is_refused_by_the_name_of_the_tensor(build: Callable[..., Family], tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "teacher", "llama", tied=True)
    rewrite_tensors(folder, {"model.norm.weight": torch.full((48,), float("nan"))})
    with pytest.raises(CheckpointError, match=r"tensor 'model.norm.weight' holds NaN or infinity"):
        build(tmp_path / "run", teacher=folder)
    assert not left_behind(tmp_path / "run")


def test_a_tokenizer_larger_than_the_vocabulary_is_refused_with_both_numbers(
    build: Callable[..., Family], tmp_path: Path
) -> None:
    folder = tiny_checkpoint(tmp_path / "teacher", "llama", vocab_size=300)
    tiny_tokenizer(330).save_pretrained(folder)
    with pytest.raises(CheckpointError, match=r"the tokenizer has 330 ordinary ids, but vocab_size=300"):
        build(tmp_path / "run", teacher=folder)
    assert not left_behind(tmp_path / "run")


def test_a_teacher_that_is_nowhere_is_refused(build: Callable[..., Family], tmp_path: Path) -> None:
    with pytest.raises(TeacherNotFoundError, match=r"there is no teacher at '.*nowhere'; give a folder"):
        build(tmp_path / "run", teacher=str(tmp_path / "nowhere"))
    assert not left_behind(tmp_path / "run")


def test_a_protected_layer_that_does_not_exist_is_refused(build: Callable[..., Family], tmp_path: Path) -> None:
    message = r"protected layer 5 does not exist; the source has 5 layers \(0 to 4, or -5 to -1 from the end\)"
    with pytest.raises(InvalidArchitectureError, match=message):
        build(tmp_path / "run", "space.protected_layers=[0, 5]")
    assert not left_behind(tmp_path / "run")


def test_too_little_disk_is_refused_with_both_numbers(
    build: Callable[..., Family], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil._ntuple_diskusage(total=10**9, used=10**9 - 1000, free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    message = r"this run \(1 finalists and 1 students\) needs [\d.]+ MB in .*run, which has 1 kB free"
    with pytest.raises(DiskSpaceError, match=message):
        build(tmp_path / "run")
    assert not left_behind(tmp_path / "run")


def test_an_unknown_key_names_the_nearest_one(build: Callable[..., Family], tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"unknown key 'distilation'; did you mean 'distillation'\?"):
        build(tmp_path / "run", distilation={"tokens": "1k"})
    assert not left_behind(tmp_path / "run")


# Refusals of text and folders


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"no file matches .*text\.txt; give an existing file, glob, folder or a hub dataset's name"),
        ("", r"text\.txt is empty; give text to calibrate and train on"),
        (
            "the tenth\n\n" * 99,
            r"too short: 793 tokens found, .* about 2,165 are needed \(768 for training\)",
        ),
    ],
    ids=["missing", "empty", "short"],
)
def test_text_that_will_not_do_is_refused_and_better_text_can_take_its_place(
    build: Callable[..., Family],
    tmp_path: Path,
    text_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: str | None,
    message: str,
) -> None:
    data = tmp_path / "text.txt"
    if content is not None:
        data.write_text(content)
    with pytest.raises(DataError, match=message):
        build(tmp_path / "run", data=data)
    assert left_behind(tmp_path / "run") <= {"plan.yaml"}
    monkeypatch.setattr("minitron_nas.pipeline.build._build", lambda *stages: None)
    build(tmp_path / "run", data=text_file)
    assert yaml.safe_load((tmp_path / "run" / "plan.yaml").read_text())["plan"]["data"] == str(text_file)


def test_a_folder_of_another_run_is_refused_with_the_difference(
    build: Callable[..., Family], family: Family, tmp_path: Path
) -> None:
    shutil.copytree(family.path, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    message = (
        r"was begun with another plan: .*distillation\.learning_rate was 0\.0005 and is now 0\.5; .*choose another"
    )
    with pytest.raises(RunFolderError, match=message):
        build(tmp_path / "run", "distillation.learning_rate=0.5")
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_another_teacher_does_not_touch_the_live_teacher_of_a_run(
    build: Callable[..., Family], tmp_path: Path, trained_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(trained_teacher)
    with monkeypatch.context() as patch:
        patch.setattr("minitron_nas.pipeline.build._build", lambda *stages: None)
        build(tmp_path / "run", teacher=(AutoModelForCausalLM.from_pretrained(trained_teacher), tokenizer))
    assert stages(tmp_path / "run") == ["text"]
    weights = tmp_path / "run" / "teacher" / "model.safetensors"
    before = weights.read_bytes()
    other = AutoModelForCausalLM.from_pretrained(trained_teacher)
    with torch.no_grad():
        other.model.norm.weight.mul_(1.5)
    with pytest.raises(RunFolderError, match=r"teacher fingerprint was '\w{16}' and is now '\w{16}'"):
        build(tmp_path / "run", teacher=(other, tokenizer))
    assert weights.read_bytes() == before


def test_a_live_teacher_that_is_refused_leaves_nothing(
    build: Callable[..., Family], tmp_path: Path, trained_teacher: Path
) -> None:
    pair = (AutoModelForCausalLM.from_pretrained(trained_teacher), AutoTokenizer.from_pretrained(trained_teacher))
    with pytest.raises(SpaceError, match="is not below"):
        build(tmp_path / "run", teacher=pair, sizes=["1M"])
    assert not left_behind(tmp_path / "run")


def test_a_live_model_without_its_tokenizer_is_refused(
    build: Callable[..., Family], tmp_path: Path, trained_teacher: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(trained_teacher)
    message = r"a LlamaForCausalLM is no source of a model; give .* as \(model, tokenizer\), or a folder"
    with pytest.raises(TeacherNotFoundError, match=message):
        build(tmp_path / "run", teacher=model)


def test_a_folder_without_a_run_is_no_family(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"there is no run in .*absent: it has no plan\.yaml; give the out folder"):
        Family(tmp_path / "absent")


def test_a_folder_with_foreign_files_is_refused_and_stays_as_it_was(
    build: Callable[..., Family], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("mine")
    with pytest.raises(RunFolderError, match=r"holds other files \(thesis\.tex\) but no plan\.yaml of a run"):
        build(tmp_path / "run")
    assert left_behind(tmp_path / "run") == {"thesis.tex"}


def test_a_file_in_the_place_of_the_folder_is_refused(build: Callable[..., Family], tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(RunFolderError, match=r"run is a file; choose another --out"):
        build(tmp_path / "run")


def test_a_folder_in_use_is_refused(build: Callable[..., Family], family: Family, tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run").lock(), pytest.raises(RunFolderError, match=r"is in use by process \d+ "):
        build(tmp_path / "run")


def test_every_refusal_is_a_minitron_nas_error(build: Callable[..., Family], tmp_path: Path) -> None:
    with pytest.raises(MinitronNasError):
        build(tmp_path / "run", sizes=["nine"])
