"""Verbs that come before a run: `plan`, `init`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from minitron_nas.cli.command import AsJson, MaybeData, Overrides, Teacher, app, at_work, print_json

if TYPE_CHECKING:
    from minitron_nas.pipeline.devices import Devices
    from minitron_nas.pipeline.plan import FamilyPlan

MaybeTeacher = Annotated[
    Optional[str],  # noqa: UP045
    typer.Argument(help="Hub name or folder, whose config.json is enough, GGUF file or wheel; the space's without it."),
]
Sizes = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(help="Total parameters of a student, such as 94M; or memory=6GB, decode=2.0x; repeatable."),
]


@app.command("plan")
def plan_(
    teacher: MaybeTeacher = None,
    size: Sizes = None,
    data: MaybeData = None,
    plan: Annotated[Optional[Path], typer.Option(help="A YAML plan instead of the arguments above.")] = None,  # noqa: UP045
    out: Annotated[Path, typer.Option(help="Where the run would lie; its disk has to hold it.")] = Path("run"),
    flops_per_second: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Of one device that trains, such as 4e14; without it, this machine's is measured."),
    ] = None,
    devices: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            min=1, help="Of a machine or cluster elsewhere; without it, the plan is held against this machine."
        ),
    ] = None,
    device_memory: Annotated[str, typer.Option(help="Of each of those devices.")] = "80GB",
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Say what a build would do and cost, or why it cannot be. Nothing is written; no weights are needed."""
    from minitron_nas.pipeline.dry_run import dry_run

    with at_work():
        found = dry_run(
            _planned(teacher, size, data, plan, overrides or ()),
            out,
            reads_text=bool(data) or plan is not None,
            devices=_elsewhere(devices, device_memory),
            flops_per_second=flops_per_second,
        )
    if as_json:
        print_json(found.to_dict())
        return
    for line in found.lines():
        typer.echo(line)


@app.command()
def init(
    teacher: Teacher,
    size: Annotated[
        list[str],
        typer.Option(help="Total parameters of a student, such as 94M; or memory=6GB, decode=2.0x; repeatable."),
    ],
    out: Annotated[Path, typer.Option(help="The plan to write.")],
    data: MaybeData = None,
    as_json: AsJson = False,
) -> None:
    """Write a plan with comments, ready to edit."""
    from minitron_nas.cli.values import parse_data
    from minitron_nas.pipeline.template import write_template

    write_template(out, teacher, size, parse_data(data or ["embedded"]))
    print_json({"path": str(out)}) if as_json else typer.echo(str(out))


def _planned(
    teacher: str | None,
    size: list[str] | None,
    data: list[str] | None,
    plan: Path | None,
    overrides: list[str] | tuple[()],
) -> "FamilyPlan":
    from minitron_nas.cli.values import parse_data
    from minitron_nas.errors import PlanError
    from minitron_nas.pipeline.dry_run import SOURCE_OF_THE_SPACE
    from minitron_nas.pipeline.plan import load_plan, make_plan, with_overrides

    if plan is not None:
        if teacher or size or data:
            raise PlanError("--plan already says teacher, sizes and data; change them with --set")
        return load_plan(plan, overrides)
    if not size:
        raise PlanError("plan needs --size (or --plan FILE)")
    text = parse_data(data) if data else "embedded"
    return make_plan(
        with_overrides({"teacher": teacher or SOURCE_OF_THE_SPACE, "sizes": size, "data": text}, overrides)
    )


def _elsewhere(number: int | None, memory: str) -> "Devices | None":
    from minitron_nas.cli.values import parse_bytes
    from minitron_nas.pipeline.devices import Devices

    return (
        None if number is None else Devices("a device", number, parse_bytes("--device-memory", memory), are_here=False)
    )
