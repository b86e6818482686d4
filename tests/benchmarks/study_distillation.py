"""What a student of SmolLM2 learns from: losses, its start, the corrected teacher, hidden states inside the models.

A study of hours, in parts that go on where they were: `python tests/benchmarks/study_distillation.py PART --data DATA
--out FOLDER`, with DATA and FOLDER of `study_starts.py`, one of whose starts is the student here. What is measured
goes to `measured/distillation.json` beside this file. KL is in nats per token, bf16 on the CPU.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from study import LENGTH, SEED
from study_starts import CALIBRATION, SHAPES, STARTS, Starts
from transformers import AutoConfig, AutoModelForCausalLM

from minitron_nas.distillation.settings import CorrectionSettings
from minitron_nas.distillation.signals.targets import HiddenTargets, TopKTargets
from minitron_nas.distillation.signals.teacher import TeacherSignal
from minitron_nas.models.loading import load_for_training
from minitron_nas.pipeline.display import default_display
from minitron_nas.pipeline.steps.correct import correction_schedule
from minitron_nas.storage.atomic import whole_folder
from minitron_nas.text.tokens import PackedTokens

MEASURED = Path(__file__).parent / "measured" / "distillation.json"
POINTS = (0, 24_576, 49_152, 102_400)
RATES = (1e-4, 3e-4)
RANDOM_RATES = (3e-4, 1e-3)
LOSSES: dict[str, dict[str, Any]] = {
    "reverse KL": {"loss": "reverse_kl"},
    "next-token loss": {"loss": "lm"},
    "forward KL + next-token loss": {"lm_loss_weight": 1.0},
    "cosine": {"loss": "cosine"},
    "MSE": {"loss": "mse"},
    "forward KL, temperature 2": {"temperature": 2.0},
}
"""Besides forward KL, which the part `recovery` of `study_starts.py` measures with this start."""


@dataclass
class Drawn:
    """A teacher of whose distribution so many random draws are heard, which on average are all of it.

    Source: Anshumann et al. 2025 (arXiv 2503.16870), random sampling KD at temperature 1.
    """

    signal: TeacherSignal
    number: int

    def __post_init__(self) -> None:
        self._generator = torch.Generator().manual_seed(SEED)

    def targets(self, indices: torch.Tensor, tokens: PackedTokens) -> TopKTargets:
        said = self.signal.targets(indices, tokens)
        assert isinstance(said, HiddenTargets)
        chunks = (slice(first, first + 256) for first in range(0, tokens.num_tokens, 256))
        found, counts = zip(*(self._drawn(said.of(rows).logits()) for rows in chunks), strict=True)
        log_probs = (torch.cat(counts) / self.number).log().clamp(min=-1e30)
        return TopKTargets(log_probs, torch.full((tokens.num_tokens,), -1e30), torch.cat(found), said.vocab_size)

    def _drawn(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the tokens that were drawn, (num_tokens, number), and how often; the same again becomes no token."""
        probs = logits.softmax(dim=-1)
        drawn = torch.multinomial(probs, self.number, replacement=True, generator=self._generator).sort().values
        same = drawn[:, :, None] == drawn[:, None]
        again = same.tril(-1).any(dim=2)
        return drawn.masked_fill(again, logits.shape[1]), same.sum(dim=2).masked_fill(again, 0)


SIGNALS: dict[str, tuple[dict[str, Any], Callable[[TeacherSignal], TeacherSignal]]] = {
    "top 256": ({"top_k": 256}, lambda signal: signal),
    "64 draws": ({}, partial(Drawn, number=64)),
    "top 64": ({"top_k": 64}, lambda signal: signal),
}
DEPTH = 22
START = "rotation, repair in sequence, L2 of means"


def student(study: Starts) -> Path:
    """Write the student that all parts but depth train: hidden 504, FFN 1024."""
    folder = study.out / "students" / "rotation-repair-in-sequence-L2-of-means"
    return study.student(SHAPES["504/1024"], STARTS[START], study.calibration(CALIBRATION), folder)


def losses(study: Starts) -> None:
    """The same student with each loss."""
    begin = partial(load_for_training, student(study))
    for name, changes in LOSSES.items():
        study.recover(begin, "losses", name, RATES, POINTS, **changes)


def signals(study: Starts) -> None:
    """The same student, where less than the whole distribution is kept of the teacher."""
    begin = partial(load_for_training, student(study))
    for name, (changes, hear) in SIGNALS.items():
        study.hear = hear
        study.recover(begin, "signals", name, RATES[:1], POINTS[:3], tokens=POINTS[-1], **changes)


def random_start(study: Starts) -> None:
    """The same shape with random weights."""
    config = AutoConfig.from_pretrained(student(study))

    def begin() -> Any:
        torch.manual_seed(SEED)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()

    study.recover(begin, "random", "random weights", RANDOM_RATES, POINTS)


def intermediate(study: Starts) -> None:
    """With and without hidden states inside the models, for the width student and for one of fewer layers."""
    folder = study.out / "students" / f"{DEPTH}-layers"
    fewer = study.student({"num_hidden_layers": DEPTH}, STARTS[START], study.calibration(CALIBRATION), folder)
    matching = {"intermediate": "always", "teacher_signal": "online"}
    study.recover(
        partial(load_for_training, student(study)), "intermediate", "504/1024, matched", RATES, POINTS, **matching
    )
    study.recover(partial(load_for_training, fewer), "intermediate", f"{DEPTH} layers", RATES, POINTS)
    study.recover(
        partial(load_for_training, fewer), "intermediate", f"{DEPTH} layers, matched", RATES, POINTS, **matching
    )


def correction(study: Starts) -> None:
    """The teacher corrected on the KD text, the student that is cut from it, and that one distilled from it."""
    after = Starts(study.data, study.out / "corrected", MEASURED)
    if not (after.out / "teacher").is_dir():
        tokens = POINTS[-1]
        _, settings = correction_schedule(CorrectionSettings(batch_sequences=2), tokens, LENGTH)
        model = load_for_training(study.checkpoint.path)
        work = study.out / "training" / "correction"
        changes = settings.model_dump(exclude={"tokens", "learning_rate", "batch_sequences", "micro_batch_sequences"})
        study.train(model, settings.learning_rate, tokens, work, **changes)
        with whole_folder(after.out / "teacher") as folder:
            model.to(torch.bfloat16).save_pretrained(folder)
            study.tokenizer.save_pretrained(folder)
    after.measurements.once("teacher, corrected", lambda: after.losses(load_for_training(after.checkpoint.path)))
    after.recover(partial(load_for_training, student(after)), "corrected", "corrected teacher", RATES, POINTS)


PARTS: dict[str, Callable[[Starts], None]] = {
    "losses": losses,
    "signals": signals,
    "random": random_start,
    "intermediate": intermediate,
    "correction": correction,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--show", action="store_true", help="print what is measured, and measure nothing")
    args = parser.parse_args()
    study = Starts(args.data.absolute(), args.out.absolute(), MEASURED)
    default_display()  # silences the libraries' own bars
    if not args.show:
        PARTS[args.part](study)
    study.show(("tuning", *PARTS, "corrected"))


if __name__ == "__main__":
    main()
