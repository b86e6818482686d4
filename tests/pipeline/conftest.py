"""A family of two sizes and a run of one that the tests of this folder look at, and what they need to build others."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from minitron_nas.evaluation.latency import LatencyModel, PhaseModel
from minitron_nas.evaluation.latency_terms import Setting
from minitron_nas.evaluation.speed import Speed
from minitron_nas.models import placement
from minitron_nas.models.checkpoint import open_checkpoint
from minitron_nas.pipeline.build import build_family
from minitron_nas.pipeline.display import Quiet
from minitron_nas.pipeline.family import Family
from minitron_nas.progress import Progress
from minitron_nas.storage.run_folder import RunFolder


class Told(Quiet):
    """Remembers what is told, and how far each stage was said to be."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []
        self.standings: list[str] = []
        self.fractions: dict[str, list[float]] = {}

    def note(self, text: str) -> None:
        self.notes.append(text)

    def stand(self, text: str) -> None:
        self.standings.append(text)

    @contextmanager
    def stage(self, stage: str, title: str) -> Iterator[Progress]:
        fractions = self.fractions.setdefault(stage, [])
        yield lambda done, total: fractions.append(done / total)


LATER = {
    "90k screen": "screened",
    "90k tournament": None,
    "90k distil": "students",
    "90k evaluate": None,
    "study": "study.journal",
}
"""The last stages of one size, and what each leaves beside its rows."""


@pytest.fixture
def told() -> Told:
    """A display that remembers what is told."""
    return Told()


@pytest.fixture
def little_memory(trained_teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device has no room for the teacher."""
    needed = placement.whole_model_bytes(open_checkpoint(trained_teacher))
    monkeypatch.setattr(placement, "_rooms", lambda: [("cpu", needed - 1)])
    monkeypatch.setattr(placement, "total_bytes", lambda device: needed - 1)


@pytest.fixture(scope="session")
def _known_speed() -> Iterator[None]:
    """Spare a process per model; tests/end_to_end measures speed for real."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "minitron_nas.pipeline.stages.measure.measure_speed",
            lambda path, settings, teacher: Speed(100.0, 10.0, 2**20, 1.0, 1.0, 0.02, 0.02),
        )
        yield


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
            "repair=none",
            "search.max_screened=2",
            "search.num_finalists=1",
            "search.num_rungs=1",
            "search.tokens=256",
            "distillation.tokens=1k",
            "distillation.num_evaluations=1",
        )
        return build_family(**{**defaults, **tiny_settings, **changes}, out=out, overrides=(*least, *overrides))

    return call


@pytest.fixture(scope="session")
def latency(trained_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A latency model: a millisecond a layer to decode, one for the rest; twice that for a prompt."""
    shape = open_checkpoint(trained_teacher, read_values=False).architecture
    setting = Setting(
        model_type=shape.model_type,
        vocab_size=shape.vocab_size,
        head_dim=shape.head_dim,
        num_experts_per_tok=0,
        neurons="intermediate_size",
        device="a device",
        dtype="float32",
        threads=2,
        batch=1,
        prompt_tokens=8,
        context_tokens=8,
        torch="2",
        transformers="5",
    )
    phases = {
        name: PhaseModel(
            outside={"constant": factor * 0.001}, layer={"constant": factor * 0.001}, r_squared=1.0, layer_error=0.0
        )
        for name, factor in (("prefill", 2), ("decode", 1))
    }
    path = tmp_path_factory.mktemp("latency") / "latency.json"
    LatencyModel(setting=setting, num_measurements=48, **phases).save(path)
    return path


@pytest.fixture(scope="session")
def repeat(build: Callable[..., Family]) -> Callable[..., Family]:
    """Build one size, with two trials of two rungs; on a copy of `finished`, only what is missing is made."""

    def call(out: Path, *overrides: str, **changes: Any) -> Family:
        two = ("search.num_finalists=2", "search.num_rungs=2", "search.tokens=512", "repair=ridge")
        return build(out, *two, *overrides, **changes)

    return call


@pytest.fixture(scope="session")
def finished(made_once: Callable[..., Path], repeat: Callable[..., Family]) -> Path:
    """The folder of a run of one size, to copy and to look at."""
    return made_once("finished", repeat)


@pytest.fixture(scope="session")
def begun(finished: Path) -> Callable[[Path, str], Path]:
    """Copy the finished run as it was before one of its last stages."""

    def copy(run: Path, before: str) -> Path:
        missing = list(LATER)[list(LATER).index(before) :]
        shutil.copytree(finished, run, ignore=shutil.ignore_patterns(*filter(None, map(LATER.get, missing))))
        lines = (finished / "ledger.jsonl").read_text().splitlines(keepends=True)
        kept = [line for line in lines if json.loads(line)["stage"] not in missing]
        (run / "ledger.jsonl").write_text("".join(kept))
        for stage in missing:
            shutil.rmtree(RunFolder(run).rows(stage), ignore_errors=True)
        return run

    return copy
