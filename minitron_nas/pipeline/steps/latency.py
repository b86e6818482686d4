"""Measuring how long the shapes of a family take on this machine, as a function of its own."""

from pathlib import Path
from tempfile import TemporaryDirectory

from minitron_nas.errors import LatencyError
from minitron_nas.evaluation.latency import LatencyModel
from minitron_nas.evaluation.latency_bench import Bench, setting_of
from minitron_nas.evaluation.latency_design import Lengths, at_random, far_apart
from minitron_nas.evaluation.latency_fit import fit_latency
from minitron_nas.evaluation.latency_terms import layer_sizes
from minitron_nas.execution.device import available_bytes
from minitron_nas.execution.preemption import going_on
from minitron_nas.models.outline import Outline
from minitron_nas.models.source import ModelSource, outline_teacher
from minitron_nas.pipeline.display import Display, default_display
from minitron_nas.progress import Progress, silent
from minitron_nas.space.axes import SearchSpace, load_space
from minitron_nas.space.enumerate import legal_columns, parameters_of
from minitron_nas.storage.machine import require_writable

NUM_SHAPES = 24
"""Shapes of layers, each measured as two stacks."""

NUM_WHOLE = 4
"""Whole models, which only test the fit."""

TITLE = f"{2 * NUM_SHAPES} stacks of layers, {NUM_WHOLE} whole models"

_WHOLE_PART = 0.5
"""The most of the memory that is free which a whole model may take."""


def measure_latency(
    teacher: ModelSource,
    out: str | Path,
    space: str = "default",
    batch: int = 1,
    prompt_tokens: int = 512,
    context_tokens: int = 512,
    display: Display | None = None,
) -> LatencyModel:
    """Measure stacks of layers of random weights on this machine, and fit a model of all shapes to them.

    Args:
        teacher: The model whose family it is; of a folder or on the hub its `config.json` is enough.
        out: The JSON file to write.
        space: The sizes that candidates have: a preset's name or a YAML file.
        batch: Sequences at once.
        prompt_tokens: Of each sequence, in one prefill.
        context_tokens: Of each sequence, before the token that is decoded.
        display: Shows progress; on stderr by default.

    Raises:
        LatencyError: If the file exists, or times stay implausible.
        MinitronNasError: If something that was given cannot be used; says what to do.
    """
    path, display = Path(out), display or default_display()
    if path.exists():
        raise LatencyError(f"{path} exists; remove it or name another file")
    require_writable(path.parent)
    with TemporaryDirectory() as work:
        outline = outline_teacher(teacher, Path(work), reads_text=False)
    lengths = Lengths(batch, prompt_tokens, context_tokens)
    with (
        going_on(f"nothing was written to {path}; the same command begins again"),
        display.stage("latency", TITLE) as progress,
    ):
        model = latency_of(outline, load_space(space), lengths, progress)
        model.save(path)
    return model


def latency_of(outline: Outline, space: SearchSpace, lengths: Lengths, progress: Progress = silent) -> LatencyModel:
    """Measure stacks of layers on this machine, and fit a model of all shapes to them.

    Args:
        outline: The teacher, whose config is there.
        space: The sizes that candidates have.
        lengths: Batch, prompt and context.
        progress: Told about shapes.

    Raises:
        LatencyError: If times stay implausible.
    """
    source, layout = outline.architecture, outline.layout
    columns = legal_columns(space, source, layout)
    setting = setting_of(source, layout, lengths)
    shapes = far_apart(columns, layer_sizes(setting), NUM_SHAPES)
    bench = Bench(dict(outline.config), source, layout, lengths)
    most = _WHOLE_PART * available_bytes(bench.device)
    fitting = parameters_of(columns, source, layout) * bench.dtype.itemsize <= most
    wholes = at_random({name: sizes[fitting] for name, sizes in columns.items()}, NUM_WHOLE)
    total, stacks, tested = len(shapes) + len(wholes), [], []
    for done, shape in enumerate(shapes):
        progress(done, total)
        stacks.append(bench.layer(shape))
    for done, whole in enumerate(wholes, start=len(shapes)):
        progress(done, total)
        tested.append(bench.whole(whole))
    return fit_latency(setting, stacks, tested)
