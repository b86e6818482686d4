"""The stage in which the KD teacher speaks once."""

from dataclasses import replace

from minitron_nas.distillation.job import StreamFiles, TrainingFiles
from minitron_nas.distillation.signals.caches import cached_parts
from minitron_nas.distillation.training.schedule import Schedule
from minitron_nas.pipeline import inputs
from minitron_nas.pipeline.engine import Left, Stage
from minitron_nas.pipeline.hop import Lessons
from minitron_nas.pipeline.run import Run, Source
from minitron_nas.pipeline.steps.speech import speak_in_shares
from minitron_nas.progress import Progress
from minitron_nas.search.rates import probe_schedule
from minitron_nas.storage.shards import SHARD_SUFFIX

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
    spoken = {part: StreamFiles(tokens.file(part), run.folder.signal(checkpoint.fingerprint, part)) for part in parts}

    def action(progress: Progress) -> Left:
        if num_short:
            tokens.part("train").first(num_short).save(short)
        written = speak_in_shares(run.workers, checkpoint, parts, spoken, "validation", progress)
        return Left({"continuations": written})

    stage = Stage(
        f"{teacher.name} signal",
        f"{teacher.name} speaks once ({_SAID[settings.teacher_signal]})",
        inputs.of_signal(checkpoint, parts, num_short),
        needs=(tokens.done, *teacher.made_by),
        outputs=[*(stream.cache for stream in spoken.values() if stream.cache), *([short] if num_short else [])],
        costly=True,
        self_checked=SHARD_SUFFIX,
    )
    done = run.engine.run(stage, action)
    train, validation = (spoken.get(part, StreamFiles(tokens.file(part))) for part in ("train", "validation"))
    files = TrainingFiles(checkpoint.path, checkpoint.fingerprint, train, validation)
    trials = replace(files, train=spoken["trials"]) if num_short else files
    return Lessons(files, trials, done, done.result["continuations"])


def _num_short_sequences(run: Run, hidden_size: int) -> int:
    """Return over how many sequences of the training text the teacher speaks for trials alone."""
    length = run.plan.text.sequence_length
    num_tokens = run.plan.trial_tokens(run.tokens.distillation_tokens, hidden_size)
    if not num_tokens:
        return 0
    settings = run.plan.distillation
    student = Schedule.resolve(settings, run.tokens.distillation_tokens, length)
    trial = Schedule.resolve(settings, num_tokens, length) if run.plan.search.num_rungs else None
    shorts = (trial, probe_schedule(settings, student, num_tokens))
    return max((each.num_steps * each.batch_sequences for each in shorts if each is not None), default=0)
