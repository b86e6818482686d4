"""A KD teacher speaks over text, where work is done: in shares, side by side, on a cluster."""

from collections.abc import Mapping
from pathlib import Path

from minitron_nas.distillation.job import StreamFiles, TrainingFiles
from minitron_nas.distillation.settings import DistillationSettings
from minitron_nas.distillation.signals.caches import cached_parts, keep_signals, loaded_once
from minitron_nas.distillation.signals.choice import Speech, folder_bytes, settle
from minitron_nas.distillation.signals.folder import Share
from minitron_nas.evaluation.continuations import continuations
from minitron_nas.execution.device import compute_dtype, pick_device
from minitron_nas.execution.workers import Workers
from minitron_nas.models.checkpoint import Checkpoint
from minitron_nas.pipeline.display import Display
from minitron_nas.progress import Progress
from minitron_nas.storage.machine import free_bytes
from minitron_nas.text.tokens import PackedTokens


def speak_in_shares(
    workers: Workers,
    teacher: Checkpoint,
    parts: Mapping[str, int | None],
    streams: Mapping[str, StreamFiles],
    continued: str | None,
    progress: Progress,
) -> list[list[int]]:
    """Write the caches of a teacher, as many shares at once as there is room for.

    Args:
        workers: Who writes them.
        teacher: The teacher.
        parts: What is kept of each part of the text, as `cached_parts` says.
        streams: The files of each part, and where its cache goes.
        continued: The part whose beginnings it continues greedily; None for none.
        progress: Told about tokens.

    Returns:
        The continuations, as token ids.
    """
    count = min(workers.room(), max(stream.open().num_sequences for stream in streams.values()))
    said = {
        "teacher": teacher.path, "fingerprint": teacher.fingerprint,
        "parts": parts, "streams": streams, "continued": continued,
    }  # fmt: skip
    written: list[list[list[int]]] = workers.share(
        speak, [{**said, "share": Share(number, count)} for number in range(count)], progress
    )
    return written[0]


def speak(
    teacher: Path,
    fingerprint: str,
    parts: Mapping[str, int | None],
    streams: Mapping[str, StreamFiles],
    continued: str | None,
    share: Share,
    progress: Progress,
) -> list[list[int]]:
    """Write a share of the caches of a teacher; the first writer also continues beginnings, where that is asked for.

    Args:
        teacher: Its folder.
        fingerprint: Its fingerprint.
        parts: What is kept of each part of the text, as `cached_parts` says.
        streams: The files of each part, and where its cache goes.
        continued: The part whose beginnings are continued; None for none.
        share: Which shards.
        progress: Told about tokens.

    Returns:
        The continuations, as token ids; none of other writers.
    """
    tokens = {part: stream.open() for part, stream in streams.items()}
    caches = {part: stream.cache for part, stream in streams.items() if stream.cache is not None}
    with loaded_once(teacher) as load:
        keep_signals(load, fingerprint, parts, tokens, caches, progress, share)
        return continuations(load(), tokens[continued]) if continued is not None and share.number == 0 else []


def settled(
    settings: DistillationSettings, teacher: Checkpoint, num_tokens: int, folder: Path, display: Display
) -> DistillationSettings:
    """Return the settings with a teacher signal for one training, and say why it is that one.

    Args:
        settings: How a student learns.
        teacher: Who speaks.
        num_tokens: Of the training text.
        folder: Where what it says is kept.
        display: Is told.
    """
    shape, value_bytes = teacher.architecture, compute_dtype(pick_device()).itemsize
    speech = Speech(num_tokens, 1, shape.vocab_size, shape.hidden_size * value_bytes)
    settings, told = settle(settings, speech, free_bytes(folder) + folder_bytes(folder))
    if told:
        display.note(told)
    return settings


def training_files(
    workers: Workers,
    settings: DistillationSettings,
    teacher: Checkpoint,
    texts: Mapping[str, PackedTokens],
    work: Path,
    signals: Path,
    progress: Progress,
) -> TrainingFiles:
    """Let the teacher speak, unless it has, and say where training and validation lie.

    Args:
        workers: Who writes what it says.
        settings: With a signal that is settled.
        teacher: Who speaks.
        texts: The parts `train` and `validation`.
        work: Gets the parts as files.
        signals: Gets what the teacher says.
        progress: Told about tokens.
    """
    parts, streams = cached_parts(settings), dict[str, StreamFiles]()
    for part, text in texts.items():
        file, cache = work / f"{part}-{text.fingerprint}.safetensors", None
        text.save(file)
        if part in parts:
            said = "hidden" if parts[part] is None else f"top-{parts[part]}"
            cache = signals / f"{said}-{teacher.fingerprint}-{text.fingerprint}"
        streams[part] = StreamFiles(file, cache)
    speak_in_shares(workers, teacher, parts, {part: streams[part] for part in parts}, None, progress)
    return TrainingFiles(teacher.path, teacher.fingerprint, streams["train"], streams["validation"])
