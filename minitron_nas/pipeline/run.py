"""`Run`: what every stage of a run works on."""

from dataclasses import dataclass
from pathlib import Path

from minitron_nas.evaluation.latency import LatencyModel
from minitron_nas.execution.workers import Workers
from minitron_nas.models.checkpoint import Checkpoint
from minitron_nas.pipeline.engine import Done, Engine
from minitron_nas.pipeline.plan import FamilyPlan
from minitron_nas.storage.run_folder import RunFolder
from minitron_nas.text.data_source import OWN
from minitron_nas.text.tokens import PackedTokens

HELD_OUT = "held_out.safetensors"
"""The plan's own validation text and those that it names, in turns."""


@dataclass(frozen=True, slots=True)
class RunTokens:
    """The run's packed tokens.

    Attributes:
        folder: Where the parts lie.
        done: The stage that wrote them.
        distillation_tokens: KD tokens of one student.
        texts: The held-out texts that take turns in the part `validation`; the plan's own comes first.
    """

    folder: Path
    done: Done
    distillation_tokens: int
    texts: tuple[str, ...] = (OWN,)

    def part(self, name: str) -> PackedTokens:
        """Open calibration, validation or train."""
        return PackedTokens.load(self.file(name))

    def file(self, name: str) -> Path:
        """The file of a part."""
        return self.folder / (HELD_OUT if name == "validation" and len(self.texts) > 1 else f"{name}.safetensors")


@dataclass(frozen=True, slots=True)
class Source:
    """A model that students are pruned from, or learn from.

    Attributes:
        name: "teacher", or the label of the size that it is the student of.
        checkpoint: The model.
        made_by: The stage that wrote it; none for a teacher that came from outside.
    """

    name: str
    checkpoint: Checkpoint
    made_by: tuple[Done, ...] = ()


@dataclass(frozen=True, slots=True)
class Run:
    """A run under way.

    Attributes:
        engine: Runs its stages.
        plan: What it is to do.
        teacher: The first teacher, corrected where the plan says so; all members are measured against it.
        tokens: Its text.
        latency: Predicts the seconds of shapes; None where nothing asks for them.
        latency_measured: The stage that measured it; none where the plan names it.
    """

    engine: Engine
    plan: FamilyPlan
    teacher: Source
    tokens: RunTokens
    latency: LatencyModel | None = None
    latency_measured: tuple[Done, ...] = ()

    @property
    def folder(self) -> RunFolder:
        """Where it lies."""
        return self.engine.folder

    @property
    def workers(self) -> Workers:
        """Who does its heavy work."""
        return workers_of(self.plan, self.folder)


def workers_of(plan: FamilyPlan, folder: RunFolder) -> Workers:
    """Return who does the heavy work of a run.

    Args:
        plan: Names the machines.
        folder: The run's.
    """
    return Workers(plan.runner, folder.work / "workers")
