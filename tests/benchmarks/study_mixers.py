"""Do activation scores tell which heads and channels of Mamba 2 mixers matter, and does the repair help?

`python tests/benchmarks/study_mixers.py` trains a tiny model of a family for some minutes on the text of this machine's
packages, because there is no checkpoint of such a model at hand, cuts its mixers by activations, by weights and at
random (mean of three seeds), selected and repaired, and prints the untrained students' KL on text that it has not seen.
"""

import argparse
import itertools
import json
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from torch.nn.functional import kl_div
from transformers import AutoModelForCausalLM

from minitron_nas.models.causal_lm import CausalLM
from minitron_nas.pipeline.display import Quiet
from minitron_nas.pipeline.steps.prune import prune
from minitron_nas.testing import tiny_config, tiny_model, tiny_tokenizer
from minitron_nas.text.embedded import embedded_documents
from minitron_nas.text.settings import TextSettings

MIXERS = {
    "nemotron_h": {"mamba_num_heads": 16, "mamba_head_dim": 8, "n_groups": 2},
    "falcon_h1": {
        "mamba_n_heads": 16,
        "mamba_d_head": 8,
        "mamba_n_groups": 2,
        "mamba_d_ssm": 128,
        "mamba_rms_norm": True,
    },
}
SHAPES = ({"mamba_num_heads": 12}, {"mamba_num_heads": 8}, {"mamba_head_dim": 6}, {"mamba_head_dim": 4})
SCORES = {"activations": (None, (0,)), "weights": ("magnitude", (0,)), "random": ("random", (0, 1, 2))}
TOKENS = 64
"""Of a sequence."""
CALIBRATION, HELD_OUT = 128, 256
"""Sequences."""


def sequences(documents: list[str]) -> Tensor:
    """Return a text as tokens, (num_sequences, TOKENS)."""
    tokenizer = tiny_tokenizer()
    ids = torch.tensor([token for document in documents for token in tokenizer(document)["input_ids"]])
    return ids[: len(ids) // TOKENS * TOKENS].view(-1, TOKENS)


def trained(model_type: str, text: Tensor, steps: int) -> CausalLM:
    """Return a tiny model that knows something of a text."""
    model = tiny_model(tiny_config(model_type, **MIXERS[model_type])).train()
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        batch = text[torch.randint(0, len(text), (16,), generator=generator)]
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model.eval()


@torch.no_grad()
def spoken(model: CausalLM, text: Tensor) -> Tensor:
    """Return what a model says over a text, (num_tokens, vocab_size), as log probabilities."""
    return torch.cat([model(input_ids=batch).logits.log_softmax(-1).flatten(0, 1) for batch in text.split(32)])


def study(model_type: str, steps: int, work: Path) -> None:
    """Print a row for each shape."""
    documents = list(itertools.islice(embedded_documents(), 150))
    seen, unseen = documents[: len(documents) // 2], documents[len(documents) // 2 :]
    model, held_out = trained(model_type, sequences(seen), steps), sequences(unseen)[:HELD_OUT]
    teacher, calibration = work / "teacher", work / "calibration.jsonl"
    model.save_pretrained(teacher)
    tiny_tokenizer().save_pretrained(teacher)
    calibration.write_text("".join(json.dumps({"text": document}) + "\n" for document in seen))
    text = TextSettings(sequence_length=TOKENS, calibration_samples=CALIBRATION)
    said = spoken(model, held_out)

    def kl(shape: dict[str, int], scores: str | None, seed: int, repair: str) -> float:
        with TemporaryDirectory() as folder:
            student = Path(folder) / "student"
            prune(
                teacher, student, shape=shape, data=str(calibration), text=text, scores=scores, seed=seed,
                start="select", repair=repair, display=Quiet(),
            )  # fmt: skip
            own = spoken(AutoModelForCausalLM.from_pretrained(student), held_out)
        return kl_div(own, said, log_target=True, reduction="batchmean").item()

    for shape in SHAPES:
        cells = [
            f"{mean(kl(shape, scores, seed, repair) for seed in seeds):.3f}"
            for repair in ("none", "ridge")
            for scores, seeds in SCORES.values()
        ]
        ((name, size),) = shape.items()
        print(f"| {model_type}, {name}={size} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-type", choices=MIXERS, default="nemotron_h")
    parser.add_argument("--steps", type=int, default=800)
    args = parser.parse_args()
    heads = [f"{ways}, {name}" for ways in ("selected", "repaired") for name in SCORES]
    print(f"| mixers keep | {' | '.join(heads)} |\n|{'---|' * (len(heads) + 1)}")
    with TemporaryDirectory() as work:
        study(args.model_type, args.steps, Path(work))


if __name__ == "__main__":
    main()
