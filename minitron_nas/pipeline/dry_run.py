"""`dry_run`: everything that is known of a run before it runs."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from minitron_nas.errors import PlanError
from minitron_nas.execution.throughput import measure_throughput
from minitron_nas.families.catalog import layout_of
from minitron_nas.models.outline import Outline
from minitron_nas.models.source import outline_teacher
from minitron_nas.models.wheel import PREFIX
from minitron_nas.pipeline.devices import Devices
from minitron_nas.pipeline.display import Display, default_display
from minitron_nas.pipeline.forecast import Forecast
from minitron_nas.pipeline.plan import FamilyPlan
from minitron_nas.pipeline.preflight import preflight
from minitron_nas.pipeline.room import BYTES_PER_TOKEN, assumed_tokens, settled
from minitron_nas.pipeline.stages.latency import measures_latency
from minitron_nas.pipeline.workload import TokenCounts
from minitron_nas.search.costing import needs_latency
from minitron_nas.settings import about_bytes, format_count
from minitron_nas.space.axes import SearchSpace
from minitron_nas.storage.machine import free_bytes
from minitron_nas.storage.run_folder import RunFolder
from minitron_nas.text.survey import about_text
from minitron_nas.text.token_log import ONE_PASS_TOKENS
from minitron_nas.text.unpacked import unpacked_bytes

SOURCE_OF_THE_SPACE = "the source shape of the space"
"""What a plan without a teacher calls its teacher."""


@dataclass(frozen=True, slots=True)
class DryRun:
    """A forecast, and what it rests on.

    Attributes:
        forecast: What the plan would do and cost.
        text: A line for each source of text: what would be read of it.
        unpacked_bytes: Disk that the text takes beside the run folder while it is read.
        notes: What was assumed.
    """

    forecast: Forecast
    text: tuple[str, ...]
    unpacked_bytes: int
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        beside = {"text": self.text, "unpacked_bytes": self.unpacked_bytes, "notes": self.notes}
        return {**self.forecast.to_dict(), **beside}

    def lines(self) -> Iterator[str]:
        """Say it, a line at a time."""
        yield from self.text
        yield from self.forecast.lines()
        if self.unpacked_bytes:
            yield f"         and {about_bytes(self.unpacked_bytes)} for text that is unpacked while it is read"
        yield from (f"note     {note}" for note in self.notes)


def dry_run(
    plan: FamilyPlan,
    out: Path,
    reads_text: bool = True,
    devices: Devices | None = None,
    flops_per_second: float | None = None,
    display: Display | None = None,
) -> DryRun:
    """Foresee a run: refuse what cannot work, count what is to be done; nothing is written and no weight is read.

    Args:
        plan: The plan; its teacher may be `SOURCE_OF_THE_SPACE`.
        out: Where the run would lie.
        reads_text: Whether the plan's data are there to be looked at.
        devices: What it would run on elsewhere; without it, on this machine.
        flops_per_second: Of one device that trains; measured here without it.
        display: Shows progress; on stderr by default.

    Raises:
        MinitronNasError: With all faults of the plan.
    """
    if flops_per_second is not None and not 0 < flops_per_second < inf:
        raise PlanError(f"{flops_per_second} FLOPs per second are no pace; write a number above 0 such as 4e14")
    if measures_latency(plan) and (speeds := [str(size) for size in plan.sizes if size.is_speed]):
        raise needs_latency(f"what {', '.join(speeds)} would cost")
    data, display = plan.data if reads_text else None, display or default_display()
    here = Devices.here()
    with TemporaryDirectory() as work:
        teacher = _outline(plan, Path(work), display)
        known = assumed_tokens(plan) if reads_text else plan.distillation.tokens
        plan, signal = settled(plan, teacher, known, free_bytes(out.absolute()), (devices or here).value_bytes)
        pools = preflight(plan, teacher, data, RunFolder(out.absolute()), devices or here, Path(work) / "ray")
    text = tuple(about_text(data, plan.text)) if data is not None else ()
    tokens, notes = plan.distillation.tokens, [*teacher.about(plan.text.sequence_length, plan.text_only)]
    notes += [signal] if signal else []
    if tokens is None:
        tokens = known or ONE_PASS_TOKENS
        notes.append(_how_assumed(known))
    if flops_per_second is None:
        flops_per_second = measure_throughput()
        notes.append(f"FLOPs per second are half of what matrix products reach here on {here.name}, measured just now")
    forecast = Forecast.of(plan, teacher, pools, TokenCounts.planned(plan, tokens), devices or here, flops_per_second)
    return DryRun(forecast, text, unpacked_bytes(data, plan.text) if data is not None else 0, tuple(notes))


def _outline(plan: FamilyPlan, work: Path, display: Display) -> Outline:
    if plan.teacher == SOURCE_OF_THE_SPACE:
        return _source_outline(plan.space)
    if not (plan.teacher.startswith(PREFIX) or Path(plan.teacher).is_file()):
        return outline_teacher(plan.teacher, work)
    with display.stage("teacher", f"convert {plan.teacher}") as progress:
        return outline_teacher(plan.teacher, work, progress)


def _source_outline(space: SearchSpace) -> Outline:
    shape = space.source_architecture()
    return Outline.of_shape(SOURCE_OF_THE_SPACE, shape, layout_of(shape.model_type))


def _how_assumed(tokens: int | None) -> str:
    """Say how the tokens of one pass over the text were found."""
    if tokens is None:
        return (
            "distillation.tokens is not set, and how much text there is shows when it is read: "
            f"{format_count(ONE_PASS_TOKENS)} tokens are assumed, the most that one pass takes"
        )
    return (
        f"distillation.tokens is not set: one pass over the text is taken for {format_count(tokens)} tokens, one for "
        f"each {BYTES_PER_TOKEN} bytes"
    )
