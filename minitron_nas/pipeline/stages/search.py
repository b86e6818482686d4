"""The stages that find one shape for a size: screen, rate, tournament."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from minitron_nas.architecture.layout import Layout
from minitron_nas.architecture.spec import Architecture
from minitron_nas.errors import TrialError
from minitron_nas.evaluation.latency import LatencyModel
from minitron_nas.execution.choice import make_runner
from minitron_nas.execution.local import LocalRunner
from minitron_nas.execution.runner import Jobs, Outcome, Runner
from minitron_nas.pipeline import inputs
from minitron_nas.pipeline.board import Board
from minitron_nas.pipeline.engine import Done, Left, Stage
from minitron_nas.pipeline.hop import Hop
from minitron_nas.pipeline.plan import FamilyPlan
from minitron_nas.pipeline.run import Run
from minitron_nas.pipeline.stages.extend import conditions, taken_over
from minitron_nas.pipeline.stages.rate import find_learning_rate
from minitron_nas.pipeline.stages.train import starts_of
from minitron_nas.progress import Progress
from minitron_nas.search.by_text import kls_by_text, text_correlations
from minitron_nas.search.choice import Choice
from minitron_nas.search.contest import TrialRow
from minitron_nas.search.correlations import rank_correlations
from minitron_nas.search.costing import Costing, Deployment
from minitron_nas.search.exploration import Exploration, explore, make_sampler
from minitron_nas.search.fates import candidate_rows, exclusion_rows, told_losses
from minitron_nas.search.finalists import choose_finalists
from minitron_nas.search.objectives import TIMED
from minitron_nas.search.pool import Pool
from minitron_nas.search.proposals import PoolSampler, references
from minitron_nas.search.rungs import Standing
from minitron_nas.search.screen import screen
from minitron_nas.search.study import write_study
from minitron_nas.search.tournament import ShortTraining, tournament
from minitron_nas.space.enumerate import Candidate, Enumeration, enumerate_candidates
from minitron_nas.space.size import Size
from minitron_nas.storage.atomic import read_json, write_json
from minitron_nas.storage.ledger import fingerprint
from minitron_nas.storage.schemas import CANDIDATES, CORRELATIONS, EXCLUSIONS, RATES, TEXTS, TRIALS
from minitron_nas.storage.tables import read_rows


@dataclass(frozen=True, slots=True)
class Found:
    """What the search of a size has come to.

    Attributes:
        chosen: The members-to-be, the first one first.
        held_against: Shapes that the choice is held against, by name (`references`).
        hop: The size, with the learning rate of its trainings.
        stages: What tells of it in the tables: the tournament, and what found the rate, if anything did.
    """

    chosen: list[Candidate]
    held_against: dict[str, Candidate]
    hop: Hop
    stages: tuple[Done, ...]


def find_shapes(run: Run, hop: Hop) -> Found:
    """Screen the size's candidates, find a learning rate for the first of them, and hold the tournament at it."""
    plan = run.plan
    found = shapes_of(plan, hop.size, hop.costing)
    pool = pool_of(plan, found, hop.costing)
    screened = _screen(run, hop, pool)
    finalists = [pool.candidates[index] for index in screened.result]
    hop, tried = find_learning_rate(run, hop, finalists[0].architecture)
    done = _contest(run, hop, found, pool, screened, finalists)
    by_id = {candidate.id: candidate for candidate in finalists}
    held_against = {name: pool.candidates[index] for name, index in references(pool, plan.seed).items()}
    return Found([by_id[key] for key in done.result], held_against, hop, (done, *tried))


def costing_of(
    plan: FamilyPlan, source: Architecture, layout: Layout, latency: LatencyModel | None, against: Architecture
) -> Costing:
    """Return what shapes cost in the terms of a plan.

    Args:
        plan: Says what memory is counted for.
        source: The shape that they are cut from.
        layout: The table of its family.
        latency: Predicts seconds; None where it is not known yet.
        against: The shape that speed-ups are relative to.
    """
    deployment = Deployment(plan.search.batch_size, plan.search.context_tokens)
    return Costing(source, layout, plan.text.sequence_length // 2, deployment, latency, against)


def shapes_of(plan: FamilyPlan, size: Size, costing: Costing) -> Enumeration:
    """Return all shapes of a size.

    Args:
        plan: Names the space.
        size: The size.
        costing: Says what shapes have in its unit.

    Raises:
        SpaceError: If there is none; says how near shapes come.
    """
    return enumerate_candidates(plan.space, size, costing.source, costing.layout, costing.measure(size))


def pool_of(plan: FamilyPlan, found: Enumeration, costing: Costing) -> Pool:
    """Return what a plan's search may choose from.

    Args:
        plan: Says what is allowed.
        found: All shapes of the size.
        costing: Says what they cost; without a latency model constraints on seconds are left for later.

    Raises:
        SpaceError: If no shape keeps to the constraints.
    """
    timed = costing.latency is not None
    return Pool.of(found, costing, [bound for bound in plan.search.bounds if timed or bound.column not in TIMED])


def write_search(run: Run, told: Sequence[Done]) -> None:
    """Write the search of all sizes as Optuna studies, for everything that reads Optuna.

    Args:
        run: The run.
        told: The stages whose trials it tells: tournaments, and those in which learning rates were tried.
    """

    def action(_: Progress) -> Left:
        candidates = read_rows(run.folder.path, CANDIDATES, [("outcome", "!=", "not_sampled")])
        trials = read_rows(run.folder.path, TRIALS)
        rates = read_rows(run.folder.path, RATES)
        write_study(run.folder.study, candidates, trials, run.plan.search.weighed, rates)
        return Left()

    stage = Stage(
        "study",
        "the search, as Optuna tells it",
        inputs.of_rows(told),
        needs=told,
        outputs=[run.folder.study],
    )
    run.engine.run(stage, action)


def _jobs(run: Run, hop: Hop, here: bool = False) -> Jobs:
    """Where the size's jobs run; what has been measured for other inputs is not taken for theirs."""
    folder, settings = run.folder.trials(hop.label), run.plan.runner
    runner: Runner = LocalRunner(settings) if here else make_runner(settings, run.folder.work / "ray")
    key = fingerprint(
        [inputs.of_search(run.plan, hop.size, hop.learning_rate), [done.entry.digest for done in hop.needs]]
    )
    return Jobs(runner, folder / key, settings.max_failures)


def _screen(run: Run, hop: Hop, pool: Pool) -> Done:
    plan, explored_file = run.plan, run.folder.screened(hop.label)
    settings = plan.search
    most = settings.num_screened(len(pool))
    num_sequences = settings.screen_sequences and settings.screen_sequences * len(run.tokens.texts)

    def action(progress: Progress) -> Left:
        # One after the other they gain nothing by workers, each of which takes longer to start than they take.
        board = Board(progress, run.engine.stand, most)
        jobs = replace(_jobs(run, hop, run.workers.trials_here).within("screen"), watch=board.see)
        validation, done = run.tokens.part("validation"), 0
        tokens = validation.first(num_sequences or validation.num_sequences).num_tokens

        def measure(candidates: Sequence[Candidate]) -> dict[str, Outcome]:
            nonlocal done
            before = done
            done += len(candidates)
            return screen(
                candidates,
                hop.prepared,
                hop.lessons.files,
                num_sequences,
                jobs,
                lambda each, _: board.tokens((before + each) * tokens, most * tokens),
            )

        here = conditions(run, hop, num_sequences)
        earlier = taken_over(run, hop, pool, here)
        sampler = make_sampler(pool, settings, plan.seed, earlier.beyond)
        with jobs.runner.held():
            explored = explore(pool, sampler, settings, measure, earlier.known)
        _tell_losses(run, f"{hop.label} screen", {each.key: each for each in explored.outcomes.values()})
        kls = explored.kls()
        if not kls:
            raise TrialError(
                f"none of the {len(explored.outcomes)} candidates of {hop.label} that were screened has a finite KL to "
                "the teacher; the model or the text is damaged, or numbers overflow: try another text, or start=select "
                "and repair=none"
            )
        shapes = {str(index): pool.candidates[index].architecture.sizes() for index in explored.outcomes}
        write_json(explored_file, {**explored.to_dict(), "conditions": here, "shapes": shapes})
        return Left(choose_finalists(pool, kls, settings.others, settings.num_finalists))

    stage = Stage(
        f"{hop.label} screen",
        f"untrained KL of up to {most:,} of {len(pool):,} candidates",
        inputs.of_search(plan, hop.size, hop.learning_rate),
        needs=(run.tokens.done, *hop.needs, *run.latency_measured),
        outputs=[explored_file],
        costly=True,
    )
    return run.engine.run(stage, action)


def _contest(
    run: Run, hop: Hop, found: Enumeration, pool: Pool, screened: Done, finalists: Sequence[Candidate]
) -> Done:
    plan, folder = run.plan, run.folder.trials(hop.label)

    def action(progress: Progress) -> Left:
        explored = Exploration.from_dict(read_json(run.folder.screened(hop.label)))
        choice, trials, kls = _choice(plan, pool, screened.result), list[TrialRow](), explored.kls()
        ids = choice.members([Standing(pool.candidates[index].id, kls[index], ()) for index in screened.result])
        rungs = plan.search.rung_tokens(run.tokens.distillation_tokens)
        if rungs:
            board = Board(progress, run.engine.stand)
            jobs = replace(_jobs(run, hop), watch=board.see)
            distillation = hop.lessons.of_trials(plan.distillation.at_rate(hop.learning_rate))
            training = ShortTraining(distillation, tuple(rungs), plan.search.reduction, plan.seed)
            with jobs.runner.held():
                chosen, trials = tournament(
                    finalists,
                    starts_of(run, hop, hop.lessons.trials),
                    training,
                    jobs.within("rungs"),
                    jobs.results / "checkpoints",
                    choice,
                    board.tokens,
                )
            ids = [candidate.id for candidate in chosen]
            _tell_losses(run, f"{hop.label} tournament", {trial.candidate.id: trial.outcome for trial in trials})
        outcomes = {outcome.key: outcome for outcome in explored.outcomes.values()}
        predicted = PoolSampler(pool, plan.search.others, plan.seed).predict(explored.kls())
        weighed, held_against = plan.search.weighed, references(pool, plan.seed)
        candidates = candidate_rows(pool, explored, predicted, trials, ids, weighed, held_against)
        size, correlations, by_text = {"size": hop.label}, rank_correlations(outcomes, trials), list[dict[str, Any]]()
        if len(texts := run.tokens.texts) > 1:
            by_text = kls_by_text(outcomes, trials, run.tokens.part("validation").num_counted(), texts)
            correlations += text_correlations(by_text, texts)
        return Left(
            ids,
            rows=(
                (CANDIDATES, ({**size, **row} for row in candidates)),
                (EXCLUSIONS, [{**size, **row} for row in exclusion_rows(found, pool)]),
                (TRIALS, [trial.to_row(hop.label, hop.lessons.continuations) for trial in trials]),
                (CORRELATIONS, [{**size, **row} for row in correlations]),
                (TEXTS, [{**size, **row} for row in by_text]),
            ),
        )

    stage = Stage(
        f"{hop.label} tournament",
        f"{len(finalists)} finalists, of which the worse stop rung by rung",
        inputs.of_search(plan, hop.size, hop.learning_rate),
        needs=(run.tokens.done, *hop.needs, screened),
        costly=True,
    )
    done = run.engine.run(stage, action)
    shutil.rmtree(folder, ignore_errors=True)
    return done


def _choice(plan: FamilyPlan, pool: Pool, finalists: Sequence[int]) -> Choice:
    costs = pool.costs(plan.search.weighed)
    weighed = {pool.candidates[index].id: tuple(costs[index].tolist()) for index in finalists}
    return Choice(plan.members_per_size, plan.choose, weighed, bool(plan.search.others))


def _tell_losses(run: Run, what: str, outcomes: Mapping[str, Outcome]) -> None:
    if (told := told_losses(what, outcomes)) is not None:
        run.engine.note(told)
