"""What a finalist and a student are before any training: repaired in the way that suits their shape.

Which way that is depends on the shape, so both are measured: in one pass, from second moments that all candidates
share, and in sequence, layer after layer. The one whose KL to the teacher is lower on the held-out text is written.
It is the same for the trial of a shape and for its student, so that no student begins worse than the trial that chose
it: what a trial began with is kept, and taken again where it is still what was written.

The repair in sequence takes about three forward passes of the source over the calibration text, and each of the two
one forward pass of the student over the held-out text.
"""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from math import inf, isfinite, nan
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

import torch

from minitron_nas.architecture.spec import Architecture
from minitron_nas.distillation.job import TrainingFiles
from minitron_nas.distillation.loss.losses import Losses
from minitron_nas.distillation.loss.validation import validate
from minitron_nas.execution.device import pick_device, release_memory
from minitron_nas.models.causal_lm import CausalLM, moved
from minitron_nas.progress import Progress, silent
from minitron_nas.pruning.prepare import PreparedTeacher
from minitron_nas.pruning.refit import refit_in_sequence
from minitron_nas.pruning.repair_in_sequence import why_never_in_sequence
from minitron_nas.pruning.student import build_student
from minitron_nas.storage.atomic import whole_folder
from minitron_nas.storage.outputs import Outputs, from_plain, to_plain
from minitron_nas.storage.sealed import read_sealed, write_sealed
from minitron_nas.text.tokens import PackedTokens

Way: TypeAlias = Literal["none", "one_pass", "in_sequence"]
"""How a student was repaired."""

_WORDS: Mapping[Way, str] = {"one_pass": "in one pass", "in_sequence": "layer after layer"}
_ABOUT = "start.json"


@dataclass(frozen=True, slots=True)
class MeasuredStart:
    """What a student is before any training.

    Attributes:
        repair: How it was repaired.
        kl_nats: Its KL to the teacher on the held-out text.
        other_kl_nats: The same, repaired in the other way; None where there is only one.
        loss_nats: Its next-token loss there.
        sequence_kl_nats: The KL of each sequence, summed over its tokens.
    """

    repair: Way
    kl_nats: float
    other_kl_nats: float | None = None
    loss_nats: float = nan
    sequence_kl_nats: list[float] = field(default_factory=list)

    def standing(self) -> dict[str, Any]:
        """Return by what it is compared with others."""
        return {
            "kl_nats": self.kl_nats,
            "loss_nats": self.loss_nats,
            "sequence_kl_nats": self.sequence_kl_nats,
        }

    @property
    def choice(self) -> str | None:
        """How it was repaired and why, in words; None where there was no choice."""
        if self.other_kl_nats is None or self.repair == "none":
            return None
        other: Way = "one_pass" if self.repair == "in_sequence" else "in_sequence"
        return (
            f"repaired {_WORDS[self.repair]}, where it begins with a KL of {self.kl_nats:.3f} nats "
            f"({self.other_kl_nats:.3f} {_WORDS[other]})"
        )


@dataclass(frozen=True, slots=True)
class Starts:
    """What finalists and students of a size begin as, each in a folder that is named after its shape.

    Attributes:
        prepared: The ranked teacher that they are cut from.
        files: What they are trained on; on its held-out stream the repairs are compared.
        folder: Of them all.
        calibration: The text that repairs read; None to repair nothing.
    """

    prepared: PreparedTeacher
    files: TrainingFiles
    folder: Path
    calibration: Path | None = None

    def of(self, target: Architecture) -> Path:
        """The folder of one of them.

        Args:
            target: Its shape.
        """
        return self.folder / target.id

    def write(self, target: Architecture, progress: Progress = silent) -> MeasuredStart:
        """Write one as a stock folder with float32 weights, unless it is there whole, and return what it is.

        Args:
            target: Its shape.
            progress: Told about the tokens of the repair.

        Raises:
            InvalidArchitectureError: If stock transformers would refuse the shape.
            DiskSpaceError: If neither memory nor disk can hold the hidden states of the calibration text.
        """
        folder = self.of(target)
        if (start := _written(folder)) is not None:
            return start
        held_out, device = self.files.held_out(), pick_device()
        work = folder.with_name(f"{folder.name}.repair")
        measured: dict[Way, Losses] = {}
        with whole_folder(folder) as unfinished:
            for way, student in self._ways(target, work, progress):
                losses = validate(moved(student, device), held_out.tokens, held_out.signal)
                measured[way] = losses
                if _ranked(measured)[0] == way:
                    student.save_pretrained(unfinished)
                del student
                release_memory()
            start = _better(measured)
            written = to_plain(Outputs(unfinished).describe([unfinished]))
            write_sealed(unfinished / _ABOUT, {"measured": asdict(start), "files": written})
        shutil.rmtree(work, ignore_errors=True)
        return start

    def _ways(self, target: Architecture, work: Path, progress: Progress) -> Iterator[tuple[Way, CausalLM]]:
        """Build the student in every way that its family knows, one at a time."""
        prepared, calibration = self.prepared, self.calibration
        repairs = calibration is not None and target != prepared.architecture
        yield "one_pass" if repairs else "none", build_student(prepared, target, torch.float32)
        if (
            calibration is None
            or not repairs
            or why_never_in_sequence(prepared.layout, prepared.architecture) is not None
        ):
            return
        repaired = refit_in_sequence(prepared, target, PackedTokens.load(calibration), work, progress)
        yield "in_sequence", build_student(prepared, target, torch.float32, repaired)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for a worker; paths become absolute, because it may run in another folder."""
        return {
            "prepared": self.prepared.to_dict(),
            "files": self.files.to_dict(),
            "folder": str(self.folder.absolute()),
            "calibration": None if self.calibration is None else str(self.calibration.absolute()),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_dict` returned."""
        calibration = values["calibration"]
        return cls(
            PreparedTeacher.from_dict(values["prepared"]),
            TrainingFiles.from_dict(values["files"]),
            Path(values["folder"]),
            None if calibration is None else Path(calibration),
        )


def _written(folder: Path) -> MeasuredStart | None:
    """Return what a start is that was written before; None if it has changed since, or less was measured of it."""
    about = read_sealed(folder / _ABOUT)
    if about is None or about["measured"].keys() != {each.name for each in fields(MeasuredStart)}:
        return None
    if Outputs(folder).differing(from_plain(about["files"]), thorough=True):
        return None
    return MeasuredStart(**about["measured"])


def _ranked(measured: Mapping[Way, Losses]) -> list[Way]:
    """Return the ways by KL, those of one KL as they come; what is no number comes last."""
    return sorted(measured, key=lambda way: kl if isfinite(kl := measured[way].kl_nats) else inf)


def _better(measured: Mapping[Way, Losses]) -> MeasuredStart:
    best, *others = _ranked(measured)
    other_kl_nats = measured[others[0]].kl_nats if others else None
    found = measured[best]
    return MeasuredStart(best, found.kl_nats, other_kl_nats, found.loss_nats, list(found.sequence_kl_nats))
