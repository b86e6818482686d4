"""The stage in which the KD teacher speaks once."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from minitron_nas.distillation.job import StreamFiles, TrainingFiles
from minitron_nas.distillation.signals.caches import cached_parts, keep_signals, loaded_once
from minitron_nas.distillation.signals.folder import Share
from minitron_nas.distillation.training.schedule import Schedule
from minitron_nas.evaluation.continuations import continuations
from minitron_nas.pipeline import inputs
from minitron_nas.pipeline.engine import Left, Stage
from minitron_nas.pipeline.hop import Lessons
from minitron_nas.pipeline.run import Run, Source
from minitron_nas.progress import Progress
from minitron_nas.search.rates import probe_schedule
from minitron_nas.storage.shards import SHARD_SUFFIX
from minitron_nas.text.tokens import PackedTokens

_SAID = {
    "hidden_cache": "final hidden states of the KD text",
    "top_k": "its most probable tokens over the KD text",
    "online": "final hidden states of the validation text",
}


def let_speak(run: Run, teacher: Source) -> Lessons:
    """Cache what a KD teacher says over the validation text and, unless it runs online, over the training text.

    Args:
        run: The run.
        teacher: The model that students learn from.
    """
    settings, checkpoint, tokens = run.plan.distillation, teacher.checkpoint, run.tokens
    parts = cached_parts(settings)
    num_short = _num_short_sequences(run, checkpoint.architecture.hidden_size)
    if num_short:
        parts["trials"] = None
    short = tokens.file("trials")
    caches = {part: run.folder.signal(checkpoint.fingerprint, part) for part in parts}

    def action(progress: Progress) -> Left:
        if num_short:
            tokens.part("train").first(num_short).save(short)
        texts = {part: tokens.file(part) for part in parts}
        count = min(run.workers.room(), max(PackedTokens.load(text).num_sequences for text in texts.values()))
        said = {
            "teacher": checkpoint.path, "fingerprint": checkpoint.fingerprint,
            "parts": parts, "texts": texts, "caches": caches,
        }  # fmt: skip
        written = run.workers.share(
            speak, [{**said, "share": Share(number, count)} for number in range(count)], progress
        )
        return Left({"continuations": written[0]})

    stage = Stage(
        f"{teacher.name} signal",
        f"{teacher.name} speaks once ({_SAID[settings.teacher_signal]})",
        inputs.of_signal(checkpoint, parts, num_short),
        needs=(tokens.done, *teacher.made_by),
        outputs=[*caches.values(), *([short] if num_short else [])],
        costly=True,
        self_checked=SHARD_SUFFIX,
    )
    done = run.engine.run(stage, action)
    train, validation = (StreamFiles(tokens.file(part), caches.get(part)) for part in ("train", "validation"))
    files = TrainingFiles(checkpoint.path, checkpoint.fingerprint, train, validation)
    trials = replace(files, train=StreamFiles(short, caches["trials"])) if num_short else files
    return Lessons(files, trials, done, done.result["continuations"])


def speak(
    teacher: Path,
    fingerprint: str,
    parts: Mapping[str, int | None],
    texts: Mapping[str, Path],
    caches: Mapping[str, Path],
    share: Share,
    progress: Progress,
) -> list[list[int]]:
    """Write a share of the caches of a teacher; the first writer also continues the beginnings of held-out text.

    Args:
        teacher: Its folder.
        fingerprint: Its fingerprint.
        parts: What is kept of each part of the text, as `cached_parts` says.
        texts: The files of the parts.
        caches: The folders of their caches.
        share: Which shards.
        progress: Told about tokens.

    Returns:
        The continuations, as token ids; none of other writers.
    """
    tokens = {part: PackedTokens.load(text) for part, text in texts.items()}
    with loaded_once(teacher) as load:
        keep_signals(load, fingerprint, parts, tokens, caches, progress, share)
        return continuations(load(), tokens["validation"]) if share.number == 0 else []


def _num_short_sequences(run: Run, hidden_size: int) -> int:
    """Return over how many sequences of the training text the teacher speaks for trials alone."""
    length = run.plan.text.sequence_length
    num_tokens = run.plan.trial_tokens(run.tokens.distillation_tokens, hidden_size)
    if not num_tokens:
        return 0
    settings = run.plan.distillation
    student = Schedule.resolve(settings, run.tokens.distillation_tokens, length)
    shorts = (Schedule.resolve(settings, num_tokens, length), probe_schedule(settings, student))
    return max(each.num_steps * each.batch_sequences for each in shorts if each is not None)
