"""Whether the learning rate that is best for a short training is best for the whole one.

`python tests/benchmarks/study_rates.py TEACHER TEXT STUDENT ... --tokens 30k --out FOLDER`, students being what
`minitron-nas prune` has written. Each is trained as a probe of `distillation.learning_rate=auto` and in full, at every
rate, and its validation KL printed; what is in FOLDER is not measured again.
"""

import argparse
import math
import shutil
from functools import partial
from pathlib import Path

from study import Measurements

from minitron_nas.distillation.job import StreamFiles, TrainingFiles
from minitron_nas.distillation.settings import DistillationSettings
from minitron_nas.distillation.signals.caches import cached_parts, keep_signals
from minitron_nas.distillation.training.schedule import Schedule
from minitron_nas.errors import NonFiniteLossError
from minitron_nas.models.checkpoint import Checkpoint, open_checkpoint
from minitron_nas.models.loading import load_for_inference
from minitron_nas.pipeline.steps.distill import untrained
from minitron_nas.pipeline.steps.text import read_splits
from minitron_nas.progress import silent
from minitron_nas.search.rates import ABOVE, BELOW, RATES, probe_schedule
from minitron_nas.search.tournament import train_shortly
from minitron_nas.settings import parse_count
from minitron_nas.text.settings import TextSettings

SEED = 0


def lessons(
    teacher: Checkpoint, text: str, settings: DistillationSettings, length: int, held_out: int, out: Path
) -> TrainingFiles:
    """Pack the text, and let the teacher speak over it."""
    packing = TextSettings(sequence_length=length, validation_samples=held_out)
    splits = read_splits(out, text, teacher, packing, settings.tokens, SEED, silent)
    parts = {"train": splits.train, "validation": splits.validation}
    files = {name: StreamFiles(out / f"{name}.safetensors", out / f"hidden-{name}") for name in parts}
    for name, tokens in parts.items():
        tokens.save(files[name].tokens)
    caches = {name: file.cache for name, file in files.items() if file.cache is not None}
    keep_signals(
        partial(load_for_inference, teacher.path), teacher.fingerprint, cached_parts(settings), parts, caches, silent
    )
    return TrainingFiles(teacher.path, teacher.fingerprint, files["train"], files["validation"])


def trained(student: Path, files: TrainingFiles, rate: float, schedule: Schedule, work: Path) -> dict[str, float]:
    """Train, and return the validation KL; NaN where training diverged."""
    shutil.rmtree(work, ignore_errors=True)
    settings = DistillationSettings(learning_rate=rate, micro_batch_sequences=schedule.batch_sequences)
    try:
        result, _ = train_shortly(student, files, settings, schedule, SEED, work, schedule.num_steps)
    except NonFiniteLossError:
        return {"kl_nats": math.nan}
    return {"kl_nats": result.final.judged("kl_nats")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("text")
    parser.add_argument("students", type=Path, nargs="+")
    parser.add_argument("--tokens", type=parse_count, required=True)
    parser.add_argument("--batch", type=int, help="sequences of a step; as many as give 200 steps without it")
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--held-out", type=int, default=64, help="sequences that are not trained on")
    parser.add_argument("--rates", type=float, nargs="+", default=(BELOW, *RATES, ABOVE))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    settings = DistillationSettings(tokens=args.tokens, batch_sequences=args.batch, learning_rate="auto")
    files = lessons(open_checkpoint(args.teacher), args.text, settings, args.length, args.held_out, args.out)
    full = Schedule.resolve(settings, args.tokens, args.length)
    probe = probe_schedule(settings, full)
    if probe is None:
        parser.error(f"--tokens={args.tokens:,} are too few for probes of four steps")
    measurements, work = Measurements(args.out / "rates.json"), args.out / "work"
    for student in args.students:
        measurements.once(f"{student.name} | untrained", partial(untrained, student, files.to_dict()))
        for name, schedule in (("probe", probe), ("full", full)):
            for rate in args.rates:
                key = f"{student.name} | {name}, {schedule.num_steps} x {schedule.batch_sequences} | {rate:g}"
                measurements.once(key, partial(trained, student, files, rate, schedule, work))


if __name__ == "__main__":
    main()
