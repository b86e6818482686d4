"""The stage that finds the learning rate of a size's trials and students."""

import shutil
from dataclasses import replace

from minitron_nas.architecture.spec import Architecture
from minitron_nas.distillation.training.schedule import Schedule
from minitron_nas.execution.choice import make_runner
from minitron_nas.execution.runner import Jobs
from minitron_nas.pipeline import inputs
from minitron_nas.pipeline.board import Board
from minitron_nas.pipeline.engine import Done, Left, Stage
from minitron_nas.pipeline.hop import Hop
from minitron_nas.pipeline.run import Run
from minitron_nas.pipeline.stages.train import start_member
from minitron_nas.progress import Progress
from minitron_nas.search.rates import Probing, find_rate, probe_schedule, told_rates, why_no_probes
from minitron_nas.storage.schemas import RATES


def find_learning_rate(run: Run, hop: Hop, target: Architecture) -> tuple[Hop, tuple[Done, ...]]:
    """Try learning rates on a size's first finalist, if the plan leaves them open, and say which its trainings take.

    Args:
        run: The run.
        hop: The size.
        target: The finalist's shape.

    Returns:
        The size with the rate that was found, and the stage that found it, if one did.
    """
    plan, settings, tokens = run.plan, run.plan.distillation, run.tokens.distillation_tokens
    if settings.learning_rate != "auto":
        return hop, ()
    student = Schedule.resolve(settings, tokens, plan.text.sequence_length)
    probe = probe_schedule(settings, student, plan.search.last_rung(tokens))
    if probe is None:
        run.engine.note(f"{hop.label}: {why_no_probes(student, hop.learning_rate)}")
        return hop, ()
    folder = run.folder.rates(hop.label)

    def action(progress: Progress) -> Left:
        work, files = folder / stage.fingerprint, hop.lessons.trials
        board, runner = Board(progress, run.engine.stand), make_runner(plan.runner, run.folder.work / "ray")
        begun, start = start_member(run, hop, target, board.starting)
        probing = Probing(hop.lessons.of_trials(settings), probe, plan.seed, start.standing())
        jobs = Jobs(runner, work / "results", plan.runner.max_failures, board.see)
        rate, probes = find_rate(begun, files, probing, jobs, work / "checkpoints", board.tokens)
        run.engine.note(f"{hop.label}: {told_rates(rate, probes, probing.judge)}")
        told = {"size": hop.label, "candidate": target.id, "start_kl_nats": start.kl_nats}
        return Left(rate, rows=((RATES, [{**told, **probe.to_row(rate)} for probe in probes]),))

    stage = Stage(
        f"{hop.label} rate",
        f"learning rates are tried on {target.id}",
        inputs.of_rate(plan, target),
        needs=(run.tokens.done, *hop.needs),
        costly=True,
    )
    done = run.engine.run(stage, action)
    shutil.rmtree(folder, ignore_errors=True)
    return replace(hop, learning_rate=done.result), (done,)
