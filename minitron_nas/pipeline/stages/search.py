"""The stages that find one shape for a size: enumerate, screen, tournament."""

import shutil
from dataclasses import asdict
from math import isfinite

from minitron_nas.distillation.job import TrainingFiles
from minitron_nas.execution.choice import make_runner
from minitron_nas.execution.runner import Outcome
from minitron_nas.pipeline.engine import Engine
from minitron_nas.pipeline.hop import Hop
from minitron_nas.pipeline.plan import FamilyPlan, deciding
from minitron_nas.pipeline.stages.tokenize import Tokens
from minitron_nas.progress import Progress
from minitron_nas.pruning.prepare import PreparedTeacher
from minitron_nas.search.fates import candidate_rows, exclusion_rows
from minitron_nas.search.screen import ValidationFiles, sample_candidates, screen
from minitron_nas.search.study import write_study
from minitron_nas.search.tournament import tournament
from minitron_nas.space.enumerate import Candidate, enumerate_candidates
from minitron_nas.storage.atomic import read_json, write_json
from minitron_nas.storage.ledger import fingerprint
from minitron_nas.storage.schemas import CANDIDATES, EXCLUSIONS, TRIALS
from minitron_nas.storage.tables import replace_rows


def find_shape(
    engine: Engine, plan: FamilyPlan, hop: Hop, prepared: PreparedTeacher, tokens: Tokens, files: TrainingFiles
) -> Candidate:
    """Screen the size's candidates, hold the tournament, and return the winner."""
    found = enumerate_candidates(plan.space, hop.size, hop.source.architecture, hop.source.layout)
    inputs = {
        "source": hop.source.fingerprint,
        "tokens": tokens.fingerprint,
        "plan": {key: value for key, value in deciding(plan.to_dict()).items() if key != "sizes"},
        "size": hop.size,
    }
    by_id = {candidate.id: candidate for candidate in found.candidates}
    folder = engine.folder.trials(hop.label)
    results = folder / fingerprint(inputs)
    screened = results / "screened.json"
    runner = make_runner(plan.runner, folder / "ray")
    sampled = sample_candidates(found.candidates, plan.search, plan.seed)

    def screening(progress: Progress) -> list[str]:
        outcomes = screen(
            sampled,
            prepared,
            ValidationFiles(files.validation_tokens, files.validation_cache, files.teacher_fingerprint),
            plan.search,
            runner,
            plan.runner.max_failures,
            results / "screen",
            progress,
        )
        write_json(screened, {key: asdict(outcome) for key, outcome in outcomes.items()})
        finite = [candidate for candidate in sampled if _is_finite(outcomes[candidate.id])]
        ranked = sorted(finite, key=lambda candidate: outcomes[candidate.id].number("kl_nats") or 0.0)
        return [candidate.id for candidate in ranked[: plan.search.num_finalists]]

    def contest(progress: Progress) -> str:
        winner, rows = tournament(
            finalists,
            prepared,
            files,
            plan.search,
            plan.distillation,
            plan.search.rung_tokens(tokens.distillation_tokens),
            runner,
            plan.runner.max_failures,
            results,
            plan.seed,
            progress,
        )
        replace_rows(engine.folder.path, TRIALS, {"size": hop.label}, [row.to_row(hop.label) for row in rows])
        outcomes = {key: Outcome(**outcome) for key, outcome in read_json(screened).items()}
        context = plan.text.sequence_length // 2
        candidates = candidate_rows(found, hop.source.layout, context, outcomes, rows, winner)
        for table, fates in ((CANDIDATES, candidates), (EXCLUSIONS, exclusion_rows(found))):
            size = {"size": hop.label}
            replace_rows(engine.folder.path, table, size, [{**size, **fate} for fate in fates])
        write_study(engine.folder.path / "study.journal", hop.label, found.candidates, rows)
        shutil.rmtree(results / "checkpoints", ignore_errors=True)
        return winner.id

    title = f"untrained KL of {len(sampled)} of {len(found.candidates)} candidates"
    finalists = [by_id[key] for key in engine.stage(f"{hop.label} screen", title, inputs, [screened], screening)]
    title = f"short distillation of {len(finalists)} finalists in rungs"
    tables = [engine.folder.path / table.file_name for table in (TRIALS, CANDIDATES)]
    return by_id[engine.stage(f"{hop.label} tournament", title, inputs, tables, contest)]


def _is_finite(outcome: Outcome) -> bool:
    kl = outcome.number("kl_nats")
    return kl is not None and isfinite(kl)
