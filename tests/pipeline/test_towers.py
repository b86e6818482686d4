"""Families whose members keep what looks at pictures: `text_only=false`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForImageTextToText

from minitron_nas.distillation.settings import DistillationSettings
from minitron_nas.errors import PlanError, RunFolderError
from minitron_nas.models.loading import load_for_training
from minitron_nas.pipeline.display import Quiet
from minitron_nas.pipeline.dry_run import dry_run
from minitron_nas.pipeline.family import Family
from minitron_nas.pipeline.plan import deciding, make_plan
from minitron_nas.pipeline.steps.distill import distill
from minitron_nas.pipeline.steps.prune import prune
from minitron_nas.text.settings import TextSettings

IDS = torch.arange(10, 40)[None]


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
        card = (folder / "README.md").read_text()
        assert "AutoModelForImageTextToText.from_pretrained" in card
        assert "pipeline_tag: image-text-to-text" in card
        assert "What looks at pictures is the teacher's, unchanged" in card


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
    inside, alone = (
        distill(
            pruned.path, teacher, text_file, tmp_path / name, settings=settings, text=text, text_only=name == "alone",
            display=Quiet(),
        )
        for name in ("inside", "alone")
    )  # fmt: skip
    assert json.loads((alone.path / "config.json").read_text())["model_type"] == "gemma3_text"
    model, info = AutoModelForImageTextToText.from_pretrained(inside.path, output_loading_info=True)
    assert not any(info.values())
    with torch.no_grad():
        assert torch.equal(
            model.eval()(input_ids=IDS).logits, load_for_training(alone.path).eval()(input_ids=IDS).logits
        )
