"""What `gpu.py` measures beside distillation: the teacher's signal, surgery and screening."""

import os
import shutil
from pathlib import Path
from typing import Any

from contenders import resident_peak_bytes
from gpu_contenders import FINGERPRINT, STEPS, WARM_STEPS, forget_files, peak_bytes, random_teacher, random_text
from gpu_device import DTYPE, seconds_of
from gpu_shapes import Scale

from minitron_nas.distillation.job import StreamFiles, TrainingFiles
from minitron_nas.distillation.signals.folder import SignalPlace
from minitron_nas.distillation.signals.hidden_cache import write_hidden_cache
from minitron_nas.execution.device import release_memory
from minitron_nas.importance.baselines import random_scores
from minitron_nas.pruning.order import PruningOrder
from minitron_nas.pruning.parts import total_bytes
from minitron_nas.pruning.prepare import PreparedTeacher, write_prepared
from minitron_nas.pruning.student import cuts
from minitron_nas.pruning.write import write_weights
from minitron_nas.search.screen import screen_candidate
from minitron_nas.storage.atomic import require_free_bytes

SHARD_BYTES = "2GB"


def signal(scale: Scale, folder: Path) -> dict[str, Any]:
    """Write the teacher's caches; the time is that of the training text, after the held-out text."""
    teacher = random_teacher(scale)
    held_out = random_text(scale, scale.validation_sequences, 1)
    held_out.save(folder / "validation.safetensors")
    write_hidden_cache(teacher, SignalPlace(folder / "validation", FINGERPRINT, held_out))
    text = random_text(scale, (WARM_STEPS + STEPS) * scale.batch_sequences, 0)
    seconds = seconds_of(lambda: write_hidden_cache(teacher, SignalPlace(folder / "cache", FINGERPRINT, text)))
    return {
        "tokens_per_second": text.num_tokens / seconds,
        "bytes_per_second": _folder_bytes(folder / "cache") / seconds,
        "peak_bytes": peak_bytes(),
    }


def teacher(scale: Scale, folder: Path) -> dict[str, Any]:
    """Save the teacher, which surgery and screening read, with transformers, and rank its parts at random."""
    configs = (scale.teacher, scale.config(scale.largest()))
    num_bytes = DTYPE.itemsize * sum(map(scale.num_parameters, configs))
    require_free_bytes(folder, num_bytes, "the teacher and a student that is cut from it")
    path, model, architecture = folder / "teacher", random_teacher(scale), scale.shape(scale.teacher)
    seconds = seconds_of(lambda: (model.save_pretrained(path, max_shard_size=SHARD_BYTES), os.sync()))
    order = PruningOrder.from_scores(random_scores(architecture, scale.layout, 0), architecture, ())
    write_prepared(folder / "prepared", order)
    return {"bytes_per_second": _folder_bytes(path) / seconds}


def surgery(scale: Scale, folder: Path) -> dict[str, Any]:
    """Cut the largest student out of the teacher's files: channels selected, written, read back and compared.

    The files are read from the disk, not out of the system's memory of them.
    """
    prepared = PreparedTeacher.open(folder / "teacher", folder / "prepared")
    name = scale.largest()
    parts, student = cuts(prepared, scale.shape(scale.config(name))), folder / "student"
    student.mkdir()
    forget_files(prepared.path)
    seconds = seconds_of(lambda: write_weights(parts, student))
    shutil.rmtree(student)
    return {
        "student": name,
        "seconds": seconds,
        "bytes_per_second": total_bytes(parts) / seconds,
        "resident_peak_bytes": resident_peak_bytes(),
    }


def screening(scale: Scale, folder: Path) -> dict[str, Any]:
    """Screen every student's shape as the search does: cut it, move it to the device, validate it.

    The teacher itself comes first, so that what is compiled is compiled and its files are in the system's memory, as
    after the first candidate of a search. Its KL to its own words is 0 but for rounding.
    """
    held_out = StreamFiles(folder / "validation.safetensors", folder / "validation")
    files = TrainingFiles(folder / "teacher", FINGERPRINT, held_out, held_out)
    prepared = PreparedTeacher.open(folder / "teacher", folder / "prepared")

    def screened(config: Any) -> tuple[float, float]:
        architecture, found = scale.shape(config).to_dict(), dict[str, Any]()
        seconds = seconds_of(
            lambda: found.update(screen_candidate(prepared.to_dict(), architecture, files.to_dict(), None))
        )
        release_memory()
        return seconds, found["kl_nats"]

    _, own_kl_nats = screened(scale.teacher)
    measured = {name: screened(scale.config(name)) for name in scale.students}
    return {
        "seconds": {name: seconds for name, (seconds, _) in measured.items()},
        "kl_nats": {name: kl_nats for name, (_, kl_nats) in measured.items()},
        "own_kl_nats": own_kl_nats,
        "validation_tokens": scale.validation_sequences * scale.sequence_length,
        "peak_bytes": peak_bytes(),
    }


def _folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


STAGES = {"signal": signal, "teacher": teacher, "surgery": surgery, "screening": screening}
