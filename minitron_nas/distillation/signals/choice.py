"""Which signal a training gets where the plan leaves it open: what the disk can hold."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from minitron_nas.distillation.settings import DistillationSettings, SignalKind
from minitron_nas.distillation.signals.top_k_cache import top_k_bytes
from minitron_nas.settings import about_bytes, format_count

CACHE_SHARE = 0.5
"""The most of the free disk that what the teacher says over the training text may take."""

_KEPT: Mapping[SignalKind, str] = {"hidden_cache": "final hidden states", "top_k": "the most probable tokens"}
"""What is kept, the better first."""

_WORTH_KEEPING = 2
"""The fewest trainings for which a teacher that speaks once, into files that lose a little, costs less than one beside
each of them. One H200, 8B teaching 0.51B, microseconds a token: 51 to write, 10 to train from a cache, 37 to train
beside the teacher; so 61 against 37 for one training, 71 against 75 for two."""


@dataclass(frozen=True, slots=True)
class Speech:
    """How much a KD teacher says.

    Attributes:
        num_tokens: Of the training text, of all KD teachers together; None where that is not known before it is read.
        num_trainings: That learn from what one teacher says.
        vocab_size: Of the teacher.
        state_bytes: Of one final hidden state.
    """

    num_tokens: int | None
    num_trainings: int
    vocab_size: int
    state_bytes: int


def kept_bytes(settings: DistillationSettings, vocab_size: int, state_bytes: int) -> int:
    """Return the bytes of what is kept of a teacher's words on one token of training text.

    Args:
        settings: Which signal there is.
        vocab_size: Of the teacher.
        state_bytes: Of one final hidden state.
    """
    if not settings.caches_training:
        return 0
    top_k = settings.cached_top_k
    return state_bytes if top_k is None else top_k_bytes(min(top_k, vocab_size))


def settle(settings: DistillationSettings, speech: Speech, free_bytes: int) -> tuple[DistillationSettings, str]:
    """Choose a signal where `teacher_signal` is `auto`: a cache if the disk has room for it, else the teacher itself.

    Final hidden states are all that the teacher says, and come first; the most probable tokens where they alone fit
    and several trainings share them; else the teacher runs beside every student, which costs its forward pass each
    time and loses nothing.

    Args:
        settings: How a student learns.
        speech: How much the teacher says.
        free_bytes: Of the disk where it would be kept.

    Returns:
        The settings with a signal that is settled, and why, in a line; that is empty where nothing was open.
    """
    if settings.teacher_signal != "auto":
        return settings, ""
    if not settings.asks_teacher:
        return _with(settings, "hidden_cache"), ""
    if settings.signals == ("online",):
        return _with(settings, "online"), "teacher_signal: online, for hidden states inside the teacher are matched"
    if speech.num_tokens is None:
        return _with(settings, "hidden_cache"), (
            "teacher_signal: hidden_cache; how much text there is shows when it is read, and what the teacher says "
            f"over a token takes {speech.state_bytes:,} bytes; set distillation.tokens to have it held against the disk"
        )
    room, shared = CACHE_SHARE * free_bytes, speech.num_trainings >= _WORTH_KEEPING
    said, half = list[str](), f"half of the {about_bytes(free_bytes)} that are free"
    for kind, what in _KEPT.items():
        if kind not in settings.signals:
            continue
        if kind == "top_k" and not shared:
            break
        chosen = _with(settings, kind)
        needed = speech.num_tokens * kept_bytes(chosen, speech.vocab_size, speech.state_bytes)
        words = f"{what} of {format_count(speech.num_tokens)} tokens take {about_bytes(needed)}"
        if needed <= room:
            before = f"{'; '.join(said)}, more than {half}; " if said else ""
            after = "" if said else f", at most {half}"
            return chosen, f"teacher_signal: {kind}; {before}{words}{after}"
        said.append(words)
    beside = "beside every student" if shared else "beside the student, which costs no more than to write for it alone"
    return _with(settings, "online"), (
        f"teacher_signal: online, the teacher runs {beside}; {' and '.join(said)}, more than {half}"
    )


def folder_bytes(folder: Path) -> int:
    """Return the bytes of the files below a folder; none where it is not there.

    Args:
        folder: Where an earlier call may have kept what the teacher says.
    """
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _with(settings: DistillationSettings, kind: SignalKind) -> DistillationSettings:
    return settings.model_copy(update={"teacher_signal": kind})
