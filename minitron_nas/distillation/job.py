"""A distillation as files: what its processes read, and what they leave.

Several processes share nothing but a folder. The file `job.json` in it says everything that decides
the training; `minitron_nas.distillation.worker` reads it, in one process or in many. Every file carries its own
checksum; one that is not what was written counts as none.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

from minitron_nas import errors
from minitron_nas.distillation.correction import Correction, FollowingTeacher
from minitron_nas.distillation.settings import DistillationSettings
from minitron_nas.distillation.signals.caches import open_signal
from minitron_nas.distillation.signals.folder import SignalPlace
from minitron_nas.distillation.signals.hidden_cache import HiddenCache
from minitron_nas.distillation.signals.teacher import OnlineTeacher, TeacherSignal
from minitron_nas.distillation.training.best import BEST
from minitron_nas.distillation.training.curve import CurvePoint, Judge, TrainingResult
from minitron_nas.distillation.training.lesson import Stream
from minitron_nas.distillation.training.schedule import Schedule
from minitron_nas.errors import CheckpointError, PlanError
from minitron_nas.execution.deepspeed import load_sharded_teacher
from minitron_nas.models.loading import load_stock, load_whole
from minitron_nas.storage.sealed import read_sealed, write_sealed
from minitron_nas.text.tokens import PackedTokens

JOB = "job.json"
TRAINED = "model.safetensors"
_RESULT, _PROGRESS, _ERRORS = "result.json", "progress.json", "error-*.json"


@dataclass(frozen=True, slots=True)
class StreamFiles:
    """A token stream and what the teacher says over it, as paths that any worker can open.

    Attributes:
        tokens: The stream.
        cache: What the teacher says over it; None where it runs beside the student, or is not asked.
    """

    tokens: Path
    cache: Path | None = None

    def open(self) -> PackedTokens:
        """Memory-map the stream.

        Raises:
            CheckpointError: If the file holds no packed tokens.
        """
        return PackedTokens.load(self.tokens)


@dataclass(frozen=True, slots=True)
class TrainingFiles:
    """The two streams of a training and the teacher whose signals lie over them.

    Attributes:
        teacher: A stock folder; read only where the teacher runs beside the student.
        fingerprint: Of the teacher, whose words the caches must hold.
        train: What is trained on.
        validation: What is held out, with a cache of the teacher's hidden states; without one its KL is not taken.
        correction: What `correct` writes to, where the teacher beside the student takes the newest weights of it.
    """

    teacher: Path
    fingerprint: str
    train: StreamFiles
    validation: StreamFiles
    correction: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; paths become absolute, because a worker may run in another folder."""
        return {name: _plain(value) for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_dict` returned.

        Args:
            values: The plain values.
        """
        train, validation = (
            StreamFiles(Path(values[part]["tokens"]), _maybe_path(values[part]["cache"]))
            for part in ("train", "validation")
        )
        correction = _maybe_path(values["correction"])
        return cls(Path(values["teacher"]), values["fingerprint"], train, validation, correction)

    def held_out(self) -> Stream:
        """Open the validation stream with its cache of hidden states, if it has one.

        Raises:
            CacheError: If the cache is not whole, or of something else.
        """
        tokens = self.validation.open()
        if self.validation.cache is None:
            return Stream(tokens, None)
        return Stream(tokens, HiddenCache(SignalPlace(self.validation.cache, self.fingerprint, tokens)))

    def streams(self, asks_teacher: bool = True, sharded: bool = False) -> tuple[Stream, Stream]:
        """Open the training and the validation stream.

        Args:
            asks_teacher: Whether training needs the teacher's signal.
            sharded: Whether a teacher beside the student is sharded over all processes (ZeRO-3).

        Raises:
            PlanError: If a sharded teacher is to follow a correction.
        """
        if sharded and self.correction is not None:
            raise PlanError(
                "ZeRO-3 shards the teacher too, whose weights cannot follow a correction then; choose "
                "distillation.deepspeed=zero-2, or wait for the correction"
            )
        train = self.train.open()
        signal: TeacherSignal | None = None
        if asks_teacher and sharded and self.train.cache is None:
            signal = OnlineTeacher(load_sharded_teacher(partial(load_stock, self.teacher)))
        elif asks_teacher and self.correction is not None:
            teacher = load_whole(self.teacher)  # whose weights are written to
            signal = FollowingTeacher(teacher, self.fingerprint, Correction(self.correction))
        elif asks_teacher:
            signal = open_signal(self.teacher, self.fingerprint, train, self.train.cache)
        return Stream(train, signal), self.held_out()


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """One distillation.

    Attributes:
        student: A stock folder whose weights training begins with.
        files: Token streams and teacher signals.
        settings: Learning rate, loss and so on.
        schedule: Steps and batch.
        checkpoints: Where checkpoints lie.
        seed: Seeds what the model may draw.
        out: The folder of `job.json`, the result and the weights of the best validation.
        stop_step: Where a trial stops, with a checkpoint and without weights; None trains to the end.
    """

    student: Path
    files: TrainingFiles
    settings: DistillationSettings
    schedule: Schedule
    checkpoints: Path
    seed: int
    out: Path
    stop_step: int | None = None

    @property
    def judge(self) -> Judge:
        """What validations are compared by.

        The teacher of the validation is not what is learned where the loss asks none, and where it follows a
        correction: there the next-token loss counts.
        """
        follows = self.files.correction is not None
        return "loss_nats" if follows or not self.settings.asks_teacher else "kl_nats"

    def write(self) -> Path:
        """Write `job.json`, remove what another attempt has left beside it, and return its path."""
        for left in (*self.out.glob(_ERRORS), *(self.out / name for name in (_RESULT, _PROGRESS, BEST))):
            left.unlink(missing_ok=True)
        write_sealed(self.out / JOB, self._content())
        return self.out / JOB

    @property
    def is_done(self) -> bool:
        """Whether this very training has left its result, and its weights unless it is a trial."""
        has_left = self.stop_step is not None or (self.out / TRAINED).exists()
        return has_left and read_sealed(self.out / JOB) == self._content() and self.result() is not None

    def _content(self) -> dict[str, Any]:
        return {
            "student": str(self.student.absolute()),
            "files": self.files.to_dict(),
            "settings": {**self.settings.model_dump(mode="json"), "deepspeed": _absolute(self.settings.deepspeed)},
            "schedule": asdict(self.schedule),
            "checkpoints": str(self.checkpoints.absolute()),
            "seed": self.seed,
            "stop_step": self.stop_step,
            "judge": self.judge,  # which weights were left, too
        }

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a `job.json`.

        Args:
            path: What `write` returned.

        Raises:
            CheckpointError: If it is not what was written.
        """
        content = read_sealed(path)
        if content is None:
            raise CheckpointError(
                f"{path} is missing or not what was written there; repeat the command, which writes it again"
            )
        return cls(
            Path(content["student"]),
            TrainingFiles.from_dict(content["files"]),
            DistillationSettings.model_validate(content["settings"]),
            Schedule(**content["schedule"]),
            Path(content["checkpoints"]),
            content["seed"],
            path.parent.absolute(),
            content["stop_step"],
        )

    def write_result(self, result: TrainingResult) -> None:
        """Leave the curve; its file says that the weights beside it are whole.

        Args:
            result: The curve.
        """
        write_sealed(self.out / _RESULT, asdict(result))

    def result(self) -> TrainingResult | None:
        """Return what `write_result` has left, or None."""
        content = read_sealed(self.out / _RESULT)
        if content is None:
            return None
        curve = tuple(CurvePoint(**point) for point in content["curve"])
        return TrainingResult(curve, content["judge"], tuple(content["sequence_kl_nats"]))

    def write_progress(self, done: int, total: int) -> None:
        """Leave how many optimizer steps are done.

        Args:
            done: So many.
            total: Of so many.
        """
        write_sealed(self.out / _PROGRESS, {"done": done, "total": total})

    def progress(self) -> tuple[int, int] | None:
        """Return what `write_progress` has left, or None."""
        content = read_sealed(self.out / _PROGRESS)
        return None if content is None else (content["done"], content["total"])

    def best(self) -> tuple[int, float] | None:
        """Return after how many optimizer steps the best validation so far was, and what it is judged by, or None."""
        content = read_sealed(self.out / BEST)
        return None if content is None else (content["step"], content["value"])

    def write_error(self, rank: int, error: errors.MinitronNasError | errors.PreemptedError) -> None:
        """Leave why a process has ended.

        Args:
            rank: The process.
            error: Why.
        """
        write_sealed(self.out / _ERRORS.replace("*", str(rank)), errors.to_plain(error))

    def raise_error(self) -> None:
        """Raise what a process has left, the lowest rank's first; nothing if there is nothing."""
        for file in sorted(self.out.glob(_ERRORS)):
            if (content := read_sealed(file)) is not None:
                raise errors.from_plain(content)


def _absolute(profile: str | None) -> str | None:
    """Return a file's absolute path, and anything else as it is."""
    return str(Path(profile).absolute()) if profile is not None and Path(profile).is_file() else profile


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    return str(value.absolute()) if isinstance(value, Path) else value


def _maybe_path(value: str | None) -> Path | None:
    return None if value is None else Path(value)
