"""minitron_nas: from one trained language model to a family of smaller ones.

The public names are loaded when they are first used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minitron_nas.alignment.settings import AlignmentSettings
    from minitron_nas.architecture.spec import Architecture
    from minitron_nas.errors import MinitronNasError
    from minitron_nas.evaluation.latency import LatencyModel
    from minitron_nas.families.catalog import count_parameters
    from minitron_nas.importance.score import score_importance
    from minitron_nas.importance.scores import ImportanceScores
    from minitron_nas.pipeline.build import build_family
    from minitron_nas.pipeline.family import Family
    from minitron_nas.pipeline.plan import FamilyPlan, load_plan
    from minitron_nas.pipeline.show import show
    from minitron_nas.pipeline.steps.align import align
    from minitron_nas.pipeline.steps.compare import compare
    from minitron_nas.pipeline.steps.correct import correct
    from minitron_nas.pipeline.steps.distill import distill
    from minitron_nas.pipeline.steps.evaluate import evaluate
    from minitron_nas.pipeline.steps.latency import measure_latency
    from minitron_nas.pipeline.steps.limits import CompareLimits
    from minitron_nas.pipeline.steps.prune import prune
    from minitron_nas.pipeline.submit import submit
    from minitron_nas.reporting.html import write_report
    from minitron_nas.search.pareto import pareto_front
    from minitron_nas.space.axes import SearchSpace
    from minitron_nas.space.enumerate import Candidate, enumerate_candidates

_HOMES = {
    "AlignmentSettings": "alignment.settings",
    "Architecture": "architecture.spec",
    "Candidate": "space.enumerate",
    "CompareLimits": "pipeline.steps.limits",
    "Family": "pipeline.family",
    "FamilyPlan": "pipeline.plan",
    "ImportanceScores": "importance.scores",
    "LatencyModel": "evaluation.latency",
    "MinitronNasError": "errors",
    "SearchSpace": "space.axes",
    "align": "pipeline.steps.align",
    "build_family": "pipeline.build",
    "compare": "pipeline.steps.compare",
    "correct": "pipeline.steps.correct",
    "count_parameters": "families.catalog",
    "distill": "pipeline.steps.distill",
    "enumerate_candidates": "space.enumerate",
    "evaluate": "pipeline.steps.evaluate",
    "load_plan": "pipeline.plan",
    "measure_latency": "pipeline.steps.latency",
    "pareto_front": "search.pareto",
    "prune": "pipeline.steps.prune",
    "score_importance": "importance.score",
    "show": "pipeline.show",
    "submit": "pipeline.submit",
    "write_report": "reporting.html",
}

__all__ = [
    "AlignmentSettings",
    "Architecture",
    "Candidate",
    "CompareLimits",
    "Family",
    "FamilyPlan",
    "ImportanceScores",
    "LatencyModel",
    "MinitronNasError",
    "SearchSpace",
    "align",
    "build_family",
    "compare",
    "correct",
    "count_parameters",
    "distill",
    "enumerate_candidates",
    "evaluate",
    "load_plan",
    "measure_latency",
    "pareto_front",
    "prune",
    "score_importance",
    "show",
    "submit",
    "write_report",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
