"""Families whose members keep what looks at pictures: `text_only=false`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForImageTextToText

from minitron_nas.alignment.settings import AlignmentSettings
from minitron_nas.distillation.settings import DistillationSettings
from minitron_nas.errors import PlanError, RunFolderError
from minitron_nas.models.loading import load_for_training
from minitron_nas.models.tower import tower_tensors
from minitron_nas.pipeline.display import Quiet
from minitron_nas.pipeline.dry_run import dry_run
from minitron_nas.pipeline.family import Family
from minitron_nas.pipeline.plan import deciding, make_plan
from minitron_nas.pipeline.show import show
from minitron_nas.pipeline.steps.align import align
from minitron_nas.pipeline.steps.distill import distill
from minitron_nas.pipeline.steps.prune import prune
from minitron_nas.text.settings import TextSettings

IDS = torch.arange(10, 40)[None]


class Noting(Quiet):
    """Keeps what is noted."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def run(build: Callable[..., Family], wrapper: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A family of two sizes of a tiny Qwen3-VL."""
    out = tmp_path_factory.mktemp("towers") / "run"
    build(out, teacher=wrapper("qwen3_vl"), sizes=["85k", "75k"], text_only=False, space="default")
    return out


def tower(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if "visual" in name}


def test_members_are_whole_models_whose_text_part_was_pruned_and_whose_tower_is_the_teachers(
    run: Path, wrapper: Callable[..., Path]
) -> None:
    teacher = AutoModelForImageTextToText.from_pretrained(wrapper("qwen3_vl"))
    for label, parameters in (("85k", 85_000), ("75k", 75_000)):
        folder = run / "students" / label
        model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
        assert not any(info.values())
        assert type(model) is type(teacher)
        assert model.config.text_config.hidden_size == 48
        assert all(torch.equal(tensor, tower(model)[name]) for name, tensor in tower(teacher).items())
        with torch.no_grad():
            inside, alone = (each.eval()(input_ids=IDS).logits for each in (model, load_for_training(folder)))
        assert torch.equal(inside, alone)
        assert sum(p.numel() for p in load_for_training(folder).parameters()) == pytest.approx(parameters, rel=0.05)
        in_text, in_all = (sum(p.numel() for p in each.parameters()) for each in (load_for_training(folder), model))
        card = (folder / "README.md").read_text()
        assert "AutoModelForImageTextToText.from_pretrained" in card
        assert "pipeline_tag: image-text-to-text" in card
        assert f"This model has {in_text:,} parameters in its text part. It was pruned" in card
        assert f"unchanged: {in_all - in_text:,} parameters more, {in_all:,} in all. Only the text part" in card
        facts = show(str(folder)).facts
        assert facts["loads_through"] == "AutoModelForImageTextToText"
        assert (facts["parameters_of_the_text_part"], facts["parameters_of_the_whole"]) == (in_text, in_all)
        assert facts["gigabytes_of_weights"] == pytest.approx(4 * in_all / 1e9, abs=1e-3)
        assert "parameters" not in facts
        parts = {row["part"]: row["parameters"] for row in show(str(folder)).tables["parameters by part"]}
        assert (parts["what looks at pictures"], sum(parts.values())) == (in_all - in_text, in_all)


def test_the_plan_says_what_was_left_to_prune_and_goes_on_as_it_is(
    run: Path, build: Callable[..., Family], wrapper: Callable[..., Path]
) -> None:
    before = (run / "ledger.jsonl").read_text()
    plan = yaml.safe_load((run / "plan.yaml").read_text())["plan"]
    assert (plan["text_only"], plan["start"], plan["space"]["axes"]["hidden_size"]) == (False, "select", None)
    assert set(plan["space"]["protected_layers"]) == {0, -1}
    build(run, teacher=wrapper("qwen3_vl"), sizes=["85k", "75k"], text_only=False, space="default")
    assert (run / "ledger.jsonl").read_text() == before
    with pytest.raises(RunFolderError, match="text_only"):
        build(run, teacher=wrapper("qwen3_vl"), sizes=["85k", "75k"], space="default")


def test_plans_from_before_there_was_the_key_decide_the_same() -> None:
    plan = make_plan({"teacher": "t", "sizes": ["1B"], "data": "d"}).to_dict()
    assert deciding({key: value for key, value in plan.items() if key != "text_only"}) == deciding(plan)


def test_the_dry_run_says_what_stays(wrapper: Callable[..., Path], text_file: Path, tmp_path: Path) -> None:
    values = {"teacher": str(wrapper("qwen3_vl")), "sizes": ["80k"], "data": str(text_file), "text_only": False}
    found = dry_run(make_plan(values), tmp_path / "run", flops_per_second=1e9, display=Quiet())
    (told,) = [note for note in found.notes if "qwen3_vl" in note]
    assert told.endswith(
        "what looks at pictures stays as it is, and so hidden_size=48 and the first layers that it feeds stay; sizes "
        "count the text part alone, and nothing but text is trained or measured on"
    )


@pytest.mark.parametrize("with_weights", [True, False])
def test_the_dry_run_counts_the_tower_and_a_text_part_that_lies_alone_for_a_while(
    wrapper: Callable[..., Path], text_file: Path, tmp_path: Path, with_weights: bool
) -> None:
    teacher = wrapper("gemma3")
    if not with_weights:
        shutil.copy(teacher / "config.json", tmp_path)
        teacher = tmp_path
    values = {"teacher": str(teacher), "sizes": ["90k", "85k"], "data": str(text_file), "baselines": ["random_shape"]}
    alone, beside = (
        dry_run(make_plan({**values, "text_only": text_only}), tmp_path / "run", flops_per_second=1e9, display=Quiet())
        for text_only in (True, False)
    )
    (told,) = [note for note in beside.notes if "gemma3" in note]
    assert told.endswith("before its weights are there, and not counted") == (not with_weights)
    tower_bytes = sum(header.num_bytes for header in tower_tensors(teacher).values()) if with_weights else 0
    text_bytes = 4 * 90_000
    rotations = alone.forecast.disk.others - beside.forecast.disk.others
    assert rotations >= 0
    assert beside.forecast.disk.models - alone.forecast.disk.models == pytest.approx(
        2 * 2 * tower_bytes + text_bytes, abs=1
    )


def test_a_text_model_has_nothing_to_keep_and_a_corrected_teacher_neither(
    build: Callable[..., Family], tmp_path: Path
) -> None:
    with pytest.raises(PlanError, match=r"text_only=false keeps what looks at pictures, and .* has no such part"):
        build(tmp_path / "run", text_only=False, space="default")
    assert not (tmp_path / "run" / "plan.yaml").exists()
    with pytest.raises(PlanError, match="correct makes a text model of the teacher"):
        make_plan({"teacher": "t", "sizes": ["1B"], "data": "d", "text_only": False, "correct": True})


def test_distilling_a_student_inside_its_wrapper_leaves_the_tower(
    wrapper: Callable[..., Path], text_file: Path, tmp_path: Path
) -> None:
    text = TextSettings(sequence_length=64, calibration_samples=8, validation_samples=4)
    settings = DistillationSettings(
        tokens=512, batch_sequences=4, micro_batch_sequences=4, num_evaluations=1, checkpoint_minutes=0
    )
    teacher = wrapper("gemma3")
    pruned = prune(
        teacher, tmp_path / "p", {"intermediate_size": 40}, scores="random", text_only=False, display=Quiet()
    )
    said = {"inside": Noting(), "alone": Noting()}
    inside, alone = (
        distill(
            pruned.path, teacher, text_file, tmp_path / name, settings=settings, text=text, text_only=name == "alone",
            display=display,
        )
        for name, display in said.items()
    )  # fmt: skip
    of_both = [[note for note in display.notes if "of the gemma3" in note] for display in said.values()]
    begins = "of the gemma3 the text part is taken, a Gemma3ForCausalLM; what looks at pictures"
    assert [notes[1] for notes in of_both] == [f"{begins} is left out"] * 2
    assert of_both[0][0].startswith(f"student: {begins} stays as it is, and so hidden_size=48 stay")
    left_out = "is left out, and students are text models; text_only=false (--with-tower) keeps it"
    assert of_both[1][0] == f"student: {begins} {left_out}"
    assert json.loads((alone.path / "config.json").read_text())["model_type"] == "gemma3_text"
    model, info = AutoModelForImageTextToText.from_pretrained(inside.path, output_loading_info=True)
    assert not any(info.values())
    with torch.no_grad():
        assert torch.equal(
            model.eval()(input_ids=IDS).logits, load_for_training(alone.path).eval()(input_ids=IDS).logits
        )


@pytest.mark.parametrize("text_only", [True, False])
def test_an_aligned_student_keeps_what_looks_at_pictures_where_it_is_asked_for(
    wrapper: Callable[..., Path], tmp_path: Path, text_only: bool
) -> None:
    data, student, display = tmp_path / "chats.jsonl", wrapper("gemma3"), Noting()
    asked = ({"role": "user", "content": f"Tell me {number}"} for number in range(20))
    rows = ({"messages": [turn, {"role": "assistant", "content": "It is so."}]} for turn in asked)
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = AlignmentSettings(learning_rate=1e-3, epochs=1, batch_sequences=4, num_evaluations=1)
    text = TextSettings(sequence_length=64, validation_samples=4)
    aligned = align(student, data, tmp_path / "out", settings=settings, text=text, text_only=text_only, display=display)
    (said,) = [note for note in display.notes if "of the gemma3" in note]
    assert said.startswith("student: of the gemma3 the text part is taken, a Gemma3ForCausalLM; what looks at pictures")
    assert said.endswith("; text_only=false (--with-tower) keeps it") == text_only
    card = (aligned.path / "README.md").read_text()
    name = "AutoModelForCausalLM" if text_only else "AutoModelForImageTextToText"
    assert f"from transformers import {name}, AutoTokenizer" in card
    assert ("pipeline_tag: image-text-to-text" in card) == ("What looks at pictures, " in card) == (not text_only)
    if text_only:
        assert json.loads((aligned.path / "config.json").read_text())["model_type"] == "gemma3_text"
        return
    model, info = AutoModelForImageTextToText.from_pretrained(aligned.path, output_loading_info=True)
    assert not any(info.values())
    before = AutoModelForImageTextToText.from_pretrained(student).state_dict()
    same = {name: torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items()}
    assert all(same[name] for name in same if "vision" in name or "projector" in name)
    assert not all(same.values())
