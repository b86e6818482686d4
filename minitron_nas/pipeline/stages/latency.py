"""What predicts seconds in a run: the latency model that its plan names, or the stage that measures one."""

from pathlib import Path

from minitron_nas.architecture.spec import Architecture
from minitron_nas.evaluation.latency import LatencyModel
from minitron_nas.evaluation.latency_design import Lengths
from minitron_nas.models.checkpoint import Checkpoint, open_checkpoint
from minitron_nas.pipeline import inputs
from minitron_nas.pipeline.engine import Done, Engine, Left, Stage
from minitron_nas.pipeline.plan import FamilyPlan
from minitron_nas.pipeline.run import workers_of
from minitron_nas.pipeline.steps.latency import TITLE, latency_of
from minitron_nas.progress import Progress
from minitron_nas.space.axes import SearchSpace


def named_latency(plan: FamilyPlan, teacher: Architecture) -> LatencyModel | None:
    """Return the latency model that a plan names, None where it names none.

    Args:
        plan: The plan.
        teacher: The shape of the first teacher.

    Raises:
        LatencyError: If it cannot be read, or was made for other models.
    """
    named = plan.search.latency
    return None if named is None else LatencyModel.load_for(Path(named), teacher)


def measures_latency(plan: FamilyPlan) -> bool:
    """Whether a run of a plan has to measure how long shapes take."""
    return plan.search.latency is None and plan.asks_for_seconds


def find_latency(engine: Engine, plan: FamilyPlan, teacher: Checkpoint) -> tuple[LatencyModel | None, tuple[Done, ...]]:
    """Return what predicts seconds and the stage that measured it: what the plan names, or what is measured here.

    It is measured before all other work, because it may show that a size is out of reach. Weights do not matter to it.

    Args:
        engine: Runs the stage.
        plan: The plan.
        teacher: Of whose family the shapes are.
    """
    if not measures_latency(plan):
        return named_latency(plan, teacher.architecture), ()
    path, tokens = engine.folder.latency, plan.evaluation.prompt_tokens

    def action(progress: Progress) -> Left:
        workers_of(plan, engine.folder).call(
            measure,
            progress,
            teacher=teacher.path,
            space=plan.space,
            lengths=Lengths(plan.search.batch_size, tokens, tokens),
            path=path,
        )
        return Left()

    stage = Stage("latency", TITLE, inputs.of_latency(plan, teacher), outputs=[path], costly=True)
    done = engine.run(stage, action)
    return LatencyModel.load(path), (done,)


def measure(teacher: Path, space: SearchSpace, lengths: Lengths, path: Path, progress: Progress) -> None:
    """Measure how long the shapes of a space take on a device, and keep the model of it.

    Args:
        teacher: The folder of the model of whose family they are.
        space: The space.
        lengths: Batch, prompt and context.
        path: The file that it goes to.
        progress: Told about shapes.
    """
    outline = open_checkpoint(teacher, read_values=False).outline()
    latency_of(outline, space, lengths, progress).save(path)
