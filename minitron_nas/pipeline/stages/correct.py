"""The stage that corrects a run's teacher, where the plan says so."""

import shutil
from typing import Any

from minitron_nas.distillation.settings import CorrectionSettings
from minitron_nas.errors import PlanError
from minitron_nas.models.checkpoint import Checkpoint, open_checkpoint
from minitron_nas.pipeline.engine import Engine
from minitron_nas.pipeline.plan import FamilyPlan
from minitron_nas.pipeline.stages.tokenize import Tokens
from minitron_nas.pipeline.steps.correct import CorrectionRun, correction_schedule
from minitron_nas.progress import Progress


def correct_teacher(engine: Engine, plan: FamilyPlan, teacher: Checkpoint, tokens: Tokens) -> Checkpoint:
    """Correct a run's teacher on its training text, if the plan says so, and return the one to go on with.

    Raises:
        PlanError: If correction wants more tokens than the run has.
    """
    if plan.correct is None:
        return teacher
    settings, folder = plan.correct, engine.folder.corrected
    wanted = correction_tokens(settings, tokens.distillation_tokens)
    checkpoints = engine.folder.checkpoints("corrected")

    def action(progress: Progress) -> dict[str, Any]:
        schedule, training = correction_schedule(settings, wanted, plan.text.sequence_length)
        train, validation = tokens.part("train"), tokens.part("validation")
        run = CorrectionRun(teacher, train, validation, settings, training, schedule, plan.seed)
        corrected = run.write(folder, checkpoints, plan.teacher, progress)
        return {"loss_nats_before": corrected.before.loss_nats, "loss_nats": corrected.after.loss_nats}

    inputs = {
        "teacher": teacher.fingerprint,
        "tokens": tokens.fingerprint,
        "correct": settings.model_dump(),
        "wanted": wanted,
        "seed": plan.seed,
    }
    title = f"fine-tuned on {wanted:,} tokens of the KD text"
    engine.stage("teacher correct", title, inputs, [folder / "config.json"], action)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return open_checkpoint(folder, read_values=False)


def correction_tokens(settings: CorrectionSettings, distillation_tokens: int) -> int:
    """Return the tokens that a run's teacher is corrected on: those of the students, or the first of them.

    Raises:
        PlanError: If more are asked for.
    """
    if settings.tokens is not None and settings.tokens > distillation_tokens:
        raise PlanError(
            f"correct.tokens={settings.tokens:,} is more than the {distillation_tokens:,} tokens of distillation, "
            "whose text the teacher is corrected on; lower it, or raise distillation.tokens"
        )
    return settings.tokens or distillation_tokens
