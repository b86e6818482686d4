"""The stages that find one shape for a size: score, prepare, enumerate, screen, tournament."""

import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from minitron_nas.architecture.costs import (
    count_embedding_parameters,
    forward_flops_per_token,
    kv_cache_bytes_per_token,
)
from minitron_nas.distillation.job import TrainingFiles
from minitron_nas.execution.runner import Outcome, last_line, make_runner
from minitron_nas.importance.layers import choose_layers
from minitron_nas.importance.passes import fits_in_memory, pass_title, score_checkpoint
from minitron_nas.importance.scores import ImportanceScores
from minitron_nas.models.checkpoint import Checkpoint
from minitron_nas.pipeline.engine import Engine
from minitron_nas.pipeline.plan import FamilyPlan, deciding
from minitron_nas.pipeline.sources import Tokens
from minitron_nas.progress import Progress
from minitron_nas.pruning.order import PruningOrder
from minitron_nas.pruning.prepare import PreparedTeacher, write_prepared
from minitron_nas.pruning.start import measure_start, possible_start
from minitron_nas.search.pareto import pareto_front
from minitron_nas.search.screen import ValidationFiles, sample_candidates, screen
from minitron_nas.search.study import write_study
from minitron_nas.search.tournament import TrialRow, tournament
from minitron_nas.settings import format_count
from minitron_nas.space.enumerate import RULE_REASONS, Candidate, Enumeration, enumerate_candidates
from minitron_nas.storage.atomic import read_json, write_json
from minitron_nas.storage.ledger import fingerprint
from minitron_nas.storage.schemas import CANDIDATES, EXCLUSIONS, TRIALS
from minitron_nas.storage.tables import replace_rows
from minitron_nas.text.tokens import PackedTokens


@dataclass(frozen=True, slots=True)
class Hop:
    """One step down the family: a size and the model that it is pruned from."""

    size: int
    source: Checkpoint
    source_name: str

    @property
    def label(self) -> str:
        """The size as people say it."""
        return format_count(self.size)


def prepare_source(
    engine: Engine, plan: FamilyPlan, hop: Hop, tokens: Tokens, layer_counts: Collection[int]
) -> PreparedTeacher:
    """Score the source in one pass, rank its parts, and find the basis in which its channels are cut.

    Args:
        engine: Runs the stages.
        plan: Says how to score, and which layers leave first.
        hop: The source.
        tokens: The run's tokens.
        layer_counts: How many layers the models that are pruned from the source keep.
    """
    scores_folder = engine.folder.importance(hop.source_name)
    prepared_folder = engine.folder.prepared(hop.source_name)
    start, note = possible_start(plan.start, hop.source)
    whole = fits_in_memory(hop.source)

    def score(progress: Progress) -> None:
        text = tokens.part("calibration")
        scores = score_checkpoint(hop.source, text, plan.importance, whole, engine.folder.path, progress)
        about = {
            "source": hop.source.fingerprint,
            "num_samples": str(text.num_sequences),
            "sequence_length": str(text.input_ids.shape[1]),
            "batch_aggregation": plan.importance.batch_aggregation,
            "sequence_aggregation": plan.importance.sequence_aggregation,
        }
        scores.save(scores_folder, about, text)

    def calibration() -> PackedTokens:
        return tokens.part("calibration")

    def prepare(progress: Progress) -> None:
        scores = ImportanceScores.load(scores_folder)
        protected = plan.space.protected_layers
        depth = plan.importance.depth
        layers = choose_layers(hop.source, scores, depth, protected, layer_counts, calibration, plan.seed, progress)
        order = PruningOrder.from_scores(scores, hop.source.architecture, protected, layers)
        repair = plan.repair == "ridge"
        with TemporaryDirectory(dir=engine.folder.path) as work:
            measures = measure_start(hop.source, calibration, start == "rotate", repair, Path(work), progress=progress)
            write_prepared(prepared_folder, order, *measures, merge_heads=plan.merge_heads)

    inputs: dict[str, Any] = {
        "source": hop.source.fingerprint,
        "tokens": tokens.fingerprint,
        "importance": plan.importance.model_dump(exclude={"depth"}),
    }
    title = pass_title("importance of every part", whole)
    engine.stage(f"{hop.source_name} score", title, inputs, [scores_folder], score)
    inputs |= {
        "protected": plan.space.protected_layers,
        "depth": plan.importance.depth.model_dump(),
        "layer_counts": sorted(layer_counts) if plan.importance.depth.needs_model else None,
        "start": [start, plan.repair, plan.merge_heads],
        "seed": plan.seed,
    }
    engine.stage(f"{hop.source_name} prepare", f"which parts leave first; {note}", inputs, [prepared_folder], prepare)
    return PreparedTeacher.open(hop.source.path, prepared_folder)


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
        kl = {key: _value(outcome, "kl_nats") for key, outcome in outcomes.items()}
        finite = [candidate for candidate in sampled if kl[candidate.id] is not None and isfinite(kl[candidate.id])]
        ranked = sorted(finite, key=lambda candidate: float(kl[candidate.id]))
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
        _write_candidates(engine, plan, hop, found, outcomes, rows, winner)
        write_study(engine.folder.path / "study.journal", hop.label, found.candidates, rows)
        shutil.rmtree(results / "checkpoints", ignore_errors=True)
        return winner.id

    title = f"untrained KL of {len(sampled)} of {len(found.candidates)} candidates"
    finalists = [by_id[key] for key in engine.stage(f"{hop.label} screen", title, inputs, [screened], screening)]
    title = f"short distillation of {len(finalists)} finalists in rungs"
    tables = [engine.folder.path / table.file_name for table in (TRIALS, CANDIDATES)]
    return by_id[engine.stage(f"{hop.label} tournament", title, inputs, tables, contest)]


def _write_candidates(
    engine: Engine,
    plan: FamilyPlan,
    hop: Hop,
    found: Enumeration,
    screened: Mapping[str, Outcome],
    trials: Sequence[TrialRow],
    winner: Candidate,
) -> None:
    rows = [_candidate_row(plan, hop, candidate, screened.get(candidate.id)) for candidate in found.candidates]
    front = pareto_front([(row["num_parameters"], _or_nan(row["screen_kl_nats"])) for row in rows])
    last = {row.candidate.id: row for row in trials}
    for row, on_front in zip(rows, front, strict=True):
        outcome, reason = _fate(
            screened.get(row["candidate"]), last.get(row["candidate"]), row["candidate"] == winner.id
        )
        row |= {"on_front": on_front, "outcome": outcome, "reason": reason}
    replace_rows(engine.folder.path, CANDIDATES, {"size": hop.label}, rows)
    exclusions = [
        {"size": hop.label, "rule": rule, "reason": RULE_REASONS[rule], "num_shapes": count}
        for rule, count in found.excluded.items()
    ]
    replace_rows(engine.folder.path, EXCLUSIONS, {"size": hop.label}, exclusions)


def _candidate_row(plan: FamilyPlan, hop: Hop, candidate: Candidate, screened: Outcome | None) -> dict[str, Any]:
    shape, layout = candidate.architecture, hop.source.layout
    return {
        "size": hop.label,
        "candidate": candidate.id,
        **shape.shape(),
        "num_parameters": candidate.num_parameters,
        "num_embedding_parameters": count_embedding_parameters(shape, layout),
        "forward_flops_per_token": forward_flops_per_token(shape, layout, plan.text.sequence_length // 2),
        "kv_cache_bytes_per_token": kv_cache_bytes_per_token(shape),
        "screen_kl_nats": _value(screened, "kl_nats"),
        "screen_loss_nats": _value(screened, "loss_nats"),
    }


def _fate(screened: Outcome | None, last: TrialRow | None, won: bool) -> tuple[str, str]:
    if screened is None:
        return "not_sampled", "the space was larger than search.max_screened and the sample left it out"
    if screened.status != "completed":
        return "failed", f"screening {screened.status}: {last_line(screened.error)}"
    if last is None:
        return "screened_out", f"its untrained KL of {_value(screened, 'kl_nats'):.3f} nats was not among the best"
    if last.outcome.status != "completed":
        return "failed", f"rung {last.rung} {last.outcome.status}: {last_line(last.outcome.error)}"
    kl = _value(last.outcome, "kl_nats")
    if won:
        return "chosen", f"lowest KL, {kl:.3f} nats, after the last rung"
    return "stopped", f"its KL of {kl:.3f} nats after rung {last.rung} was beaten"


def _value(outcome: Outcome | None, name: str) -> Any:
    return outcome.value[name] if outcome is not None and outcome.value is not None else None


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
