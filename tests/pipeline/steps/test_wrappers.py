"""The single steps on a model of images and text, whose text part they take."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from minitron_nas.distillation.settings import DistillationSettings
from minitron_nas.pipeline.display import Quiet
from minitron_nas.pipeline.steps.distill import distill
from minitron_nas.pipeline.steps.evaluate import evaluate
from minitron_nas.pipeline.steps.prune import prune
from minitron_nas.text.settings import TextSettings

TEXT = TextSettings(sequence_length=64, calibration_samples=8, validation_samples=4)
SETTINGS = DistillationSettings(
    tokens=512, batch_sequences=4, micro_batch_sequences=4, num_evaluations=1, checkpoint_minutes=0
)
IDS = torch.arange(10, 40)[None]


class Noting(Quiet):
    """Keeps what is noted."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    found: torch.Tensor = model.eval()(input_ids=IDS, use_cache=False).logits
    return found


@pytest.mark.parametrize("model_type", ["gemma3", "mistral3", "qwen2_5_vl", "qwen3_5", "qwen3_vl"])
def test_pruning_nothing_of_a_wrapper_gives_a_text_model_of_its_logits_to_the_bit(
    wrapper: Callable[..., Path], tmp_path: Path, model_type: str
) -> None:
    teacher, display = wrapper(model_type), Noting()
    prune(teacher, tmp_path / "student", {"intermediate_size": 96}, scores="magnitude", display=display)
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "student", trust_remote_code=False)
    assert torch.equal(logits(student), logits(AutoModelForImageTextToText.from_pretrained(teacher)))
    told = f"of the {model_type} the text part is taken, a {type(student).__name__}; what looks at pictures is left out"
    kept = "and students are text models; text_only=false (--with-tower) keeps it"
    assert [note for note in display.notes if "text part" in note] == [f"{told}, {kept}"]
    assert not [file for file in (tmp_path / "student").iterdir() if "processor" in file.name]


def test_a_wrapper_is_pruned_distilled_and_evaluated(
    wrapper: Callable[..., Path], text_file: Path, tmp_path: Path
) -> None:
    teacher, shape = wrapper("qwen3_vl"), {"num_hidden_layers": 2, "hidden_size": 42, "num_key_value_heads": 1}
    pruned = prune(teacher, tmp_path / "pruned", shape, data=text_file, text=TEXT, display=Quiet())
    assert pruned.proof is not None
    assert pruned.proof.holds
    student = distill(pruned.path, teacher, text_file, tmp_path / "out", settings=SETTINGS, text=TEXT, display=Quiet())
    model = AutoModelForCausalLM.from_pretrained(student.path, trust_remote_code=False)
    assert (type(model).__name__, {name: getattr(model.config, name) for name in shape}) == ("Qwen3ForCausalLM", shape)
    sample = tmp_path / "sample.txt"
    sample.write_text(text_file.read_text(encoding="utf-8")[:2000], encoding="utf-8")
    found = evaluate(teacher, sample, teacher=teacher, display=Quiet())
    assert found.kl_nats == pytest.approx(0, abs=1e-6)
