"""The stage that corrects a run's teacher, where the plan says so."""

import shutil
from pathlib import Path

from minitron_nas.distillation.settings import CorrectionSettings
from minitron_nas.errors import PlanError
from minitron_nas.models.checkpoint import open_checkpoint
from minitron_nas.pipeline import inputs
from minitron_nas.pipeline.engine import Engine, Left, Stage
from minitron_nas.pipeline.plan import FamilyPlan
from minitron_nas.pipeline.run import RunTokens, Source, workers_of
from minitron_nas.pipeline.steps.correct import CorrectionRun, FineTuning
from minitron_nas.progress import Progress
from minitron_nas.text.tokens import PackedTokens


def correct_teacher(engine: Engine, plan: FamilyPlan, teacher: Source, tokens: RunTokens) -> Source:
    """Correct a run's teacher on its training text, if the plan says so, and return the one to go on with.

    Args:
        engine: Runs the stage.
        plan: Says whether, and how.
        teacher: As it came.
        tokens: The run's text.

    Raises:
        PlanError: If correction wants more tokens than the run has.
    """
    if plan.correct is None:
        return teacher
    settings, folder, checkpoint = plan.correct, engine.folder.corrected, teacher.checkpoint
    wanted = correction_tokens(settings, tokens.distillation_tokens)
    checkpoints = engine.folder.checkpoints("corrected")

    def action(progress: Progress) -> Left:
        losses = workers_of(plan, engine.folder).call(
            correct,
            progress,
            teacher=checkpoint.path,
            name=plan.teacher,
            texts=(tokens.file("train"), tokens.file("validation")),
            tuning=FineTuning.of(settings, wanted, plan.text.sequence_length, plan.seed),
            folder=folder,
            checkpoints=checkpoints,
        )
        return Left(losses)

    stage = Stage(
        "teacher correct",
        f"fine-tuned on {wanted:,} tokens of the KD text",
        inputs.of_correction(plan, checkpoint, wanted),
        needs=(tokens.done,),
        outputs=[folder],
        costly=True,
    )
    done = engine.run(stage, action)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return Source(teacher.name, open_checkpoint(folder, read_values=False), (done,))


def correct(
    teacher: Path,
    name: str,
    texts: tuple[Path, Path],
    tuning: FineTuning,
    folder: Path,
    checkpoints: Path,
    progress: Progress,
) -> dict[str, float]:
    """Correct a teacher, going on from its last checkpoint.

    Args:
        teacher: Its folder.
        name: What the plan calls it.
        texts: The files of the training and the validation text.
        tuning: How it is trained on them.
        folder: Where the corrected teacher goes.
        checkpoints: Where checkpoints lie.
        progress: Told about steps.

    Returns:
        The next-token loss on the validation text before and after.
    """
    train, validation = map(PackedTokens.load, texts)
    checkpoint = open_checkpoint(teacher, read_values=False)
    corrected = CorrectionRun(checkpoint, train, validation, tuning).write(folder, checkpoints, name, progress)
    return {"loss_nats_before": corrected.before.loss_nats, "loss_nats": corrected.after.loss_nats}


def correction_tokens(settings: CorrectionSettings, distillation_tokens: int) -> int:
    """Return the tokens that a run's teacher is corrected on: those of the students, or the first of them.

    Args:
        settings: May ask for some.
        distillation_tokens: Of one student.

    Raises:
        PlanError: If more are asked for.
    """
    if settings.tokens is not None and settings.tokens > distillation_tokens:
        raise PlanError(
            f"correct.tokens={settings.tokens:,} is more than the {distillation_tokens:,} tokens of distillation, "
            "whose text the teacher is corrected on; lower it, or raise distillation.tokens"
        )
    return settings.tokens or distillation_tokens
