"""What decides the outcome of every stage, beside the files that it needs: the one place of their fingerprints.

A setting that stands here makes a stage run again when it changes; one that only says how work is done does not.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from minitron_nas.architecture.spec import Architecture
from minitron_nas.distillation.settings import HOW_TO_TRAIN
from minitron_nas.distillation.signals.folder import FORMAT
from minitron_nas.evaluation.continuations import MOST_TOKENS, NEW_TOKENS, NUM_PROMPTS
from minitron_nas.models.checkpoint import Checkpoint
from minitron_nas.pipeline.engine import Done
from minitron_nas.pipeline.member import TrainedMember
from minitron_nas.pipeline.plan import FamilyPlan, deciding
from minitron_nas.pipeline.run import Source
from minitron_nas.pruning.settings import StartSettings
from minitron_nas.search.rates import RULE
from minitron_nas.space.size import Size
from minitron_nas.storage.atomic import read_json
from minitron_nas.storage.ledger import fingerprint
from minitron_nas.storage.run_folder import RunFolder

_SPEED = {"prompt_tokens", "decode_tokens", "repeats"}
"""What of the evaluation's settings says how speed is measured; the others are of lm-eval's tasks."""


def of_text(plan: FamilyPlan, teacher: Checkpoint, data_fingerprint: str) -> dict[str, Any]:
    """Text becomes tokens: what it is, how it is split, and whose tokenizer reads it."""
    return {
        "data": [plan.to_dict()["data"], data_fingerprint],
        "text": plan.text.model_dump(),
        "distillation": [plan.distillation.tokens, plan.distillation.batch_sequences],
        "seed": plan.seed,
        "teacher": teacher.fingerprint,
        "tokenizer": teacher.tokenizer_fingerprint(),
    }


def of_held_out(plan: FamilyPlan, looks: Mapping[str, str]) -> dict[str, Any]:
    """Held-out texts of other kinds become tokens: which, and what their files look like."""
    return {"texts": plan.evaluation.model_dump(include={"texts"}), "looks": dict(looks), "seed": plan.seed}


def of_correction(plan: FamilyPlan, teacher: Checkpoint, num_tokens: int) -> dict[str, Any]:
    """The teacher is fine-tuned: on how many tokens, and how."""
    settings = plan.correct.model_dump() if plan.correct is not None else None
    return {"teacher": teacher.fingerprint, "correct": settings, "tokens": num_tokens, "seed": plan.seed}


def of_signal(teacher: Checkpoint, parts: dict[str, int | None], num_short: int) -> dict[str, Any]:
    """A teacher speaks: over which parts of the text, what of it is kept, and how it goes on by itself."""
    continued = [NUM_PROMPTS, NEW_TOKENS]
    return {
        "teacher": teacher.fingerprint,
        "parts": parts,
        "format": FORMAT,
        "continued": continued,
        "trials": num_short,
    }


def of_scores(plan: FamilyPlan, source: Source) -> dict[str, Any]:
    """A model is scored: how activations become scores."""
    return {
        "source": source.checkpoint.fingerprint,
        "importance": plan.importance.model_dump(exclude={"depth"}),
    }


def of_preparation(
    plan: FamilyPlan, source: Source, start: StartSettings, layer_counts: Collection[int]
) -> dict[str, Any]:
    """A model is prepared: which layers leave, and what channels, neurons and heads are cut in."""
    depth = plan.importance.depth
    return {
        "source": source.checkpoint.fingerprint,
        "protected": plan.space.protected_layers,
        "depth": depth.model_dump(),
        "layer_counts": sorted(layer_counts) if depth.needs_model else None,
        "start": asdict(start),
        "seed": plan.seed,
    }


def of_latency(plan: FamilyPlan, teacher: Checkpoint) -> dict[str, Any]:
    """Shapes are timed: of which family and sizes, and over how much."""
    return {
        "teacher": teacher.architecture.to_dict(),
        "axes": plan.space.axes.model_dump(mode="json"),
        "lengths": [plan.search.batch_size, plan.evaluation.prompt_tokens],
    }


def of_search(plan: FamilyPlan, size: Size, learning_rate: float) -> dict[str, Any]:
    """A shape is found: all of the plan that decides anything, but for the other sizes, and the rate of the trials."""
    files = {"search.latency", "search.extends"}
    deciders = {key: value for key, value in deciding(plan.to_dict()).items() if key not in {"sizes", *files}}
    deciders["distillation.learning_rate"] = learning_rate
    latency = read_json(Path(plan.search.latency)) if plan.search.latency is not None else None
    extended = {} if plan.search.extends is None else {"extends": _screened_in(RunFolder(Path(plan.search.extends)))}
    finalists = {"finalists": "spread over the front"} if plan.search.others else {}
    return {
        **extended,
        **finalists,
        "plan": deciders,
        "size": size.written,
        "latency": latency,
        "start": "the better repair",
        "cut": "paired test",
    }


def _screened_in(earlier: RunFolder) -> dict[str, str]:
    return {file.stem: fingerprint(read_json(file)) for file in earlier.all_screened()}


def of_start(plan: FamilyPlan) -> dict[str, Any]:
    """A student is cut and repaired, before it learns anything: how, but for its shape."""
    return {"start": asdict(plan.start_settings), "repair": "the better"}


def of_rate(plan: FamilyPlan, target: Architecture) -> dict[str, Any]:
    """Learning rates are tried on a student: which rates, and how."""
    return {**of_training(plan, "student", target, plan.distillation.peak_learning_rate), "probes": RULE}


def of_rows(told: Sequence[Done]) -> dict[str, Any]:
    """What stages said in the tables is told otherwise: the search as Optuna tells it, tasks as differences."""
    return {"rows": [[output.identity for output in done.entry.rows] for done in told]}


def of_training(plan: FamilyPlan, role: str, target: Architecture, learning_rate: float) -> dict[str, Any]:
    """A model is distilled: its shape, its start, how it learns, and which of its weights are kept."""
    distillation = plan.distillation.at_rate(learning_rate)
    return {
        "kept": "best validation",
        "repair": "the better",
        "kd_teacher": plan.kd_teacher,
        "target": target.to_dict(),
        "role": role,
        "distillation": distillation.model_dump(exclude=set(HOW_TO_TRAIN)),
        "seed": plan.seed,
        "protected": plan.space.protected_layers,
        "importance": plan.importance.model_dump(),
        "start": asdict(plan.start_settings),
        **({} if plan.text_only else {"text_only": False}),
    }


def of_measurement(plan: FamilyPlan, member: TrainedMember, checkpoint: Checkpoint) -> dict[str, Any]:
    """A model is measured: loss, KL, what it writes, speed and memory."""
    speed = {**plan.evaluation.model_dump(include=_SPEED), "in_turns_with": "teacher"}
    return {"model": checkpoint.fingerprint, "member": member.to_dict(), "speed": speed, "written": MOST_TOKENS}


def of_benchmarks(plan: FamilyPlan, checkpoint: Checkpoint) -> dict[str, Any]:
    """A model answers lm-eval's tasks: which, and how."""
    tasks = plan.evaluation.model_dump(exclude=_SPEED)
    return {"model": checkpoint.fingerprint, "tasks": tasks, "seed": plan.seed}
