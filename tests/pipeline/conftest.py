"""One family of two sizes that the tests of this folder look at, and what they need to build others."""

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from minitron_nas.evaluation.speed import Speed
from minitron_nas.pipeline.build import build_family
from minitron_nas.pipeline.display import Quiet
from minitron_nas.pipeline.family import Family


@pytest.fixture(scope="session")
def _known_speed() -> Iterator[None]:
    """Spare a process per model; tests/end_to_end measures speed for real.

    Everything loaded so far is hidden from the garbage collector, which a run calls after every trial.
    """
    gc.freeze()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "minitron_nas.pipeline.stages.measure.measure_speed",
            lambda path, settings, teacher: Speed(100.0, 10.0, 2**20, 1.0, 1.0, 0.02, 0.02),
        )
        yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def family(
    made_once: Callable[..., Path], trained_teacher: Path, text_file: Path, tiny_settings: dict[str, Any], _known_speed
) -> Family:
    """Two sizes with their baselines, in a folder that was moved after the run."""
    return Family(
        made_once(
            "family",
            lambda folder: build_family(
                trained_teacher, ["90k", "60k"], text_file, folder, display=Quiet(), **tiny_settings
            ),
        )
    )


@pytest.fixture(scope="session")
def build(trained_teacher: Path, text_file: Path, tiny_settings: dict[str, Any], _known_speed) -> Callable[..., Family]:
    """Build one size of 90 thousand parameters with as little work as can be; arguments replace the defaults."""

    def call(out: Path, *overrides: str, **changes: Any) -> Family:
        defaults = {"teacher": trained_teacher, "sizes": ["90k"], "data": text_file, "display": Quiet()}
        least = (
            "baselines=false",
            "search.max_screened=2",
            "search.num_finalists=1",
            "search.num_rungs=1",
            "search.tokens=256",
            "distillation.tokens=1k",
            "distillation.num_evaluations=1",
        )
        return build_family(**{**defaults, **tiny_settings, **changes}, out=out, overrides=(*least, *overrides))

    return call
