"""The stages that find one shape for a size: screen, tournament."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from math import isfinite

from minitron_nas.errors import TrialError
from minitron_nas.execution.choice import make_runner
from minitron_nas.execution.runner import Jobs, Outcome
from minitron_nas.pipeline import inputs
from minitron_nas.pipeline.engine import Done, Left, Stage
from minitron_nas.pipeline.hop import Hop
from minitron_nas.pipeline.run import Run
from minitron_nas.progress import Progress
from minitron_nas.search.correlations import rank_correlations
from minitron_nas.search.fates import candidate_rows, exclusion_rows, told_losses
from minitron_nas.search.screen import sample_candidates, screen
from minitron_nas.search.study import write_study
from minitron_nas.search.tournament import ShortTraining, tournament
from minitron_nas.space.enumerate import Candidate, Enumeration, enumerate_candidates
from minitron_nas.storage.atomic import read_json, write_json
from minitron_nas.storage.ledger import fingerprint
from minitron_nas.storage.schemas import CANDIDATES, CORRELATIONS, EXCLUSIONS, TRIALS
from minitron_nas.storage.tables import read_rows


def find_shape(run: Run, hop: Hop) -> tuple[Candidate, Done]:
    """Screen the size's candidates, hold the tournament, and return the winner and the tournament's stage."""
    source = hop.source.checkpoint
    found = enumerate_candidates(run.plan.space, hop.size, source.architecture, source.layout)
    by_id = {candidate.id: candidate for candidate in found.candidates}
    screened = _screen(run, hop, found)
    finalists = [by_id[key] for key in screened.result]
    done = _contest(run, hop, found, screened, finalists)
    return by_id[done.result], done


def write_search(run: Run, tournaments: Sequence[Done]) -> None:
    """Write the search of all sizes as Optuna studies, for everything that reads Optuna.

    Args:
        run: The run.
        tournaments: The stages whose trials it tells.
    """

    def action(_: Progress) -> Left:
        candidates, trials = (read_rows(run.folder.path, table) for table in (CANDIDATES, TRIALS))
        write_study(run.folder.study, candidates, trials)
        return Left()

    stage = Stage(
        "study",
        "the search, as Optuna tells it",
        inputs.of_study(tournaments),
        needs=tournaments,
        outputs=[run.folder.study],
    )
    run.engine.run(stage, action)


def _jobs(run: Run, hop: Hop) -> Jobs:
    """Where the size's jobs run; what has been measured for other inputs is not taken for theirs."""
    folder, runner = run.folder.trials(hop.label), run.plan.runner
    key = fingerprint([inputs.of_search(run.plan, hop.size), [done.entry.digest for done in hop.needs]])
    return Jobs(make_runner(runner, run.folder.work / "ray"), folder / key, runner.max_failures)


def _screen(run: Run, hop: Hop, found: Enumeration) -> Done:
    plan, outcomes_file = run.plan, run.folder.screened(hop.label)
    sampled = sample_candidates(found.candidates, plan.search, plan.seed)

    def action(progress: Progress) -> Left:
        jobs = _jobs(run, hop).within("screen")
        outcomes = screen(sampled, hop.prepared, hop.lessons.files, plan.search, jobs, progress)
        _tell_losses(run, f"{hop.label} screen", outcomes)
        finite = [candidate for candidate in sampled if _is_finite(outcomes[candidate.id])]
        if not finite:
            raise TrialError(
                f"none of the {len(sampled)} candidates of {hop.label} that were screened has a finite KL to the "
                "teacher; the model or the text is damaged, or numbers overflow: try another text, or start=select and "
                "repair=none"
            )
        ranked = sorted(finite, key=lambda candidate: outcomes[candidate.id].number("kl_nats") or 0.0)
        # A tournament does not run again because the same screening took another time.
        write_json(outcomes_file, {key: asdict(replace(outcome, seconds=0.0)) for key, outcome in outcomes.items()})
        return Left([candidate.id for candidate in ranked[: plan.search.num_finalists]])

    stage = Stage(
        f"{hop.label} screen",
        f"untrained KL of {len(sampled)} of {len(found.candidates)} candidates",
        inputs.of_search(plan, hop.size),
        needs=(run.tokens.done, *hop.needs),
        outputs=[outcomes_file],
        costly=True,
    )
    return run.engine.run(stage, action)


def _contest(run: Run, hop: Hop, found: Enumeration, screened: Done, finalists: Sequence[Candidate]) -> Done:
    plan, folder = run.plan, run.folder.trials(hop.label)

    def action(progress: Progress) -> Left:
        jobs = _jobs(run, hop)
        rungs = plan.search.rung_tokens(run.tokens.distillation_tokens)
        training = ShortTraining(plan.distillation, tuple(rungs), plan.search.reduction, plan.seed)
        winner, trials = tournament(
            finalists,
            hop.prepared,
            hop.lessons.files,
            training,
            jobs.within("rungs"),
            jobs.results / "checkpoints",
            run.tokens.file("calibration") if plan.repair == "ridge" else None,
            progress,
        )
        _tell_losses(run, f"{hop.label} tournament", {trial.candidate.id: trial.outcome for trial in trials})
        outcomes = {key: Outcome(**values) for key, values in read_json(run.folder.screened(hop.label)).items()}
        context = plan.text.sequence_length // 2
        candidates = candidate_rows(found, hop.source.checkpoint.layout, context, outcomes, trials, winner)
        size = {"size": hop.label}
        return Left(
            winner.id,
            rows=(
                (CANDIDATES, [{**size, **row} for row in candidates]),
                (EXCLUSIONS, [{**size, **row} for row in exclusion_rows(found)]),
                (TRIALS, [trial.to_row(hop.label) for trial in trials]),
                (CORRELATIONS, [{**size, **row} for row in rank_correlations(outcomes, trials)]),
            ),
        )

    stage = Stage(
        f"{hop.label} tournament",
        f"short distillation of {len(finalists)} finalists in rungs",
        inputs.of_search(plan, hop.size),
        needs=(run.tokens.done, *hop.needs, screened),
        costly=True,
    )
    done = run.engine.run(stage, action)
    shutil.rmtree(folder, ignore_errors=True)
    return done


def _tell_losses(run: Run, what: str, outcomes: Mapping[str, Outcome]) -> None:
    if (told := told_losses(what, outcomes)) is not None:
        run.engine.note(told)


def _is_finite(outcome: Outcome) -> bool:
    kl = outcome.number("kl_nats")
    return kl is not None and isfinite(kl)
